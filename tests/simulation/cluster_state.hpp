// What a ClusterWorld is made of. For its own source files only.
#pragma once

#include "simulation/cluster_world.hpp"

namespace dray::test {

using namespace std::chrono_literals;
using balancing::DispatcherCore;
using balancing::WorkerCore;
using spool::GroupId;

inline constexpr auto kLease = 1'000ms;
inline constexpr auto kGrace = 200ms;
inline constexpr auto kFaultsFor = 4s;
inline constexpr auto kDrainFor = 120s;  // a wall clock set back holds back what is due by it
// Settled messages stay, so that they can be replayed.
inline const spool::RetainOptions kRetain{std::chrono::seconds(60), 1U << 20};
inline constexpr auto kRateWindow = 500ms;
inline constexpr std::uint32_t kAttemptsMax = 3;
inline constexpr std::uint32_t kWindowMax = 8;
inline const std::vector<std::string> kGroups{"a", "b"};

struct ClusterWorld::Producer final : spool::CommitListener {
  Producer(ClusterWorld& world_in, std::size_t index_in, std::uint64_t seed)
      : world(world_in), index(index_in), disk(seed) {}

  void on_committed(spool::Committed committed) override {
    world.on_tickets(*this, committed);
    inbox.push_back(std::move(committed));
  }
  void on_failed(const Error&) override { poisoned = true; }

  ClusterWorld& world;
  const std::size_t index;
  SimulatedDisk disk;
  std::uint64_t life = 0;
  bool up = false;
  bool poisoned = false;
  bool step_wanted = false;
  bool commit_wanted = false;
  bool checkpoint_due = false;
  SteadyTime timer_at{};
  SteadyTime upkeep_at{};
  std::unique_ptr<Directory> directory;
  std::unique_ptr<spool::Spool> spool;
  std::unique_ptr<spool::LogReader> reader;
  std::unique_ptr<spool::LogReader> look_up;
  std::unique_ptr<DispatcherCore> core;
  std::vector<spool::Committed> inbox;
  std::map<std::string, std::pair<std::size_t, std::uint64_t>> peers;  // to worker, connection
  // By ticket: what will be settled or dead once it is durable.
  std::map<std::uint64_t, std::vector<TaskKey>> settling;
  std::set<TaskKey> dying;
  // By ticket: who is paused, or replayed, once it is durable.
  std::map<std::uint64_t, GroupId> pausing;
  std::map<std::uint64_t, std::vector<TaskKey>> replaying;
  // Of this life, by group.
  std::map<GroupId, std::deque<SteadyTime>> deliveries;
  std::map<GroupId, std::uint64_t> grants;
  std::map<GroupId, std::uint64_t> inversions;  // a lower priority went before a higher one
  // The model.
  std::map<GroupId, bool> paused;  // it is durable, and nobody asked to resume
  std::map<GroupId, std::uint64_t> replays_known;
  std::map<GroupId, std::uint64_t> replays_asked;
  std::uint64_t published = 0;  // handed in
  std::uint64_t received = 0;   // receipts
};

struct ClusterWorld::WorkerNode {
  std::size_t index = 0;
  std::uint64_t life = 0;
  bool up = false;
  bool step_wanted = false;
  SteadyTime timer_at{};
  bool draining = false;
  std::uint32_t threads = 1;
  std::uint32_t busy = 0;
  std::unique_ptr<WorkerCore> core;
  std::deque<WorkerCore::Jobs> queue;  // single ones
  SequenceRuns untold;                 // jobs that are done, which the core does not know yet
  struct Stepping {
    TaskKey key;
    std::size_t run = 0;
    Nanoseconds took{};
    std::uint64_t replays = 0;  // of the message, when this began
    StepCall what = StepCall::kBegin;
    std::uint64_t number = 0;  // random; of this handling
  };
  std::map<std::uint64_t, Stepping> stepping;  // by job

  std::string name() const {
    return "worker " + std::to_string(index) + ", life " + std::to_string(life);
  }
};

struct ClusterWorld::Link {
  std::size_t producer = 0;
  std::size_t worker = 0;
  bool up = false;
  std::uint64_t connection = 0;
  std::string peer;
  SteadyTime to_producer{};  // when the last frame on its way arrives
  SteadyTime to_worker{};
  SteadyTime stalled_until{};  // half open: nothing arrives, nobody notices
  SteadyTime trouble_at{};     // when it last was down or stalled
};

}  // namespace dray::test
