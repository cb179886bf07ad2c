#include "dray/spool/spool.hpp"

#include <algorithm>
#include <bit>
#include <future>

#include "dray/brief_lock.hpp"
#include "dray/spool/planted_fault.hpp"
#include "dray/thread_traits.hpp"

namespace dray::spool {
namespace {

constexpr std::uint64_t kWorthRolling = 64U << 10;  // bytes of a segment
constexpr std::size_t kQueueItemsMax = 1U << 16;
constexpr std::size_t kQueueBytesMax = 64U << 20;
constexpr std::size_t kChunkRecordsMax = 1024;
constexpr std::size_t kChunkBytesMax = 512U << 10;
constexpr std::size_t kChunksKept = 4;
constexpr std::size_t kPageSize = 4096;
constexpr std::size_t kEncodeBytesKept = 1U << 20;  // per publishing thread
constexpr std::size_t kLazyEntriesMax = 256;
constexpr auto kLazyWaitMax = std::chrono::milliseconds(5);
constexpr auto kMarkerIdle = std::chrono::milliseconds(50);

std::int64_t to_ms(const std::optional<UtcTime>& time) {
  return time ? time->time_since_epoch().count() : 0;
}

}  // namespace

void Spool::Chunk::clear() {
  batch.clear();
  publishes.clear();
  submitted.clear();
  sync = false;
  bytes = urgent = lazy_entries = 0;
}

Spool::Spool(Directory& directory, const Clock& clock, SpoolOptions options, Log log)
    : directory_(directory),
      clock_(clock),
      options_(std::move(options)),
      log_(std::move(log)),
      checkpoints_(directory),
      dedup_(options_.dedup) {}

Spool::~Spool() {
  stop();
}

// --- publish --------------------------------------------------------------------------------

std::optional<GroupMask> Spool::route(std::string_view topic) const {
  const GroupMask* groups = routes_.find(topic);
  return groups == nullptr ? std::nullopt : std::optional(*groups);
}

// Settlements go on when messages are refused. They need no more than this: segments that hold
// nothing but settlements are freed wherever they stand in the log.
bool Spool::has_room_for(const DraftView& draft) const {
  const std::uint64_t reserve = std::min(options_.log.segment_size, options_.max_size / 8);
  return segments_->bytes_total() + draft.body.size() + 512 + reserve <= options_.max_size;
}

// The groups that take it; nothing: it is refused.
std::optional<GroupMask> Spool::admit(const DraftView& draft) const {
  const GroupMask* groups = routes_.find(draft.topic);  // then the name is a good one
  const bool fits =
      options_pass(draft, options_.limits) || check_options(draft, options_.limits).ok();
  if (groups == nullptr || !fits || failed_ || disk_full_ || !has_room_for(draft) ||
      (draft.options.deliver_at && held_full_)) {
    return std::nullopt;
  }
  return *groups;
}

// Why it is. REQUIRES: admit() refuses it, or did a moment ago.
Error Spool::refusal(const DraftView& draft) const {
  if (failed_) {
    return Error{ErrorCode::kClosed, "the spool failed; restart the program to recover it",
                 directory_.path(), 0};
  }
  if (const auto checked = check_draft(draft, options_.limits); !checked.ok()) {
    return checked.error();
  }
  if (routes_.find(draft.topic) == nullptr) {
    return Error{ErrorCode::kUnroutable,
                 "no group of this spool takes topic '" + std::string(draft.topic) +
                     "'; add it to a group's topics",
                 directory_.path(), 0};
  }
  if (draft.options.deliver_at && held_full_) {
    return Error{ErrorCode::kFull,
                 "as many messages as allowed (" + std::to_string(options_.held_max) +
                     ") are delayed, retrying or dead; settle some, or raise held_max",
                 directory_.path(), 0};
  }
  if (!has_room_for(draft)) {
    return Error{ErrorCode::kFull,
                 "the spool has reached max_size (" + std::to_string(options_.max_size) +
                     " bytes); let its groups settle, or raise it",
                 directory_.path(), 0};
  }
  return Error{ErrorCode::kFull, "the disk is full; free some space", directory_.path(), 0};
}

// NOLINTNEXTLINE(performance-unnecessary-value-param): as the interface says
void Spool::publish_draft(Draft draft, ReceiptCallback done) {
  put(draft, std::move(done), Caller::kMayWait);
}

void Spool::publish_view(const DraftView& draft, ReceiptCallback done) {
  put(draft, std::move(done), Caller::kMayWait);
}

void Spool::publish_at_once(const DraftView& draft, ReceiptCallback done) {
  put(draft, std::move(done), Caller::kMustNotWait);
}

Result<Receipt> Spool::publish_and_wait(const DraftView& draft) {
  std::promise<Result<Receipt>> promise;
  auto future = promise.get_future();
  put(
      draft, [&promise](Result<Receipt> receipt) { promise.set_value(std::move(receipt)); },
      Caller::kCommits);
  return future.get();
}

// Who waits for room is always there to take it: a little is left for who does not.
bool Spool::takes_at_once() const {
  const std::lock_guard lock(mutex_);
  return queue_items_ < kQueueItemsMax / 4 * 5 && queue_bytes_ < kQueueBytesMax / 4 * 5;
}

Milliseconds Spool::dedup_reach() const {
  const std::lock_guard lock(dedup_mutex_);
  return dedup_.reach(to_ms(clock_.utc()));
}

void Spool::put(const DraftView& draft, ReceiptCallback done, Caller caller) {
  const auto groups = admit(draft);
  if (!groups) return done(refusal(draft));
  const UtcTime now = clock_.utc();
  const auto& options = draft.options;
  Publish publish;
  if (!options.dedup.empty() && !admit_dedup(draft, now, done, publish.dedup)) return;
  publish.id = uuid_v7(now);
  publish.done = std::move(done);
  const bool has_options = publish.dedup || options.deliver_at || options.expires_at;
  RecordKind kind;
  kind.type = RecordType::kMessage;
  kind.flags = message_flags(options.priority, has_options, !options.key.empty());
  kind.groups = *groups;
  kind.deliver_at_ms = to_ms(options.deliver_at);
  kind.expires_at_ms = to_ms(options.expires_at);
  const bool wants_disk = options.durability.value_or(options_.durability) == Durability::kDisk;
  // Everything but the copy into the chunk is done outside the lock.
  thread_local std::string room;
  const std::string_view head = encode_envelope_head(draft, publish.id, now, room);
  const std::uint32_t crc = crc32c(crc32c(0, head), draft.body);
  const std::size_t bytes = head.size() + draft.body.size();
  auto lock = lock_briefly(mutex_);
  if (!takes_more(lock, caller != Caller::kMustNotWait)) {
    lock.unlock();
    return answer(publish, Error{ErrorCode::kClosed, "the spool is stopped", directory_.path(), 0});
  }
  Chunk& chunk = open_chunk(true);
  publish.record = static_cast<std::uint32_t>(chunk.batch.size());
  chunk.batch.add(kind, head, draft.body, crc);
  chunk.publishes.push_back(std::move(publish));
  chunk.sync = chunk.sync || wants_disk;
  ++chunk.urgent;
  ++queue_items_;
  chunk.bytes += bytes;
  queue_bytes_ += bytes;
  const bool wake = ++queue_urgent_ == 1;
  std::unique_ptr<Chunk> taken;
  if (caller == Caller::kCommits && may_commit_here()) {
    committing_ = true;
    taken = take_chunk();
  }
  lock.unlock();
  if (room.capacity() > kEncodeBytesKept) std::string().swap(room);
  if (taken != nullptr) return commit_here(std::move(taken));
  if (wake) work_.notify_one();
}

// Nobody commits, and there is nothing to do that is the committer thread's. REQUIRES: mutex_ is
// held.
bool Spool::may_commit_here() const {
  return listener_ != nullptr && !committing_ && !closing_ && !snapshot_ && queue_.size() == 1;
}

void Spool::commit_here(std::unique_ptr<Chunk> chunk) {
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

// False if the publish was answered, or waits for another's commit.
bool Spool::admit_dedup(const DraftView& draft, UtcTime now, ReceiptCallback& done,
                        std::unique_ptr<Dedup>& dedup) {
  const std::string& name = draft.options.dedup;
  const std::int64_t now_ms = to_ms(now);
  const std::uint64_t hash = dedup_hash(draft.topic, draft.body);
  const Error conflict{ErrorCode::kConflict, "dedup id '" + name + "' was used with another body",
                       "", 0};
  std::unique_lock lock(dedup_mutex_);
  dedup_.trim(now_ms);
  if (const auto* known = dedup_.find(name, now_ms)) {
    const auto durability = known->sequence <= durable_lsn_ ? Durability::kDisk : Durability::kOs;
    const Result<Receipt> answer =
        known->body_hash == hash
            ? Result<Receipt>(Receipt{known->message_id, known->sequence, durability, true})
            : Result<Receipt>(conflict);
    lock.unlock();
    done(answer);
    return false;
  }
  const auto [pending, fresh] = dedup_pending_.try_emplace(name);
  if (fresh) {
    pending->second.hash = hash;
    dedup = std::make_unique<Dedup>(Dedup{name, hash, now_ms});
    return true;
  }
  if (pending->second.hash == hash) {
    pending->second.waiters.push_back(std::move(done));
    return false;
  }
  lock.unlock();
  done(conflict);
  return false;
}

void Spool::answer(const Publish& publish, Result<Receipt> result) {
  if (publish.dedup) answer_dedup(*publish.dedup, result);
  if (publish.done) publish.done(std::move(result));
}

void Spool::answer_dedup(const Dedup& dedup, const Result<Receipt>& result) {
  std::vector<ReceiptCallback> waiters;
  {
    const std::lock_guard lock(dedup_mutex_);
    const auto pending = dedup_pending_.find(dedup.id);
    if (pending == dedup_pending_.end()) return;
    waiters = std::move(pending->second.waiters);
    dedup_pending_.erase(pending);
    if (result.ok()) {
      dedup_.add(dedup.id, {result->id, result->sequence, dedup.hash, dedup.published_at_ms});
    }
  }
  Result<Receipt> repeated = result;
  if (repeated.ok()) repeated->duplicate = true;
  for (const auto& waiter : waiters) waiter(repeated);
}

// At max_size, and the disk has room: a new segment costs little.
bool Spool::wants_room() const {
  return !disk_full_ && segments_->spares().has_reserve() &&
         segments_->bytes_total() + std::min(options_.log.segment_size, options_.max_size / 8) >=
             options_.max_size &&
         segments_->current_bytes() > kWorthRolling;
}

bool Spool::takes_follow_ups() const {
  return !disk_full_ && segments_->spares().has_reserve() &&
         segments_->bytes_total() < options_.max_size;
}

void Spool::submit(const Submission& submission) {
  if (submission.entries.empty()) return;
  bool wake = false;
  {
    auto lock = lock_briefly(mutex_);
    if (!takes_more(lock, false)) return;
    Chunk& chunk = open_chunk(false);
    chunk.submitted.push_back({static_cast<std::uint32_t>(chunk.batch.size()),
                               static_cast<std::uint32_t>(submission.entries.size()),
                               submission.ticket});
    for (const auto& entry : submission.entries) {
      RecordKind kind{entry.type, entry.flags, entry.groups};
      if (entry.type == RecordType::kMessage) {
        const auto envelope = parse_envelope(entry.payload);
        DRAY_ASSERT(envelope.ok());  // the dispatcher made it
        kind.deliver_at_ms = to_ms(envelope->deliver_at);
        kind.expires_at_ms = to_ms(envelope->expires_at);
      }
      chunk.batch.add(kind, entry.payload);
    }
    // A step is as durable as the message may be.
    chunk.sync = chunk.sync || options_.durability == Durability::kDisk ||
                 submission.entries.front().type == RecordType::kStep;
    ++queue_items_;
    if (submission.lazy) {
      if (queue_lazy_entries_ == 0) lazy_since_ = clock_.steady();
      // The committer must hear of the first one (to start its 5 ms) and of a full load.
      wake = queue_lazy_entries_ == 0 ||
             queue_lazy_entries_ + submission.entries.size() >= kLazyEntriesMax;
      queue_lazy_entries_ += submission.entries.size();
      chunk.lazy_entries += submission.entries.size();
    } else {
      ++chunk.urgent;
      wake = ++queue_urgent_ == 1;
    }
  }
  if (wake) work_.notify_one();
}

// Waits for room if it may. False if the spool takes nothing any more.
bool Spool::takes_more(std::unique_lock<std::mutex>& lock, bool may_wait) {
  if (may_wait && (queue_items_ >= kQueueItemsMax || queue_bytes_ >= kQueueBytesMax)) {
    room_.wait(lock, [&] {
      return closing_ || failed_ ||
             (queue_items_ < kQueueItemsMax && queue_bytes_ < kQueueBytesMax);
    });
  }
  return !closing_ && !failed_;
}

// Records of a submission ride with a chunk that takes no more messages: a commit of their own
// costs more. REQUIRES: mutex_ is held.
Spool::Chunk& Spool::open_chunk(bool for_message) {
  if (!queue_.empty()) {
    const auto& last = queue_.back()->batch;
    const std::size_t stretch = for_message ? 1 : 2;
    if (last.size() < kChunkRecordsMax * stretch && last.bytes() < kChunkBytesMax * stretch) {
      return *queue_.back();
    }
  }
  std::uint64_t begin = expected_end_;
  for (const auto& chunk : queue_) begin += chunk->batch.bytes();
  if (chunks_free_.empty()) {
    queue_.push_back(std::make_unique<Chunk>(buffers_));
  } else {
    queue_.push_back(std::move(chunks_free_.back()));
    chunks_free_.pop_back();
  }
  queue_.back()->batch.expect_at(begin % kPageSize);
  return *queue_.back();
}

// --- commit ---------------------------------------------------------------------------------

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

void Spool::run(CommitListener& listener) {
  std::unique_ptr<Chunk> chunk;
  for (bool committed = false;; committed = true) {
    bool closing = false;
    bool marker = false;
    {
      auto lock = lock_briefly(mutex_);
      if (committed) end_commit(std::move(chunk));
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
      end_commit(std::move(chunk));
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
