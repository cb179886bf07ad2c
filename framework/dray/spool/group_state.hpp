// GroupState: where every message of a spool stands for one group (P2, P3). Pure.
//
// A message that is simply waiting costs nothing here (P8). Kept are: a cursor (`known`) behind
// which every position of the log is accounted for; the closed positions as a set; and one
// entry of at most 64 bytes for each message with a history (delayed, retrying, suspect, dead).
//
//   accepted --> open --settle()--> settled (done | expired | dropped | damaged)
//                 |  ^
//       dead()    v  | revive()
//                dead
//
// A position is *closed* if it is no open message of this group, or has an entry. So an entry is
// open though its position is closed, and the set stays small however many entries there are.
//
// Threading: owned by one thread. Failure: transitions that are not allowed return false and
// change nothing.
#pragma once

#include <absl/container/btree_map.h>

#include <array>
#include <optional>
#include <string>
#include <vector>

#include "dray/spool/record_payload.hpp"
#include "dray/spool/sequence_set.hpp"
#include "dray/spool/step_journals.hpp"

namespace dray::spool {

// P2: accepted = done + dead + expired + dropped + damaged + pending, at all times.
struct GroupCounts {
  std::uint64_t accepted = 0;
  std::uint64_t pending = 0;
  std::uint64_t done = 0;
  std::uint64_t dead = 0;
  std::uint64_t expired = 0;
  std::uint64_t dropped = 0;
  std::uint64_t damaged = 0;
  DRAY_FIELDS(accepted, pending, done, dead, expired, dropped, damaged)

  bool balanced() const { return accepted == pending + done + dead + expired + dropped + damaged; }
  bool operator==(const GroupCounts&) const = default;
};

// What is remembered of a message with a history; 32 bytes, of which there may be a million.
class History {
 public:
  // due_ms of a message that is at hand or granted: nothing waits for its time.
  static constexpr std::int64_t kAtHand = (1LL << 48) - 1;

  std::int64_t due_ms() const { return static_cast<std::int64_t>(due_ms_); }  // UTC; 0: at once
  std::uint32_t attempts() const { return attempts_; }  // counted; stays at its limit of 8,191
  std::uint32_t losses() const { return losses_; }      // deliveries lost in company; at most 255
  Lsn record_lsn() const { return record_lsn_; }  // its last retry, dead or copy record, 0 for none
  Lsn copy_lsn() const { return copy_lsn_; }      // where the message was copied to, 0: never
  std::uint32_t number() const { return number_; }              // last delivery number
  std::uint32_t number_epoch() const { return number_epoch_; }  // low 32 bits of its epoch
  bool ended() const { return ended_ != 0; }  // the end of that delivery is recorded
  bool suspect() const { return suspect_ != 0; }
  bool dead() const { return dead_ != 0; }

  void set_due_ms(std::int64_t value) { due_ms_ = static_cast<std::uint64_t>(value) & kDueMax; }
  void set_attempts(std::uint64_t value) { attempts_ = (value < 8191 ? value : 8191) & 8191; }
  void set_losses(std::uint64_t value) { losses_ = (value < 255 ? value : 255) & 255; }
  void set_record_lsn(Lsn value) { record_lsn_ = value & kLsnMax; }
  void set_copy_lsn(Lsn value) { copy_lsn_ = value & kLsnMax; }
  // A later delivery number has not ended.
  void set_number(std::uint32_t number, std::uint32_t epoch) {
    if (number > number_) ended_ = 0;
    number_ = number > number_ ? number : number_;
    number_epoch_ = epoch;
  }
  void end_number(std::uint32_t number) {
    if (number < number_) return;
    number_ = number;
    ended_ = 1;
  }
  void set_suspect(bool value) { suspect_ = value ? 1 : 0; }
  void set_dead(bool value) { dead_ = value ? 1 : 0; }

 private:
  static constexpr std::uint64_t kDueMax = (1ULL << 48) - 1;
  static constexpr std::uint64_t kLsnMax = (1ULL << 56) - 1;  // 1,100 years at 2 million/s

  std::uint64_t due_ms_ : 48 = 0;
  std::uint64_t attempts_ : 13 = 0;
  std::uint64_t ended_ : 1 = 0;
  std::uint64_t suspect_ : 1 = 0;
  std::uint64_t dead_ : 1 = 0;
  std::uint64_t record_lsn_ : 56 = 0;
  std::uint64_t losses_ : 8 = 0;
  std::uint64_t copy_lsn_ : 56 = 0;
  std::uint32_t number_ = 0;
  std::uint32_t number_epoch_ = 0;
};
static_assert(sizeof(History) == 32);

// Lost messages in a part of the log that the cursor has not passed yet.
struct DamagedPart {
  Lsn first = 0;
  Lsn last = 0;
  std::uint64_t count = 0;
  DRAY_FIELDS(first, last, count)
};

// From `from` on the group takes these topics.
struct Era {
  Lsn from = 0;
  std::vector<std::string> topics;
  GroupStanding standing = GroupStanding::kAttached;
  DRAY_FIELDS(from, topics, standing)
};

// A group as a checkpoint keeps it (FORMATS.md, "Checkpoint").
struct GroupSnapshot {
  GroupId id = 0;
  std::string name;
  std::vector<Era> eras;
  GroupCounts counts;
  Sequence known = 1;
  std::uint64_t passed = 0;
  std::vector<DamagedPart> damaged;
  std::vector<Sequence> first_of;  // index: Priority; see GroupState::first_of()
  std::uint64_t replayed = 0;
  bool paused = false;
  Binary closed;   // SequenceSet::encode()
  Binary entries;  // 48 bytes each
  Binary steps;    // StepJournals::encode()
  DRAY_FIELDS(id, name, eras, counts, known, passed, damaged, first_of, replayed, paused, closed,
              entries, steps)
};

inline constexpr std::size_t kPriorities = 3;

class GroupState {
 public:
  using Entries = absl::btree_map<Sequence, History>;

  GroupState(GroupId id, std::string name) : id_(id), name_(std::move(name)) {}
  // kCorrupt if it is no such snapshot.
  static Result<GroupState> restore(const GroupSnapshot& snapshot);
  GroupSnapshot snapshot() const;

  GroupId id() const { return id_; }
  const std::string& name() const { return name_; }
  bool declared() const { return !eras_.empty(); }
  GroupStanding standing() const { return eras_.back().standing; }
  const std::vector<std::string>& topics() const { return eras_.back().topics; }
  const GroupCounts& counts() const { return counts_; }
  // What was accepted as it was published: without what was replayed.
  std::uint64_t published() const { return counts_.accepted - replayed_; }
  bool paused() const { return paused_; }
  void set_paused(bool paused) { paused_ = paused; }

  // From `lsn` on the group takes these topics; before the first declaration it took none.
  // kDropped settles all that is open. REQUIRES: before any accept() behind `lsn`.
  void declare(Lsn lsn, std::vector<std::string> topics, GroupStanding standing);
  // Whether the group takes a message of this topic recorded at `lsn`.
  bool takes(std::string_view topic, Lsn lsn) const;

  void accept(std::uint64_t messages = 1);
  // The log says that so many were accepted; those that are missing were among damaged records
  // and are pending until the cursor gets there.
  void raise_accepted(std::uint64_t accepted);
  // These positions of the log are no open messages of this group.
  void skip(Lsn first, Lsn last) { closed_.add(first, last); }
  bool settle(Sequence sequence, Settlement settlement);
  // The same for each of them.
  void settle(const SequenceRun& run, Settlement settlement);
  // Not to be delivered before `due_ms`.
  void delay(Sequence sequence, std::int64_t due_ms);
  void delivered(Sequence sequence, std::uint32_t number, std::uint32_t epoch);
  void retry(const RetryRecord& record, Lsn lsn);
  bool dead(const DeadRecord& record, Lsn lsn);
  bool revive(Sequence sequence);
  // A settled message, or one that the group never had, is accepted by the record at `lsn` and is
  // to be delivered at once. False if it has a history. REQUIRES: it is no plain open message.
  bool replay(Sequence sequence, Lsn lsn);
  // Its time came: it is on its way to a worker. REQUIRES: it has an entry.
  void take(Sequence sequence) { entries_.at(sequence).set_due_ms(History::kAtHand); }
  // The copy holds its history up to the record at `record_lsn`.
  void copied(Sequence sequence, Lsn copy_lsn, Lsn record_lsn);
  // Without a checkpoint the log begins in the middle: `accepted` messages up to `lsn` were
  // settled, for else their segments would be there (S9). REQUIRES: just declared.
  void begin_in_the_middle(Lsn lsn, std::uint64_t accepted);
  // A copy of a message from before that: open after all.
  void copied_from_before(Sequence sequence, Lsn copy_lsn, const AttemptRecord* last);
  // Of a message that is settled: nothing.
  void step(const StepRecord& record) {
    if (!is_settled(record.sequence)) steps_.apply(record);
  }
  const StepJournals& steps() const { return steps_; }
  // `count` messages in [first, last] are lost.
  void damage(const DamagedPart& part);

  // True for positions that are no open message of this group, also for those that never were one.
  bool is_settled(Sequence sequence) const {
    return closed_.contains(sequence) && (entries_.empty() || !entries_.contains(sequence));
  }
  // To be found by reading the log: neither settled nor with an entry.
  bool is_plain(Sequence sequence) const { return !closed_.contains(sequence); }
  // Nothing for a message without a history.
  const History* history(Sequence sequence) const;
  const Entries& entries() const { return entries_; }
  // The first dead letter behind `after`, 0 if there is none.
  Sequence next_dead(Sequence after) const;
  // One of them has a history.
  bool any_history(const SequenceRun& run) const {
    if (entries_.empty()) return false;
    const auto found = entries_.lower_bound(run.first);
    return found != entries_.end() && found->first < run.end();
  }
  // The lowest position from `from` on that is_plain().
  Sequence first_plain(Sequence from = 1) const { return closed_.first_gap(from); }

  // Every position below is closed, or an open message of this group that was read.
  Sequence known() const { return known_; }
  // Messages of this group below known().
  std::uint64_t passed() const { return passed_; }
  // The cursor went on to `next`, over `messages` of this group. REQUIRES: next >= known().
  void pass(Sequence next, std::uint64_t messages);
  // No plain message of this priority lies below: a cursor of its own may begin there.
  Sequence first_of(Priority priority) const {
    return first_of_[static_cast<std::size_t>(priority)];
  }
  void set_first_of(Priority priority, Sequence first) {
    first_of_[static_cast<std::size_t>(priority)] = first;
  }
  // Damage on record in [from, before), which the cursor counts as it passes.
  std::uint64_t damaged_between(Lsn from, Lsn before) const;

 private:
  void leave_pending(std::uint64_t messages = 1);
  void count_settled(Settlement settlement, std::uint64_t messages);

  GroupId id_;
  std::string name_;
  std::vector<Era> eras_;
  GroupCounts counts_;
  Sequence known_ = 1;
  std::uint64_t passed_ = 0;
  std::uint64_t replayed_ = 0;
  bool paused_ = false;
  std::array<Sequence, kPriorities> first_of_{1, 1, 1};
  Lsn begun_ = 0;  // see begin_in_the_middle()
  std::vector<DamagedPart> damaged_;
  SequenceSet closed_;
  Entries entries_;
  StepJournals steps_;
};

}  // namespace dray::spool
