// SegmentLog: the append-only log of segments under a spool: scanning at open, appending in
// batches, freeing. It knows records, not what they mean.
//
// Invariants (FORMATS.md): S1 a record counts as durable only after a sync that began after it was
// written; S2 seeded CRCs; S3 the tail rule; S4 a new segment's header and name are durable before
// its first record; S5 a failed write or sync latches: nothing is written after it; S7 the tail of
// an unclean log is written again and synced before it is served.
//
// Threading: open, start, add, commit belong to one thread (the committer). free() and
// spares() belong to the upkeep thread. LogReaders and segments() may run beside them on any
// thread, on records that were committed.
// Failure: returns errors; after one from add or commit every later call returns it again. A write
// that finds the disk full goes to the reserve instead.
// Ownership: the Directory and the Clock outlive the log; readers share segments and may outlive
// neither.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <set>
#include <vector>

#include "dray/clock.hpp"
#include "dray/disk/file.hpp"
#include "dray/spool/checkpoint.hpp"
#include "dray/spool/record.hpp"
#include "dray/spool/spare_segments.hpp"

namespace dray::spool {

struct LogOptions {
  std::uint64_t segment_size = 64U << 20;
  Uuid machine_id;
  bool adopt = false;  // serve also what was made on another machine or in another folder
};

// Records that are no longer readable.
struct DamagedRange {
  std::uint64_t segment = 0;
  std::uint64_t offset = 0;  // where the damage begins in that segment
  Lsn first = 0;
  Lsn last = 0;
  std::string what;
};

struct ScanReport {
  std::uint64_t segments = 0;
  std::uint64_t records = 0;     // replayed
  std::uint64_t torn_bytes = 0;  // unacknowledged tail that was cut off; 0 also if it was all zeros
  std::vector<DamagedRange> damaged;
  std::vector<std::string> notes;  // what was repaired in passing
  bool clean = true;               // the last record was a marker that covers all before it
  bool checkpoints_lost = false;   // there were some, and none is good
  Uuid machine_id;                 // as the newest segment has them
  std::uint64_t home = 0;
};

// One segment file that is open; shared between the log and its readers.
struct Segment {
  SegmentHeader header;
  std::uint32_t seed = 0;
  std::shared_ptr<File> file;
  std::atomic<std::uint64_t> end{0};  // bytes that hold records
  std::atomic<Lsn> last_lsn{0};       // of its last record; first_lsn - 1 if it has none
  std::atomic<bool> damaged{false};   // kept aside when it is freed
  struct IndexEntry {
    Lsn lsn;
    std::uint64_t offset;
  };
  std::vector<IndexEntry> index;  // sparse, ascending; guarded by SegmentLog::mutex_
};

struct SegmentSummary {
  std::uint64_t number = 0;
  Lsn first_lsn = 0;
  Lsn last_lsn = 0;
  std::uint64_t bytes = 0;
  UtcTime created_at{};
  bool current = false;
};

class SegmentLog {
 public:
  struct Visitor {
    std::function<Status(const Record& record)> record;  // in order; views are valid in the call
    // Damaged; the first position that is lost with them (S6).
    std::function<Lsn(Lsn first, Lsn last)> gap;
  };

  // Scans what lies behind the checkpoint, or everything without one. Cuts a torn tail.
  // kUnsupported for a newer version, kCorrupt for foreign files.
  static Result<std::unique_ptr<SegmentLog>> open(Directory& directory, const Clock& clock,
                                                  const LogOptions& options,
                                                  const std::optional<Checkpoint>& checkpoint,
                                                  const Visitor& visitor, ScanReport& report);

  // Starts a new segment under a new epoch. `opening` makes the payload of the record that each
  // segment begins with. REQUIRES: called once, before add().
  Status start(const Uuid& spool_id, std::uint64_t epoch, std::uint64_t epoch_random,
               std::function<std::string()> opening);

  // Where a record was put: owner's bytes hold its payload once commit() succeeded.
  struct Added {
    Lsn lsn = 0;
    std::shared_ptr<const std::string> owner;
    std::size_t payload_offset = 0;
  };
  // Frames a record into the batch. May write and sync when a segment is full.
  Result<Added> add(RecordType type, std::uint8_t flags, std::string_view payload);

  // The next records, `bytes` of them with headers and padding, go into one segment: a unit (S6)
  // must not be torn by freeing a part of it.
  Status begin_unit(std::size_t bytes);

  // Writes the batch; with `sync`, returns once it and all before it are on stable storage.
  Status commit(bool sync);

  Lsn next_lsn() const { return next_lsn_; }
  Lsn durable_lsn() const { return durable_lsn_; }
  // Behind the last committed record.
  LogPosition position() const { return {current_->header.number, batch_offset_}; }
  const Uuid& spool_id() const { return spool_id_; }
  std::uint64_t bytes_total() const { return bytes_total_.load(std::memory_order_relaxed); }
  std::uint64_t bytes_appended() const { return bytes_appended_; }

  SpareSegments& spares() { return spares_; }
  std::vector<SegmentSummary> segments() const;
  // What a checkpoint up to `lsn` at `position` needs, without those in `dead`.
  std::vector<SegmentEntry> entries(Lsn lsn, const LogPosition& position,
                                    const std::set<std::uint64_t>& dead) const;
  // Recycles or removes these segments (S9: the caller knows that nothing needs them).
  Status free(const std::set<std::uint64_t>& numbers);

 private:
  friend class LogReader;
  SegmentLog(Directory& directory, const Clock& clock, const LogOptions& options)
      : directory_(directory),
        clock_(clock),
        options_(options),
        spares_(directory, options.segment_size) {}

  // segment_scan.cpp
  struct Tail;
  Status scan(const std::optional<Checkpoint>& checkpoint, const Visitor& visitor,
              ScanReport& report);
  Result<std::shared_ptr<Segment>> open_segment(std::uint64_t number, bool last,
                                                const std::optional<Checkpoint>& checkpoint,
                                                ScanReport& report);
  Status check_home(const ScanReport& report) const;
  Status check_missing(const Checkpoint& checkpoint, const Visitor& visitor, ScanReport& report);
  Status scan_segment(Segment& segment, std::uint64_t offset, Lsn limit, const Visitor& visitor,
                      ScanReport& report, Tail& tail);
  Status finish_tail(Segment& segment, const Tail& tail, ScanReport& report);
  Status rewrite(Segment& segment, std::uint64_t begin, std::uint64_t end);
  void damaged(const Visitor& visitor, ScanReport& report, DamagedRange range);
  Status set_aside(const std::string& name, ScanReport& report, const std::string& why);

  Status make_room(std::size_t bytes);
  Status seal();
  Status roll(Lsn first_lsn, bool whole);
  Status use(SpareSegments::Spare spare, Lsn first_lsn);
  void append(RecordType type, std::uint8_t flags, std::string_view payload);
  Status move_to_reserve();
  std::shared_ptr<std::string> fresh_batch();
  Status write_batch(bool sync);
  Status fail(Error error);

  // Immutable.
  Directory& directory_;
  const Clock& clock_;
  const LogOptions options_;

  // Owned by the committer thread.
  Uuid spool_id_;
  std::uint64_t epoch_ = 0;
  std::uint64_t epoch_random_ = 0;
  std::function<std::string()> opening_;
  bool opening_due_ = false;
  std::uint64_t next_segment_ = 1;
  Lsn next_lsn_ = 1;
  Lsn durable_lsn_ = 0;
  bool set_aside_ = false;  // a segment could not be read at all
  bool unsynced_ = false;   // something was written and not synced
  std::shared_ptr<Segment> current_;
  std::uint64_t capacity_ = 0;  // bytes of current_
  std::shared_ptr<std::string> batch_;
  std::uint64_t batch_offset_ = 0;  // where the batch begins in current_
  Lsn batch_lsn_ = 0;               // of its first record
  std::size_t unit_bytes_ = 0;      // what is still to come of a unit
  std::vector<Segment::IndexEntry> batch_index_;
  std::uint64_t indexed_until_ = 0;
  std::uint64_t bytes_appended_ = 0;
  std::vector<Status> failed_;  // empty, or the first failure

  // Batches that nobody reads any more. Outlives the log with its last reader.
  struct Buffers {
    std::mutex mutex;
    std::vector<std::unique_ptr<std::string>> free;
  };
  const std::shared_ptr<Buffers> buffers_ = std::make_shared<Buffers>();
  SpareSegments spares_;
  std::atomic<std::uint64_t> bytes_total_{0};

  // Guarded by mutex_.
  mutable std::mutex mutex_;
  std::vector<std::shared_ptr<Segment>> segments_;  // ascending
};

}  // namespace dray::spool
