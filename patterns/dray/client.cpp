// Client: many calls over the connections to some services.
//
// The sockets have no thread of their own. Who waits for an answer leads: sends, receives and
// tells the others what came. So a call alone costs no change of threads. While only callbacks
// wait, the client's own thread leads.
#include <algorithm>
#include <array>
#include <cmath>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <set>
#include <thread>
#include <unordered_map>

#include "dray/call_frames.hpp"
#include "dray/plain_link.hpp"
#include "dray/request_reply.hpp"
#include "dray/thread_traits.hpp"
#include "dray/transport/socket.hpp"

namespace dray {
namespace {

// A few: what waits longer waits here, where its time-out ends it.
constexpr int kClientFramesMax = 64;
constexpr int kClientRequestsMax = 1'024;
constexpr int kRepliesPerTurn = 1'000;
constexpr std::size_t kRequestBytesMax = (64U << 20) - 256;  // a frame has 64 MiB
constexpr auto kIdle = std::chrono::milliseconds(1);
constexpr auto kIdleLook = std::chrono::seconds(5);    // at connections, while nobody calls
constexpr auto kProbeEvery = std::chrono::seconds(5);  // of a service that does not answer
constexpr auto kClientTurnMax = std::chrono::milliseconds(250);
constexpr auto kTurnUnsent = std::chrono::milliseconds(20);  // a failing send may hide a change

// Times, in buckets that are 1.1 times as wide as the one before.
class Times {
 public:
  void add(std::chrono::nanoseconds time) {
    const double us = std::max(1.0, static_cast<double>(time.count()) / 1'000);
    const auto bucket = static_cast<std::size_t>(std::log(us) / kStep);
    ++buckets_.at(std::min(bucket, kBuckets - 1));
    ++count_;
  }
  std::chrono::microseconds percentile(double share) const {
    if (count_ == 0) return {};
    const auto wanted = static_cast<std::uint64_t>(share * static_cast<double>(count_ - 1)) + 1;
    std::uint64_t seen = 0;
    std::size_t bucket = 0;
    while (bucket + 1 < kBuckets && (seen += buckets_.at(bucket)) < wanted) ++bucket;
    return std::chrono::microseconds(
        std::llround(std::exp((static_cast<double>(bucket) + 0.5) * kStep)));
  }

 private:
  static constexpr double kStep = 0.0953;  // log(1.1)
  static constexpr std::size_t kBuckets = 256;
  std::array<std::uint64_t, kBuckets> buckets_{};
  std::uint64_t count_ = 0;
};

const Error kCancelled{ErrorCode::kClosed, "the call was cancelled", "", 0};

}  // namespace

struct BytesClient::State {
  // Who waits on a thread of its own.
  struct Waiter {
    std::optional<Result<std::string>> result;
  };
  struct Call {
    CallId id = 0;
    std::string request;
    SteadyTime begun{}, deadline{};
    bool may_repeat = false;
    Waiter* waiter = nullptr;  // or
    BytesCallback done;
    std::optional<std::size_t> link;  // where it was sent
  };
  struct Link {
    Link(std::string endpoint_in, const Log& log)
        : endpoint(std::move(endpoint_in)), links(log, false) {}
    std::string endpoint;
    std::unique_ptr<transport::DealerSocket> socket;
    plain::Links links;
    bool inside = endpoint.rfind("inproc://", 0) == 0;  // no connection, no news of one
    std::size_t open = 0;
    // A call that it had timed out, and nothing was heard of it since: it may be gone without its
    // connection's end being seen, and is asked now and then only.
    bool silent = false;
    SteadyTime heard_at{}, probe_at{};
  };

  State(const std::vector<std::string>& endpoints, const ClientOptions& options_in)
      : options(options_in), ground(options.context, options.keys, false, options.log) {
    if (endpoints.empty()) throw EndpointError("no endpoint is given");
    for (const auto& endpoint : endpoints) {
      links.push_back(std::make_unique<Link>(endpoint, options.log));
      open(*links.back());
    }
  }

  void open(Link& link) {
    transport::SocketOptions socket;
    socket.send_frames_max = kClientRequestsMax;
    socket.receive_frames_max = kClientFramesMax;
    ground.secure(socket);
    auto fresh = std::make_unique<transport::DealerSocket>(ground.context(), socket);
    plain::attach(*fresh, {link.endpoint}, false);
    link.socket = std::move(fresh);
    poller.reset();
    links_changed = true;
  }

  Result<CallId> begin(std::string_view request, const CallOptions& call, Waiter* waiter,
                       BytesCallback done);
  void lead(std::unique_lock<std::mutex>& lock, const std::function<bool()>& enough);
  void turn();
  void close_waiters();
  void take_new();
  void tell_cancelled(std::size_t link, CallId id);
  bool flush();
  bool send(Call& call);
  void receive(std::size_t index, bool looked = true);
  void watch(std::size_t index, SteadyTime now);
  void expire(SteadyTime now);
  void wait(SteadyTime now);
  void end(std::unordered_map<CallId, Call>::iterator call, Result<std::string> result);
  void run();

  const ClientOptions options;
  SystemClock clock;
  plain::Ground ground;
  transport::WakeUp wake_up;

  // Of who leads.
  std::vector<std::unique_ptr<Link>> links;
  std::optional<transport::Poller> poller;
  bool for_sending = false;  // the poller waits for room, too
  std::unordered_map<CallId, Call> calls;
  std::deque<CallId> unsent;
  std::deque<std::pair<std::size_t, CallId>> cancels;  // to be said, by link
  std::set<std::pair<SteadyTime, CallId>> deadlines;
  SteadyTime led_until{}, watched_at{};
  bool flooded = false;  // there is more to receive
  bool ending = false;   // stopping, as it was seen
  bool links_changed = true;
  std::size_t turn_of = 0;  // among services with the same number of open calls

  mutable std::mutex mutex;
  std::condition_variable changed;  // for those who wait for an answer
  std::condition_variable wanted;   // for the thread
  // Guarded by mutex.
  std::vector<Call> added;
  std::vector<CallId> cancelled;
  std::deque<std::pair<BytesCallback, Result<std::string>>> finished;  // for the thread
  bool leading = false;
  std::size_t waiters = 0;
  std::size_t callbacks = 0;  // open calls that have one
  bool stopping = false;
  CallId last_id = 0;
  ClientCounters counters;
  Times times;

  std::thread thread;
};

Result<CallId> BytesClient::State::begin(std::string_view request, const CallOptions& call,
                                         Waiter* waiter, BytesCallback done) {
  if (stopping) return Error{ErrorCode::kClosed, "the client was closed", "", 0};
  if (request.size() > kRequestBytesMax) {
    return Error{ErrorCode::kInvalid,
                 "the request has " + std::to_string(request.size()) + " bytes; at most " +
                     std::to_string(kRequestBytesMax) + " can be sent",
                 "", 0};
  }
  if (counters.open >= options.open_max) {
    return Error{ErrorCode::kFull, std::to_string(counters.open) + " calls are open", "", 0};
  }
  Call fresh;
  fresh.id = ++last_id;
  fresh.request = request;
  fresh.begun = clock.steady();
  fresh.deadline = plain::deadline_in(fresh.begun, call.timeout);
  fresh.may_repeat = call.may_repeat;
  fresh.waiter = waiter;
  fresh.done = std::move(done);
  added.push_back(std::move(fresh));
  ++counters.calls;
  ++counters.open;
  return last_id;
}

Result<std::string> BytesClient::call_bytes(std::string_view request, const CallOptions& options) {
  auto& state = *state_;
  State::Waiter waiter;
  std::unique_lock lock(state.mutex);
  const auto id = state.begin(request, options, &waiter, nullptr);
  if (!id.ok()) return id.error();
  ++state.waiters;
  if (state.leading) state.wake_up.wake();
  while (!waiter.result) {
    if (state.leading) {
      state.changed.wait(lock);
    } else {
      state.lead(lock, [&] { return waiter.result.has_value(); });
    }
  }
  --state.waiters;
  // Another leads.
  if (state.waiters > 0) {
    state.changed.notify_all();
  } else if (state.callbacks > 0) {
    state.wanted.notify_one();
  }
  return std::move(*waiter.result);
}

CallId BytesClient::call_bytes(std::string_view request, const CallOptions& options,
                               const BytesCallback& done) {
  auto& state = *state_;
  std::optional<Error> refused;
  {
    const std::lock_guard lock(state.mutex);
    const auto id = state.begin(request, options, nullptr, done);
    if (id.ok()) {
      ++state.callbacks;
      if (state.leading) {
        state.wake_up.wake();
      } else {
        state.wanted.notify_one();
      }
      return *id;
    }
    refused = id.error();
  }
  done(*refused);
  return 0;
}

void BytesClient::cancel(CallId call) {
  auto& state = *state_;
  const std::lock_guard lock(state.mutex);
  state.cancelled.push_back(call);
  if (state.leading) state.wake_up.wake();
}

// The client's own thread.
void BytesClient::State::run() {
  std::unique_lock lock(mutex);
  for (;;) {
    const bool called = wanted.wait_for(lock, kIdleLook, [&] {
      return stopping || !finished.empty() || (callbacks > 0 && !leading && waiters == 0);
    });
    if (!called) {
      // Connections come and go while nobody calls: their news must not pile up.
      bool looked = false;
      if (!leading && waiters == 0) lead(lock, [&] { return std::exchange(looked, true); });
      continue;
    }
    if (!finished.empty()) {
      auto [done, result] = std::move(finished.front());
      finished.pop_front();
      lock.unlock();
      done(std::move(result));
      done = nullptr;  // what it holds may call, too
      lock.lock();
      continue;
    }
    if (stopping) return;
    // Who waits on a thread of its own leads better.
    lead(lock, [&] {
      const std::lock_guard inner(mutex);
      return stopping || waiters > 0 || !finished.empty() || callbacks == 0;
    });
  }
}

// REQUIRES: lock is held, nobody leads. It is held on return too.
void BytesClient::State::lead(std::unique_lock<std::mutex>& lock,
                              const std::function<bool()>& enough) {
  leading = true;
  lock.unlock();
  // Connections may have come and gone while nobody led.
  if (clock.steady() - led_until >= kIdle) links_changed = true;
  while (!enough()) {
    turn();
    if (!enough()) wait(clock.steady());
  }
  led_until = clock.steady();
  lock.lock();
  leading = false;
  if (waiters > 0) changed.notify_all();
}

void BytesClient::State::turn() {
  take_new();
  if (ending) close_waiters();
  expire(clock.steady());
  // All is received after what was sent, which the poller would have to look for; what could not be
  // sent is tried again after that, for receiving may have brought the connection. What is known of
  // connections is older than what is sent now.
  flooded = false;
  for (bool again = true; again && !flooded;) {
    const auto now = clock.steady();
    if (std::exchange(links_changed, false) || now - watched_at >= kClientTurnMax) {
      watched_at = now;
      for (std::size_t index = 0; index < links.size(); ++index) {
        receive(index);
        watch(index, now);
      }
      std::uint32_t peers = 0;
      for (const auto& link : links) peers += link->inside ? 1 : link->links.peers();
      const std::lock_guard lock(mutex);
      counters.peers = peers;
    }
    again = flush();
    for (std::size_t index = 0; index < links.size(); ++index) receive(index);
    again = again || flush();
  }
}

// Only a callback can wait for a call now; the client's end waits for it.
void BytesClient::State::close_waiters() {
  for (auto each = calls.begin(); each != calls.end();) {
    const auto call = each++;
    if (call->second.waiter == nullptr) continue;
    end(call, Error{ErrorCode::kClosed, "the client was closed", "", 0});
  }
}

void BytesClient::State::take_new() {
  std::vector<Call> fresh;
  std::vector<CallId> unwanted;
  {
    const std::lock_guard lock(mutex);
    fresh.swap(added);
    unwanted.swap(cancelled);
    ending = stopping;
  }
  for (auto& call : fresh) {
    const CallId id = call.id;
    deadlines.emplace(call.deadline, id);
    calls.emplace(id, std::move(call));
    unsent.push_back(id);
  }
  for (const auto id : unwanted) {
    const auto found = calls.find(id);
    if (found == calls.end()) continue;
    if (const auto link = found->second.link) tell_cancelled(*link, id);
    end(found, kCancelled);
  }
}

// What its service has not begun, it need not run. At most as many wait as calls may be open.
void BytesClient::State::tell_cancelled(std::size_t link, CallId id) {
  cancels.emplace_back(link, id);
  if (cancels.size() > options.open_max) cancels.pop_front();
}

// True if something was sent.
bool BytesClient::State::flush() {
  bool sent = false;
  if (!cancels.empty()) {
    std::vector<bool> full(links.size());
    std::erase_if(cancels, [&](const auto& each) {
      const auto& [link, id] = each;
      if (full[link]) return false;
      full[link] = links[link]->socket->send(plain::encode_cancel(id)) == transport::Sent::kFull;
      return !full[link];
    });
  }
  while (!unsent.empty()) {
    const auto found = calls.find(unsent.front());
    if (found != calls.end() && !found->second.link) {
      if (!send(found->second)) return sent;
      sent = true;
    }
    unsent.pop_front();
  }
  return sent;
}

bool BytesClient::State::send(Call& call) {
  std::string frame;
  std::vector<std::size_t> order(links.size());
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = (turn_of + i) % order.size();
  const auto now = clock.steady();
  const auto rank = [&](std::size_t index) {
    const auto& link = *links[index];
    return std::pair(link.silent && now < link.probe_at, link.open);
  };
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return rank(a) < rank(b); });
  for (const auto index : order) {
    // One that broke may still seem to take it for a moment.
    if (links[index]->links.peers() == 0 && !links[index]->inside) continue;
    if (frame.empty()) {
      const auto left = std::chrono::ceil<Milliseconds>(call.deadline - clock.steady());
      frame = plain::encode_request(call.id, left, call.request);
    }
    if (links[index]->socket->send(frame) != transport::Sent::kSent) continue;
    if (!call.may_repeat) std::string().swap(call.request);
    ++links[index]->open;
    links[index]->probe_at = now + kProbeEvery;
    call.link = index;
    turn_of = index + 1;
    return true;
  }
  return false;
}

// What its poller saw; or what there is, if it may not have looked.
void BytesClient::State::receive(std::size_t index, bool looked) {
  if (looked && !links[index]->socket->has_frames()) return;
  // With no call open the rest may lie until the next one.
  for (int frames = 0; !calls.empty(); ++frames) {
    if (frames >= kRepliesPerTurn) {
      flooded = true;
      return;
    }
    auto received = links[index]->socket->receive();
    if (!received) return;
    links[index]->silent = false;
    links[index]->heard_at = clock.steady();
    auto frame = plain::decode_call(received->bytes);
    if (!frame) continue;
    const auto found = calls.find(frame->id);
    if (found == calls.end() || found->second.link != index) continue;  // it timed out
    if (frame->kind != plain::CallKind::kReply && frame->kind != plain::CallKind::kFailure) {
      continue;
    }
    {
      const std::lock_guard lock(mutex);
      ++counters.answered;
      times.add(clock.steady() - found->second.begun);
    }
    if (frame->kind == plain::CallKind::kReply) {
      end(found, std::move(frame->body));
    } else {
      end(found, Error{error_code_of(frame->code), std::move(frame->body), "", 0});
    }
  }
}

// Connections that are made and broken.
void BytesClient::State::watch(std::size_t index, SteadyTime now) {
  auto& link = *links[index];
  const std::uint64_t breaks = link.links.breaks();
  link.links.take(*link.socket, now);
  if (link.links.wants_anew(now)) {
    try {
      open(link);
    } catch (const std::exception& exception) {  // no descriptor is left: later
      options.log.error(exception.what());
    }
  }
  if (link.links.breaks() == breaks) return;
  link.silent = false;  // what comes now is another connection
  std::erase_if(cancels, [&](const auto& each) { return each.first == index; });
  receive(index, false);  // what was answered before it broke
  std::vector<CallId> lost;
  for (auto each = calls.begin(); each != calls.end();) {
    auto& call = each->second;
    const auto here = each++;
    if (call.link != index) continue;
    call.link.reset();
    --link.open;
    const std::lock_guard lock(mutex);
    if (call.may_repeat) {
      ++counters.repeated;
      unsent.push_back(call.id);
    } else {
      ++counters.lost;
      lost.push_back(here->first);
    }
  }
  for (const auto id : lost) {
    end(calls.find(id), Error{ErrorCode::kUnknown,
                              "the connection to the service broke; it may have run this", "", 0});
  }
}

void BytesClient::State::expire(SteadyTime now) {
  while (!deadlines.empty() && deadlines.begin()->first <= now) {
    const auto found = calls.find(deadlines.begin()->second);
    const bool sent = found->second.link.has_value();
    // If it waits there, it need not be run any more.
    if (sent) {
      auto& link = *links[*found->second.link];
      tell_cancelled(*found->second.link, found->first);
      link.silent = link.silent || link.heard_at < found->second.begun;
    }
    {
      const std::lock_guard lock(mutex);
      ++counters.timed_out;
    }
    end(found, Error{ErrorCode::kTimeout,
                     sent ? "no answer in time" : "no service could be reached in time", "", 0});
  }
}

void BytesClient::State::wait(SteadyTime now) {
  {
    const std::lock_guard lock(mutex);
    if (!added.empty() || !cancelled.empty()) return;
  }
  if (calls.empty() || flooded) return;
  const bool waits_to_send = !unsent.empty() || !cancels.empty();
  if (!poller || for_sending || waits_to_send) {
    poller.emplace();
    for_sending = waits_to_send;
    for (const auto& link : links) {
      poller->add(*link->socket);
      // It was full. One without a peer seems to have room while it connects.
      const bool connected = link->inside || link->links.peers() > 0;
      if (for_sending && connected) poller->add_for_sending(*link->socket);
    }
    poller->add(wake_up);
  }
  const auto left = deadlines.begin()->first - now;
  const std::chrono::nanoseconds most = waits_to_send ? kTurnUnsent : kClientTurnMax;
  poller->wait(std::clamp<std::chrono::nanoseconds>(left, {}, most));
  for (const auto& link : links) links_changed = links_changed || link->socket->has_links();
}

void BytesClient::State::end(std::unordered_map<CallId, Call>::iterator call,
                             Result<std::string> result) {
  auto& ended = call->second;
  if (ended.link) --links[*ended.link]->open;
  deadlines.erase({ended.deadline, ended.id});
  {
    const std::lock_guard lock(mutex);
    --counters.open;
    if (ended.waiter != nullptr) {
      ended.waiter->result = std::move(result);
      if (waiters > 1) changed.notify_all();
    } else {
      --callbacks;
      finished.emplace_back(std::move(ended.done), std::move(result));
      wanted.notify_one();
    }
  }
  calls.erase(call);
}

BytesClient::BytesClient(const std::vector<std::string>& endpoints, const ClientOptions& options)
    : state_(std::make_unique<State>(endpoints, options)) {
  state_->thread = std::thread([state = state_.get()] {
    name_thread("dray-client");
    state->run();
  });
}

BytesClient::~BytesClient() {
  auto& state = *state_;
  {
    const std::lock_guard lock(state.mutex);
    state.stopping = true;
  }
  state.wake_up.wake();
  state.wanted.notify_all();
  state.thread.join();
  // Nobody calls any more: what is left has callbacks, which may try to.
  state.take_new();
  for (auto& [done, result] : std::exchange(state.finished, {})) done(std::move(result));
  const Error closed{ErrorCode::kClosed, "the client was closed", "", 0};
  for (auto& [id, call] : std::exchange(state.calls, {})) {
    if (call.done) call.done(closed);
  }
}

ClientCounters BytesClient::counters() const {
  auto& state = *state_;
  const std::lock_guard lock(state.mutex);
  auto counters = state.counters;
  counters.round_trip_p50 = state.times.percentile(0.5);
  counters.round_trip_p99 = state.times.percentile(0.99);
  return counters;
}

}  // namespace dray
