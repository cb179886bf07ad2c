// HandlerThreads: runs a worker's jobs on threads, each with a consumer of its own, and keeps what
// came of them for the thread that has the sockets.
//
//   socket thread  give() -> queue -> handler threads, some jobs at a time -> take_ended()
//                  take_back(), answer(), watch() reach what is queued, taken or running
//
// Jobs are always in the queue or with a thread's slot, where take_back() finds them. A thread goes
// from one job to its neighbour without a lock (Progress, in the .cpp). While there is more to do,
// what is plainly done is told some at a time: waking the socket thread costs more than some jobs.
//
// Threading: the socket thread, but for close(), and stop() once the socket thread has ended.
// Failure: add() returns the consumer's error. A handler that outlives its time-out and a grace
// period is written off: its thread is left running, another takes its place, and what it shares
// with this object stays alive for it. Ownership: owns the threads, their consumers and jobs.
#pragma once

#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "dray/balancing/worker_core.hpp"
#include "dray/transport/socket.hpp"
#include "dray/worker.hpp"

namespace dray {

class HandlerThreads {
 public:
  using Jobs = balancing::WorkerCore::Jobs;
  using JobStep = balancing::WorkerCore::JobStep;

  // Neighbours that were plainly done, or one job with its outcome.
  struct Ended {
    SequenceRun jobs;
    std::chrono::nanoseconds took;     // in all
    std::unique_ptr<Outcome> outcome;  // nothing: plain done
  };
  struct News {
    std::vector<Ended> ended;
    std::vector<std::pair<std::uint64_t, JobStep>> step_calls;  // by job
  };

  HandlerThreads(const WorkerSettings& settings, ConsumerFactory factory);
  ~HandlerThreads();
  HandlerThreads(const HandlerThreads&) = delete;
  HandlerThreads& operator=(const HandlerThreads&) = delete;

  // One more thread.
  Status add();
  // Readable when there is news, or when anybody else woke it.
  transport::WakeUp& wake_up();

  void give(std::vector<Jobs> jobs);
  // Those that no thread has begun; the others go on.
  SequenceRuns take_back(const SequenceRuns& jobs);
  // Where jobs are short a thread takes up to `at_once` at once, and while there are more to do
  // what was plainly done may be told together. Before: one, and each.
  void set_pace(std::uint32_t at_once, bool tells_together);
  News take_news();
  // To the call that this job's handler waits with, if it does.
  void answer(std::uint64_t job, const StepJournal::Reply& reply);
  // Asks handlers that are too late to stop; the jobs of those that were written off now.
  std::vector<std::uint64_t> watch_timeouts();
  // Any thread.
  std::uint64_t written_off() const;

  // Any thread. No thread takes more jobs; those that run are not waited for.
  void close();
  // After close(): handlers are asked to stop. Their callbacks run here. Repeatable.
  void ask_to_stop();
  // After close(), on the socket thread: no handler runs any more.
  bool all_ended() const;
  // After close(): handlers are asked to stop, and waited for. Repeatable.
  void stop();

 private:
  struct Slot;
  struct Shared;
  class Journal;
  class Stopwatch;

  static void tell_ended(Shared& shared, Slot& slot, SteadyTime now,
                         std::unique_ptr<Outcome> outcome = nullptr,
                         std::chrono::nanoseconds outcome_took = {}, bool at_once = false);
  static bool tell_outcome(Shared& shared, Slot& slot, Outcome outcome,
                           std::chrono::nanoseconds took, SteadyTime now);
  static void hand_over(Shared& shared, Slot& slot, SteadyTime now);
  static void take_share(Shared& shared, Slot& slot);
  static bool take_jobs(Shared& shared, Slot& slot, std::stop_token& stop, SteadyTime now);
  static void handle_jobs(Shared& shared, Slot& slot);
  static Result<std::unique_ptr<Consumer>> make_consumer(Shared& shared);
  void start(std::unique_ptr<Consumer> consumer);
  void replace(std::size_t index);

  std::shared_ptr<Shared> shared_;  // with threads that were written off
  std::vector<std::shared_ptr<Slot>> slots_;
  std::vector<std::thread> threads_;  // by slot
  bool exhausted_ = false;
};

}  // namespace dray
