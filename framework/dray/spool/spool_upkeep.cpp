// What a spool does beside committing: checkpoints, freeing segments, and files ready ahead of
// their use.
#include <algorithm>
#include <bit>

#include "dray/spool/planted_fault.hpp"
#include "dray/spool/spool.hpp"

namespace dray::spool {
namespace {

constexpr std::size_t kDedupPiece = 4'096;  // entries
constexpr auto kRoomRetry = std::chrono::milliseconds(250);
// A file is filled ahead in slices, each followed by a pause: a short one while the file would
// not be ready by the time the current segment is full. First writes into a file without blocks
// cost the file system's own commit each.
constexpr auto kPreparePause = std::chrono::milliseconds(10);
constexpr auto kPreparePauseBehind = std::chrono::milliseconds(1);
constexpr double kPrepareFrom = 0.25;  // of the current segment
// A checkpoint costs at most 1/16 of what the log writes.
constexpr std::uint64_t kCheckpointShare = 16;
constexpr std::uint64_t kCheckpointFrom = 8;  // of a segment: where it is due
constexpr std::uint64_t kCheckpointRoomMin = 64U << 10;

}  // namespace

void Spool::checkpoint(Snapshot snapshot) {
  if (checkpoint_under_way_.exchange(true)) return;
  {
    const std::lock_guard lock(mutex_);
    snapshot_ = std::move(snapshot);
  }
  work_.notify_one();
}

// Where messages are settled as they come, all before a segment is settled when an eighth of it is
// written. A checkpoint at that place frees a file before one would have to be made (kPrepareFrom).
bool Spool::checkpoint_is_due() const {
  const std::uint64_t segment = options_.log.segment_size;
  const std::uint64_t interval = std::max(segment, checkpoint_bytes_ * kCheckpointShare);
  const std::uint64_t written = segments_->bytes_appended() - checkpointed_at_;
  if (written >= interval) return true;
  // The first of a run at once, if it is small: a segment that no checkpoint lists hangs on its
  // header alone.
  if (checkpointed_segment_ == 0 && interval == segment) return true;
  return written + segment / 4 >= interval &&
         segments_->position().segment != checkpointed_segment_ &&
         segments_->current_bytes() >= segment / kCheckpointFrom;
}

// S8: a checkpoint never speaks of records that are not durable.
void Spool::pass_checkpoint_on(CommitListener& listener) {
  if (!checkpoint_under_way_) return;
  std::optional<Snapshot> snapshot;
  {
    const std::lock_guard lock(mutex_);
    snapshot = std::exchange(snapshot_, std::nullopt);
  }
  if (!snapshot || failed_) return;
  if (segments_->durable_lsn() < snapshot->lsn && !planted(Fault::kCheckpointAhead)) {
    if (auto synced = segments_->sync(); !synced.ok()) return fail(synced.error(), listener);
    durable_lsn_ = segments_->durable_lsn();
  }
  checkpointed_at_ = segments_->bytes_appended();
  checkpointed_segment_ = segments_->position().segment;
  {
    const std::lock_guard lock(upkeep_mutex_);
    durable_snapshot_ = std::move(snapshot);
  }
  upkeep_work_.notify_one();
}

void Spool::checkpoint_at_stop(const Snapshot& snapshot) {
  struct Ignore final : CommitListener {
    void on_committed(Committed) override {}
    void on_failed(const Error&) override {}
  } ignore;
  if (failed_ || !segments_->sync().ok()) return;
  write_checkpoint(snapshot, ignore);
}

void Spool::run_upkeep(CommitListener& listener) {
  std::uint64_t bytes_seen = 0;
  for (;;) {
    const std::uint64_t bytes = segments_->current_bytes();
    const bool idle = std::exchange(bytes_seen, bytes) == bytes;
    const std::uint64_t filled = segments_->spares().filled();
    const double from = kPrepareFrom * static_cast<double>(options_.log.segment_size);
    const bool behind = bytes > filled && static_cast<double>(bytes) > from;
    // Where messages are settled as they come, a segment is freed before a file must be made. What
    // a burst uses up of the room made for it is made again after the burst.
    const bool begun = filled > 0 && !segments_->spares().has_whole();
    const bool wanted = idle || behind || begun || segments_->current_grows();
    {
      std::unique_lock lock(upkeep_mutex_);
      const bool soon = behind || (idle && segments_->spares().behind());
      upkeep_work_.wait_for(lock, soon ? kPreparePauseBehind : kPreparePause,
                            [&] { return upkeep_closing_ || durable_snapshot_.has_value(); });
      if (upkeep_closing_ && !durable_snapshot_) return;
    }
    upkeep(listener);
    bool more = false;
    // While nothing is written, or too much, it may take longer.
    if (!failed_ && wanted) more = segments_->spares().prepare(behind || idle);
    std::unique_lock lock(upkeep_mutex_);
    if (more || !wanted || upkeep_closing_ || durable_snapshot_) continue;
    upkeep_work_.wait_for(lock, kRoomRetry,
                          [&] { return upkeep_closing_ || durable_snapshot_.has_value(); });
  }
}

void Spool::upkeep(CommitListener& listener) {
  std::optional<Snapshot> snapshot;
  {
    const std::lock_guard lock(upkeep_mutex_);
    snapshot = std::exchange(durable_snapshot_, std::nullopt);
  }
  if (snapshot && !failed_) write_checkpoint(*snapshot, listener);
  if (snapshot) checkpoint_under_way_ = false;
  refresh_room();
}

void Spool::write_checkpoint(const Snapshot& snapshot, CommitListener& listener) {
  Checkpoint checkpoint;
  checkpoint.number = ++checkpoint_number_;
  checkpoint.spool.bytes = std::string(id_.view());
  checkpoint.lsn = snapshot.lsn;
  checkpoint.position = snapshot.position;
  checkpoint.epoch = epoch_;
  checkpoint.at_ms = clock_.utc().time_since_epoch().count();
  checkpoint.segments = segments_->entries(snapshot.lsn, snapshot.position, snapshot.dead);
  checkpoint.groups = snapshot.groups;
  checkpoint.sessions = snapshot.sessions;
  checkpoint.owner = owner();
  // Publishers wait for a piece of it, not for all.
  bool more = true;
  std::size_t size = 0;
  {
    const std::lock_guard lock(dedup_mutex_);
    size = dedup_.size();
  }
  checkpoint.dedup.bytes.reserve((size + kDedupPiece) * DedupWindow::kEntrySize);
  for (std::uint64_t position = 0; more;) {
    const std::lock_guard lock(dedup_mutex_);
    more = dedup_.snapshot(snapshot.lsn, position, kDedupPiece, checkpoint.dedup.bytes);
  }
  const std::string bytes = encode(checkpoint);
  checkpoint_bytes_ = bytes.size();
  Status written = checkpoints_.write(bytes);
  // Freeing needs checkpoints: what is kept for that makes room for one, and what is freed makes it
  // again. The reserve does so too, unless it is a segment by now.
  auto& spares = segments_->spares();
  const auto no_room = [&] { return !written.ok() && written.error().code == ErrorCode::kFull; };
  if (no_room() && spares.release_checkpoint_room()) written = checkpoints_.write(bytes);
  if (no_room()) {
    spares.release_reserve();
    written = checkpoints_.write(bytes);
  }
  if (!written.ok()) {
    // Without room, or with too many open files: another time.
    const auto code = written.error().code;
    if (code != ErrorCode::kFull && code != ErrorCode::kBusy) fail(written.error(), listener);
    return;
  }
  // S9: both kept checkpoints leave them out.
  std::set<std::uint64_t> freed;
  for (const auto number : snapshot.dead) {
    const bool both = dead_before_.count(number) != 0 || planted(Fault::kOneCheckpointFrees);
    if (both) freed.insert(number);
  }
  dead_before_ = snapshot.dead;
  if (freed.empty()) return;
  if (auto done = segments_->release(freed); !done.ok()) fail(done.error(), listener);
}

// Room to settle, and to free what is settled.
bool Spool::ensure_reserves() {
  auto& spares = segments_->spares();
  const std::uint64_t checkpoint = std::max(kCheckpointRoomMin, 2 * checkpoint_bytes_);
  const bool reserve = spares.ensure_reserve();
  return spares.ensure_checkpoint_room(std::bit_ceil(checkpoint)) && reserve;
}

void Spool::refresh_room() {
  if (failed_) return;
  const auto now = clock_.steady();
  if (disk_full_ && now - room_tried_at_ < kRoomRetry) return;
  room_tried_at_ = now;
  const bool room = ensure_reserves();
  if (room == disk_full_) {
    if (room) {
      log_.info("the disk has room again: messages are accepted");
    } else {
      log_.error("the disk is full: new messages are refused, settling goes on");
    }
    disk_full_ = !room;
  }
}

}  // namespace dray::spool
