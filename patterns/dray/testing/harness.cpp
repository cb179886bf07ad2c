// Spool, DispatcherCore and WorkerCore in one thread: frames go by function call, commits at once.
#include <algorithm>
#include <deque>
#include <map>
#include <ostream>
#include <set>
#include <stdexcept>

#include "dray/balancing/dispatcher_core.hpp"
#include "dray/balancing/worker_core.hpp"
#include "dray/consumer.hpp"
#include "dray/disk/simulated_disk.hpp"
#include "dray/plugin/plugin_library.hpp"
#include "dray/testing.hpp"

namespace dray::testing {
namespace {

using balancing::DispatcherCore;
using balancing::WorkerCore;
using spool::GroupId;

constexpr auto kLease = Milliseconds(3'600'000);  // few heartbeats when a month passes
const balancing::RetryPolicy kRetry;              // what handlers have by default
constexpr std::size_t kTurnsMax = 1'000'000;      // of one run()

// What the protocol would not take.
void check_group(const std::string& name, const GroupOptions& options) {
  const auto bounded = [](const std::optional<Milliseconds>& time) {
    return !time || (time->count() >= 0 && time->count() <= UINT32_MAX);
  };
  if (const auto fault = name_fault(name)) {
    throw std::logic_error("group '" + name + "': " + *fault);
  }
  if (options.max_attempts == 0U || !bounded(options.initial) || !bounded(options.max)) {
    throw std::logic_error("group '" + name +
                           "': max_attempts is 1 or more, times lie between 0 and 49 days");
  }
}

std::logic_error no_group(const std::string& name) {
  return std::logic_error("no group '" + name + "' was declared: call group() first");
}

}  // namespace

std::ostream& operator<<(std::ostream& out, const Counts& counts) {
  return out << "pending " << counts.pending << ", done " << counts.done << ", dead " << counts.dead
             << ", expired " << counts.expired << ", dropped " << counts.dropped;
}

struct Harness::State final : spool::CommitListener {
  struct Worker {
    std::string group;
    ConsumerFactory make;
    GroupOptions options;
    std::unique_ptr<Consumer> consumer;
    std::unique_ptr<WorkerCore> core;
    std::string peer;                   // of its connection to the dispatcher
    std::deque<WorkerCore::Jobs> jobs;  // single ones
    std::optional<CrashPoint> crash;
    bool stopped = false;
  };
  struct Death {
    GroupId group;
    DeadMessage message;
  };

  explicit State(std::uint64_t seed) : disk(seed) {}
  ~State() override { workers.clear(); }  // handlers may still log

  // --- the producer ---

  void start_producer() {
    spool::SpoolOptions options;
    options.log.segment_size = 1U << 20;
    options.max_size = 1ULL << 30;
    options.groups.emplace();
    for (const auto& each : workers) options.groups->push_back({each->group, topics[each->group]});
    options.retained_topics = observed;
    directory = disk.directory();
    auto opened = spool::Spool::open(*directory, clock, options, Log());
    if (!opened.ok()) throw std::logic_error("the spool: " + opened.error().text());
    spool = std::move(*opened);
    reader = std::make_unique<spool::LogReader>(spool->segments());
    look_up = std::make_unique<spool::LogReader>(reader->look_up());
    balancing::DispatcherOptions dispatch;
    dispatch.spool = spool->id();
    dispatch.epoch = spool->epoch();
    dispatch.boundary = spool->boundary();
    dispatch.lease = kLease;
    dispatch.reconnect_grace = Milliseconds(0);
    dispatch.last_utc_ms = spool->last_utc_ms();
    for (const auto& each : workers) dispatch.limits[each->group] = each->options.limits;
    core = std::make_unique<DispatcherCore>(
        dispatch, spool->take_groups(), spool->recorded_sessions(),
        [this](std::string_view topic) { return spool->route(topic); }, now());
    for (const auto& each : workers) {
      if (each->core) connect(*each);
    }
  }

  void stop_producer(bool power) {
    if (!spool) return;
    for (const auto& each : workers) disconnect(*each);
    core.reset();
    look_up.reset();
    reader.reset();
    spool.reset();
    inbox.clear();
    if (power) {
      disk.cut_power();
    } else {
      disk.kill();
    }
    start_producer();
  }

  void on_committed(spool::Committed committed) override {
    committed.for_each_message([&](Sequence sequence, const spool::AcceptedRun&,
                                   std::string_view bytes) {
      auto envelope = parse_envelope(bytes);
      if (!envelope.ok()) return;
      accepted.push_back(
          {sequence, std::string(envelope->topic), std::string(envelope->key),
           parse_headers(envelope->headers).ok() ? *parse_headers(envelope->headers) : Headers{},
           std::string(envelope->body), envelope->priority, envelope->published_at,
           envelope->deliver_at, envelope->expires_at});
    });
    inbox.push_back(std::move(committed));
  }
  void on_failed(const Error& error) override { throw std::logic_error(error.text()); }

  balancing::Now now() const { return {clock.steady(), clock.utc()}; }

  void need_producer() {
    if (!spool) start_producer();
    for (const auto& each : workers) {
      if (!each->core) start_worker(*each);
    }
  }

  void commit() {
    spool->commit_pending(*this);
    spool->upkeep(*this);
    for (auto& committed : std::exchange(inbox, {})) {
      core->on_committed(committed, now());
      if (committed.checkpoint_due) checkpoint();
    }
  }

  void checkpoint() {
    if (spool->checkpoint_under_way()) return;
    auto todo = core->upkeep(spool->segments().segments(), true, now());
    if (todo.snapshot) spool->checkpoint(std::move(*todo.snapshot));
    for (const auto sequence : todo.to_copy) {
      auto copy = spool::make_copy(*look_up, sequence, core->group_states());
      if (copy.ok() && copy->has_value()) core->on_copied(**copy);
    }
  }

  // One turn of the dispatcher. False if there was nothing to do.
  bool turn_dispatcher() {
    core->set_room(spool->takes_follow_ups());
    core->tick(now());
    auto actions = core->take_actions(now());
    if (actions.empty()) return false;
    for (const auto& each : actions.submissions) {
      for (const auto& entry : each.entries) note_death(entry);
      spool->submit(each);
    }
    for (const auto& each : actions.refills) {
      auto slice = spool::read_backlog(*reader, core->group_state(each.group), each.request);
      if (!slice.ok()) throw std::logic_error(slice.error().text());
      core->on_refilled(each, std::move(*slice));
    }
    for (const auto& each : actions.key_reads) {
      const auto key = spool::read_key(*look_up, each.sequence,
                                       core->group_state(each.group).history(each.sequence));
      core->on_key(each.group, each.sequence, key.ok() ? *key : 0, now());
    }
    for (const auto& each : actions.fetches) {
      auto message = spool::read_message(*look_up, each.sequence,
                                         core->group_state(each.group).history(each.sequence));
      if (!message.ok()) throw std::logic_error(message.error().text());
      core->on_fetched(each.group, each.sequence, std::move(*message));
    }
    for (const auto& each : actions.sends) deliver(each);
    if (!actions.submissions.empty()) commit();
    return true;
  }

  void note_death(const spool::LogEntry& entry) {
    if (entry.type != spool::RecordType::kDead) return;
    const auto record = from_bytes<spool::DeadRecord>(entry.payload);
    if (!record.ok()) return;
    deaths.push_back(
        {record->group, {record->sequence, record->attempts, {}, record->cause, record->reason}});
  }

  void deliver(const DispatcherCore::Send& send) {
    for (const auto& each : workers) {
      if (each->peer != send.peer) continue;
      auto frame = balancing::decode_frame(send.frame, send.records);
      DRAY_ASSERT(frame.ok());
      return each->core->on_frame(0, std::move(*frame), send.owner, clock.steady());
    }
    core->on_unsent(send, now());
  }

  // --- workers ---

  void start_worker(Worker& worker) {
    balancing::WorkerOptions options;
    options.name = "test";
    options.group = worker.group;
    options.window_max = 64;
    options.retry = {worker.options.max_attempts.value_or(kRetry.max_attempts),
                     worker.options.initial.value_or(kRetry.initial),
                     worker.options.max.value_or(kRetry.max), 0};
    if (!worker.consumer) worker.consumer = make_consumer(worker);
    worker.core = std::make_unique<WorkerCore>(options, 1, clock.steady());
    connect(worker);
  }

  static std::unique_ptr<Consumer> make_consumer(const Worker& worker) {
    std::string why;
    try {
      auto made = worker.make();
      if (made.ok()) return std::move(*made);
      why = made.error().text();
    } catch (const std::exception& exception) {
      why = exception.what();
    }
    throw std::logic_error("the handler of group '" + worker.group + "' cannot be made: " + why);
  }

  void connect(Worker& worker) {
    worker.peer = "peer " + std::to_string(++last_peer);
    worker.core->on_connected(0, clock.steady());
  }
  void disconnect(Worker& worker) {
    worker.peer.clear();
    if (worker.core) worker.core->on_disconnected(0, clock.steady());
  }

  void crash(Worker& worker) {
    worker.crash.reset();
    worker.jobs.clear();
    worker.peer.clear();
    worker.consumer.reset();
    worker.core.reset();
    core->on_link_broken(now());
    while (turn_dispatcher()) {
    }
    // The connection is gone and its grace is over, before the next worker comes.
    clock.advance(Milliseconds(1));
    while (turn_dispatcher()) {
    }
    start_worker(worker);
  }

  bool turn(Worker& worker) {
    worker.core->tick(clock.steady());
    auto actions = worker.core->take_actions(clock.steady());
    const bool busy = take(worker, actions);
    if (worker.jobs.empty()) return busy;
    const auto job = std::move(worker.jobs.front());
    worker.jobs.pop_front();
    handle(worker, job);
    return true;
  }

  // Does what the core wants. False if that is nothing.
  bool take(Worker& worker, WorkerCore::Actions& actions) {
    const bool busy = !actions.sends.empty() || !actions.start.empty() || !actions.cancel.empty();
    for (const auto& jobs : actions.start) {
      for (auto& job : jobs.apart()) worker.jobs.push_back(std::move(job));
    }
    std::erase_if(worker.jobs, [&](const auto& job) {
      if (!actions.cancel.contains(job.first)) return false;
      worker.core->on_returned({job.first, 1});
      return true;
    });
    for (const auto& each : actions.sends) {
      if (worker.peer.empty()) continue;
      auto frame = balancing::decode_frame(each.frame);
      DRAY_ASSERT(frame.ok());
      core->on_frame(worker.peer, *frame, now());
    }
    return busy;
  }

  // What a handler says of its steps, while the rest of the world stands still. A worker that dies
  // hears nothing any more.
  class Journal final : public StepJournal {
   public:
    Journal(State& state, Worker& worker, std::uint64_t job)
        : state_(state), worker_(worker), job_(job), run_(++state.last_run) {}
    bool died() const { return died_; }

    Reply call(StepCall what, std::string_view step, std::string_view value) override {
      const bool begins = what == StepCall::kBegin;
      if (!begins && worker_.crash == CrashPoint::kStepRan) died_ = true;
      if (died_) return kDied;
      worker_.core->call_step(job_, {what, run_, std::string(step), std::string(value)},
                              state_.clock.steady());
      auto reply = state_.reply_to(worker_, job_);
      const auto point = begins ? CrashPoint::kStepBegun : CrashPoint::kStepDone;
      if (worker_.crash == point && reply.answer == StepAnswer::kRecorded) died_ = true;
      return died_ ? kDied : reply;
    }

   private:
    inline static const Reply kDied{StepAnswer::kRefused, "the worker died"};

    State& state_;
    Worker& worker_;
    const std::uint64_t job_;
    const std::uint64_t run_;
    bool died_ = false;
  };

  StepJournal::Reply reply_to(Worker& worker, std::uint64_t job) {
    for (std::size_t turns = 0; turns < kTurnsMax; ++turns) {
      auto actions = worker.core->take_actions(clock.steady());
      for (auto& [id, reply] : actions.stepped) {
        if (id == job) return std::move(reply);
      }
      take(worker, actions);
      if (!turn_dispatcher() && actions.sends.empty()) break;
    }
    return {StepAnswer::kRefused, "nobody answers"};
  }

  void handle(Worker& worker, const WorkerCore::Jobs& job) {
    if (!worker.core->origin_of(job.first)) return;  // given to someone else meanwhile
    if (worker.crash == CrashPoint::kBeforeHandler) return crash(worker);
    std::stop_source stop;
    if (std::exchange(worker.stopped, false)) stop.request_stop();
    Journal journal(*this, worker, job.first);
    const auto outcome = worker.consumer->consume(
        {job.envelope(0), worker.group, job.sequence, job.attempt, &journal}, stop.get_token());
    if (journal.died()) return crash(worker);
    handled.push_back({worker.group, job.sequence, job.attempt, outcome.kind(), outcome.reason()});
    const auto crash_at = worker.crash;
    if (crash_at == CrashPoint::kAfterHandler) return crash(worker);
    worker.core->on_outcome(job.first, outcome, std::chrono::nanoseconds(0), clock.utc());
    if (crash_at != CrashPoint::kAfterResult) return;
    for (const auto& each : worker.core->take_actions(clock.steady()).sends) {
      auto frame = balancing::decode_frame(each.frame);
      if (frame.ok()) core->on_frame(worker.peer, *frame, now());
    }
    crash(worker);
  }

  // --- time ---

  void run() {
    need_producer();
    commit();
    for (std::size_t turns = 0; turns < kTurnsMax; ++turns) {
      bool busy = turn_dispatcher();
      for (const auto& each : workers) busy = turn(*each) || busy;
      if (!busy) return;
    }
    throw std::logic_error("the queue does not come to rest: does a handler retry after 0 ms?");
  }

  // Runs to the next thing that is due, at most to `until`.
  void step_to(SteadyTime until) {
    // At rest workers have nothing to do but to send heartbeats.
    SteadyTime next = std::min(core->next_deadline(now()), clock.steady() + kLease / 8);
    next = std::min(std::max(next, clock.steady() + Milliseconds(1)), until);
    clock.advance(next - clock.steady());
    run();
  }

  bool all_settled() const {
    for (const auto& each : workers) {
      const auto group = core->find_group(each->group);
      if (group && core->group_state(*group).counts().pending != 0) return false;
    }
    return true;
  }

  Worker& worker(const std::string& group) {
    for (const auto& each : workers) {
      if (each->group == group) return *each;
    }
    throw no_group(group);
  }

  VirtualClock clock;
  SimulatedDisk disk;
  std::map<std::string, std::vector<std::string>> topics;  // by group
  std::vector<std::string> observed;
  std::unique_ptr<Directory> directory;
  std::unique_ptr<spool::Spool> spool;
  std::unique_ptr<spool::LogReader> reader;
  std::unique_ptr<spool::LogReader> look_up;
  std::unique_ptr<DispatcherCore> core;
  std::vector<spool::Committed> inbox;
  std::vector<std::unique_ptr<Worker>> workers;
  std::uint64_t last_peer = 0;
  std::uint64_t last_run = 0;
  std::vector<Handled> handled;
  std::vector<Death> deaths;
  std::vector<Published> accepted;
  std::vector<std::string> lines;
  Log log{[this](LogLevel, std::string_view line) { lines.emplace_back(line); }, LogLevel::kDebug};
};

Harness::Harness(std::uint64_t seed) : state_(std::make_unique<State>(seed)) {}
Harness::~Harness() = default;

void Harness::plugin(const std::string& group, std::vector<std::string> topics,
                     const std::string& file, const std::string& handler, const Settings& settings,
                     const GroupOptions& options) {
  auto library = PluginLibrary::load(file, {});
  if (!library.ok()) throw std::logic_error(library.error().text());
  const auto policy = library->policy_of(handler);
  if (!policy.ok()) throw std::logic_error(policy.error().text());
  GroupOptions own = options;
  if (!own.max_attempts) own.max_attempts = policy->max_attempts;
  if (!own.initial) own.initial = policy->retry_initial;
  if (!own.max) own.max = policy->retry_max;
  this->group(
      group, std::move(topics),
      [library = *library, handler, settings, log = state_->log] {
        return library.create_handler(handler, settings, log);
      },
      own);
}

void Harness::group(const std::string& name, std::vector<std::string> topics, ConsumerFactory make,
                    const GroupOptions& options) {
  if (state_->spool) throw std::logic_error("groups are declared before the first publish");
  check_group(name, options);
  if (state_->topics.count(name) != 0) {
    throw std::logic_error("group '" + name + "' is declared already");
  }
  for (const auto& topic : topics) {
    if (const auto fault = name_fault(topic)) {
      throw std::logic_error("topic '" + topic + "': " + *fault);
    }
  }
  auto worker = std::make_unique<State::Worker>();
  worker->group = name;
  worker->make = std::move(make);
  worker->options = options;
  worker->consumer = State::make_consumer(*worker);  // what cannot be made is said here
  state_->workers.push_back(std::move(worker));
  state_->topics[name] = std::move(topics);
}

void Harness::observe(std::vector<std::string> topics) {
  if (state_->spool) throw std::logic_error("observe() comes before the first publish");
  for (const auto& topic : topics) {
    if (const auto fault = name_fault(topic)) {
      throw std::logic_error("topic '" + topic + "': " + *fault);
    }
  }
  state_->observed.insert(state_->observed.end(), topics.begin(), topics.end());
}

void Harness::publish_draft(Draft draft, ReceiptCallback done) {
  state_->need_producer();
  state_->spool->publish_draft(std::move(draft), std::move(done));
  state_->commit();
}

void Harness::run() {
  state_->run();
}

void Harness::advance(Milliseconds by) {
  state_->run();
  const SteadyTime until = state_->clock.steady() + by;
  while (state_->clock.steady() < until) state_->step_to(until);
}

bool Harness::settle(Milliseconds at_most) {
  state_->run();
  const SteadyTime until = state_->clock.steady() + at_most;
  while (!state_->all_settled() && state_->clock.steady() < until) state_->step_to(until);
  return state_->all_settled();
}

void Harness::crash_next(const std::string& group, CrashPoint point) {
  state_->worker(group).crash = point;
}

void Harness::stop_next(const std::string& group) {
  state_->worker(group).stopped = true;
}
void Harness::kill_producer() {
  state_->stop_producer(false);
}
void Harness::cut_power() {
  state_->stop_producer(true);
}
const VirtualClock& Harness::clock() const {
  return state_->clock;
}
void Harness::jump_utc(Milliseconds by) {
  state_->clock.jump_utc(by);
}

Counts Harness::counts(const std::string& group) const {
  (void)state_->worker(group);
  const auto id = state_->core ? state_->core->find_group(group) : std::nullopt;
  if (!id) return {};
  const auto& counts = state_->core->group_state(*id).counts();
  return {counts.pending, counts.done, counts.dead, counts.expired, counts.dropped};
}

const std::vector<Handled>& Harness::handled() const {
  return state_->handled;
}

std::vector<DeadMessage> Harness::dead(const std::string& group) const {
  (void)state_->worker(group);
  const auto id = state_->core ? state_->core->find_group(group) : std::nullopt;
  std::vector<DeadMessage> out;
  if (!id) return out;
  std::set<Sequence> seen;
  for (auto each = state_->deaths.rbegin(); each != state_->deaths.rend(); ++each) {
    const auto sequence = each->message.sequence;
    const auto* history = state_->core->group_state(*id).history(sequence);
    if (each->group != *id || history == nullptr || !history->dead()) continue;
    if (!seen.insert(sequence).second) continue;
    out.push_back(each->message);
    if (const auto* steps = state_->core->group_state(*id).steps().find(sequence)) {
      for (const auto& step : *steps) {
        if (!step.done) out.back().undecided.push_back(step.name);
      }
    }
  }
  std::sort(out.begin(), out.end(),
            [](const auto& a, const auto& b) { return a.sequence < b.sequence; });
  return out;
}

void Harness::decide(const std::string& group, Sequence sequence, const std::string& step,
                     const std::optional<std::string>& value) {
  (void)state_->worker(group);
  state_->need_producer();
  const auto ticket =
      state_->core->decide(*state_->core->find_group(group), sequence, step, value, state_->now());
  if (!ticket.ok()) throw std::logic_error(ticket.error().text());
  state_->run();
}

std::vector<Published> Harness::accepted(const std::string& topic) const {
  std::vector<Published> out;
  for (const auto& each : state_->accepted) {
    if (each.topic == topic) out.push_back(each);
  }
  return out;
}

const std::vector<std::string>& Harness::log_lines() const {
  return state_->lines;
}
const Log& Harness::log() const {
  return state_->log;
}

void Harness::no_such_type(const std::string& topic, const Error& error) {
  throw std::logic_error("a message of " + topic + " is of another type: " + error.text());
}

}  // namespace dray::testing
