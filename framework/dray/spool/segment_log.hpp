// SegmentLog: the append-only log of segments under a spool: scanning at open, appending in
// batches, reading back. It knows records, not what they mean.
//
// Invariants (FORMATS.md): S1 a record counts as durable only after a sync that began after it was
// written; S2 seeded CRCs; S3 the tail rule; S4 a new segment is complete and its name durable
// before its first record; S5 a failed write or sync latches: nothing is written after it; S7 the
// tail of an unclean log is written again and synced before it is served.
//
// Threading: open, add, commit and ensure_spare belong to one thread (the committer). LogReaders
// may run beside it on any thread, on records that were committed.
// Failure: returns errors; after one from add or commit every later call returns it again.
// Ownership: the Directory and the Clock outlive the log; readers share segments and may outlive
// neither.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "dray/clock.hpp"
#include "dray/disk/file.hpp"
#include "dray/spool/record.hpp"

namespace dray::spool {

struct LogOptions {
  std::uint64_t segment_size = 64U << 20;
  Uuid machine_id;
};

// Acknowledged records that are no longer readable.
struct DamagedRange {
  std::uint64_t segment = 0;
  std::uint64_t offset = 0;  // where the damage begins in that segment
  Lsn first = 0;
  Lsn last = 0;
};

struct ScanReport {
  std::uint64_t segments = 0;
  std::uint64_t records = 0;
  std::uint64_t torn_bytes = 0;  // unacknowledged tail that was cut off
  std::vector<DamagedRange> damaged;
  bool clean = true;  // the last record was a marker that covers all before it
};

// One segment file that is open; shared between the log and its readers.
struct Segment {
  SegmentHeader header;
  std::uint32_t seed = 0;
  std::shared_ptr<File> file;
  std::atomic<std::uint64_t> end{0};  // bytes that hold records
  struct IndexEntry {
    Lsn lsn;
    std::uint64_t offset;
  };
  std::vector<IndexEntry> index;  // sparse, ascending; guarded by SegmentLog::mutex_
};

class SegmentLog {
 public:
  using Visitor = std::function<Status(const Record& record)>;

  // Scans all segments, calls `visitor` for each record in order (its views are valid during the
  // call), cuts a torn tail. kUnsupported for a newer version, kCorrupt for foreign files.
  static Result<std::unique_ptr<SegmentLog>> open(Directory& directory, const Clock& clock,
                                                  const LogOptions& options, const Visitor& visitor,
                                                  ScanReport& report);

  // Starts a new segment under a new epoch. REQUIRES: called once, before add().
  Status start(const Uuid& spool_id, std::uint64_t epoch, std::uint64_t epoch_random);

  // Where a record was put: owner's bytes hold its payload once commit() succeeded.
  struct Added {
    Lsn lsn = 0;
    std::shared_ptr<const std::string> owner;
    std::size_t payload_offset = 0;
  };
  // Frames a record into the batch. May write and sync when a segment is full.
  Result<Added> add(RecordType type, std::uint8_t flags, std::string_view payload);

  // Writes the batch; with `sync`, returns once it is on stable storage.
  Status commit(bool sync);

  // Makes the spare segment if it is missing: the room that settling needs when the disk is full.
  // False while the disk has no room for one.
  bool ensure_spare();

  bool has_spare() const { return spare_ != nullptr; }

  Lsn next_lsn() const { return next_lsn_; }
  Lsn durable_lsn() const { return durable_lsn_; }
  const Uuid& spool_id() const { return spool_id_; }
  std::uint64_t bytes_total() const { return bytes_total_.load(std::memory_order_relaxed); }

 private:
  friend class LogReader;
  SegmentLog(Directory& directory, const Clock& clock, const LogOptions& options)
      : directory_(directory), clock_(clock), options_(options) {}

  Status scan(const Visitor& visitor, ScanReport& report);
  Status scan_segment(const std::shared_ptr<Segment>& segment, bool last, const Visitor& visitor,
                      ScanReport& report);
  Status cut_tail(Segment& segment, std::uint64_t end, std::uint64_t file_size, bool clean);
  Status rewrite(Segment& segment, std::uint64_t end);
  bool make_spare(std::uint64_t size);
  Status roll();
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
  std::uint64_t next_segment_ = 1;
  Lsn next_lsn_ = 1;
  Lsn durable_lsn_ = 0;
  std::shared_ptr<Segment> current_;
  std::unique_ptr<File> spare_;
  std::uint64_t spare_size_ = 0;
  std::uint64_t capacity_ = 0;  // bytes of current_
  std::shared_ptr<std::string> batch_;
  std::uint64_t batch_offset_ = 0;  // where the batch begins in current_
  std::vector<Segment::IndexEntry> batch_index_;
  std::uint64_t indexed_until_ = 0;
  std::vector<Status> failed_;  // empty, or the first failure

  std::atomic<std::uint64_t> bytes_total_{0};

  // Guarded by mutex_.
  mutable std::mutex mutex_;
  std::vector<std::shared_ptr<Segment>> segments_;
};

// Reads records of one segment through a window of at least 1 MiB.
class SegmentCursor {
 public:
  explicit SegmentCursor(std::shared_ptr<const Segment> segment);

  // The record at `offset` if it is whole, passes its CRCs and ends at or before `end`; views are
  // valid until the next call.
  Result<std::optional<Record>> read(std::uint64_t offset, std::uint64_t end);
  // The first offset >= `offset` and < `end` with a valid record, or `end`.
  Result<std::uint64_t> find(std::uint64_t offset, std::uint64_t end);

 private:
  // Up to `size` bytes at `offset`; what lies at or behind `end` is never kept, because it may
  // still be written.
  Result<std::string_view> window(std::uint64_t offset, std::size_t size, std::uint64_t end);

  std::shared_ptr<const Segment> segment_;
  std::string buffer_;
  std::uint64_t buffer_offset_ = 0;
};

// Sequential reader over committed records; remembers where it stands, so that going on costs no
// search.
//
// Threading: one reader, one thread.
class LogReader {
 public:
  explicit LogReader(const SegmentLog& log) : log_(log) {}
  // Another reader of the same log, for look-ups that must not move this one.
  LogReader fresh() const { return LogReader(log_); }

  // Calls `visit` for records with lsn in [from, before) in order until it returns false. Where
  // records are damaged, `on_gap` gets their range (P6).
  Status read(Lsn from, Lsn before, const std::function<bool(const Record&)>& visit,
              const std::function<void(Lsn first, Lsn last)>& on_gap = nullptr);

 private:
  bool seek(Lsn lsn);

  const SegmentLog& log_;
  std::shared_ptr<const Segment> segment_;
  std::unique_ptr<SegmentCursor> cursor_;
  std::uint64_t offset_ = 0;
  Lsn next_ = 0;  // lsn at offset_
};

}  // namespace dray::spool
