#include "dray/balancing/dispatcher.hpp"
#include "dray/thread_traits.hpp"

#include <sys/stat.h>

#include <algorithm>
#include <condition_variable>
#include <map>
#include <mutex>
#include <set>
#include <thread>

namespace dray::balancing {
namespace {

constexpr int kFramesPerTurnMax = 1'000;
constexpr std::size_t kBytesPerTurnMax = 8U << 20;
constexpr std::size_t kSessionsPerKeyMax = 1'024;
constexpr std::size_t kPublishersPerKeyMax = 256;
constexpr std::size_t kDeferredPerPeerMax = 1'000;
constexpr auto kUpkeepEvery = Milliseconds(250);
constexpr auto kCheckpointLook = Milliseconds(20);  // whether the one under way is over
constexpr auto kTurnMax = Milliseconds(5);          // of reading frames
constexpr std::size_t kCopyBytesMax = 4U << 20;
constexpr std::size_t kLostKept = 1'024;
constexpr std::size_t kUsersMin = 1'024;
constexpr std::size_t kToldMax = 1'000;
constexpr auto kLinkBrokenEvery = Milliseconds(50);
constexpr auto kDeferredEvery = Milliseconds(1);
constexpr auto kForEver = Milliseconds(-1);

// Windows bound what is on its way to a peer; that mark only has to lie well above. What comes in
// faster than it is read waits with who sends it.
transport::SocketOptions router_options(const std::optional<DispatcherSecurity>& security) {
  transport::SocketOptions options;
  if (security) options.curve_server = security->server;
  options.send_frames_max = 1'000;  // what does not go is sent later
  options.receive_frames_max = 1'000;
  return options;
}

}  // namespace

struct Dispatcher::State {
  State(transport::Context& context, const Clock& clock_in, spool::Spool& spool_in,
        const DispatcherOptions& options, std::function<void(const Error&)> on_failure_in,
        Log log_in, std::optional<DispatcherSecurity> security_in)
      : clock(clock_in),
        spool(spool_in),
        on_failure(std::move(on_failure_in)),
        log(std::move(log_in)),
        security(std::move(security_in)),
        socket(context, router_options(security)),
        reader(spool.segments()),
        look_up(reader.look_up()),
        core(
            options, spool.take_groups(), spool.recorded_sessions(),
            [this](std::string_view topic) { return spool.route(topic); }, now()),
        desk({options.spool, options.epoch, options.lease, options.publisher_memory}) {}

  Now now() const { return {clock.steady(), clock.utc()}; }

  // Immutable.
  const Clock& clock;
  spool::Spool& spool;
  std::function<void(const Error&)> on_failure;
  Log log;
  const std::optional<DispatcherSecurity> security;

  // Owned by the dispatcher's thread.
  transport::RouterSocket socket;
  spool::LogReader reader;   // of the backlog
  spool::LogReader look_up;  // of single messages
  DispatcherCore core;
  DepositDesk desk;
  std::deque<DepositDesk::Wanted> deposits;    // for which the spool has no room yet
  std::map<Uuid, std::string> publisher_keys;  // that their sessions began with
  SteadyTime upkeep_at{};
  bool checkpoint_due = false;
  struct User {
    std::string key;   // the one that the session began with
    std::string peer;  // where it was last
  };
  std::unordered_map<Uuid, User, UuidHash> users;  // by session
  std::uint64_t allowed_version = 0;
  std::set<std::string> told;  // refusals that the log knows of
  bool link_broken = false;    // and the core does not know yet
  SteadyTime link_broken_at{};
  std::set<Sequence> lost;                    // reported
  std::deque<DispatcherCore::Send> deferred;  // a peer's pipe was full
  std::unordered_map<std::string, std::size_t> deferred_of;
  std::unordered_map<std::uint64_t, std::function<void()>> finished;
  bool poisoned = false;

  // Any thread.
  transport::WakeUp wake_up;
  std::thread thread;

  // Guarded by mutex.
  std::mutex mutex;
  std::condition_variable answered;
  std::vector<spool::Committed> inbox;
  std::vector<std::pair<DepositDesk::Wanted, Result<Receipt>>> receipts;
  std::vector<std::function<void(Desk&)>> calls;
  std::optional<Error> failure;
  bool stopping = false;
  bool running = false;
};

Dispatcher::Dispatcher(transport::Context& context, const Clock& clock, spool::Spool& spool,
                       const DispatcherOptions& options,
                       std::function<void(const Error&)> on_failure, Log log,
                       std::optional<DispatcherSecurity> security)
    : state_(std::make_unique<State>(context, clock, spool, options, std::move(on_failure),
                                     std::move(log), std::move(security))) {}

Dispatcher::~Dispatcher() {
  stop();
}

Status Dispatcher::bind(const std::string& endpoint) {
  DRAY_TRY(state_->socket.watch_links());
  DRAY_TRY(state_->socket.bind(endpoint));
  if (endpoint.rfind("ipc://", 0) == 0) (void)chmod(endpoint.c_str() + 6, 0600);
  return {};
}

std::string Dispatcher::bound_endpoint() const {
  return state_->socket.bound_endpoint();
}

void Dispatcher::start() {
  {
    const std::lock_guard lock(state_->mutex);
    state_->running = true;
  }
  state_->thread = std::thread([this] {
    name_thread("dray-dispatch");
    take_slice(Slice::kShort);
    run();
  });
}

void Dispatcher::stop() {
  {
    const std::lock_guard lock(state_->mutex);
    state_->stopping = true;
  }
  state_->wake_up.wake();
  if (state_->thread.joinable()) state_->thread.join();
}

void Dispatcher::on_committed(spool::Committed committed) {
  bool wake = false;
  {
    const std::lock_guard lock(state_->mutex);
    wake = state_->inbox.empty();
    state_->inbox.push_back(std::move(committed));
  }
  if (wake) state_->wake_up.wake();
}

void Dispatcher::on_failed(const Error& error) {
  {
    const std::lock_guard lock(state_->mutex);
    state_->failure = error;
  }
  state_->wake_up.wake();
}

bool Dispatcher::call(const std::function<void(Desk&)>& work) {
  bool done = false;
  std::unique_lock lock(state_->mutex);
  if (!state_->running || state_->stopping) return false;
  state_->calls.push_back([&](Desk& desk) {
    work(desk);
    const std::lock_guard inner(state_->mutex);
    done = true;
    state_->answered.notify_all();
  });
  state_->wake_up.wake();
  state_->answered.wait(lock, [&] { return done || !state_->running; });
  return done;
}

void Dispatcher::run() {
  auto& state = *state_;
  transport::Poller poller;
  poller.add(state.socket);
  poller.add(state.wake_up);
  transport::Poller idle;
  idle.add(state.wake_up);
  for (;;) {
    const auto now = state.now();
    const auto wait =
        std::min(state.core.next_deadline(now), state.desk.next_deadline(now.steady)) - now.steady;
    auto most = std::chrono::ceil<Milliseconds>(
        std::min<std::chrono::nanoseconds>(wait, state.upkeep_at - now.steady));
    if (!state.deferred.empty()) most = std::min(most, kDeferredEvery);
    if (state.link_broken) most = std::min(most, kLinkBrokenEvery);
    if (state.poisoned) {
      idle.wait(kForEver);  // nobody reads the socket any more
    } else {
      poller.wait(std::max(most, Milliseconds(0)));
    }
    bool stopping = false;
    {
      const std::lock_guard lock(state.mutex);
      stopping = state.stopping;
    }
    const bool was_called = read_inbox();
    if (!state.poisoned) {
      retry_deferred();
      // A call may have taken long: what came meanwhile counts before the clock does.
      if (was_called || state.socket.has_frames()) read_frames();
      if (state.socket.has_links()) {
        for (const auto link : state.socket.take_links()) {
          state.link_broken = state.link_broken || link == transport::Link::kDisconnected;
        }
      }
      // Whoever connects and goes, again and again, must not make all sessions be asked each time.
      if (const auto at = state.now();
          state.link_broken && at.steady - state.link_broken_at >= kLinkBrokenEvery) {
        state.link_broken = false;
        state.link_broken_at = at.steady;
        state.core.on_link_broken(at);
      }
      state.core.set_room(state.spool.takes_follow_ups());
      state.core.tick(state.now());
      perform();
      state.desk.tick(state.now().steady);
      serve_publishers();
      upkeep();
    }
    if (stopping) break;
  }
  const std::lock_guard lock(state.mutex);
  state.running = false;
  state.calls.clear();
  state.answered.notify_all();
}

// True if there were calls.
bool Dispatcher::read_inbox() {
  auto& state = *state_;
  std::vector<spool::Committed> inbox;
  std::vector<std::pair<DepositDesk::Wanted, Result<Receipt>>> receipts;
  std::vector<std::function<void(Desk&)>> calls;
  std::optional<Error> failure;
  {
    const std::lock_guard lock(state.mutex);
    inbox = std::move(state.inbox);
    state.inbox.clear();
    receipts = std::move(state.receipts);
    state.receipts.clear();
    calls = std::move(state.calls);
    state.calls.clear();
    failure = state.failure;
  }
  for (const auto& [wanted, receipt] : receipts) state.desk.on_receipt(wanted, receipt);
  for (const auto& committed : inbox) {
    // Sent while the next batch is still being written.
    state.core.on_committed(committed, state.now());
    state.checkpoint_due = state.checkpoint_due || committed.checkpoint_due;
  }
  if (failure && !state.poisoned) {
    state.poisoned = true;  // P7: dispatch stops
    state.on_failure(*failure);
  }
  Desk desk{state.core, state.reader, [&state](std::uint64_t ticket, std::function<void()> done) {
              state.finished[ticket] = std::move(done);
            }};
  for (const auto& work : calls) work(desk);
  return !calls.empty();
}

void Dispatcher::read_frames() {
  auto& state = *state_;
  std::size_t bytes = 0;  // so many, and for so long, that others do not wait for long
  const auto until = state.now().steady + kTurnMax;
  for (int i = 0; i < kFramesPerTurnMax && bytes < kBytesPerTurnMax; ++i) {
    if (i > 0 && state.now().steady >= until) return;
    auto received = state.socket.receive();
    if (!received) return;
    bytes += received->frame.bytes.size();
    auto frame = decode_frame(received->frame.bytes);
    if (!frame.ok()) {
      state.log.debug("bad frame", {{"why", frame.error().text()}});
      send({received->peer, encode(Refused{"bad-frame", frame.error().text()})});
      continue;
    }
    if (auto refused = intrusion(*received, *frame)) {
      // Once for each key and reason: whoever is refused may go on sending.
      if (state.told.size() < kToldMax &&
          state.told.insert(received->user + refused->reason).second) {
        state.log.warning("a frame is refused: " + refused->reason, {{"key", received->user}});
      }
      send({received->peer, encode(*refused)});
      continue;
    }
    if (state.desk.takes(received->peer, *frame)) {
      if (std::holds_alternative<PublisherHello>(*frame)) {
        state.desk.set_memory(state.spool.dedup_reach());
      }
      state.desk.on_frame(received->peer, *frame, state.now().steady);
      // What the frame says is published before the next one is read.
      serve_publishers();
    } else {
      state.core.on_frame(received->peer, *frame, state.now());
    }
  }
}

void Dispatcher::serve_publishers() {
  auto& state = *state_;
  auto actions = state.desk.take_actions(state.now().steady);
  for (const auto& each : actions.sends) {
    // Whoever does not read its receipts begins anew.
    if (state.socket.send(each.peer, each.frame) != transport::Sent::kSent) {
      state.desk.on_unsent(each.peer);
    }
  }
  for (auto& each : actions.publish) state.deposits.push_back(std::move(each));
  // A commit makes room, and wakes this thread.
  for (; !state.deposits.empty() && state.spool.takes_at_once(); state.deposits.pop_front()) {
    auto& each = state.deposits.front();
    const Draft draft = std::exchange(each.draft, {});
    state.spool.publish_at_once(draft, [&state, wanted = std::move(each)](Result<Receipt> receipt) {
      // The next incarnation knows: the publisher asks it again.
      const bool unsure = !receipt.ok() && (receipt.error().code == ErrorCode::kUnknown ||
                                            receipt.error().code == ErrorCode::kClosed);
      if (unsure) return;
      bool wake = false;
      {
        const std::lock_guard lock(state.mutex);
        wake = state.receipts.empty();
        state.receipts.emplace_back(wanted, std::move(receipt));
      }
      if (wake) state.wake_up.wake();
    });
  }
}

// P9: a key that was taken back is out at once, and no key speaks for another's session.
std::optional<Refused> Dispatcher::intrusion(const transport::RouterSocket::Received& received,
                                             const ProtocolFrame& frame) {
  auto& state = *state_;
  if (!state.security) return std::nullopt;
  auto& authenticator = *state.security->authenticator;
  if (state.desk.takes(received.peer, frame)) {
    if (!authenticator.allows(received.user, transport::Role::kPublisher)) {
      state.desk.on_unsent(received.peer);
      return Refused{"not-allowed", "this key may not be a publisher here (any more)"};
    }
    return false_publisher(received, frame);
  }
  // Of a session that is over: either's.
  const bool either =
      std::holds_alternative<Heartbeat>(frame) || std::holds_alternative<Bye>(frame);
  if (either && authenticator.allows(received.user, transport::Role::kPublisher)) {
    return std::nullopt;
  }
  if (!authenticator.allows(received.user, transport::Role::kWorker)) {
    expel_key(received.user);
    return Refused{"not-allowed", "this key may not be a worker here (any more)"};
  }
  const auto* hello = std::get_if<Hello>(&frame);
  if (hello == nullptr) return std::nullopt;
  const auto [owner, fresh] =
      state.users.try_emplace(hello->session, State::User{received.user, received.peer});
  if (owner->second.key != received.user) {
    return Refused{"not-allowed", "this session belongs to another key"};
  }
  owner->second.peer = received.peer;
  const auto lives = [&](const auto& each) {
    return each.second.key == received.user && state.core.knows(each.first);
  };
  const bool many = fresh && state.users.size() > kSessionsPerKeyMax;
  if (many && std::count_if(state.users.begin(), state.users.end(), lives) >=
                  static_cast<std::ptrdiff_t>(kSessionsPerKeyMax)) {
    state.users.erase(owner);
    return Refused{"too-many-sessions", "this key has 1,024 sessions here already"};
  }
  if (!fresh || state.users.size() <= kUsersMin) return std::nullopt;
  const auto sessions = state.core.session_status();
  if (state.users.size() <= 2 * sessions.size()) return std::nullopt;
  // Most are of sessions that are over.
  auto before = std::exchange(state.users, {});
  state.users.insert(before.extract(hello->session));
  for (const auto& each : sessions) {
    if (auto node = before.extract(each.id)) state.users.insert(std::move(node));
  }
  return std::nullopt;
}

// No key fences another's publisher.
std::optional<Refused> Dispatcher::false_publisher(
    const transport::RouterSocket::Received& received, const ProtocolFrame& frame) {
  auto& state = *state_;
  const auto* hello = std::get_if<PublisherHello>(&frame);
  if (hello == nullptr) return std::nullopt;
  const auto owner = state.publisher_keys.find(hello->publisher);
  if (owner != state.publisher_keys.end() && owner->second != received.user &&
      state.desk.knows(hello->publisher)) {
    return Refused{"not-allowed", "this publisher belongs to another key"};
  }
  if (!state.desk.knows(hello->publisher)) {
    const auto open = std::count_if(
        state.publisher_keys.begin(), state.publisher_keys.end(), [&](const auto& each) {
          return each.second == received.user && state.desk.knows(each.first);
        });
    if (static_cast<std::size_t>(open) >= kPublishersPerKeyMax) {
      return Refused{"too-many-sessions", "this key has 256 publishers here already"};
    }
  }
  state.publisher_keys[hello->publisher] = received.user;
  if (state.publisher_keys.size() > kUsersMin + 2 * state.desk.sessions()) {
    std::erase_if(state.publisher_keys, [&](const auto& each) {
      return each.first != hello->publisher && !state.desk.knows(each.first);
    });
  }
  return std::nullopt;
}

// What its sessions hold is delivered elsewhere at once.
void Dispatcher::expel_key(const std::string& key) {
  auto& state = *state_;
  std::erase_if(state.users, [&](const auto& each) {
    if (each.second.key != key) return false;
    state.core.expel(each.first, state.now());
    return true;
  });
}

void Dispatcher::expel_disallowed() {
  auto& state = *state_;
  if (!state.security) return;
  auto& authenticator = *state.security->authenticator;
  const std::uint64_t version = authenticator.version();
  if (std::exchange(state.allowed_version, version) == version) return;
  std::map<std::string, std::string> out;  // key, where it was last
  for (const auto& [session, user] : state.users) {
    if (!authenticator.allows(user.key, transport::Role::kWorker)) out[user.key] = user.peer;
  }
  for (const auto& [key, peer] : out) {
    state.log.warning("a worker's key was taken back: its sessions end", {{"key", key}});
    expel_key(key);
    send({peer, encode(Refused{"not-allowed", "this key may not be a worker here any more"})});
  }
  for (const auto& [publisher, key] : state.publisher_keys) {
    if (authenticator.allows(key, transport::Role::kPublisher)) continue;
    if (!state.desk.knows(publisher)) continue;
    state.log.warning("a publisher's key was taken back: its session ends", {{"key", key}});
    state.desk.expel(publisher, "this key may not be a publisher here any more");
  }
  state.told.clear();
}

void Dispatcher::perform() {
  auto& state = *state_;
  for (auto actions = state.core.take_actions(state.now()); !actions.empty();
       actions = state.core.take_actions(state.now())) {
    // Frames first: the sooner a worker has its delivery the better; nothing depends on order.
    for (auto& each : actions.sends) send(std::move(each));
    for (const auto& submission : actions.submissions) state.spool.submit(submission);
    for (const auto& each : actions.refills) refill(each);
    for (const auto& each : actions.key_reads) read_key(each);
    for (const auto& each : actions.fetches) fetch(each);
    for (const auto ticket : actions.finished) {
      const auto found = state.finished.find(ticket);
      if (found == state.finished.end()) continue;
      found->second();
      state.finished.erase(found);
    }
  }
}

// A disk that cannot be read says nothing about the messages on it (P7).
void Dispatcher::poison(const std::string& what, const Error& error) {
  if (state_->poisoned) return;  // who is told is told once
  state_->log.error(what + " failed: " + error.text());
  state_->poisoned = true;
  state_->on_failure(error);
}

void Dispatcher::refill(const DispatcherCore::Refill& refill) {
  auto& state = *state_;
  const auto& group = state.core.group_state(refill.group);
  auto slice = spool::read_backlog(state.reader, group, refill.request);
  if (!slice.ok()) return poison("reading back the backlog", slice.error());
  for (const auto& part : slice->damaged) {
    state.log.error("messages can no longer be read and are lost to this group",
                    {{"group", group.name()},
                     {"first", std::to_string(part.first)},
                     {"last", std::to_string(part.last)},
                     {"messages", std::to_string(part.count)}});
  }
  for (const auto sequence : slice->lost) report_lost(sequence);
  state.core.on_refilled(refill, std::move(*slice));
}

void Dispatcher::report_lost(Sequence sequence) {
  state_->log.error("an acknowledged message can no longer be read",
                    {{"sequence", std::to_string(sequence)}});
}

void Dispatcher::read_key(const DispatcherCore::Fetch& wanted) {
  auto& state = *state_;
  const auto* history = state.core.group_state(wanted.group).history(wanted.sequence);
  const auto key = spool::read_key(state.look_up, wanted.sequence, history);
  if (!key.ok()) return poison("reading a message's key", key.error());
  state.core.on_key(wanted.group, wanted.sequence, *key, state.now());
}

void Dispatcher::fetch(const DispatcherCore::Fetch& fetch) {
  auto& state = *state_;
  const auto* history = state.core.group_state(fetch.group).history(fetch.sequence);
  auto message = spool::read_message(state.look_up, fetch.sequence, history);
  if (!message.ok()) return poison("reading a message again", message.error());
  if (!message->has_value()) report_lost(fetch.sequence);
  state.core.on_fetched(fetch.group, fetch.sequence, std::move(*message));
}

void Dispatcher::upkeep() {
  auto& state = *state_;
  expel_disallowed();
  const auto now = state.now();
  if (now.steady < state.upkeep_at && !state.checkpoint_due) return;
  if (state.spool.checkpoint_under_way()) {
    state.upkeep_at = now.steady + kCheckpointLook;
    return;
  }
  state.upkeep_at = now.steady + kUpkeepEvery;
  state.spool.set_held_full(state.core.held_full());
  auto todo = state.core.upkeep(state.spool.segments().segments(), state.checkpoint_due, now);
  if (todo.snapshot) {
    state.checkpoint_due = false;
    state.spool.checkpoint(std::move(*todo.snapshot));
  }
  const auto groups = state.core.group_states();
  std::size_t bytes = 0;
  for (const auto sequence : todo.to_copy) {
    auto copy = spool::make_copy(state.look_up, sequence, groups);
    if (!copy.ok()) return poison("copying a message forward", copy.error());
    if (!copy->has_value()) {
      // One that is granted is settled by its answer; until then it is met again and again.
      if (state.lost.insert(sequence).second) report_lost(sequence);
      if (state.lost.size() > kLostKept) state.lost.erase(state.lost.begin());
      state.core.on_lost(sequence);
      continue;
    }
    bytes += (*copy)->envelope.bytes.size();
    state.core.on_copied(**copy);
    if (bytes >= kCopyBytesMax) break;
  }
  if (!todo.to_copy.empty()) perform();
}

spool::Snapshot Dispatcher::last_snapshot() {
  auto& state = *state_;
  auto todo = state.core.upkeep(state.spool.segments().segments(), true, state.now());
  return todo.snapshot ? std::move(*todo.snapshot) : spool::Snapshot{};
}

void Dispatcher::send(DispatcherCore::Send send) {
  auto& state = *state_;
  const auto sent = send.records.empty()
                        ? state.socket.send(send.peer, send.frame)
                        : state.socket.send(send.peer, send.frame, send.records, send.owner);
  switch (sent) {
    case transport::Sent::kSent:
      return;
    case transport::Sent::kUnreachable:
      return state.core.on_unsent(send, state.now());
    case transport::Sent::kFull:
      // P9: one peer that does not read must not use up what is kept for the others.
      if (++state.deferred_of[send.peer] <= kDeferredPerPeerMax) {
        return state.deferred.push_back(std::move(send));
      }
      return state.core.on_stuck(send, state.now());
  }
}

void Dispatcher::retry_deferred() {
  auto deferred = std::exchange(state_->deferred, {});
  state_->deferred_of.clear();
  for (auto& each : deferred) send(std::move(each));
}

}  // namespace dray::balancing
