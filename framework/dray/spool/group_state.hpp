// GroupState: where every message of a spool stands for one group (P2, P3). Pure.
//
// A message that is simply waiting costs nothing here (P8): what is kept is the set of settled
// sequences, as intervals, and one small entry for each message with a history (delivered,
// retrying, suspect, dead).
//
//   accepted --> open --settle()--> settled (done | expired | dropped | damaged)
//                 |  ^
//       dead()    v  | revive()
//                dead
//
// Threading: owned by one thread. Failure: transitions that are not allowed return false and
// change nothing.
#pragma once

#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "dray/spool/interval_set.hpp"
#include "dray/spool/record_payload.hpp"

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

  bool balanced() const { return accepted == pending + done + dead + expired + dropped + damaged; }
};

// What is remembered of a message with a history.
struct History {
  std::int64_t due_ms = 0;         // UTC; not to be delivered before
  Lsn record_lsn = 0;              // its last retry or dead record, 0 for none
  std::uint32_t number = 0;        // last delivery number
  std::uint32_t number_epoch = 0;  // epoch (low 32 bits) in which that was granted
  std::uint32_t attempts = 0;      // counted attempts
  std::uint32_t ended = 0;         // highest delivery number whose end is recorded
  std::uint16_t losses = 0;        // deliveries lost in company
  bool suspect = false;
  bool dead = false;
};

class GroupState {
 public:
  GroupState(GroupId id, std::string name) : id_(id), name_(std::move(name)) {}

  GroupId id() const { return id_; }
  const std::string& name() const { return name_; }
  GroupStanding standing() const { return standing_; }
  const std::vector<std::string>& topics() const { return eras_.back().topics; }
  const GroupCounts& counts() const { return counts_; }

  // From `lsn` on the group takes these topics. REQUIRES: before any accept() behind `lsn`.
  void declare(Lsn lsn, std::vector<std::string> topics, GroupStanding standing);
  // Whether the group takes a message of this topic recorded at `lsn`.
  bool takes(std::string_view topic, Lsn lsn) const;

  void accept();
  // These positions of the log are no open messages of this group.
  void skip(Lsn first, Lsn last) { settled_.add(first, last); }
  bool settle(Sequence sequence, Settlement settlement);
  void delivered(Sequence sequence, std::uint32_t number, std::uint32_t epoch);
  void retry(const RetryRecord& record, Lsn lsn);
  bool dead(const DeadRecord& record, Lsn lsn);
  bool revive(Sequence sequence);

  bool is_settled(Sequence sequence) const { return settled_.contains(sequence); }
  // Nothing for a message without a history.
  const History* history(Sequence sequence) const;
  // Everything below is settled.
  Sequence watermark() const { return settled_.first_gap(1); }
  const std::map<Sequence, History>& histories() const { return histories_; }
  const std::set<Sequence>& dead_letters() const { return dead_; }

 private:
  struct Era {
    Lsn from;
    std::vector<std::string> topics;
    GroupStanding standing;
  };

  GroupId id_;
  std::string name_;
  GroupStanding standing_ = GroupStanding::kAttached;
  std::vector<Era> eras_;
  GroupCounts counts_;
  IntervalSet settled_;
  std::map<Sequence, History> histories_;
  std::set<Sequence> dead_;
};

}  // namespace dray::spool
