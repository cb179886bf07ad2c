// SegmentLog::scan: recovery of the log. The decisions, all of them (FORMATS.md, "Recovery"):
//
//   a segment's header                       what is done
//   newer version                            refused
//   no Dray segment, or another spool's      refused
//   damaged, listed by the checkpoint        rebuilt from there, records served
//   before the checkpoint, not listed        free, removed; if it is no segment, set aside
//   damaged, not listed                      set aside, its records reported
//   cannot be read, not listed               refused: it may be read the next time
//
//   a segment's records                      what is done
//   before the checkpoint, listed            not read now
//   before the checkpoint, not listed        free
//   listed and not there                     reported as damaged
//   sealed, invalid                          damage: reported, read on behind it
//   last, invalid, known to be durable (S3)  damage, as above
//   last, invalid, not known to be           torn tail: cut
//   the log ends before its checkpoint       reported as damaged
#include <algorithm>

#include "dray/spool/log_reader.hpp"
#include "dray/spool/planted_fault.hpp"

namespace dray::spool {
namespace {

constexpr std::size_t kScanPiece = 1U << 20;
constexpr std::size_t kRewriteBlock = 4096;
// Where a sealed segment ends is not known: what came after it cannot be read.
constexpr Lsn kLimitUnknown = UINT64_MAX;

}  // namespace

// What scan_segment() learnt of the last segment.
struct SegmentLog::Tail {
  Lsn durable = 0;              // highest durable_lsn that any record carries
  std::uint64_t valid_end = 0;  // behind the last good record
  std::uint64_t file_end = 0;
  bool marker_last = true;
};

// Files behind the last good segment of which nothing is known but how much they may have held.
struct SegmentLog::Beyond {
  std::uint64_t number = 0;   // of the last one; 0: there are none
  std::uint64_t records = 0;  // at most, in all
};

void SegmentLog::damaged(const Visitor& visitor, ScanReport& report, DamagedRange range,
                         bool inside) {
  if (range.first > range.last) return;
  range.first = visitor.gap(range.first, inside);
  report.damaged.push_back(std::move(range));
}

// Once a new segment tells of the gap (start()): a start that is refused, or cut short, must not
// make the next one believe that nothing was there.
void SegmentLog::set_aside(const std::string& name, ScanReport& report, const std::string& why) {
  set_aside_ = true;
  aside_.push_back(name);
  report.notes.push_back(name + ": " + why + "; set aside as " + kept_name(directory_, name));
}

Status SegmentLog::scan(const std::optional<Checkpoint>& checkpoint, const Visitor& visitor,
                        ScanReport& report) {
  auto names = directory_.list();
  if (!names.ok()) return names.error();
  std::vector<std::uint64_t> numbers;
  std::map<std::uint64_t, std::vector<std::string>> kept;
  for (const auto& name : *names) {
    if (auto number = segment_number(name)) numbers.push_back(*number);
    if (SpareSegments::is_spare_name(name)) spares_.adopt(name);
    set_aside_ = set_aside_ || name.ends_with(".quarantine");
    if (const auto number = kept_number(name)) kept[*number].push_back(name);
  }
  std::sort(numbers.begin(), numbers.end());
  Tail tail;
  if (checkpoint) {
    spool_id_ = *Uuid::from_bytes(checkpoint->spool.bytes);
    next_lsn_ = checkpoint->lsn + 1;
    tail.durable = checkpoint->lsn;  // S8
    next_segment_ = checkpoint->position.segment + 1;
  }
  Beyond beyond;
  for (const auto number : numbers) {
    next_segment_ = std::max(next_segment_, number + 1);
    auto segment = open_segment(number, checkpoint, report, beyond);
    if (!segment.ok()) return segment.error();
    if (*segment == nullptr) continue;
    beyond = {};
    report.machine_id = (*segment)->header.machine_id;
    report.home = (*segment)->header.home;
    segments_.push_back(std::move(*segment));
    ++report.segments;
  }
  add_kept(kept, checkpoint, beyond);
  DRAY_TRY(check_home(report));
  if (checkpoint) DRAY_TRY(check_missing(*checkpoint, visitor, report));
  bool any_scanned = false;
  for (std::size_t i = 0; i < segments_.size(); ++i) {
    Segment& segment = *segments_[i];
    const std::uint64_t number = segment.header.number;
    if (checkpoint && number < checkpoint->position.segment) {
      bytes_total_ += segment.end;
      continue;
    }
    const bool last = i + 1 == segments_.size();
    const bool inside = checkpoint && number == checkpoint->position.segment;
    // Without a checkpoint the log may begin in the middle; unless a segment was set aside, what
    // was before is not missed.
    const bool first_of_all = !checkpoint && !any_scanned && !set_aside_;
    any_scanned = true;
    if (first_of_all) next_lsn_ = segment.header.first_lsn;
    if (!inside && segment.header.first_lsn > next_lsn_) {
      const Lsn until = segment.header.first_lsn;
      damaged(visitor, report, {number, 0, next_lsn_, until - 1, "missing before this segment"},
              false);
      next_lsn_ = until;
    }
    const bool sealed = !last || beyond.number != 0;
    const Lsn limit = !last ? segments_[i + 1]->header.first_lsn : sealed ? kLimitUnknown : 0;
    const auto begin = inside ? checkpoint->position.offset : kSegmentHeaderSize;
    DRAY_TRY(scan_segment(segment, begin, limit, visitor, report, tail));
    bytes_total_ += segment.end;
    if (!sealed) DRAY_TRY(finish_tail(segment, tail, report));
  }
  if (beyond.number != 0) {
    // How many records they held is not known: go on behind all that they may have held.
    const Lsn first = next_lsn_;
    next_lsn_ += beyond.records;
    damaged(visitor, report,
            {beyond.number, 0, first, next_lsn_ - 1, "the segment's header is damaged"}, false);
    report.clean = false;
  }
  durable_lsn_ = next_lsn_ - 1;
  return {};
}

// Of what was set aside before, only a later segment tells that it was there.
void SegmentLog::add_kept(const std::map<std::uint64_t, std::vector<std::string>>& kept,
                          const std::optional<Checkpoint>& checkpoint, Beyond& beyond) {
  std::uint64_t known = segments_.empty() ? 0 : segments_.back()->header.number;
  if (checkpoint) known = std::max(known, checkpoint->position.segment);
  for (const auto& [number, names] : kept) {
    next_segment_ = std::max(next_segment_, number + 1);
    if (number <= known) continue;
    beyond.number = std::max(beyond.number, number);
    for (const auto& name : names) {
      const auto file = directory_.open(name, OpenMode::kRead);
      const auto size = file.ok() ? (*file)->size() : Result<std::uint64_t>(file.error());
      if (size.ok()) beyond.records += *size / kRecordHeaderSize;
    }
  }
}

// Nothing: the file is not needed, or was set aside.
Result<std::shared_ptr<Segment>> SegmentLog::open_segment(
    std::uint64_t number, const std::optional<Checkpoint>& checkpoint, ScanReport& report,
    Beyond& beyond) {
  const std::string name = segment_name(number);
  const std::string path = directory_.path() + "/" + name;
  auto file = directory_.open(name, OpenMode::kReadWrite);
  if (!file.ok()) return file.error();
  auto segment = std::make_shared<Segment>();
  segment->file = std::move(*file);
  std::string bytes(kSegmentHeaderSize, '\0');
  const auto got = segment->file->read_at(0, bytes.data(), bytes.size());
  if (got.ok()) bytes.resize(*got);
  const SegmentEntry* listed = nullptr;
  if (checkpoint) {
    for (const auto& entry : checkpoint->segments) {
      if (entry.number == number) listed = &entry;
    }
  }
  const auto decoded = decode_segment_header(bytes);
  if (decoded.fault == HeaderFault::kNewerVersion) {
    return Error{ErrorCode::kUnsupported,
                 "format version " + std::to_string(decoded.header.version) +
                     " is newer than this program's " + std::to_string(kFormatVersion) +
                     "; run a newer dray",
                 path, 0};
  }
  segment->header = decoded.header;
  const bool ours = decoded.fault == HeaderFault::kNone && decoded.header.number == number;
  if (!ours && listed != nullptr) {
    segment->header = {};
    segment->header.spool_id = spool_id_;
    segment->header.number = number;
    segment->header.epoch = listed->epoch;
    segment->header.epoch_random = listed->epoch_random;
    segment->header.first_lsn = listed->first_lsn;
    segment->header.machine_id = report.machine_id;
    segment->header.home = report.home;
    segment->damaged = true;
    report.notes.push_back(name + ": its header is damaged and was rebuilt from the checkpoint");
  } else if (!ours) {
    const bool blank = bytes.find_first_not_of('\0') == std::string::npos;
    const bool foreign = got.ok() && decoded.fault == HeaderFault::kForeign && !blank;
    if (checkpoint && number < checkpoint->position.segment) {  // S9: nothing in it counts
      if (foreign) {                                            // whatever it is, it is somebody's
        set_aside(name, report, "not a Dray segment, and none is needed there");
        return std::shared_ptr<Segment>();
      }
      DRAY_TRY(directory_.remove(name));
      DRAY_TRY(directory_.sync());
      return std::shared_ptr<Segment>();
    }
    if (!got.ok()) {
      Error error = got.error();
      error.message =
          "the segment's header cannot be read, and no checkpoint knows it; if it stays "
          "so, `dray spool repair` gives it up: " +
          error.message;
      return error;
    }
    if (foreign) {
      return Error{ErrorCode::kCorrupt, "not a Dray segment; move this file out of the spool", path,
                   0};
    }
    // S4: whatever its header looks like now, it had one before it had its name, and may have held
    // acknowledged records.
    const auto size = segment->file->size();
    beyond.number = number;
    if (size.ok()) beyond.records += *size / kRecordHeaderSize;
    set_aside(name, report, "its header is damaged and no checkpoint knows it");
    return std::shared_ptr<Segment>();
  }
  if (!spool_id_.is_nil() && segment->header.spool_id != spool_id_) {
    return Error{ErrorCode::kCorrupt,
                 "belongs to spool " + segment->header.spool_id.text() + ", not to " +
                     spool_id_.text() + "; move this file out of the spool",
                 path, 0};
  }
  spool_id_ = segment->header.spool_id;
  segment->seed = segment_seed(segment->header);
  segment->last_lsn = segment->header.first_lsn - 1;
  segment->end = kSegmentHeaderSize;
  if (listed != nullptr) {
    segment->end = listed->end;
    segment->last_lsn = listed->last_lsn;
  }  // else, before the checkpoint's position: free, it holds nothing that counts
  return segment;
}

// A copy that is served beside the original would deliver everything twice.
Status SegmentLog::check_home(const ScanReport& report) const {
  if (options_.adopt || segments_.empty()) return {};
  const auto here = directory_.identity();
  const bool moved = report.home != 0 && here != 0 && report.home != here;
  const bool other_machine = !report.machine_id.is_nil() && !options_.machine_id.is_nil() &&
                             report.machine_id != options_.machine_id;
  if (!moved && !other_machine) return {};
  return Error{ErrorCode::kConflict,
               std::string("this spool was made ") +
                   (other_machine ? "on another machine" : "in another folder") +
                   ": it is a copy, or restored from one. If nothing serves the original any more, "
                   "run `dray spool adopt " +
                   directory_.path() + "`",
               directory_.path(), 0};
}

Status SegmentLog::check_missing(const Checkpoint& checkpoint, const Visitor& visitor,
                                 ScanReport& report) {
  for (const auto& entry : checkpoint.segments) {
    const auto there = std::find_if(segments_.begin(), segments_.end(), [&](const auto& segment) {
      return segment->header.number == entry.number;
    });
    if (entry.first_lsn > entry.last_lsn) continue;
    if (there != segments_.end()) {
      auto size = (*there)->file->size();
      if (!size.ok()) return size.error();
      if (*size >= entry.end) continue;
      // What is left of it is served; its groups find what is not as they read.
      (*there)->damaged = true;
      report.damaged.push_back({entry.number, *size, entry.first_lsn, entry.last_lsn,
                                "the segment is shorter than its checkpoint says"});
      continue;
    }
    damaged(visitor, report,
            {entry.number, 0, entry.first_lsn, entry.last_lsn, "the segment is missing"}, false);
  }
  return {};
}

Status SegmentLog::scan_segment(Segment& segment, std::uint64_t offset, Lsn limit,
                                const Visitor& visitor, ScanReport& report, Tail& tail) {
  auto file_size = segment.file->size();
  if (!file_size.ok()) return file_size.error();
  const std::uint64_t end = std::max(*file_size, offset);
  const bool last = limit == 0;  // else sealed
  // A view of the segment for the cursor: it is shared only with this scan.
  SegmentCursor cursor(std::shared_ptr<const Segment>(&segment, [](const Segment*) {}));
  std::uint64_t indexed_until = 0;
  const bool from_header = offset == kSegmentHeaderSize;
  tail.marker_last = true;  // a segment without records needs no rewriting
  tail.valid_end = offset;
  tail.file_end = end;
  segment.last_lsn = next_lsn_ - 1;
  // Whether a later record turns what is invalid here into damage; `resume`: where to go on.
  const auto look_behind = [&](std::uint64_t from) -> Result<std::uint64_t> {
    std::uint64_t first_valid = end;
    for (auto found = cursor.find(from, end);;
         found = cursor.find(*found + kRecordAlignment, end)) {
      if (!found.ok()) return found.error();
      if (*found >= end) return end;
      auto later = cursor.read(*found, end);
      if (!later.ok()) return later.error();
      if (!later->has_value()) continue;
      const auto& header = (*later)->header;
      if (header.lsn <= next_lsn_ || (!last && header.lsn >= limit)) continue;
      if (first_valid == end) first_valid = *found;
      const bool durable = header.durable_lsn >= next_lsn_ && !planted(Fault::kDamageIsTornTail);
      if (!last || durable || planted(Fault::kTornTailIsDamage)) return first_valid;
    }
  };
  while (offset < end && (last || next_lsn_ < limit)) {
    auto record = cursor.read(offset, end);
    if (!record.ok()) return record.error();
    if (!record->has_value() || (*record)->header.lsn < next_lsn_ ||
        (!last && (*record)->header.lsn >= limit)) {
      auto resume = look_behind(offset + kRecordAlignment);
      if (!resume.ok()) return resume.error();
      if (*resume == end) break;
      offset = *resume;
      continue;
    }
    const RecordHeader header = (*record)->header;
    if (header.type == RecordType::kLost) {  // given up, and reported then
      const Lsn first = visitor.gap(next_lsn_, true);
      report.given_up.push_back(
          {segment.header.number, offset, first, header.lsn, "given up by repair"});
    } else if (header.lsn > next_lsn_) {
      segment.damaged = true;
      damaged(visitor, report,
              {segment.header.number, tail.valid_end, next_lsn_, header.lsn - 1,
               "records fail their check"},
              true);
    }
    DRAY_TRY(visitor.record(**record));
    ++report.records;
    if (from_header && offset >= indexed_until) {
      segment.index.push_back({header.lsn, offset});
      indexed_until = offset + kIndexSpacing;
    }
    tail.durable = std::max(tail.durable, header.durable_lsn);
    tail.marker_last = header.type == RecordType::kMarker && header.durable_lsn + 1 == header.lsn;
    next_lsn_ = header.lsn + 1;
    offset += record_size(header.payload_size);
    tail.valid_end = offset;
    segment.last_lsn = header.lsn;
  }
  segment.end = tail.valid_end;
  if (!last && limit != kLimitUnknown && next_lsn_ < limit) {
    segment.damaged = true;
    damaged(
        visitor, report,
        {segment.header.number, tail.valid_end, next_lsn_, limit - 1, "records fail their check"},
        true);
    next_lsn_ = limit;
  }
  return {};
}

// S3, S7: what is cut is given back; what stays is written again where it may not be on the disk.
// After a failed write-back the page cache holds what the disk does not, and its pages are clean:
// a sync alone would write nothing. The same bytes at the same place are harmless if cut short
// again.
Status SegmentLog::finish_tail(Segment& segment, const Tail& tail, ScanReport& report) {
  report.clean = tail.marker_last;
  const std::uint64_t torn = tail.file_end - tail.valid_end;
  if (torn > 0) {
    std::string probe(static_cast<std::size_t>(std::min<std::uint64_t>(torn, kRecordHeaderSize)),
                      '\0');
    auto got = segment.file->read_at(tail.valid_end, probe.data(), probe.size());
    const bool zeros = got.ok() && probe.find_first_not_of('\0') == std::string::npos;
    if (!zeros && !report.clean) report.torn_bytes = torn;
    if (!zeros) report.clean = false;
  }
  // Also of a clean log: the marker that says so may be in the page cache only.
  if (!planted(Fault::kNoTailRewrite)) {
    std::uint64_t begin = kSegmentHeaderSize;
    for (const auto& entry : segment.index) {
      if (entry.lsn <= tail.durable + 1) begin = entry.offset;
    }
    DRAY_TRY(rewrite(segment, 0, kSegmentHeaderSize));
    DRAY_TRY(rewrite(segment, begin, tail.valid_end));
  }
  if (torn > 0) DRAY_TRY(segment.file->truncate(tail.valid_end));
  return segment.file->sync_data();
}

// Blocks that cannot be read stay as they are: their records were reported as damaged.
Status SegmentLog::rewrite(Segment& segment, std::uint64_t begin, std::uint64_t end) {
  std::string bytes;
  std::uint64_t by_block_until = 0;
  for (std::uint64_t offset = begin; offset < end;) {
    const bool by_block = offset < by_block_until;
    const std::uint64_t most = by_block ? kRewriteBlock - offset % kRewriteBlock : kScanPiece;
    bytes.resize(static_cast<std::size_t>(std::min(most, end - offset)));
    auto got = segment.file->read_at(offset, bytes.data(), bytes.size());
    if (!got.ok() && !by_block) {
      by_block_until = offset + bytes.size();
      continue;
    }
    if (got.ok()) DRAY_TRY(segment.file->write_at(offset, {bytes.data(), *got}));
    offset += bytes.size();
  }
  return {};
}

}  // namespace dray::spool
