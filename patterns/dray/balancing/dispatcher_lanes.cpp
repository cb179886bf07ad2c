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
constexpr std::size_t kDueMax = 8'192;    // fetched one by one, each with bytes of its own
constexpr std::size_t kFetchesMax = 256;  // in one turn: each is a read

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
    if (!takes_due(group)) return;
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
                                std::optional<spool::StoredRun> message) {
  Group& group = *groups_.at(id);
  --group.fetching;
  const std::size_t bytes = message ? message->bytes() : 0;
  group.fetch_bytes = std::max(bytes, group.fetch_bytes - group.fetch_bytes / 8);
  if (group.state->is_settled(sequence)) return;           // dropped meanwhile
  if (!message) return settle_damaged(group, {sequence});  // P6: never silently dropped
  if (message->key != 0 && group.lines.waits(message->key, sequence)) return;  // no more its turn
  const auto* history = group.state->history(sequence);
  auto& queue = history != nullptr && history->suspect() ? group.suspects : group.again;
  queue.push(std::move(*message));
}

// P8: those that are at hand, and those that are on their way, if they are like the last ones. One
// always goes.
bool DispatcherCore::takes_due(const Group& group) const {
  const std::size_t count = group.again.size() + group.suspects.size() + group.fetching;
  const std::size_t bytes =
      group.again.bytes() + group.suspects.bytes() + group.fetching * group.fetch_bytes;
  return count == 0 || (count < std::min(options_.ready_messages_max, kDueMax) &&
                        group.fetching < kFetchesMax && bytes < options_.ready_bytes_max);
}

bool DispatcherCore::has_room(const LaneState& lane) const {
  return lane.messages < options_.ready_messages_max && lane.bytes < options_.ready_bytes_max;
}

void DispatcherCore::accept(Group& group, const spool::Committed& committed) {
  auto& accounting = group.live_lane();
  const spool::GroupMask bit = spool::GroupMask{1} << group.state->id();
  // P8: a few messages of a slow group must not keep the whole batch in memory.
  std::size_t own_bytes = 0;
  for (const auto& run : committed.runs) {
    if ((run.groups & bit) == 0) continue;
    own_bytes += committed.records->extent(run.index, run.index + run.count).size();
  }
  const bool share = own_bytes > 0 && own_bytes * 4 >= committed.records->capacity();
  Sequence skip_from = committed.first;
  for (const auto& run : committed.runs) {
    if ((run.groups & bit) != 0) accept_run(group, run, committed, share, skip_from);
  }
  if (accounting.caught_up && skip_from <= committed.last) {
    group.state->skip(skip_from, committed.last);
  }
  for (auto& lane : group.live_lanes) {
    if (lane.caught_up) lane.cursor = committed.last + 1;
  }
}

// Up to `skip_from` the positions of this commit are accounted for.
void DispatcherCore::accept_run(Group& group, spool::AcceptedRun run,
                                const spool::Committed& committed, bool share,
                                Sequence& skip_from) {
  auto& accounting = group.live_lane();
  auto& lane = group.lane(Lane::kLive, run.priority);
  const auto skip_to = [&](Sequence sequence) {
    if (skip_from < sequence) group.state->skip(skip_from, sequence - 1);
    skip_from = std::max(skip_from, sequence);
  };
  group.state->accept(run.count);
  const bool accounted = accounting.caught_up;
  // What finds no room is read from the log when there is some.
  std::uint32_t taken = lane.caught_up ? run.count : 0;
  if (!has_room(lane) || (run.deliver_at_ms != 0 && held_full())) {
    taken = 0;
  } else {
    taken = static_cast<std::uint32_t>(
        std::min<std::size_t>(taken, options_.ready_messages_max - lane.messages));
  }
  if (lane.caught_up && taken < run.count) {
    lane.caught_up = false;
    lane.cursor = run.first + taken;
    if (lane.accounts()) skip_to(run.first);
  }
  if (accounted) {
    // Those behind a cursor that stops here are passed when they are read.
    const std::uint32_t passed = lane.accounts() ? taken : run.count;
    if (passed > 0) {
      skip_to(run.first);
      skip_from = run.first + passed;
      accounting.passed += passed;
    }
  }
  if (taken == 0) return;
  run.count = taken;
  if (share) return accept_into(group, lane, run, committed.records);
  auto copy = std::make_shared<spool::Records>();
  copy->reserve(committed.records->extent(run.index, run.index + run.count).size());
  for (std::uint32_t i = 0; i < run.count; ++i) copy->add_from(*committed.records, run.index + i);
  run.index = 0;
  accept_into(group, lane, run, std::move(copy));
}

void DispatcherCore::accept_into(Group& group, LaneState& lane, const spool::AcceptedRun& run,
                                 std::shared_ptr<const spool::Records> records) {
  if (run.deliver_at_ms != 0) return schedule(group, run.first, run.deliver_at_ms);
  spool::StoredRun ready{run.first,    run.count, run.index,        std::move(records),
                         run.priority, 0,         run.expires_at_ms};
  if (!run.has_key || !group.limits.ordered) return lane.push(std::move(ready));
  while (ready.count > 0) {
    auto message = ready.count > 1 ? ready.split(1) : std::exchange(ready, {0, 0});
    const auto envelope = parse_envelope(message.envelope());
    DRAY_ASSERT(envelope.ok());  // it was checked when it was framed
    message.key = spool::key_hash(envelope->key);
    lane.push(std::move(message));
  }
}

// Of those that do not account only some records are looked at in a turn: what they look for may
// lie behind millions of others.
bool DispatcherCore::wants_look(const Group& group, const LaneState& lane) const {
  return !lane.caught_up && !lane.reading && !(lane.held_back && held_back(group)) &&
         lane.messages <= std::min(options_.ready_messages_max / 2, kSliceMessagesMax) &&
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
    wanted.messages_max = std::min(options_.ready_messages_max - lane.messages, kSliceMessagesMax);
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
  for (auto& run : slice.runs) {
    if (run.deliver_at_ms != 0) {
      schedule(group, run.first, run.deliver_at_ms);
    } else {
      lane.push(std::move(run));
    }
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
  if (!slice.lost.empty()) settle_damaged(group, slice.lost);
  for (const auto& part : slice.damaged) record_damage(group, part);
}

}  // namespace dray::balancing
