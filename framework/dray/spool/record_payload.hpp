// Payloads of the records that are not messages (framework/FORMATS.md, "Record payloads").
//
// Threading: values and pure functions. Failure: kCorrupt for bytes that are no such payload.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "dray/fields.hpp"
#include "dray/message.hpp"
#include "dray/result.hpp"
#include "dray/sequence_runs.hpp"
#include "dray/spool/record.hpp"
#include "dray/step_journal.hpp"

namespace dray::spool {

using GroupId = std::uint8_t;  // index of a group within its spool, 0 to 63
inline constexpr std::size_t kGroupsMax = 64;
// A set of groups, bit i for GroupId i.
using GroupMask = std::uint64_t;

// How a message ended for a group. Dead letters end by RecordType::kDead.
enum class Settlement : std::uint8_t { kDone = 0, kExpired = 1, kDropped = 2, kDamaged = 3 };

struct EpochRecord {
  std::uint64_t counter = 0;
  std::uint64_t random = 0;
  std::int64_t opened_at_ms = 0;
  DRAY_FIELDS(counter, random, opened_at_ms)
};

enum class GroupStanding : std::uint8_t { kAttached = 0, kDetached = 1, kDropped = 2 };

struct GroupRecord {
  GroupId id = 0;
  std::string name;
  std::vector<std::string> topics;
  GroupStanding standing = GroupStanding::kAttached;
  bool paused = false;  // nothing is delivered until it is resumed
  DRAY_FIELDS(id, name, topics, standing, paused)
};

struct SessionRecord {
  Binary session;  // 16 bytes
  GroupId group = 0;
  std::string worker;
  DRAY_FIELDS(session, group, worker)
};

struct SessionEndRecord {
  Binary session;
  std::string reason;
  DRAY_FIELDS(session, reason)
};

struct DeliveryRecord {
  GroupId group = 0;
  Uuid session;
  std::uint32_t number = 1;  // the delivery number of each of them
  SequenceRuns sequences;
  std::int64_t at_ms = 0;  // UTC
};
std::string encode(const DeliveryRecord& record);
Result<DeliveryRecord> decode_delivery(std::string_view payload);

struct SettlementRecord {
  GroupId group = 0;
  Settlement settlement = Settlement::kDone;
  SequenceRuns sequences;
  std::int64_t at_ms = 0;  // UTC; when the answers were taken
};
std::string encode(const SettlementRecord& record);
Result<SettlementRecord> decode_settlement(std::string_view payload);

// Why a delivery did not settle its message, or why it became a dead letter.
struct RetryRecord {
  GroupId group = 0;
  Sequence sequence = 0;
  std::uint32_t number = 0;    // delivery number that ended
  std::uint32_t attempts = 0;  // counted so far
  std::uint32_t losses = 0;    // deliveries lost in company
  std::int64_t due_ms = 0;     // UTC; 0: at once
  bool suspect = false;        // to be delivered alone
  std::string reason;
  std::string worker;
  std::int64_t at_ms = 0;
  Lsn before = 0;  // the record of this kind before it, 0 for none: the history
  DRAY_FIELDS(group, sequence, number, attempts, losses, due_ms, suspect, reason, worker, at_ms,
              before)
};

struct DeadRecord {
  GroupId group = 0;
  Sequence sequence = 0;
  std::uint32_t number = 0;
  std::uint32_t attempts = 0;
  std::string cause;  // "rejected", "attempts", "lost"
  std::string reason;
  std::string worker;
  std::int64_t at_ms = 0;
  Lsn before = 0;
  DRAY_FIELDS(group, sequence, number, attempts, cause, reason, worker, at_ms, before)
};

// What every group had accepted when this was written: what was lost between two of these is known
// by number even if none of it can be read.
struct MarkerRecord {
  std::vector<std::uint64_t> accepted;  // index: GroupId
  DRAY_FIELDS(accepted)
};

// First in a segment, so that a log without its older segments and its checkpoints still knows its
// groups.
// What the owner's config says of the spool: who serves it alone goes by it.
struct OwnerRecord {
  std::uint8_t durability = 0;  // Durability
  std::uint64_t max_size = 0;
  std::uint64_t held_max = 0;
  std::int64_t retain_ms = 0;
  std::uint64_t retain_bytes = 0;
  std::vector<std::string> retain_topics;
  DRAY_FIELDS(durability, max_size, held_max, retain_ms, retain_bytes, retain_topics)
};

struct OpeningRecord {
  std::uint64_t epoch = 0;
  std::vector<GroupRecord> groups;
  std::vector<std::uint64_t> accepted;
  std::optional<OwnerRecord> owner;
  DRAY_FIELDS(epoch, groups, accepted, owner)
};

// One ended delivery, as dead letters show it.
struct AttemptRecord {
  std::int64_t at_ms = 0;
  std::uint32_t attempts = 0;
  std::string cause;  // of a dead letter only
  std::string reason;
  std::string worker;
  DRAY_FIELDS(at_ms, attempts, cause, reason, worker)
};

struct CopiedHistory {
  GroupId group = 0;
  Lsn record_lsn = 0;                   // of the newest of them; a later record stays the newest
  std::vector<AttemptRecord> attempts;  // newest first
  bool replayed = false;                // it was settled, or never the group's: accepted anew
  DRAY_FIELDS(group, record_lsn, attempts, replayed)
};

// An open message moved to the end of the log, or a settled one that a group is given once more. It
// keeps its sequence.
struct CopyRecord {
  Sequence sequence = 0;
  std::vector<CopiedHistory> histories;
  Binary envelope;
  DRAY_FIELDS(sequence, histories, envelope)
};

// So many messages of a group lay in [first, last] and can no longer be read (P6).
struct DamageRecord {
  GroupId group = 0;
  Lsn first = 0;
  Lsn last = 0;
  std::uint64_t count = 0;
  DRAY_FIELDS(group, first, last, count)
};

// A step of a message for a group (StepJournals): it began, ended with a value, or took no effect.
struct StepRecord {
  GroupId group = 0;
  Sequence sequence = 0;
  StepCall what = StepCall::kBegin;
  std::uint64_t run = 0;  // random: the handling that says so
  std::string step;
  Binary value;  // MessagePack
  std::int64_t at_ms = 0;
  DRAY_FIELDS(group, sequence, what, run, step, value, at_ms)
};

// Dead letters become pending again, with their attempts at 0.
struct ReviveRecord {
  GroupId group = 0;
  SequenceRuns sequences;
};
std::string encode(const ReviveRecord& record);
Result<ReviveRecord> decode_revive(std::string_view payload);

}  // namespace dray::spool
