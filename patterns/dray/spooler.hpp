// Spooler: a spool and its dispatcher behind publish(). The whole producer side in one object.
//
//   auto spooler = dray::Spooler::open({.directory = "var/orders", .bind = "ipc://var/orders/s",
//                                       .groups = {{"email", {"order.placed"}}}});
//   (*spooler)->publish("order.placed", order);
//
// Promises: P1 to P7 as the parts keep them.
// Threading: any thread; see publisher.hpp for what callbacks may do. open and stop from one
// thread.
// Failure: open returns what recovery found. When the disk fails, on_failure is called once from a
// Dray thread: leave the callback, then stop (never inside it) and open again; that recovers.
// Ownership: owns its threads, files and socket; stop() (or the destructor) ends them.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "dray/export.hpp"
#include "dray/group_limits.hpp"
#include "dray/log.hpp"
#include "dray/message_life.hpp"
#include "dray/publisher.hpp"

namespace dray {

struct SpoolerGroup {
  std::string name;
  std::vector<std::string> topics;
  GroupLimits limits = {};
};

// CURVE keys of a spool: with them all its endpoints ask for CURVE, and may lie beyond this
// machine.
struct SpoolerKeys {
  std::string public_key, secret_key;  // Z85, as `dray keygen` makes them
  // Who may be a worker or a publisher (README, "Keys"); read again when it changes. Empty: only
  // those who have this very key.
  std::string allow_file = {};
};

struct SpoolerOptions {
  std::string directory;  // made if missing
  std::string bind = {};  // endpoint for workers; empty: no worker can come
  Durability durability = Durability::kDisk;
  std::uint64_t max_size = 8ULL << 30;  // bytes
  // Bytes of disk made ready ahead of their use, beside what is in use: a burst of so much is
  // written at full speed. Counts in whole segments of 64 MiB; one is always made ready in time.
  std::uint64_t preallocate = 0;
  std::uint64_t held_max = 1'000'000;  // dead, delayed and retrying messages: 64 bytes each
  // A publish with a dedup id inside this window is the first one again.
  Milliseconds dedup_age{86'400'000};
  std::size_t dedup_count = 1'000'000;
  // Settled messages stay for so long (0: not), but not more bytes of them than retain_size (0: no
  // limit). retain_topics may be published without a group.
  Milliseconds retain_age{0};
  std::uint64_t retain_size = 0;
  std::vector<std::string> retain_topics = {};
  std::vector<SpoolerGroup> groups = {};  // these decide
  std::optional<SpoolerKeys> keys = {};
  // Ignore `groups`, and go by what the spool's last owner said: its groups, durability, max_size,
  // held_max and retain. Dedup ids are not forgotten meanwhile.
  bool keep_groups = false;
  Milliseconds lease{10'000};
  Milliseconds reconnect_grace{2'000};
  std::function<void(const Error&)> on_failure = {};
  Log log = {};
};

struct SpoolGroupStatus {
  std::string name;
  std::vector<std::string> topics;
  bool attached = true;
  bool gated = false;  // after a restart, older messages wait for workers to say what they hold
  std::uint64_t accepted = 0, pending = 0, done = 0, dead = 0, expired = 0, dropped = 0,
                damaged = 0;
  std::uint64_t in_flight = 0, delayed = 0, workers = 0;
  std::uint64_t held = 0;     // messages with a history, in memory
  std::uint64_t in_line = 0;  // that have the turn of their key, or wait for it
  bool paused = false;
  GroupLimits limits;
  // When the oldest message was published that is pending, and not to be delivered later (delayed,
  // or waiting for a retry); as of a moment ago. Nothing if there is none, or it lies behind
  // thousands of those.
  std::optional<std::int64_t> oldest_ms = std::nullopt;  // Unix time, UTC
};

struct SpoolWorkerStatus {
  std::string session, worker, group;
  std::uint64_t outstanding = 0;
  std::uint32_t window = 0;
  bool connected = false;
};

struct SpoolStatus {
  std::string id, directory, endpoint;
  std::uint64_t epoch = 0;
  Durability durability = Durability::kDisk;
  std::uint64_t size_bytes = 0, max_size_bytes = 0;
  std::uint64_t ready_bytes = 0;  // of disk ahead of their use
  std::uint64_t stale_results = 0;
  std::uint64_t damaged_ranges = 0;
  std::uint64_t segments = 0;
  std::uint64_t held_max = 0;  // at this many held messages nothing new is delivered
  bool expiry_paused = false;  // the wall clock jumped; nothing expires until it is steady
  std::vector<std::string> detached_groups;
  std::vector<SpoolGroupStatus> groups;
  std::vector<SpoolWorkerStatus> workers;
};

struct DeadLetterAttempt {
  std::string at, worker, reason;
  std::uint32_t attempts = 0;
};

struct DeadLetter {
  Sequence sequence = 0;
  std::string id, topic, key, cause, reason, worker, died_at;
  std::uint32_t attempts = 0;
  std::string body;                        // MessagePack
  std::vector<DeadLetterAttempt> history;  // newest first
  std::vector<StepLife> steps;
};

// Which dead letters; what is empty matches all.
struct DRAY_API DeadFilter {
  std::string topic, cause;
  std::string signature;  // error_signature() of the reason
  bool operator()(const DeadLetter& letter) const;
  bool empty() const { return topic.empty() && cause.empty() && signature.empty(); }
};

// A reason without what differs from one message to the next: numbers are '#', quoted text is '*'.
DRAY_API std::string error_signature(std::string_view reason);

struct ReplayRequest {
  std::string group;
  UtcTime since{};  // published then or later
  // Not what comes there or later, so that a growing log ends: the end of the first step; 0: all.
  Sequence before = 0;
  Sequence from = 1;          // where this step begins: ReplayStep::next of the one before
  std::size_t limit = 5'000;  // messages replayed in this step
  bool dry_run = false;       // only count
  // Of messages whose topic the group takes now; nothing: all.
  std::function<bool(const EnvelopeView&)> where = {};
};

struct ReplayStep {
  std::uint64_t matched = 0;
  std::uint64_t replayed = 0;  // the others are open: pending, or dead
  Sequence next = 1;
  Sequence end = 1;  // of the log; the replay is over when next reaches it
};

struct AcceptedRequest {
  Sequence from = 0;  // AcceptedPage::next of the page before; 0: from `since`, or from now on
  UtcTime since{};    // published then or later
  std::string topic;  // empty: any
  std::size_t limit = 100;  // messages of a page; it has at most 1,000 and about 4 MiB
};

class DRAY_API Spooler final : public Publisher {
 public:
  // Raises this process's soft limit of open files to the hard one: a spool has one file open for
  // each segment of 64 MiB.
  static Result<std::unique_ptr<Spooler>> open(SpoolerOptions options);
  ~Spooler() override;
  // Makes a spool that was copied or restored belong to this folder and machine. kBusy while it is
  // served.
  static Status adopt(const std::string& directory);

  void publish_draft(Draft draft, ReceiptCallback done) override;
  void publish_view(const DraftView& draft, ReceiptCallback done) override;
  Result<Receipt> publish_and_wait(const DraftView& draft) override;

  // One more endpoint for workers.
  Status bind(const std::string& endpoint);

  // kClosed when stopped.
  Result<SpoolStatus> status();
  // Dead letters of a group with sequence > `after`, ascending, at most `limit`.
  Result<std::vector<DeadLetter>> dead_letters(const std::string& group, Sequence after,
                                               std::size_t limit);
  // Makes dead letters pending again, or settles them as dropped; empty `sequences`: all of the
  // group. Returns how many, once that is durable.
  Result<std::size_t> retry_dead(const std::string& group, std::vector<Sequence> sequences);
  Result<std::size_t> drop_dead(const std::string& group, std::vector<Sequence> sequences);
  // Gives a dead letter another body (MessagePack), for this group, and another chance.
  Status edit_dead(const std::string& group, Sequence sequence, const std::string& body);

  // What became of a step of a dead letter that began and did not report: it took effect and
  // returned this value (MessagePack), or (nothing) it took none. When no other is undecided the
  // message is pending again. kNotFound if there is no such step.
  Status decide_dead(const std::string& group, Sequence sequence, const std::string& step,
                     const std::optional<std::string>& value);

  // While paused a group gets nothing; what workers hold goes on. Survives restarts. Durable on
  // return.
  Status set_paused(const std::string& group, bool paused);
  // Settles all that is pending or dead in a group that is not in the config any more, and forgets
  // it. kConflict for one that is attached.
  Status drop_group(const std::string& group);
  // Gives settled messages that are still in the log (see retain_age) to a group once more, also
  // those from before it was declared. One step; kFull when held_max is reached.
  Result<ReplayStep> replay(const ReplayRequest& request);
  // A message by its id or its sequence. kNotFound if the log does not have it (any more).
  Result<MessageLife> show(const std::string& id);
  // What a group has neither settled nor given up, with sequence > `after`. It stays where it is.
  // At most `limit` and 1,000 messages, and about 4 MiB: a page may have none and there is more.
  Result<PendingPage> pending(const std::string& group, Sequence after, std::size_t limit);
  // What was accepted, in the order of the log, and is as durable as the receipts say.
  Result<AcceptedPage> accepted(const AcceptedRequest& request);

  // The wall clock is right although it jumped: messages expire again.
  Status confirm_clock();

  // Commits what was accepted, then ends. Idempotent.
  void stop();

 private:
  struct State;
  explicit Spooler(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace dray
