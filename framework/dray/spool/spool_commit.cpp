// What becomes of the queue: one commit after the other, by the committer thread or by a publisher
// that waits for it.
#include <bit>
#include <utility>

#include "dray/brief_lock.hpp"
#include "dray/spool/planted_fault.hpp"
#include "dray/spool/spool.hpp"
#include "dray/thread_traits.hpp"

namespace dray::spool {
namespace {

constexpr std::size_t kChunksKept = 4;
constexpr auto kLazyWaitMax = std::chrono::milliseconds(5);
constexpr auto kMarkerIdle = std::chrono::milliseconds(50);

}  // namespace

void Spool::start(CommitListener& listener) {
  DRAY_ASSERT(!committer_.joinable());
  {
    const std::lock_guard lock(mutex_);
    listener_ = &listener;
  }
  committer_ = std::thread([this, &listener] {
    name_thread("dray-commit");
    take_slice(Slice::kShortest);
    run(listener);
  });
  start_upkeep(listener);
}

void Spool::start_upkeep(CommitListener& listener) {
  DRAY_ASSERT(!upkeep_.joinable());
  upkeep_ = std::thread([this, &listener] {
    name_thread("dray-upkeep");
    run_upkeep(listener);
  });
}

void Spool::stop() {
  {
    const std::lock_guard lock(mutex_);
    closing_ = true;
  }
  work_.notify_all();
  room_.notify_all();
  if (committer_.joinable()) committer_.join();
  {
    const std::lock_guard lock(upkeep_mutex_);
    upkeep_closing_ = true;
  }
  upkeep_work_.notify_all();
  if (upkeep_.joinable()) upkeep_.join();
}

// Nobody commits, and there is nothing to do that is the committer thread's. REQUIRES: mutex_ is
// held.
bool Spool::may_commit_here() const {
  return listener_ != nullptr && !committing_ && !closing_ && !snapshot_ && queue_.size() == 1;
}

// What a callback throws ends the program, as on the committer thread: half a commit must not look
// like the failure of this publisher.
void Spool::commit_here(std::unique_ptr<Chunk> chunk) noexcept {
  room_.notify_all();
  commit(*chunk, *listener_);
  bool wake = false;
  {
    const auto lock = lock_briefly(mutex_);
    end_commit(std::move(chunk));
    // The committer thread may have waited for this, or must know when a marker is due.
    wake = closing_ || snapshot_ || !queue_.empty() || (marker_due_ && !marker_timed_);
  }
  if (wake) work_.notify_one();
}

// Somebody else may commit now. REQUIRES: mutex_ is held.
void Spool::end_commit(std::unique_ptr<Chunk> chunk) {
  committing_ = false;
  if (std::exchange(wrote_, false)) {
    marker_due_ = true;
    committed_at_ = clock_.steady();
  }
  if (chunk != nullptr && chunks_free_.size() < kChunksKept) {
    chunks_free_.push_back(std::move(chunk));
  }
}

void Spool::run(CommitListener& listener) {
  std::unique_ptr<Chunk> chunk;
  for (bool committed = false;; committed = true) {
    bool closing = false;
    bool marker = false;
    {
      auto lock = lock_briefly(mutex_);
      if (committed) end_commit(std::exchange(chunk, nullptr));
      if (wait_for_work(lock)) chunk = take_chunk();
      closing = closing_ && chunk == nullptr;
      marker = chunk == nullptr && marker_due_;
      committing_ = true;
    }
    if (chunk != nullptr) {
      room_.notify_all();
      commit(*chunk, listener);
    } else if (marker) {
      write_marker(listener);
    }
    pass_checkpoint_on(listener);
    if (closing) break;
  }
  const std::lock_guard lock(mutex_);
  end_commit(nullptr);
}

void Spool::idle(CommitListener& listener) {
  bool marker = false;
  {
    const std::lock_guard lock(mutex_);
    marker = marker_due_;
  }
  if (marker) write_marker(listener);
}

void Spool::commit_pending(CommitListener& listener) {
  for (std::unique_ptr<Chunk> chunk;;) {
    {
      const std::lock_guard lock(mutex_);
      end_commit(std::exchange(chunk, nullptr));
      chunk = take_chunk();
    }
    if (chunk == nullptr) break;
    commit(*chunk, listener);
  }
  pass_checkpoint_on(listener);
}

// True if there is a batch to commit; false after the idle time, when closing with nothing, or for
// a checkpoint alone. Then nobody else commits.
bool Spool::wait_for_work(std::unique_lock<std::mutex>& lock) {
  for (;;) {
    if (committing_) {  // by a publisher, who says when it is through
      work_.wait(lock);
      continue;
    }
    if (closing_ || snapshot_ || queue_urgent_ > 0 || queue_lazy_entries_ >= kLazyEntriesMax) {
      return !queue_.empty();
    }
    if (queue_lazy_entries_ > 0) {
      const auto waited = clock_.steady() - lazy_since_;
      if (waited >= kLazyWaitMax) return true;
      work_.wait_for(lock, kLazyWaitMax - waited);
      continue;
    }
    if (!marker_due_) {
      work_.wait(lock);
      continue;
    }
    const auto idle = clock_.steady() - committed_at_;
    if (idle >= kMarkerIdle) return false;
    marker_timed_ = true;
    work_.wait_for(lock, kMarkerIdle - idle);
    marker_timed_ = false;
  }
}

// Nothing if the queue is empty. REQUIRES: mutex_ is held.
std::unique_ptr<Spool::Chunk> Spool::take_chunk() {
  if (queue_.empty()) return nullptr;
  auto chunk = std::move(queue_.front());
  queue_.pop_front();
  expected_end_ = segments_->position().offset + chunk->batch.bytes();
  queue_items_ -= chunk->items();
  queue_bytes_ -= chunk->bytes;
  queue_urgent_ -= chunk->urgent;
  queue_lazy_entries_ -= chunk->lazy_entries;
  DRAY_ASSERT(!queue_.empty() || queue_items_ + queue_bytes_ + queue_urgent_ == 0);
  return chunk;
}

// Empties the chunk: nobody waits for that.
void Spool::commit(Chunk& chunk, CommitListener& listener) {
  commit_or_answer(chunk, listener);
  chunk.clear();
}

void Spool::commit_or_answer(Chunk& chunk, CommitListener& listener) {
  if (failed_) {
    return fail_publishes(
        chunk, Error{ErrorCode::kClosed, "the spool failed; restart the program to recover it",
                     directory_.path(), 0});
  }
  if (!refuse_for_room(chunk)) return;
  const Lsn first = segments_->next_lsn();
  if (auto wrote = write(chunk); !wrote.ok()) {
    // P7: the chunk may or may not be on disk; the next start finds out.
    Error unknown = wrote.error();
    unknown.code = ErrorCode::kUnknown;
    unknown.message += "; whether this was stored is unknown, publish again with the same dedup id";
    fail(wrote.error(), listener);
    return fail_publishes(chunk, unknown);
  }
  wrote_ = true;
  durable_lsn_ = segments_->durable_lsn();
  const bool durable = durable_lsn_ + 1 == segments_->next_lsn();
  listener.on_committed(describe(chunk, first));
  answer_all(chunk, durable ? Durability::kDisk : Durability::kOs);
}

void Spool::answer_all(const Chunk& chunk, Durability durability) {
  const auto* stretch = chunk.batch.stretches().data();
  for (const auto& publish : chunk.publishes) {
    while (publish.record >= stretch->until()) ++stretch;
    answer(publish,
           Receipt{publish.id, stretch->lsn + (publish.record - stretch->from), durability, false});
  }
}

Status Spool::write(Chunk& chunk) {
  for (std::size_t from = 0; from < chunk.batch.size();) {
    const auto until = segments_->write(chunk.batch, from, chunk.sync);
    if (!until.ok()) return until.error();
    // The next segment's opening says what was accepted before it.
    for (const auto& stretch : chunk.batch.stretches()) {
      if (stretch.from < from || stretch.from >= *until) continue;
      count_accepted(stretch.kind.groups, stretch.count);
      if (stretch.kind.type == RecordType::kGroup) {
        note_declared(chunk.batch.records().payload(stretch.from));
      }
    }
    from = *until;
  }
  return {};
}

// The next segment's opening repeats it.
void Spool::note_declared(std::string_view payload) {
  auto record = from_bytes<GroupRecord>(payload);
  DRAY_ASSERT(record.ok() && record->id < declared_.size());  // the dispatcher made it
  auto& known = declared_[record->id];
  if (known.standing != GroupStanding::kDropped) known = std::move(*record);
}

Committed Spool::describe(const Chunk& chunk, Lsn first) const {
  Committed committed;
  committed.first = first;
  committed.last = segments_->next_lsn() - 1;
  committed.position = segments_->position();
  committed.records = chunk.batch.share();
  const auto& stretches = chunk.batch.stretches();
  for (const auto& [kind, from, count, lsn] : stretches) {
    if (kind.type != RecordType::kMessage) continue;
    committed.runs.push_back({lsn, count, from, kind.groups, priority_of(kind.flags),
                              (kind.flags & kHasKey) != 0, kind.deliver_at_ms, kind.expires_at_ms});
  }
  const auto* stretch = stretches.data();
  for (const auto& each : chunk.submitted) {
    if (each.ticket == 0) continue;
    while (each.record >= stretch->until()) ++stretch;
    committed.tickets.emplace_back(each.ticket, stretch->lsn + (each.record - stretch->from));
  }
  committed.checkpoint_due = checkpoint_is_due();
  return committed;
}

// P7: what was queued while there was room must not eat the reserve that settling needs. False if
// nothing is left to commit.
bool Spool::refuse_for_room(Chunk& chunk) {
  if (segments_->spares().has_reserve() && segments_->bytes_total() < options_.max_size) {
    return true;
  }
  const Error full{ErrorCode::kFull, "the disk or the spool is full", directory_.path(), 0};
  for (const auto& publish : chunk.publishes) answer(publish, full);
  Chunk kept(buffers_);
  kept.sync = chunk.sync;
  auto stretch = chunk.batch.stretches().begin();
  for (const auto& each : chunk.submitted) {
    const std::uint32_t until = each.record + each.count;
    kept.submitted.push_back(
        {static_cast<std::uint32_t>(kept.batch.size()), each.count, each.ticket});
    while (each.record >= stretch->until()) ++stretch;
    for (auto part = stretch; part != chunk.batch.stretches().end() && part->from < until; ++part) {
      kept.batch.add_from(chunk.batch, *part, each.record, until);
    }
  }
  chunk = std::move(kept);
  return chunk.items() != 0;
}

void Spool::count_accepted(GroupMask groups, std::uint64_t messages) {
  for (; groups != 0; groups &= groups - 1) {
    accepted_[static_cast<std::size_t>(std::countr_zero(groups))] += messages;
  }
}

void Spool::fail(const Error& error, CommitListener& listener) {
  if (planted(Fault::kNoLatch)) return;
  if (failed_.exchange(true)) return;  // S5
  log_.error("the spool is poisoned: " + error.text());
  listener.on_failed(error);
  room_.notify_all();
}

void Spool::fail_publishes(Chunk& chunk, const Error& error) {
  for (const auto& publish : chunk.publishes) answer(publish, error);
}

// S3: without it, rot in the last batch could not be told from a torn tail.
void Spool::write_marker(CommitListener& listener) {
  {
    const std::lock_guard lock(mutex_);
    marker_due_ = false;
  }
  if (failed_) return;
  Status status = segments_->sync();
  // What is settled gives its room back by whole segments: one that is not full would keep it.
  if (status.ok() && wants_room()) status = segments_->start_next();
  Committed committed;
  committed.first = committed.last = segments_->next_lsn();
  if (status.ok()) {
    MarkerRecord marker;
    marker.accepted.assign(accepted_.begin(),
                           accepted_.begin() + static_cast<std::ptrdiff_t>(declared_.size()));
    const auto written = segments_->write_record(RecordType::kMarker, to_bytes(marker));
    if (!written.ok()) status = written.error();
  }
  if (!status.ok()) return fail(status.error(), listener);
  durable_lsn_ = segments_->durable_lsn();
  {
    const std::lock_guard lock(mutex_);
    if (queue_.empty()) expected_end_ = segments_->position().offset;
  }
  committed.last = segments_->next_lsn() - 1;
  committed.position = segments_->position();
  listener.on_committed(std::move(committed));
}

}  // namespace dray::spool
