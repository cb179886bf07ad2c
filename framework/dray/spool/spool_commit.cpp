// What becomes of the queue, by the committer threads or by a publisher that waits for it. A
// commit:
//
//   begin_commit()    takes the right to write (committing_), a turn and a chunk
//   write_ahead()     writes it, and what came meanwhile; releases the right: others write now
//   sync()            waits for the disk
//   await_turn()      until those before have ended
//   finish_ahead()    counts, tells the listener, gives the receipts
//   end_commit()      next
//
// What cannot be written ahead (commit_or_answer: through the page cache, into another segment, or
// not at all) keeps the right and waits for its turn first: it finds nothing on its way.
#include <bit>
#include <utility>

#include "dray/brief_lock.hpp"
#include "dray/spool/planted_fault.hpp"
#include "dray/spool/spool.hpp"
#include "dray/thread_traits.hpp"

namespace dray::spool {
namespace {

constexpr std::size_t kChunksKept = 4;
constexpr int kCommitters = 2;  // one writes while one syncs; of three one only waits
constexpr auto kLazyWaitMax = std::chrono::milliseconds(5);
constexpr auto kMarkerIdle = std::chrono::milliseconds(50);

}  // namespace

void Spool::start(CommitListener& listener) {
  DRAY_ASSERT(committers_.empty());
  {
    const std::lock_guard lock(mutex_);
    listener_ = &listener;
  }
  for (int i = 0; i < kCommitters; ++i) {
    committers_.emplace_back([this, &listener] {
      name_thread("dray-commit");
      take_slice(Slice::kShortest);
      run(listener);
    });
  }
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
  for (auto& committer : committers_) {
    if (committer.joinable()) committer.join();
  }
  {
    const std::lock_guard lock(upkeep_mutex_);
    upkeep_closing_ = true;
  }
  upkeep_work_.notify_all();
  if (upkeep_.joinable()) upkeep_.join();
}

// Nobody commits, and there is nothing to do that is a committer thread's. REQUIRES: mutex_ is
// held.
bool Spool::may_commit_here() const {
  return listener_ != nullptr && !committing_ && syncing_ == 0 && !closing_ && !snapshot_ &&
         queue_.size() == 1;
}

// What a callback throws ends the program, as on a committer thread: half a commit must not look
// like the failure of this publisher.
void Spool::commit_here(Commit mine) noexcept {
  room_.notify_all();
  commit(mine, *listener_);
  bool wake = false;
  {
    const auto lock = lock_briefly(mutex_);
    end_commit(std::move(mine));
    // A committer thread may have waited for this, or must know when a marker is due.
    wake = closing_ || snapshot_ || !queue_.empty() || (marker_due_ && !marker_timed_);
  }
  if (wake) work_.notify_one();
}

// REQUIRES: mutex_ is held, nobody may write, and there is something in the queue.
Spool::Commit Spool::begin_commit() {
  Commit begun;
  begun.begun = true;
  begun.turn = begun_++;
  committing_ = true;
  take_chunk(begun);
  return begun;
}

// REQUIRES: mutex_ is held, and there is something in the queue.
void Spool::take_chunk(Commit& commit) {
  commit.chunk = std::move(queue_.front());
  queue_.pop_front();
  const Chunk& chunk = *commit.chunk;
  commit.records += chunk.batch.size();
  commit.bytes += chunk.batch.bytes();
  expected_end_ = segments_->position().offset + chunk.batch.bytes();
  queue_items_ -= chunk.items();
  queue_bytes_ -= chunk.bytes;
  queue_urgent_ -= chunk.urgent;
  queue_lazy_entries_ -= chunk.lazy_entries;
  DRAY_ASSERT(!queue_.empty() || queue_items_ + queue_bytes_ + queue_urgent_ == 0);
}

// True: there is another chunk, to be written before they are synced. Else others may write while
// they are.
bool Spool::take_more_or_release(Commit& commit) {
  bool wake = false;
  {
    const auto lock = lock_briefly(mutex_);
    const bool small = commit.records < options_.sync_records && commit.bytes < options_.sync_bytes;
    if (small && is_worth_a_write()) {
      take_chunk(commit);
    } else {
      commit.released = true;
      committing_ = false;
      ++syncing_;
      wake = may_overlap();
    }
  }
  if (!commit.released) room_.notify_all();
  if (wake) work_.notify_one();
  return !commit.released;
}

void Spool::await_turn(const Commit& commit) {
  if (ended_.load(std::memory_order_acquire) == commit.turn) return;
  std::unique_lock lock(mutex_);
  while (ended_ != commit.turn) {
    turn_wanted_ = true;
    turn_.wait(lock);
  }
}

// It was this one's turn. REQUIRES: mutex_ is held.
void Spool::end_commit(Commit commit) {
  if (!commit.begun) return;
  DRAY_ASSERT(ended_ == commit.turn);
  ++ended_;
  if (std::exchange(turn_wanted_, false)) turn_.notify_all();
  if (commit.released) {
    --syncing_;
  } else {
    committing_ = false;
  }
  if (commit.wrote) {
    marker_due_ = true;
    committed_at_ = clock_.steady();
  }
  const auto keep = [this](std::unique_ptr<Chunk> chunk) {
    if (chunk != nullptr && chunks_free_.size() < kChunksKept) {
      chunks_free_.push_back(std::move(chunk));
    }
  };
  for (auto& each : commit.written) keep(std::move(each.chunk));
  keep(std::move(commit.chunk));
}

void Spool::run(CommitListener& listener) {
  for (Commit mine;;) {
    bool closing = false;
    bool marker = false;
    {
      auto lock = lock_briefly(mutex_);
      end_commit(std::exchange(mine, {}));
      if (wait_for_work(lock)) {
        mine = begin_commit();
      } else {
        closing = closing_ && queue_.empty();
        marker = marker_due_ && queue_.empty();
        committing_ = true;
      }
    }
    if (mine.begun) {
      room_.notify_all();
      commit(mine, listener);
      continue;
    }
    if (marker) write_marker(listener);
    pass_checkpoint_on(listener);
    {
      const auto lock = lock_briefly(mutex_);
      committing_ = false;
    }
    if (!closing) continue;
    work_.notify_all();
    break;
  }
}

void Spool::idle(CommitListener& listener) {
  bool marker = false;
  {
    const std::lock_guard lock(mutex_);
    marker = marker_due_;
  }
  if (marker) write_marker(listener);
}

// As two committer threads would, if the first is always slower to sync than the second to write.
void Spool::commit_pending(CommitListener& listener) {
  std::optional<Commit> before;  // is written
  const auto finish = [&](Commit done) {
    finish_ahead(done, listener, sync(done));
    commit_or_answer(done, listener);
    const std::lock_guard lock(mutex_);
    end_commit(std::move(done));
  };
  for (;;) {
    Commit next;
    {
      const std::lock_guard lock(mutex_);
      if (before ? may_overlap() : !queue_.empty()) next = begin_commit();
    }
    if (next.begun) write_ahead(next);
    const bool had = before.has_value();
    if (had) finish(std::move(*before));
    before.reset();
    if (!next.begun && !had) break;
    if (!next.begun) continue;
    if (next.released) {
      before = std::move(next);
    } else {
      finish(std::move(next));
    }
  }
  pass_checkpoint_on(listener);
}

// REQUIRES: mutex_ is held.
bool Spool::is_worth_a_write() const {
  return !closing_ && !snapshot_ && !queue_.empty() && queue_.front()->sync &&
         queue_.front()->bytes >= options_.worth_a_write;
}

// Whether the next chunk may be written while one is synced. REQUIRES: mutex_ is held.
bool Spool::may_overlap() const {
  return syncing_ == 1 && !committing_ && is_worth_a_write();
}

// True if there is a chunk to commit; false after the idle time, when closing with nothing, or for
// a checkpoint alone. Then nobody else commits.
bool Spool::wait_for_work(std::unique_lock<std::mutex>& lock) {
  for (;;) {
    if (committing_ || syncing_ > 0) {  // by another, who sees to it when it is through
      if (may_overlap()) return true;
      work_.wait(lock);
      continue;
    }
    if (snapshot_) return false;
    if (closing_ || queue_urgent_ > 0 || queue_lazy_entries_ >= kLazyEntriesMax) {
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

void Spool::commit(Commit& mine, CommitListener& listener) {
  write_ahead(mine);
  const Status synced = sync(mine);
  await_turn(mine);
  finish_ahead(mine, listener, synced);
  commit_or_answer(mine, listener);
}

// Until there is no more, and it is released; or until a chunk cannot be written so.
void Spool::write_ahead(Commit& commit) {
  do {
    Written written;
    if (!write_ahead(commit, written)) return;
    written.chunk = std::move(commit.chunk);
    commit.written.push_back(std::move(written));
  } while (take_more_or_release(commit));
}

// False: not so; when its turn has come there may be another way, or an answer.
bool Spool::write_ahead(Commit& commit, Written& written) {
  Chunk& chunk = *commit.chunk;
  if (!chunk.sync || failed_ || sync_failed_ || !takes_follow_ups()) return false;
  const Lsn first = segments_->next_lsn();
  const Lsn evidence = segments_->durable_lsn();
  auto ahead = segments_->write_ahead(chunk.batch);
  if (!ahead.ok()) {
    commit.tried = true;
    if (ahead.error().code != ErrorCode::kFull) write_failed_ = true;
    return false;
  }
  if (!*ahead) return false;
  note_written(chunk, 0, chunk.batch.size());
  written.ahead = std::move(**ahead);
  written.committed = describe(chunk, first, evidence);
  return true;
}

// They are all in one segment.
Status Spool::sync(const Commit& commit) {
  if (commit.written.empty()) return {};
  auto synced = SegmentLog::sync_ahead(commit.written.back().ahead);
  if (!synced.ok() && !planted(Fault::kNoLatch)) sync_failed_ = true;
  return synced;
}

void Spool::finish_ahead(Commit& commit, CommitListener& listener, const Status& synced) {
  for (auto& [chunk, ahead, committed] : commit.written) {
    if (!synced.ok()) {
      fail_unknown(*chunk, synced.error(), listener);
    } else if ((failed_ && !planted(Fault::kLaterSyncCounts)) || write_failed_) {
      // A write that failed may have spoilt the page that this one ends in.
      fail_unknown(*chunk, beside_failure(), listener);
    } else {
      segments_->count_ahead(ahead);
      durable_lsn_ = segments_->durable_lsn();
      commit.wrote = true;
      listener.on_committed(std::move(committed));
      answer_all(*chunk, Durability::kDisk);
    }
    chunk->clear();
  }
}

// What could not be written ahead, if there is any.
void Spool::commit_or_answer(Commit& commit, CommitListener& listener) {
  if (commit.chunk == nullptr) return;
  commit.wrote = commit_or_answer(*commit.chunk, commit.tried, listener) || commit.wrote;
  commit.chunk->clear();
}

Error Spool::beside_failure() const {
  return {ErrorCode::kIo, "a write or sync beside this one failed", directory_.path(), 0};
}

// True: it is written. What was tried may be on the disk: it is not refused.
bool Spool::commit_or_answer(Chunk& chunk, bool tried, CommitListener& listener) {
  if (failed_ && tried) {
    fail_unknown(chunk, beside_failure(), listener);
    return false;
  }
  if (failed_) {
    fail_publishes(chunk,
                   Error{ErrorCode::kClosed, "the spool failed; restart the program to recover it",
                         directory_.path(), 0});
    return false;
  }
  if (!tried && !refuse_for_room(chunk)) return false;
  const Lsn first = segments_->next_lsn();
  const Lsn evidence = segments_->durable_lsn();
  if (auto wrote = write(chunk); !wrote.ok()) {
    fail_unknown(chunk, wrote.error(), listener);
    return false;
  }
  durable_lsn_ = segments_->durable_lsn();
  const bool durable = durable_lsn_ + 1 == segments_->next_lsn();
  listener.on_committed(describe(chunk, first, evidence));
  answer_all(chunk, durable ? Durability::kDisk : Durability::kOs);
  return true;
}

// P7: the chunk may or may not be on disk; the next start finds out.
void Spool::fail_unknown(const Chunk& chunk, const Error& error, CommitListener& listener) {
  Error unknown = error;
  unknown.code = ErrorCode::kUnknown;
  unknown.message += "; whether this was stored is unknown, publish again with the same dedup id";
  fail(error, listener);
  fail_publishes(chunk, unknown);
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
    note_written(chunk, from, *until);
    from = *until;
  }
  return {};
}

// The next segment's opening says what was accepted before it.
void Spool::note_written(const Chunk& chunk, std::size_t from, std::size_t until) {
  for (const auto& stretch : chunk.batch.stretches()) {
    if (stretch.from < from || stretch.from >= until) continue;
    count_accepted(stretch.kind.groups, stretch.count);
    if (stretch.kind.type == RecordType::kGroup) {
      note_declared(chunk.batch.records().payload(stretch.from));
    }
  }
}

// The next segment's opening repeats it.
void Spool::note_declared(std::string_view payload) {
  auto record = from_bytes<GroupRecord>(payload);
  DRAY_ASSERT(record.ok() && record->id < declared_.size());  // the dispatcher made it
  auto& known = declared_[record->id];
  if (known.standing != GroupStanding::kDropped) known = std::move(*record);
}

Committed Spool::describe(const Chunk& chunk, Lsn first, Lsn evidence) const {
  Committed committed;
  committed.evidence = evidence;
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

void Spool::fail_publishes(const Chunk& chunk, const Error& error) {
  for (const auto& publish : chunk.publishes) answer(publish, error);
}

// S3: without it, rot in the last commits could not be told from a torn tail.
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
  committed.evidence = durable_lsn_;
  listener.on_committed(std::move(committed));
}

}  // namespace dray::spool
