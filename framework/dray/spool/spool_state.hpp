// SpoolState: what the records of a log mean together; built by replaying them at open. Pure.
//
// Threading: built by one thread, then its parts move to their owners (groups to the dispatcher,
// the dedup window to the spool).
// Failure: a record that cannot be decoded is kCorrupt: it passed its CRC, so this program or the
// one that wrote it is at fault, and serving on would guess.
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "dray/publisher.hpp"
#include "dray/spool/group_state.hpp"
#include "dray/spool/segment_log.hpp"

namespace dray::spool {

// A worker session that the log knows and that has not ended.
struct RecordedSession {
  Uuid id;
  GroupId group = 0;
  std::string worker;
};

// Remembers publisher-given ids, bounded by count and time.
class DedupWindow {
 public:
  struct Known {
    Uuid message_id;
    Sequence sequence = 0;
    std::uint64_t body_hash = 0;
    std::int64_t at_ms = 0;
  };
  DedupWindow(std::size_t count_max, Milliseconds age_max)
      : count_max_(count_max), age_max_(age_max) {}

  // Nothing also for an id that is older than the window.
  const Known* find(const std::string& id, std::int64_t now_ms) const;
  void add(const std::string& id, const Known& known);
  // Forgets what is older than the window.
  void trim(std::int64_t now_ms);
  std::size_t size() const { return known_.size(); }

 private:
  std::size_t count_max_;
  Milliseconds age_max_;
  std::unordered_map<std::string, Known> known_;
  std::deque<std::string> order_;
};

// Hash of topic and body: tells a repeated publish from another message under the same id.
std::uint64_t dedup_hash(std::string_view topic, std::string_view body);

struct DedupOptions {
  std::size_t count_max = 1'000'000;
  Milliseconds age_max = std::chrono::hours(24);
};

class SpoolState {
 public:
  explicit SpoolState(const DedupOptions& dedup) : dedup_(dedup.count_max, dedup.age_max) {}

  // Applies the next record of the log.
  Status apply(const Record& record);
  // These positions of the log are damaged: no group has them open (P6).
  void skip(Lsn first, Lsn last);
  // After the last record: a unit that was never completed did not happen.
  void finish();

  std::uint64_t epoch() const { return epoch_; }
  std::vector<std::unique_ptr<GroupState>>& groups() { return groups_; }
  GroupState* find_group(std::string_view name);
  const std::map<Uuid, RecordedSession>& sessions() const { return sessions_; }
  DedupWindow& dedup() { return dedup_; }

 private:
  Status apply_now(const RecordHeader& header, std::string_view payload);
  Status apply_message(Lsn lsn, std::string_view payload);
  Result<GroupState*> group(GroupId id);
  void skip_in_all(Lsn lsn) { skip(lsn, lsn); }

  std::uint64_t epoch_ = 0;
  std::vector<std::unique_ptr<GroupState>> groups_;  // index: GroupId
  std::map<Uuid, RecordedSession> sessions_;
  DedupWindow dedup_;
  // S6: records that wait for the last one of their unit.
  std::vector<std::pair<RecordHeader, std::string>> held_;
};

}  // namespace dray::spool
