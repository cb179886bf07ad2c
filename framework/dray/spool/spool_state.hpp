// SpoolState: what the records of a log mean together; restored from a checkpoint and built further
// by replaying what follows it. Pure.
//
// Threading: built by one thread, then its parts move to their owners (groups and sessions to the
// dispatcher, the dedup window to the spool).
// Failure: a record that cannot be decoded is kCorrupt: it passed its CRC, so this program or the
// one that wrote it is at fault, and serving on would guess.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "dray/spool/checkpoint.hpp"
#include "dray/spool/dedup_window.hpp"
#include "dray/spool/group_state.hpp"

namespace dray::spool {

// A worker session that the log knows and that has not ended.
struct RecordedSession {
  Uuid id;
  GroupId group = 0;
  std::string worker;
};

// Flags of a message's record.
std::uint8_t message_flags(Priority priority, bool has_options, bool has_key);

class SpoolState {
 public:
  explicit SpoolState(const DedupOptions& dedup) : dedup_(dedup) {}

  // REQUIRES: before the first apply().
  Status restore(const Checkpoint& checkpoint);
  // Applies the next record of the log.
  Status apply(const Record& record);
  // Records from `first` on are missing, inside a segment or with all that was in some: a unit that
  // they were part of did not happen (S6). The first position that is lost with them.
  Lsn gap(Lsn first, bool inside) {
    if (!held_.empty()) first = held_.front().first.lsn;
    drop_unit();
    if (inside && lost_from_ == 0) lost_from_ = first;
    return first;
  }
  // After the last record: a unit that was never completed did not happen.
  void finish() { drop_unit(); }

  // What the last owner's config said; nothing: no record says it.
  const std::optional<OwnerRecord>& owner() const { return owner_; }
  std::uint64_t epoch() const { return epoch_; }
  // Up to here a checkpoint or a segment's opening says which groups there are, whatever else is
  // damaged; 0: nothing does.
  Lsn groups_known_at() const { return groups_known_at_; }
  std::vector<std::unique_ptr<GroupState>>& groups() { return groups_; }
  GroupState* find_group(std::string_view name);
  const std::map<Uuid, RecordedSession>& sessions() const { return sessions_; }
  DedupWindow& dedup() { return dedup_; }

 private:
  Status apply_now(const RecordHeader& header, std::string_view payload);
  Status apply_message(const RecordHeader& header, std::string_view payload);
  Status apply_opening(Lsn lsn, std::string_view payload);
  Status apply_copy(Lsn lsn, std::string_view payload);
  Status declare(Lsn lsn, const GroupRecord& record);
  void raise_accepted(const std::vector<std::uint64_t>& accepted);
  Result<GroupState*> group(GroupId id);
  void drop_unit();

  std::optional<OwnerRecord> owner_;
  std::uint64_t epoch_ = 0;
  Lsn groups_known_at_ = 0;
  // Where records are lost in this segment, which may have declared a group, or 0; and the messages
  // since: the next segment's opening says of which groups they are.
  Lsn lost_from_ = 0;
  std::vector<std::pair<Lsn, std::string>> orphans_;  // with their topics
  std::vector<std::unique_ptr<GroupState>> groups_;   // index: GroupId
  std::map<Uuid, RecordedSession> sessions_;
  DedupWindow dedup_;
  // S6: records that wait for the last one of their unit.
  std::vector<std::pair<RecordHeader, std::string>> held_;
  // Groups that take the topic of the last message: most logs have long runs of one topic.
  std::string routed_topic_;
  std::vector<GroupState*> routed_;
};

}  // namespace dray::spool
