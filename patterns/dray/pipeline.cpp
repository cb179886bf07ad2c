#include "dray/pipeline.hpp"

#include <atomic>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>

#include "dray/plain_link.hpp"
#include "dray/spool/bytes.hpp"
#include "dray/thread_traits.hpp"

namespace dray {
namespace {

// A frame: magic and version, then for each message its size (32 bits, little-endian) and its body.
constexpr std::string_view kMagic("DP\0", 3);
constexpr std::size_t kSizeBytes = 4;
constexpr std::size_t kCurveBytes = 256;  // more than CURVE adds to a frame
// A frame that is full; in front of a peer there are a few of them.
constexpr std::size_t kFrameBytes = 32U << 10;
constexpr std::size_t kFrameMessages = 1'024;
constexpr int kFramesPerPeer = 16;
constexpr std::int64_t kFrameBytesMax = 64LL << 20;
constexpr std::size_t kFramesKept = 8;
constexpr Milliseconds kPipelineTurn(100);
constexpr Milliseconds kPipelineIdle(1'000);  // refused keys are asked about again
constexpr int kFramesPerTurn = 1'000;

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

// Sockets to some endpoints: one for each that is connected to, one for all that are bound.
template <typename Socket>
class Sockets {
 public:
  struct Each {
    Each(std::vector<std::string> endpoints_in, const Log& log, bool bind)
        : endpoints(std::move(endpoints_in)), links(log, bind) {}
    std::vector<std::string> endpoints;
    std::unique_ptr<Socket> socket;
    plain::Links links;
  };

  Sockets(plain::Ground& ground, const std::vector<std::string>& endpoints, bool bind, Log log)
      : ground_(ground), bind_(bind), log_(std::move(log)) {
    if (endpoints.empty()) throw EndpointError("no endpoint is given");
    if (bind) {
      all_.emplace_back(endpoints, log_, true);
    } else {
      for (const auto& endpoint : endpoints) {
        all_.emplace_back(std::vector<std::string>{endpoint}, log_, false);
      }
    }
    for (auto& each : all_) open(each);
    bound_ = all_.front().socket->bound_endpoint();
  }

  // Takes what is new of connections; makes sockets anew that need it.
  void watch(SteadyTime now) {
    for (auto& each : all_) {
      each.links.take(*each.socket, now);
      if (!each.links.wants_anew(now)) continue;
      try {
        open(each);
      } catch (const std::exception& exception) {  // no descriptor is left: later
        log_.error(exception.what());
      }
    }
  }
  std::uint32_t peers() const {
    std::uint32_t count = 0;
    for (const auto& each : all_) count += each.links.peers();
    return count;
  }
  std::deque<Each>& all() { return all_; }
  // Of those that are tried, the first the next time.
  Each& next() { return all_[turn_++ % all_.size()]; }
  const std::string& bound() const { return bound_; }

 private:
  void open(Each& each) {
    auto fresh = std::make_unique<Socket>(ground_.context(), socket_options(ground_));
    if (bind_) each.socket.reset();  // its address
    plain::attach(*fresh, each.endpoints, bind_);
    each.socket = std::move(fresh);
  }

  plain::Ground& ground_;
  const bool bind_;
  Log log_;
  std::deque<Each> all_;
  std::size_t turn_ = 0;
  std::string bound_;
};

}  // namespace

struct BytesPush::State {
  State(const std::vector<std::string>& endpoints, const PipelineOptions& options_in)
      : options(options_in),
        ground(options.context, options.keys, options.bind, options.log),
        sockets(ground, endpoints, options.bind, options.log) {}

  void run();
  bool take(Batch& batch);
  bool send(const Batch& batch);
  bool has_room(std::size_t body) const;
  void add(std::string_view body);

  const PipelineOptions options;
  SystemClock clock;
  plain::Ground ground;
  Sockets<transport::PushSocket> sockets;  // of the thread

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

// In turn to those that have room.
bool BytesPush::State::send(const Batch& batch) {
  for (std::size_t i = 0; i < sockets.all().size(); ++i) {
    if (sockets.next().socket->send(batch.bytes) == transport::Sent::kSent) return true;
  }
  return false;
}

void BytesPush::State::run() {
  Batch batch;
  bool again = false;  // the batch in hand did not go
  for (;;) {
    const auto now = clock.steady();
    sockets.watch(now);
    peers = sockets.peers();
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
      for (auto& each : sockets.all()) poller.add(*each.socket);  // for its links
      poller.add(wake_up);
      poller.wait(kPipelineIdle);
      continue;
    }
    again = !send(batch);
    if (!again) {
      sent.fetch_add(batch.messages, std::memory_order_relaxed);
      frames.fetch_add(1, std::memory_order_relaxed);
      continue;
    }
    // No peer, or none with room.
    transport::Poller poller;
    for (auto& each : sockets.all()) poller.add_for_sending(*each.socket);
    poller.add(wake_up);
    poller.wait(kPipelineTurn);
  }
  const std::lock_guard lock(mutex);
  if (again) queue.push_front(std::move(batch));
  std::uint64_t left = 0;
  for (const auto& each : queue) left += each.messages;
  dropped += left;
  flushed = left == 0;
  queue.clear();
  waiting = waiting_bytes = 0;
  const auto linger = std::chrono::ceil<Milliseconds>(stop_by - clock.steady());
  for (auto& each : sockets.all()) {
    each.socket->set_linger(std::clamp(linger, Milliseconds(0), Milliseconds(60'000)));
  }
}

BytesPush::BytesPush(const std::vector<std::string>& endpoints, const PipelineOptions& options)
    : state_(std::make_unique<State>(endpoints, options)) {
  state_->thread = std::thread([state = state_.get()] {
    name_thread("dray-push");
    state->run();
  });
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
  const bool possible = body.size() + kMagic.size() + kSizeBytes + kCurveBytes <=
                        static_cast<std::size_t>(kFrameBytesMax);
  bool wake = false;
  {
    std::unique_lock lock(state.mutex);
    if (!state.has_room(body.size()) && state.options.wait.count() > 0) {
      const auto deadline = plain::deadline_in(state.clock.steady(), state.options.wait);
      state.room.wait_until(lock, deadline,
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
    if (!state.stopping) state.stop_by = plain::deadline_in(state.clock.steady(), deadline);
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
  return state_->sockets.bound();
}

struct BytesPull::State {
  State(const std::vector<std::string>& endpoints, const PipelineOptions& options_in)
      : options(options_in),
        ground(options.context, options.keys, !options.bind, options.log),
        sockets(ground, endpoints, !options.bind, options.log) {}
  std::optional<std::string_view> next();
  bool receive(transport::PullSocket& socket);

  const PipelineOptions options;
  SystemClock clock;
  plain::Ground ground;
  Sockets<transport::PullSocket> sockets;
  transport::Frame frame;
  std::string_view rest;  // of it: what was not pulled
  PullCounters counters;
};

BytesPull::BytesPull(const std::vector<std::string>& endpoints, const PipelineOptions& options)
    : state_(std::make_unique<State>(endpoints, options)) {}
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
bool BytesPull::State::receive(transport::PullSocket& socket) {
  auto received = socket.receive_from();
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
  const auto deadline = plain::deadline_in(state.clock.steady(), timeout);
  for (;;) {
    auto& sockets = state.sockets;
    for (std::size_t i = 0; i < sockets.all().size(); ++i) {
      auto& socket = *sockets.next().socket;
      for (int frames = 0; frames < kFramesPerTurn && state.receive(socket); ++frames) {
        if (auto body = state.next()) {
          ++state.counters.pulled;
          return body;
        }
      }
    }
    const auto now = state.clock.steady();
    sockets.watch(now);
    state.counters.peers = sockets.peers();
    const auto left = std::chrono::ceil<Milliseconds>(deadline - now);
    if (left.count() <= 0) return std::nullopt;
    transport::Poller poller;
    for (auto& each : sockets.all()) poller.add(*each.socket);
    poller.wait(std::min(left, kPipelineIdle));
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
  return state_->sockets.bound();
}

}  // namespace dray
