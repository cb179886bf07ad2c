#include "simulation/cluster_state.hpp"

#include <algorithm>
#include <cstdio>
#include <cstdlib>

namespace dray::test {

using spool::RecordType;

namespace {

spool::SpoolOptions cluster_spool_options() {
  spool::SpoolOptions options;
  options.log.segment_size = 8U << 10;
  options.max_size = 8U << 20;
  options.groups = std::vector<spool::GroupDeclaration>{{"a", {"t", "u"}}, {"b", {"t"}}};
  options.retain = kRetain;
  return options;
}

}  // namespace

std::size_t ClusterWorld::Task::count(Outcome::Kind kind) const {
  return static_cast<std::size_t>(std::count_if(runs.begin(), runs.end(), [&](const Run& run) {
    return run.finished && run.outcome == kind;
  }));
}

std::size_t ClusterWorld::Task::count_lost() const {
  return static_cast<std::size_t>(std::count_if(grants.begin(), grants.end(),
                                                [](const auto& each) { return each.second.lost; }));
}

void ClusterWorld::Task::lose(std::size_t worker, std::uint64_t life, bool fenced) {
  for (auto& [grant, end] : grants) {
    if (std::get<0>(grant) != worker || std::get<1>(grant) != life) continue;
    end.lost = true;
    end.fenced = end.fenced || fenced;
  }
  for (auto& run : runs) {
    if (run.worker != worker || run.life != life) continue;
    run.lost = true;
    run.fenced = run.fenced || fenced;
  }
}

ClusterWorld::ClusterWorld(std::uint64_t seed)
    : random_(seed), trace_(std::getenv("DRAY_TEST_TRACE") != nullptr) {
  const std::size_t producers = 1 + draw(3);
  const std::size_t workers = 2 + draw(3);
  for (std::size_t i = 0; i < producers; ++i) {
    producers_.push_back(std::make_unique<Producer>(*this, i, random_()));
  }
  for (std::size_t i = 0; i < workers; ++i) {
    workers_.push_back(std::make_unique<WorkerNode>());
    workers_.back()->index = i;
    workers_.back()->threads = static_cast<std::uint32_t>(1 + draw(3));
  }
  if (draw(4) == 0) limits_["a"].concurrency = static_cast<std::uint32_t>(1 + draw(6));
  if (draw(3) == 0) {
    limits_["b"].rate =
        RateLimit{static_cast<double>(10 + draw(100)), static_cast<std::uint32_t>(1 + draw(5))};
  }
  for (std::size_t p = 0; p < producers; ++p) {
    for (std::size_t w = 0; w < workers; ++w) {
      links_.push_back(std::make_unique<Link>());
      links_.back()->producer = p;
      links_.back()->worker = w;
    }
  }
}

ClusterWorld::~ClusterWorld() = default;

void ClusterWorld::run() {
  const SteadyTime begun = clock_.steady();
  for (std::size_t i = 0; i < producers_.size(); ++i) start_producer(i);
  for (std::size_t i = 0; i < workers_.size(); ++i) start_worker(i);
  const std::size_t messages = 20 + draw(60);
  // In some worlds half of them come at once, so that priorities matter.
  const Nanoseconds burst_at = between(0ns, kFaultsFor);
  const bool bursts = draw(3) == 0;
  for (std::size_t i = 0; i < messages; ++i) {
    const Nanoseconds at = bursts && i % 2 == 0 ? burst_at : between(0ns, kFaultsFor);
    after(at, [this] { publish(draw(producers_.size())); });
  }
  const std::size_t faults = draw(50);
  for (std::size_t i = 0; i < faults; ++i) {
    after(between(0ns, kFaultsFor), [this] { break_something(); });
  }
  while (turn(begun + kFaultsFor)) {
  }
  calm_ = true;
  for (auto& producer : producers_) {
    producer->disk.heal();
    for (GroupId group = 0; group < kGroups.size(); ++group) set_paused(*producer, group, false);
  }
  const SteadyTime deadline = clock_.steady() + kDrainFor;
  // A while of quiet after the last settlement: nothing may come back.
  std::optional<SteadyTime> settled_at;
  SteadyTime looked_at{};
  while (turn(deadline)) {
    if (clock_.steady() - looked_at < 20ms) continue;
    looked_at = clock_.steady();
    if (!all_settled()) {
      settled_at.reset();
    } else if (!settled_at) {
      settled_at = clock_.steady();
    } else if (clock_.steady() - *settled_at > 2 * kLease) {
      return check_end();
    }
  }
  require(false, "it does not drain: " + explain());
}

void ClusterWorld::trace(const std::string& what) const {
  if (!trace_) return;
  std::fprintf(stderr, "%9.4f %s\n",
               std::chrono::duration<double>(clock_.steady().time_since_epoch()).count(),
               what.c_str());
}

// --- time -----------------------------------------------------------------------------------

void ClusterWorld::after(Nanoseconds delay, std::function<void()> run) {
  events_.push({clock_.steady() + delay, ++event_serial_, std::move(run)});
}

bool ClusterWorld::turn(SteadyTime until) {
  if (events_.empty() || events_.top().at > until) return false;
  const auto next = events_.top();
  events_.pop();
  if (next.at > clock_.steady()) clock_.advance(next.at - clock_.steady());
  next.run();
  return true;
}

ClusterWorld::Nanoseconds ClusterWorld::between(Nanoseconds least, Nanoseconds most) {
  return least + Nanoseconds(draw(static_cast<std::uint64_t>((most - least).count()) + 1));
}

// --- producers ------------------------------------------------------------------------------

void ClusterWorld::start_producer(std::size_t index) {
  Producer& producer = *producers_[index];
  producer.directory = producer.disk.directory();
  auto opened = spool::Spool::open(*producer.directory, clock_, cluster_spool_options(), Log());
  if (!opened.ok()) {
    require(!calm_, "a spool does not open: " + opened.error().text());
    producer.disk.kill();
    return after(between(50ms, 200ms), [this, index] { start_producer(index); });
  }
  producer.spool = std::move(*opened);
  require(producer.spool->scan_report().damaged.empty(), "damage without rot");
  producer.reader = std::make_unique<spool::LogReader>(producer.spool->segments(), 16U << 10);
  producer.look_up = std::make_unique<spool::LogReader>(producer.reader->look_up());
  balancing::DispatcherOptions options;
  options.spool = producer.spool->id();
  options.epoch = producer.spool->epoch();
  options.boundary = producer.spool->boundary();
  options.lease = kLease;
  options.reconnect_grace = kGrace;
  options.ready_messages_max = 8;
  options.key_reads_max = 1 + draw(3);
  options.last_utc_ms = producer.spool->last_utc_ms();
  options.limits = limits_;
  options.retain = kRetain;
  options.seed = draw(1'000'000);
  spool::Spool& spool = *producer.spool;
  producer.core = std::make_unique<DispatcherCore>(
      options, spool.take_groups(), spool.recorded_sessions(),
      [&spool](std::string_view topic) { return spool.route(topic); }, now());
  note_settled(producer);
  producer.up = true;
  producer.poisoned = false;
  ++producer.life;
  producer.inbox.clear();
  producer.deliveries.clear();
  producer.grants.clear();
  producer.inversions.clear();
  if (calm_) {
    for (GroupId group = 0; group < kGroups.size(); ++group) set_paused(producer, group, false);
  }
  producer.step_wanted = producer.commit_wanted = producer.checkpoint_due = false;
  trace("producer " + std::to_string(index) + " starts, epoch " +
        std::to_string(producer.spool->epoch()) + ", boundary " +
        std::to_string(producer.spool->boundary()));
  for (std::size_t w = 0; w < workers_.size(); ++w) {
    after(between(1ms, 20ms), [this, index, w] { try_connect(index, w); });
  }
  wake(producer);
}

void ClusterWorld::crash_producer(std::size_t index, bool power_cut) {
  Producer& producer = *producers_[index];
  if (!producer.up) return;
  trace("producer " + std::to_string(index) + (power_cut ? " loses power" : " is killed"));
  producer.up = false;
  producer.core.reset();
  producer.look_up.reset();
  producer.reader.reset();
  producer.spool.reset();
  // Whether the end of a session was durable is not known: after a restart it may be believed.
  for (auto& [key, task] : tasks_) {
    if (std::get<0>(key) != index) continue;
    for (auto& run : task.runs) run.fenced = false;
    for (auto& [grant, end] : task.grants) end.fenced = false;
  }
  producer.settling.clear();
  producer.pausing.clear();
  producer.replaying.clear();
  producer.peers.clear();
  if (power_cut) {
    producer.disk.cut_power();
  } else {
    producer.disk.kill();
  }
  for (std::size_t w = 0; w < workers_.size(); ++w) disconnect(link(index, w));
  after(between(20ms, 500ms), [this, index] { start_producer(index); });
}

void ClusterWorld::publish(std::size_t index) {
  Producer& producer = *producers_[index];
  if (!producer.up) return;
  constexpr std::string_view kKinds = "ddddddddddd112sspkxgaa";
  const std::string body =
      kKinds[draw(kKinds.size())] + std::to_string(++last_message_) + std::string(draw(300), '.');
  Draft draft{draw(2) == 0 ? "t" : "u", body, {}};
  if (draw(8) == 0) draft.options.deliver_at = clock_.utc() + Milliseconds(draw(800));
  if (draw(3) == 0) draft.options.key = "key " + std::to_string(draw(3));
  draft.options.priority = static_cast<Priority>(draw(3));
  publish_draft(producer, draft);
  if (draw(12) == 0) {  // a burst: neighbours of one kind
    draft.options = {};
    if (draw(4) == 0) draft.options.priority = Priority::kLow;
    for (std::uint64_t i = 1 + draw(8); i > 0; --i) {
      draft.body =
          (draw(6) == 0 ? kKinds[draw(kKinds.size())] : 'd') + std::to_string(++last_message_);
      publish_draft(producer, draft);
    }
  }
  request_commit(producer);
  if (!calm_ && draw(12) == 0) {
    // The delivery crosses a worker's BYE.
    after(between(100us, 4ms), [this] { drain(*workers_[draw(workers_.size())]); });
  }
}

void ClusterWorld::publish_draft(Producer& producer, const Draft& draft) {
  ++producer.published;
  producer.spool->publish_draft(draft, [this, &producer, draft](const Result<Receipt>& receipt) {
    if (!receipt.ok()) return;
    ++producer.received;
    for (GroupId group = 0; group < (draft.topic == "t" ? 2 : 1); ++group) {
      Task& task = tasks_[{producer.index, group, receipt->sequence}];
      task.behaviour = static_cast<Behaviour>(draft.body[0]);
      task.accepted = true;
      task.key = draft.options.key;
      if (task.key.empty()) task.priority = draft.options.priority;
      task.delayed = draft.options.deliver_at.has_value();
      task.published_in = producer.life;
      task.accepted_at = clock_.steady();
    }
  });
}

void ClusterWorld::request_commit(Producer& producer) {
  if (producer.commit_wanted) return;
  producer.commit_wanted = true;
  // Now and then the disk takes its time.
  const Nanoseconds takes = draw(25) == 0 ? between(20ms, 400ms) : between(100us, 2ms);
  after(takes, [this, &producer, life = producer.life] {
    if (!producer.up || producer.life != life) return;
    producer.commit_wanted = false;
    producer.spool->commit_pending(producer);
    if (!producer.poisoned) producer.spool->upkeep(producer);
    if (producer.poisoned) return crash_producer(producer.index, draw(2) == 0);
    wake(producer);
  });
}

void ClusterWorld::wake(Producer& producer) {
  if (producer.step_wanted) return;
  producer.step_wanted = true;
  after(10us, [this, &producer, life = producer.life] {
    if (!producer.up || producer.life != life) return;
    producer.step_wanted = false;
    step(producer);
  });
}

void ClusterWorld::step(Producer& producer) {
  for (auto& committed : std::exchange(producer.inbox, {})) {
    producer.core->on_committed(committed, now());
    producer.checkpoint_due = producer.checkpoint_due || committed.checkpoint_due;
  }
  producer.core->tick(now());
  perform(producer);
  upkeep(producer);
  check_counts(producer);
  const auto wait = producer.core->next_deadline(now()) - clock_.steady();
  wake_in(producer, std::clamp<Nanoseconds>(wait, 1ms, 100ms));
}

void ClusterWorld::perform(Producer& producer) {
  auto& core = *producer.core;
  for (auto actions = core.take_actions(now()); !actions.empty();
       actions = core.take_actions(now())) {
    for (const auto ticket : actions.finished) on_finished(producer, ticket);
    for (const auto& each : actions.sends) send(producer, each);
    for (auto& each : actions.submissions) submit(producer, std::move(each));
    for (const auto& each : actions.refills) {
      auto slice =
          spool::read_backlog(*producer.reader, core.group_state(each.group), each.request);
      require(slice.ok() && slice->lost.empty() && slice->damaged.empty(), "the backlog has gaps");
      core.on_refilled(each, std::move(*slice));
    }
    for (const auto& each : actions.key_reads) {
      const auto key = spool::read_key(*producer.look_up, each.sequence,
                                       core.group_state(each.group).history(each.sequence));
      require(key.ok(), "a message's key cannot be read");
      core.on_key(each.group, each.sequence, *key, now());
    }
    for (const auto& each : actions.fetches) {
      auto message = spool::read_message(*producer.look_up, each.sequence,
                                         core.group_state(each.group).history(each.sequence));
      require(message.ok() && message->has_value(), "a message cannot be read again");
      core.on_fetched(each.group, each.sequence, std::move(*message));
    }
  }
}

void ClusterWorld::upkeep(Producer& producer) {
  if (clock_.steady() < producer.upkeep_at && !producer.checkpoint_due) return;
  if (producer.spool->checkpoint_under_way()) return;
  producer.upkeep_at = clock_.steady() + 250ms;
  auto todo = producer.core->upkeep(producer.spool->segments().segments(),
                                    producer.checkpoint_due || draw(4) == 0, now());
  if (todo.snapshot) {
    producer.checkpoint_due = false;
    producer.spool->checkpoint(std::move(*todo.snapshot));
    request_commit(producer);
  }
  const auto groups = producer.core->group_states();
  for (const auto sequence : todo.to_copy) {
    auto copy = spool::make_copy(*producer.look_up, sequence, groups);
    require(copy.ok() && copy->has_value(), "an open message cannot be copied");
    producer.core->on_copied(**copy);
  }
  if (!todo.to_copy.empty()) perform(producer);
}

void ClusterWorld::submit(Producer& producer, spool::Submission submission) {
  for (const auto& entry : submission.entries) {
    std::vector<TaskKey> keys;
    if (entry.type == RecordType::kSettlement) {
      const auto record = spool::decode_settlement(entry.payload);
      require(record.ok(), "a settlement cannot be read");
      for (const auto sequence : record->sequences.list()) {
        keys.emplace_back(producer.index, record->group, sequence);
        check_cause(keys.back());
      }
    } else if (entry.type == RecordType::kDead) {
      const auto record = from_bytes<spool::DeadRecord>(entry.payload);
      require(record.ok(), "a death cannot be read");
      keys.emplace_back(producer.index, record->group, record->sequence);
      producer.dying.insert(keys.back());
    } else if (entry.type == RecordType::kSessionEnd) {
      const auto record = from_bytes<spool::SessionEndRecord>(entry.payload);
      require(record.ok(), "a session's end cannot be read");
      on_session_end(producer, record->session.bytes, record->reason);
    }
    if (keys.empty()) continue;
    require(submission.ticket != 0, "a settlement nobody waits for");
    auto& pending = producer.settling[submission.ticket];
    pending.insert(pending.end(), keys.begin(), keys.end());
  }
  producer.spool->submit(submission);
  request_commit(producer);
}

// P3: what settles a message is the outcome of a run whose session was not lost.
void ClusterWorld::check_cause(const TaskKey& key) {
  const Task& task = tasks_[key];
  // A worker that is granted again what it runs already answers with the new token.
  const auto granted_again = [&](const Run& run) {
    return std::any_of(task.grants.begin(), task.grants.end(), [&](const auto& grant) {
      return std::get<0>(grant.first) == run.worker && std::get<1>(grant.first) == run.life &&
             !grant.second.lost;
    });
  };
  const bool caused = std::any_of(task.runs.begin(), task.runs.end(), [&](const Run& run) {
    return run.finished && run.outcome == Outcome::Kind::kDone &&
           (!run.fenced || granted_again(run));
  });
  require(caused, "message " + std::to_string(std::get<2>(key)) + " of producer " +
                      std::to_string(std::get<0>(key)) + " for group " + kGroups[std::get<1>(key)] +
                      " is done by a run that was lost");
}

void ClusterWorld::on_tickets(Producer& producer, const spool::Committed& committed) {
  for (const auto& [ticket, lsn] : committed.tickets) {
    const auto found = producer.settling.find(ticket);
    if (found == producer.settling.end()) continue;
    for (const auto& key : found->second) {
      Task& task = tasks_[key];
      trace("message " + std::to_string(std::get<2>(key)) + " of producer " +
            std::to_string(producer.index) + " is settled for group " + kGroups[std::get<1>(key)]);
      require(!task.settled, "message " + std::to_string(std::get<2>(key)) + " is settled twice");
      task.settled = true;
      task.dead = producer.dying.erase(key) != 0;
    }
    producer.settling.erase(found);
  }
}

// A session is lost for a reason: its worker is gone, or its link was in trouble for long enough.
void ClusterWorld::on_session_end(Producer& producer, const std::string& session,
                                  const std::string& reason) {
  const auto found = sessions_.find(session);
  require(found != sessions_.end(), "a session that no worker made");
  trace("session of worker " + std::to_string(std::get<0>(found->second)) + " with producer " +
        std::to_string(producer.index) + " ends: " + reason);
  if (reason == "bye") return;
  const auto [worker_index, life, producer_index] = found->second;
  require(producer_index == producer.index, "a session of another dispatcher");
  const WorkerNode& worker = *workers_[worker_index];
  const Link& via = link(producer.index, worker_index);
  const bool gone = !worker.up || worker.life != life;
  const auto since =
      clock_.steady() -
      (via.up && via.stalled_until <= clock_.steady() ? via.trouble_at : clock_.steady());
  const bool restart = reason == "silent after a restart";
  const Nanoseconds allowed = restart ? Nanoseconds(kLease - 100ms) : Nanoseconds(kLease + 100ms);
  require(gone || since <= allowed,
          "worker " + std::to_string(worker_index) + " lost its session without cause: " + reason);
  for (auto& [key, task] : tasks_) {
    if (std::get<0>(key) != producer.index) continue;
    task.lose(worker_index, life, true);
  }
}

void ClusterWorld::send(Producer& producer, const DispatcherCore::Send& send) {
  const auto peer = producer.peers.find(send.peer);
  if (peer == producer.peers.end()) {
    note_unsent(producer, send);
    return producer.core->on_unsent(send, now());
  }
  const auto [worker_index, connection] = peer->second;
  check_delivery(producer, worker_index, send);
  Link& via = link(producer.index, worker_index);
  if (!via.up || via.connection != connection) return;  // taken, and lost
  const auto at = arrival(via, via.to_worker);
  events_.push(
      {at, ++event_serial_,
       [this, &via, connection = connection, send, life = workers_[worker_index]->life] {
         WorkerNode& worker = *workers_[via.worker];
         if (!via.up || via.connection != connection || !worker.up || worker.life != life) {
           return;
         }
         auto frame = balancing::decode_frame(send.frame, send.records);
         require(frame.ok(), "a dispatcher sent a bad frame");
         worker.core->on_frame(via.producer, std::move(*frame), send.owner, clock_.steady());
         wake(worker);
       }});
}

// --- workers --------------------------------------------------------------------------------

void ClusterWorld::start_worker(std::size_t index) {
  WorkerNode& worker = *workers_[index];
  ++worker.life;
  balancing::WorkerOptions options;
  options.name = worker.name();
  options.group = kGroups[index % kGroups.size()];
  options.threads = worker.threads;
  options.window_max = kWindowMax;
  // Some take ahead what they can, some hardly anything.
  options.queue_target = draw(2) == 0 ? 2ms : 2'000ms;
  options.seed = draw(1'000'000);
  options.retry = {kAttemptsMax, Milliseconds(20), Milliseconds(100), 0.2};
  std::size_t next_link = 0;
  options.make_session_id = [&] {
    Uuid id;
    const std::uint64_t number = ++last_session_;
    for (std::size_t i = 0; i < 8; ++i) id.bytes[i] = static_cast<std::uint8_t>(number >> (8 * i));
    id.bytes[15] = 1;
    sessions_[std::string(id.view())] = {index, worker.life, next_link++};
    return id;
  };
  worker.core = std::make_unique<WorkerCore>(options, producers_.size(), clock_.steady());
  worker.up = true;
  worker.draining = false;
  worker.busy = 0;
  worker.queue.clear();
  worker.untold.clear();
  worker.stepping.clear();
  worker.step_wanted = false;
  for (std::size_t p = 0; p < producers_.size(); ++p) {
    after(between(1ms, 20ms), [this, index, p] { try_connect(p, index); });
  }
  wake(worker);
}

void ClusterWorld::crash_worker(std::size_t index) {
  WorkerNode& worker = *workers_[index];
  if (!worker.up) return;
  trace("worker " + std::to_string(index) + " crashes");
  worker.up = false;
  for (auto& [key, task] : tasks_) task.lose(index, worker.life, false);
  for (std::size_t p = 0; p < producers_.size(); ++p) disconnect(link(p, index));
  worker.core.reset();
  after(between(20ms, 400ms), [this, index] { start_worker(index); });
}

void ClusterWorld::wake(WorkerNode& worker) {
  if (worker.step_wanted) return;
  worker.step_wanted = true;
  after(10us, [this, &worker, life = worker.life] {
    if (!worker.up || worker.life != life) return;
    worker.step_wanted = false;
    step(worker);
  });
}

void ClusterWorld::step(WorkerNode& worker) {
  auto& core = *worker.core;
  core.tick(clock_.steady());
  auto actions = core.take_actions(clock_.steady());
  for (const auto& jobs : actions.start) {
    for (auto& job : jobs.apart()) worker.queue.push_back(std::move(job));
  }
  SequenceRuns given_back;
  std::erase_if(worker.queue, [&](const auto& job) {
    if (!actions.cancel.contains(job.first)) return false;
    given_back.add(job.first);
    return true;
  });
  for (const auto& jobs : given_back) core.on_returned(jobs);
  const bool returned = !given_back.empty();
  for (const auto& [job, reply] : actions.stepped) on_stepped(worker, job, reply);
  for (const auto& each : actions.sends) {
    Link& via = link(each.link, worker.index);
    if (!via.up) {
      core.on_disconnected(each.link, clock_.steady());
      continue;
    }
    const auto at = arrival(via, via.to_producer);
    events_.push({at, ++event_serial_,
                  [this, &via, connection = via.connection, frame = each.frame, peer = via.peer,
                   late = draw(2) == 0, life = producers_[each.link]->life] {
                    Producer& producer = *producers_[via.producer];
                    if (!producer.up || producer.life != life) return;
                    const auto read = [this, &producer, frame, peer] {
                      auto decoded = balancing::decode_frame(frame);
                      require(decoded.ok(), "a worker sent a bad frame");
                      producer.core->on_frame(peer, *decoded, now());
                      wake(producer);
                    };
                    if (via.up && via.connection == connection) return read();
                    // What a connection brought before it broke may be read after the next one's.
                    if (!late) return;
                    after(20ms, [&producer, life, read] {
                      if (producer.up && producer.life == life) read();
                    });
                  }});
  }
  for (const auto silent : actions.reconnect) disconnect(link(silent, worker.index));
  start_jobs(worker);
  if (worker.draining && core.drained()) {
    worker.up = false;
    for (std::size_t p = 0; p < producers_.size(); ++p) {
      after(5ms, [this, p, &worker, life = worker.life] {
        if (worker.life == life) disconnect(link(p, worker.index));
      });
    }
    return after(between(50ms, 400ms), [this, &worker] { start_worker(worker.index); });
  }
  wake_in(worker, returned ? Nanoseconds(1ms) : Nanoseconds(50ms));
}

// One timer per node: a step that comes sooner sets it anew.
template <typename Node>
void ClusterWorld::wake_in(Node& node, Nanoseconds delay) {
  const SteadyTime at = clock_.steady() + delay;
  if (node.timer_at > clock_.steady() && node.timer_at <= at) return;
  node.timer_at = at;
  after(delay, [this, &node, life = node.life, at] {
    if (node.up && node.life == life && node.timer_at == at) wake(node);
  });
}

void ClusterWorld::start_jobs(WorkerNode& worker) {
  while (worker.up && worker.busy < worker.threads && !worker.queue.empty()) {
    const auto job = std::move(worker.queue.front());
    worker.queue.pop_front();
    begin(worker, job);
  }
}

void ClusterWorld::begin(WorkerNode& worker, const WorkerCore::Jobs& job) {
  const auto origin = worker.core->origin_of(job.first);
  if (!origin) return;  // forgotten meanwhile
  const GroupId group = static_cast<GroupId>(worker.index % kGroups.size());
  const TaskKey key{origin->link, group, job.sequence};
  Task& task = tasks_[key];
  const auto envelope = parse_envelope(job.envelope(0));
  require(envelope.ok(), "a delivery has no envelope");
  task.behaviour = static_cast<Behaviour>(envelope->body[0]);
  const std::string name = "message " + std::to_string(job.sequence) + " of producer " +
                           std::to_string(origin->link) + " for group " + kGroups[group];
  if (trace_ && !task.runs.empty()) trace(name + " again");
  // What was still on its way when the session was lost may be run elsewhere too.
  const auto grant = task.grants[{worker.index, worker.life, origin->epoch, origin->number}];
  const bool lost = grant.lost;
  require(!task.settled || lost, name + " is run though it is settled");
  task.key = envelope->key;
  if (!lost) check_turn(key, name);
  for (const auto& run : task.runs) {
    const bool again = run.lost || (run.finished && (run.outcome == Outcome::Kind::kRetry ||
                                                     run.outcome == Outcome::Kind::kSnooze));
    require(again || lost, name + " is run a second time, by worker " +
                               std::to_string(worker.index) + ", first by " +
                               std::to_string(run.worker) +
                               (run.finished ? ", which finished it" : ", which holds it"));
  }
  require(job.attempt <= 1 + task.count(Outcome::Kind::kRetry) + task.count_lost(),
          name + " is said to be at attempt " + std::to_string(job.attempt));
  trace("worker " + std::to_string(worker.index) + " runs " + name + ", attempt " +
        std::to_string(job.attempt));
  task.runs.push_back({worker.index, worker.life, false, Outcome::Kind::kDone, lost, grant.fenced});
  ++worker.busy;
  const Nanoseconds took = draw(12) == 0 ? between(100ms, 600ms) : between(100us, 15ms);
  after(took, [this, &worker, id = job.first, key, run = task.runs.size() - 1, took,
               life = worker.life, replays = task.replays] {
    if (worker.up && worker.life == life) finish(worker, id, key, run, replays, took);
  });
}

void ClusterWorld::finish(WorkerNode& worker, std::uint64_t job, const TaskKey& key,
                          std::size_t run, std::uint64_t replays, Nanoseconds took) {
  Task& task = tasks_[key];
  if (task.behaviour == Behaviour::kKiller) return crash_worker(worker.index);
  if (task.behaviour == Behaviour::kStepAgain || task.behaviour == Behaviour::kStepAsk) {
    worker.stepping[job] = {key, run, took, replays, StepCall::kBegin, random_() | 1};
    return call_step(worker, job, StepCall::kBegin);
  }
  end(worker, job, key, run, replays, took, outcome_of(task));
}

void ClusterWorld::call_step(WorkerNode& worker, std::uint64_t job, StepCall what) {
  auto& step = worker.stepping.at(job);
  step.what = what;
  worker.core->call_step(job, {what, step.number, "step", what == StepCall::kDone ? "\x01" : ""},
                         clock_.steady());
  wake(worker);
}

// What Delivery::once() does with the answer.
void ClusterWorld::on_stepped(WorkerNode& worker, std::uint64_t job,
                              const StepJournal::Reply& reply) {
  const auto found = worker.stepping.find(job);
  if (found == worker.stepping.end()) return;
  const auto step = found->second;
  Task& task = tasks_[step.key];
  const auto leave = [&](const Outcome& outcome) {
    worker.stepping.erase(job);
    end(worker, job, step.key, step.run, step.replays, step.took, outcome);
  };
  trace("worker " + std::to_string(worker.index) + ": step of " +
        std::to_string(std::get<2>(step.key)) + " of " + std::to_string(std::get<0>(step.key)) +
        ": call " + std::to_string(static_cast<int>(step.what)) + ", answer " +
        std::to_string(static_cast<int>(reply.answer)));
  switch (reply.answer) {
    case StepAnswer::kBusy:
    case StepAnswer::kRefused:
      return leave(retry("refused: " + reply.value));
    case StepAnswer::kDoneBefore:
      require(step.what == StepCall::kBegin && reply.value == "\x01", "another value of a step");
      require(task.effects > 0 || step.replays != task.replays, "a step is done without an effect");
      return leave(done());
    case StepAnswer::kUnknown:
      require(step.what == StepCall::kBegin, "the end of a step is unknown");
      if (step.replays == task.replays) ++task.unknowns;
      if (task.behaviour == Behaviour::kStepAsk) return leave(reject("needs a decision"));
      return take_effect(worker, job);
    case StepAnswer::kRecorded:
      return step.what == StepCall::kBegin ? take_effect(worker, job) : leave(done());
  }
}

void ClusterWorld::take_effect(WorkerNode& worker, std::uint64_t job) {
  const auto& step = worker.stepping.at(job);
  Task& task = tasks_[step.key];
  if (step.replays == task.replays) {
    ++task.effects;
    require(task.effects <= 1 + (task.behaviour == Behaviour::kStepAgain ? task.unknowns : 0),
            "the step of message " + std::to_string(std::get<2>(step.key)) + " of producer " +
                std::to_string(std::get<0>(step.key)) + " takes effect a second time");
  }
  after(between(100us, 20ms), [this, &worker, job, life = worker.life] {
    if (!worker.up || worker.life != life) return;
    const auto found = worker.stepping.find(job);
    if (found == worker.stepping.end()) return;
    if (draw(8) != 0) return call_step(worker, job, StepCall::kDone);
    const auto left = found->second;  // an exception: whether it took effect is not known
    worker.stepping.erase(found);
    end(worker, job, left.key, left.run, left.replays, left.took, retry("no answer"));
  });
}

void ClusterWorld::end(WorkerNode& worker, std::uint64_t job, const TaskKey& key, std::size_t run,
                       std::uint64_t replays, Nanoseconds took, const Outcome& outcome) {
  Task& task = tasks_[key];
  if (replays == task.replays) {
    task.runs[run].finished = true;
    task.runs[run].outcome = outcome.kind();
  }
  trace("worker " + std::to_string(worker.index) + " ends " + std::to_string(std::get<2>(key)) +
        " of " + std::to_string(std::get<0>(key)) + " with " +
        std::to_string(static_cast<int>(outcome.kind())));
  --worker.busy;
  if (outcome.kind() == Outcome::Kind::kDone && draw(2) == 0) {
    // Told with others, as handler threads do that take several at a time.
    worker.untold.add(job);
    after(between(0ns, 3ms), [this, &worker, life = worker.life] {
      if (worker.up && worker.life == life) tell_done(worker);
    });
  } else {
    worker.core->on_outcome(job, outcome, took, clock_.utc());
  }
  if (outcome.kind() != Outcome::Kind::kDone && !calm_ && draw(6) == 0) {
    // The answer arrives, and its CONFIRM does not.
    after(between(1ms, 4ms), [this, &worker, producer = std::get<0>(key)] {
      disconnect(link(producer, worker.index));
    });
  }
  start_jobs(worker);
  wake(worker);
}

void ClusterWorld::tell_done(WorkerNode& worker) {
  auto jobs = std::exchange(worker.untold, {});
  jobs.sort();
  for (const auto& run : jobs) {
    worker.core->on_done(run, static_cast<std::int64_t>(run.count) * Nanoseconds(1ms));
  }
  wake(worker);
}

Outcome ClusterWorld::outcome_of(Task& task) const {
  switch (task.behaviour) {
    case Behaviour::kFailsOnce:
      if (task.count(Outcome::Kind::kRetry) < 1) return retry("once");
      return done();
    case Behaviour::kFailsTwice:
      if (task.count(Outcome::Kind::kRetry) < 2) return retry("twice");
      return done();
    case Behaviour::kSnoozesOnce:
      if (task.count(Outcome::Kind::kSnooze) < 1) return snooze(Milliseconds(50));
      return done();
    case Behaviour::kPoison:
      return retry("poison");
    case Behaviour::kRejected:
      return reject("no");
    case Behaviour::kDone:
    case Behaviour::kKiller:
    case Behaviour::kStepAgain:
    case Behaviour::kStepAsk:
      break;
  }
  return done();
}

// --- network --------------------------------------------------------------------------------

ClusterWorld::Link& ClusterWorld::link(std::size_t producer, std::size_t worker) {
  return *links_[producer * workers_.size() + worker];
}

void ClusterWorld::try_connect(std::size_t producer_index, std::size_t worker_index) {
  Link& via = link(producer_index, worker_index);
  Producer& producer = *producers_[producer_index];
  WorkerNode& worker = *workers_[worker_index];
  if (via.up || !producer.up || !worker.up) return;  // whoever comes up tries again
  via.up = true;
  ++via.connection;
  trace("worker " + std::to_string(worker_index) + " connects to producer " +
        std::to_string(producer_index));
  via.peer = "w" + std::to_string(worker_index) + "c" + std::to_string(via.connection);
  via.to_producer = via.to_worker = via.stalled_until = via.trouble_at = clock_.steady();
  producer.peers[via.peer] = {worker_index, via.connection};
  worker.core->on_connected(producer_index, clock_.steady());
  wake(worker);
}

// Both sides hear of it, each in its time.
void ClusterWorld::disconnect(Link& via) {
  via.trouble_at = clock_.steady();
  if (!via.up) return;
  via.up = false;
  trace("link of worker " + std::to_string(via.worker) + " with producer " +
        std::to_string(via.producer) + " breaks");
  WorkerNode& worker = *workers_[via.worker];
  if (worker.up && worker.core != nullptr) {
    worker.core->on_disconnected(via.producer, clock_.steady());
    wake(worker);
  }
  Producer& producer = *producers_[via.producer];
  after(between(0ns, 5ms), [this, &producer, life = producer.life, peer = via.peer] {
    if (!producer.up || producer.life != life) return;
    // From here on what is sent to it comes back; the monitor says so a little later.
    producer.peers.erase(peer);
    after(between(0ns, 5ms), [this, &producer, life] {
      if (!producer.up || producer.life != life) return;
      producer.core->on_link_broken(now());
      wake(producer);
    });
  });
  after(between(6ms, draw(4) == 0 ? Nanoseconds(500ms) : Nanoseconds(50ms)),
        [this, p = via.producer, w = via.worker] { try_connect(p, w); });
}

SteadyTime ClusterWorld::arrival(Link& via, SteadyTime& last) {
  const auto earliest = std::max(clock_.steady(), via.stalled_until);
  last = std::max(last, earliest + between(20us, 1ms));
  return last;
}

}  // namespace dray::test
