#include "dray/worker.hpp"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>

#include "dray/balancing/worker_core.hpp"
#include "dray/endpoint_watch.hpp"
#include "dray/handler_threads.hpp"
#include "dray/thread_traits.hpp"
#include "dray/transport/socket.hpp"

namespace dray {
namespace {

using balancing::WorkerCore;

constexpr int kFramesPerTurnMax = 1'000;
constexpr auto kTick = std::chrono::milliseconds(50);
// While threads may keep what ended to themselves: one may have met a job that is long.
constexpr auto kTickKept = std::chrono::milliseconds(5);
constexpr auto kConnectRetry = std::chrono::seconds(1);
constexpr auto kConnectAnew = std::chrono::seconds(5);
constexpr std::uint32_t kWindowMax = 1'000'000;

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

// What a dispatcher would refuse, or what makes no sense; nothing: all is well.
std::optional<std::string> settings_fault(const WorkerSettings& settings) {
  const auto& retry = settings.retry;
  if (settings.threads == 0 || settings.endpoints.empty()) {
    return "a worker needs at least one thread and one endpoint";
  }
  if (settings.name.size() > balancing::kNameBytesMax) {
    return "a worker's name has at most " + std::to_string(balancing::kNameBytesMax) + " bytes";
  }
  if (const auto fault = name_fault(settings.group)) return "group: " + std::string(*fault);
  if (retry.max_attempts == 0) return "retry.max_attempts is at least 1";
  if (!(retry.jitter >= 0 && retry.jitter <= 1)) return "retry.jitter is between 0 and 1";
  if (retry.initial.count() < 0 || retry.max.count() < 0 || retry.initial.count() > UINT32_MAX ||
      retry.max.count() > UINT32_MAX) {
    return "retry.initial and retry.max are between 0 and 2^32 ms";
  }
  if (settings.timeout.count() < 0 || settings.timeout_grace.count() < 0) {
    return "timeout and timeout_grace are not negative";
  }
  return std::nullopt;
}

// A connection to one address of a dispatcher.
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

}  // namespace

// The socket thread: the core, its links, and what the handler threads say.
struct Worker::State {
  State(WorkerSettings settings_in, ConsumerFactory factory)
      : settings(std::move(settings_in)),
        handlers(settings, std::move(factory)),
        core(core_options(settings), 0, clock.steady()) {}

  void run();
  void turn(bool addresses_moved);
  void read_links(std::size_t link);
  void read_frames(std::size_t link);
  void turned_away(std::size_t link, transport::Link how);
  void read_news();
  void perform();
  void send(const std::vector<WorkerCore::Send>& sends);
  void keep_connected(SteadyTime now);
  Status connect(const std::string& endpoint, const std::string& configured,
                 std::unique_ptr<transport::DealerSocket>& out);
  void rebuild_poller();
  Status follow_addresses();

  // Immutable.
  const WorkerSettings settings;
  SystemClock clock;

  // Owned by the socket thread.
  transport::Context context;
  std::vector<Connection> connections;  // by link
  transport::Poller poller;
  HandlerThreads handlers;
  WorkerCore core;

  // Any thread.
  std::atomic<std::uint64_t> handled{0}, done{0}, failed{0};
  std::atomic<std::uint32_t> welcomed{0};
  std::atomic<std::uint32_t> dispatchers{0};

  // Guarded by mutex.
  std::mutex mutex;
  std::condition_variable changed;
  bool want_drain = false;
  bool drained = false;
  bool want_stop = false;  // the socket thread ends
  bool addresses_changed = false;

  std::unique_ptr<EndpointWatch> watch;
  std::thread socket_thread;
};

Worker::Worker(std::shared_ptr<State> state) : state_(std::move(state)) {}

// --- reading --------------------------------------------------------------------------------

void Worker::State::read_frames(std::size_t link) {
  for (int i = 0; i < kFramesPerTurnMax; ++i) {
    auto received = connections[link].socket->receive_pair();
    if (!received) return;
    auto frame = balancing::decode_frame(received->first.bytes, received->second.bytes);
    if (!frame.ok()) {
      settings.log.warning("bad frame from a dispatcher: " + frame.error().text(),
                           {{"endpoint", connections[link].endpoint}});
      continue;
    }
    core.on_frame(link, std::move(*frame), received->second.owner, clock.steady());
  }
}

// That may change: asked again with a new socket (keep_connected()).
void Worker::State::turned_away(std::size_t link, transport::Link how) {
  auto& connection = connections[link];
  if (!std::exchange(connection.turned_away, true)) {
    const char* why = how == transport::Link::kTurnedAway
                          ? "a dispatcher does not allow this key"
                          : "a dispatcher expects CURVE, or does not, or has another key than told";
    settings.log.error(std::string(why) + "; asking again every second",
                       {{"endpoint", connection.endpoint},
                        {"own_key", settings.keys ? settings.keys->public_key : "none"}});
  }
  connection.socket.reset();
  connection.retry_at = clock.steady() + kConnectRetry;
}

void Worker::State::read_links(std::size_t link) {
  for (const auto event : connections[link].socket->take_links()) {
    if (event == transport::Link::kTurnedAway || event == transport::Link::kMismatch) {
      return turned_away(link, event);
    }
    if (event == transport::Link::kDisconnected || event == transport::Link::kNeverMade) {
      connections[link].connected = false;
      connections[link].apart_since = clock.steady();
      core.on_disconnected(link, clock.steady());
      continue;
    }
    connections[link].turned_away = false;
    connections[link].connected = true;
    // What the old connection still delivered must be known before HELLO says what is held.
    read_frames(link);
    core.on_connected(link, clock.steady());
  }
}

// What the handler threads have to say.
void Worker::State::read_news() {
  auto news = handlers.take_news();
  for (auto& [job, call] : news.step_calls) core.call_step(job, std::move(call), clock.steady());
  const UtcTime now = clock.utc();
  std::uint64_t all = 0;
  std::uint64_t ended_well = 0;
  std::uint64_t ended_badly = 0;
  for (const auto& each : news.ended) {
    all += each.jobs.count;
    if (each.outcome == nullptr) {
      core.on_done(each.jobs, each.took);
      ended_well += each.jobs.count;
      continue;
    }
    core.on_outcome(each.jobs.first, *each.outcome, each.took, now);
    if (each.outcome->kind() == Outcome::Kind::kDone) {
      ++ended_well;
    } else if (each.outcome->kind() != Outcome::Kind::kSnooze) {
      ++ended_badly;
    }
  }
  handled.fetch_add(all, std::memory_order_relaxed);
  done.fetch_add(ended_well, std::memory_order_relaxed);
  failed.fetch_add(ended_badly, std::memory_order_relaxed);
  for (const std::uint64_t job : handlers.watch_timeouts()) {
    core.on_outcome(
        job,
        retry("timeout: no outcome within " + std::to_string(settings.timeout.count()) + " ms"),
        settings.timeout, clock.utc());
  }
}

// --- connections ----------------------------------------------------------------------------

Status Worker::State::connect(const std::string& endpoint, const std::string& configured,
                              std::unique_ptr<transport::DealerSocket>& out) {
  try {
    auto options = dealer_options();
    if (const auto& keys = settings.keys) {
      const auto server = keys->servers.find(configured);
      if (server != keys->servers.end()) {
        options.curve_client = {keys->public_key, keys->secret_key, server->second};
      }
    }
    auto socket = std::make_unique<transport::DealerSocket>(context, options);
    DRAY_TRY(socket->watch_links());
    DRAY_TRY(socket->connect(endpoint));
    out = std::move(socket);
    return {};
  } catch (const std::exception& exception) {  // no descriptor is left
    return Error{ErrorCode::kIo, std::string("no socket: ") + exception.what(), endpoint, 0};
  }
}

void Worker::State::rebuild_poller() {
  poller = {};
  std::uint32_t open = 0;
  for (auto& each : connections) {
    if (each.socket == nullptr) continue;
    poller.add(*each.socket);
    ++open;
  }
  poller.add(handlers.wake_up());
  dispatchers = open;
}

// One connection for each address there is.
Status Worker::State::follow_addresses() {
  auto wanted = watch->addresses();
  const auto now = clock.steady();
  for (std::size_t link = 0; link < connections.size(); ++link) {
    auto& each = connections[link];
    if (each.endpoint.empty() || each.retired) continue;
    // Of another endpoint now: another key, perhaps.
    const auto found = wanted.find(each.endpoint);
    if (found != wanted.end() && found->second == each.configured) {
      wanted.erase(found);
      continue;
    }
    each.retired = true;
    core.retire_link(link, now);
  }
  Status status;
  for (const auto& [endpoint, configured] : wanted) {
    std::unique_ptr<transport::DealerSocket> socket;
    if (const Status connected = connect(endpoint, configured, socket); !connected.ok()) {
      settings.log.error(connected.error().text());
      status = connected;  // it is tried again: keep_connected()
    }
    const std::size_t link = core.add_link(now);
    if (link == connections.size()) connections.emplace_back();
    connections[link] = {endpoint, configured, std::move(socket), false, false, false, now, {}};
  }
  rebuild_poller();
  return status;
}

// Connects anew what has no socket, or has one that ZeroMQ gave up without a word: after a
// handshake with a side that was about to change, or to end.
void Worker::State::keep_connected(SteadyTime now) {
  bool remade = false;
  for (auto& connection : connections) {
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
    const Status connected = connect(connection.endpoint, connection.configured, connection.socket);
    if (!connected.ok()) settings.log.error(connected.error().text());
    remade = true;
  }
  if (remade) rebuild_poller();
}

// --- what the core wants --------------------------------------------------------------------

void Worker::State::send(const std::vector<WorkerCore::Send>& sends) {
  for (const auto& each : sends) {
    // A frame that cannot go is not lost: results are said again after the next WELCOME, and the
    // rest is made anew.
    auto& socket = connections[each.link].socket;
    if (socket == nullptr || socket->send(each.frame) != transport::Sent::kSent) {
      core.on_disconnected(each.link, clock.steady());
    }
  }
}

void Worker::State::perform() {
  auto actions = core.take_actions(clock.steady());
  handlers.give(std::move(actions.start));
  if (!actions.cancel.empty()) {
    const auto returned = handlers.take_back(actions.cancel);
    for (const auto& jobs : returned) core.on_returned(jobs);
    if (!returned.empty()) handlers.wake_up().wake();
  }
  for (const auto& [job, reply] : actions.stepped) handlers.answer(job, reply);
  for (const auto& problem : actions.problems) settings.log.warning(problem);
  send(actions.sends);
  for (const auto link : actions.close) connections[link] = {};
  for (const auto link : actions.reconnect) {
    auto& connection = connections[link];
    if (connection.endpoint.empty()) continue;  // closed meanwhile
    settings.log.warning("a dispatcher is silent for a lease: connecting anew",
                         {{"endpoint", connection.endpoint}});
    connection.socket.reset();
    connection.retry_at = {};
  }
  if (!actions.close.empty()) rebuild_poller();
  keep_connected(clock.steady());
}

void Worker::State::turn(bool addresses_moved) {
  if (addresses_moved) (void)follow_addresses();
  std::uint32_t links_welcomed = 0;
  for (std::size_t link = 0; link < connections.size(); ++link) {
    if (connections[link].socket == nullptr) continue;
    if (connections[link].socket->has_links()) read_links(link);
    if (connections[link].socket == nullptr) {
      rebuild_poller();
      continue;
    }
    if (connections[link].socket->has_frames()) read_frames(link);
    links_welcomed += core.welcomed(link) ? 1U : 0U;
  }
  welcomed = links_welcomed;
  handlers.set_pace(core.jobs_at_once(), core.tells_together());
  read_news();
  core.tick(clock.steady());
  perform();
}

void Worker::State::run() {
  for (;;) {
    const auto now = clock.steady();
    const bool kept = core.held() > 0 && (core.jobs_at_once() > 1 || core.tells_together());
    const auto wait =
        std::min<std::chrono::nanoseconds>(core.next_deadline(now) - now, kept ? kTickKept : kTick);
    poller.wait(std::max(std::chrono::ceil<Milliseconds>(wait), Milliseconds(0)));
    bool addresses_moved = false;
    bool drain = false;
    bool stop = false;
    {
      const std::lock_guard lock(mutex);
      addresses_moved = std::exchange(addresses_changed, false);
      drain = want_drain;
      stop = want_stop;
    }
    if (drain || stop) core.drain();  // what did not start goes back
    turn(addresses_moved && !stop);
    if (stop) {
      handlers.ask_to_stop();
      if (handlers.all_ended()) return turn(false);  // what they said last
    }
    const std::lock_guard lock(mutex);
    if (core.drained() && !drained) {
      drained = true;
      changed.notify_all();
    }
  }
}

// --- Worker ---------------------------------------------------------------------------------

Result<std::unique_ptr<Worker>> Worker::start(WorkerSettings settings, ConsumerFactory factory) {
  if (auto fault = settings_fault(settings)) {
    return Error{ErrorCode::kInvalid, std::move(*fault), settings.name, 0};
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
    if (auto added = state->handlers.add(); !added.ok()) return added.error();
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
    alive->handlers.wake_up().wake();
  });
  state->watch->start();
  DRAY_TRY(state->follow_addresses());
  state->socket_thread = std::thread([state] {
    name_thread("dray-worker");
    take_slice(Slice::kShort);
    state->run();
  });
  return worker;
}

bool Worker::drain(Milliseconds deadline) {
  auto& state = *state_;
  std::unique_lock lock(state.mutex);
  state.want_drain = true;
  state.handlers.wake_up().wake();
  return state.changed.wait_until(lock, deadline_in(state.clock.steady(), deadline),
                                  [&] { return state.drained; });
}

void Worker::stop() {
  auto& state = *state_;
  if (state.watch != nullptr) state.watch->stop();
  {
    const std::lock_guard lock(state.mutex);
    state.want_stop = true;
  }
  state.handlers.close();
  state.handlers.wake_up().wake();
  if (state.socket_thread.joinable()) state.socket_thread.join();
  state.handlers.stop();
}

Worker::~Worker() {
  stop();
}

WorkerCounters Worker::counters() const {
  const auto& state = *state_;
  return {state.handled,  state.done,       state.failed, state.handlers.written_off(),
          state.welcomed, state.dispatchers};
}

}  // namespace dray
