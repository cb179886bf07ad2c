// DispatcherCore: who gets what, and the frames and records of it.
#include <algorithm>

#include "dray/balancing/dispatcher_state.hpp"

namespace dray::balancing {

using spool::RecordType;
using spool::Submission;

namespace {

constexpr std::size_t kFrameMessagesMax = 1'024;
constexpr std::size_t kFrameBytesMax = 1U << 20;
constexpr std::size_t kWorthSharing = 16U << 10;  // bytes of records: below, a copy costs less
constexpr std::size_t kGrantChunkMax = 128;
constexpr std::size_t kSessionsLookedAtMax = 64;  // sessions, for one grant
constexpr std::size_t kFreshMax = 256;
constexpr std::size_t kSettlementSequencesMax = 65'536;
// What waits is told to so many sessions for each message, and to so many at least: enough that
// one of them has room soon, few enough that a thousand workers cost no more than ten.
constexpr std::uint64_t kToldPerMessage = 4;
constexpr std::uint64_t kToldMin = 8;
// Of the grants out of lanes, every so many begin with normal and with low ones.
constexpr std::uint64_t kTurnsOfNormal = 8;
constexpr std::uint64_t kTurnsOfLow = 32;
constexpr auto kRoomFor = Milliseconds(50);
constexpr std::uint64_t kToldAgain = 4;  // when it is so many times what it was, or a part

}  // namespace

namespace {

// Of those offered one by one, the one with the least of its window in use; of equals, that with
// the most room.
template <typename Session>
class LeastLoaded {
 public:
  void offer(Session* session) {
    ++count_;
    const double load =
        static_cast<double>(session->outstanding) / static_cast<double>(session->window_messages);
    const auto room = session->window_messages - session->outstanding;
    if (best_ != nullptr && (load > load_ || (load == load_ && room <= room_))) return;
    best_ = session;
    load_ = load;
    room_ = room;
  }
  Session* best() const { return best_; }
  std::size_t count() const { return count_; }

 private:
  Session* best_ = nullptr;
  double load_ = 0;
  std::uint64_t room_ = 0;
  std::size_t count_ = 0;
};

}  // namespace

DispatcherCore::Session* DispatcherCore::least_loaded(Group& group, std::size_t& with_room) {
  if (group.sessions.size() > kSessionsLookedAtMax) return least_loaded_of_many(group, with_room);
  LeastLoaded<Session> least;
  for (auto* session : group.sessions) {
    if (session->can_receive() && session->has_room()) least.offer(session);
  }
  with_room = least.count();
  return least.best();
}

// Only some are looked at, those first that spoke of room last: what the others said is old, and
// what finds no room there comes back.
DispatcherCore::Session* DispatcherCore::least_loaded_of_many(Group& group,
                                                              std::size_t& with_room) {
  LeastLoaded<Session> least;
  const auto look = [&](std::vector<Session*>& list, bool Session::*mark) {
    for (std::size_t i = list.size(); i > 0 && least.count() < kSessionsLookedAtMax / 2; --i) {
      auto* session = list[i - 1];
      if (session->can_receive() && session->has_room()) {
        least.offer(session);
        continue;
      }
      session->*mark = false;
      list.erase(list.begin() + static_cast<std::ptrdiff_t>(i - 1));
    }
  };
  look(group.fresh, &Session::fresh);
  if (least.best() == nullptr) look(group.roomy, &Session::roomy);
  with_room = std::max(least.count(), group.roomy.size());
  return least.best();
}

void DispatcherCore::expire(Group& group, const spool::StoredRun& message) {
  group.expired.add(message.first);
  if (message.key != 0 && group.limits.ordered) group.keys_left[message.first] = message.key;
}

// By the group's limits, now.
std::uint64_t DispatcherCore::allowance(Group& group, Now now) const {
  if (group.state->paused() && !planted(Fault::kPauseIgnored)) return 0;
  std::uint64_t allowed = UINT64_MAX;
  if (group.limits.concurrency != 0 && !planted(Fault::kConcurrencyIgnored)) {
    std::uint64_t in_flight = 0;
    for (const auto* session : group.sessions) in_flight += session->outstanding;
    allowed =
        group.limits.concurrency - std::min<std::uint64_t>(in_flight, group.limits.concurrency);
  }
  if (group.bucket && !planted(Fault::kRateIgnored)) {
    group.bucket->fill(now.steady);
    allowed = std::min(allowed, group.bucket->available());
  }
  return allowed;
}

// Grants all of the run. REQUIRES: only one message, if it has a history, a key or a time.
void DispatcherCore::grant(Group& group, Session& session, spool::StoredRun run) {
  const auto* history = run.count == 1 ? group.state->history(run.first) : nullptr;
  Grant grant;
  grant.epoch = options_.epoch;
  grant.priority = run.priority;
  if (run.key != 0 && group.limits.ordered) {
    grant.key = run.key;
    group.keys_left.erase(run.first);
  }
  if (group.allowed != UINT64_MAX) group.allowed -= run.count;
  if (group.bucket) group.bucket->take(run.count);
  const std::size_t bytes = run.bytes();
  grant.bytes = static_cast<std::uint32_t>((bytes + run.count - 1) / run.count);
  if (history != nullptr) {
    grant.number = history->number() + (planted(Fault::kNumberStands) ? 0 : 1);
    grant.attempts = history->attempts();
    grant.losses = static_cast<std::uint16_t>(history->losses());
    grant.suspect = history->suspect();
  }
  session.grants.add(run.first, run.count, grant);
  session.outstanding += run.count;
  session.outstanding_bytes += std::uint64_t{run.count} * grant.bytes;
  if (grant.suspect) session.exclusive = true;
  if (session.deliver.empty()) group.delivering.push_back(&session);
  session.deliver_messages += run.count;
  session.deliver_bytes += bytes;
  session.deliver.push_back({std::move(run), grant.number, grant.attempts + 1});
  if (session.deliver_messages >= kFrameMessagesMax || session.deliver_bytes >= kFrameBytesMax) {
    flush_deliveries(session);
  }
}

// High first, then normal, then low; but each priority that has something ready gets a share.
DispatcherCore::LaneState* DispatcherCore::next_lane(Group& group) {
  using Order = std::array<Priority, spool::kPriorities>;
  static constexpr Order kUsual{Priority::kHigh, Priority::kNormal, Priority::kLow};
  static constexpr Order kNormalShare{Priority::kNormal, Priority::kHigh, Priority::kLow};
  static constexpr Order kLowShare{Priority::kLow, Priority::kNormal, Priority::kHigh};
  const Order* order = &kUsual;
  if (group.turns % kTurnsOfNormal == kTurnsOfNormal - 1) order = &kNormalShare;
  if (group.turns % kTurnsOfLow == kTurnsOfLow - 1) order = &kLowShare;
  if (planted(Fault::kPriorityIgnored)) order = &kLowShare;
  for (const auto priority : *order) {
    auto& old = group.lane(Lane::kOld, priority);
    auto& lane = !group.gated && !old.ready.empty() ? old : group.lane(Lane::kLive, priority);
    if (!lane.ready.empty() && !stalls(group, lane)) return &lane;
  }
  return nullptr;
}

// Grants the first of what is ready: due again, then by priority, old before new. How many left
// what is ready, `most` at most; 0 if nothing may go.
std::uint32_t DispatcherCore::grant_front(Group& group, Session& session, std::size_t most,
                                          Now now) {
  LaneState* lane = nullptr;
  if (group.again.empty()) {
    if (held_back(group)) return 0;
    lane = next_lane(group);
    if (lane == nullptr) return 0;
    if (lane->ready.front().count > 1) return grant_run(group, session, *lane, most);
  }
  spool::StoredRun message;
  if (lane == nullptr) {
    message = group.again.pop();
    if (group.state->is_settled(message.first)) return 1;  // dropped since
  } else {
    message = lane->pop(1);
    ++group.turns;
    if (message.key != 0) line_up_late(group, message.first);
  }
  if (!has_turn(group, message)) return 1;
  if (is_expired(group, message, now)) {
    expire(group, message);
  } else {
    grant(group, session, std::move(message));
  }
  return 1;
}

// The same for messages that are neighbours and have neither keys nor times: as many as may go to
// this session before it is another lane's turn.
std::uint32_t DispatcherCore::grant_run(Group& group, Session& session, LaneState& lane,
                                        std::size_t most) {
  const auto& front = lane.ready.front();
  const std::size_t bytes_each = front.bytes() / front.count;
  most = std::min<std::size_t>({most, group.allowed, front.count, session.room_for(bytes_each),
                                kFrameMessagesMax, kFrameBytesMax / bytes_each + 1});
  if (lane.messages < group.ready_count()) {  // others are ready too
    const std::uint64_t turn = group.turns % kTurnsOfNormal;
    most = std::min<std::size_t>(most, std::max<std::uint64_t>(1, kTurnsOfNormal - 1 - turn));
  }
  // A history that came since it was read is looked at for each.
  if (group.state->any_history({front.first, most})) most = 1;
  auto run = lane.pop(static_cast<std::uint32_t>(most));
  group.turns += run.count;
  const std::uint32_t count = run.count;
  grant(group, session, std::move(run));
  return count;
}

void DispatcherCore::grant_suspects(Group& group, Now now) {
  while (!group.suspects.empty() && group.allowed > 0) {
    Session* idle = nullptr;
    Session* least = nullptr;
    bool reserved = false;
    for (auto* session : group.sessions) {
      if (!session->recorded || session->peer.empty() || session->broken_at || session->exclusive ||
          session->window_messages == 0 || session->closed) {
        continue;
      }
      reserved = reserved || session->reserved;
      if (session->outstanding == 0 || planted(Fault::kSuspectsInCompany)) idle = session;
      if (least == nullptr || session->outstanding < least->outstanding) least = session;
    }
    if (idle == nullptr) {
      if (!reserved && least != nullptr) least->reserved = group.any_reserved = true;
      return;
    }
    if (std::exchange(idle->reserved, false)) note_room(*idle);
    auto message = group.suspects.pop();
    if (group.state->is_settled(message.first)) continue;  // dropped since
    if (!has_turn(group, message)) continue;
    if (is_expired(group, message, now)) {
      expire(group, message);
    } else {
      grant(group, *idle, std::move(message));
    }
  }
  if (!group.suspects.empty() || !std::exchange(group.any_reserved, false)) return;
  for (auto* session : group.sessions) {
    if (std::exchange(session->reserved, false)) note_room(*session);
  }
}

void DispatcherCore::dispatch(Group& group, Now now) {
  if (!group.all_read()) {
    group.not_ready = group.waiting.size() + group.waiting_old.size();
    for (const auto* session : group.sessions) group.not_ready += session->grants.size();
  }
  group.allowed = allowance(group, now);
  grant_suspects(group, now);
  bool progress = true;
  while (progress && group.allowed > 0) {
    const std::size_t ready = held_back(group) ? group.again.size() : group.ready_count();
    if (ready == 0) break;
    std::size_t with_room = 0;
    Session* session = least_loaded(group, with_room);
    if (session == nullptr) break;
    // Shrinks as the backlog does, so that the last few are spread over all.
    const std::size_t chunk =
        group.sessions.size() == 1
            ? ready
            : std::clamp<std::size_t>(ready / (2 * with_room), 1, kGrantChunkMax);
    for (std::size_t i = 0; i < chunk && session->has_room() && group.allowed > 0;) {
      const auto gone = grant_front(group, *session, chunk - i, now);
      progress = gone > 0;
      if (!progress) break;
      i += gone;
    }
  }
  for (auto* session : std::exchange(group.delivering, {})) flush_deliveries(*session);
  announce(group);
}

// Messages that could go out now if there were room. An estimate while they are not in memory.
std::uint64_t DispatcherCore::waiting_in(const Group& group) const {
  if (group.state->paused()) return 0;
  std::uint64_t most = UINT64_MAX;
  if (group.limits.concurrency != 0) most = group.limits.concurrency;
  if (group.bucket) {
    // What a worker keeps room for could go out soon.
    most = std::min(most, std::max<std::uint64_t>(1, group.bucket->within(kRoomFor)));
  }
  return std::min(most, waiting_without_limits(group));
}

std::uint64_t DispatcherCore::waiting_without_limits(const Group& group) const {
  if (held_back(group)) return group.again.size() + group.suspects.size();
  std::uint64_t waiting = group.ready_count() + group.suspects.size();
  if (group.all_read()) return waiting;
  const std::uint64_t pending = group.state->counts().pending;
  return std::max(waiting, pending > group.not_ready ? pending - group.not_ready : 0);
}

void DispatcherCore::tell_waiting(Session& session, std::uint64_t waiting) {
  session.told_waiting = waiting;
  send(session, encode(Backlog{waiting}));
}

void DispatcherCore::note_room(Session& session) {
  Group& group = *groups_[session.group];
  if (session.told_waiting != 0 && !std::exchange(session.asks, true)) {
    group.asking.push_back(&session);
  }
  if (!session.has_room()) return;
  if (!std::exchange(session.roomy, true)) group.roomy.push_back(&session);
  if (std::exchange(session.fresh, true)) return;
  if (group.fresh.size() == kFreshMax) {
    group.fresh.front()->fresh = false;
    group.fresh.erase(group.fresh.begin());
  }
  group.fresh.push_back(&session);
}

// A backlog that leaves 0 is told at once, also one that is no more to whoever kept room for it.
void DispatcherCore::announce(Group& group) {
  const auto waiting = waiting_in(group);
  for (auto* session : std::exchange(group.asking, {})) {
    session->asks = false;
    if (waiting == 0 && session->told_waiting != 0) tell_waiting(*session, 0);
  }
  if (waiting == 0 || waiting < group.told_for / 2) group.told_for = waiting;
  if (waiting <= group.told_for) return;
  const std::size_t count = group.sessions.size();
  const auto most = std::min<std::uint64_t>(
      count, std::max(kToldMin, kToldPerMessage * (waiting - group.told_for)));
  group.told_for = waiting;
  for (std::size_t i = 0; i < most; ++i) {
    auto& session = *group.sessions[(group.announced_to + i) % count];
    if (!session.recorded || session.peer.empty()) continue;
    const auto told = session.told_waiting;
    if (told != 0 && waiting < told * kToldAgain && waiting * kToldAgain > told) continue;
    tell_waiting(session, waiting);
  }
  if (count > 0) group.announced_to = (group.announced_to + most) % count;
}

// Delivery records ride in the next commit. A crash before that is covered by the session's own
// word in HELLO: see adopt().
void DispatcherCore::record_deliveries(Session& session) {
  std::map<std::uint32_t, SequenceRuns> by_number;
  SequenceRuns* same = nullptr;  // as the one before: most are the first delivery
  std::uint32_t number_before = 0;
  for (const auto& each : session.deliver) {
    if (same == nullptr || each.number != number_before) {
      number_before = each.number;
      same = &by_number[number_before];
    }
    same->add(each.run.first, each.run.count);
  }
  Submission submission;
  submission.lazy = true;
  for (auto& [number, sequences] : by_number) {
    sequences.sort();
    submission.entries.push_back(
        log_entry(RecordType::kDelivery,
                  spool::encode(spool::DeliveryRecord{session.group, session.id, number,
                                                      std::move(sequences), now_ms_})));
  }
  actions_.submissions.push_back(std::move(submission));
}

void DispatcherCore::flush_deliveries(Session& session) {
  if (session.deliver.empty()) return;
  record_deliveries(session);
  session.told_waiting = waiting_in(*groups_[session.group]);
  auto deliver = std::exchange(session.deliver, {});
  session.deliver_messages = session.deliver_bytes = 0;
  // Those of a frame have one number and one attempt. Most are the first of both.
  std::stable_sort(deliver.begin(), deliver.end(), [](const Delivery& one, const Delivery& other) {
    return std::pair(one.number, one.attempt) < std::pair(other.number, other.attempt);
  });
  std::vector<spool::StoredRun> runs;
  for (std::size_t i = 0; i < deliver.size(); ++i) {
    auto& each = deliver[i];
    if (!runs.empty() && runs.back().goes_on(each.run)) {
      runs.back().count += each.run.count;
    } else {
      runs.push_back(std::move(each.run));
    }
    const bool last = i + 1 == deliver.size() || deliver[i + 1].number != each.number ||
                      deliver[i + 1].attempt != each.attempt;
    if (last) {
      send_deliveries(session, runs,
                      {options_.epoch, each.number, each.attempt, session.told_waiting});
    }
  }
  deliver.clear();
  session.deliver = std::move(deliver);  // its room is used again
}

// Long runs are sent from where they lie; short ones are copied into one frame. Takes the runs.
void DispatcherCore::send_deliveries(Session& session, std::vector<spool::StoredRun>& runs,
                                     const Deliver& head) {
  if (session.peer.empty()) return runs.clear();
  // Before the next delivery of the same message: a worker must not take it for the one that it
  // answered.
  if (!planted(Fault::kRetryAnsweredAgain)) flush_confirm(session);
  const std::string frame = encode(head);
  const auto is_long = [&](const spool::StoredRun& run) {
    return runs.size() == 1 || run.bytes() >= kWorthSharing;
  };
  auto packed = std::make_shared<std::string>();
  const auto flush = [&] {
    if (packed->empty()) return;
    const std::string_view bytes = *packed;
    actions_.sends.push_back({session.peer, frame, bytes, std::move(packed)});
    packed = std::make_shared<std::string>();
  };
  for (auto& run : runs) {
    const auto bytes = run.records->extent(run.index, run.index + run.count);
    if (!is_long(run)) {
      packed->append(bytes);
      continue;
    }
    flush();
    actions_.sends.push_back({session.peer, frame, bytes, std::move(run.records)});
  }
  flush();
  runs.clear();
}

void DispatcherCore::settle_answered(Group& group, spool::Settlement settlement,
                                     std::vector<Answered> answered) {
  SequenceRuns sequences;
  for (const auto& each : answered) sequences.add(each.run);
  sequences.sort();
  Submission submission;
  submission.entries.push_back(log_entry(
      RecordType::kSettlement, spool::encode(spool::SettlementRecord{
                                   group.state->id(), settlement, std::move(sequences), now_ms_})));
  submission.lazy = true;
  Ticket ticket;
  ticket.group = group.state->id();
  ticket.settlement = settlement;
  ticket.sequences = std::move(answered);
  submission.ticket = open_ticket(std::move(ticket));
  actions_.submissions.push_back(std::move(submission));
}

void DispatcherCore::flush_settlements() {
  const auto settle = [&](Group& group, spool::Settlement settlement,
                          const std::vector<Answered>& answered) {
    std::uint64_t messages = 0;
    std::vector<Answered> piece;
    for (const auto& each : answered) {
      if (messages + each.run.count > kSettlementSequencesMax) {
        settle_answered(group, settlement, std::exchange(piece, {}));
        messages = 0;
      }
      messages += each.run.count;
      piece.push_back(each);
    }
    settle_answered(group, settlement, std::move(piece));
  };
  for (const auto& group : groups_) {
    if (!group->done.empty()) {
      settle(*group, spool::Settlement::kDone, std::exchange(group->done, {}));
    }
    if (group->expired.empty()) continue;
    std::vector<Answered> expired;
    for (const auto& run : std::exchange(group->expired, {})) expired.push_back({Uuid{}, run});
    settle(*group, spool::Settlement::kExpired, expired);
  }
}

void DispatcherCore::confirm(Session& session, std::uint64_t epoch, std::uint32_t number,
                             const SequenceRun& run) {
  if (confirming_.empty()) confirms_since_ = heard_now_;
  if (!std::exchange(session.confirming, true)) confirming_.push_back(&session);
  session.confirm[{epoch, number}].add(run);
  ++session.confirm_parts;
}

// To a session that is connected.
void DispatcherCore::flush_confirm(Session& session) {
  if (session.confirm.empty()) return;
  for (auto& [token, sequences] : session.confirm) sequences.sort();
  for (auto& tokens : in_frames(session.confirm)) send(session, encode(Confirm{std::move(tokens)}));
  session.confirm.clear();
  session.confirm_parts = 0;
}

// They go with the next deliveries, which wake the worker anyway; or soon without any.
void DispatcherCore::flush_confirms() {
  std::erase_if(confirming_, [](Session* session) {
    session->confirming = !session->confirm.empty();
    return !session->confirming;
  });
  if (confirming_.empty() || heard_now_ < confirms_since_ + options_.confirm_within) return;
  std::erase_if(confirming_, [&](Session* session) {
    if (session->peer.empty()) return false;
    flush_confirm(*session);
    session->confirming = false;
    return true;
  });
  confirms_since_ = heard_now_;  // of who is not connected
}

}  // namespace dray::balancing
