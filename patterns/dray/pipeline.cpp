#include "dray/pipeline.hpp"

#include <atomic>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>

#include "dray/plain_link.hpp"
#include "dray/spool/bytes.hpp"

namespace dray {
namespace {

// A frame: magic and version, then for each message its size (32 bits, little-endian) and its body.
constexpr std::string_view kMagic("DP\0", 3);
constexpr std::size_t kSizeBytes = 4;
// A frame that is full; in front of a peer there are a few of them.
constexpr std::size_t kFrameBytes = 32U << 10;
constexpr std::size_t kFrameMessages = 1'024;
constexpr int kFramesPerPeer = 16;
constexpr std::int64_t kFrameBytesMax = 64LL << 20;
constexpr std::size_t kFramesKept = 8;
constexpr int kTurnMs = 100;

transport::SocketOptions socket_options(const plain::Ground& ground) {
  transport::SocketOptions options;
  options.send_frames_max = kFramesPerPeer;
  options.receive_frames_max = kFramesPerPeer;
  options.frame_bytes_max = kFrameBytesMax;
  ground.secure(options);
  return options;
}

struct Batch {
  std::string bytes;
  std::size_t messages = 0;
};

}  // namespace

struct BytesPush::State {
  State(std::vector<std::string> endpoints_in, const PipelineOptions& options_in)
      : options(options_in),
        endpoints(std::move(endpoints_in)),
        ground(options.context, options.keys, options.bind, options.log),
        links(options.log, options.bind) {
    open();
  }

  void open() {
    socket.reset();
    socket = std::make_unique<transport::PushSocket>(ground.context(), socket_options(ground));
    plain::attach(*socket, endpoints, options.bind);
    if (bound.empty()) bound = socket->bound_endpoint();
  }
  void run();
  bool take(Batch& batch);
  bool has_room(std::size_t body) const;
  void add(std::string_view body);

  const PipelineOptions options;
  const std::vector<std::string> endpoints;
  std::string bound;  // the last of them, if it binds
  SystemClock clock;
  plain::Ground ground;

  // Owned by the thread.
  std::unique_ptr<transport::PushSocket> socket;
  plain::Links links;

  transport::WakeUp wake_up;
  std::atomic<std::uint32_t> peers{0};
  std::atomic<std::uint64_t> sent{0}, frames{0};
  std::thread thread;

  // Guarded by mutex.
  mutable std::mutex mutex;
  std::condition_variable room;
  std::deque<Batch> queue;
  std::vector<std::string> spare;  // memory of frames that went
  std::size_t waiting = 0;         // messages, those that are being sent included
  std::size_t waiting_bytes = 0;
  std::uint64_t pushed = 0, dropped = 0;
  bool idle = false;  // the thread waits to be woken
  bool stopping = false;
  SteadyTime stop_by{};
  bool flushed = true;
};

// Takes the oldest frame, full or not. False if there is none.
bool BytesPush::State::take(Batch& batch) {
  const std::lock_guard lock(mutex);
  if (batch.messages > 0) {  // that one went
    waiting -= batch.messages;
    waiting_bytes -= batch.bytes.size();
    room.notify_all();
    if (spare.size() < kFramesKept && batch.bytes.capacity() <= 2 * kFrameBytes) {
      batch.bytes.clear();
      spare.push_back(std::move(batch.bytes));
    }
    batch = {};
  }
  idle = queue.empty();
  if (idle) return false;
  batch = std::move(queue.front());
  queue.pop_front();
  return true;
}

void BytesPush::State::run() {
  Batch batch;
  bool again = false;  // the batch in hand did not go
  for (;;) {
    const auto now = clock.steady();
    links.take(*socket, now);
    peers = links.peers();
    if (links.wants_anew(now)) open();
    bool ends = false;
    bool late = false;
    {
      const std::lock_guard lock(mutex);
      ends = stopping;
      late = stopping && now >= stop_by;
    }
    if (late) break;
    if (!again && !take(batch)) {
      if (ends) break;
      transport::Poller poller;
      poller.add(*socket);  // for its links
      poller.add(wake_up);
      poller.wait(-1);
      wake_up.clear();
      continue;
    }
    again = socket->send(batch.bytes) != transport::Sent::kSent;
    if (!again) {
      sent.fetch_add(batch.messages, std::memory_order_relaxed);
      frames.fetch_add(1, std::memory_order_relaxed);
      continue;
    }
    // No peer, or none with room.
    transport::Poller poller;
    poller.add_for_sending(*socket);
    poller.add(wake_up);
    poller.wait(kTurnMs);
    wake_up.clear();
  }
  const std::lock_guard lock(mutex);
  if (again) queue.push_front(std::move(batch));
  std::uint64_t left = 0;
  for (const auto& each : queue) left += each.messages;
  dropped += left;
  flushed = left == 0;
  const auto linger = std::chrono::ceil<Milliseconds>(stop_by - clock.steady());
  socket->set_linger(std::max(linger, Milliseconds(0)));
}

BytesPush::BytesPush(std::vector<std::string> endpoints, const PipelineOptions& options)
    : state_(std::make_unique<State>(std::move(endpoints), options)) {
  state_->thread = std::thread([state = state_.get()] { state->run(); });
}

BytesPush::~BytesPush() {
  (void)stop(state_->options.linger);
}

// REQUIRES: mutex is held.
bool BytesPush::State::has_room(std::size_t body) const {
  return waiting < options.messages_max &&
         (waiting == 0 || waiting_bytes + body <= options.bytes_max);
}

// REQUIRES: mutex is held.
void BytesPush::State::add(std::string_view body) {
  const bool fits = !queue.empty() && queue.back().messages < kFrameMessages &&
                    queue.back().bytes.size() + body.size() + kSizeBytes <= kFrameBytes;
  if (!fits) {
    auto& fresh = queue.emplace_back();
    if (!spare.empty()) {
      fresh.bytes = std::move(spare.back());
      spare.pop_back();
    } else if (body.size() < kFrameBytes) {
      fresh.bytes.reserve(kFrameBytes);
    }
    fresh.bytes.append(kMagic);
    waiting_bytes += kMagic.size();
  }
  auto& bytes = queue.back().bytes;
  spool::put_le(bytes, static_cast<std::uint32_t>(body.size()));
  bytes.append(body);
  ++queue.back().messages;
  ++waiting;
  waiting_bytes += kSizeBytes + body.size();
}

bool BytesPush::push_bytes(std::string_view body) {
  auto& state = *state_;
  const bool possible =
      body.size() + kMagic.size() + kSizeBytes <= static_cast<std::size_t>(kFrameBytesMax);
  bool wake = false;
  {
    std::unique_lock lock(state.mutex);
    if (!state.has_room(body.size()) && state.options.wait.count() > 0) {
      state.room.wait_for(lock, state.options.wait,
                          [&] { return state.stopping || state.has_room(body.size()); });
    }
    if (state.stopping || !possible || !state.has_room(body.size())) {
      ++state.dropped;
      return false;
    }
    state.add(body);
    ++state.pushed;
    wake = std::exchange(state.idle, false);
  }
  if (wake) state.wake_up.wake();
  return true;
}

bool BytesPush::stop(Milliseconds deadline) {
  auto& state = *state_;
  {
    const std::lock_guard lock(state.mutex);
    if (!state.stopping) state.stop_by = state.clock.steady() + deadline;
    state.stopping = true;
  }
  state.room.notify_all();
  state.wake_up.wake();
  if (state.thread.joinable()) state.thread.join();
  return state.flushed;
}

PushCounters BytesPush::counters() const {
  const auto& state = *state_;
  const std::lock_guard lock(state.mutex);
  return {state.pushed, state.sent, state.frames, state.dropped, state.waiting, state.peers};
}

std::string BytesPush::bound_endpoint() const {
  return state_->bound;
}

struct BytesPull::State {
  State(std::vector<std::string> endpoints_in, const PipelineOptions& options_in)
      : options(options_in),
        endpoints(std::move(endpoints_in)),
        ground(options.context, options.keys, !options.bind, options.log),
        links(options.log, !options.bind) {
    open();
  }
  void open() {
    socket.reset();
    socket = std::make_unique<transport::PullSocket>(ground.context(), socket_options(ground));
    plain::attach(*socket, endpoints, !options.bind);
    if (bound.empty()) bound = socket->bound_endpoint();
  }
  std::optional<std::string_view> next();
  bool receive();

  const PipelineOptions options;
  const std::vector<std::string> endpoints;
  std::string bound;  // the last of them, if it binds
  SystemClock clock;
  plain::Ground ground;
  std::unique_ptr<transport::PullSocket> socket;
  plain::Links links;
  transport::Frame frame;
  std::string_view rest;  // of it: what was not pulled
  PullCounters counters;
};

BytesPull::BytesPull(std::vector<std::string> endpoints, const PipelineOptions& options)
    : state_(std::make_unique<State>(std::move(endpoints), options)) {}
BytesPull::~BytesPull() = default;

// The next message of the frame in hand.
std::optional<std::string_view> BytesPull::State::next() {
  if (rest.empty()) return std::nullopt;
  if (rest.size() >= kSizeBytes) {
    const std::size_t size = spool::get_le<std::uint32_t>(rest.data());
    if (size <= rest.size() - kSizeBytes) {
      const auto body = rest.substr(kSizeBytes, size);
      rest.remove_prefix(kSizeBytes + size);
      return body;
    }
  }
  ++counters.malformed;  // what is left of this frame is none of ours
  rest = {};
  return std::nullopt;
}

// False if there is no frame.
bool BytesPull::State::receive() {
  auto received = socket->receive_from();
  if (!received) return false;
  if (!ground.allows(received->user)) return true;  // its key was taken back
  frame = std::move(received->frame);
  rest = frame.bytes;
  if (rest.substr(0, kMagic.size()) == kMagic) {
    rest.remove_prefix(kMagic.size());
  } else {
    ++counters.malformed;
    rest = {};
  }
  return true;
}

std::optional<std::string_view> BytesPull::pull_bytes(Milliseconds timeout) {
  auto& state = *state_;
  if (auto body = state.next()) {
    ++state.counters.pulled;
    return body;
  }
  const auto deadline = state.clock.steady() + timeout;
  for (;;) {
    while (state.receive()) {
      if (auto body = state.next()) {
        ++state.counters.pulled;
        return body;
      }
    }
    const auto now = state.clock.steady();
    state.links.take(*state.socket, now);
    state.counters.peers = state.links.peers();
    if (state.links.wants_anew(now)) state.open();
    const auto left = std::chrono::ceil<Milliseconds>(deadline - now);
    if (left.count() <= 0) return std::nullopt;
    transport::Poller poller;
    poller.add(*state.socket);
    poller.wait(static_cast<int>(std::min(left, Milliseconds(1'000)).count()));
  }
}

void BytesPull::note_malformed() {
  --state_->counters.pulled;
  ++state_->counters.malformed;
}

PullCounters BytesPull::counters() const {
  return state_->counters;
}

std::string BytesPull::bound_endpoint() const {
  return state_->bound;
}

}  // namespace dray
