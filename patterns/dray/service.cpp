// Service: answers requests on one thread, the socket's own, or on several.
#include <atomic>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>
#include <unordered_map>

#include "dray/call_frames.hpp"
#include "dray/plain_link.hpp"
#include "dray/request_reply.hpp"
#include "dray/thread_traits.hpp"
#include "dray/transport/socket.hpp"

namespace dray {
namespace {

constexpr int kServiceFramesMax = 256;  // of a peer, either way
constexpr int kRequestsPerTurn = 1'000;
constexpr int kAnswersPerTurn = 64;
constexpr auto kAnsweringTurn = std::chrono::milliseconds(1);
constexpr std::size_t kReplyBytesMax = (64U << 20) - 256;  // a frame has 64 MiB
constexpr auto kServiceTurnMax = std::chrono::milliseconds(250);
constexpr auto kHeldTurn = std::chrono::milliseconds(2);  // room at a client is not announced

}  // namespace

struct BytesService::State {
  struct Request {
    std::string peer;
    std::uint64_t id = 0;
    SteadyTime deadline{};
    std::string body;
  };
  struct Reply {
    std::string peer;
    std::string frame;
    SteadyTime deadline{};  // of its call
  };

  State(const std::vector<std::string>& endpoints, Function function_in,
        const ServiceOptions& options_in)
      : options(options_in),
        function(std::move(function_in)),
        ground(options.context, options.keys, true, options.log),
        links(options.log, true) {
    transport::SocketOptions wanted;
    wanted.send_frames_max = wanted.receive_frames_max = kServiceFramesMax;
    ground.secure(wanted);
    socket = std::make_unique<transport::RouterSocket>(ground.context(), wanted);
    plain::attach(*socket, endpoints, true);
    bound = socket->bound_endpoint();
    poller.add(*socket);
    poller.add(wake_up);
  }

  void run();
  void work();
  void take(transport::RouterSocket::Received received);
  Request next();
  bool answer_some();
  void answer(Request request);
  Result<std::string> call(const Request& request);
  void send_replies();
  void reply(Reply ready);
  void retry_held(SteadyTime now);
  void refuse(const Request& request, const Error& error);
  bool ends(SteadyTime now);

  const ServiceOptions options;
  const Function function;
  SystemClock clock;
  plain::Ground ground;
  std::string bound;

  // Owned by the socket's thread.
  std::unique_ptr<transport::RouterSocket> socket;
  plain::Links links;
  transport::Poller poller;
  // Answers for which their client had no room, by client.
  struct Line {
    std::deque<Reply> replies;
    std::size_t bytes = 0;
  };
  std::unordered_map<std::string, Line> held;
  std::size_t held_bytes = 0;

  transport::WakeUp wake_up;
  std::atomic<std::uint64_t> requests{0}, answered{0}, failed{0}, skipped{0}, refused{0},
      malformed{0}, dropped{0};
  std::atomic<std::uint32_t> peers{0};
  std::thread thread;
  std::vector<std::thread> workers;  // with more than one thread

  // Guarded by mutex.
  mutable std::mutex mutex;
  std::condition_variable work_there;
  std::deque<Request> waiting;
  std::size_t waiting_bytes = 0;  // of their bodies
  std::vector<Reply> replies;
  std::size_t running = 0;
  bool stopping = false;
  bool over = false;  // nothing is begun any more
  SteadyTime stop_by{};
};

// What finds no room at its client waits for it, as long as it is wanted. A client may have as much
// waiting as is left for all others, so that none uses up what is kept for them.
void BytesService::State::reply(Reply ready) {
  const auto mine = held.find(ready.peer);
  if (mine == held.end() && socket->send(ready.peer, ready.frame) != transport::Sent::kFull) return;
  const std::size_t size = ready.frame.size();
  const std::size_t own_bytes = mine == held.end() ? 0 : mine->second.bytes;
  if (own_bytes + held_bytes + size > options.waiting_bytes_max && held_bytes > 0) {
    ++dropped;
    return;
  }
  auto& line = mine == held.end() ? held[ready.peer] : mine->second;
  line.replies.push_back(std::move(ready));
  line.bytes += size;
  held_bytes += size;
}

// In order, until the client is full again: what one takes too slowly costs the others no look.
void BytesService::State::retry_held(SteadyTime now) {
  for (auto line = held.begin(); line != held.end();) {
    auto& [replies_left, bytes] = line->second;
    for (; !replies_left.empty(); replies_left.pop_front()) {
      const auto& first = replies_left.front();
      const bool late = first.deadline <= now;
      if (late) ++dropped;
      if (!late && socket->send(first.peer, first.frame) == transport::Sent::kFull) break;
      bytes -= first.frame.size();
      held_bytes -= first.frame.size();
    }
    line = replies_left.empty() ? held.erase(line) : std::next(line);
  }
}

void BytesService::State::refuse(const Request& request, const Error& error) {
  ++refused;
  reply({request.peer, plain::encode_failure(request.id, error), request.deadline});
}

void BytesService::State::take(transport::RouterSocket::Received received) {
  auto frame = plain::decode_call(received.frame.bytes);
  if (!frame ||
      (frame->kind != plain::CallKind::kRequest && frame->kind != plain::CallKind::kCancel)) {
    ++malformed;
    return;
  }
  if (frame->kind == plain::CallKind::kCancel) {
    const std::lock_guard lock(mutex);
    skipped += std::erase_if(waiting, [&](const Request& each) {
      const bool meant = each.id == frame->id && each.peer == received.peer;
      if (meant) waiting_bytes -= each.body.size();
      return meant;
    });
    return;
  }
  ++requests;
  const auto limit = std::min<std::uint64_t>(frame->timeout_ms, 100ULL * 365 * 86'400'000);
  Request request{std::move(received.peer), frame->id,
                  clock.steady() + Milliseconds(static_cast<std::int64_t>(limit)),
                  std::move(frame->body)};
  if (!ground.allows(received.user)) {
    return refuse(request, Error{ErrorCode::kClosed, "this key is not allowed any more", "", 0});
  }
  std::unique_lock lock(mutex);
  if (stopping) {
    lock.unlock();
    return refuse(request, Error{ErrorCode::kClosed, "the service ends", "", 0});
  }
  const bool full =
      waiting.size() >= options.waiting_max ||
      (!waiting.empty() && waiting_bytes + request.body.size() > options.waiting_bytes_max);
  if (full) {
    const auto count = waiting.size();
    lock.unlock();
    return refuse(request, Error{ErrorCode::kFull,
                                 std::to_string(count) + " requests wait here already", "", 0});
  }
  waiting_bytes += request.body.size();
  waiting.push_back(std::move(request));
  if (options.threads > 1) work_there.notify_one();
}

Result<std::string> BytesService::State::call(const Request& request) {
  try {
    return function(request.body);
  } catch (const std::exception& exception) {
    return Error{ErrorCode::kUnknown, exception.what(), "", 0};
  } catch (...) {
    return Error{ErrorCode::kUnknown, "the service failed", "", 0};
  }
}

// On the socket's thread: at once. On another one: by way of it.
void BytesService::State::answer(Request request) {
  if (clock.steady() >= request.deadline) {
    ++skipped;
    return;
  }
  auto result = call(request);
  if (result.ok() && result->size() > kReplyBytesMax) {
    result = Error{ErrorCode::kInvalid,
                   "the reply has " + std::to_string(result->size()) + " bytes; at most " +
                       std::to_string(kReplyBytesMax) + " can be sent",
                   "", 0};
  }
  if (!result.ok()) ++failed;
  ++answered;
  std::string frame = result.ok() ? plain::encode_reply(request.id, *result)
                                  : plain::encode_failure(request.id, result.error());
  Reply ready{std::move(request.peer), std::move(frame), request.deadline};
  if (options.threads <= 1) return reply(std::move(ready));
  bool wake = false;
  {
    const std::lock_guard lock(mutex);
    wake = replies.empty();
    replies.push_back(std::move(ready));
  }
  if (wake) wake_up.wake();
}

// REQUIRES: mutex is held, something waits.
BytesService::State::Request BytesService::State::next() {
  Request request = std::move(waiting.front());
  waiting.pop_front();
  waiting_bytes -= request.body.size();
  return request;
}

// One of several threads.
void BytesService::State::work() {
  std::unique_lock lock(mutex);
  for (;;) {
    work_there.wait(lock, [&] { return over || !waiting.empty(); });
    if (over) return;
    Request request = next();
    ++running;
    lock.unlock();
    answer(std::move(request));
    lock.lock();
    if (--running == 0 && stopping) wake_up.wake();
  }
}

void BytesService::State::send_replies() {
  std::vector<Reply> ready;
  {
    const std::lock_guard lock(mutex);
    ready.swap(replies);
  }
  for (auto& each : ready) reply(std::move(each));
}

// What waits was answered, or the time for it is over.
bool BytesService::State::ends(SteadyTime now) {
  std::deque<Request> left;
  {
    const std::lock_guard lock(mutex);
    if (!stopping) return false;
    const bool busy = !waiting.empty() || running > 0 || !replies.empty() || !held.empty();
    if (busy && now < stop_by) return false;
    over = true;
    left.swap(waiting);
  }
  for (const auto& each : left) {
    refuse(each, Error{ErrorCode::kClosed, "the service ended before it was begun", "", 0});
  }
  work_there.notify_all();
  return true;
}

// On the socket's thread. False if nothing waits.
bool BytesService::State::answer_some() {
  // Not for long: cancellations and the end of the service wait in between.
  const auto until = clock.steady() + kAnsweringTurn;
  for (int i = 0; i < kAnswersPerTurn; ++i) {
    if (i > 0 && clock.steady() >= until) return true;
    std::unique_lock lock(mutex);
    if (waiting.empty()) return i > 0;
    Request request = next();
    lock.unlock();
    answer(std::move(request));
  }
  return true;
}

void BytesService::State::run() {
  for (;;) {
    const auto now = clock.steady();
    if (!held.empty()) retry_held(now);
    send_replies();
    // All that is there: a cancellation may lie behind its request.
    int taken = 0;
    for (; socket->has_frames() && taken < kRequestsPerTurn; ++taken) {
      auto received = socket->receive();
      if (!received) break;
      take(std::move(*received));
    }
    if (socket->has_links()) {
      links.take(*socket, now);
      peers = links.peers();
    }
    if (ends(now)) return;
    if (options.threads <= 1 && answer_some()) continue;
    if (taken == kRequestsPerTurn) continue;
    std::chrono::nanoseconds most = held.empty() ? std::chrono::nanoseconds(kServiceTurnMax)
                                                 : std::chrono::nanoseconds(kHeldTurn);
    {
      const std::lock_guard lock(mutex);
      if (stopping) most = std::min(most, std::chrono::nanoseconds(stop_by - now));
    }
    poller.wait(std::max<std::chrono::nanoseconds>(most, {}));
  }
}

BytesService::BytesService(const std::vector<std::string>& endpoints, Function function,
                           const ServiceOptions& options)
    : state_(std::make_unique<State>(endpoints, std::move(function), options)) {
  auto* state = state_.get();
  state->thread = std::thread([state] {
    name_thread("dray-service");
    state->run();
  });
  if (options.threads <= 1) return;
  for (std::uint32_t i = 0; i < options.threads; ++i) {
    state->workers.emplace_back([state] {
      name_thread("dray-service");
      state->work();
    });
  }
}

BytesService::~BytesService() {
  stop(state_->options.linger);
}

void BytesService::stop(Milliseconds deadline) {
  auto& state = *state_;
  {
    const std::lock_guard lock(state.mutex);
    if (!state.stopping) state.stop_by = plain::deadline_in(state.clock.steady(), deadline);
    state.stopping = true;
  }
  state.wake_up.wake();
  if (state.thread.joinable()) state.thread.join();
  for (auto& worker : state.workers) {
    if (worker.joinable()) worker.join();
  }
  if (!state.socket) return;
  // Of functions that ended after the deadline.
  state.send_replies();
  const auto left = std::chrono::ceil<Milliseconds>(state.stop_by - state.clock.steady());
  state.socket->set_linger(std::clamp(left, Milliseconds(100), Milliseconds(60'000)));
  state.socket.reset();  // clients go elsewhere
}

ServiceCounters BytesService::counters() const {
  const auto& state = *state_;
  ServiceCounters out{state.requests, state.answered,  state.failed,  state.skipped,
                      state.refused,  state.malformed, state.dropped, 0,
                      state.peers};
  const std::lock_guard lock(state.mutex);
  out.waiting = state.waiting.size();
  return out;
}

std::string BytesService::bound_endpoint() const {
  return state_->bound;
}

}  // namespace dray
