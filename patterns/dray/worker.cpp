#include "dray/worker.hpp"

#include <atomic>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <optional>
#include <set>
#include <thread>

#include "dray/balancing/worker_core.hpp"
#include "dray/transport/socket.hpp"

namespace dray {
namespace {

using balancing::WorkerCore;

constexpr int kFramesPerTurnMax = 1'000;
constexpr int kTickMs = 50;

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
  options.window_max = settings.window_max;
  options.retry = {settings.retry.max_attempts, settings.retry.initial, settings.retry.max,
                   settings.retry.jitter};
  return options;
}

struct Finished {
  std::uint64_t job;
  Outcome outcome;
  std::chrono::nanoseconds took;
};

}  // namespace

// Shared by the socket thread and the handler threads; written-off threads keep it alive.
struct Worker::State {
  // What one handler thread is doing.
  struct Slot {
    std::unique_ptr<Consumer> consumer;  // used by its thread only
    std::mutex mutex;
    std::uint64_t job = 0;  // 0: idle
    SteadyTime started{};
    std::optional<SteadyTime> stop_asked;
    std::stop_source stop;
    bool written_off = false;
  };

  State(WorkerSettings settings_in, ConsumerFactory factory_in)
      : settings(std::move(settings_in)),
        factory(std::move(factory_in)),
        core(core_options(settings), settings.endpoints.size(), clock.steady()) {}

  // Immutable.
  const WorkerSettings settings;
  const ConsumerFactory factory;
  SystemClock clock;

  // Owned by the socket thread.
  transport::Context context;
  std::vector<std::unique_ptr<transport::DealerSocket>> sockets;
  WorkerCore core;
  std::vector<std::shared_ptr<Slot>> slots;
  std::vector<std::thread> threads;  // by slot; written-off ones are detached

  // Any thread.
  transport::WakeUp wake_up;
  std::atomic<std::uint64_t> handled{0}, done{0}, failed{0}, written_off{0};
  std::atomic<std::uint32_t> welcomed{0};

  // Guarded by mutex.
  std::mutex mutex;
  std::condition_variable work;
  std::condition_variable changed;
  std::deque<WorkerCore::Job> queue;
  std::vector<Finished> finished;
  bool want_drain = false;
  bool drained = false;
  bool want_stop = false;  // the socket thread ends
  bool closing = false;    // handler threads end
  bool exhausted = false;

  std::thread socket_thread;
};

Worker::Worker(std::shared_ptr<State> state) : state_(std::move(state)) {}

namespace worker_threads {

// The free functions here see Worker::State through a template, so that it stays private.
template <typename S, typename Slot>
void handle_jobs(const std::shared_ptr<S>& state, const std::shared_ptr<Slot>& slot) {
  for (;;) {
    WorkerCore::Job job;
    {
      std::unique_lock lock(state->mutex);
      state->work.wait(lock, [&] { return state->closing || !state->queue.empty(); });
      if (state->closing) return;
      job = std::move(state->queue.front());
      state->queue.pop_front();
    }
    std::stop_token stop;
    const auto started = state->clock.steady();
    {
      const std::lock_guard lock(slot->mutex);
      if (slot->written_off) return;
      slot->job = job.id;
      slot->started = started;
      stop = slot->stop.get_token();
    }
    Outcome outcome = slot->consumer->consume(
        {job.envelope, state->settings.group, job.sequence, job.attempt}, stop);
    const auto took = state->clock.steady() - started;
    {
      const std::lock_guard lock(slot->mutex);
      if (slot->written_off) return;  // its attempt was ended by the clock
      slot->job = 0;
      slot->stop_asked.reset();
      if (slot->stop.stop_requested()) slot->stop = std::stop_source();
    }
    bool wake = false;
    {
      const std::lock_guard lock(state->mutex);
      wake = state->finished.empty();
      state->finished.push_back({job.id, std::move(outcome), took});
    }
    if (wake) state->wake_up.wake();
  }
}

template <typename S>
Status add_thread(const std::shared_ptr<S>& state) {
  auto consumer = state->factory();
  if (!consumer.ok()) return consumer.error();
  auto slot = std::make_shared<typename S::Slot>();
  slot->consumer = std::move(*consumer);
  state->slots.push_back(slot);
  state->threads.emplace_back([state, slot] { handle_jobs(state, slot); });
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

template <typename S>
void watch_timeouts(const std::shared_ptr<S>& state) {
  const auto& settings = state->settings;
  if (settings.timeout.count() == 0) return;
  const auto now = state->clock.steady();
  for (std::size_t i = 0; i < state->slots.size(); ++i) {
    auto& slot = *state->slots[i];
    std::uint64_t late = 0;
    {
      const std::lock_guard lock(slot.mutex);
      if (slot.job == 0 || now - slot.started < settings.timeout) continue;
      if (!slot.stop_asked) {
        slot.stop_asked = now;
        slot.stop.request_stop();
      } else if (now - *slot.stop_asked >= settings.timeout_grace) {
        slot.written_off = true;
        late = slot.job;
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
    auto received = state->sockets[link]->receive();
    if (!received) return;
    auto frame = balancing::decode_frame(received->bytes);
    if (!frame.ok()) {
      state->settings.log.warning("bad frame from a dispatcher: " + frame.error().text(),
                                  {{"endpoint", state->settings.endpoints[link]}});
      continue;
    }
    state->core.on_frame(link, std::move(*frame), received->owner, state->clock.steady());
  }
}

template <typename S>
void read_links(const std::shared_ptr<S>& state, std::size_t link) {
  for (const auto event : state->sockets[link]->take_links()) {
    if (event == transport::Link::kDisconnected) {
      state->core.on_disconnected(link, state->clock.steady());
      continue;
    }
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
    drain = state->want_drain;
  }
  const UtcTime now = state->clock.utc();
  for (const auto& each : finished) {
    state->core.on_outcome(each.job, each.outcome, each.took, now);
    state->handled.fetch_add(1, std::memory_order_relaxed);
    const bool done = each.outcome.kind() == Outcome::Kind::kDone;
    auto& counter = done ? state->done : state->failed;
    if (each.outcome.kind() != Outcome::Kind::kSnooze) {
      counter.fetch_add(1, std::memory_order_relaxed);
    }
  }
  if (drain) state->core.drain();
}

template <typename S>
void perform(const std::shared_ptr<S>& state) {
  auto actions = state->core.take_actions(state->clock.steady());
  if (!actions.start.empty()) {
    {
      const std::lock_guard lock(state->mutex);
      for (auto& job : actions.start) state->queue.push_back(std::move(job));
    }
    if (actions.start.size() == 1) {
      state->work.notify_one();
    } else {
      state->work.notify_all();
    }
  }
  if (!actions.cancel.empty()) {
    const std::set<std::uint64_t> unwanted(actions.cancel.begin(), actions.cancel.end());
    std::vector<std::uint64_t> returned;
    {
      const std::lock_guard lock(state->mutex);
      std::erase_if(state->queue, [&](const WorkerCore::Job& job) {
        const bool remove = unwanted.count(job.id) != 0;
        if (remove) returned.push_back(job.id);
        return remove;
      });
    }
    for (const auto job : returned) state->core.on_returned(job);
    if (!returned.empty()) state->wake_up.wake();
  }
  for (const auto& problem : actions.problems) state->settings.log.warning(problem);
  for (auto& send : actions.sends) {
    // A frame that cannot go is not lost: results are said again after the next WELCOME, and the
    // rest is made anew.
    if (state->sockets[send.link]->send(send.frame) != transport::Sent::kSent) {
      state->core.on_disconnected(send.link, state->clock.steady());
    }
  }
}

template <typename S>
void run(const std::shared_ptr<S>& state) {
  transport::Poller poller;
  for (auto& socket : state->sockets) poller.add(*socket);
  poller.add(state->wake_up);
  for (;;) {
    poller.wait(kTickMs);
    state->wake_up.clear();
    std::uint32_t welcomed = 0;
    for (std::size_t link = 0; link < state->sockets.size(); ++link) {
      read_links(state, link);
      read_frames(state, link);
      welcomed += state->core.welcomed(link) ? 1U : 0U;
    }
    state->welcomed = welcomed;
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
  auto state = std::make_shared<State>(std::move(settings), std::move(factory));
  std::unique_ptr<Worker> worker(new Worker(state));
  for (std::uint32_t i = 0; i < state->settings.threads; ++i) {
    if (auto added = worker_threads::add_thread(state); !added.ok()) return added.error();
  }
  for (const auto& endpoint : state->settings.endpoints) {
    auto socket = std::make_unique<transport::DealerSocket>(state->context, dealer_options());
    DRAY_TRY(socket->watch_links());
    DRAY_TRY(socket->connect(endpoint));
    state->sockets.push_back(std::move(socket));
  }
  state->socket_thread = std::thread([state] { worker_threads::run(state); });
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
    slot->stop.request_stop();
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
  return {state.handled, state.done, state.failed, state.written_off, state.welcomed};
}

}  // namespace dray
