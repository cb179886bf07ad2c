// WorkerCore: the worker's side of the balancing protocol. Pure: frames, outcomes and the time in;
// frames and jobs out. One link per dispatcher; one session per link, for the life of the core.
//
// One delivery:
//
//   DELIVER --> queued --on_started()--> running --on_outcome()--> answered --CONFIRM--> forgotten
//                 |                                                   |
//                 +--drain: returned--> answered (RETURNED)           +--WELCOME: repeated
//
// Promises: P3, P5 (what is held or answered is named in HELLO and repeated until confirmed; a
// delivery that is held already is not run twice).
//
// Threading: one thread. Failure: frames that make no sense change nothing. Ownership: a job keeps
// the bytes of the frame it came in.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "dray/balancing/protocol.hpp"
#include "dray/handler.hpp"

namespace dray::balancing {

struct WorkerOptions {
  std::string name;  // for people: host and app
  std::string group;
  std::uint32_t threads = 1;
  std::uint32_t window_max = 8'192;  // deliveries over all links
  std::uint64_t window_bytes_max = 64U << 20;
  RetryPolicy retry;
  // How much work may lie ready per thread: enough that no thread waits for the wire, little
  // enough that others can have it.
  Milliseconds queue_target{20};
  std::function<Uuid()> make_session_id = uuid_v4;  // a simulation must repeat itself
};

class WorkerCore {
 public:
  struct Job {
    std::uint64_t id = 0;
    Sequence sequence = 0;
    std::uint32_t attempt = 1;
    std::shared_ptr<const void> owner;
    std::string_view envelope;
  };
  struct Send {
    std::size_t link = 0;
    std::string frame;
  };
  struct Actions {
    std::vector<Send> sends;
    std::vector<Job> start;             // in this order
    std::vector<std::uint64_t> cancel;  // jobs that need not start any more
    std::vector<std::string> problems;  // for the log
  };

  WorkerCore(WorkerOptions options, std::size_t links, SteadyTime now);

  void on_connected(std::size_t link, SteadyTime now);
  void on_disconnected(std::size_t link, SteadyTime now);
  void on_frame(std::size_t link, ProtocolFrame frame, const std::shared_ptr<const void>& owner,
                SteadyTime now);
  // The job ended after `took`. Unknown ids (written off, forgotten) are ignored.
  void on_outcome(std::uint64_t job, const Outcome& outcome, std::chrono::nanoseconds took,
                  UtcTime now);
  // The job was taken back before it started.
  void on_returned(std::uint64_t job);
  void tick(SteadyTime now);

  // No new work; jobs that did not start are to be taken back (Actions::cancel names them all).
  void drain();
  // All answered and confirmed; BYE is among the actions taken last.
  bool drained() const;

  Actions take_actions(SteadyTime now);
  std::size_t link_count() const { return links_.size(); }
  // Deliveries that are queued or running.
  std::size_t held() const { return jobs_.size(); }
  bool welcomed(std::size_t link) const;
  // By which grant a job is here; nothing if it is not held any more.
  struct Origin {
    std::size_t link = 0;
    std::uint64_t epoch = 0;
    std::uint32_t number = 0;
  };
  std::optional<Origin> origin_of(std::uint64_t job) const;

 private:
  enum class Stage : std::uint8_t { kHeld, kAnswered };
  struct Held {
    std::uint64_t epoch = 0;
    std::uint32_t number = 0;
    Stage stage = Stage::kHeld;
    std::uint64_t job = 0;
    std::unique_ptr<ResultItem> result;  // nothing: plain done
  };
  struct LinkState {
    Uuid session;
    bool connected = false;
    bool welcomed = false;
    bool said_bye = false;
    Uuid spool;
    Milliseconds lease{10'000};
    Milliseconds grace{2'000};
    std::optional<SteadyTime> broken_at;
    SteadyTime sent_at{};
    SteadyTime active_at{};
    std::uint32_t window_said = 0;
    std::unordered_map<Sequence, Held> held;
    std::vector<Sequence> unsent;  // answered since the last flush
  };
  struct JobPlace {
    std::size_t link;
    Sequence sequence;
  };

  void say_hello(std::size_t link, SteadyTime now);
  void on_welcome(std::size_t link, const Welcome& welcome);
  void on_deliver(std::size_t link, const Deliver& deliver,
                  const std::shared_ptr<const void>& owner, SteadyTime now);
  void on_confirm(std::size_t link, const Confirm& confirm);
  void forget_all(std::size_t link);
  void answer(std::size_t link, Sequence sequence, Held& held, std::unique_ptr<ResultItem> result);
  void flush_results(std::size_t link, SteadyTime now);
  void send_windows(SteadyTime now);
  std::uint32_t window_of(std::size_t link, SteadyTime now) const;
  void send(std::size_t link, std::string frame, SteadyTime now);

  const WorkerOptions options_;
  std::vector<LinkState> links_;
  std::unordered_map<std::uint64_t, JobPlace> jobs_;
  std::uint64_t last_job_ = 0;
  double mean_seconds_ = -1;  // of handling, smoothed; -1: not known
  bool draining_ = false;
  Actions actions_;
};

}  // namespace dray::balancing
