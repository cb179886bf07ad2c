// Checkpoint: what the log meant up to an lsn, so that recovery need not read what lies before.
//
// Two are kept, in the files checkpoint.a and checkpoint.b, written in turn: to checkpoint.tmp,
// synced, renamed, the name synced (S8). A segment goes only when both say that nothing in it is
// needed (S9).
//
// Threading: the codec is pure; a CheckpointStore belongs to one thread at a time.
// Failure: a file that fails its check is no checkpoint; a newer version is kUnsupported.
// Ownership: the Directory outlives the store.
#pragma once

#include <array>
#include <optional>
#include <string>
#include <vector>

#include "dray/disk/file.hpp"
#include "dray/spool/group_state.hpp"

namespace dray::spool {

struct LogPosition {
  std::uint64_t segment = 0;  // number
  std::uint64_t offset = 0;   // of the next record
  DRAY_FIELDS(segment, offset)
};

// A segment that a checkpoint needs. What is not listed and older than its position is free.
struct SegmentEntry {
  std::uint64_t number = 0;
  std::uint64_t epoch = 0;
  std::uint64_t epoch_random = 0;
  Lsn first_lsn = 0;
  Lsn last_lsn = 0;       // up to the checkpoint's lsn
  std::uint64_t end = 0;  // bytes that hold records up to there
  DRAY_FIELDS(number, epoch, epoch_random, first_lsn, last_lsn, end)
};

struct Checkpoint {
  std::uint64_t number = 0;  // counts up with each one written
  Binary spool;              // id, 16 bytes
  Lsn lsn = 0;               // the last record that is in here; durable before this was written
  LogPosition position;      // where the next record is
  std::uint64_t epoch = 0;
  std::int64_t at_ms = 0;
  std::vector<SegmentEntry> segments;
  std::vector<GroupSnapshot> groups;
  std::vector<SessionRecord> sessions;
  Binary dedup;
  std::optional<OwnerRecord> owner;
  DRAY_FIELDS(number, spool, lsn, position, epoch, at_ms, segments, groups, sessions, dedup, owner)
};

std::string encode(const Checkpoint& checkpoint);

enum class CheckpointFault { kNone, kDamaged, kNewerVersion };
struct CheckpointResult {
  CheckpointFault fault = CheckpointFault::kNone;
  std::optional<Checkpoint> checkpoint;
};
CheckpointResult decode_checkpoint(std::string_view bytes);

class CheckpointStore {
 public:
  explicit CheckpointStore(Directory& directory) : directory_(directory) {}

  // Reads both. kUnsupported for a newer version, kIo if a file cannot be read.
  Status load();
  // The better of the two, if one is good.
  std::optional<Checkpoint> take_best();
  // Files that are there and fail their check.
  const std::vector<std::string>& damaged() const { return damaged_; }

  // Writes `bytes` over the older of the two. kFull leaves both as they were; after any other error
  // the spool must not go on (P7).
  Status write(const std::string& bytes);
  // Of the larger file at load().
  std::uint64_t bytes_max() const { return bytes_max_; }
  // Both files held a good checkpoint at load().
  bool both_good() const { return good_[0] && good_[1]; }

  static bool is_checkpoint_name(std::string_view name);

 private:
  Directory& directory_;
  std::array<std::optional<Checkpoint>, 2> found_;
  std::array<bool, 2> good_{};
  std::size_t next_ = 0;
  std::uint64_t bytes_max_ = 0;
  std::vector<std::string> damaged_;
};

}  // namespace dray::spool
