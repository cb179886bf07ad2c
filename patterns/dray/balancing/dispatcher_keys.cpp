// DispatcherCore: the order of messages with a key (P10).
#include <algorithm>

#include "dray/balancing/dispatcher_state.hpp"

namespace dray::balancing {

using spool::GroupId;
using spool::History;

// What was granted before the restart has its key's turn, or had it; what stood in line still does.
// Neither their entries nor the log's records of them say the key: it is read from the messages.
void DispatcherCore::learn_keys(Group& group) {
  for (std::size_t i = 0; i < options_.key_reads_max && !group.to_learn.empty(); ++i) {
    actions_.key_reads.push_back({group.state->id(), group.to_learn.front()});
    group.to_learn.pop_front();
    ++group.learning;
  }
}

void DispatcherCore::on_key(GroupId id, Sequence sequence, KeyHash key, Now) {
  Group& group = *groups_.at(id);
  --group.learning;
  const bool adopted = group.adopted.count(sequence) != 0;
  if (group.state->is_settled(sequence)) return;
  for (auto* session : group.sessions) {
    if (!session->grants.contains(sequence)) continue;
    session->grants.isolate(sequence).common.key = key;
    if (key == 0) return;
    if (const auto before = group.lines.force_turn(key, sequence); before != 0) {
      // It may be on its way already; it will be fetched again when its turn comes.
      group.state->take(before);
      for (auto* queue : {&group.again, &group.suspects}) queue->take_out(before);
    }
    return;
  }
  const auto* history = group.state->history(sequence);
  if (history == nullptr || history->dead()) return;
  if (adopted) {  // and answered or lost meanwhile: it comes back by that, with its turn
    if (key != 0) (void)group.lines.take_turn(key, sequence);
    return;
  }
  const std::int64_t due_ms = history->due_ms() == History::kAtHand ? 0 : history->due_ms();
  if (key == 0) return schedule(group, sequence, due_ms);
  if (history->number() == 0) {  // it was in line: behind what is older and may still be unread
    add_late(group, {sequence, sequence, key});
  } else if (group.lines.take_turn(key, sequence)) {
    return schedule(group, sequence, due_ms);
  } else {
    group.lines.wait(key, sequence);
  }
  group.state->take(sequence);
}

// Whose turn it is is known: nothing older may still turn up that has it.
bool DispatcherCore::keys_known(const Group& group) const {
  return !group.gated && group.to_learn.empty() && group.learning == 0;
}

// A message that must wait leaves its bytes and stands in line.
bool DispatcherCore::has_turn(Group& group, const spool::StoredRun& message) {
  if (message.key == 0 || !group.limits.ordered || planted(Fault::kKeyIgnored)) return true;
  if (group.lines.holder(message.key) == message.first) return true;
  const auto* history = group.state->history(message.first);
  const bool first_due = message.deliver_at_ms != 0 && history != nullptr && history->number() == 0;
  const bool overtakes = first_due && position(group) < accepted_until_;
  if (!keys_known(group) || (overtakes && !planted(Fault::kDueOvertakes))) {
    add_late(group, {accepted_until_, message.first, message.key});
    // After a restart what was due for the first time is so again.
    group.state->delay(message.first, first_due ? message.deliver_at_ms : History::kAtHand);
    return false;
  }
  if (group.lines.take_turn(message.key, message.first)) return true;
  group.lines.wait(message.key, message.first);
  group.state->delay(message.first, History::kAtHand);
  return false;
}

void DispatcherCore::add_late(Group& group, LateMessage late) {
  const auto at = std::upper_bound(
      group.late.begin(), group.late.end(), late,
      [](const auto& one, const auto& other) { return one.behind < other.behind; });
  group.late.insert(at, late);
}

// Up to where normal messages were granted, or stand in line.
Sequence DispatcherCore::position(const Group& group) const {
  for (const auto* lanes : {&group.old_lanes, &group.live_lanes}) {
    const auto& lane = lanes->at(static_cast<std::size_t>(Priority::kNormal));
    if (!lane.ready.empty()) return lane.ready.front().first;
    if (!lane.caught_up) return lane.cursor;
  }
  return accepted_until_;
}

// Delayed messages whose place has come get in line.
void DispatcherCore::line_up_late(Group& group, Sequence reached) {
  if (!keys_known(group)) return;
  for (; !group.late.empty() && group.late.front().behind <= reached; group.late.pop_front()) {
    const auto& late = group.late.front();
    if (group.state->is_settled(late.sequence) || group.adopted.count(late.sequence) != 0) continue;
    if (group.lines.take_turn(late.key, late.sequence)) {
      schedule(group, late.sequence, 0);
    } else {
      group.lines.wait(late.key, late.sequence);
      group.state->take(late.sequence);
    }
  }
}

// `key` 0: it is not known any more.
void DispatcherCore::release_key(Group& group, Sequence sequence, KeyHash key) {
  if (const auto left = group.keys_left.find(sequence); left != group.keys_left.end()) {
    if (key == 0) key = left->second;
    group.keys_left.erase(left);
  }
  // It was adopted, and its key was learned when nobody held it yet.
  if (key == 0 && group.adopted.count(sequence) != 0) key = group.lines.find(sequence);
  if (key == 0) return;
  if (const auto next = group.lines.release(key, sequence); next != 0) schedule(group, next, 0);
}

// Messages of the live lane wait until all that is older went out.
bool DispatcherCore::stalls(const Group& group, const LaneState& lane) const {
  if (lane.ready.front().key == 0 || !group.limits.ordered) return false;
  if (!keys_known(group)) return true;
  const auto& older = group.old_lanes.at(static_cast<std::size_t>(Priority::kNormal));
  return lane.which == Lane::kLive && !planted(Fault::kLiveOvertakes) &&
         (!older.caught_up || !older.ready.empty());
}

}  // namespace dray::balancing
