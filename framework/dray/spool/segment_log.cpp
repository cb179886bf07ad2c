#include "dray/spool/segment_log.hpp"

#include <algorithm>

#include "dray/spool/planted_fault.hpp"

namespace dray::spool {
namespace {

constexpr std::uint64_t kIndexSpacing = 64U << 10;
constexpr std::size_t kBatchesKept = 8;

}  // namespace

Result<std::unique_ptr<SegmentLog>> SegmentLog::open(Directory& directory, const Clock& clock,
                                                     const LogOptions& options,
                                                     const std::optional<Checkpoint>& checkpoint,
                                                     const Visitor& visitor, ScanReport& report) {
  std::unique_ptr<SegmentLog> log(new SegmentLog(directory, clock, options));
  DRAY_TRY(log->scan(checkpoint, visitor, report));
  return log;
}

Status SegmentLog::start(const Uuid& spool_id, std::uint64_t epoch, std::uint64_t epoch_random,
                         std::function<std::string()> opening) {
  DRAY_ASSERT(current_ == nullptr && !spool_id.is_nil());
  DRAY_ASSERT(spool_id_.is_nil() || spool_id_ == spool_id);
  spool_id_ = spool_id;
  epoch_ = epoch;
  epoch_random_ = epoch_random;
  opening_ = std::move(opening);
  // P7: on a full disk a restart must still be able to settle.
  if (!spares_.ensure_some_reserve()) {
    return Error{ErrorCode::kFull, "no room even for a small segment; free some disk, start again",
                 directory_.path(), 0};
  }
  return roll(next_lsn_, false);
}

// --- segments -------------------------------------------------------------------------------

// S3: anything invalid in a sealed segment is damage, so all of it is synced before the next one
// begins.
Status SegmentLog::seal() {
  if (!unsynced_ || planted(Fault::kNoSealSync)) return {};
  DRAY_TRY(current_->file->sync_data());
  unsynced_ = false;
  durable_lsn_ = current_->last_lsn;
  return {};
}

Status SegmentLog::roll(Lsn first_lsn, bool whole) {
  if (auto spare = spares_.take(whole)) return use(std::move(*spare), first_lsn);
  if (!whole) {
    auto fresh = spares_.create();
    if (fresh.ok()) {
      const Status used = use(*fresh, first_lsn);
      if (used.ok() || used.error().code != ErrorCode::kFull) return used;
      fresh->file.reset();
      (void)directory_.remove(fresh->name);
    } else if (fresh.error().code != ErrorCode::kFull) {
      return fresh.error();
    }
    if (auto spare = spares_.take(true)) return use(std::move(*spare), first_lsn);
  }
  return Error{ErrorCode::kFull, "the disk is full and the reserve is used up", directory_.path(),
               0};
}

Status SegmentLog::use(SpareSegments::Spare spare, Lsn first_lsn) {
  auto segment = std::make_shared<Segment>();
  segment->header.spool_id = spool_id_;
  segment->header.number = next_segment_;
  segment->header.epoch = epoch_;
  segment->header.epoch_random = epoch_random_;
  segment->header.first_lsn = first_lsn;
  segment->header.created_at = clock_.utc();
  segment->header.machine_id = options_.machine_id;
  segment->header.home = directory_.identity();
  segment->seed = segment_seed(segment->header);
  segment->last_lsn = first_lsn - 1;
  segment->file = std::move(spare.file);
  // S4: header, sync, name, sync of the name; only then a record.
  DRAY_TRY(segment->file->write_at(0, encode_segment_header(segment->header)));
  if (!planted(Fault::kNoHeaderSync)) DRAY_TRY(segment->file->sync_data());
  DRAY_TRY(directory_.rename(spare.name, segment_name(next_segment_)));
  if (!planted(Fault::kNoSegmentNameSync)) DRAY_TRY(directory_.sync());
  segment->end = kSegmentHeaderSize;
  capacity_ = spare.confined ? spare.size : options_.segment_size;
  ++next_segment_;
  indexed_until_ = 0;
  batch_offset_ = kSegmentHeaderSize;
  batch_ = fresh_batch();
  batch_index_.clear();
  bytes_total_ += kSegmentHeaderSize;
  current_ = segment;
  opening_due_ = opening_ != nullptr;
  const std::lock_guard lock(mutex_);
  segments_.push_back(std::move(segment));
  return {};
}

std::vector<SegmentSummary> SegmentLog::segments() const {
  std::vector<SegmentSummary> all;
  const std::lock_guard lock(mutex_);
  for (const auto& segment : segments_) {
    all.push_back({segment->header.number, segment->header.first_lsn, segment->last_lsn,
                   segment->end, segment->header.created_at, segment == segments_.back()});
  }
  return all;
}

std::vector<SegmentEntry> SegmentLog::entries(Lsn lsn, const LogPosition& position,
                                              const std::set<std::uint64_t>& dead) const {
  std::vector<SegmentEntry> all;
  const std::lock_guard lock(mutex_);
  for (const auto& segment : segments_) {
    const auto& header = segment->header;
    if (header.number > position.segment || dead.count(header.number) != 0) continue;
    const bool last = header.number == position.segment;
    all.push_back({header.number, header.epoch, header.epoch_random, header.first_lsn,
                   last ? lsn : segment->last_lsn.load(),
                   last ? position.offset : segment->end.load()});
  }
  return all;
}

Status SegmentLog::free(const std::set<std::uint64_t>& numbers) {
  std::vector<std::shared_ptr<Segment>> freed;
  {
    const std::lock_guard lock(mutex_);
    const auto keep = std::stable_partition(
        segments_.begin(), segments_.end(),
        [&](const auto& segment) { return numbers.count(segment->header.number) == 0; });
    freed.assign(keep, segments_.end());
    segments_.erase(keep, segments_.end());
  }
  if (freed.empty()) return {};
  std::vector<SpareSegments::Spare> recycled;
  for (const auto& segment : freed) {
    const std::string name = segment_name(segment->header.number);
    bytes_total_ -= segment->end;
    const auto size = segment->file->size();
    if (segment->damaged) {
      DRAY_TRY(directory_.rename(name, name + ".quarantine"));
    } else if (size.ok() && *size == options_.segment_size && recycled.empty() &&
               spares_.wants_recycled()) {
      const std::string spare = spares_.fresh_name();
      DRAY_TRY(directory_.rename(name, spare));
      recycled.push_back({segment->file, spare, *size, false});
    } else {
      DRAY_TRY(directory_.remove(name));
    }
  }
  // Before it is overwritten, the file has lost its old name for good.
  DRAY_TRY(directory_.sync());
  for (auto& spare : recycled) spares_.recycle(std::move(spare));
  return {};
}

// --- append ---------------------------------------------------------------------------------

// Rolls if the segment has no room for so many bytes more. A record that is larger than a segment
// gets one of its own.
Status SegmentLog::make_room(std::size_t bytes) {
  const std::uint64_t end = batch_offset_ + batch_->size();
  if (end + bytes <= capacity_ || end == kSegmentHeaderSize) return {};
  DRAY_TRY(write_batch(false));
  if (batch_offset_ + bytes <= capacity_) return {};  // it went to the reserve, which has room
  Status rolled = seal();
  if (rolled.ok()) rolled = roll(next_lsn_, false);
  return rolled.ok() ? rolled : fail(rolled.error());
}

Status SegmentLog::begin_unit(std::size_t bytes) {
  if (!failed_.empty()) return failed_.front();
  DRAY_TRY(make_room(bytes));
  unit_bytes_ = bytes;
  return {};
}

Result<SegmentLog::Added> SegmentLog::add(RecordType type, std::uint8_t flags,
                                          std::string_view payload) {
  DRAY_ASSERT(current_ != nullptr);
  if (!failed_.empty()) return failed_.front().error();
  const std::size_t size = record_size(payload.size());
  if (unit_bytes_ == 0) DRAY_TRY(make_room(size));
  unit_bytes_ -= std::min(unit_bytes_, size);
  if (opening_due_) {
    opening_due_ = false;
    append(RecordType::kOpening, 0, opening_());
  }
  const std::size_t payload_offset = batch_->size() + kRecordHeaderSize;
  append(type, flags, payload);
  return Added{next_lsn_ - 1, batch_, payload_offset};
}

void SegmentLog::append(RecordType type, std::uint8_t flags, std::string_view payload) {
  const std::uint64_t offset = batch_offset_ + batch_->size();
  RecordHeader header;
  header.type = type;
  header.flags = flags;
  header.lsn = next_lsn_;
  header.durable_lsn = durable_lsn_;
  if (batch_->empty()) batch_lsn_ = next_lsn_;
  append_record(*batch_, current_->seed, offset, header, payload);
  if (offset >= indexed_until_) {
    batch_index_.push_back({next_lsn_, offset});
    indexed_until_ = offset + kIndexSpacing;
  }
  ++next_lsn_;
}

Status SegmentLog::commit(bool sync) {
  if (!failed_.empty()) return failed_.front();
  return write_batch(sync);
}

// The disk is full: the same records, framed anew, go to a file that has its blocks. What was
// written of them lies behind the end of the sealed segment and counts for nothing.
Status SegmentLog::move_to_reserve() {
  const auto old = batch_;
  const std::uint64_t old_offset = batch_offset_;
  const std::uint32_t old_seed = current_->seed;
  DRAY_TRY(seal());
  DRAY_TRY(roll(batch_lsn_, true));
  for (std::size_t at = 0; at < old->size();) {
    const auto header =
        decode_record_header(std::string_view(*old).substr(at), old_seed, old_offset + at);
    DRAY_ASSERT(header.has_value());
    append_record(*batch_, current_->seed, batch_offset_ + batch_->size(), *header,
                  std::string_view(*old).substr(at + kRecordHeaderSize, header->payload_size));
    at += record_size(header->payload_size);
  }
  batch_index_.push_back({batch_lsn_, batch_offset_});
  return {};
}

Status SegmentLog::write_batch(bool sync) {
  const Lsn written = next_lsn_ - 1;
  if (!batch_->empty()) {
    const bool one_call = sync && !unsynced_;
    const auto write = [&] {
      return one_call && !planted(Fault::kNoCommitSync)
                 ? current_->file->write_durable_at(batch_offset_, *batch_)
                 : current_->file->write_at(batch_offset_, *batch_);
    };
    Status wrote = write();
    if (!wrote.ok() && wrote.error().code == ErrorCode::kFull) {
      const Status moved = move_to_reserve();
      wrote = moved.ok() ? write() : moved;
    }
    if (!wrote.ok()) return fail(wrote.error());
    unsynced_ = !one_call;
  }
  if (sync && unsynced_ && !planted(Fault::kNoCommitSync)) {
    if (auto synced = current_->file->sync_data(); !synced.ok()) return fail(synced.error());
    unsynced_ = false;
  }
  if (sync) durable_lsn_ = written;  // S1
  batch_offset_ += batch_->size();
  bytes_total_ += batch_->size();
  bytes_appended_ += batch_->size();
  if (!batch_index_.empty()) {
    const std::lock_guard lock(mutex_);
    current_->index.insert(current_->index.end(), batch_index_.begin(), batch_index_.end());
    batch_index_.clear();
  }
  current_->last_lsn = written;
  current_->end.store(batch_offset_, std::memory_order_release);
  if (!batch_->empty()) batch_ = fresh_batch();
  return {};
}

// A buffer that its readers have let go of, or a new one: growing one anew for every commit costs
// more than what is put into it. The last reader gives it back, on its own thread.
std::shared_ptr<std::string> SegmentLog::fresh_batch() {
  std::unique_ptr<std::string> buffer;
  {
    const std::lock_guard lock(buffers_->mutex);
    if (!buffers_->free.empty()) {
      buffer = std::move(buffers_->free.back());
      buffers_->free.pop_back();
    }
  }
  if (buffer == nullptr) buffer = std::make_unique<std::string>();
  return {buffer.release(), [buffers = buffers_](std::string* used) {
            std::unique_ptr<std::string> back(used);
            back->clear();
            const std::lock_guard lock(buffers->mutex);
            if (buffers->free.size() < kBatchesKept) buffers->free.push_back(std::move(back));
          }};
}

Status SegmentLog::fail(Error error) {
  if (planted(Fault::kNoLatch)) return error;
  if (failed_.empty()) failed_.emplace_back(std::move(error));  // S5
  return failed_.front();
}

}  // namespace dray::spool
