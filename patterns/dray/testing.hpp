// Harness: a whole queue for the tests of handlers, in this process and on a virtual clock.
//
//   dray::testing::Harness queue;
//   queue.handle<SendConfirmation>("email", {"order.placed"});
//   queue.observe({"mail.sent"});
//   queue.publish("order.placed", OrderPlaced{"1", "ada@example.org"});
//   queue.run();                                        // all that can be done now
//   REQUIRE(queue.counts("email") == dray::testing::Counts{.done = 1});
//   REQUIRE(queue.published<MailSent>("mail.sent").size() == 1);
//
// Spool, dispatcher and worker decide as they do in production; only disk, network and clock are
// simulated. Time moves by advance() and settle() alone (and by 1 ms when a worker dies). A handler
// runs on the calling thread, one message after the other, and takes no time.
//
// What a handler does by Delivery::once() is recorded in that spool, so that crash points, kills
// and power cuts between the steps are tested too.
//
// Works with any test framework: what can be compared can be printed.
// Threading: one thread. Failure: std::logic_error for a group or topic that is not declared, for a
// handler that cannot be made, and for a queue that does not come to rest. Ownership: owns the
// handlers.
#pragma once

#include <functional>
#include <iosfwd>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "dray/clock.hpp"
#include "dray/consumer.hpp"
#include "dray/export.hpp"
#include "dray/group_limits.hpp"
#include "dray/handler.hpp"
#include "dray/publisher.hpp"

namespace dray::testing {

// How a worker dies in the middle of a message.
enum class CrashPoint {
  kBeforeHandler,  // it has the message and did not begin
  kAfterHandler,   // the handler ran and its outcome is lost: it will run again
  kAfterResult,    // the outcome arrived, and the worker dies before it hears of it
  // Of a handler that uses Delivery::once(), at its next step:
  kStepBegun,  // its beginning is recorded, and its function does not run
  kStepRan,    // its function ran, and its end is not recorded
  kStepDone,   // its end is recorded, and once() does not return
};

// Of a handler's app, as in its config; what is not said: the policy of a plugin's handler, and
// else 8 attempts, 1 s, 10 min. No jitter, so that times are exact.
struct GroupOptions {
  std::optional<std::uint32_t> max_attempts = {};
  std::optional<Milliseconds> initial = {};
  std::optional<Milliseconds> max = {};
  GroupLimits limits = {};
};

// Messages of a group by state: P2 is pending + done + dead + expired + dropped = accepted.
struct Counts {
  std::uint64_t pending = 0;
  std::uint64_t done = 0;
  std::uint64_t dead = 0;
  std::uint64_t expired = 0;
  std::uint64_t dropped = 0;
  bool operator==(const Counts&) const = default;
};
DRAY_API std::ostream& operator<<(std::ostream& out, const Counts& counts);

// A handler was called, and this came of it.
struct Handled {
  std::string group;
  Sequence sequence = 0;
  std::uint32_t attempt = 1;
  Outcome::Kind outcome = Outcome::Kind::kDone;
  std::string reason;
};

struct DeadMessage {
  Sequence sequence = 0;
  std::uint32_t attempts = 0;
  std::vector<std::string> undecided;  // steps that wait for decide()
  std::string cause;   // "rejected", "attempts", "lost", "unroutable": observe() was forgotten
  std::string reason;  // of the last attempt
};

// A message that was accepted, whoever published it.
struct Published {
  Sequence sequence = 0;
  std::string topic, key;
  Headers headers;
  std::string body;  // MessagePack
  Priority priority = Priority::kNormal;
  UtcTime published_at{};
  std::optional<UtcTime> deliver_at, expires_at;
};

class DRAY_API Harness final : public Publisher {
 public:
  // `seed` decides what a power cut leaves of writes that were not synced.
  explicit Harness(std::uint64_t seed = 1);
  ~Harness() override;
  Harness(const Harness&) = delete;
  Harness& operator=(const Harness&) = delete;

  // A group with one worker, whose handler is an H with this middleware, made as a plugin makes it:
  // with (Settings, Log), (Settings) or nothing, and each setting must be read. Made now, and again
  // after each crash. REQUIRES, for all three: before the first publish.
  template <typename H, typename... Around>
  void handle(const std::string& group, const std::vector<std::string>& topics,
              const Settings& settings = {}, const GroupOptions& options = {}) {
    this->group(
        group, topics,
        [this, settings]() -> Result<std::unique_ptr<Consumer>> {
          const Settings own = settings;
          auto handler = plugin_glue::make_handler<H, Around...>(own, log());
          if (const auto left = own.unread(); !left.empty()) {
            return Error{ErrorCode::kInvalid, "unknown setting '" + left.front() + "'", "", 0};
          }
          return consumer_of(std::move(handler), log());
        },
        options);
  }
  // The same with the handler of a built plugin: `file` is its path, with a '/'.
  void plugin(const std::string& group, std::vector<std::string> topics, const std::string& file,
              const std::string& handler, const Settings& settings = {},
              const GroupOptions& options = {});
  // The same with any consumer: dray::handle_with<T>(function).
  void group(const std::string& name, std::vector<std::string> topics, ConsumerFactory make,
             const GroupOptions& options = {});
  // Topics that a handler publishes and no group here takes: they are accepted and stay.
  // REQUIRES: before the first publish.
  void observe(std::vector<std::string> topics);

  // publish() of Publisher: a receipt, once it is on the simulated disk. Nothing is handled yet.
  void publish_draft(Draft draft, ReceiptCallback done) override;

  // Handles all that can be handled at this time.
  void run();
  // Lets time pass; what becomes due on the way is handled in its time.
  void advance(Milliseconds by);
  // Runs, and jumps over waits, until nothing is pending (but what is observed). False if something
  // still is after `at_most`.
  bool settle(Milliseconds at_most = std::chrono::hours(24));

  // The next message of this group meets this end. The worker is back at once.
  void crash_next(const std::string& group, CrashPoint point);
  // The next handling of this group finds its stop token requested, as at a time-out.
  void stop_next(const std::string& group);
  // The producer (spool and dispatcher) is killed and starts again; workers live on.
  void kill_producer();
  // The same, and what was written and not synced may be gone.
  void cut_power();

  // What a person does by `dray dead decide`: the step of this dead letter took effect, with this
  // value, or took none; and the message is pending again.
  void decide_done(const std::string& group, Sequence sequence, const std::string& step) {
    decide(group, sequence, step, "\xc0");
  }
  template <typename T>
  void decide_done(const std::string& group, Sequence sequence, const std::string& step,
                   const T& value) {
    decide(group, sequence, step, to_bytes(value));
  }
  void decide_not_done(const std::string& group, Sequence sequence, const std::string& step) {
    decide(group, sequence, step, std::nullopt);
  }

  const VirtualClock& clock() const;
  // The wall clock jumps, as an operator or NTP makes it.
  void jump_utc(Milliseconds by);

  Counts counts(const std::string& group) const;
  // In the order of their ends.
  const std::vector<Handled>& handled() const;
  std::vector<DeadMessage> dead(const std::string& group) const;
  // Everything of this topic that was accepted, in order.
  std::vector<Published> accepted(const std::string& topic) const;
  // The same, decoded. std::logic_error for a body that is no T.
  template <typename T>
  std::vector<T> published(const std::string& topic) const {
    std::vector<T> out;
    for (const auto& each : accepted(topic)) {
      auto body = from_bytes<T>(each.body);
      if (!body.ok()) no_such_type(topic, body.error());
      out.push_back(std::move(*body));
    }
    return out;
  }
  // What handlers logged, as logfmt.
  const std::vector<std::string>& log_lines() const;
  const Log& log() const;

 private:
  void decide(const std::string& group, Sequence sequence, const std::string& step,
              const std::optional<std::string>& value);
  [[noreturn]] static void no_such_type(const std::string& topic, const Error& error);
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace dray::testing
