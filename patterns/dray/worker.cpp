#include "dray/worker.hpp"

#include <time.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <optional>
#include <thread>

#include "dray/balancing/worker_core.hpp"
#include "dray/endpoint_watch.hpp"
#include "dray/thread_traits.hpp"
#include "dray/transport/socket.hpp"

namespace dray {
namespace {

using balancing::WorkerCore;

constexpr int kFramesPerTurnMax = 1'000;
constexpr auto kTick = std::chrono::milliseconds(50);
constexpr auto kConnectRetry = std::chrono::seconds(1);
constexpr auto kConnectAnew = std::chrono::seconds(5);
constexpr std::uint32_t kWindowMax = 1'000'000;
constexpr std::uint32_t kPrefetch = 2;  // jobs
// Of short jobs so many are told at once, if there are more to do, and within so long.
constexpr std::uint64_t kToldAtOnce = 512;
constexpr auto kToldWithin = std::chrono::microseconds(500);
constexpr auto kTickMax = Milliseconds(10);  // of CLOCK_MONOTONIC_COARSE
// After a job this long a thread keeps nothing to itself.
constexpr auto kLongJob = std::chrono::milliseconds(1);

transport::SocketOptions dealer_options() {
  transport::SocketOptions options;
  options.send_frames_max = 100'000;
  options.receive_frames_max = 100'000;
  return options;
}

balancing::WorkerOptions core_options(const WorkerSettings& settings) {
  balancing::WorkerOptions options;
  options.name = settings.name;
  options.group = settings.group;
  options.threads = settings.threads;
  options.window_max = std::min(settings.window_max, kWindowMax);
  options.window_fixed = std::min(settings.window_fixed, kWindowMax);
  options.seed = random_u64();
  options.retry = {settings.retry.max_attempts, settings.retry.initial, settings.retry.max,
                   settings.retry.jitter};
  return options;
}

struct Finished {
  SequenceRun jobs;
  std::chrono::nanoseconds took;     // in all
  std::unique_ptr<Outcome> outcome;  // of one job; nothing: plain done
};

// How far a thread is with jobs that are neighbours. It takes one after the other off the front
// without a lock; who holds its slot's mutex may take what is not begun off the end, or ask for
// attention: then the thread stops at its mutex before it goes on.
struct Progress {
  bool attention = false;
  bool busy = false;       // with the one before `next`
  std::uint32_t next = 0;  // begun, and of those all but the one that it is busy with ended
  std::uint32_t end = 0;

  static Progress of(std::uint64_t bits) {
    return {(bits >> 63) != 0, (bits >> 62 & 1) != 0,
            static_cast<std::uint32_t>(bits >> 31 & kMask),
            static_cast<std::uint32_t>(bits & kMask)};
  }
  std::uint64_t bits() const {
    return std::uint64_t{attention} << 63 | std::uint64_t{busy} << 62 | std::uint64_t{next} << 31 |
           end;
  }
  std::uint32_t ended() const { return busy ? next - 1 : next; }

 private:
  static constexpr std::uint64_t kMask = (std::uint64_t{1} << 31) - 1;
};

bool is_plain(const Outcome& outcome) {
  return outcome.kind() == Outcome::Kind::kDone && outcome.follow_ups().empty();
}

}  // namespace

// Shared by the socket thread and the handler threads; written-off threads keep it alive.
struct Worker::State {
  // What one handler thread is doing.
  struct Slot {
    std::unique_ptr<Consumer> consumer;  // used by its thread only

    std::atomic<std::uint64_t> progress{0};   // Progress, with `at`
    std::atomic<std::int64_t> started_ns{0};  // the job that it is busy with
    std::atomic<std::int64_t> took_ns{0};     // all jobs that were plainly done; only it writes

    // Guarded by mutex.
    std::mutex mutex;
    WorkerCore::Jobs at;                // its thread reads it without a lock: nobody else writes
    std::deque<WorkerCore::Jobs> next;  // taken from the queue, not begun
    std::uint32_t told = 0;             // of `at`, so many from its beginning
    std::int64_t took_told_ns = 0;      // of took_ns
    std::optional<SteadyTime> stop_asked;
    std::stop_source stop;
    bool written_off = false;
    std::optional<StepJournal::Reply> reply;  // to the job's call of its journal
    std::condition_variable replied;          // or nobody will

    Progress where() const { return Progress::of(progress.load(std::memory_order_acquire)); }
    // 0: none.
    std::uint64_t running() const {
      const auto is = where();
      return is.busy ? at.first + is.next - 1 : 0;
    }
  };

  State(WorkerSettings settings_in, ConsumerFactory factory_in)
      : settings(std::move(settings_in)),
        factory(std::move(factory_in)),
        core(core_options(settings), 0, clock.steady()) {}

  // Immutable.
  const WorkerSettings settings;
  const ConsumerFactory factory;
  SystemClock clock;

  // Owned by the socket thread.
  transport::Context context;
  struct Connection {
    std::string endpoint;                             // an address; empty: closed
    std::string configured;                           // what it was resolved from
    std::unique_ptr<transport::DealerSocket> socket;  // nothing: could not be made
    bool retired = false;
    bool turned_away = false;  // and the log knows it
    bool connected = false;
    SteadyTime apart_since{};  // while not connected
    SteadyTime retry_at{};
  };
  std::vector<Connection> connections;  // by link
  transport::Poller poller;
  WorkerCore core;
  std::vector<std::shared_ptr<Slot>> slots;
  std::vector<std::thread> threads;  // by slot; written-off ones are detached

  // Any thread.
  transport::WakeUp wake_up;
  std::atomic<std::uint64_t> handled{0}, done{0}, failed{0}, written_off{0};
  std::atomic<std::uint32_t> welcomed{0};
  std::atomic<std::uint32_t> dispatchers{0};
  std::atomic<std::uint32_t> jobs_at_once{1};

  // Guarded by mutex.
  std::mutex mutex;
  std::condition_variable work;
  std::condition_variable changed;
  std::deque<WorkerCore::Jobs> queue;
  std::vector<Finished> finished;
  std::uint64_t finished_jobs = 0;  // in it
  SteadyTime finished_since{};      // the first of it
  bool waking = false;              // the socket thread will look at it
  std::vector<std::pair<std::uint64_t, WorkerCore::JobStep>> step_calls;  // by job
  bool want_drain = false;
  bool drained = false;
  bool want_stop = false;            // the socket thread ends
  std::atomic<bool> closing{false};  // handler threads end
  bool exhausted = false;
  bool addresses_changed = false;

  std::unique_ptr<EndpointWatch> watch;
  std::thread socket_thread;
};

Worker::Worker(std::shared_ptr<State> state) : state_(std::move(state)) {}

namespace worker_threads {

// The free functions here see Worker::State through a template, so that it stays private.

// What ended and was not told. While there is more to do, what is plainly done waits a little for
// more of it: waking the socket's thread costs more than some jobs. REQUIRES: slot.mutex is held.
template <typename S, typename Slot>
void tell_ended(S& state, Slot& slot, SteadyTime now, std::unique_ptr<Outcome> outcome = nullptr,
                std::chrono::nanoseconds outcome_took = {}) {
  const auto is = slot.where();
  const bool urgent = outcome != nullptr || state.jobs_at_once <= 1;
  std::vector<Finished> finished;
  if (is.ended() > slot.told) {
    const std::int64_t took = slot.took_ns.load(std::memory_order_relaxed);
    finished.push_back({{slot.at.first + slot.told, is.ended() - slot.told},
                        std::chrono::nanoseconds(took - slot.took_told_ns),
                        nullptr});
    slot.took_told_ns = took;
    slot.told = is.ended();
  }
  if (outcome != nullptr) {
    finished.push_back({{slot.running(), 1}, outcome_took, std::move(outcome)});
    slot.told = is.next;
  }
  if (finished.empty()) return;
  bool wake = false;
  {
    const std::lock_guard lock(state.mutex);
    if (state.finished.empty()) state.finished_since = now;
    for (auto& each : finished) {
      state.finished_jobs += each.jobs.count;
      state.finished.push_back(std::move(each));
    }
    const bool more = is.next < is.end || !slot.next.empty() || !state.queue.empty();
    const bool due = urgent || !more || state.finished_jobs >= kToldAtOnce ||
                     now - state.finished_since >= kToldWithin;
    wake = due && !std::exchange(state.waking, true);
  }
  if (wake) state.wake_up.wake();
}

// Takes off what a thread did not begin of what it is at. REQUIRES: slot.mutex is held.
template <typename Slot>
std::optional<WorkerCore::Jobs> take_off(Slot& slot) {
  std::uint64_t bits = slot.progress.load(std::memory_order_acquire);
  Progress is = Progress::of(bits);
  for (;; is = Progress::of(bits)) {
    if (is.next == is.end) return std::nullopt;
    Progress shortened = is;
    shortened.end = is.next;
    if (slot.progress.compare_exchange_weak(bits, shortened.bits(), std::memory_order_acq_rel)) {
      break;
    }
  }
  WorkerCore::Jobs rest = slot.at;
  if (is.next > 0) (void)rest.split(is.next);
  rest.count = is.end - is.next;
  return rest;
}

// A thread keeps nothing to itself while it is at a long job: what it did not begin goes back to
// the front of the queue, what it ended is told. REQUIRES: slot.mutex is held.
template <typename S, typename Slot>
void hand_over(S& state, Slot& slot, SteadyTime now) {
  tell_ended(state, slot, now);
  auto rest = take_off(slot);
  if (!rest && slot.next.empty()) return;
  {
    const std::lock_guard lock(state.mutex);
    for (; !slot.next.empty(); slot.next.pop_back()) {
      state.queue.push_front(std::move(slot.next.back()));
    }
    if (rest) state.queue.push_front(std::move(*rest));
  }
  state.work.notify_all();
}

// Goes on with the next job of what it has; false if there is none. REQUIRES: slot.mutex is held,
// and it is busy with none.
template <typename Slot>
bool begin_next(Slot& slot) {
  Progress is = slot.where();
  if (is.next == is.end) {
    if (slot.next.empty()) return false;
    slot.at = std::move(slot.next.front());
    slot.next.pop_front();
    slot.told = 0;
    is = {false, false, 0, slot.at.count};
  }
  slot.progress.store(Progress{false, true, is.next + 1, is.end}.bits(), std::memory_order_release);
  return true;
}

// The same without a lock, in the usual case. False: the lock is needed; it is busy no more.
template <typename Slot>
bool go_on(Slot& slot) {
  std::uint64_t bits = slot.progress.load(std::memory_order_relaxed);
  for (;;) {
    Progress is = Progress::of(bits);
    const bool goes = !is.attention && is.next < is.end;
    is.busy = goes;
    is.next += goes ? 1 : 0;
    if (slot.progress.compare_exchange_weak(bits, is.bits(), std::memory_order_acq_rel)) {
      return goes;
    }
  }
}

// Tells what ended, waits for work and takes some of it: one job, or where jobs are so short that a
// lock for each counts, a share of what there is. False at the end.
template <typename S, typename Slot>
bool take_jobs(S& state, Slot& slot, std::stop_token& stop, SteadyTime now) {
  {
    const std::lock_guard lock(slot.mutex);
    // The attempt was ended by the clock, or nobody takes its outcome any more.
    if (slot.written_off || state.closing) return false;
    tell_ended(state, slot, now);
    slot.stop_asked.reset();
    if (slot.stop.stop_requested() || !stop.stop_possible()) {
      slot.stop = std::stop_source();
      stop = slot.stop.get_token();
    }
    if (begin_next(slot)) return true;
    slot.progress.store(0, std::memory_order_release);
  }
  for (;;) {
    {
      std::unique_lock lock(state.mutex);
      state.work.wait(lock, [&] { return state.closing || !state.queue.empty(); });
    }
    // Jobs are always in the queue or with a slot, where a cancel finds them.
    const std::lock_guard slot_lock(slot.mutex);
    const std::lock_guard lock(state.mutex);
    if (state.closing) return false;
    if (state.queue.empty()) continue;  // another thread was first
    std::size_t queued = 0;
    const std::size_t most = state.jobs_at_once;
    for (const auto& each : state.queue) {
      queued += each.count;
      if (queued >= 2 * most * state.settings.threads) break;
    }
    auto share = std::clamp<std::size_t>(queued / (2 * state.settings.threads), 1, most);
    while (share > 0 && !state.queue.empty()) {
      auto& front = state.queue.front();
      if (front.count > share) {
        slot.next.push_back(front.split(static_cast<std::uint32_t>(share)));
        break;
      }
      share -= front.count;
      slot.next.push_back(std::move(front));
      state.queue.pop_front();
    }
    return begin_next(slot);
  }
}

// The journal of one handling: asks the dispatcher that its message came from, and waits.
template <typename S, typename Slot>
class Journal final : public StepJournal {
 public:
  Journal(S& state, Slot& slot, std::uint64_t job, const std::stop_token& stop)
      : state_(state), slot_(slot), job_(job), stop_(stop) {}

  Reply call(StepCall what, std::string_view step, std::string_view value) override {
    over_ = over_ || (what == StepCall::kBegin && (stop_.stop_requested() || state_.closing));
    if (over_) return {StepAnswer::kRefused, kStopped};
    if (run_ == 0) run_ = random_u64() | 1;
    {
      const std::lock_guard lock(slot_.mutex);
      slot_.reply.reset();
    }
    {
      const std::lock_guard lock(state_.mutex);
      state_.step_calls.push_back({job_, {what, run_, std::string(step), std::string(value)}});
    }
    state_.wake_up.wake();
    // Requested by who holds the slot's mutex, so that no wish is missed. What was done is worth
    // waiting for, until the attempt is ended.
    const std::stop_callback wish(stop_, [this] { slot_.replied.notify_all(); });
    std::unique_lock lock(slot_.mutex);
    slot_.replied.wait(lock, [&] {
      return slot_.reply || slot_.written_off || state_.closing ||
             (what == StepCall::kBegin && stop_.stop_requested());
    });
    if (slot_.reply) return std::move(*slot_.reply);
    over_ = true;  // a late answer would be taken for that to the next call
    lock.unlock();
    if (what == StepCall::kBegin) {  // it will not run: nobody need ask
      const std::lock_guard inner(state_.mutex);
      state_.step_calls.push_back({job_, {StepCall::kNotDone, run_, std::string(step), ""}});
    }
    return {StepAnswer::kRefused, kStopped};
  }

 private:
  static constexpr const char* kStopped = "the handling is asked to stop";

  S& state_;
  Slot& slot_;
  const std::uint64_t job_;
  const std::stop_token& stop_;
  std::uint64_t run_ = 0;  // drawn when it is needed
  bool over_ = false;
};

// Its outcome is told at once. False if nobody takes it any more.
template <typename S, typename Slot>
bool tell_outcome(S& state, Slot& slot, Outcome outcome, std::chrono::nanoseconds took,
                  SteadyTime now) {
  const std::lock_guard lock(slot.mutex);
  if (slot.written_off || state.closing) return false;
  tell_ended(state, slot, now, std::make_unique<Outcome>(std::move(outcome)), took);
  return true;
}

// Times jobs. Those that are far shorter than a tick of the system's are timed together: a look at
// the clock would cost a part of what they do.
template <typename S, typename Slot>
class Stopwatch {
 public:
  Stopwatch(const S& state, Slot& slot) : state_(state), slot_(slot) { begin(); }

  void begin() {
    apart_ = state_.jobs_at_once < kTimedTogether;
    begin_at(state_.clock.steady());
  }
  // When the job that just ended began, or one before it.
  SteadyTime started() const { return started_; }
  // A job ended. How long it took, as far as it is known; what began before it counts with it.
  std::chrono::nanoseconds lap() {
    if (!apart_ && ticks() == tick_) return {};
    const auto now = state_.clock.steady();
    const std::chrono::nanoseconds took = now - started_;
    begin_at(now);
    return took;
  }
  // The same; it is known.
  std::chrono::nanoseconds stop() {
    const auto now = state_.clock.steady();
    const std::chrono::nanoseconds took = now - started_;
    begin_at(now);
    return took;
  }

 private:
  static constexpr std::uint32_t kTimedTogether = 8;  // jobs that a thread takes at once

  static std::int64_t ticks() {
    timespec now{};
    clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
    return now.tv_sec * 1'000'000'000 + now.tv_nsec;
  }
  void begin_at(SteadyTime now) {
    started_ = now;
    if (!apart_) tick_ = ticks();
    slot_.started_ns.store(now.time_since_epoch().count(), std::memory_order_relaxed);
  }

  const S& state_;
  Slot& slot_;
  bool apart_ = true;
  SteadyTime started_{};
  std::int64_t tick_ = 0;
};

template <typename Slot>
void add_time(Slot& slot, std::chrono::nanoseconds took) {
  if (took.count() == 0) return;
  slot.took_ns.store(slot.took_ns.load(std::memory_order_relaxed) + took.count(),
                     std::memory_order_relaxed);
}

template <typename S, typename Slot>
void handle_jobs(const std::shared_ptr<S>& state, const std::shared_ptr<Slot>& slot) {
  std::stop_token stop;  // of slot->stop, which this thread alone renews
  Stopwatch<S, Slot> watch(*state, *slot);
  while (take_jobs(*state, *slot, stop, watch.started())) {
    watch.begin();
    for (bool more = true; more;) {
      const std::uint32_t index = slot->where().next - 1;
      slot->at.prefetch(index + kPrefetch);
      Journal<S, Slot> journal(*state, *slot, slot->at.first + index, stop);
      Outcome outcome =
          slot->consumer->consume({slot->at.envelope(index), state->settings.group,
                                   slot->at.sequence + index, slot->at.attempt, &journal},
                                  stop);
      const bool plain = is_plain(outcome);
      const auto took = plain ? watch.lap() : watch.stop();
      if (plain) {
        add_time(*slot, took);
      } else if (!tell_outcome(*state, *slot, std::move(outcome), took, watch.started())) {
        return;
      }
      more = go_on(*slot);
      if (took < kLongJob) continue;
      const std::lock_guard lock(slot->mutex);
      hand_over(*state, *slot, watch.started());
    }
    add_time(*slot, watch.stop());
  }
}

template <typename S>
Status add_thread(const std::shared_ptr<S>& state) {
  auto consumer = state->factory();
  if (!consumer.ok()) return consumer.error();
  auto slot = std::make_shared<typename S::Slot>();
  slot->consumer = std::move(*consumer);
  state->slots.push_back(slot);
  state->threads.emplace_back([state, slot] {
    name_thread("dray-handler");
    handle_jobs(state, slot);
  });
  return {};
}

template <typename S>
void write_off(const std::shared_ptr<S>& state, std::size_t index, std::uint64_t job) {
  state->core.on_outcome(job,
                         retry("timeout: no outcome within " +
                               std::to_string(state->settings.timeout.count()) + " ms"),
                         state->settings.timeout, state->clock.utc());
  state->threads[index].detach();
  state->threads.erase(state->threads.begin() + static_cast<std::ptrdiff_t>(index));
  state->slots.erase(state->slots.begin() + static_cast<std::ptrdiff_t>(index));
  state->written_off += 1;
  state->settings.log.error("a handler ignored its stop request and was written off",
                            {{"written_off", std::to_string(state->written_off.load())}});
  if (auto added = add_thread(state); !added.ok()) {
    state->settings.log.error("no handler to replace it: " + added.error().text());
  }
  if (state->written_off.load() * 2 < state->settings.threads || state->exhausted) return;
  state->exhausted = true;
  if (state->settings.on_exhausted) state->settings.on_exhausted();
}

// The thread stops at the slot's mutex before it goes on. False if it is not busy with this job any
// more. REQUIRES: slot.mutex is held.
template <typename Slot>
bool ask_attention(Slot& slot, std::uint64_t job) {
  std::uint64_t bits = slot.progress.load(std::memory_order_acquire);
  for (;;) {
    Progress is = Progress::of(bits);
    if (!is.busy || slot.at.first + is.next - 1 != job) return false;
    is.attention = true;
    if (slot.progress.compare_exchange_weak(bits, is.bits(), std::memory_order_acq_rel)) {
      return true;
    }
  }
}

template <typename S>
void watch_timeouts(const std::shared_ptr<S>& state) {
  const auto& settings = state->settings;
  const auto now = state->clock.steady();
  for (std::size_t i = 0; i < state->slots.size(); ++i) {
    auto& slot = *state->slots[i];
    std::uint64_t late = 0;
    {
      const std::lock_guard lock(slot.mutex);
      const std::uint64_t job = slot.running();
      const SteadyTime started(
          std::chrono::nanoseconds(slot.started_ns.load(std::memory_order_relaxed)));
      // What it says of a job that has just begun is of the one before.
      if (job == 0 || job != slot.running()) continue;
      if (now - started >= kLongJob) hand_over(*state, slot, now);
      // Of short jobs it may be that of one before.
      const auto late_by = state->jobs_at_once > 1 ? kTickMax : Milliseconds(0);
      if (settings.timeout.count() == 0 || now - started < settings.timeout + late_by) continue;
      if (!slot.stop_asked) {
        if (!ask_attention(slot, job)) continue;
        slot.stop_asked = now;
        slot.stop.request_stop();
      } else if (now - *slot.stop_asked >= settings.timeout_grace) {
        slot.written_off = true;
        slot.replied.notify_all();
        late = job;
      }
    }
    if (late == 0) continue;
    write_off(state, i, late);
    --i;
  }
}

template <typename S>
void read_frames(const std::shared_ptr<S>& state, std::size_t link) {
  for (int i = 0; i < kFramesPerTurnMax; ++i) {
    auto received = state->connections[link].socket->receive_pair();
    if (!received) return;
    auto frame = balancing::decode_frame(received->first.bytes, received->second.bytes);
    if (!frame.ok()) {
      state->settings.log.warning("bad frame from a dispatcher: " + frame.error().text(),
                                  {{"endpoint", state->connections[link].endpoint}});
      continue;
    }
    state->core.on_frame(link, std::move(*frame), received->second.owner, state->clock.steady());
  }
}

// That may change: asked again with a new socket (perform()).
template <typename S>
void turned_away(S& state, std::size_t link, transport::Link how) {
  auto& connection = state.connections[link];
  if (!std::exchange(connection.turned_away, true)) {
    const char* why = how == transport::Link::kTurnedAway
                          ? "a dispatcher does not allow this key"
                          : "a dispatcher expects CURVE, or does not, or has another key than told";
    state.settings.log.error(
        std::string(why) + "; asking again every second",
        {{"endpoint", connection.endpoint},
         {"own_key", state.settings.keys ? state.settings.keys->public_key : "none"}});
  }
  connection.socket.reset();
  connection.retry_at = state.clock.steady() + kConnectRetry;
}

template <typename S>
void read_links(const std::shared_ptr<S>& state, std::size_t link) {
  for (const auto event : state->connections[link].socket->take_links()) {
    if (event == transport::Link::kTurnedAway || event == transport::Link::kMismatch) {
      return turned_away(*state, link, event);
    }
    if (event == transport::Link::kDisconnected) {
      state->connections[link].connected = false;
      state->connections[link].apart_since = state->clock.steady();
      state->core.on_disconnected(link, state->clock.steady());
      continue;
    }
    state->connections[link].turned_away = false;
    state->connections[link].connected = true;
    // What the old connection still delivered must be known before HELLO says what is held.
    read_frames(state, link);
    state->core.on_connected(link, state->clock.steady());
  }
}

template <typename S>
void read_finished(const std::shared_ptr<S>& state) {
  std::vector<Finished> finished;
  bool drain = false;
  {
    const std::lock_guard lock(state->mutex);
    finished.swap(state->finished);
    state->finished_jobs = 0;
    state->waking = false;
    drain = state->want_drain;
  }
  const UtcTime now = state->clock.utc();
  std::uint64_t handled = 0;
  std::uint64_t ended_well = 0;
  std::uint64_t failed = 0;
  for (const auto& each : finished) {
    handled += each.jobs.count;
    if (each.outcome == nullptr) {
      state->core.on_done(each.jobs, each.took);
      ended_well += each.jobs.count;
      continue;
    }
    state->core.on_outcome(each.jobs.first, *each.outcome, each.took, now);
    if (each.outcome->kind() == Outcome::Kind::kDone) {
      ++ended_well;
    } else if (each.outcome->kind() != Outcome::Kind::kSnooze) {
      ++failed;
    }
  }
  state->handled.fetch_add(handled, std::memory_order_relaxed);
  state->done.fetch_add(ended_well, std::memory_order_relaxed);
  state->failed.fetch_add(failed, std::memory_order_relaxed);
  if (drain) state->core.drain();
}

template <typename S>
void read_step_calls(S& state) {
  std::vector<std::pair<std::uint64_t, WorkerCore::JobStep>> calls;
  {
    const std::lock_guard lock(state.mutex);
    calls.swap(state.step_calls);
  }
  for (auto& [job, call] : calls) state.core.call_step(job, std::move(call), state.clock.steady());
}

template <typename S>
void answer_step(S& state, std::uint64_t job, const StepJournal::Reply& reply) {
  for (const auto& slot : state.slots) {
    const std::lock_guard lock(slot->mutex);
    if (slot->running() != job) continue;
    slot->reply = reply;
    slot->replied.notify_all();
    return;
  }
}

template <typename S>
Status connect_to(const std::shared_ptr<S>& state, const std::string& endpoint,
                  const std::string& configured, std::unique_ptr<transport::DealerSocket>& out) {
  try {
    auto options = dealer_options();
    if (const auto& keys = state->settings.keys) {
      const auto server = keys->servers.find(configured);
      if (server != keys->servers.end()) {
        options.curve_client = {keys->public_key, keys->secret_key, server->second};
      }
    }
    auto socket = std::make_unique<transport::DealerSocket>(state->context, options);
    DRAY_TRY(socket->watch_links());
    DRAY_TRY(socket->connect(endpoint));
    out = std::move(socket);
    return {};
  } catch (const std::exception& exception) {  // no descriptor is left
    return Error{ErrorCode::kIo, std::string("no socket: ") + exception.what(), endpoint, 0};
  }
}

template <typename S>
void rebuild_poller(const std::shared_ptr<S>& state) {
  state->poller = {};
  for (auto& each : state->connections) {
    if (each.socket != nullptr) state->poller.add(*each.socket);
  }
  state->poller.add(state->wake_up);
  state->dispatchers = static_cast<std::uint32_t>(
      std::count_if(state->connections.begin(), state->connections.end(),
                    [](const auto& each) { return each.socket != nullptr; }));
}

// One connection for each address there is.
template <typename S>
Status follow_addresses(const std::shared_ptr<S>& state) {
  auto wanted = state->watch->addresses();
  const auto now = state->clock.steady();
  for (std::size_t link = 0; link < state->connections.size(); ++link) {
    auto& each = state->connections[link];
    if (each.endpoint.empty() || each.retired) continue;
    // Of another endpoint now: another key, perhaps.
    const auto found = wanted.find(each.endpoint);
    if (found != wanted.end() && found->second == each.configured) {
      wanted.erase(found);
      continue;
    }
    each.retired = true;
    state->core.retire_link(link, now);
  }
  Status status;
  for (const auto& [endpoint, configured] : wanted) {
    std::unique_ptr<transport::DealerSocket> socket;
    if (const Status connected = connect_to(state, endpoint, configured, socket); !connected.ok()) {
      state->settings.log.error(connected.error().text());
      status = connected;
      continue;
    }
    const std::size_t link = state->core.add_link(now);
    if (link == state->connections.size()) state->connections.emplace_back();
    state->connections[link] = {endpoint, configured, std::move(socket), false, false, false,
                                now,      {}};
  }
  rebuild_poller(state);
  return status;
}

// Takes those that are not wanted out of a list.
inline void sort_out(std::deque<WorkerCore::Jobs>& list, const SequenceRuns& unwanted,
                     SequenceRuns& taken) {
  std::deque<WorkerCore::Jobs> kept;
  for (auto& jobs : list) {
    for (const auto& run : unwanted) {
      if (jobs.count == 0 || run.first >= jobs.first + jobs.count) break;
      if (run.end() <= jobs.first) continue;
      if (run.first > jobs.first) {
        kept.push_back(jobs.split(static_cast<std::uint32_t>(run.first - jobs.first)));
      }
      const auto gone = std::min<std::uint64_t>(run.end() - jobs.first, jobs.count);
      taken.add(jobs.first, gone);
      if (gone == jobs.count) {
        jobs.count = 0;
      } else {
        (void)jobs.split(static_cast<std::uint32_t>(gone));
      }
    }
    if (jobs.count > 0) kept.push_back(std::move(jobs));
  }
  list = std::move(kept);
}

template <typename S>
void perform(const std::shared_ptr<S>& state) {
  auto actions = state->core.take_actions(state->clock.steady());
  if (!actions.start.empty()) {
    const bool one = actions.start.size() == 1 && actions.start.front().count == 1;
    {
      const std::lock_guard lock(state->mutex);
      for (auto& jobs : actions.start) state->queue.push_back(std::move(jobs));
    }
    if (one) {
      state->work.notify_one();
    } else {
      state->work.notify_all();
    }
  }
  if (!actions.cancel.empty()) {
    SequenceRuns returned;
    {
      // All at once: a job may be on its way from one to the other.
      std::vector<std::unique_lock<std::mutex>> locks;
      for (const auto& slot : state->slots) locks.emplace_back(slot->mutex);
      const std::lock_guard lock(state->mutex);
      for (const auto& slot : state->slots) {
        if (auto rest = take_off(*slot)) slot->next.push_front(std::move(*rest));
        sort_out(slot->next, actions.cancel, returned);
      }
      sort_out(state->queue, actions.cancel, returned);
    }
    for (const auto& jobs : returned) state->core.on_returned(jobs);
    if (!returned.empty()) state->wake_up.wake();
  }
  for (const auto& [job, reply] : actions.stepped) answer_step(*state, job, reply);
  for (const auto& problem : actions.problems) state->settings.log.warning(problem);
  for (auto& send : actions.sends) {
    // A frame that cannot go is not lost: results are said again after the next WELCOME, and the
    // rest is made anew.
    auto& socket = state->connections[send.link].socket;
    if (socket == nullptr || socket->send(send.frame) != transport::Sent::kSent) {
      state->core.on_disconnected(send.link, state->clock.steady());
    }
  }
  for (const auto link : actions.close) state->connections[link] = {};
  for (const auto link : actions.reconnect) {
    auto& connection = state->connections[link];
    if (connection.endpoint.empty()) continue;  // closed meanwhile
    state->settings.log.warning("a dispatcher is silent for a lease: connecting anew",
                                {{"endpoint", connection.endpoint}});
    connection.socket.reset();
    connection.retry_at = {};
  }
  bool remade = false;
  for (auto& connection : state->connections) {
    const auto now = state->clock.steady();
    // ZeroMQ gives some connections up without a word: after a handshake with a side that was about
    // to change, or to end.
    if (connection.socket != nullptr && !connection.connected &&
        now - connection.apart_since >= kConnectAnew) {
      connection.socket.reset();
    }
    if (connection.endpoint.empty() || connection.socket != nullptr || now < connection.retry_at) {
      continue;
    }
    connection.retry_at = now + kConnectRetry;
    connection.connected = false;
    connection.apart_since = now;
    const Status connected =
        connect_to(state, connection.endpoint, connection.configured, connection.socket);
    if (!connected.ok()) state->settings.log.error(connected.error().text());
    remade = true;
  }
  if (!actions.close.empty() || remade) rebuild_poller(state);
}

template <typename S>
void run(const std::shared_ptr<S>& state) {
  for (;;) {
    const auto now = state->clock.steady();
    const auto wait =
        std::min<std::chrono::nanoseconds>(state->core.next_deadline(now) - now, kTick);
    state->poller.wait(static_cast<int>(std::chrono::ceil<Milliseconds>(wait).count()));
    state->wake_up.clear();
    bool changed = false;
    {
      const std::lock_guard lock(state->mutex);
      changed = std::exchange(state->addresses_changed, false);
    }
    if (changed) (void)follow_addresses(state);
    std::uint32_t welcomed = 0;
    for (std::size_t link = 0; link < state->connections.size(); ++link) {
      if (state->connections[link].socket == nullptr) continue;
      read_links(state, link);
      if (state->connections[link].socket == nullptr) {
        rebuild_poller(state);
        continue;
      }
      read_frames(state, link);
      welcomed += state->core.welcomed(link) ? 1U : 0U;
    }
    state->welcomed = welcomed;
    state->jobs_at_once = state->core.jobs_at_once();
    read_step_calls(*state);
    read_finished(state);
    watch_timeouts(state);
    state->core.tick(state->clock.steady());
    perform(state);
    const std::lock_guard lock(state->mutex);
    if (state->core.drained() && !state->drained) {
      state->drained = true;
      state->changed.notify_all();
    }
    if (state->want_stop) return;
  }
}

}  // namespace worker_threads

Result<std::unique_ptr<Worker>> Worker::start(WorkerSettings settings, ConsumerFactory factory) {
  if (settings.threads == 0 || settings.endpoints.empty()) {
    return Error{ErrorCode::kInvalid, "a worker needs at least one thread and one endpoint", "", 0};
  }
  for (const auto& endpoint : settings.endpoints) {
    const bool secured = settings.keys && settings.keys->servers.count(endpoint) != 0;
    if (auto fault = transport::connect_fault(endpoint, secured)) {
      return Error{ErrorCode::kInvalid, *fault, endpoint, 0};
    }
  }
  auto state = std::make_shared<State>(std::move(settings), std::move(factory));
  std::unique_ptr<Worker> worker(new Worker(state));
  for (std::uint32_t i = 0; i < state->settings.threads; ++i) {
    if (auto added = worker_threads::add_thread(state); !added.ok()) return added.error();
  }
  EndpointWatchOptions watch;
  watch.endpoints = state->settings.endpoints;
  if (const auto& keys = state->settings.keys) {
    for (const auto& [endpoint, key] : keys->servers) watch.secured.insert(endpoint);
  }
  watch.every = state->settings.resolve_every;
  watch.again_after_failure = std::min(watch.again_after_failure, watch.every);
  if (state->settings.resolve) watch.resolve = state->settings.resolve;
  watch.log = state->settings.log;
  state->watch = std::make_unique<EndpointWatch>(watch, [weak = std::weak_ptr<State>(state)] {
    const auto alive = weak.lock();
    if (alive == nullptr) return;
    {
      const std::lock_guard lock(alive->mutex);
      alive->addresses_changed = true;
    }
    alive->wake_up.wake();
  });
  state->watch->start();
  DRAY_TRY(worker_threads::follow_addresses(state));
  state->socket_thread = std::thread([state] {
    name_thread("dray-worker");
    take_slice(Slice::kShort);
    worker_threads::run(state);
  });
  return worker;
}

bool Worker::drain(Milliseconds deadline) {
  auto& state = *state_;
  std::unique_lock lock(state.mutex);
  state.want_drain = true;
  state.wake_up.wake();
  const bool in_time = state.changed.wait_for(lock, deadline, [&] { return state.drained; });
  return in_time;
}

void Worker::stop() {
  auto& state = *state_;
  if (state.watch != nullptr) state.watch->stop();
  {
    const std::lock_guard lock(state.mutex);
    state.want_stop = true;
    state.closing = true;
  }
  state.wake_up.wake();
  state.work.notify_all();
  if (state.socket_thread.joinable()) state.socket_thread.join();
  for (auto& slot : state.slots) {
    const std::lock_guard lock(slot->mutex);
    slot->next.clear();
    (void)worker_threads::take_off(*slot);
    slot->stop.request_stop();
    slot->replied.notify_all();  // if it was requested before
  }
  for (auto& thread : state.threads) {
    if (thread.joinable()) thread.join();
  }
  state.threads.clear();
}

Worker::~Worker() {
  stop();
}

WorkerCounters Worker::counters() const {
  const auto& state = *state_;
  return {state.handled,     state.done,     state.failed,
          state.written_off, state.welcomed, state.dispatchers};
}

}  // namespace dray
