#include "dray/spool/segment_log.hpp"

#include <algorithm>

#include "dray/spool/bytes.hpp"

namespace dray::spool {
namespace {

constexpr const char* kSpareName = "spare";
constexpr std::uint64_t kIndexSpacing = 64U << 10;
constexpr std::size_t kWindowSize = 1U << 20;
constexpr std::uint64_t kSegmentSizeMin = 1U << 20;

}  // namespace

// --- open -----------------------------------------------------------------------------------

Result<std::unique_ptr<SegmentLog>> SegmentLog::open(Directory& directory, const Clock& clock,
                                                     const LogOptions& options,
                                                     const Visitor& visitor, ScanReport& report) {
  std::unique_ptr<SegmentLog> log(new SegmentLog(directory, clock, options));
  DRAY_TRY(log->scan(visitor, report));
  return log;
}

Status SegmentLog::scan(const Visitor& visitor, ScanReport& report) {
  auto names = directory_.list();
  if (!names.ok()) return names.error();
  std::vector<std::uint64_t> numbers;
  for (const auto& name : *names) {
    if (auto number = segment_number(name)) numbers.push_back(*number);
  }
  std::sort(numbers.begin(), numbers.end());
  for (std::size_t i = 0; i < numbers.size(); ++i) {
    const bool last = i + 1 == numbers.size();
    const std::string name = segment_name(numbers[i]);
    const std::string path = directory_.path() + "/" + name;
    next_segment_ = numbers[i] + 1;
    auto file = directory_.open(name, OpenMode::kReadWrite);
    if (!file.ok()) return file.error();
    auto segment = std::make_shared<Segment>();
    segment->file = std::move(*file);
    std::string bytes(kSegmentHeaderSize, '\0');
    auto got = segment->file->read_at(0, bytes.data(), bytes.size());
    if (!got.ok()) return got.error();
    const bool blank = bytes.find_first_not_of('\0') == std::string::npos;
    const auto decoded = decode_segment_header(bytes);
    if (decoded.fault == HeaderFault::kNewerVersion) {
      return Error{ErrorCode::kUnsupported,
                   "format version " + std::to_string(decoded.header.version) +
                       " is newer than this program's " + std::to_string(kFormatVersion) +
                       "; run a newer dray",
                   path, 0};
    }
    if (decoded.fault != HeaderFault::kNone) {
      if (last && blank) {  // S4: it never held a record
        DRAY_TRY(directory_.remove(name));
        DRAY_TRY(directory_.sync());
        continue;
      }
      return Error{ErrorCode::kCorrupt,
                   decoded.fault == HeaderFault::kForeign
                       ? "not a Dray segment; move this file out of the spool"
                       : "the segment's header is damaged; restore this file from a copy, or move "
                         "it away to serve the rest",
                   path, 0};
    }
    if (!spool_id_.is_nil() && decoded.header.spool_id != spool_id_) {
      return Error{ErrorCode::kCorrupt,
                   "belongs to spool " + decoded.header.spool_id.text() + ", not to " +
                       spool_id_.text() + "; move this file out of the spool",
                   path, 0};
    }
    spool_id_ = decoded.header.spool_id;
    segment->header = decoded.header;
    segment->seed = segment_seed(decoded.header);
    DRAY_TRY(scan_segment(segment, last, visitor, report));
    const std::lock_guard lock(mutex_);
    segments_.push_back(segment);
    ++report.segments;
  }
  durable_lsn_ = next_lsn_ - 1;
  return {};
}

Status SegmentLog::scan_segment(const std::shared_ptr<Segment>& segment, bool last,
                                const Visitor& visitor, ScanReport& report) {
  auto file_size = segment->file->size();
  if (!file_size.ok()) return file_size.error();
  const std::uint64_t end = *file_size;
  SegmentCursor cursor(segment);
  std::uint64_t offset = kSegmentHeaderSize;
  std::uint64_t indexed_until = 0;
  bool marker_last = true;  // an empty segment needs no rewriting
  const auto damaged_until = [&](std::uint64_t at, Lsn found) {
    report.damaged.push_back({segment->header.number, at, next_lsn_, found - 1});
    next_lsn_ = found;
  };
  if (segment->header.first_lsn > next_lsn_ && report.segments + report.records > 0) {
    damaged_until(0, segment->header.first_lsn);  // a whole segment is missing
  }
  next_lsn_ = std::max(next_lsn_, segment->header.first_lsn);
  std::uint64_t valid_end = offset;
  while (offset < end) {
    auto record = cursor.read(offset, end);
    if (!record.ok()) return record.error();
    if (!record->has_value() || (*record)->header.lsn < next_lsn_) {
      // S3. Look behind the invalid bytes: a later record that says they were durable turns a
      // torn tail into damage.
      auto found = cursor.find(offset + kRecordAlignment, end);
      std::uint64_t resume = end;
      std::uint64_t first_valid = end;  // all records of one commit carry the same durable_lsn
      while (found.ok() && *found < end) {
        auto later = cursor.read(*found, end);
        if (!later.ok()) return later.error();
        const bool sealed = !last;
        if (later->has_value() && (*later)->header.lsn > next_lsn_) {
          if (first_valid == end) first_valid = *found;
          if (sealed || (*later)->header.durable_lsn >= next_lsn_) {
            resume = first_valid;
            break;
          }
        }
        found = cursor.find(*found + kRecordAlignment, end);
      }
      if (!found.ok()) return found.error();
      if (resume == end) break;
      offset = resume;
      continue;
    }
    const RecordHeader header = (*record)->header;
    if (header.lsn > next_lsn_) damaged_until(valid_end, header.lsn);
    DRAY_TRY(visitor(**record));
    ++report.records;
    if (offset >= indexed_until) {
      segment->index.push_back({header.lsn, offset});
      indexed_until = offset + kIndexSpacing;
    }
    marker_last = header.type == RecordType::kMarker && header.durable_lsn + 1 == header.lsn;
    next_lsn_ = header.lsn + 1;
    offset += record_size(header.payload_size);
    valid_end = offset;
  }
  segment->end = valid_end;
  bytes_total_ += valid_end;
  if (!last) return {};
  report.clean = marker_last;
  const std::uint64_t torn = end - valid_end;
  if (torn > 0) {
    // Preallocated zeros are not a torn record.
    std::string probe(std::min<std::uint64_t>(torn, kRecordHeaderSize), '\0');
    auto got = segment->file->read_at(valid_end, probe.data(), probe.size());
    if (!got.ok()) return got.error();
    if (probe.find_first_not_of('\0') != std::string::npos) {
      report.torn_bytes = torn;
      report.clean = false;
    }
  }
  return cut_tail(*segment, valid_end, end, report.clean);
}

Status SegmentLog::cut_tail(Segment& segment, std::uint64_t end, std::uint64_t file_size,
                            bool clean) {
  if (end < file_size) DRAY_TRY(segment.file->truncate(end));
  // S7. After a failed write-back the page cache holds what the disk does not, and its pages are
  // clean: a sync alone would write nothing. The same bytes at the same place are harmless if cut
  // short again.
  if (!clean) DRAY_TRY(rewrite(segment, end));
  return segment.file->sync_data();
}

Status SegmentLog::rewrite(Segment& segment, std::uint64_t end) {
  std::string bytes;
  for (std::uint64_t offset = 0; offset < end; offset += kWindowSize) {
    bytes.resize(static_cast<std::size_t>(std::min<std::uint64_t>(kWindowSize, end - offset)));
    auto got = segment.file->read_at(offset, bytes.data(), bytes.size());
    if (!got.ok()) return got.error();
    DRAY_TRY(segment.file->write_at(offset, {bytes.data(), *got}));
  }
  return {};
}

Status SegmentLog::start(const Uuid& spool_id, std::uint64_t epoch, std::uint64_t epoch_random) {
  DRAY_ASSERT(current_ == nullptr && !spool_id.is_nil());
  DRAY_ASSERT(spool_id_.is_nil() || spool_id_ == spool_id);
  spool_id_ = spool_id;
  epoch_ = epoch;
  epoch_random_ = epoch_random;
  // P7: on a full disk a restart must still be able to settle; a small segment will do for that.
  std::uint64_t size = options_.segment_size;
  while (!make_spare(size) && size > kSegmentSizeMin) size /= 2;
  if (spare_ == nullptr) {
    return Error{ErrorCode::kFull,
                 "no room even for a segment of " + std::to_string(size) +
                     " bytes; free some disk and start again",
                 directory_.path(), 0};
  }
  return roll();
}

// --- append ---------------------------------------------------------------------------------

bool SegmentLog::ensure_spare() {
  return make_spare(options_.segment_size);
}

bool SegmentLog::make_spare(std::uint64_t size) {
  if (spare_ != nullptr) return true;
  auto opened = directory_.open(kSpareName, OpenMode::kCreateNew);
  if (!opened.ok() && opened.error().code == ErrorCode::kConflict) {
    opened = directory_.open(kSpareName, OpenMode::kReadWrite);
  }
  if (!opened.ok()) return false;
  // A spare left by an earlier run may hold anything: start from nothing.
  if ((*opened)->truncate(0).ok() && (*opened)->allocate(size).ok()) {
    spare_ = std::move(*opened);
    spare_size_ = size;
    return true;
  }
  opened->reset();
  (void)directory_.remove(kSpareName);
  return false;
}

Status SegmentLog::roll() {
  if (!ensure_spare()) {
    return Error{ErrorCode::kFull, "the disk is full and the reserve is used up", directory_.path(),
                 0};
  }
  auto segment = std::make_shared<Segment>();
  segment->header.spool_id = spool_id_;
  segment->header.number = next_segment_;
  segment->header.epoch = epoch_;
  segment->header.epoch_random = epoch_random_;
  segment->header.first_lsn = next_lsn_;
  segment->header.created_at = clock_.utc();
  segment->header.machine_id = options_.machine_id;
  segment->seed = segment_seed(segment->header);
  segment->file = std::shared_ptr<File>(std::move(spare_));
  capacity_ = spare_size_;
  // S4: header, sync, name, sync of the name; only then a record.
  DRAY_TRY(segment->file->write_at(0, encode_segment_header(segment->header)));
  DRAY_TRY(segment->file->sync_data());
  DRAY_TRY(directory_.rename(kSpareName, segment_name(next_segment_)));
  DRAY_TRY(directory_.sync());
  segment->end = kSegmentHeaderSize;
  ++next_segment_;
  indexed_until_ = 0;
  batch_offset_ = kSegmentHeaderSize;
  batch_ = std::make_shared<std::string>();
  batch_index_.clear();
  bytes_total_ += kSegmentHeaderSize;
  current_ = segment;
  const std::lock_guard lock(mutex_);
  segments_.push_back(std::move(segment));
  return {};
}

Result<SegmentLog::Added> SegmentLog::add(RecordType type, std::uint8_t flags,
                                          std::string_view payload) {
  DRAY_ASSERT(current_ != nullptr);
  if (!failed_.empty()) return failed_.front().error();
  const std::size_t size = record_size(payload.size());
  if (batch_offset_ + batch_->size() + size > capacity_ &&
      batch_offset_ + batch_->size() > kSegmentHeaderSize) {
    // A sealed segment is always synced: S3 calls anything invalid in it damage.
    DRAY_TRY(write_batch(true));
    // The sealed file gives back its unused blocks.
    if (auto cut = current_->file->truncate(current_->end); !cut.ok()) {
      return fail(cut.error()).error();
    }
    if (auto rolled = roll(); !rolled.ok()) return fail(rolled.error()).error();
  }
  const std::uint64_t offset = batch_offset_ + batch_->size();
  RecordHeader header;
  header.type = type;
  header.flags = flags;
  header.lsn = next_lsn_;
  header.durable_lsn = durable_lsn_;
  const std::size_t payload_offset = batch_->size() + kRecordHeaderSize;
  append_record(*batch_, current_->seed, offset, header, payload);
  if (offset >= indexed_until_) {
    batch_index_.push_back({next_lsn_, offset});
    indexed_until_ = offset + kIndexSpacing;
  }
  return Added{next_lsn_++, batch_, payload_offset};
}

Status SegmentLog::commit(bool sync) {
  if (!failed_.empty()) return failed_.front();
  return write_batch(sync);
}

Status SegmentLog::write_batch(bool sync) {
  const Lsn written = next_lsn_ - 1;
  if (!batch_->empty()) {
    if (auto wrote = current_->file->write_at(batch_offset_, *batch_); !wrote.ok()) {
      return fail(wrote.error());
    }
  }
  if (sync && durable_lsn_ < written) {
    if (auto synced = current_->file->sync_data(); !synced.ok()) return fail(synced.error());
    durable_lsn_ = written;  // S1
  }
  batch_offset_ += batch_->size();
  bytes_total_ += batch_->size();
  current_->end.store(batch_offset_, std::memory_order_release);
  if (!batch_index_.empty()) {
    const std::lock_guard lock(mutex_);
    current_->index.insert(current_->index.end(), batch_index_.begin(), batch_index_.end());
    batch_index_.clear();
  }
  if (!batch_->empty()) batch_ = std::make_shared<std::string>();
  return {};
}

Status SegmentLog::fail(Error error) {
  if (failed_.empty()) failed_.emplace_back(std::move(error));  // S5
  return failed_.front();
}

// --- read -----------------------------------------------------------------------------------

SegmentCursor::SegmentCursor(std::shared_ptr<const Segment> segment)
    : segment_(std::move(segment)) {}

Result<std::string_view> SegmentCursor::window(std::uint64_t offset, std::size_t size,
                                               std::uint64_t end) {
  if (offset < buffer_offset_ || offset + size > buffer_offset_ + buffer_.size()) {
    buffer_.resize(static_cast<std::size_t>(
        std::min<std::uint64_t>(std::max(size, kWindowSize), end - offset)));
    buffer_offset_ = offset;
    auto got = segment_->file->read_at(offset, buffer_.data(), buffer_.size());
    if (!got.ok()) {
      buffer_.clear();
      return got.error();
    }
    buffer_.resize(*got);
  }
  const std::size_t skip = static_cast<std::size_t>(offset - buffer_offset_);
  return std::string_view(buffer_).substr(std::min(skip, buffer_.size()), size);
}

Result<std::optional<Record>> SegmentCursor::read(std::uint64_t offset, std::uint64_t end) {
  if (offset + kRecordHeaderSize > end) return std::optional<Record>{};
  auto bytes = window(offset, kRecordHeaderSize, end);
  if (!bytes.ok()) return bytes.error();
  const auto header = decode_record_header(*bytes, segment_->seed, offset);
  if (!header || offset + record_size(header->payload_size) > end) return std::optional<Record>{};
  bytes = window(offset, record_size(header->payload_size), end);
  if (!bytes.ok()) return bytes.error();
  if (bytes->size() < kRecordHeaderSize + header->payload_size) return std::optional<Record>{};
  const auto payload = bytes->substr(kRecordHeaderSize, header->payload_size);
  if (!payload_passes(*header, segment_->seed, offset, payload)) return std::optional<Record>{};
  return std::optional<Record>(Record{*header, payload});
}

Result<std::uint64_t> SegmentCursor::find(std::uint64_t offset, std::uint64_t end) {
  while (offset + kRecordHeaderSize <= end) {
    auto bytes = window(
        offset, static_cast<std::size_t>(std::min<std::uint64_t>(kWindowSize, end - offset)), end);
    if (!bytes.ok()) return bytes.error();
    if (bytes->size() < kRecordHeaderSize) return end;
    const std::size_t usable = bytes->size() - kRecordHeaderSize + 1;
    for (std::size_t i = 0; i < usable; i += kRecordAlignment) {
      if ((*bytes)[i] == kRecordMagic[0] &&
          decode_record_header(bytes->substr(i), segment_->seed, offset + i)) {
        return offset + i;
      }
    }
    offset += (usable + kRecordAlignment - 1) / kRecordAlignment * kRecordAlignment;
  }
  return end;
}

bool LogReader::seek(Lsn lsn) {
  const std::lock_guard lock(log_.mutex_);
  const auto& segments = log_.segments_;
  const auto after =
      std::upper_bound(segments.begin(), segments.end(), lsn,
                       [](Lsn wanted, const auto& s) { return wanted < s->header.first_lsn; });
  if (after == segments.begin()) return false;
  const auto& segment = *std::prev(after);
  offset_ = kSegmentHeaderSize;
  next_ = segment->header.first_lsn;
  const auto entry = std::upper_bound(segment->index.begin(), segment->index.end(), lsn,
                                      [](Lsn wanted, const auto& e) { return wanted < e.lsn; });
  if (entry != segment->index.begin()) {
    offset_ = std::prev(entry)->offset;
    next_ = std::prev(entry)->lsn;
  }
  if (segment_ != segment) {
    segment_ = segment;
    cursor_ = std::make_unique<SegmentCursor>(segment);
  }
  return true;
}

Status LogReader::read(Lsn from, Lsn before, const std::function<bool(const Record&)>& visit,
                       const std::function<void(Lsn first, Lsn last)>& on_gap) {
  if (from >= before) return {};
  // Standing at or a little before `from` in the right segment: go on from there.
  if (segment_ == nullptr || next_ > from || from - next_ > 4096) {
    if (!seek(from)) return {};
  }
  while (next_ < before) {
    const std::uint64_t end = segment_->end.load(std::memory_order_acquire);
    auto record = cursor_->read(offset_, end);
    if (!record.ok()) return record.error();
    if (!record->has_value()) {
      auto found = cursor_->find(offset_ + kRecordAlignment, end);
      if (!found.ok()) return found.error();
      if (*found < end) {  // damage
        offset_ = *found;
        continue;
      }
      const auto current = segment_;
      const Lsn wanted = std::max(next_, from);
      // The next segment, if there is one.
      {
        const std::lock_guard lock(log_.mutex_);
        const auto here = std::find(log_.segments_.begin(), log_.segments_.end(), current);
        if (here == log_.segments_.end() || std::next(here) == log_.segments_.end()) return {};
        segment_ = *std::next(here);
      }
      cursor_ = std::make_unique<SegmentCursor>(segment_);
      offset_ = kSegmentHeaderSize;
      next_ = segment_->header.first_lsn;
      if (next_ > wanted && next_ >= before) return {};
      continue;
    }
    const Record& found = **record;
    if (found.header.lsn >= before) {
      next_ = found.header.lsn;
      return {};
    }
    if (found.header.lsn > std::max(next_, from) && on_gap) {
      on_gap(std::max(next_, from), found.header.lsn - 1);
    }
    offset_ += record_size(found.header.payload_size);
    next_ = found.header.lsn + 1;
    if (found.header.lsn >= from && !visit(found)) return {};
  }
  return {};
}

}  // namespace dray::spool
