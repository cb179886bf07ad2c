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
  for (const auto sequence : dead) ticket.sequences.emplace_back(Uuid{}, sequence);
  Submission submission;
  submission.entries.push_back(
      log_entry(RecordType::kRevive, spool::encode(spool::ReviveRecord{group, dead})));
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
      log_entry(RecordType::kSettlement,
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
