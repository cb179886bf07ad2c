// LogReader and SegmentCursor: reading records back.
//
// Threading: one reader, one thread; beside the committer.
// Failure: damaged records are skipped and reported as gaps; blocks that cannot be read count as
// damaged. An error means that nothing could be read there.
// Ownership: the SegmentLog outlives its readers. A segment that is freed while a reader stands in
// it reads as a gap (S2).
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "dray/spool/segment_log.hpp"

namespace dray::spool {

// Reads records of one segment through a window.
class SegmentCursor {
 public:
  explicit SegmentCursor(std::shared_ptr<const Segment> segment,
                         std::size_t window_bytes = 1U << 20);

  // The record at `offset` if it is whole, passes its CRCs and ends at or before `end`; views are
  // valid until the next call.
  Result<std::optional<Record>> read(std::uint64_t offset, std::uint64_t end);
  // Its header alone, without looking at the payload.
  Result<std::optional<RecordHeader>> read_header(std::uint64_t offset, std::uint64_t end);
  // The first offset >= `offset` and < `end` with a valid header, or `end`.
  Result<std::uint64_t> find(std::uint64_t offset, std::uint64_t end);
  // Blocks of 4 KiB that could not be read so far and count as zeros.
  std::uint64_t unreadable_blocks() const { return unreadable_blocks_; }

 private:
  // Up to `size` bytes at `offset`; what lies at or behind `end` is never kept, because it may
  // still be written.
  Result<std::string_view> window(std::uint64_t offset, std::size_t size, std::uint64_t end);
  Status fill();
  bool can_read_near() const;

  std::shared_ptr<const Segment> segment_;
  std::size_t window_bytes_;
  std::string buffer_;
  std::uint64_t buffer_offset_ = 0;
  std::uint64_t unreadable_blocks_ = 0;
};

// Sequential reader over committed records; remembers where it stands, so that going on costs no
// search.
class LogReader {
 public:
  // `window_bytes`: small for looking up single records, large for reading on and on.
  explicit LogReader(const SegmentLog& log, std::size_t window_bytes = 1U << 20)
      : log_(log), window_bytes_(window_bytes) {}
  // For what is kept of the records that are read.
  std::shared_ptr<Records> take_buffer() { return buffers_->take(); }
  // Another reader of the same log, for look-ups that must not move this one.
  LogReader look_up() const { return LogReader(log_, 64U << 10); }

  // Calls `visit` for records with lsn in [from, before) in order until it returns false. Where
  // the log jumps, `on_gap` gets the positions that are missing: damaged, or freed.
  Status read(Lsn from, Lsn before, const std::function<bool(const Record&)>& visit,
              const std::function<void(Lsn first, Lsn last)>& on_gap = nullptr);
  // The record at `lsn`, if it can be read; views are valid until the next call.
  Result<std::optional<Record>> at(Lsn lsn);

 private:
  Status seek(Lsn lsn);
  Status build_index(const std::shared_ptr<Segment>& segment);
  bool go_to_next_segment();

  const SegmentLog& log_;
  std::size_t window_bytes_;
  std::shared_ptr<Buffers> buffers_ = std::make_shared<Buffers>();
  std::shared_ptr<Segment> segment_;
  std::unique_ptr<SegmentCursor> cursor_;
  std::uint64_t offset_ = 0;
  Lsn next_ = 0;  // lsn at offset_
};

}  // namespace dray::spool
