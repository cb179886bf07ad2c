// DispatcherCore: what is ready: new messages, the backlog, and what is due again.
#include <algorithm>

#include "dray/balancing/dispatcher_state.hpp"

namespace dray::balancing {

using spool::GroupId;

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
    if (own_bytes * 4 >= committed.bytes->capacity()) {
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

}  // namespace dray::balancing
