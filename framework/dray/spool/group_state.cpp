#include "dray/spool/group_state.hpp"

#include <algorithm>
#include <limits>

#include "dray/spool/bytes.hpp"
#include "dray/spool/planted_fault.hpp"

namespace dray::spool {
namespace {

constexpr std::size_t kEntrySize = 48;

enum EntryFlags : std::uint8_t { kDead = 1, kSuspect = 2, kEnded = 4 };

void put_entry(std::string& out, Sequence sequence, const History& history) {
  put_le(out, sequence);
  put_le(out, static_cast<std::uint64_t>(history.due_ms()));
  put_le(out, history.record_lsn());
  put_le(out, history.copy_lsn());
  put_le(out, history.number());
  put_le(out, history.number_epoch());
  put_le(out, static_cast<std::uint16_t>(history.attempts()));
  put_le(out, static_cast<std::uint16_t>(history.losses()));
  put_le(out, static_cast<std::uint32_t>((history.dead() ? kDead : 0) |
                                         (history.suspect() ? kSuspect : 0) |
                                         (history.ended() ? kEnded : 0)));
}

std::pair<Sequence, History> get_entry(const char* in) {
  History history;
  history.set_due_ms(static_cast<std::int64_t>(get_le<std::uint64_t>(in + 8)));
  history.set_record_lsn(get_le<std::uint64_t>(in + 16));
  history.set_copy_lsn(get_le<std::uint64_t>(in + 24));
  history.set_number(get_le<std::uint32_t>(in + 32), get_le<std::uint32_t>(in + 36));
  history.set_attempts(get_le<std::uint16_t>(in + 40));
  history.set_losses(get_le<std::uint16_t>(in + 42));
  const auto flags = get_le<std::uint32_t>(in + 44);
  history.set_dead((flags & kDead) != 0);
  history.set_suspect((flags & kSuspect) != 0);
  if ((flags & kEnded) != 0) history.end_number(history.number());
  return {get_le<std::uint64_t>(in), history};
}

}  // namespace

Result<GroupState> GroupState::restore(const GroupSnapshot& snapshot) {
  const Error fault{ErrorCode::kCorrupt, "group " + snapshot.name + " cannot be read", "", 0};
  const auto& entries = snapshot.entries.bytes;
  GroupState state(snapshot.id, snapshot.name);
  if (snapshot.eras.empty() || !state.closed_.decode(snapshot.closed.bytes) ||
      entries.size() % kEntrySize != 0 || !snapshot.counts.balanced() ||
      snapshot.first_of.size() != kPriorities || snapshot.replayed > snapshot.counts.accepted) {
    return fault;
  }
  state.eras_ = snapshot.eras;
  state.counts_ = snapshot.counts;
  state.known_ = snapshot.known;
  state.passed_ = snapshot.passed;
  state.damaged_ = snapshot.damaged;
  state.replayed_ = snapshot.replayed;
  state.paused_ = snapshot.paused;
  std::copy(snapshot.first_of.begin(), snapshot.first_of.end(), state.first_of_.begin());
  for (std::size_t at = 0; at < entries.size(); at += kEntrySize) {
    state.entries_.insert(state.entries_.end(), get_entry(entries.data() + at));
  }
  if (!state.steps_.decode(snapshot.steps.bytes)) return fault;
  return state;
}

GroupSnapshot GroupState::snapshot() const {
  GroupSnapshot snapshot;
  snapshot.id = id_;
  snapshot.name = name_;
  // Eras that ended before anything that is still to be read say nothing any more.
  const Sequence oldest = std::min(first_plain(), known_);
  for (std::size_t i = 0; i < eras_.size(); ++i) {
    const bool over = i + 1 < eras_.size() && eras_[i + 1].from <= oldest;
    if (!over) snapshot.eras.push_back(eras_[i]);
  }
  snapshot.counts = counts_;
  snapshot.known = known_;
  snapshot.passed = passed_;
  snapshot.damaged = damaged_;
  snapshot.first_of.assign(first_of_.begin(), first_of_.end());
  snapshot.replayed = replayed_;
  snapshot.paused = paused_;
  snapshot.closed.bytes = closed_.encode();
  snapshot.entries.bytes.reserve(entries_.size() * kEntrySize);
  for (const auto& [sequence, history] : entries_) {
    put_entry(snapshot.entries.bytes, sequence, history);
  }
  snapshot.steps.bytes = steps_.encode(id_);
  return snapshot;
}

void GroupState::declare(Lsn lsn, std::vector<std::string> topics, GroupStanding standing) {
  if (eras_.empty()) {
    closed_.add(1, lsn);
    known_ = lsn + 1;
  }
  eras_.push_back({lsn, std::move(topics), standing});
  if (standing != GroupStanding::kDropped) return;
  counts_.dropped += counts_.pending + counts_.dead;
  counts_.pending = counts_.dead = 0;
  entries_.clear();
  steps_.clear();
  damaged_.clear();
  // Nothing that the log holds or will hold is open for it.
  known_ = std::numeric_limits<Sequence>::max();
  passed_ = published();
  closed_ = SequenceSet();
  closed_.add(1, known_ - 1);
}

bool GroupState::takes(std::string_view topic, Lsn lsn) const {
  if (standing() == GroupStanding::kDropped) return false;
  // The last era that began before the message.
  for (auto era = eras_.rbegin(); era != eras_.rend(); ++era) {
    if (era->from > lsn) continue;
    return era->standing == GroupStanding::kAttached &&
           std::find(era->topics.begin(), era->topics.end(), topic) != era->topics.end();
  }
  return false;
}

void GroupState::accept(std::uint64_t messages) {
  counts_.accepted += messages;
  counts_.pending += messages;
}

void GroupState::raise_accepted(std::uint64_t accepted) {
  if (standing() == GroupStanding::kDropped || accepted <= published()) return;
  accept(accepted - published());
}

bool GroupState::settle(Sequence sequence, Settlement settlement) {
  if (is_settled(sequence)) return false;
  if (const auto found = entries_.find(sequence); found != entries_.end()) {
    if (found->second.dead()) {
      --counts_.dead;
      ++counts_.pending;
    }
    entries_.erase(found);
  } else {
    closed_.add(sequence);
  }
  steps_.forget(sequence);
  count_settled(settlement, 1);
  return true;
}

void GroupState::settle(const SequenceRun& run, Settlement settlement) {
  if (any_history(run) || steps_.any(run)) {
    for (Sequence sequence = run.first; sequence < run.end(); ++sequence) {
      settle(sequence, settlement);
    }
    return;
  }
  count_settled(settlement, closed_.add_counting(run.first, run.last()));
}

void GroupState::count_settled(Settlement settlement, std::uint64_t messages) {
  leave_pending(messages);
  switch (settlement) {
    case Settlement::kDone:
      counts_.done += messages;
      break;
    case Settlement::kExpired:
      counts_.expired += messages;
      break;
    case Settlement::kDropped:
      counts_.dropped += messages;
      break;
    case Settlement::kDamaged:
      counts_.damaged += messages;
      break;
  }
}

// Lost messages are known by number only: one that was settled in the log before it was lost may
// have been counted as lost too, and then it is another that is still here.
void GroupState::leave_pending(std::uint64_t messages) {
  const auto lost = messages - std::min(messages, counts_.pending);
  const auto miscounted = std::min(lost, counts_.damaged);
  counts_.damaged -= miscounted;
  counts_.pending -= messages - miscounted;
}

void GroupState::delay(Sequence sequence, std::int64_t due_ms) {
  if (is_settled(sequence)) return;
  closed_.add(sequence);
  entries_[sequence].set_due_ms(due_ms);
}

void GroupState::delivered(Sequence sequence, std::uint32_t number, std::uint32_t epoch) {
  if (is_settled(sequence)) return;
  closed_.add(sequence);
  entries_[sequence].set_number(number, epoch);
}

void GroupState::retry(const RetryRecord& record, Lsn lsn) {
  if (is_settled(record.sequence) || planted(Fault::kAttemptsForgotten)) return;
  closed_.add(record.sequence);
  auto& history = entries_[record.sequence];
  if (history.dead()) return;
  history.set_due_ms(record.due_ms);
  history.set_record_lsn(lsn);
  history.set_attempts(record.attempts);
  history.end_number(record.number);
  history.set_losses(record.losses);
  history.set_suspect(record.suspect);
}

bool GroupState::dead(const DeadRecord& record, Lsn lsn) {
  if (is_settled(record.sequence)) return false;
  closed_.add(record.sequence);
  auto& history = entries_[record.sequence];
  if (history.dead()) return false;
  history.set_dead(true);
  history.set_record_lsn(lsn);
  history.set_attempts(record.attempts);
  history.end_number(record.number);
  history.set_suspect(false);
  history.set_due_ms(0);
  leave_pending();
  ++counts_.dead;
  return true;
}

bool GroupState::revive(Sequence sequence) {
  const auto found = entries_.find(sequence);
  if (found == entries_.end() || !found->second.dead()) return false;
  found->second.set_dead(false);
  found->second.set_attempts(0);
  found->second.set_losses(0);
  --counts_.dead;
  ++counts_.pending;
  return true;
}

bool GroupState::replay(Sequence sequence, Lsn lsn) {
  // The record proves that it was settled, or never the group's: recovery does not close the
  // latter.
  if (standing() == GroupStanding::kDropped || entries_.contains(sequence)) return false;
  closed_.add(sequence);
  accept();
  ++replayed_;
  // Numbers of deliveries before are forgotten; these are others (P3).
  entries_[sequence].end_number(static_cast<std::uint32_t>(lsn & 0x7FFF'FFFF));
  return true;
}

void GroupState::copied(Sequence sequence, Lsn copy_lsn, Lsn record_lsn) {
  const auto found = entries_.find(sequence);
  if (found == entries_.end()) return;
  found->second.set_copy_lsn(copy_lsn);
  const Lsn newest = found->second.record_lsn();
  if (newest != 0 && newest == record_lsn) found->second.set_record_lsn(copy_lsn);
}

void GroupState::begin_in_the_middle(Lsn lsn, std::uint64_t accepted) {
  begun_ = lsn;
  counts_.accepted += accepted;
  counts_.done += accepted;
  passed_ += accepted;
}

void GroupState::copied_from_before(Sequence sequence, Lsn copy_lsn, const AttemptRecord* last) {
  if (sequence >= begun_ || entries_.contains(sequence)) return;
  if (counts_.done + counts_.pending == 0) return;
  auto& history = entries_[sequence];
  history.set_copy_lsn(copy_lsn);
  --(counts_.done > 0 ? counts_.done : counts_.pending);
  const bool dead = last != nullptr && !last->cause.empty();
  history.set_dead(dead);
  ++(dead ? counts_.dead : counts_.pending);
  if (last == nullptr) return;
  history.set_record_lsn(copy_lsn);
  history.set_attempts(last->attempts);
}

void GroupState::damage(const DamagedPart& part) {
  if (standing() == GroupStanding::kDropped) return;
  const auto lost = std::min(part.count, counts_.pending);
  counts_.pending -= lost;
  counts_.damaged += lost;
  closed_.add(part.first, part.last);
  // What has an entry may be open still: copied, or delivered.
  steps_.forget(part.first, part.last,
                [this](Sequence sequence) { return entries_.contains(sequence); });
  if (part.last >= known_) damaged_.push_back(part);
}

const History* GroupState::history(Sequence sequence) const {
  if (entries_.empty()) return nullptr;
  const auto found = entries_.find(sequence);
  return found == entries_.end() ? nullptr : &found->second;
}

Sequence GroupState::next_dead(Sequence after) const {
  for (auto each = entries_.upper_bound(after); each != entries_.end(); ++each) {
    if (each->second.dead()) return each->first;
  }
  return 0;
}

void GroupState::pass(Sequence next, std::uint64_t messages) {
  DRAY_ASSERT(next >= known_);
  known_ = next;
  passed_ += messages;
  if (damaged_.empty()) return;
  damaged_.erase(std::remove_if(damaged_.begin(), damaged_.end(),
                                [&](const DamagedPart& part) { return part.last < next; }),
                 damaged_.end());
}

std::uint64_t GroupState::damaged_between(Lsn from, Lsn before) const {
  std::uint64_t count = 0;
  for (const auto& part : damaged_) {
    if (part.last >= from && part.last < before) count += part.count;
  }
  return count;
}

}  // namespace dray::spool
