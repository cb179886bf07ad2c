// ClusterWorld: what goes wrong in it, and what must hold all the same.
#include <algorithm>

#include "simulation/cluster_state.hpp"

namespace dray::test {

using spool::RecordType;

// --- faults and checks ----------------------------------------------------------------------

void ClusterWorld::break_something() {
  Link& via = *links_[draw(links_.size())];
  switch (draw(15)) {
    case 0:
    case 1:
      return disconnect(via);
    case 2:
    case 3: {
      // Half open; afterwards what was on its way arrives, or the connection breaks.
      trace("link of worker " + std::to_string(via.worker) + " with producer " +
            std::to_string(via.producer) + " stalls");
      const Nanoseconds length = draw(3) == 0 ? between(kLease, 3 * kLease) : between(5ms, kLease);
      via.stalled_until = std::max(via.stalled_until, clock_.steady() + length);
      after(length, [this, &via, connection = via.connection] {
        via.trouble_at = clock_.steady();
        if (via.connection == connection && draw(2) == 0) disconnect(via);
      });
      return;
    }
    case 4:
    case 5:
      return crash_worker(draw(workers_.size()));
    case 6:
      return crash_producer(draw(producers_.size()), false);
    case 7:
      return crash_producer(draw(producers_.size()), true);
    case 8:
      if (auto& producer = *producers_[draw(producers_.size())]; producer.up) {
        producer.disk.fail_at(1 + draw(20), ErrorCode::kIo);
      }
      return;
    case 9:
    case 10:
      return pause_something();
    case 11:
    case 12:
      return replay_something();
    default: {
      if (draw(6) == 0) {
        if (std::exchange(clock_jumped_, true)) return;
        const auto seconds = static_cast<std::int64_t>(draw(300)) - 75;
        return clock_.jump_utc(Milliseconds(1'000 * seconds));
      }
      drain(*workers_[draw(workers_.size())]);
    }
  }
}

void ClusterWorld::drain(WorkerNode& worker) {
  if (!worker.up || worker.draining) return;
  worker.draining = true;
  worker.core->drain();
  wake(worker);
}

// P3, and the window.
void ClusterWorld::check_delivery(Producer& producer, std::size_t worker,
                                  const DispatcherCore::Send& sent) {
  const auto frame = balancing::decode_frame(sent.frame, sent.records);
  require(frame.ok(), "a bad frame");
  if (const auto* stepped = std::get_if<balancing::Stepped>(&*frame)) {
    return check_stepped(producer, worker, *stepped);
  }
  const auto* deliver = std::get_if<balancing::Deliver>(&*frame);
  if (deliver == nullptr) return;
  for (const auto& session : producer.core->session_status()) {
    // What it held when it said HELLO may be more.
    if (session.worker != workers_[worker]->name()) continue;
    require(session.outstanding <= kWindowMax,
            "more is granted than any window allows: " + std::to_string(session.outstanding) +
                " to " + session.worker);
  }
  const Sequence durable = producer.spool->segments().durable_lsn();
  const auto group = static_cast<GroupId>(worker % kGroups.size());
  check_limits(producer, group, deliver->records.offsets.size());
  SequenceRuns sequences;
  for (const auto& run : deliver->records.runs) sequences.add(run.first, run.count);
  for (const auto sequence : sequences.list()) {
    Task& task = tasks_[{producer.index, group, sequence}];
    // One that was not sent has a history too.
    if (task.grants.empty() && deliver->number == 1) check_priority(producer, group, task);
    task.grants.try_emplace({worker, workers_[worker]->life, deliver->epoch, deliver->number},
                            Task::GrantEnd{});
    trace("message " + std::to_string(sequence) + " of producer " + std::to_string(producer.index) +
          " goes to worker " + std::to_string(worker) + ", number " +
          std::to_string(deliver->number));
    require(sequence <= durable, "a message is delivered before it is durable");
    require(!task.settled, "message " + std::to_string(sequence) + " for group " + kGroups[group] +
                               " is delivered though it is settled");
  }
}

// A step begins for who holds the message, when that is durable.
void ClusterWorld::check_stepped(Producer& producer, std::size_t worker,
                                 const balancing::Stepped& stepped) {
  const bool begins = stepped.what == StepCall::kBegin && stepped.answer != StepAnswer::kRefused;
  if (!begins) return;
  const auto group = static_cast<GroupId>(worker % kGroups.size());
  const auto holder = producer.core->holder_of(group, stepped.sequence);
  require(holder && !holder->settling && holder->worker == workers_[worker]->name(),
          "a step of message " + std::to_string(stepped.sequence) +
              " begins though its delivery was lost");
  const auto* known =
      producer.core->group_state(group).steps().find(stepped.sequence, stepped.step);
  require(known != nullptr, "a step begins before that is durable");
  Task& task = tasks_[{producer.index, group, stepped.sequence}];
  task.step_told = task.step_told || stepped.answer == StepAnswer::kRecorded;
  // A producer that crashed does not know whom it told.
  require(task.step_told || task.published_in != producer.life || task.replayed,
          "a step that nobody was told to run is unknown");
}

// The dispatcher told it, as far as it knows.
void ClusterWorld::note_unsent(const Producer& producer, const DispatcherCore::Send& send) {
  const auto frame = balancing::decode_frame(send.frame, send.records);
  const auto* stepped = frame.ok() ? std::get_if<balancing::Stepped>(&*frame) : nullptr;
  if (stepped == nullptr) return;
  for (GroupId group = 0; group < kGroups.size(); ++group) {
    const auto task = tasks_.find({producer.index, group, stepped->sequence});
    if (task != tasks_.end()) task->second.step_told = true;
  }
}

// P10: nothing of its key runs, and what came before it is settled.
void ClusterWorld::check_turn(const TaskKey& key, const std::string& name) {
  const Task& task = tasks_[key];
  if (task.key.empty()) return;
  const auto& [producer, group, sequence] = key;
  for (const auto& [other_key, other] : tasks_) {
    const auto& [other_producer, other_group, other_sequence] = other_key;
    if (other_producer != producer || other_group != group || other_sequence == sequence ||
        other.key != task.key) {
      continue;
    }
    const bool runs = std::any_of(other.runs.begin(), other.runs.end(),
                                  [](const Run& run) { return !run.finished && !run.lost; });
    require(!runs,
            name + " is run while " + std::to_string(other_sequence) + " is, of the same key");
    // A delayed or replayed message takes its place when it is due, or replayed.
    const bool before = other_sequence < sequence && other.accepted && !other.delayed &&
                        !other.replayed && !task.replayed;
    require(!before || other.settled,
            name + " is run before " + std::to_string(other_sequence) + ", which has the same key");
  }
}

// What became durable in a commit that failed, or was never heard of.
void ClusterWorld::note_settled(const Producer& producer) {
  for (auto& [key, task] : tasks_) {
    const auto& [index, group, sequence] = key;
    if (index != producer.index) continue;
    const auto& state = producer.core->group_state(group);
    const auto* history = state.history(sequence);
    task.dead = task.dead || (history != nullptr && history->dead());
    task.settled = task.settled || task.dead || state.is_settled(sequence);
  }
}

void ClusterWorld::check_limits(Producer& producer, GroupId group, std::size_t deliveries) {
  require(!producer.paused[group],
          "group " + kGroups[group] + " gets something though it is paused");
  const auto& limits = limits_[kGroups[group]];
  const auto status = producer.core->group_status().at(group);
  require(limits.concurrency == 0 || status.in_flight <= limits.concurrency,
          "group " + kGroups[group] + " has " + std::to_string(status.in_flight) +
              " deliveries in flight, its limit is " + std::to_string(limits.concurrency));
  if (!limits.rate) return;
  auto& recent = producer.deliveries[group];
  recent.insert(recent.end(), deliveries, clock_.steady());
  while (recent.front() + kRateWindow < clock_.steady()) recent.pop_front();
  const double most = limits.rate->burst + 1 +
                      limits.rate->per_second * std::chrono::duration<double>(kRateWindow).count();
  require(static_cast<double>(recent.size()) <= most, "group " + kGroups[group] + " gets " +
                                                          std::to_string(recent.size()) +
                                                          " deliveries in half a second");
}

// A lower priority has its share, which is small; what came just now, or has a history, is let be.
// (Normal messages may have to wait behind one with a key that waits for what is older.)
void ClusterWorld::check_priority(Producer& producer, GroupId group, const Task& granted) {
  if (!granted.key.empty() || granted.delayed || granted.published_in != producer.life ||
      granted.priority == Priority::kHigh) {
    return;
  }
  ++producer.grants[group];
  for (const auto& [key, task] : tasks_) {
    const bool overtaken = std::get<0>(key) == producer.index && std::get<1>(key) == group &&
                           task.accepted && task.priority == Priority::kHigh && !task.delayed &&
                           !task.replayed && task.published_in == producer.life &&
                           task.grants.empty() && task.accepted_at + 20ms < clock_.steady();
    if (!overtaken || producer.core->holder_of(group, std::get<2>(key))) continue;
    ++producer.inversions[group];
    trace("inversion: a message of priority " + std::to_string(static_cast<int>(granted.priority)) +
          " goes before " + std::to_string(std::get<2>(key)) + " of priority " +
          std::to_string(static_cast<int>(task.priority)));
    break;
  }
  require(producer.inversions[group] <= 3 + producer.grants[group] / 6,
          "priorities of group " + kGroups[group] +
              " are not obeyed: " + std::to_string(producer.inversions[group]) + " times in " +
              std::to_string(producer.grants[group]) + " grants");
}

// --- administration -------------------------------------------------------------------------

void ClusterWorld::pause_something() {
  Producer& producer = *producers_[draw(producers_.size())];
  const auto group = static_cast<GroupId>(draw(kGroups.size()));
  if (!producer.up) return;
  set_paused(producer, group, true);
  after(between(10ms, 800ms), [this, &producer, group] { set_paused(producer, group, false); });
}

void ClusterWorld::set_paused(Producer& producer, GroupId group, bool paused) {
  if (!producer.up) {
    if (!paused) {  // whoever wants it to go on asks again
      after(100ms, [this, &producer, group] { set_paused(producer, group, false); });
    }
    return;
  }
  const auto ticket = producer.core->set_paused(group, paused);
  trace("producer " + std::to_string(producer.index) + (paused ? " pauses" : " resumes") +
        " group " + kGroups[group]);
  producer.pausing.clear();  // an older wish does not count any more
  if (paused) {
    producer.pausing[ticket] = group;
  } else {
    producer.paused[group] = false;
    // It may crash before that is durable.
    after(200ms, [this, &producer, group, life = producer.life] {
      if (producer.life != life || !producer.up) set_paused(producer, group, false);
    });
  }
  wake(producer);
}

void ClusterWorld::replay_something() {
  Producer& producer = *producers_[draw(producers_.size())];
  if (!producer.up) return;
  std::vector<TaskKey> settled;
  for (const auto& [key, task] : tasks_) {
    const auto& [index, group, sequence] = key;
    if (index != producer.index || !task.settled || task.dead || task.replayed) continue;
    const auto record = producer.look_up->at(sequence);
    if (!record.ok() || !record->has_value()) continue;
    if ((*record)->header.type == RecordType::kMessage) settled.push_back(key);
  }
  if (settled.empty()) return;
  const TaskKey chosen = settled[draw(settled.size())];
  Task& task = tasks_[chosen];
  task.settled = false;
  task.replayed = true;
  task.runs.clear();
  task.effects = task.unknowns = 0;
  task.step_told = false;
  ++task.replays;
  task.grants.clear();
  const auto& [index, group, sequence] = chosen;
  trace("producer " + std::to_string(index) + " replays message " + std::to_string(sequence) +
        " for group " + kGroups[group]);
  ++producer.replays_asked[group];
  const auto message = spool::read_message(*producer.look_up, sequence, nullptr);
  require(message.ok() && message->has_value(), "a settled message cannot be read");
  const auto ticket = producer.core->replay(group, sequence, std::string((*message)->envelope()));
  producer.replaying[ticket].push_back(chosen);
  wake(producer);
}

void ClusterWorld::on_finished(Producer& producer, std::uint64_t ticket) {
  if (const auto found = producer.pausing.find(ticket); found != producer.pausing.end()) {
    producer.paused[found->second] = true;
    producer.pausing.erase(found);
  }
  if (const auto found = producer.replaying.find(ticket); found != producer.replaying.end()) {
    producer.replays_known[std::get<1>(found->second.front())] += found->second.size();
    producer.replaying.erase(found);
  }
}

// --- the end --------------------------------------------------------------------------------

void ClusterWorld::check_counts(Producer& producer) {
  for (const auto* state : producer.core->group_states()) {
    require(state->counts().balanced(), "the counts of a group do not balance");
  }
}

bool ClusterWorld::all_settled() const {
  for (const auto& producer : producers_) {
    if (!producer->up) return false;
    for (const auto* state : producer->core->group_states()) {
      if (state->counts().pending != 0) return false;
    }
  }
  return true;
}

void ClusterWorld::check_end() {
  for (auto& producer : producers_) {
    for (const auto* state : producer->core->group_states()) {
      const auto& counts = state->counts();
      const std::string name = "group " + state->name();
      require(counts.damaged == 0 && counts.expired == 0 && counts.dropped == 0,
              name + " counts what did not happen");
      std::uint64_t accepted = 0;
      for (const auto& [key, task] : tasks_) {
        const auto& [index, group, sequence] = key;
        if (index != producer->index || group != state->id()) continue;
        ++accepted;
        const auto* history = state->history(sequence);
        const bool dead = history != nullptr && history->dead();
        const std::string message = "message " + std::to_string(sequence) + " of " + name;
        require(dead || state->is_settled(sequence), message + " is lost");
        const bool may_die = task.behaviour == Behaviour::kPoison ||
                             task.behaviour == Behaviour::kKiller ||
                             task.behaviour == Behaviour::kRejected;
        const bool asked = task.behaviour == Behaviour::kStepAsk && task.unknowns > 0;
        const bool has_step =
            task.behaviour == Behaviour::kStepAsk || task.behaviour == Behaviour::kStepAgain;
        require(!has_step || dead || task.replayed || task.effects > 0,
                message + " is done without its effect");
        const auto failures = task.count(Outcome::Kind::kRetry) + task.count_lost();
        require(!dead || may_die || asked || failures >= kAttemptsMax,
                message + " died of nothing");
        require(dead || !may_die, message + " is done though it always fails");
        require(dead || task.replayed || task.count(Outcome::Kind::kDone) > 0,
                message + " is done without a run");
        require(task.behaviour != Behaviour::kPoison ||
                    task.count(Outcome::Kind::kRetry) <= kAttemptsMax + task.count_lost(),
                message + " was tried too often");
      }
      const auto least = accepted + producer->replays_known[state->id()];
      const auto most = accepted + producer->replays_asked[state->id()];
      require(counts.accepted >= least && counts.accepted <= most,
              name + " accepted " + std::to_string(counts.accepted) + ", there were " +
                  std::to_string(accepted) + ", and replayed " + std::to_string(most - accepted));
    }
    require(producer->received <= producer->published, "receipts for nothing");
  }
}

std::string ClusterWorld::explain() const {
  std::string text;
  for (const auto& producer : producers_) {
    text += "producer " + std::to_string(producer->index) + (producer->up ? "" : " is down") + ": ";
    if (!producer->up) continue;
    for (const auto& status : producer->core->group_status()) {
      text += status.name + " pending " + std::to_string(status.counts.pending) + ", in flight " +
              std::to_string(status.in_flight) + ", delayed " + std::to_string(status.delayed) +
              ", workers " + std::to_string(status.workers) + (status.gated ? ", gated; " : "; ");
    }
  }
  for (const auto& worker : workers_) {
    text += "worker " + std::to_string(worker->index) + (worker->up ? "" : " is down") +
            (worker->draining ? " drains" : "");
    if (!worker->up) continue;
    text += " holds " + std::to_string(worker->core->held()) + ", welcomed by";
    for (std::size_t p = 0; p < producers_.size(); ++p) {
      if (worker->core->welcomed(p)) text += " " + std::to_string(p);
    }
    text += "; ";
  }
  return text;
}

}  // namespace dray::test
