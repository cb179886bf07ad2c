// DispatcherCore: administration.
#include <algorithm>

#include "dray/balancing/dispatcher_state.hpp"

namespace dray::balancing {

using spool::GroupId;
using spool::GroupState;
using spool::RecordType;
using spool::Submission;

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
  for (const auto sequence : dead) ticket.sequences.push_back({Uuid{}, {sequence, 1}});
  Submission submission;
  submission.entries.push_back(log_entry(
      RecordType::kRevive, spool::encode(spool::ReviveRecord{group, SequenceRuns::of(dead)})));
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
  for (const auto sequence : dead) ticket.sequences.push_back({Uuid{}, {sequence, 1}});
  Submission submission;
  submission.entries.push_back(
      log_entry(RecordType::kSettlement,
                spool::encode(spool::SettlementRecord{group, spool::Settlement::kDropped,
                                                      SequenceRuns::of(dead), now_ms_})));
  submission.ticket = open_ticket(std::move(ticket));
  const auto number = submission.ticket;
  actions_.submissions.push_back(std::move(submission));
  return number;
}

std::uint64_t DispatcherCore::revive_edited(GroupId group, const spool::CopyRecord& copy) {
  DRAY_ASSERT(copy.histories.size() == 1 && copy.histories.front().group == group);
  Submission submission;
  // S6: both or neither.
  submission.entries.push_back({RecordType::kCopy, spool::kContinues, to_bytes(copy), 0});
  submission.entries.push_back(
      log_entry(RecordType::kRevive, spool::encode(spool::ReviveRecord{group, {copy.sequence}})));
  Ticket ticket;
  ticket.kind = Ticket::Kind::kEdited;
  ticket.group = group;
  ticket.report = true;
  ticket.sequences.push_back({Uuid{}, {copy.sequence, 1}});
  ticket.copied.emplace_back(group, copy.histories.front().record_lsn);
  submission.ticket = open_ticket(std::move(ticket));
  const auto number = submission.ticket;
  actions_.submissions.push_back(std::move(submission));
  return number;
}

std::uint64_t DispatcherCore::replay(GroupId group, Sequence settled, std::string envelope) {
  spool::CopyRecord copy;
  copy.sequence = settled;
  copy.envelope.bytes = std::move(envelope);
  copy.histories.push_back({group, 0, {}, true});
  Ticket ticket;
  ticket.kind = Ticket::Kind::kReplay;
  ticket.group = group;
  ticket.report = true;
  ticket.sequences.push_back({Uuid{}, {settled, 1}});
  Submission submission;
  submission.entries.push_back(log_entry(RecordType::kCopy, to_bytes(copy)));
  submission.ticket = open_ticket(std::move(ticket));
  const auto number = submission.ticket;
  actions_.submissions.push_back(std::move(submission));
  return number;
}

std::uint64_t DispatcherCore::submit_group(const Group& group, spool::GroupRecord record) {
  record.id = group.state->id();
  record.name = group.state->name();
  record.topics = group.state->topics();
  Submission submission;
  submission.entries.push_back(log_entry(RecordType::kGroup, to_bytes(record)));
  Ticket ticket;
  ticket.kind = Ticket::Kind::kGroup;
  ticket.group = record.id;
  ticket.declared = std::move(record);
  ticket.report = true;
  submission.ticket = open_ticket(std::move(ticket));
  const auto number = submission.ticket;
  actions_.submissions.push_back(std::move(submission));
  return number;
}

std::uint64_t DispatcherCore::set_paused(GroupId group, bool paused) {
  spool::GroupRecord record;
  record.standing = groups_.at(group)->state->standing();
  record.paused = paused;
  return submit_group(*groups_.at(group), std::move(record));
}

std::uint64_t DispatcherCore::drop_group(GroupId group) {
  spool::GroupRecord record;
  record.standing = spool::GroupStanding::kDropped;
  return submit_group(*groups_.at(group), std::move(record));
}

void DispatcherCore::on_group_ticket(const Ticket& ticket, spool::Lsn first, Now now) {
  Group& group = *groups_[ticket.group];
  auto& state = *group.state;
  if (state.standing() == spool::GroupStanding::kDropped) return;
  state.set_paused(ticket.declared.paused);
  if (ticket.declared.standing != spool::GroupStanding::kDropped) return;
  state.declare(first, ticket.declared.topics, spool::GroupStanding::kDropped);
  for (auto* session : std::vector<Session*>(group.sessions)) {
    send(*session, encode(Refused{"unknown-group", "group '" + state.name() + "' was dropped"}));
    end_session(*session, "group dropped", false, now);
  }
  auto fresh = std::make_unique<Group>();
  fresh->state = std::move(group.state);
  fresh->accepted_before = group.accepted_before;
  fresh->limits = group.limits;
  fresh->fetching = group.fetching;
  fresh->learning = group.learning;
  groups_[ticket.group] = std::move(fresh);
  place_lanes(*groups_[ticket.group]);
}

std::vector<GroupStatus> DispatcherCore::group_status() const {
  std::vector<GroupStatus> all;
  for (const auto& group : groups_) {
    if (group->state->standing() == spool::GroupStanding::kDropped) continue;
    GroupStatus status;
    status.name = group->state->name();
    status.topics = group->state->topics();
    status.attached = group->state->standing() == spool::GroupStanding::kAttached;
    status.counts = group->state->counts();
    status.delayed = group->waiting.size() + group->waiting_old.size();
    status.workers = group->sessions.size();
    status.held = group->state->entries().size();
    status.gated = group->gated;
    status.paused = group->state->paused();
    status.limits = group->limits;
    status.in_line = group->lines.size();
    for (const auto* session : group->sessions) status.in_flight += session->outstanding;
    all.push_back(std::move(status));
  }
  return all;
}

std::optional<DispatcherCore::Holder> DispatcherCore::holder_of(GroupId group,
                                                                Sequence sequence) const {
  for (const auto* session : groups_.at(group)->sessions) {
    const auto* run = session->grants.find(sequence);
    if (run == nullptr) continue;
    return Holder{session->id, session->worker, run->common.number, run->is_marked(sequence)};
  }
  return std::nullopt;
}

std::string DispatcherCore::why_waiting(GroupId id, Sequence sequence, KeyHash key, Now now) const {
  const Group& group = *groups_.at(id);
  const auto* history = group.state->history(sequence);
  if (const auto holder = holder_of(id, sequence)) {
    if (holder->settling)
      return "answered by " + holder->worker + "; the answer is being committed";
    return "delivered to " + holder->worker + ", which has not answered yet";
  }
  if (history != nullptr && history->dead()) return "dead; dray dead retry gives another chance";
  if (group.state->paused()) return "the group is paused; dray resume lets it go on";
  if (group.gated && sequence < options_.boundary) {
    return "after a restart: workers say what they hold first, for one lease at most";
  }
  const bool waits = history != nullptr && history->due_ms() != spool::History::kAtHand;
  if (waits && history->due_ms() > to_ms(now.utc)) {
    return (history->attempts() > 0 ? "retried at " : "delayed until ") +
           utc_text(UtcTime(Milliseconds(history->due_ms())));
  }
  const Sequence turn = key == 0 ? 0 : group.lines.holder(key);
  if (turn != 0 && turn != sequence)
    return "message " + std::to_string(turn) + " has its key's turn";
  if (held_full()) {
    return "held_max is reached: settle dead, delayed or retrying messages, or raise it";
  }
  const bool connected = std::any_of(group.sessions.begin(), group.sessions.end(),
                                     [](const Session* each) { return !each->peer.empty(); });
  if (!connected) return "no worker serves this group";
  if (group.limits.concurrency != 0) {
    std::uint64_t in_flight = 0;
    for (const auto* session : group.sessions) in_flight += session->outstanding;
    if (in_flight >= group.limits.concurrency) {
      return "the group's concurrency of " + std::to_string(group.limits.concurrency) +
             " is in use";
    }
  }
  if (group.bucket && group.bucket->available() == 0) return "the group's rate is used up for now";
  if (history != nullptr && history->suspect())
    return "it waits for a worker of its own (a suspect)";
  const bool room = std::any_of(group.sessions.begin(), group.sessions.end(), [](const auto* each) {
    return each->can_receive() && each->has_room();
  });
  return room ? "others are before it" : "no worker has room: all are busy";
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
