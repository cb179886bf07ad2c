#include "dray/spool/segment_log.hpp"

#include <algorithm>

#include "dray/spool/planted_fault.hpp"

namespace dray::spool {
namespace {

constexpr std::size_t kPrefetch = 8;  // records
constexpr Lsn kReadBackNear = 1U << 20;
constexpr std::uint64_t kRestShare = 64;  // of a segment, at its end

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
  DRAY_TRY(roll(false));
  for (const auto& name : aside_) DRAY_TRY(directory_.rename(name, kept_name(directory_, name)));
  return aside_.empty() ? Status() : directory_.sync();
}

// --- files that are kept aside --------------------------------------------------------------

namespace {
constexpr std::string_view kKept = ".quarantine";
}

std::string kept_name(Directory& directory, const std::string& name) {
  const auto names = directory.list();
  const auto is_taken = [&](const std::string& wanted) {
    return names.ok() && std::find(names->begin(), names->end(), wanted) != names->end();
  };
  std::string kept = name + std::string(kKept);
  for (int i = 2; is_taken(kept); ++i) kept = name + "." + std::to_string(i) + std::string(kKept);
  return kept;
}

std::optional<std::uint64_t> kept_number(std::string_view name) {
  if (!name.ends_with(kKept)) return std::nullopt;
  name.remove_suffix(kKept.size());
  const auto digits = name.find_last_not_of("0123456789");
  if (digits != std::string_view::npos && name[digits] == '.') name = name.substr(0, digits);
  return segment_number(name);
}

// --- segments -------------------------------------------------------------------------------

// S3: anything invalid in a sealed segment is damage, so all of it is synced before the next one
// begins.
Status SegmentLog::seal() {
  if (!unsynced_ || planted(Fault::kNoSealSync)) return {};
  DRAY_TRY(current_->file->sync_data());
  unsynced_ = false;
  durable_lsn_ = current_->last_lsn.load();
  return {};
}

Status SegmentLog::roll(bool whole) {
  if (auto spare = spares_.take(whole)) return use(std::move(*spare));
  if (!whole) {
    auto fresh = spares_.create();
    if (fresh.ok()) {
      Status used = use(*fresh);
      if (used.ok() || used.error().code != ErrorCode::kFull) return used;
      fresh->file.reset();
      (void)directory_.remove(fresh->name);
    } else if (fresh.error().code != ErrorCode::kFull && fresh.error().code != ErrorCode::kBusy) {
      return fresh.error();
    }
    if (auto spare = spares_.take(true)) return use(std::move(*spare));
  }
  return Error{ErrorCode::kFull, "the disk is full and the reserve is used up", directory_.path(),
               0};
}

Status SegmentLog::use(SpareSegments::Spare spare) {
  auto segment = std::make_shared<Segment>();
  segment->header.spool_id = spool_id_;
  segment->header.number = next_segment_;
  segment->header.epoch = epoch_;
  segment->header.epoch_random = epoch_random_;
  segment->header.first_lsn = next_lsn_;
  segment->header.created_at = clock_.utc();
  segment->header.machine_id = options_.machine_id;
  segment->header.home = directory_.identity();
  segment->seed = segment_seed(segment->header);
  segment->last_lsn = next_lsn_ - 1;
  segment->file = std::move(spare.file);
  // S4: header, sync, name, sync of the name; only then a record.
  DRAY_TRY(segment->file->write_at(0, encode_segment_header(segment->header)));
  if (!planted(Fault::kNoHeaderSync)) DRAY_TRY(segment->file->sync_data());
  DRAY_TRY(directory_.rename(spare.name, segment_name(next_segment_)));
  if (!planted(Fault::kNoSegmentNameSync)) DRAY_TRY(directory_.sync());
  segment->end = kSegmentHeaderSize;
  capacity_ = spare.confined ? spare.size : options_.segment_size;
  ++next_segment_;
  fresh_index_.clear();
  indexed_until_ = 0;
  end_ = kSegmentHeaderSize;
  current_bytes_ = end_;
  bytes_total_ += kSegmentHeaderSize;
  if (current_ != nullptr) current_->file->rest();
  current_ = segment;
  blank_ = true;
  growing_ = spare.size < capacity_ - capacity_ / 8;
  blocks_until_ = spare.size;
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

Status SegmentLog::release(const std::set<std::uint64_t>& numbers) {
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
  // Those kept as spares get their names now and are handed over once no name is the old one.
  std::vector<SpareSegments::Spare> recycled;
  for (const auto& segment : freed) {
    const std::string name = segment_name(segment->header.number);
    bytes_total_ -= segment->end;
    const auto size = segment->file->size();
    if (segment->damaged) {
      DRAY_TRY(directory_.rename(name, kept_name(directory_, name)));
    } else if (size.ok() && spares_.wants_recycled(*size, recycled.size())) {
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

Result<std::size_t> SegmentLog::write(Batch& batch, std::size_t from, bool sync) {
  DRAY_ASSERT(current_ != nullptr && from < batch.size());
  if (!failed_.empty()) return failed_.front().error();
  for (bool in_reserve = false;;) {
    Status done = opening_due_ ? write_opening() : Status();
    if (done.ok()) {
      const std::size_t until = better_segment_ready() ? from : fit(batch, from);
      if (until == from) {
        done = seal();
        if (done.ok()) done = roll(false);
        if (!done.ok()) return fail(done.error()).error();
        continue;
      }
      done = write_records(batch, from, until, sync && until == batch.size());
      if (done.ok()) return until;
    }
    if (done.error().code != ErrorCode::kFull || in_reserve) return fail(done.error()).error();
    // The disk is full: the same records go to a file that has its blocks. What was written of them
    // here lies behind the end of the sealed segment and counts for nothing.
    in_reserve = true;
    done = seal();
    if (done.ok()) done = roll(true);
    if (!done.ok()) return fail(done.error()).error();
  }
}

Status SegmentLog::start_next() {
  if (!failed_.empty()) return failed_.front();
  Status done = seal();
  if (done.ok()) done = roll(false);
  return done.ok() ? done : fail(done.error());
}

Result<Lsn> SegmentLog::write_record(RecordType type, std::string_view payload) {
  single_.clear();
  single_.add({type}, payload);
  const auto written = write(single_, 0, false);
  if (!written.ok()) return written.error();
  return single_.stretches().front().lsn;
}

Status SegmentLog::sync() {
  if (!failed_.empty()) return failed_.front();
  if (unsynced_ && !planted(Fault::kNoCommitSync)) {
    if (auto synced = current_->file->sync_data(); !synced.ok()) return fail(synced.error());
    unsynced_ = false;
  }
  durable_lsn_ = next_lsn_ - 1;  // S1
  return {};
}

Status SegmentLog::write_opening() {
  const std::string payload = opening_();
  std::string bytes;
  RecordHeader header;
  header.type = RecordType::kOpening;
  header.lsn = next_lsn_;
  header.durable_lsn = durable_lsn_;
  append_record(bytes, current_->seed, end_, header, payload);
  fresh_index_.push_back({next_lsn_, end_});
  indexed_until_ = end_ + kIndexSpacing;
  DRAY_TRY(put({bytes, 0, 0, next_lsn_}, false));
  if (planted(Fault::kNoHeaderSync)) unsynced_ = false;  // else the next sync is the header's too
  opening_due_ = false;
  return {};
}

// A file that grows with every write costs the file system's own commit each time: it is left
// as soon as there is one whose blocks are all there.
bool SegmentLog::better_segment_ready() const {
  return growing_ && !blank_ && end_ >= blocks_until_ && spares_.has_whole();
}

// How far the records from `from` on go into this segment, in whole units. One that is larger than
// a segment gets a segment of its own.
std::size_t SegmentLog::fit(const Batch& batch, std::size_t from) const {
  const auto& records = batch.records();
  const auto extent = [&](std::size_t until) {
    return records.offset(until) - records.offset(from);
  };
  const std::uint64_t room = capacity_ > end_ ? capacity_ - end_ : 0;
  if (extent(records.size()) <= room) return records.size();
  // A little that is left costs a write and a sync of its own.
  if (!blank_ && room < capacity_ / kRestShare) return from;
  std::size_t until = from;
  for (std::size_t unit = from; unit < records.size(); until = unit) {
    while ((records.flags(unit) & kContinues) != 0 && unit + 1 < records.size()) ++unit;
    ++unit;
    const bool alone = blank_ && until == from;
    if (extent(unit) > room && !alone) break;
  }
  return until;
}

// Numbers and seals the records [from, until), and pads them.
SegmentLog::Sealed SegmentLog::seal_records(Batch& batch, std::size_t from, std::size_t until) {
  auto& records = *batch.records_;
  const std::size_t begin = records.offset(from);
  const std::size_t size = records.offset(until) - begin;
  // A page is written whole when it is begun: what was filled ahead is not in memory, and would be
  // read before a part of it can be written.
  const std::uint64_t behind = end_ + size;
  const std::uint64_t page_end =
      std::min<std::uint64_t>((behind + kPageSize - 1) / kPageSize * kPageSize, capacity_);
  const std::size_t padding =
      until == batch.size() && page_end > behind ? static_cast<std::size_t>(page_end - behind) : 0;
  records.pad(padding);
  char* const bytes = records.data();
  const Lsn durable = durable_lsn();
  Lsn lsn = next_lsn_;
  for (std::size_t i = from; i < until; ++i, ++lsn) {
    // Another thread made them: they are in its processor's cache.
    if (i + kPrefetch < until) __builtin_prefetch(bytes + records.offset(i + kPrefetch), 1);
    const std::uint64_t offset = end_ + records.offset(i) - begin;
    seal_record(bytes + records.offset(i), current_->seed, offset, lsn, durable);
    if (offset < indexed_until_) continue;
    fresh_index_.push_back({lsn, offset});
    indexed_until_ = offset + kIndexSpacing;
  }
  number_stretches(batch, static_cast<std::uint32_t>(from), static_cast<std::uint32_t>(until));
  // Before the others lie records that were written already, and are read by now.
  const std::size_t room_before = from == 0 ? records.room_before() : 0;
  return {{bytes + begin, size + padding}, padding, room_before, lsn - 1};
}

Status SegmentLog::write_records(Batch& batch, std::size_t from, std::size_t until, bool sync) {
  DRAY_TRY(put(seal_records(batch, from, until), sync));
  blank_ = false;
  return {};
}

Result<std::optional<SegmentLog::Ahead>> SegmentLog::write_ahead(Batch& batch) {
  DRAY_ASSERT(current_ != nullptr && batch.size() > 0);
  const bool possible = failed_.empty() && !opening_due_ && !unsynced_ && !better_segment_ready() &&
                        caching() == Caching::kPast && fit(batch, 0) == batch.size();
  if (!possible) return std::optional<Ahead>();
  const std::uint64_t indexed_until = indexed_until_;
  const Sealed sealed = seal_records(batch, 0, batch.size());
  const auto wrote = current_->file->write_ahead_at(end_, sealed.bytes, sealed.room_before);
  if (!wrote.ok() && wrote.error().code != ErrorCode::kFull) return fail(wrote.error()).error();
  if (!wrote.ok() || !*wrote) {
    fresh_index_.clear();
    indexed_until_ = indexed_until;
    return wrote.ok() ? Result<std::optional<Ahead>>(std::nullopt) : wrote.error();
  }
  blank_ = false;
  advance(sealed);
  return std::optional(Ahead{current_, sealed.last, end_});
}

Status SegmentLog::sync_ahead(const Ahead& ahead) {
  if (planted(Fault::kNoCommitSync)) return {};
  auto synced = ahead.segment->file->sync_data();
  if (synced.ok()) return {};
  Error error = synced.error();
  error.code = ErrorCode::kIo;
  return error;
}

void SegmentLog::count_ahead(const Ahead& ahead) {
  durable_lsn_ = ahead.last;  // S1
  ahead.segment->last_lsn = ahead.last;
  ahead.segment->end.store(ahead.end, std::memory_order_release);
}

// The records [from, until) get the next numbers; those behind them get theirs in another segment.
void SegmentLog::number_stretches(Batch& batch, std::uint32_t from, std::uint32_t until) const {
  batch.split(from);
  batch.split(until);
  for (auto& stretch : batch.stretches_) {
    if (stretch.from >= from && stretch.from < until) {
      stretch.lsn = next_lsn_ + stretch.from - from;
    }
  }
}

// What will be read back soon goes through the page cache. For a reader that is far behind it would
// only push out what it reads first.
Caching SegmentLog::caching() const {
  const Lsn read_back = read_back_.load(std::memory_order_relaxed);
  const bool reads = read_back != read_back_seen_ || read_back_commits_ > 0;
  const bool near = next_lsn_ - std::min(next_lsn_, read_back) < kReadBackNear;
  return reads && near ? Caching::kKeep : Caching::kPast;
}

// Once for each write.
void SegmentLog::note_readers() {
  const Lsn read_back = read_back_.load(std::memory_order_relaxed);
  if (read_back != read_back_seen_) {
    read_back_seen_ = read_back;
    read_back_commits_ = options_.read_back_commits;
  } else if (read_back_commits_ > 0) {
    --read_back_commits_;
  }
}

// Writes behind the last record.
Status SegmentLog::put(const Sealed& sealed, bool sync) {
  // One call writes and syncs these bytes alone: all before them is durable. So it may be repeated
  // elsewhere if the disk is full, whichever half of it found that out.
  const bool one_call = sync && !unsynced_;
  DRAY_TRY(
      one_call && !planted(Fault::kNoCommitSync)
          ? current_->file->write_durable_at(end_, sealed.bytes, {caching(), sealed.room_before})
          : current_->file->write_at(end_, sealed.bytes));
  unsynced_ = !one_call;
  if (sync && unsynced_ && !planted(Fault::kNoCommitSync)) {
    if (auto synced = current_->file->sync_data(); !synced.ok()) {
      // P7: not to be mended by writing elsewhere; what was written before may be lost with it.
      Error error = synced.error();
      error.code = ErrorCode::kIo;
      return error;
    }
    unsynced_ = false;
  }
  advance(sealed);
  if (sync) durable_lsn_ = sealed.last;  // S1
  current_->last_lsn = sealed.last;
  current_->end.store(end_, std::memory_order_release);
  return {};
}

// They are written.
void SegmentLog::advance(const Sealed& sealed) {
  note_readers();
  const std::uint64_t records = sealed.bytes.size() - sealed.padding;
  next_lsn_ = sealed.last + 1;
  end_ += records;
  current_bytes_ = end_;
  bytes_total_ += records;
  bytes_appended_ += records;
  const auto index = std::exchange(fresh_index_, {});
  if (index.empty()) return;
  const std::lock_guard lock(mutex_);
  current_->index.insert(current_->index.end(), index.begin(), index.end());
}

Status SegmentLog::fail(Error error) {
  if (planted(Fault::kNoLatch)) return error;
  if (failed_.empty()) failed_.emplace_back(std::move(error));  // S5
  return failed_.front();
}

}  // namespace dray::spool
