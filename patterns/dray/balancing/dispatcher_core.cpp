#include "dray/balancing/dispatcher_core.hpp"

#include <algorithm>
#include <cmath>

#include "dray/balancing/dispatcher_state.hpp"

namespace dray::balancing {

using spool::GroupId;
using spool::GroupState;
using spool::History;
using spool::LogEntry;
using spool::RecordType;
using spool::Submission;

namespace {

constexpr std::size_t kFrameMessagesMax = 1'024;
constexpr std::size_t kFrameBytesMax = 1U << 20;
constexpr std::size_t kGrantChunkMax = 128;
constexpr std::size_t kSettlementSequencesMax = 65'536;

constexpr Sequence kSequenceMax = 1ULL << 56;
constexpr Milliseconds kClockJump{60'000};
// A wall clock that has not jumped for so long is believed again.
constexpr auto kClockSteady = std::chrono::minutes(5);

std::int64_t to_ms(UtcTime time) {
  return time.time_since_epoch().count();
}

LogEntry entry(RecordType type, std::string payload) {
  return {type, 0, std::move(payload), 0};
}

}  // namespace

DispatcherCore::DispatcherCore(const DispatcherOptions& options,
                               std::vector<std::unique_ptr<GroupState>> groups,
                               const std::vector<spool::RecordedSession>& recorded, Router router,
                               Now now)
    : options_(options),
      router_(std::move(router)),
      started_(now.steady),
      accepted_until_(options_.boundary),
      random_(options_.seed) {
  for (auto& each : groups) {
    auto group = std::make_unique<Group>();
    group->state = std::move(each);
    const auto& state = *group->state;
    group->old_lane.cursor = std::min(state.first_plain(), state.known());
    group->old_lane.caught_up = group->old_lane.cursor >= options_.boundary;
    group->live_lane.cursor = std::max(options_.boundary, std::min(state.known(), kSequenceMax));
    group->live_lane.passed = group->accepted_before = state.counts().accepted;
    group->live_lane.caught_up = true;
    groups_.push_back(std::move(group));
  }
  for (const auto& session : recorded) {
    recorded_[session.id] = session;
    expected_.insert(session.id);
    if (session.group >= groups_.size() || planted(Fault::kGateIgnored)) continue;
    groups_[session.group]->gated = true;
  }
  for (const auto& group : groups_) {
    std::vector<std::pair<std::int64_t, Sequence>> waiting;
    for (const auto& [sequence, history] : group->state->entries()) {
      const bool at_hand = history.due_ms() == History::kAtHand;
      if (!history.dead()) waiting.emplace_back(at_hand ? 0 : history.due_ms(), sequence);
    }
    for (const auto& [due_ms, sequence] : waiting) schedule(*group, sequence, due_ms);
  }
  if (options_.last_utc_ms > to_ms(now.utc) + kClockJump.count()) {
    expiry_paused_until_ = now.steady + kClockSteady;
  }
}

DispatcherCore::~DispatcherCore() = default;

// --- frames ---------------------------------------------------------------------------------

DispatcherCore::Session* DispatcherCore::session_of_peer(const std::string& peer) {
  const auto found = peers_.find(peer);
  return found == peers_.end() ? nullptr : found->second;
}

void DispatcherCore::on_frame(const std::string& peer, const ProtocolFrame& frame, Now now) {
  if (const auto* hello = std::get_if<Hello>(&frame)) return on_hello(peer, *hello, now);
  Session* session = session_of_peer(peer);
  if (session == nullptr) {
    actions_.sends.push_back({peer, encode(Refused{"unknown-session", "say HELLO first"})});
    return;
  }
  const bool heartbeat = std::holds_alternative<Heartbeat>(frame);
  if (!heartbeat || !planted(Fault::kLeaseNotRenewed)) session->heard_at = now.steady;
  if (const auto* window = std::get_if<Window>(&frame)) {
    session->window_messages = std::max<std::uint32_t>(window->messages, 0);
    session->window_bytes = window->bytes;
  } else if (const auto* result = std::get_if<ResultFrame>(&frame)) {
    on_result(*session, *result, now);
  } else if (std::holds_alternative<Bye>(frame)) {
    end_session(*session, "bye", false, now);
  }
}

void DispatcherCore::on_hello(const std::string& peer, const Hello& hello, Now now) {
  const auto group_id = find_group(hello.group);
  if (!group_id) {
    actions_.sends.push_back(
        {peer, encode(Refused{"unknown-group", "this spool has no group '" + hello.group + "'"})});
    return;
  }
  const auto known = sessions_.find(hello.session);
  if (known == sessions_.end() && sessions_.size() >= options_.sessions_max) {
    actions_.sends.push_back({peer, encode(Refused{"too-many-sessions", "try again later"})});
    return;
  }
  const bool fresh = known == sessions_.end();
  auto& slot = sessions_[hello.session];
  if (fresh) {
    slot = std::make_unique<Session>();
    slot->id = hello.session;
    slot->group = *group_id;
    groups_[*group_id]->sessions.push_back(slot.get());
  }
  Session& session = *slot;
  const bool same_connection = session.peer == peer;
  peers_.erase(session.peer);
  peers_.erase(session.gone_peer);
  session.gone_peer.clear();
  session.peer = peer;
  peers_[peer] = &session;
  session.worker = hello.worker;
  session.retry = hello.retry;
  session.window_messages = hello.window_messages;
  session.window_bytes = hello.window_bytes;
  session.heard_at = session.pinged_at = now.steady;
  session.broken_at.reset();
  if (!fresh) {
    reconcile(session, hello.held, same_connection, now);
    if (session.recorded) welcome(session);
    return;
  }
  adopt(session, hello.held, now);
  if (recorded_.count(session.id) != 0) {  // the log knows it from an earlier epoch
    session.recorded = true;
    return welcome(session);
  }
  if (planted(Fault::kSessionNotRecorded)) {
    session.recorded = true;
    return welcome(session);
  }
  Ticket ticket;
  ticket.kind = Ticket::Kind::kSession;
  ticket.session = session.id;
  Submission submission;
  submission.entries.push_back(entry(
      RecordType::kSession, to_bytes(spool::SessionRecord{Binary{std::string(session.id.view())},
                                                          session.group, session.worker})));
  submission.ticket = open_ticket(std::move(ticket));
  actions_.submissions.push_back(std::move(submission));
}

void DispatcherCore::welcome(Session& session) {
  send(session, encode(Welcome{options_.spool, options_.epoch,
                               static_cast<std::uint32_t>(options_.lease.count()),
                               static_cast<std::uint32_t>(options_.reconnect_grace.count())}));
}

// A session that this epoch does not know yet says what it holds (P5). Behind the gate its word
// is taken, if the log grants it no later delivery to anyone; else it is told to forget.
void DispatcherCore::adopt(Session& session, const std::vector<TokenRange>& held, Now) {
  Group& group = *groups_[session.group];
  const bool expected = expected_.erase(session.id) != 0;
  for (const auto& range : held) {
    for (const auto sequence : range.sequences) {
      const auto* history = group.state->history(sequence);
      const bool later_grant =
          history != nullptr &&
          (history->dead() || history->number_epoch() > static_cast<std::uint32_t>(range.epoch) ||
           history->number() > range.number ||
           (history->ended() && history->number() == range.number));
      if (held_elsewhere(group, session, sequence, range) || !group.gated || !expected ||
          planted(Fault::kHeldNotBelieved) || sequence >= options_.boundary || later_grant ||
          group.state->is_settled(sequence) || session.grants.count(sequence) != 0) {
        session.confirm[{range.epoch, range.number}].push_back(sequence);
        continue;
      }
      Grant grant;
      grant.epoch = range.epoch;
      grant.number = range.number;
      if (history != nullptr) {
        grant.attempts = history->attempts();
        grant.losses = static_cast<std::uint16_t>(history->losses());
      }
      // With an entry at hand neither the old lane nor the waiting queue takes it.
      group.state->delivered(sequence, range.number, static_cast<std::uint32_t>(range.epoch));
      group.state->take(sequence);
      session.grants.emplace(sequence, grant);
      ++session.outstanding;
    }
  }
}

// Both may say that they hold it: the delivery record of the later grant was lost in the crash. The
// later grant counts; its elder is told to forget.
bool DispatcherCore::held_elsewhere(Group& group, const Session& session, Sequence sequence,
                                    const TokenRange& range) {
  for (auto* other : group.sessions) {
    if (other == &session) continue;
    const auto found = other->grants.find(sequence);
    if (found == other->grants.end()) continue;
    const bool later =
        std::pair(range.epoch, range.number) > std::pair(found->second.epoch, found->second.number);
    if (!later || found->second.settling) return true;
    other->answered(found->second);
    other->confirm[{found->second.epoch, found->second.number}].push_back(sequence);
    other->grants.erase(found);
  }
  return false;
}

// A session of this epoch reconnected: what it does not hold never reached it. Unless it only
// repeats itself: then it may be on its way.
void DispatcherCore::reconcile(Session& session, const std::vector<TokenRange>& held,
                               bool same_connection, Now now) {
  Group& group = *groups_[session.group];
  std::set<Sequence> holds;
  for (const auto& range : held) {
    for (const auto sequence : range.sequences) {
      const auto found = session.grants.find(sequence);
      if (found != session.grants.end() && found->second.epoch == range.epoch &&
          found->second.number == range.number) {
        holds.insert(sequence);
      } else {
        session.confirm[{range.epoch, range.number}].push_back(sequence);
      }
    }
  }
  if (same_connection) return;
  for (auto each = session.grants.begin(); each != session.grants.end();) {
    if (each->second.settling || holds.count(each->first) != 0 ||
        planted(Fault::kHeldNotReconciled)) {
      ++each;
      continue;
    }
    session.answered(each->second);
    give_back(group, each->first, each->second, now);
    each = session.grants.erase(each);
  }
}

void DispatcherCore::on_unsent(const Send& send, Now now) {
  Session* session = session_of_peer(send.peer);
  if (session == nullptr) return;
  if (!session->peer.empty()) {
    // The next frames to it come back too: they must still find the session.
    session->gone_peer = std::exchange(session->peer, {});
    session->broken_at = now.steady;
  }
  const auto frame = decode_frame(send.frame);
  if (planted(Fault::kUnsentCounts)) return;
  const auto* deliver = frame.ok() ? std::get_if<Deliver>(&*frame) : nullptr;
  if (deliver == nullptr) return;
  // P4: it never arrived, so it is no attempt, and others can have it now.
  for (const auto& each : deliver->deliveries) {
    const auto found = session->grants.find(each.sequence);
    if (found == session->grants.end() || found->second.settling ||
        found->second.epoch != deliver->epoch || found->second.number != each.number) {
      continue;
    }
    session->answered(found->second);
    give_back(*groups_[session->group], each.sequence, found->second, now);
    session->grants.erase(found);
  }
}

void DispatcherCore::on_link_broken() {
  for (const auto& [id, session] : sessions_) ping(*session);
}

void DispatcherCore::ping(Session& session) {
  send(session, encode(Heartbeat{}));
}

void DispatcherCore::send(const Session& session, std::string frame) {
  if (!session.peer.empty()) actions_.sends.push_back({session.peer, std::move(frame)});
}

// --- results --------------------------------------------------------------------------------

void DispatcherCore::on_result(Session& session, const ResultFrame& frame, Now now) {
  for (const auto& item : frame.items) {
    for (const auto sequence : item.tokens.sequences) apply_result(session, item, sequence, now);
  }
}

void DispatcherCore::apply_result(Session& session, const ResultItem& item, Sequence sequence,
                                  Now now) {
  Group& group = *groups_[session.group];
  const auto found = session.grants.find(sequence);
  if (found == session.grants.end() && planted(Fault::kStaleResultAccepted)) {
    for (auto* other : group.sessions) {
      const auto theirs = other->grants.find(sequence);
      if (theirs == other->grants.end() || theirs->second.settling) continue;
      other->answered(theirs->second);
      return finish_done(*other, group, theirs->second, sequence, item, now);
    }
  }
  const bool same = found != session.grants.end() && found->second.epoch == item.tokens.epoch &&
                    found->second.number == item.tokens.number;
  if (!same) {
    ++stale_results_;  // P3: told to forget, nothing changes
    session.confirm[{item.tokens.epoch, item.tokens.number}].push_back(sequence);
    return;
  }
  Grant& grant = found->second;
  if (grant.settling) return;  // repeated; the confirmation comes with the commit
  session.answered(grant);
  switch (item.kind) {
    case ResultKind::kDone:
      if (planted(Fault::kConfirmBeforeCommit)) {
        session.confirm[{grant.epoch, grant.number}].push_back(sequence);
      }
      return finish_done(session, group, grant, sequence, item, now);
    case ResultKind::kRetry: {
      std::optional<Milliseconds> delay;
      if (item.delay_ms >= 0) {
        delay =
            Milliseconds(std::min<std::int64_t>(item.delay_ms, options_.snooze_age_max.count()));
      }
      return fail_attempt(session, group, grant, sequence, "attempts", item.reason, delay, now);
    }
    case ResultKind::kSnooze:
      return snooze(session, group, grant, sequence, item, now);
    case ResultKind::kReject:
      return write_dead(group, session, grant, sequence, grant.attempts + 1, "rejected",
                        item.reason, now);
    case ResultKind::kReturned:
      give_back(group, sequence, grant, now);
      session.confirm[{grant.epoch, grant.number}].push_back(sequence);
      session.grants.erase(found);
  }
}

void DispatcherCore::finish_done(Session& session, Group& group, Grant& grant, Sequence sequence,
                                 const ResultItem& item, Now now) {
  if (item.follow_ups.empty()) {
    group.done.emplace_back(session.id, sequence);
    return;
  }
  Submission submission;
  for (const auto& envelope : item.follow_ups) {
    const auto parsed = parse_envelope(envelope);
    const auto route = parsed.ok() ? router_(parsed->topic) : 0;
    if (route == 0) {
      return fail_attempt(session, group, grant, sequence, "unroutable",
                          "unroutable: no group takes the follow-up's topic" +
                              (parsed.ok() ? " '" + std::string(parsed->topic) + "'" : ""),
                          std::nullopt, now);
    }
    LogEntry message = entry(RecordType::kMessage, envelope);
    const bool has_options = !parsed->dedup.empty() || parsed->deliver_at || parsed->expires_at;
    message.flags = static_cast<std::uint8_t>(spool::message_flags(parsed->priority, has_options) |
                                              spool::kContinues);
    message.groups = route;
    submission.entries.push_back(std::move(message));
  }
  // S6: the follow-ups and the settlement count together or not at all.
  submission.entries.push_back(entry(
      RecordType::kSettlement,
      spool::encode(spool::SettlementRecord{session.group, spool::Settlement::kDone, {sequence}})));
  submission.lazy = true;
  Ticket ticket;
  ticket.group = session.group;
  ticket.sequences.emplace_back(session.id, sequence);
  submission.ticket = open_ticket(std::move(ticket));
  actions_.submissions.push_back(std::move(submission));
}

Milliseconds DispatcherCore::back_off(const RetryPolicy& policy, std::uint32_t attempts) {
  const double doubled =
      static_cast<double>(policy.initial.count()) * std::exp2(std::min(attempts - 1, 40U));
  const double bounded = std::min(doubled, static_cast<double>(policy.max.count()));
  std::uniform_real_distribution<double> spread(1 - policy.jitter, 1 + policy.jitter);
  return Milliseconds(std::llround(bounded * spread(random_)));
}

void DispatcherCore::fail_attempt(Session& session, Group& group, Grant& grant, Sequence sequence,
                                  const std::string& cause, const std::string& reason,
                                  std::optional<Milliseconds> delay, Now now) {
  const std::uint32_t attempts = grant.attempts + (planted(Fault::kAttemptNotCounted) ? 0 : 1);
  if (attempts >= session.retry.max_attempts) {
    return write_dead(group, session, grant, sequence, attempts, cause, reason, now);
  }
  const auto wait = delay.value_or(back_off(session.retry, attempts));
  write_retry(group, session, grant, sequence, attempts, grant.losses, to_ms(now.utc + wait), false,
              reason, now);
}

void DispatcherCore::snooze(Session& session, Group& group, Grant& grant, Sequence sequence,
                            const ResultItem& item, Now now) {
  const auto delay =
      Milliseconds(std::clamp<std::int64_t>(item.delay_ms, 0, options_.snooze_age_max.count()));
  write_retry(group, session, grant, sequence, grant.attempts, grant.losses, to_ms(now.utc + delay),
              false, item.reason.empty() ? "snoozed" : "snoozed: " + item.reason, now);
}

void DispatcherCore::write_dead(Group& group, Session& session, const Grant& grant,
                                Sequence sequence, std::uint32_t attempts, const std::string& cause,
                                const std::string& reason, Now now) {
  const auto* history = group.state->history(sequence);
  Ticket ticket;
  ticket.kind = Ticket::Kind::kDead;
  ticket.group = group.state->id();
  ticket.sequences.emplace_back(session.id, sequence);
  ticket.dead = {group.state->id(), sequence,       grant.number,
                 attempts,          cause,          reason,
                 session.worker,    to_ms(now.utc), history != nullptr ? history->record_lsn() : 0};
  Submission submission;
  submission.entries.push_back(entry(RecordType::kDead, to_bytes(ticket.dead)));
  submission.lazy = true;
  submission.ticket = open_ticket(std::move(ticket));
  actions_.submissions.push_back(std::move(submission));
}

void DispatcherCore::write_retry(Group& group, Session& session, const Grant& grant,
                                 Sequence sequence, std::uint32_t attempts, std::uint32_t losses,
                                 std::int64_t due_ms, bool suspect, const std::string& reason,
                                 Now now) {
  const auto* history = group.state->history(sequence);
  Ticket ticket;
  ticket.kind = Ticket::Kind::kRetry;
  ticket.group = group.state->id();
  ticket.sequences.emplace_back(session.id, sequence);
  ticket.retry = {group.state->id(),
                  sequence,
                  grant.number,
                  attempts,
                  losses,
                  due_ms,
                  suspect,
                  reason,
                  session.worker,
                  to_ms(now.utc),
                  history != nullptr ? history->record_lsn() : 0};
  Submission submission;
  submission.entries.push_back(entry(RecordType::kRetry, to_bytes(ticket.retry)));
  submission.lazy = true;
  submission.ticket = open_ticket(std::move(ticket));
  actions_.submissions.push_back(std::move(submission));
}

// The grant ends without an attempt: returned, or it never arrived.
void DispatcherCore::give_back(Group& group, Sequence sequence, const Grant& grant, Now now) {
  group.state->delivered(sequence, grant.number, static_cast<std::uint32_t>(grant.epoch));
  schedule(group, sequence, to_ms(now.utc));
}

// --- sessions -------------------------------------------------------------------------------

void DispatcherCore::end_session(Session& session, const std::string& reason, bool lost, Now now) {
  Group& group = *groups_[session.group];
  if (lost) {
    lose_grants(session, reason, now);
  } else {
    for (auto& [sequence, grant] : session.grants) {
      if (grant.settling) continue;
      session.answered(grant);
      give_back(group, sequence, grant, now);
    }
  }
  Submission submission;
  submission.entries.push_back(
      entry(RecordType::kSessionEnd,
            to_bytes(spool::SessionEndRecord{Binary{std::string(session.id.view())}, reason})));
  submission.lazy = true;
  actions_.submissions.push_back(std::move(submission));
  recorded_.erase(session.id);
  peers_.erase(session.peer);
  peers_.erase(session.gone_peer);
  auto& list = group.sessions;
  list.erase(std::remove(list.begin(), list.end(), &session), list.end());
  sessions_.erase(session.id);  // `session` is gone from here on
}

// P4: a message that was alone with the worker when it died counts an attempt; those that were in
// company are suspects and come back one at a time.
void DispatcherCore::lose_grants(Session& session, const std::string& reason, Now now) {
  Group& group = *groups_[session.group];
  const bool alone = session.outstanding == 1;
  for (auto& [sequence, grant] : session.grants) {
    if ((grant.settling && !planted(Fault::kSettlingLost)) || planted(Fault::kLostNotReturned)) {
      continue;
    }
    if (alone) {
      fail_attempt(session, group, grant, sequence, "lost", reason, std::nullopt, now);
    } else {
      write_retry(group, session, grant, sequence, grant.attempts, grant.losses + 1U,
                  to_ms(now.utc), true, reason + ", in company", now);
    }
  }
}

void DispatcherCore::tick(Now now) {
  std::vector<Session*> lost;
  const auto ping_every = options_.lease / 4;
  for (const auto& [id, session] : sessions_) {
    const bool silent = now.steady - session->heard_at >= options_.lease;
    const bool broken =
        session->broken_at && now.steady - *session->broken_at >= options_.reconnect_grace;
    if (silent || broken) {
      lost.push_back(session.get());
    } else if (now.steady - session->pinged_at >= ping_every) {
      session->pinged_at = now.steady;
      ping(*session);
    }
  }
  for (auto* session : lost) {
    end_session(
        *session,
        session->broken_at ? "worker lost: connection broken" : "worker lost: silent for a lease",
        true, now);
  }
  watch_clock(now);
  open_gates(now);
  for (const auto& group : groups_) move_due(*group, now);
}

void DispatcherCore::open_gates(Now now) {
  const bool over = now.steady - started_ >= options_.lease;
  for (const auto& group : groups_) {
    if (!group->gated) continue;
    const bool waiting = std::any_of(expected_.begin(), expected_.end(), [&](const Uuid& id) {
      return recorded_.at(id).group == group->state->id();
    });
    if (waiting && !over) continue;
    group->gated = false;
    for (; !group->waiting_old.empty(); group->waiting_old.pop()) {
      group->waiting.push(group->waiting_old.top());
    }
    for (auto each = expected_.begin(); each != expected_.end();) {
      if (recorded_.at(*each).group != group->state->id()) {
        ++each;
        continue;
      }
      Submission submission;
      submission.entries.push_back(
          entry(RecordType::kSessionEnd,
                to_bytes(spool::SessionEndRecord{Binary{std::string(each->view())},
                                                 "silent after a restart"})));
      submission.lazy = true;
      actions_.submissions.push_back(std::move(submission));
      recorded_.erase(*each);
      each = expected_.erase(each);
    }
  }
}

SteadyTime DispatcherCore::next_deadline(Now now) const {
  SteadyTime next = now.steady + options_.lease / 4;
  for (const auto& [id, session] : sessions_) {
    next = std::min(next, session->pinged_at + options_.lease / 4);
    if (session->broken_at) next = std::min(next, *session->broken_at + options_.reconnect_grace);
  }
  for (const auto& group : groups_) {
    if (group->gated) next = std::min(next, started_ + options_.lease);
    if (group->waiting.empty()) continue;
    // What finds no room now is moved by an answer, not by the time.
    if (group->again.size() + group->suspects.size() >= options_.ready_messages_max) continue;
    const auto wait =
        Milliseconds(std::max<std::int64_t>(0, group->waiting.top().first - to_ms(now.utc)));
    if (wait < options_.lease) next = std::min(next, now.steady + wait);
  }
  return std::max(next, now.steady);
}

// --- what is ready --------------------------------------------------------------------------

void DispatcherCore::schedule(Group& group, Sequence sequence, std::int64_t due_ms) {
  group.state->delay(sequence, due_ms);
  const bool old = sequence < options_.boundary;
  (old && group.gated ? group.waiting_old : group.waiting).push({due_ms, sequence});
}

void DispatcherCore::move_due(Group& group, Now now) {
  const std::int64_t now_ms = to_ms(now.utc);
  while (!group.waiting.empty() && group.waiting.top().first <= now_ms) {
    const std::size_t at_hand = group.again.size() + group.suspects.size() + group.fetching;
    if (at_hand >= options_.ready_messages_max) return;
    const auto [due_ms, sequence] = group.waiting.top();
    group.waiting.pop();
    // Settled, dead, taken or put off since it was queued.
    const auto* history = group.state->history(sequence);
    if (history == nullptr || history->dead() || history->due_ms() != due_ms) continue;
    group.state->take(sequence);
    ++group.fetching;
    actions_.fetches.push_back({group.state->id(), sequence});
  }
}

void DispatcherCore::on_fetched(GroupId id, Sequence sequence,
                                std::optional<ReadyMessage> message) {
  Group& group = *groups_.at(id);
  --group.fetching;
  if (group.state->is_settled(sequence)) return;           // dropped meanwhile
  if (!message) return settle_damaged(group, {sequence});  // P6: never silently dropped
  const auto* history = group.state->history(sequence);
  auto& queue = history != nullptr && history->suspect() ? group.suspects : group.again;
  queue.push_back(std::move(*message));
}

bool DispatcherCore::has_room(const LaneState& lane) const {
  return lane.ready.size() < options_.ready_messages_max && lane.bytes < options_.ready_bytes_max;
}

void DispatcherCore::accept(Group& group, const spool::Committed& committed) {
  auto& lane = group.live_lane;
  const spool::GroupMask bit = spool::GroupMask{1} << group.state->id();
  // P8: a few messages of a slow group must not keep the whole batch in memory.
  std::size_t own_bytes = 0;
  for (const auto& message : committed.messages) {
    if ((message.groups & bit) != 0) own_bytes += message.envelope.size();
  }
  const auto keep = [&](const spool::AcceptedMessage& message) -> ReadyMessage {
    if (own_bytes * 4 >= committed.bytes->size()) {
      return {message.sequence, message.deliver_at_ms, message.expires_at_ms, committed.bytes,
              message.envelope};
    }
    auto copy = std::make_shared<const std::string>(message.envelope);
    return {message.sequence, message.deliver_at_ms, message.expires_at_ms, copy, *copy};
  };
  spool::Lsn skip_from = committed.first;
  for (const auto& message : committed.messages) {
    if ((message.groups & bit) == 0) continue;
    group.state->accept();
    if (!lane.caught_up) continue;
    if (!has_room(lane) || (message.deliver_at_ms != 0 && held_full())) {
      lane.caught_up = false;
      lane.cursor = message.sequence;
      if (skip_from < message.sequence) group.state->skip(skip_from, message.sequence - 1);
      continue;
    }
    if (skip_from < message.sequence) group.state->skip(skip_from, message.sequence - 1);
    skip_from = message.sequence + 1;
    ++lane.passed;
    if (message.deliver_at_ms != 0) {
      schedule(group, message.sequence, message.deliver_at_ms);
      continue;
    }
    lane.bytes += message.envelope.size();
    lane.ready.push_back(keep(message));
  }
  if (!lane.caught_up) return;
  if (skip_from <= committed.last) group.state->skip(skip_from, committed.last);
  lane.cursor = committed.last + 1;
}

void DispatcherCore::on_committed(const spool::Committed& committed, Now now) {
  for (const auto& group : groups_) {
    if (group->state->standing() != spool::GroupStanding::kDropped) accept(*group, committed);
  }
  accepted_until_ = committed.last + 1;
  position_ = committed.position;
  for (const auto& [number, first] : committed.tickets) {
    const auto found = tickets_.find(number);
    if (found == tickets_.end()) continue;
    const Ticket ticket = std::move(found->second);
    tickets_.erase(found);
    on_ticket(ticket, first, now);
    if (ticket.report) actions_.finished.push_back(number);
  }
}

void DispatcherCore::request_refills(Group& group) {
  const bool full = held_full();
  const auto request = [&](Lane which, Sequence before) {
    auto& lane = group.lane(which);
    if (lane.caught_up || lane.reading || lane.ready.size() > options_.ready_messages_max / 2 ||
        lane.bytes > options_.ready_bytes_max / 2 || (lane.held_back && full)) {
      return;
    }
    lane.held_back = false;
    if (lane.cursor >= before) {
      lane.caught_up = true;
      return;
    }
    lane.reading = true;
    const auto& state = *group.state;
    const bool old = which == Lane::kOld;
    actions_.refills.push_back(
        {state.id(),
         which,
         {lane.cursor, before, old ? state.passed() : lane.passed,
          old ? state.known() : lane.cursor, options_.ready_messages_max - lane.ready.size(),
          options_.ready_bytes_max - lane.bytes, lane.gaps,
          old ? std::optional(group.accepted_before) : std::nullopt}});
  };
  if (!group.gated) request(Lane::kOld, options_.boundary);
  request(Lane::kLive, accepted_until_);
}

void DispatcherCore::on_refilled(GroupId id, Lane which, spool::BacklogSlice slice) {
  Group& group = *groups_.at(id);
  auto& lane = group.lane(which);
  auto& state = *group.state;
  lane.reading = false;
  for (const auto& [first, last] : slice.skips) state.skip(first, last);
  for (auto& message : slice.messages) {
    if (message.deliver_at_ms != 0) {
      schedule(group, message.sequence, message.deliver_at_ms);
      continue;
    }
    lane.bytes += message.envelope.size();
    lane.ready.push_back(std::move(message));
  }
  lane.gaps = std::move(slice.gaps);
  lane.held_back = held_full();
  lane.cursor = std::max(lane.cursor, slice.next);
  if (which == Lane::kLive) {
    lane.passed += slice.passed;
  } else if (slice.next > state.known()) {
    state.pass(slice.next, slice.passed);
  }
  const Sequence end = which == Lane::kOld ? options_.boundary : accepted_until_;
  lane.caught_up = lane.cursor >= end;
  if (!slice.lost.empty()) settle_damaged(group, std::move(slice.lost));
  for (const auto& part : slice.damaged) record_damage(group, part);
}

// --- granting -------------------------------------------------------------------------------

DispatcherCore::Session* DispatcherCore::least_loaded(Group& group, Now, std::size_t& with_room) {
  Session* best = nullptr;
  double best_load = 0;
  with_room = 0;
  for (auto* session : group.sessions) {
    if (!session->can_receive() || !session->has_room()) continue;
    ++with_room;
    const double load =
        static_cast<double>(session->outstanding) / static_cast<double>(session->window_messages);
    if (best == nullptr || load < best_load) {
      best = session;
      best_load = load;
    }
  }
  return best;
}

void DispatcherCore::expire(Group& group, Sequence sequence) {
  group.expired.push_back(sequence);
}

void DispatcherCore::grant(Group& group, Session& session, const ReadyMessage& message, Now) {
  const auto* history = group.state->history(message.sequence);
  Grant grant;
  grant.epoch = options_.epoch;
  grant.bytes = static_cast<std::uint32_t>(message.envelope.size());
  if (history != nullptr) {
    grant.number = history->number() + (planted(Fault::kNumberStands) ? 0 : 1);
    grant.attempts = history->attempts();
    grant.losses = static_cast<std::uint16_t>(history->losses());
    grant.suspect = history->suspect();
  }
  session.deliver.push_back({message.sequence, grant.number, grant.attempts + 1, message.envelope});
  session.deliver_owners.push_back(message.owner);
  session.deliver_bytes += message.envelope.size();
  ++session.outstanding;
  session.outstanding_bytes += grant.bytes;
  if (grant.suspect) session.exclusive = true;
  session.grants.insert_or_assign(message.sequence, grant);
  if (session.deliver.size() >= kFrameMessagesMax || session.deliver_bytes >= kFrameBytesMax) {
    flush_deliveries(session);
  }
}

// Grants the first of what is ready: due again, then old, then new. False if nothing is.
bool DispatcherCore::grant_front(Group& group, Session& session, Now now) {
  LaneState* lane = nullptr;
  std::deque<ReadyMessage>* queue = &group.again;
  if (queue->empty()) {
    if (held_full()) return false;
    lane = !group.gated && !group.old_lane.ready.empty() ? &group.old_lane : &group.live_lane;
    queue = &lane->ready;
  }
  if (queue->empty()) return false;
  ReadyMessage message = std::move(queue->front());
  queue->pop_front();
  if (lane != nullptr) lane->bytes -= message.envelope.size();
  if (lane == nullptr && group.state->is_settled(message.sequence)) return true;  // dropped since
  if (is_expired(message, now)) {
    expire(group, message.sequence);
  } else {
    grant(group, session, message, now);
  }
  return true;
}

void DispatcherCore::grant_suspects(Group& group, Now now) {
  while (!group.suspects.empty()) {
    Session* idle = nullptr;
    Session* least = nullptr;
    bool reserved = false;
    for (auto* session : group.sessions) {
      if (!session->recorded || session->peer.empty() || session->broken_at || session->exclusive ||
          session->window_messages == 0) {
        continue;
      }
      reserved = reserved || session->reserved;
      if (session->outstanding == 0 || planted(Fault::kSuspectsInCompany)) idle = session;
      if (least == nullptr || session->outstanding < least->outstanding) least = session;
    }
    if (idle == nullptr) {
      if (!reserved && least != nullptr) least->reserved = true;
      return;
    }
    idle->reserved = false;
    const ReadyMessage message = std::move(group.suspects.front());
    group.suspects.pop_front();
    if (group.state->is_settled(message.sequence)) continue;  // dropped since
    if (is_expired(message, now)) {
      expire(group, message.sequence);
    } else {
      grant(group, *idle, message, now);
    }
  }
  for (auto* session : group.sessions) session->reserved = false;
}

void DispatcherCore::dispatch(Group& group, Now now) {
  grant_suspects(group, now);
  for (;;) {
    // P8: at the limit only what is held already goes out.
    const std::size_t ready = held_full() ? group.again.size() : group.ready_count();
    if (ready == 0) break;
    std::size_t with_room = 0;
    Session* session = least_loaded(group, now, with_room);
    if (session == nullptr) break;
    // Shrinks as the backlog does, so that the last few are spread over all.
    const std::size_t chunk = std::clamp<std::size_t>(ready / (2 * with_room), 1, kGrantChunkMax);
    for (std::size_t i = 0; i < chunk && session->has_room(); ++i) {
      if (!grant_front(group, *session, now)) break;
    }
  }
  for (auto* session : group.sessions) flush_deliveries(*session);
}

void DispatcherCore::flush_deliveries(Session& session) {
  if (session.deliver.empty()) return;
  // Delivery records ride in the next commit. A crash before that is covered by the session's own
  // word in HELLO: see adopt().
  std::map<std::uint32_t, std::vector<Sequence>> by_number;
  for (const auto& delivered : session.deliver) {
    by_number[delivered.number].push_back(delivered.sequence);
  }
  Submission submission;
  submission.lazy = true;
  for (auto& [number, sequences] : by_number) {
    std::sort(sequences.begin(), sequences.end());
    submission.entries.push_back(
        entry(RecordType::kDelivery,
              spool::encode(spool::DeliveryRecord{session.group, session.id, number, sequences})));
  }
  actions_.submissions.push_back(std::move(submission));
  send(session, encode(Deliver{options_.epoch, std::move(session.deliver)}));
  session.deliver.clear();
  session.deliver_owners.clear();
  session.deliver_bytes = 0;
}

void DispatcherCore::flush_settlements() {
  const auto settle_piece = [&](Group& group, spool::Settlement settlement,
                                std::vector<std::pair<Uuid, Sequence>> answered) {
    std::vector<Sequence> sequences;
    sequences.reserve(answered.size());
    for (const auto& [session, sequence] : answered) sequences.push_back(sequence);
    std::sort(sequences.begin(), sequences.end());
    Submission submission;
    submission.entries.push_back(
        entry(RecordType::kSettlement, spool::encode(spool::SettlementRecord{
                                           group.state->id(), settlement, std::move(sequences)})));
    submission.lazy = true;
    Ticket ticket;
    ticket.group = group.state->id();
    ticket.settlement = settlement;
    ticket.sequences = std::move(answered);
    submission.ticket = open_ticket(std::move(ticket));
    actions_.submissions.push_back(std::move(submission));
  };
  const auto settle = [&](Group& group, spool::Settlement settlement,
                          std::vector<std::pair<Uuid, Sequence>> answered) {
    while (answered.size() > kSettlementSequencesMax) {
      const auto rest = answered.end() - static_cast<std::ptrdiff_t>(kSettlementSequencesMax);
      settle_piece(group, settlement, {rest, answered.end()});
      answered.erase(rest, answered.end());
    }
    settle_piece(group, settlement, std::move(answered));
  };
  for (const auto& group : groups_) {
    if (!group->done.empty()) settle(*group, spool::Settlement::kDone, std::move(group->done));
    group->done.clear();
    if (group->expired.empty()) continue;
    std::vector<std::pair<Uuid, Sequence>> expired;
    for (const auto sequence : group->expired) expired.emplace_back(Uuid{}, sequence);
    group->expired.clear();
    settle(*group, spool::Settlement::kExpired, std::move(expired));
  }
}

void DispatcherCore::flush_confirms() {
  for (const auto& [id, session] : sessions_) {
    if (session->confirm.empty() || session->peer.empty()) continue;
    Confirm confirm;
    for (auto& [token, sequences] : session->confirm) {
      std::sort(sequences.begin(), sequences.end());
      sequences.erase(std::unique(sequences.begin(), sequences.end()), sequences.end());
      confirm.tokens.push_back({token.first, token.second, std::move(sequences)});
    }
    session->confirm.clear();
    send(*session, encode(confirm));
  }
}

DispatcherCore::Actions DispatcherCore::take_actions(Now now) {
  open_gates(now);
  for (const auto& group : groups_) {
    move_due(*group, now);
    dispatch(*group, now);
    request_refills(*group);
  }
  flush_settlements();
  flush_confirms();
  return std::exchange(actions_, Actions{});
}

// --- commits --------------------------------------------------------------------------------

std::uint64_t DispatcherCore::open_ticket(Ticket ticket) {
  tickets_.emplace(++last_ticket_, std::move(ticket));
  return last_ticket_;
}

void DispatcherCore::on_ticket(const Ticket& ticket, spool::Lsn first, Now) {
  if (ticket.kind == Ticket::Kind::kSession) {
    const auto found = sessions_.find(ticket.session);
    if (found == sessions_.end()) return;
    found->second->recorded = true;
    return welcome(*found->second);
  }
  if (ticket.kind == Ticket::Kind::kCopy) {
    --copying_;
    for (const auto& [group, record_lsn] : ticket.copied) {
      groups_[group]->state->copied(ticket.sequences.front().second, first, record_lsn);
    }
    return;
  }
  Group& group = *groups_[ticket.group];
  if (ticket.kind == Ticket::Kind::kDamage) {
    --damage_pending_;
    return group.state->damage(ticket.damage);
  }
  for (const auto& [session_id, sequence] : ticket.sequences) {
    switch (ticket.kind) {
      case Ticket::Kind::kSettled:
        group.state->settle(sequence, ticket.settlement);
        break;
      case Ticket::Kind::kRetry:
        group.state->retry(ticket.retry, first);
        group.state->delivered(sequence, ticket.retry.number,
                               static_cast<std::uint32_t>(options_.epoch));
        schedule(group, sequence, ticket.retry.due_ms);
        break;
      case Ticket::Kind::kDead:
        group.state->dead(ticket.dead, first);
        break;
      case Ticket::Kind::kRevive:
        if (group.state->revive(sequence)) schedule(group, sequence, 0);
        break;
      case Ticket::Kind::kSession:
      case Ticket::Kind::kDamage:
      case Ticket::Kind::kCopy:
        break;
    }
    const auto session = sessions_.find(session_id);
    if (session == sessions_.end()) continue;
    const auto grant = session->second->grants.find(sequence);
    if (grant == session->second->grants.end()) continue;
    session->second->confirm[{grant->second.epoch, grant->second.number}].push_back(sequence);
    session->second->grants.erase(grant);
  }
}

// --- administration -------------------------------------------------------------------------

std::optional<GroupId> DispatcherCore::find_group(std::string_view name) const {
  for (const auto& group : groups_) {
    if (group->state->name() == name &&
        group->state->standing() != spool::GroupStanding::kDropped) {
      return group->state->id();
    }
  }
  return std::nullopt;
}

const GroupState& DispatcherCore::group_state(GroupId group) const {
  return *groups_.at(group)->state;
}

std::uint64_t DispatcherCore::revive(GroupId group, const std::vector<Sequence>& dead) {
  DRAY_ASSERT(!dead.empty());
  Ticket ticket;
  ticket.kind = Ticket::Kind::kRevive;
  ticket.group = group;
  ticket.report = true;
  for (const auto sequence : dead) ticket.sequences.emplace_back(Uuid{}, sequence);
  Submission submission;
  submission.entries.push_back(
      entry(RecordType::kRevive, spool::encode(spool::ReviveRecord{group, dead})));
  submission.ticket = open_ticket(std::move(ticket));
  const auto number = submission.ticket;
  actions_.submissions.push_back(std::move(submission));
  return number;
}

std::uint64_t DispatcherCore::drop(GroupId group, const std::vector<Sequence>& dead) {
  DRAY_ASSERT(!dead.empty());
  Ticket ticket;
  ticket.group = group;
  ticket.settlement = spool::Settlement::kDropped;
  ticket.report = true;
  for (const auto sequence : dead) ticket.sequences.emplace_back(Uuid{}, sequence);
  Submission submission;
  submission.entries.push_back(
      entry(RecordType::kSettlement,
            spool::encode(spool::SettlementRecord{group, spool::Settlement::kDropped, dead})));
  submission.ticket = open_ticket(std::move(ticket));
  const auto number = submission.ticket;
  actions_.submissions.push_back(std::move(submission));
  return number;
}

std::vector<GroupStatus> DispatcherCore::group_status() const {
  std::vector<GroupStatus> all;
  for (const auto& group : groups_) {
    GroupStatus status;
    status.name = group->state->name();
    status.topics = group->state->topics();
    status.attached = group->state->standing() == spool::GroupStanding::kAttached;
    status.counts = group->state->counts();
    status.delayed = group->waiting.size() + group->waiting_old.size();
    status.workers = group->sessions.size();
    status.held = group->state->entries().size();
    status.gated = group->gated;
    for (const auto* session : group->sessions) status.in_flight += session->outstanding;
    all.push_back(std::move(status));
  }
  return all;
}

std::vector<SessionStatus> DispatcherCore::session_status() const {
  std::vector<SessionStatus> all;
  for (const auto& [id, session] : sessions_) {
    all.push_back({id, session->worker, groups_[session->group]->state->name(),
                   session->outstanding, session->window_messages, !session->peer.empty()});
  }
  return all;
}

}  // namespace dray::balancing
