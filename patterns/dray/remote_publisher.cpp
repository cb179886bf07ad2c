#include "dray/remote_publisher.hpp"

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>

#include "dray/balancing/deposit_core.hpp"
#include "dray/thread_traits.hpp"
#include "dray/transport/curve.hpp"
#include "dray/transport/socket.hpp"

namespace dray {
namespace {

constexpr std::size_t kEnvelopeBytesMax = (16U << 20) + (1U << 19);  // PROTOCOL.md, "Frames"
constexpr int kFramesReadMax = 1'000;
constexpr auto kTryAgainAfter = std::chrono::seconds(1);  // after a refusal by key
constexpr auto kGivenUpAfter = std::chrono::seconds(5);   // without a connection

struct Handed {
  std::string envelope;
  std::optional<Durability> durability;
  ReceiptCallback done;
};

}  // namespace

struct RemotePublisher::State {
  explicit State(RemotePublisherSettings settings_in)
      : settings(std::move(settings_in)), core(uuid_v4(), settings.name, settings.timeout) {}

  Status open_socket();
  void run();
  void read_links();
  void read_frames();
  bool perform();
  std::optional<Error> refusal(std::size_t bytes) const;

  const RemotePublisherSettings settings;
  SystemClock clock;

  // Owned by the thread.
  transport::Context context;
  std::unique_ptr<transport::DealerSocket> socket;
  balancing::DepositCore core;
  std::optional<SteadyTime> anew_at;
  std::string last_problem;

  transport::WakeUp wake_up;
  std::atomic<bool> connected{false};
  std::thread thread;

  // Guarded by mutex.
  std::mutex mutex;
  std::condition_variable ended;
  std::vector<Handed> inbox;
  std::size_t pending = 0;  // handed in, and not answered
  std::size_t pending_bytes = 0;
  bool closing = false;  // takes nothing any more
  bool stopping = false;
};

RemotePublisher::RemotePublisher(std::unique_ptr<State> state) : state_(std::move(state)) {}

Result<std::unique_ptr<RemotePublisher>> RemotePublisher::connect(
    RemotePublisherSettings settings) {
  if (settings.name.size() > 256) {
    return Error{ErrorCode::kInvalid, "the name has more than 256 bytes", settings.endpoint, 0};
  }
  if (const auto& keys = settings.keys) {
    for (const auto& key : {keys->public_key, keys->secret_key, keys->server_key}) {
      if (transport::is_curve_key(key)) continue;
      return Error{ErrorCode::kInvalid, "a key has 40 characters of Z85; make keys by dray keygen",
                   settings.endpoint, 0};
    }
  }
  auto state = std::make_unique<State>(std::move(settings));
  try {
    DRAY_TRY(state->open_socket());
  } catch (const std::exception& exception) {
    return Error{ErrorCode::kIo, std::string("no socket: ") + exception.what(),
                 state->settings.endpoint, 0};
  }
  auto* raw = state.get();
  raw->thread = std::thread([raw] {
    name_thread("dray-publish");
    raw->run();
  });
  return std::unique_ptr<RemotePublisher>(new RemotePublisher(std::move(state)));
}

Status RemotePublisher::State::open_socket() {
  transport::SocketOptions options;
  if (const auto& keys = settings.keys) {
    options.curve_client = {keys->public_key, keys->secret_key, keys->server_key};
  }
  auto fresh = std::make_unique<transport::DealerSocket>(context, options);
  DRAY_TRY(fresh->watch_links());
  DRAY_TRY(fresh->connect(settings.endpoint));
  socket = std::move(fresh);
  return {};
}

void RemotePublisher::State::run() {
  bool left = false;
  for (;;) {
    transport::Poller poller;
    if (socket) poller.add(*socket);
    poller.add(wake_up);
    const auto wait = core.next_deadline(clock.steady()) - clock.steady();
    poller.wait(std::max(std::chrono::ceil<Milliseconds>(wait), Milliseconds(0)));
    std::vector<Handed> handed;
    bool stop = false;
    {
      const std::lock_guard lock(mutex);
      handed.swap(inbox);
      stop = stopping;
    }
    const auto now = clock.steady();
    for (auto& each : handed) {
      core.publish(std::move(each.envelope), each.durability, std::move(each.done), now);
    }
    read_links();
    read_frames();
    core.tick(now);
    if (stop && !left) {
      left = true;
      core.close();
      core.leave();
    }
    const bool reconnect = perform();
    if (left) break;
    const bool anew = anew_at && clock.steady() >= *anew_at;
    if (!anew && (!reconnect || !socket)) continue;
    anew_at.reset();
    core.on_disconnected();
    socket.reset();
    std::string why;
    try {
      const auto opened = open_socket();
      if (opened.ok()) continue;
      why = opened.error().text();
    } catch (const std::exception& exception) {  // no descriptor is left
      why = std::string("no socket: ") + exception.what();
    }
    if (std::exchange(last_problem, why) != why) {
      settings.log.error(why, {{"endpoint", settings.endpoint}});
    }
    anew_at = clock.steady() + kTryAgainAfter;
  }
  connected = false;
  // A BYE that is on its way is given the socket's linger.
  socket.reset();
}

void RemotePublisher::State::read_links() {
  if (!socket || !socket->has_links()) return;
  for (const auto link : socket->take_links()) {
    switch (link) {
      case transport::Link::kConnected:
        anew_at.reset();
        core.on_connected(clock.steady());
        break;
      case transport::Link::kDisconnected:
      case transport::Link::kNeverMade:
        core.on_disconnected();
        // ZeroMQ connects again by itself, unless it gave up without a word (a handshake with
        // something that is no dispatcher).
        if (!anew_at) anew_at = clock.steady() + kGivenUpAfter;
        break;
      case transport::Link::kTurnedAway:
      case transport::Link::kMismatch:
        if (const char* what = link == transport::Link::kTurnedAway
                                   ? "the spool does not allow this key"
                                   : "only one side uses CURVE, or the spool has another key";
            last_problem != what) {
          last_problem = what;
          settings.log.warning(last_problem, {{"endpoint", settings.endpoint}});
        }
        if (!anew_at) anew_at = clock.steady() + kTryAgainAfter;
        break;
    }
  }
}

void RemotePublisher::State::read_frames() {
  for (int i = 0; socket && socket->has_frames() && i < kFramesReadMax; ++i) {
    const auto received = socket->receive();
    if (!received) return;
    const auto frame = balancing::decode_frame(received->bytes);
    if (frame.ok()) {
      core.on_frame(*frame, clock.steady());
    } else {
      settings.log.warning("bad frame from a spool: " + frame.error().text(),
                           {{"endpoint", settings.endpoint}});
    }
  }
}

// True: connect anew.
bool RemotePublisher::State::perform() {
  auto actions = core.take_actions(clock.steady());
  bool broken = actions.reconnect;
  for (const auto& frame : actions.frames) {
    // What does not go is sent again by the next session.
    if (!socket || broken || socket->send(frame) != transport::Sent::kSent) broken = true;
  }
  connected = core.welcomed();
  if (core.welcomed()) last_problem.clear();
  for (const auto& problem : actions.problems) {
    if (std::exchange(last_problem, problem) == problem) continue;
    settings.log.warning(problem, {{"endpoint", settings.endpoint}});
  }
  for (auto& answer : actions.answers) answer.done(std::move(answer.receipt));
  return broken;
}

void RemotePublisher::publish_draft(Draft draft, ReceiptCallback done) {
  auto& state = *state_;
  if (!done) done = [](const Result<Receipt>&) {};
  if (const auto checked = check_draft(draft, state.settings.limits); !checked.ok()) {
    return done(checked.error());
  }
  const auto now = state.clock.utc();
  Handed handed{encode_envelope(draft, uuid_v7(now), now), draft.options.durability, nullptr};
  const std::size_t bytes = handed.envelope.size();
  if (bytes > kEnvelopeBytesMax) {
    return done(Error{ErrorCode::kInvalid,
                      "the message has " + std::to_string(bytes) +
                          " bytes with its headers; the protocol takes " +
                          std::to_string(kEnvelopeBytesMax),
                      "", 0});
  }
  std::unique_lock lock(state.mutex);
  if (auto refusal = state.refusal(bytes)) {
    lock.unlock();
    return done(std::move(*refusal));
  }
  handed.done = [&state, bytes, done = std::move(done)](Result<Receipt> receipt) {
    {
      const std::lock_guard inner(state.mutex);
      state.pending_bytes -= bytes;
      if (--state.pending == 0) state.ended.notify_all();
    }
    done(std::move(receipt));
  };
  ++state.pending;
  state.pending_bytes += bytes;
  const bool wake = state.inbox.empty();
  state.inbox.push_back(std::move(handed));
  lock.unlock();
  if (wake) state.wake_up.wake();
}

// REQUIRES: mutex is held.
std::optional<Error> RemotePublisher::State::refusal(std::size_t bytes) const {
  if (closing) return Error{ErrorCode::kClosed, "the publisher is stopped", settings.endpoint, 0};
  const bool full = pending >= settings.pending_max ||
                    (pending > 0 && pending_bytes + bytes > settings.pending_bytes_max);
  if (!full) return std::nullopt;
  return Error{ErrorCode::kFull,
               std::to_string(pending) +
                   " messages wait for this spool already; try again later, or raise pending_max",
               settings.endpoint, 0};
}

bool RemotePublisher::connected() const {
  return state_->connected;
}

bool RemotePublisher::stop(Milliseconds deadline) {
  auto& state = *state_;
  DRAY_ASSERT(std::this_thread::get_id() !=
              state.thread.get_id());  // not from a receipt's callback
  bool flushed = false;
  {
    std::unique_lock lock(state.mutex);
    state.closing = true;
    flushed = state.ended.wait_until(lock, deadline_in(state.clock.steady(), deadline),
                                     [&] { return state.pending == 0; });
    state.stopping = true;
  }
  state.wake_up.wake();
  if (state.thread.joinable()) state.thread.join();
  return flushed;
}

RemotePublisher::~RemotePublisher() {
  (void)stop(Milliseconds(0));
}

}  // namespace dray
