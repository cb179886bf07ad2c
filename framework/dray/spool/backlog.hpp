// Backlog: what a group reads back from the log: its waiting messages in order, single messages,
// and the history of a message.
//
// What cannot be read is never silently dropped (P6): behind the group's cursor every position is
// accounted for, so a missing one is a lost message; ahead of it the log's own counts (openings and
// markers) tell how many of the group's messages were among the damaged records.
//
// Threading: the thread that owns the group state and the reader.
// Failure: an error means that nothing could be read; the spool must not go on (P7).
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "dray/spool/group_state.hpp"
#include "dray/spool/log_reader.hpp"

namespace dray::spool {

// Stands for an ordering key in memory. Two keys with one hash share their order, which costs time
// and breaks nothing. 0: no key.
using KeyHash = std::uint64_t;
inline constexpr int kKeyHashBits = 40;
KeyHash key_hash(std::string_view key);

// Messages with their bytes at hand: neighbours in the log and in memory that wait for the same.
struct StoredRun {
  Sequence first = 0;
  std::uint32_t count = 1;
  std::uint32_t index = 0;  // of the first, in records
  std::shared_ptr<const Records> records = nullptr;
  Priority priority = Priority::kNormal;
  // With one of these it is one message.
  std::int64_t deliver_at_ms = 0;
  std::int64_t expires_at_ms = 0;
  KeyHash key = 0;

  // REQUIRES: at < count.
  std::string_view envelope(std::uint32_t at = 0) const { return records->payload(index + at); }
  // Of its records, with headers and padding.
  std::size_t bytes() const { return records->offset(index + count) - records->offset(index); }
  // `next` lies right behind it, in the log and in memory.
  bool goes_on(const StoredRun& next) const {
    return first + count == next.first && records == next.records && index + count == next.index;
  }
  // The first `wanted` of them, which it loses. REQUIRES: 0 < wanted < count.
  StoredRun split(std::uint32_t wanted) {
    StoredRun front = *this;
    front.count = wanted;
    first += wanted;
    index += wanted;
    count -= wanted;
    return front;
  }
};

struct BacklogSlice {
  std::vector<StoredRun> runs;  // of plain messages (GroupState::is_plain), ascending
  // Positions in [from, next) that are no message of this group.
  std::vector<std::pair<Lsn, Lsn>> skips;
  Sequence next = 0;         // where reading stopped
  std::uint64_t passed = 0;  // messages of the group in [max(from, known), next)
  // Lost messages behind the cursor, by their sequence.
  std::vector<Sequence> lost;
  // Lost messages ahead of the cursor, by their number; `passed` counts them.
  std::vector<DamagedPart> damaged;
  // Positions that are missing, since the log last said how many messages there were.
  std::vector<DamagedPart> gaps;

  // Calls `visit(sequence, run, envelope)` for each message.
  template <typename Visit>
  void for_each_message(const Visit& visit) const {
    for (const auto& run : runs) {
      for (std::uint32_t i = 0; i < run.count; ++i) visit(run.first + i, run, run.envelope(i));
    }
  }
};

struct BacklogRequest {
  Sequence from = 0;
  Sequence before = 0;
  // Messages of the group below `from`, if from >= known: what the log's counts are compared with.
  std::uint64_t passed = 0;
  // Behind this position everything was accounted for already.
  Sequence known = 0;
  std::size_t messages_max = 0;
  std::size_t bytes_max = 0;
  std::vector<DamagedPart> gaps = {};  // of the slice before this one
  // What the group had accepted at `before`, if that is known.
  std::optional<std::uint64_t> accepted_at_end = std::nullopt;
  Priority priority = Priority::kNormal;  // of the messages that are wanted
  bool any_priority = false;              // all are
  // One of a group's readers accounts for what lies in the log; the others only look for theirs.
  bool accounts = true;
  std::size_t records_max = SIZE_MAX;  // looked at
};

Result<BacklogSlice> read_backlog(LogReader& reader, const GroupState& group,
                                  const BacklogRequest& request);

// One message, wherever it lies now. Nothing: it can no longer be read.
Result<std::optional<StoredRun>> read_message(LogReader& reader, Sequence sequence,
                                              const History* history);

// How its deliveries ended, newest first, at most `count_max`. What cannot be read ends the list.
std::vector<AttemptRecord> read_attempts(LogReader& reader, const History& history, GroupId group,
                                         std::size_t count_max);

// The ordering key of a message; 0 if it has none, or can no longer be read.
Result<KeyHash> read_key(LogReader& reader, Sequence sequence, const History* history);

// A copy of this message for the groups that have an entry for it. Nothing: it can no longer be
// read, or no group needs it.
Result<std::optional<CopyRecord>> make_copy(LogReader& reader, Sequence sequence,
                                            const std::vector<const GroupState*>& groups);

}  // namespace dray::spool
