#include "dray/spool/log_reader.hpp"

#include <algorithm>

namespace dray::spool {
namespace {

constexpr std::size_t kBlock = 4096;
constexpr std::size_t kSpotMax = 64U << 10;
constexpr std::uint64_t kNear = 1U
                                << 20;  // another window, and not in the page cache with this one
// Reading on is cheaper than a search if no more records than this lie between.
constexpr Lsn kReadOnMax = 256;

}  // namespace

SegmentCursor::SegmentCursor(std::shared_ptr<const Segment> segment, std::size_t window_bytes)
    : segment_(std::move(segment)), window_bytes_(window_bytes) {}

// A sector that cannot be read costs its records, not the segment.
Status SegmentCursor::fill() {
  auto got = segment_->file->read_at(buffer_offset_, buffer_.data(), buffer_.size());
  if (got.ok()) {
    buffer_.resize(*got);
    return {};
  }
  const Error failed = got.error();
  bool any = false;
  for (std::size_t at = 0, size = 0; at < buffer_.size(); at += size) {
    // To the end of a block of the file: two halves of two blocks would lose both.
    const std::size_t in_block = kBlock - static_cast<std::size_t>((buffer_offset_ + at) % kBlock);
    size = std::min(in_block, buffer_.size() - at);
    auto block = segment_->file->read_at(buffer_offset_ + at, buffer_.data() + at, size);
    const std::size_t good = block.ok() ? *block : 0;
    std::fill_n(buffer_.data() + at + good, size - good, '\0');
    any = any || block.ok();
    if (!block.ok()) ++unreadable_blocks_;
  }
  // One bad spot is damage; a long stretch with nothing to read, or nothing near it either, is a
  // device that has failed, and says nothing of what is on it.
  const bool spot = any || (buffer_.size() <= kSpotMax && can_read_near());
  if (!spot) buffer_.clear();
  return spot ? Status() : Status(failed);
}

// Whether what lies around the window can be read. In a small segment there is nothing to ask.
bool SegmentCursor::can_read_near() const {
  const std::uint64_t end = segment_->end.load(std::memory_order_acquire);
  char byte = 0;
  bool probed = false;
  for (const bool before : {true, false}) {
    if (before ? buffer_offset_ < kNear : buffer_offset_ + kNear >= end) continue;
    probed = true;
    const auto at = before ? buffer_offset_ - kNear : buffer_offset_ + kNear;
    if (segment_->file->read_at(at, &byte, 1).ok()) return true;
  }
  return !probed;
}

Result<std::string_view> SegmentCursor::window(std::uint64_t offset, std::size_t size,
                                               std::uint64_t end) {
  if (offset < buffer_offset_ || offset + size > buffer_offset_ + buffer_.size()) {
    buffer_.resize(static_cast<std::size_t>(
        std::min<std::uint64_t>(std::max(size, window_bytes_), end - offset)));
    buffer_offset_ = offset;
    DRAY_TRY(fill());
  }
  const std::size_t skip = static_cast<std::size_t>(offset - buffer_offset_);
  return std::string_view(buffer_).substr(std::min(skip, buffer_.size()), size);
}

Result<std::optional<RecordHeader>> SegmentCursor::read_header(std::uint64_t offset,
                                                               std::uint64_t end) {
  if (offset + kRecordHeaderSize > end) return std::optional<RecordHeader>{};
  auto bytes = window(offset, kRecordHeaderSize, end);
  if (!bytes.ok()) return bytes.error();
  auto header = decode_record_header(*bytes, segment_->seed, offset);
  if (header && offset + record_size(header->payload_size) > end) header.reset();
  return header;
}

Result<std::optional<Record>> SegmentCursor::read(std::uint64_t offset, std::uint64_t end) {
  const auto header = read_header(offset, end);
  if (!header.ok()) return header.error();
  if (!header->has_value()) return std::optional<Record>{};
  const std::uint32_t size = (*header)->payload_size;
  auto bytes = window(offset, record_size(size), end);
  if (!bytes.ok()) return bytes.error();
  if (bytes->size() < kRecordHeaderSize + size) return std::optional<Record>{};
  const auto payload = bytes->substr(kRecordHeaderSize, size);
  if (!payload_passes(**header, payload)) return std::optional<Record>{};
  return std::optional<Record>(Record{**header, payload});
}

Result<std::uint64_t> SegmentCursor::find(std::uint64_t offset, std::uint64_t end) {
  while (offset + kRecordHeaderSize <= end) {
    auto bytes =
        window(offset,
               static_cast<std::size_t>(std::min<std::uint64_t>(window_bytes_, end - offset)), end);
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

// Segments that were not scanned at open have no index; one pass over their headers makes it.
Status LogReader::build_index(const std::shared_ptr<Segment>& segment) {
  std::vector<Segment::IndexEntry> index;
  SegmentCursor cursor(segment);
  const std::uint64_t end = segment->end.load(std::memory_order_acquire);
  std::uint64_t until = 0;
  for (std::uint64_t offset = kSegmentHeaderSize; offset < end;) {
    const auto header = cursor.read_header(offset, end);
    if (!header.ok()) return header.error();
    if (!header->has_value()) {
      const auto found = cursor.find(offset + kRecordAlignment, end);
      if (!found.ok()) return found.error();
      offset = *found;
      continue;
    }
    if (offset >= until) {
      index.push_back({(*header)->lsn, offset});
      until = offset + kIndexSpacing;
    }
    offset += record_size((*header)->payload_size);
  }
  const std::lock_guard lock(log_.mutex_);
  if (segment->index.empty()) segment->index = std::move(index);
  return {};
}

Status LogReader::seek(Lsn lsn) {
  std::shared_ptr<Segment> segment;
  bool indexed = false;
  {
    const std::lock_guard lock(log_.mutex_);
    const auto& segments = log_.segments_;
    auto after =
        std::upper_bound(segments.begin(), segments.end(), lsn,
                         [](Lsn wanted, const auto& s) { return wanted < s->header.first_lsn; });
    if (after == segments.end() && segments.empty()) return {};
    // Before the first segment: begin there, the gap is reported on the way.
    segment = after == segments.begin() ? *after : *std::prev(after);
    indexed = !segment->index.empty() || lsn < segment->header.first_lsn + kReadOnMax;
  }
  if (!indexed) DRAY_TRY(build_index(segment));
  offset_ = kSegmentHeaderSize;
  next_ = segment->header.first_lsn;
  {
    const std::lock_guard lock(log_.mutex_);
    const auto entry = std::upper_bound(segment->index.begin(), segment->index.end(), lsn,
                                        [](Lsn wanted, const auto& e) { return wanted < e.lsn; });
    if (entry != segment->index.begin()) {
      offset_ = std::prev(entry)->offset;
      next_ = std::prev(entry)->lsn;
    }
  }
  if (segment_ != segment) {
    segment_ = segment;
    cursor_ = std::make_unique<SegmentCursor>(segment, window_bytes_);
  }
  return {};
}

bool LogReader::go_to_next_segment() {
  const std::lock_guard lock(log_.mutex_);
  const auto& segments = log_.segments_;
  const auto after = std::upper_bound(
      segments.begin(), segments.end(), segment_->header.number,
      [](std::uint64_t number, const auto& s) { return number < s->header.number; });
  if (after == segments.end()) return false;
  segment_ = *after;
  cursor_ = std::make_unique<SegmentCursor>(segment_, window_bytes_);
  offset_ = kSegmentHeaderSize;
  return true;
}

Status LogReader::read(Lsn from, Lsn before, const std::function<bool(const Record&)>& visit,
                       const std::function<void(Lsn first, Lsn last)>& on_gap) {
  if (from >= before) return {};
  const bool near = segment_ != nullptr && next_ <= from && from - next_ <= kReadOnMax;
  if (!near) {
    segment_.reset();
    DRAY_TRY(seek(from));
    if (segment_ == nullptr) return {};
  }
  if (before - from > 1) log_.read_back_.store(from, std::memory_order_relaxed);
  Lsn wanted = from;  // the next position to account for
  while (wanted < before) {
    const std::uint64_t end = segment_->end.load(std::memory_order_acquire);
    auto record = cursor_->read(offset_, end);
    if (!record.ok()) return record.error();
    if (!record->has_value()) {
      auto found = cursor_->find(offset_ + kRecordAlignment, end);
      if (!found.ok()) return found.error();
      if (*found < end) {
        segment_->damaged = true;
        offset_ = *found;
      } else if (!go_to_next_segment()) {
        // Nothing more was committed, or all the rest of the last segment is damaged.
        const Lsn last = std::min(before - 1, segment_->last_lsn.load());
        if (last >= wanted && offset_ < end && on_gap) on_gap(wanted, last);
        next_ = wanted;
        if (offset_ < end) segment_.reset();
        return {};
      }
      continue;
    }
    const Record& found = **record;
    const Lsn lsn = found.header.lsn;
    if (lsn > wanted && on_gap) on_gap(wanted, std::min(lsn, before) - 1);
    next_ = lsn;
    if (lsn >= before) return {};
    offset_ += record_size(found.header.payload_size);
    next_ = lsn + 1;
    wanted = std::max(wanted, next_);
    if (lsn >= from && !visit(found)) return {};
  }
  return {};
}

Result<std::optional<Record>> LogReader::at(Lsn lsn) {
  std::optional<Record> out;
  const auto status = read(lsn, lsn + 1, [&](const Record& record) {
    out = record;
    return false;
  });
  if (!status.ok()) return status.error();
  return out;
}

}  // namespace dray::spool
