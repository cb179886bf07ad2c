#include "dray/spool/group_state.hpp"

#include <algorithm>

namespace dray::spool {

void GroupState::declare(Lsn lsn, std::vector<std::string> topics, GroupStanding standing) {
  standing_ = standing;
  eras_.push_back({lsn, std::move(topics), standing});
}

bool GroupState::takes(std::string_view topic, Lsn lsn) const {
  // The last era that began before the message.
  for (auto era = eras_.rbegin(); era != eras_.rend(); ++era) {
    if (era->from > lsn) continue;
    return era->standing == GroupStanding::kAttached &&
           std::find(era->topics.begin(), era->topics.end(), topic) != era->topics.end();
  }
  return false;
}

void GroupState::accept() {
  ++counts_.accepted;
  ++counts_.pending;
}

bool GroupState::settle(Sequence sequence, Settlement settlement) {
  if (settled_.contains(sequence)) return false;
  if (!histories_.empty()) {
    const auto found = histories_.find(sequence);
    if (found != histories_.end()) {
      if (found->second.dead) {
        dead_.erase(sequence);
        --counts_.dead;
        ++counts_.pending;
      }
      histories_.erase(found);
    }
  }
  settled_.add(sequence);
  --counts_.pending;
  switch (settlement) {
    case Settlement::kDone:
      ++counts_.done;
      break;
    case Settlement::kExpired:
      ++counts_.expired;
      break;
    case Settlement::kDropped:
      ++counts_.dropped;
      break;
    case Settlement::kDamaged:
      ++counts_.damaged;
      break;
  }
  return true;
}

void GroupState::delivered(Sequence sequence, std::uint32_t number, std::uint32_t epoch) {
  if (settled_.contains(sequence)) return;
  auto& history = histories_[sequence];
  history.number = std::max(history.number, number);
  history.number_epoch = epoch;
}

void GroupState::retry(const RetryRecord& record, Lsn lsn) {
  if (settled_.contains(record.sequence)) return;
  auto& history = histories_[record.sequence];
  if (history.dead) return;
  history.due_ms = record.due_ms;
  history.record_lsn = lsn;
  history.number = std::max(history.number, record.number);
  history.attempts = record.attempts;
  history.ended = std::max(history.ended, record.number);
  history.losses = static_cast<std::uint16_t>(std::min<std::uint32_t>(record.losses, 0xFFFF));
  history.suspect = record.suspect;
}

bool GroupState::dead(const DeadRecord& record, Lsn lsn) {
  if (settled_.contains(record.sequence)) return false;
  auto& history = histories_[record.sequence];
  if (history.dead) return false;
  history.dead = true;
  history.record_lsn = lsn;
  history.number = std::max(history.number, record.number);
  history.attempts = record.attempts;
  history.ended = std::max(history.ended, record.number);
  history.suspect = false;
  history.due_ms = 0;
  dead_.insert(record.sequence);
  --counts_.pending;
  ++counts_.dead;
  return true;
}

bool GroupState::revive(Sequence sequence) {
  const auto found = histories_.find(sequence);
  if (found == histories_.end() || !found->second.dead) return false;
  found->second.dead = false;
  found->second.attempts = 0;
  found->second.losses = 0;
  dead_.erase(sequence);
  --counts_.dead;
  ++counts_.pending;
  return true;
}

const History* GroupState::history(Sequence sequence) const {
  const auto found = histories_.find(sequence);
  return found == histories_.end() ? nullptr : &found->second;
}

}  // namespace dray::spool
