// ClusterWorld: producers with real spools on simulated disks and real dispatcher cores, workers
// with real worker cores, and a network between them that delays, drops and partitions; all from
// one seed, on one virtual clock.
//
// While it runs, nodes crash, disks fail, links break and clocks jump. At every step: P2 (counts
// balance; nothing is settled twice), P3 (nothing that is settled is delivered), P4 (attempts have
// causes; only what fails dies), P5 (nothing runs a second time that is held or finished, unless
// its worker was lost), P10 (one message of a key at a time, in order), priorities, and the limits
// and pauses of groups; steps take effect once unless that was not known. Once the faults stop,
// everything drains.
//
// Threading: one thread. Failure: throws WorldFault with what was wrong.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <queue>
#include <random>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "dray/balancing/dispatcher_core.hpp"
#include "dray/balancing/worker_core.hpp"
#include "simulation/spool_world.hpp"

namespace dray::test {

class ClusterWorld {
 public:
  explicit ClusterWorld(std::uint64_t seed);
  ~ClusterWorld();
  void run();

 private:
  using Nanoseconds = std::chrono::nanoseconds;

  struct Producer;
  struct WorkerNode;
  struct Link;
  // What a message's handler does, from the first letter of its body.
  enum class Behaviour : char {
    kDone = 'd',
    kFailsOnce = '1',
    kFailsTwice = '2',
    kSnoozesOnce = 's',
    kPoison = 'p',
    kKiller = 'k',
    kRejected = 'x',
    // With a step (Delivery::once) that, if it is unknown, is run again, or asked about.
    kStepAgain = 'g',
    kStepAsk = 'a',
  };
  // One start of a handler.
  struct Run {
    std::size_t worker = 0;
    std::uint64_t life = 0;
    bool finished = false;
    Outcome::Kind outcome = Outcome::Kind::kDone;
    bool lost = false;    // its session was lost, or its worker: it may be run again
    bool fenced = false;  // its session was lost: its outcome counts no more
  };
  // Worker, life, epoch, delivery number.
  using Grant = std::tuple<std::size_t, std::uint64_t, std::uint64_t, std::uint32_t>;
  // One message for one group.
  struct Task {
    Behaviour behaviour = Behaviour::kDone;
    std::vector<Run> runs;
    struct GrantEnd {
      bool lost = false;    // its session was lost
      bool fenced = false;  // and the dispatcher still knows that
    };
    std::map<Grant, GrantEnd> grants;
    bool settled = false;  // its settlement, or its death, is durable
    bool dead = false;
    bool accepted = false;
    bool replayed = false;  // maybe, if its producer crashed then
    std::string key;
    Priority priority = Priority::kNormal;
    bool delayed = false;
    std::uint64_t published_in = 0;  // life of its producer
    SteadyTime accepted_at{};
    std::uint64_t replays = 0;
    std::size_t effects = 0;   // of its step
    std::size_t unknowns = 0;  // how often it was not known whether it had one
    bool step_told = false;    // somebody was told to run it
    std::size_t count(Outcome::Kind kind) const;
    std::size_t count_lost() const;
    void lose(std::size_t worker, std::uint64_t life, bool fenced);
  };
  using TaskKey = std::tuple<std::size_t, spool::GroupId, Sequence>;
  struct Event {
    SteadyTime at;
    std::uint64_t serial;
    std::function<void()> run;
    bool operator>(const Event& other) const {
      return std::pair(at, serial) > std::pair(other.at, other.serial);
    }
  };

  // Time.
  void after(Nanoseconds delay, std::function<void()> run);
  bool turn(SteadyTime until);
  template <typename Node>
  void wake_in(Node& node, Nanoseconds delay);
  Nanoseconds between(Nanoseconds least, Nanoseconds most);
  std::uint64_t draw(std::uint64_t below) { return random_() % below; }
  balancing::Now now() const { return {clock_.steady(), clock_.utc()}; }

  // Producers.
  void start_producer(std::size_t index);
  void crash_producer(std::size_t index, bool power_cut);
  void publish_draft(Producer& producer, const Draft& draft);
  void tell_done(WorkerNode& worker);
  void publish(std::size_t index);
  void wake(Producer& producer);
  void step(Producer& producer);
  void perform(Producer& producer);
  void upkeep(Producer& producer);
  void submit(Producer& producer, spool::Submission submission);
  void request_commit(Producer& producer);
  void send(Producer& producer, const balancing::DispatcherCore::Send& send);
  void on_tickets(Producer& producer, const spool::Committed& committed);
  void on_session_end(Producer& producer, const std::string& session, const std::string& reason);

  // Workers.
  void start_worker(std::size_t index);
  void crash_worker(std::size_t index);
  void drain(WorkerNode& worker);
  void wake(WorkerNode& worker);
  void step(WorkerNode& worker);
  void start_jobs(WorkerNode& worker);
  void begin(WorkerNode& worker, const balancing::WorkerCore::Jobs& job);
  void finish(WorkerNode& worker, std::uint64_t job, const TaskKey& key, std::size_t run,
              std::uint64_t replays, Nanoseconds took);
  Outcome outcome_of(Task& task) const;
  void end(WorkerNode& worker, std::uint64_t job, const TaskKey& key, std::size_t run,
           std::uint64_t replays, Nanoseconds took, const Outcome& outcome);
  void call_step(WorkerNode& worker, std::uint64_t job, StepCall what);
  void on_stepped(WorkerNode& worker, std::uint64_t job, const StepJournal::Reply& reply);
  void take_effect(WorkerNode& worker, std::uint64_t job);
  void check_stepped(Producer& producer, std::size_t worker, const balancing::Stepped& stepped);

  // Network.
  Link& link(std::size_t producer, std::size_t worker);
  void try_connect(std::size_t producer, std::size_t worker);
  void disconnect(Link& link);
  SteadyTime arrival(Link& link, SteadyTime& last);

  // Faults and checks.
  void break_something();
  void check_delivery(Producer& producer, std::size_t worker,
                      const balancing::DispatcherCore::Send& sent);
  void note_unsent(const Producer& producer, const balancing::DispatcherCore::Send& send);
  void check_cause(const TaskKey& key);
  void check_turn(const TaskKey& key, const std::string& name);
  void note_settled(const Producer& producer);
  void check_limits(Producer& producer, spool::GroupId group, std::size_t deliveries);
  void check_priority(Producer& producer, spool::GroupId group, const Task& granted);
  // Administration.
  void pause_something();
  void set_paused(Producer& producer, spool::GroupId group, bool paused);
  void replay_something();
  void on_finished(Producer& producer, std::uint64_t ticket);
  void check_counts(Producer& producer);
  bool all_settled() const;
  void check_end();
  std::string explain() const;
  void trace(const std::string& what) const;

  std::mt19937_64 random_;
  VirtualClock clock_;
  std::priority_queue<Event, std::vector<Event>, std::greater<>> events_;
  std::uint64_t event_serial_ = 0;
  std::vector<std::unique_ptr<Producer>> producers_;
  std::vector<std::unique_ptr<WorkerNode>> workers_;
  std::vector<std::unique_ptr<Link>> links_;
  std::map<TaskKey, Task> tasks_;
  std::map<std::string, std::tuple<std::size_t, std::uint64_t, std::size_t>> sessions_;
  std::uint64_t last_session_ = 0;
  std::uint64_t last_message_ = 0;
  bool calm_ = false;  // the faults have stopped
  bool clock_jumped_ = false;
  std::map<std::string, GroupLimits> limits_;  // by group, of every producer
  const bool trace_;
};

}  // namespace dray::test
