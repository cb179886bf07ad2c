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

// A message with its bytes at hand.
struct StoredMessage {
  Sequence sequence = 0;
  std::int64_t deliver_at_ms = 0;
  std::int64_t expires_at_ms = 0;
  std::shared_ptr<const std::string> owner;
  std::string_view envelope;
};

struct BacklogSlice {
  std::vector<StoredMessage> messages;  // plain ones (GroupState::is_plain), ascending
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
};

Result<BacklogSlice> read_backlog(LogReader& reader, const GroupState& group,
                                  const BacklogRequest& request);

// One message, wherever it lies now. Nothing: it can no longer be read.
Result<std::optional<StoredMessage>> read_message(LogReader& reader, Sequence sequence,
                                                  const History* history);

// How its deliveries ended, newest first, at most `count_max`. What cannot be read ends the list.
std::vector<AttemptRecord> read_attempts(LogReader& reader, const History& history, GroupId group,
                                         std::size_t count_max);

// A copy of this message for the groups that have an entry for it. Nothing: it can no longer be
// read, or no group needs it.
Result<std::optional<CopyRecord>> make_copy(LogReader& reader, Sequence sequence,
                                            const std::vector<const GroupState*>& groups);

}  // namespace dray::spool
