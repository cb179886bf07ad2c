// What publishers and dispatchers hand in, up to the queue, and what they are answered.
#include "dray/spool/spool.hpp"

#include <algorithm>
#include <future>

#include "dray/brief_lock.hpp"

namespace dray::spool {
namespace {

constexpr std::uint64_t kWorthRolling = 64U << 10;  // bytes of a segment
constexpr std::size_t kQueueItemsMax = 1U << 16;
constexpr std::size_t kQueueBytesMax = 64U << 20;
constexpr std::size_t kEncodeBytesKept = 1U << 20;  // per publishing thread

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
  const UtcTime now = clock_.utc();
  // What was accepted once has its receipt, also where there is no room for more.
  if (!groups && !answer_refused_repeat(draft, now, done)) return done(refusal(draft));
  if (!groups) return;
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
  const bool wake = wants_committer(++queue_urgent_ == 1, chunk, bytes);
  Commit commit;
  if (caller == Caller::kCommits && may_commit_here()) commit = begin_commit();
  lock.unlock();
  if (room.capacity() > kEncodeBytesKept) std::string().swap(room);
  if (commit.begun) return commit_here(std::move(commit));
  if (wake) work_.notify_one();
}

// False if the publish was answered, or waits for another's commit.
bool Spool::admit_dedup(const DraftView& draft, UtcTime now, ReceiptCallback& done,
                        std::unique_ptr<Dedup>& dedup) {
  const std::string& name = draft.options.dedup;
  const std::int64_t now_ms = to_ms(now);
  const std::uint64_t hash = dedup_hash(draft.topic, draft.body);
  std::unique_lock lock(dedup_mutex_);
  dedup_.trim(now_ms);
  if (answer_repeat(lock, name, hash, now_ms, done)) return false;
  dedup_pending_[name].hash = hash;
  dedup = std::make_unique<Dedup>(Dedup{name, hash, now_ms});
  return true;
}

// True if a publish that admit() refused is one that was accepted before, and so was answered.
bool Spool::answer_refused_repeat(const DraftView& draft, UtcTime now, ReceiptCallback& done) {
  if (draft.options.dedup.empty() || failed_ || !check_draft(draft, options_.limits).ok()) {
    return false;
  }
  std::unique_lock lock(dedup_mutex_);
  return answer_repeat(lock, draft.options.dedup, dedup_hash(draft.topic, draft.body), to_ms(now),
                       done);
}

// True if the id was used before: answers, or lets it wait for the commit of the first. REQUIRES:
// `lock` holds dedup_mutex_; it is given up for the answer.
bool Spool::answer_repeat(std::unique_lock<std::mutex>& lock, const std::string& name,
                          std::uint64_t hash, std::int64_t now_ms, ReceiptCallback& done) {
  const Error conflict{ErrorCode::kConflict, "dedup id '" + name + "' was used with another body",
                       "", 0};
  if (const auto* known = dedup_.find(name, now_ms)) {
    const auto durability = known->sequence <= durable_lsn_ ? Durability::kDisk : Durability::kOs;
    const Result<Receipt> answer =
        known->body_hash == hash
            ? Result<Receipt>(Receipt{known->message_id, known->sequence, durability, true})
            : Result<Receipt>(conflict);
    lock.unlock();
    done(answer);
    return true;
  }
  const auto pending = dedup_pending_.find(name);
  if (pending == dedup_pending_.end()) return false;
  if (pending->second.hash == hash) {
    pending->second.waiters.push_back(std::move(done));
    return true;
  }
  lock.unlock();
  done(conflict);
  return true;
}

// Who commits sees what is queued meanwhile when it is through; but while it waits for the disk,
// another may write what has become enough. REQUIRES: mutex_ is held.
bool Spool::wants_committer(bool first, const Chunk& chunk, std::size_t added) const {
  if (committing_) return false;
  if (syncing_ == 0) return first;
  const std::size_t enough = options_.worth_a_write;
  return &chunk == queue_.front().get() && chunk.bytes >= enough && chunk.bytes - added < enough;
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
      // A committer must hear of the first one (to start its 5 ms) and of a full load.
      wake = queue_lazy_entries_ == 0 ||
             queue_lazy_entries_ + submission.entries.size() >= kLazyEntriesMax;
      queue_lazy_entries_ += submission.entries.size();
      chunk.lazy_entries += submission.entries.size();
    } else {
      ++chunk.urgent;
      wake = ++queue_urgent_ == 1;
    }
    wake = wake && !committing_ && syncing_ == 0;
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
    if (last.size() < options_.write_records * stretch &&
        last.bytes() < options_.write_bytes * stretch) {
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

}  // namespace dray::spool
