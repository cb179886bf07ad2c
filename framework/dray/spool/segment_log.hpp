// SegmentLog: the append-only log of segments under a spool: scanning at open, appending in
// batches, freeing. It knows records, not what they mean.
//
// Invariants (FORMATS.md): S1 a record counts as durable only after a sync that began after it was
// written; S2 seeded CRCs; S3 the tail rule; S4 a new segment's header and name are durable before
// its first record; S5 a failed write or sync latches: nothing is written after it; S7 the tail of
// an unclean log is written again and synced before it is served.
//
// Threading: open, start, write and sync belong to one thread at a time (the committer), and what
// was written ahead may be synced and counted beside write_ahead(). release() belongs to
// the upkeep thread; spares() may be used by both. LogReaders and segments() may run beside them on
// any thread, on records that were committed.
// Failure: returns errors; after one from write or sync every later call returns it again. A write
// that finds the disk full goes to the reserve instead.
// Ownership: the Directory and the Clock outlive the log; readers share segments and may outlive
// neither.
#pragma once

#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <vector>

#include "dray/clock.hpp"
#include "dray/disk/file.hpp"
#include "dray/spool/batch.hpp"
#include "dray/spool/checkpoint.hpp"
#include "dray/spool/record.hpp"
#include "dray/spool/spare_segments.hpp"

namespace dray::spool {

// Every this many bytes a record of a segment is noted, to start reading from.
constexpr std::uint64_t kIndexSpacing = 64U << 10;

struct LogOptions {
  std::uint64_t segment_size = 64U << 20;
  std::uint64_t preallocate = 0;  // bytes of segments that are kept ready ahead of their use
  Uuid machine_id;
  unsigned read_back_commits = 1'000;  // for so many more commits a reader counts as reading on
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
  std::vector<DamagedRange> given_up;  // by repair, and told then
  std::vector<std::string> notes;      // what was repaired in passing
  bool clean = true;                   // the last record was a marker that covers all before it
  bool checkpoints_lost = false;       // there were some, and none is good
  Uuid machine_id;                     // as the newest segment has them
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

// Under which name a damaged file is kept: NAME.quarantine, or NAME.2.quarantine and so on where
// that is taken.
std::string kept_name(Directory& directory, const std::string& name);
// Whose file that was, of a segment; nothing for any other name.
std::optional<std::uint64_t> kept_number(std::string_view name);

class SegmentLog {
 public:
  struct Visitor {
    std::function<Status(const Record& record)> record;  // in order; views are valid in the call
    // Records from `first` on are lost, inside a segment or with all that was in some. Returns the
    // first position that is lost with them (S6).
    std::function<Lsn(Lsn first, bool inside)> gap;
  };

  // Scans what lies behind the checkpoint, or everything without one. Cuts a torn tail.
  // kUnsupported for a newer version, kCorrupt for foreign files.
  static Result<std::unique_ptr<SegmentLog>> open(Directory& directory, const Clock& clock,
                                                  const LogOptions& options,
                                                  const std::optional<Checkpoint>& checkpoint,
                                                  const Visitor& visitor, ScanReport& report);

  // Starts a new segment under a new epoch. `opening` makes the payload of the record that each
  // segment begins with. REQUIRES: called once, before write().
  Status start(const Uuid& spool_id, std::uint64_t epoch, std::uint64_t epoch_random,
               std::function<std::string()> opening);

  // Numbers and writes records of the batch from `from` on: as many as go into one segment, the
  // next one if none do. Units (S6) are not torn: freeing a segment would tear them. With `sync`,
  // if they are the last: returns once they and all before them are on stable storage. Returns the
  // index behind the last one written. REQUIRES: from < batch.size(); the batch ends with a whole
  // unit.
  Result<std::size_t> write(Batch& batch, std::size_t from, bool sync);
  // What was written ahead, and is durable after a sync of its file.
  struct Ahead {
    std::shared_ptr<Segment> segment;
    Lsn last = 0;
    std::uint64_t end = 0;
  };
  // Numbers and writes the whole batch, if that can be done so that others may be written while it
  // is synced: in this segment, with all before it durable or written in the same way. Nothing:
  // it cannot, and nothing was written. Then write() can, once all written ahead is counted; also
  // after kFull, when a part of it may have been written.
  Result<std::optional<Ahead>> write_ahead(Batch& batch);
  // Any thread. After an error nothing may be written any more (S5).
  static Status sync_ahead(const Ahead& ahead);
  // S1. Any thread, one at a time and in the order in which they were written: they are durable.
  void count_ahead(const Ahead& ahead);
  // One record by itself, not synced.
  Result<Lsn> write_record(RecordType type, std::string_view payload);
  // Returns once all that was written is on stable storage.
  Status sync();
  // Goes on in the next segment, though this one is not full.
  Status start_next();

  Lsn next_lsn() const { return next_lsn_; }
  // Any thread.
  Lsn durable_lsn() const { return durable_lsn_.load(std::memory_order_relaxed); }
  // Behind the last committed record.
  LogPosition position() const { return {current_->header.number, end_}; }
  const Uuid& spool_id() const { return spool_id_; }
  std::uint64_t bytes_total() const { return bytes_total_.load(std::memory_order_relaxed); }
  std::uint64_t bytes_appended() const { return bytes_appended_; }
  // Of the segment that is being written. Any thread.
  std::uint64_t current_bytes() const { return current_bytes_.load(std::memory_order_relaxed); }
  // Whether its file grows with its records, as far as is known. Any thread.
  bool current_grows() const { return growing_.load(std::memory_order_relaxed); }

  SpareSegments& spares() { return spares_; }
  const SpareSegments& spares() const { return spares_; }
  std::vector<SegmentSummary> segments() const;
  // What a checkpoint up to `lsn` at `position` needs, without those in `dead`.
  std::vector<SegmentEntry> entries(Lsn lsn, const LogPosition& position,
                                    const std::set<std::uint64_t>& dead) const;
  // Recycles or removes these segments (S9: the caller knows that nothing needs them).
  Status release(const std::set<std::uint64_t>& numbers);

 private:
  friend class LogReader;
  SegmentLog(Directory& directory, const Clock& clock, const LogOptions& options)
      : directory_(directory),
        clock_(clock),
        options_(options),
        spares_(directory, options.segment_size,
                std::max<std::size_t>(
                    1, (options.preallocate + options.segment_size - 1) / options.segment_size)) {}

  // segment_scan.cpp
  struct Tail;
  struct Beyond;
  Status scan(const std::optional<Checkpoint>& checkpoint, const Visitor& visitor,
              ScanReport& report);
  Result<std::shared_ptr<Segment>> open_segment(std::uint64_t number,
                                                const std::optional<Checkpoint>& checkpoint,
                                                ScanReport& report, Beyond& beyond);
  void add_kept(const std::map<std::uint64_t, std::vector<std::string>>& kept,
                const std::optional<Checkpoint>& checkpoint, Beyond& beyond);
  Status check_home(const ScanReport& report) const;
  Status check_missing(const Checkpoint& checkpoint, const Visitor& visitor, ScanReport& report);
  Status scan_segment(Segment& segment, std::uint64_t offset, Lsn limit, const Visitor& visitor,
                      ScanReport& report, Tail& tail);
  Status finish_tail(Segment& segment, const Tail& tail, ScanReport& report);
  Status rewrite(Segment& segment, std::uint64_t begin, std::uint64_t end);
  void damaged(const Visitor& visitor, ScanReport& report, DamagedRange range, bool inside);
  void set_aside(const std::string& name, ScanReport& report, const std::string& why);

  Status seal();
  Status roll(bool whole);
  Status use(SpareSegments::Spare spare);
  Status write_opening();
  bool better_segment_ready() const;
  std::size_t fit(const Batch& batch, std::size_t from) const;
  struct Sealed {
    std::string_view bytes;  // with padding
    std::size_t padding = 0;
    std::size_t room_before = 0;  // see WriteHints
    Lsn last = 0;
  };
  Sealed seal_records(Batch& batch, std::size_t from, std::size_t until);
  Status write_records(Batch& batch, std::size_t from, std::size_t until, bool sync);
  void number_stretches(Batch& batch, std::uint32_t from, std::uint32_t until) const;
  Caching caching() const;
  void note_readers();
  Status put(const Sealed& sealed, bool sync);
  void advance(const Sealed& sealed);
  Status fail(Error error);

  // Immutable.
  Directory& directory_;
  const Clock& clock_;
  const LogOptions options_;

  // Owned by whoever may write: see Threading.
  Uuid spool_id_;
  std::uint64_t epoch_ = 0;
  std::uint64_t epoch_random_ = 0;
  std::function<std::string()> opening_;
  bool opening_due_ = false;
  std::uint64_t next_segment_ = 1;
  Lsn next_lsn_ = 1;
  bool set_aside_ = false;          // a segment could not be read at all
  std::vector<std::string> aside_;  // files to be set aside once the log goes on behind them
  bool unsynced_ = false;           // something was written and not synced
  std::shared_ptr<Segment> current_;
  std::uint64_t capacity_ = 0;      // bytes of current_
  std::uint64_t blocks_until_ = 0;  // bytes of current_ that had blocks when it was begun
  std::uint64_t end_ = 0;           // where the next record goes in current_
  bool blank_ = false;              // nothing but its opening is in current_
  std::vector<Segment::IndexEntry> fresh_index_;
  std::uint64_t indexed_until_ = 0;
  std::uint64_t bytes_appended_ = 0;
  Batch single_{std::make_shared<Buffers>()};  // of write_record()
  std::vector<Status> failed_;                 // empty, or the first failure
  Lsn read_back_seen_ = 0;
  unsigned read_back_commits_ = 0;  // of LogOptions::read_back_commits, left

  SpareSegments spares_;
  std::atomic<Lsn> durable_lsn_{0};
  std::atomic<std::uint64_t> bytes_total_{0};
  std::atomic<std::uint64_t> current_bytes_{0};
  // Where a reader of the backlog stood last. Any thread.
  mutable std::atomic<Lsn> read_back_{0};
  std::atomic<bool> growing_{false};  // current_ had few blocks or none when it was begun

  // Guarded by mutex_.
  mutable std::mutex mutex_;
  std::vector<std::shared_ptr<Segment>> segments_;  // ascending
};

}  // namespace dray::spool
