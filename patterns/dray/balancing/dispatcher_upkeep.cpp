// DispatcherCore: checkpoints, room in the log, damage, and the wall clock.
#include <algorithm>

#include "dray/balancing/dispatcher_state.hpp"

namespace dray::balancing {
namespace {

constexpr std::size_t kCopiesMax = 1'024;

}  // namespace

// --- checkpoints ----------------------------------------------------------------------------

std::vector<const spool::GroupState*> DispatcherCore::group_states() const {
  std::vector<const spool::GroupState*> states;
  for (const auto& group : groups_) states.push_back(group->state.get());
  return states;
}

// Once all from before this epoch was read, the live lane's cursor is the group's.
void DispatcherCore::update_known(Group& group) {
  auto& state = *group.state;
  const auto& live = group.live_lane();
  if (!group.old_lane().caught_up || live.cursor <= state.known()) return;
  state.pass(live.cursor, live.passed - std::min(live.passed, state.passed()));
}

// Where the cursor of each priority would have to begin, if this were all that is known.
void DispatcherCore::note_first_open(Group& group) {
  auto& state = *group.state;
  std::array<Sequence, spool::kPriorities> first{};
  first.fill(accepted_until_);
  const auto note = [](Sequence& least, Sequence sequence) { least = std::min(least, sequence); };
  for (const auto* lanes : {&group.old_lanes, &group.live_lanes}) {
    for (std::size_t i = 0; i < lanes->size(); ++i) {
      const auto& lane = lanes->at(i);
      if (!lane.caught_up) note(first.at(i), lane.cursor);
      if (!lane.ready.empty()) note(first.at(i), lane.ready.front().first);
    }
  }
  for (const auto* session : group.sessions) {
    session->grants.for_runs([&](const Session::Grants::Run& run) {
      note(first.at(static_cast<std::size_t>(run.common.priority)), run.first());
    });
  }
  // Answered, or expired: it is not durable yet, and its priority is not known any more.
  Sequence unknown = accepted_until_;
  for (const auto& [number, ticket] : tickets_) {
    if (ticket.group != state.id()) continue;
    for (const auto& [session, run] : ticket.sequences) note(unknown, run.first);
  }
  for (std::size_t i = 0; i < first.size(); ++i) {
    state.set_first_of(static_cast<Priority>(i), std::min(first.at(i), unknown));
  }
}

std::vector<spool::SessionRecord> DispatcherCore::recorded_sessions() const {
  std::vector<spool::SessionRecord> all;
  const auto add = [&](const Uuid& id, spool::GroupId group, const std::string& worker) {
    all.push_back({Binary{std::string(id.view())}, group, worker});
  };
  for (const auto& [id, session] : sessions_) {
    if (session->recorded) add(id, session->group, session->worker);
  }
  for (const auto& [id, session] : recorded_) {
    if (sessions_.count(id) == 0) add(id, session.group, session.worker);
  }
  return all;
}

DispatcherCore::Upkeep DispatcherCore::upkeep(const std::vector<spool::SegmentSummary>& segments,
                                              bool due, Now now) {
  Upkeep out;
  // Lost messages are passed over, but not yet recorded as lost: the state is between two records.
  if (damage_pending_ != 0 || accepted_until_ <= options_.boundary) return out;
  for (const auto& group : groups_) update_known(*group);
  auto plan = spool::plan_reclaim(segments, group_states(), options_.retain, now.utc, kCopiesMax);
  if (copying_ == 0) {
    out.to_copy = std::move(plan.to_copy);
    // What is being edited would be copied as it was.
    for (const auto& [number, ticket] : tickets_) {
      if (ticket.kind != Ticket::Kind::kEdited) continue;
      std::erase(out.to_copy, ticket.sequences.front().run.first);
    }
  }
  if (!due && plan.dead.empty()) return out;
  spool::Snapshot snapshot;
  snapshot.lsn = accepted_until_ - 1;
  snapshot.position = position_;
  for (const auto& group : groups_) {
    note_first_open(*group);
    snapshot.groups.push_back(group->state->snapshot());
  }
  snapshot.sessions = recorded_sessions();
  snapshot.dead = std::move(plan.dead);
  out.snapshot = std::move(snapshot);
  return out;
}

void DispatcherCore::on_copied(const spool::CopyRecord& copy) {
  Ticket ticket;
  ticket.kind = Ticket::Kind::kCopy;
  ticket.sequences.push_back({Uuid{}, {copy.sequence, 1}});
  for (const auto& history : copy.histories) {
    ticket.copied.emplace_back(history.group, history.record_lsn);
  }
  spool::Submission submission;
  submission.entries.push_back({spool::RecordType::kCopy, 0, to_bytes(copy), 0});
  submission.lazy = true;
  submission.ticket = open_ticket(std::move(ticket));
  actions_.submissions.push_back(std::move(submission));
  ++copying_;
}

// --- damage ---------------------------------------------------------------------------------

void DispatcherCore::on_lost(Sequence sequence) {
  for (const auto& group : groups_) {
    const auto* history = group->state->history(sequence);
    // One that is granted is settled by its answer.
    if (history == nullptr || history->due_ms() == spool::History::kAtHand) continue;
    settle_damaged(*group, {sequence});
  }
}

void DispatcherCore::settle_damaged(Group& group, const std::vector<Sequence>& sequences) {
  Ticket ticket;
  ticket.group = group.state->id();
  ticket.settlement = spool::Settlement::kDamaged;
  for (const auto sequence : sequences) ticket.sequences.push_back({Uuid{}, {sequence, 1}});
  spool::Submission submission;
  submission.entries.push_back(
      {spool::RecordType::kSettlement, 0,
       spool::encode(spool::SettlementRecord{group.state->id(), spool::Settlement::kDamaged,
                                             SequenceRuns::of(sequences)}),
       0});
  submission.ticket = open_ticket(std::move(ticket));
  actions_.submissions.push_back(std::move(submission));
}

void DispatcherCore::record_damage(Group& group, const spool::DamagedPart& part) {
  Ticket ticket;
  ticket.kind = Ticket::Kind::kDamage;
  ticket.group = group.state->id();
  ticket.damage = part;
  spool::Submission submission;
  submission.entries.push_back(
      {spool::RecordType::kDamage, 0,
       to_bytes(spool::DamageRecord{group.state->id(), part.first, part.last, part.count}), 0});
  submission.ticket = open_ticket(std::move(ticket));
  actions_.submissions.push_back(std::move(submission));
  ++damage_pending_;
}

// --- limits and the clock -------------------------------------------------------------------

std::uint64_t DispatcherCore::held() const {
  std::uint64_t held = 0;
  for (const auto& group : groups_) held += group->state->entries().size();
  return held;
}

// P8: at the limit only what is held already goes out. But what waits for its place among its key's
// messages needs the lanes to reach that place.
bool DispatcherCore::held_back(const Group& group) const {
  return held_full() && group.late.empty();
}

// A wall clock that jumps makes everything look expired; leases and back-offs do not care.
void DispatcherCore::watch_clock(Now now) {
  const std::int64_t offset =
      now.utc.time_since_epoch().count() -
      std::chrono::duration_cast<Milliseconds>(now.steady.time_since_epoch()).count();
  const bool jumped = wall_offset_ms_ && std::abs(offset - *wall_offset_ms_) > kClockJumpMs;
  if (jumped) expiry_paused_until_ = now.steady + kClockSteady;
  wall_offset_ms_ = offset;
}

// What took effect in part goes on, or waits for a decision.
bool DispatcherCore::is_expired(const Group& group, const spool::StoredRun& message,
                                Now now) const {
  return message.expires_at_ms != 0 && !expiry_paused(now) &&
         message.expires_at_ms <= now.utc.time_since_epoch().count() &&
         group.state->steps().find(message.first) == nullptr;
}

}  // namespace dray::balancing
