// DispatcherCore: what is ready: new messages, the backlog, and what is due again.
#include <algorithm>

#include "dray/balancing/dispatcher_state.hpp"

namespace dray::balancing {

using spool::GroupId;

namespace {

constexpr std::size_t kRecordsLookedAtMax = 65'536;  // records, in one turn
// Of what is read back at a time: little enough that its buffer is used again.
constexpr std::size_t kSliceMessagesMax = 8'192;
constexpr std::size_t kSliceBytesMax = 4U << 20;

}  // namespace

void DispatcherCore::schedule(Group& group, Sequence sequence, std::int64_t due_ms) {
  group.state->delay(sequence, due_ms);
  const bool old = sequence < options_.boundary;
  (old && group.gated ? group.waiting_old : group.waiting).push({due_ms, sequence});
}

void DispatcherCore::move_due(Group& group, Now now) {
  // A session may hold what has the turn, and not have been asked for its key yet (P10).
  if (!group.to_learn.empty() || group.learning > 0) return;
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
  if (message->key != 0 && group.lines.waits(message->key, sequence)) return;  // no more its turn
  const auto* history = group.state->history(sequence);
  auto& queue = history != nullptr && history->suspect() ? group.suspects : group.again;
  queue.push_back(std::move(*message));
}

bool DispatcherCore::has_room(const LaneState& lane) const {
  return lane.ready.size() < options_.ready_messages_max && lane.bytes < options_.ready_bytes_max;
}

void DispatcherCore::accept(Group& group, const spool::Committed& committed) {
  auto& accounting = group.live_lane();
  const spool::GroupMask bit = spool::GroupMask{1} << group.state->id();
  // P8: a few messages of a slow group must not keep the whole batch in memory.
  std::size_t own_bytes = 0;
  for (const auto& message : committed.messages) {
    if ((message.groups & bit) != 0) own_bytes += message.envelope.size();
  }
  const bool share = own_bytes > 0 && own_bytes * 4 >= committed.bytes->capacity();
  spool::Lsn skip_from = committed.first;
  const auto skip_to = [&](spool::Lsn lsn) {
    if (skip_from < lsn) group.state->skip(skip_from, lsn - 1);
  };
  for (const auto& message : committed.messages) {
    if ((message.groups & bit) == 0) continue;
    group.state->accept();
    auto& lane = group.lane(Lane::kLive, message.priority);
    if (lane.caught_up && (!has_room(lane) || (message.deliver_at_ms != 0 && held_full()))) {
      lane.caught_up = false;
      lane.cursor = message.sequence;
      if (lane.accounts()) skip_to(message.sequence);
    }
    if (accounting.caught_up) {
      skip_to(message.sequence);
      skip_from = message.sequence + 1;
      ++accounting.passed;
    }
    if (lane.caught_up) accept_into(group, lane, message, share ? committed.bytes : nullptr);
  }
  if (accounting.caught_up) skip_to(committed.last + 1);
  for (auto& lane : group.live_lanes) {
    if (lane.caught_up) lane.cursor = committed.last + 1;
  }
}

// `owner`: of the bytes; nothing: they are copied.
void DispatcherCore::accept_into(Group& group, LaneState& lane,
                                 const spool::AcceptedMessage& message,
                                 std::shared_ptr<const std::string> owner) {
  if (message.deliver_at_ms != 0) {
    return schedule(group, message.sequence, message.deliver_at_ms);
  }
  ReadyMessage ready;
  ready.sequence = message.sequence;
  ready.priority = message.priority;
  ready.expires_at_ms = message.expires_at_ms;
  ready.envelope = message.envelope;
  ready.owner = std::move(owner);
  if (ready.owner == nullptr) {
    ready.owner = std::make_shared<const std::string>(message.envelope);
    ready.envelope = *ready.owner;
  }
  if (message.has_key && group.limits.ordered) {
    const auto envelope = parse_envelope(ready.envelope);
    DRAY_ASSERT(envelope.ok());  // it was checked when it was framed
    ready.key = spool::key_hash(envelope->key);
  }
  lane.bytes += ready.envelope.size();
  lane.ready.push_back(std::move(ready));
}

// Of those that do not account only some records are looked at in a turn: what they look for may
// lie behind millions of others.
bool DispatcherCore::wants_look(const Group& group, const LaneState& lane) const {
  return !lane.caught_up && !lane.reading && !(lane.held_back && held_back(group)) &&
         lane.ready.size() <= std::min(options_.ready_messages_max / 2, kSliceMessagesMax) &&
         lane.bytes <= std::min(options_.ready_bytes_max / 2, kSliceBytesMax);
}

bool DispatcherCore::looks_on(const Group& group) const {
  const auto waits = [&](const LaneState& lane) {
    return !lane.accounts() && lane.looked && wants_look(group, lane);
  };
  return std::any_of(group.live_lanes.begin(), group.live_lanes.end(), waits) ||
         (!group.gated && std::any_of(group.old_lanes.begin(), group.old_lanes.end(), waits));
}

void DispatcherCore::request_refills(Group& group) {
  const auto request = [&](LaneState& lane, Sequence before) {
    if (!wants_look(group, lane) || (!lane.accounts() && lane.looked)) return;
    lane.held_back = false;
    if (lane.cursor >= before) {
      lane.caught_up = true;
      return;
    }
    lane.reading = lane.looked = true;
    const auto& state = *group.state;
    const bool old = lane.which == Lane::kOld;
    spool::BacklogRequest wanted;
    wanted.from = lane.cursor;
    wanted.before = before;
    wanted.passed = old ? state.passed() : lane.passed;
    wanted.known = old ? state.known() : group.live_lane().cursor;
    wanted.messages_max =
        std::min(options_.ready_messages_max - lane.ready.size(), kSliceMessagesMax);
    wanted.bytes_max = std::min(options_.ready_bytes_max - lane.bytes, kSliceBytesMax);
    wanted.priority = lane.priority;
    wanted.accounts = lane.accounts();
    if (!lane.accounts()) wanted.records_max = kRecordsLookedAtMax;
    wanted.gaps = lane.gaps;
    if (old) wanted.accepted_at_end = group.accepted_before;
    actions_.refills.push_back({state.id(), lane.which, std::move(wanted)});
  };
  if (!group.gated) {
    for (auto& lane : group.old_lanes) request(lane, options_.boundary);
  }
  for (auto& lane : group.live_lanes) request(lane, accepted_until_);
}

void DispatcherCore::on_refilled(const Refill& refill, spool::BacklogSlice slice) {
  Group& group = *groups_.at(refill.group);
  auto& lane = group.lane(refill.lane, refill.request.priority);
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
  lane.held_back = held_full();
  lane.cursor = std::max(lane.cursor, slice.next);
  if (lane.accounts()) {
    lane.gaps = std::move(slice.gaps);
    if (refill.lane == Lane::kLive) {
      lane.passed += slice.passed;
    } else if (slice.next > state.known()) {
      state.pass(slice.next, slice.passed);
    }
  }
  const Sequence end = refill.lane == Lane::kOld ? options_.boundary : accepted_until_;
  lane.caught_up = lane.cursor >= end;
  if (!slice.lost.empty()) settle_damaged(group, std::move(slice.lost));
  for (const auto& part : slice.damaged) record_damage(group, part);
}

}  // namespace dray::balancing
