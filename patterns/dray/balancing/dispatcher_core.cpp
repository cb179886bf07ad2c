#include "dray/balancing/dispatcher_core.hpp"

#include <algorithm>
#include <array>

#include "dray/balancing/dispatcher_state.hpp"

namespace dray::balancing {

using spool::GroupState;
using spool::History;

namespace {

constexpr Sequence kSequenceMax = 1ULL << 56;
constexpr std::array<Milliseconds, 4> kAskLinksAfter{Milliseconds(0), Milliseconds(5),
                                                     Milliseconds(20), Milliseconds(60)};

}  // namespace

DispatcherCore::DispatcherCore(const DispatcherOptions& options,
                               std::vector<std::unique_ptr<GroupState>> groups,
                               const std::vector<spool::RecordedSession>& recorded, Router router,
                               Now now)
    : options_(options),
      router_(std::move(router)),
      started_(now.steady),
      ticked_at_(now.steady),
      listening_since_(now.steady),
      accepted_until_(options_.boundary),
      random_(options_.seed) {
  for (auto& each : groups) {
    auto group = std::make_unique<Group>();
    group->state = std::move(each);
    const auto limits = options_.limits.find(group->state->name());
    if (limits != options_.limits.end()) group->limits = limits->second;
    if (planted(Fault::kPauseForgotten)) group->state->set_paused(false);
    if (group->limits.rate) group->bucket.emplace(*group->limits.rate, now.steady);
    place_lanes(*group);
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
      if (history.dead()) continue;
      const std::int64_t due_ms = history.due_ms() == History::kAtHand ? 0 : history.due_ms();
      // Of a key's messages those have a place in its order: see on_key().
      const bool has_place = due_ms == 0 || history.number() > 0;
      if (has_place && group->limits.ordered && !planted(Fault::kKeysForgotten)) {
        group->to_learn.push_back(sequence);
      } else {
        waiting.emplace_back(due_ms, sequence);
      }
    }
    for (const auto& [due_ms, sequence] : waiting) schedule(*group, sequence, due_ms);
  }
  if (options_.last_utc_ms > to_ms(now.utc) + kClockJumpMs) {
    expiry_paused_until_ = now.steady + kClockSteady;
  }
}

// Where the cursors begin.
void DispatcherCore::place_lanes(Group& group) {
  const auto& state = *group.state;
  for (std::size_t i = 0; i < spool::kPriorities; ++i) {
    auto& old = group.old_lanes.at(i);
    auto& live = group.live_lanes.at(i);
    old.which = Lane::kOld;
    old.priority = live.priority = static_cast<Priority>(i);
    old.cursor = std::max(state.first_plain(), state.first_of(old.priority));
    if (old.accounts()) old.cursor = std::min(old.cursor, state.known());
    old.caught_up = old.cursor >= options_.boundary;
    live.cursor = options_.boundary;
    live.caught_up = true;
  }
  auto& accounting = group.live_lane();
  accounting.cursor = std::max(options_.boundary, std::min(state.known(), kSequenceMax));
  accounting.passed = group.accepted_before = state.published();
}

DispatcherCore::~DispatcherCore() = default;

DispatcherCore::Session* DispatcherCore::session_of_peer(const std::string& peer) {
  const auto found = peers_.find(peer);
  return found == peers_.end() ? nullptr : found->second;
}

void DispatcherCore::on_frame(const std::string& peer, const ProtocolFrame& frame, Now now) {
  heard_now_ = now.steady;
  if (const auto* hello = std::get_if<Hello>(&frame)) return on_hello(peer, *hello, now);
  Session* session = session_of_peer(peer);
  if (session == nullptr) {
    actions_.sends.push_back({peer, encode(Refused{"unknown-session", "say HELLO first"})});
    return;
  }
  const bool heartbeat = std::holds_alternative<Heartbeat>(frame);
  if (!heartbeat || !planted(Fault::kLeaseNotRenewed)) session->heard_at = now.steady;
  if (const auto* window = std::get_if<Window>(&frame)) {
    session->window_messages = std::min(window->messages, options_.window_messages_max);
    session->window_bytes = std::min(window->bytes, options_.window_bytes_max);
    session->closed = false;
    note_room(*session);
  } else if (const auto* result = std::get_if<ResultFrame>(&frame)) {
    on_result(*session, *result, now);
  } else if (const auto* step = std::get_if<Step>(&frame)) {
    on_step(*session, *step, now);
  } else if (std::holds_alternative<Bye>(frame)) {
    end_session(*session, "bye", false, now);
  }
}

void DispatcherCore::on_link_broken(Now now) {
  link_broken_at_ = now.steady;
  links_asked_ = 0;
  ask_links(now);
}

void DispatcherCore::ask_links(Now now) {
  while (links_asked_ < kAskLinksAfter.size() &&
         now.steady >= link_broken_at_ + kAskLinksAfter.at(links_asked_)) {
    ++links_asked_;
    for (const auto& [id, session] : sessions_) ping(*session);
  }
}

// What waits is said again now and then: no worker may miss it for good.
void DispatcherCore::ping(Session& session) {
  const auto waiting = waiting_in(*groups_[session.group]);
  const bool told_wrong = waiting == 0 && session.told_waiting != 0;
  if (session.recorded && (waiting > 0 || told_wrong)) return tell_waiting(session, waiting);
  send(session, encode(Heartbeat{}));
}

void DispatcherCore::send(const Session& session, std::string frame) {
  if (!session.peer.empty()) actions_.sends.push_back({session.peer, std::move(frame)});
}

void DispatcherCore::tick(Now now) {
  // This process slept, or was stopped: what the others said meanwhile is still to be read.
  if (now.steady - ticked_at_ >= options_.lease / 2) listening_since_ = now.steady;
  ticked_at_ = now.steady;
  if (now.steady >= sessions_due_at_) look_after_sessions(now);
  ask_links(now);
  watch_clock(now);
  open_gates(now);
  for (const auto& group : groups_) {
    learn_keys(*group);
    for (auto* lanes : {&group->old_lanes, &group->live_lanes}) {
      for (auto& lane : *lanes) lane.looked = false;
    }
    move_due(*group, now);
  }
}

void DispatcherCore::look_after_sessions(Now now) {
  std::vector<Session*> lost;
  const auto ping_every = options_.lease / 4;
  // What is heard of a session meanwhile only puts this off.
  sessions_due_at_ = now.steady + ping_every;
  for (const auto& [id, session] : sessions_) {
    const bool silent = now.steady >= silent_at(*session);
    const bool broken = session->broken_at && now.steady >= gone_at(*session);
    if (silent || broken) {
      lost.push_back(session.get());
      continue;
    }
    if (now.steady - session->pinged_at >= ping_every) {
      session->pinged_at = now.steady;
      ping(*session);
    }
    note_due(*session);
  }
  for (auto* session : lost) {
    end_session(
        *session,
        session->broken_at ? "worker lost: connection broken" : "worker lost: silent for a lease",
        true, now);
  }
}

void DispatcherCore::note_due(const Session& session) {
  sessions_due_at_ =
      std::min({sessions_due_at_, silent_at(session), session.pinged_at + options_.lease / 4});
  if (session.broken_at) sessions_due_at_ = std::min(sessions_due_at_, gone_at(session));
}

// Nobody is silent while this side does not listen.
SteadyTime DispatcherCore::silent_at(const Session& session) const {
  return std::max(session.heard_at, listening_since_) + options_.lease;
}

// REQUIRES: its connection broke.
SteadyTime DispatcherCore::gone_at(const Session& session) const {
  return std::max(*session.broken_at, listening_since_) + options_.reconnect_grace;
}

SteadyTime DispatcherCore::next_deadline(Now now) const {
  SteadyTime next = std::min(now.steady + options_.lease / 4, sessions_due_at_);
  const auto waits = [](const Session* session) { return !session->peer.empty(); };
  if (std::any_of(confirming_.begin(), confirming_.end(), waits)) {
    next = std::min(next, confirms_since_ + options_.confirm_within);
  }
  if (links_asked_ < kAskLinksAfter.size()) {
    next = std::min(next, link_broken_at_ + kAskLinksAfter.at(links_asked_));
  }
  for (const auto& group : groups_) {
    if (group->gated) next = std::min(next, std::max(started_, listening_since_) + options_.lease);
    if (!group->to_learn.empty() || looks_on(*group)) return now.steady;
    if (group->bucket && group->bucket->available() == 0 && !group->state->paused() &&
        group->ready_count() + group->suspects.size() > 0) {
      next = std::min(next, now.steady + group->bucket->until_next());
    }
    if (group->waiting.empty()) continue;
    // What finds no room now is moved by an answer, not by the time.
    if (!takes_due(*group)) continue;
    const auto wait =
        Milliseconds(std::max<std::int64_t>(0, group->waiting.top().first - to_ms(now.utc)));
    if (wait < options_.lease) next = std::min(next, now.steady + wait);
  }
  return std::max(next, now.steady);
}

void DispatcherCore::on_committed(const spool::Committed& committed, Now now) {
  heard_now_ = now.steady;
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

DispatcherCore::Actions DispatcherCore::take_actions(Now now) {
  now_ms_ = to_ms(now.utc);
  heard_now_ = now.steady;
  open_gates(now);
  for (const auto& group : groups_) {
    if (!group->late.empty()) line_up_late(*group, position(*group));
    move_due(*group, now);
    dispatch(*group, now);
    request_refills(*group);
  }
  flush_settlements();
  flush_confirms();
  return std::exchange(actions_, Actions{});
}

std::uint64_t DispatcherCore::open_ticket(Ticket ticket) {
  tickets_.emplace(++last_ticket_, std::move(ticket));
  return last_ticket_;
}

void DispatcherCore::on_ticket(const Ticket& ticket, spool::Lsn first, Now now) {
  if (ticket.kind == Ticket::Kind::kSession) {
    const auto found = sessions_.find(ticket.session);
    if (found == sessions_.end()) return;
    found->second->recorded = true;
    note_room(*found->second);
    return welcome(*found->second);
  }
  if (ticket.kind == Ticket::Kind::kCopy) {
    --copying_;
    for (const auto& [group, record_lsn] : ticket.copied) {
      groups_[group]->state->copied(ticket.sequences.front().run.first, first, record_lsn);
    }
    return;
  }
  if (ticket.kind == Ticket::Kind::kStep) return on_step_recorded(ticket, now);
  if (ticket.kind == Ticket::Kind::kGroup) return on_group_ticket(ticket, first, now);
  Group& group = *groups_[ticket.group];
  if (ticket.kind == Ticket::Kind::kDamage) {
    --damage_pending_;
    return group.state->damage(ticket.damage);
  }
  if (ticket.kind == Ticket::Kind::kSettled) {
    if (ticket.settlement == spool::Settlement::kDropped) find_keys_of_revived(group, ticket);
    for (const auto& each : ticket.sequences) group.state->settle(each.run, ticket.settlement);
    return end_grants(group, ticket);
  }
  for (const auto& each : ticket.sequences) {
    for (Sequence sequence = each.run.first; sequence < each.run.end(); ++sequence) {
      apply_ticket(group, ticket, sequence, first);
    }
  }
  end_grants(group, ticket);
}

// Dead letters that were given another chance before they were dropped are in line again; what a
// session has leaves it with its answer.
void DispatcherCore::find_keys_of_revived(Group& group, const Ticket& ticket) {
  if (group.lines.empty()) return;
  const auto is_granted = [&](Sequence sequence) {
    return std::any_of(group.sessions.begin(), group.sessions.end(),
                       [&](const Session* session) { return session->grants.contains(sequence); });
  };
  for (const auto& [session, run] : ticket.sequences) {
    for (Sequence sequence = run.first; sequence < run.end(); ++sequence) {
      const auto* history = group.state->history(sequence);
      if (history == nullptr || history->dead() || is_granted(sequence)) continue;
      if (const auto key = group.lines.find(sequence); key != 0) group.keys_left[sequence] = key;
    }
  }
}

// Of all kinds but settlements.
void DispatcherCore::apply_ticket(Group& group, const Ticket& ticket, Sequence sequence,
                                  spool::Lsn first) {
  switch (ticket.kind) {
    case Ticket::Kind::kRetry:
      if (group.state->is_settled(sequence)) {  // dropped while a session had it, which was lost
        return release_key(group, sequence, group.lines.find(sequence));
      }
      group.state->retry(ticket.retry, first);
      group.state->delivered(sequence, ticket.retry.number,
                             static_cast<std::uint32_t>(options_.epoch));
      return schedule(group, sequence, ticket.retry.due_ms);
    case Ticket::Kind::kDead:
      group.state->dead(ticket.dead, first);
      return;
    case Ticket::Kind::kRevive:
      if (group.state->revive(sequence)) schedule(group, sequence, 0);
      return;
    case Ticket::Kind::kEdited:
      group.state->copied(sequence, first, ticket.copied.front().second);
      if (group.state->revive(sequence)) schedule(group, sequence, 0);
      return;
    case Ticket::Kind::kReplay:
      if (!group.state->replay(sequence, first)) return;
      group.state->copied(sequence, first, 0);
      if (!planted(Fault::kReplayForgotten)) schedule(group, sequence, 0);
      return;
    case Ticket::Kind::kSettled:
    case Ticket::Kind::kSession:
    case Ticket::Kind::kDamage:
    case Ticket::Kind::kCopy:
    case Ticket::Kind::kGroup:
    case Ticket::Kind::kStep:
      return;
  }
}

// What was answered is durable: the sessions hear of it, and keys' turns may end.
void DispatcherCore::end_grants(Group& group, const Ticket& ticket) {
  const bool ends_turn = ticket.kind == Ticket::Kind::kSettled ||
                         ticket.kind == Ticket::Kind::kDead ||
                         (ticket.kind == Ticket::Kind::kRetry && planted(Fault::kRetryFreesKey));
  const bool damaged =
      ticket.kind == Ticket::Kind::kSettled && ticket.settlement == spool::Settlement::kDamaged;
  Session* session = nullptr;  // of the one before: most are one session's
  bool was_full = false;       // of deliveries that were not confirmed
  const auto end_session = [&] {
    if (session != nullptr && was_full) note_room(*session);
    was_full = false;
  };
  for (const auto& [session_id, run] : ticket.sequences) {
    if (session == nullptr || session->id != session_id) {
      end_session();
      const auto found = sessions_.find(session_id);
      session = found == sessions_.end() ? nullptr : found->second.get();
    }
    const bool look_at_keys = ends_turn && !group.lines.empty();
    std::map<Sequence, KeyHash> keys;
    if (session != nullptr) {
      was_full = was_full || session->grants.size() >= session->unconfirmed_max;
      session->grants.for_parts(
          run, [&](Session::Grants::Run& grants, Sequence from, Sequence until) {
            const Grant& grant = grants.common;
            Session::Grants::for_here(grants, from, until, [&](const SequenceRun& part) {
              confirm(*session, grant.epoch, grant.number, part);
            });
            if (look_at_keys && grant.key != 0) keys[from] = grant.key;  // it is alone
            session->grants.erase(grants, from, until);
          });
    }
    if (!look_at_keys) continue;
    for (Sequence sequence = run.first; sequence < run.end(); ++sequence) {
      const auto known = keys.find(sequence);
      KeyHash key = known == keys.end() ? 0 : known->second;
      // Nothing else knows it any more.
      if (damaged && key == 0) key = group.lines.find(sequence);
      release_key(group, sequence, key);
    }
  }
  end_session();
}

}  // namespace dray::balancing
