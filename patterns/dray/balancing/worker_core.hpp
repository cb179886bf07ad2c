// WorkerCore: the worker's side of the balancing protocol. Pure: frames, outcomes and the time in;
// frames and jobs out. One link per address of a dispatcher; one session per link, for the life of
// the link.
//
// One delivery:
//
//   DELIVER --> queued --on_started()--> running --on_outcome()--> answered --CONFIRM--> forgotten
//                 |                                                   |
//                 +--drain: returned--> answered (RETURNED)           +--WELCOME: repeated
//
// Of several links that lead to one spool the first that is welcomed is served; the others wait. A
// dispatcher that comes back under another address is told what was held under the old one: the
// session moves.
//
// Promises: P3, P5 (what is held or answered is named in HELLO and repeated until confirmed; a
// delivery that is held already is not run twice).
//
// Jobs have numbers that grow; those of neighbours are neighbours. What comes in runs is kept,
// started, answered and forgotten in runs.
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
#include <vector>

#include "dray/balancing/protocol.hpp"
#include "dray/balancing/run_table.hpp"
#include "dray/balancing/window_planner.hpp"
#include "dray/handler.hpp"

namespace dray::balancing {

struct WorkerOptions {
  std::string name;  // for people: host and app
  std::string group;
  std::uint32_t threads = 1;
  std::uint32_t window_max = 8'192;  // deliveries over all links
  std::uint64_t window_bytes_max = 64U << 20;
  std::uint32_t window_fixed = 0;  // WindowOptions::fixed
  RetryPolicy retry;
  // See WindowOptions.
  std::chrono::nanoseconds queue_target = std::chrono::milliseconds(2);
  std::uint64_t seed = 1;
  std::function<Uuid()> make_session_id = uuid_v4;  // a simulation must repeat itself
};

class WorkerCore {
 public:
  // What came in one frame.
  struct Bytes {
    Delivered records;
    std::shared_ptr<const void> owner;
  };
  // Jobs whose messages are neighbours.
  struct Jobs {
    std::uint64_t first = 0;
    std::uint32_t count = 1;
    std::uint32_t index = 0;  // of the first one's record
    Sequence sequence = 0;    // of the first
    std::uint32_t attempt = 1;
    std::shared_ptr<const Bytes> bytes;

    std::string_view envelope(std::uint32_t at) const {
      return bytes->records.envelope(index + at);
    }
    // Its bytes will be wanted soon.
    void prefetch(std::uint32_t at) const {
      if (at >= count) return;
      const char* record = bytes->records.bytes.data() + bytes->records.offsets[index + at];
      __builtin_prefetch(record);
      __builtin_prefetch(record + 64);
    }
    // The first `wanted` of them, which it loses. REQUIRES: 0 < wanted < count.
    Jobs split(std::uint32_t wanted) {
      Jobs front = *this;
      front.count = wanted;
      first += wanted;
      index += wanted;
      sequence += wanted;
      count -= wanted;
      return front;
    }
    // Each by itself, for those who start them one by one.
    std::vector<Jobs> apart() const {
      std::vector<Jobs> all;
      Jobs rest = *this;
      while (rest.count > 1) all.push_back(rest.split(1));
      all.push_back(rest);
      return all;
    }
  };
  struct Send {
    std::size_t link = 0;
    std::string frame;
  };
  struct Actions {
    std::vector<Send> sends;
    std::vector<Jobs> start;             // in this order
    SequenceRuns cancel;                 // jobs that need not start any more; sorted
    std::vector<std::size_t> close;      // links that are over: see retire_link()
    std::vector<std::size_t> reconnect;  // silent for a lease: their connections are worth nothing
    std::vector<std::string> problems;   // for the log
    std::vector<std::pair<std::uint64_t, StepJournal::Reply>> stepped;  // job: see call_step()
  };

  WorkerCore(WorkerOptions options, std::size_t links, SteadyTime now);

  // One more dispatcher. The index may be one that was closed before.
  std::size_t add_link(SteadyTime now);
  // This address is no dispatcher's any more: nothing new is taken from it. Once all is answered
  // and confirmed, or what is held can go to nobody for a lease, the link is among Actions::close,
  // once.
  void retire_link(std::size_t link, SteadyTime now);

  void on_connected(std::size_t link, SteadyTime now);
  void on_disconnected(std::size_t link, SteadyTime now);
  void on_frame(std::size_t link, ProtocolFrame frame, const std::shared_ptr<const void>& owner,
                SteadyTime now);
  // These jobs are done, without follow-ups; in all they took so long. Unknown ones (written off,
  // forgotten) are ignored.
  void on_done(const SequenceRun& jobs, std::chrono::nanoseconds took);
  // The job ended after `took`. The same of unknown ones.
  void on_outcome(std::uint64_t job, const Outcome& outcome, std::chrono::nanoseconds took,
                  UtcTime now);
  // The job's handler says something of a step, and waits for Actions::stepped. One call of a job
  // at a time. `run` is drawn at random for each handling.
  struct JobStep {
    StepCall what = StepCall::kBegin;
    std::uint64_t run = 0;
    std::string step;
    std::string value;
  };
  void call_step(std::uint64_t job, JobStep call, SteadyTime now);
  // They were taken back before they started.
  void on_returned(const SequenceRun& jobs);
  void tick(SteadyTime now);

  // When tick() must be called again at the latest.
  SteadyTime next_deadline(SteadyTime now) const;

  // No new work; jobs that did not start are to be taken back (Actions::cancel names them all).
  void drain();
  // All answered and confirmed; BYE is among the actions taken last.
  bool drained() const;

  Actions take_actions(SteadyTime now);
  std::size_t link_count() const { return links_.size(); }
  // Jobs are so long that each slot counts (WindowPlanner::is_fine).
  bool takes_each_slot() const { return planner_.is_fine(); }
  // Jobs that a thread may take at once without keeping much to itself; 1 where each slot counts.
  std::uint32_t jobs_at_once() const { return planner_.jobs_at_once(); }
  // Outcomes may wait for some more (WindowPlanner::tells_together).
  bool tells_together() const { return planner_.tells_together(); }
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
  // Deliveries that are neighbours. Marked: answered.
  struct Held {
    std::uint64_t epoch = 0;
    std::uint32_t number = 0;
    std::uint64_t job = 0;  // of the first

    void skip(std::uint64_t count) { job += count; }
    bool goes_on(const Held& next, std::uint64_t count) const {
      return epoch == next.epoch && number == next.number && job + count == next.job;
    }
  };
  // Jobs that are neighbours, and so are their messages.
  struct JobPlace {
    std::size_t link = 0;
    Sequence sequence = 0;  // of the first

    void skip(std::uint64_t count) { sequence += count; }
    bool goes_on(const JobPlace& next, std::uint64_t count) const {
      return link == next.link && sequence + count == next.sequence;
    }
  };
  using HeldTable = RunTable<Held>;
  using JobTable = RunTable<JobPlace>;
  struct LinkState {
    Uuid session;
    std::uint64_t hellos = 0;  // of that session
    bool connected = false;
    bool welcomed = false;
    bool said_bye = false;
    bool left = false;  // said BYE to be served otherwise: what is delivered before WELCOME is not
    std::optional<SteadyTime> retired_at;
    bool closed = false;            // over; the slot is free
    std::optional<Uuid> second_of;  // this spool is served by another link
    Uuid spool;
    std::uint64_t epoch = 0;
    Milliseconds lease{10'000};
    Milliseconds grace{2'000};
    std::optional<SteadyTime> broken_at;
    SteadyTime sent_at{};
    SteadyTime heard_at{};
    std::optional<SteadyTime> busy_until;  // then what was put off is said again
    std::optional<SteadyTime> offered_at;  // room for a dispatcher that said that it waits
    HeldTable held;
    std::map<Sequence, ResultItem> results;  // of what is answered and not plainly done
    SequenceRuns unsent;                     // answered since the last flush
    std::vector<Step> given_up;              // beginnings, to be said when it is welcomed
  };
  void say_hello(std::size_t link, SteadyTime now);
  void on_welcome(std::size_t link, const Welcome& welcome, SteadyTime now);
  bool yields(std::size_t link, const Welcome& welcome, SteadyTime now);
  void move_session(std::size_t from, std::size_t to, SteadyTime now);
  void end_retired(SteadyTime now);
  bool is_second(std::size_t link) const;
  void on_deliver(std::size_t link, Deliver deliver, const std::shared_ptr<const void>& owner,
                  SteadyTime now);
  void take_run(std::size_t link, const Deliver& deliver, const Delivered::Run& run,
                const std::shared_ptr<const Bytes>& bytes);
  std::uint32_t room_for_jobs(bool something_waits) const;
  void on_confirm(std::size_t link, const Confirm& confirm);
  void forget_all(std::size_t link);
  void forget_jobs(const SequenceRun& jobs);
  void forget_step(std::uint64_t job);
  void forget_results(std::size_t link, const SequenceRun& sequences);
  JobPlace place_of(std::uint64_t job) const;
  bool takes_again(std::size_t link, const Deliver& deliver, Sequence sequence);
  void send_step(std::uint64_t job, const JobStep& call, SteadyTime now);
  void on_stepped(std::size_t link, const Stepped& stepped);
  void on_busy(std::size_t link, const Busy& busy, SteadyTime now);
  void answer(std::uint64_t job, ResultItem result);
  std::uint64_t answer_done(const SequenceRun& jobs);
  void cancel_all(std::size_t link);
  void flush_results(std::size_t link, SteadyTime now);
  void send_windows(const std::vector<WindowPlanner::Said>& windows, bool before_results,
                    SteadyTime now);
  void give_back_stalled(SteadyTime now);
  void send(std::size_t link, std::string frame, SteadyTime now);

  const WorkerOptions options_;
  std::vector<LinkState> links_;
  WindowPlanner planner_;
  std::vector<WindowPlanner::Link> loads_;  // by link
  JobTable jobs_;                           // not answered
  std::uint64_t last_job_ = 0;
  std::uint32_t jobs_max_ = 0;              // as of the frame that is being taken
  std::map<std::uint64_t, JobStep> steps_;  // by job: not answered
  SteadyTime progress_at_;                  // a job ended, or more came than there are threads
  bool progressed_ = false;
  bool draining_ = false;
  std::vector<std::size_t> farewells_;  // links to be told a window of 0
  Actions actions_;
};

}  // namespace dray::balancing
