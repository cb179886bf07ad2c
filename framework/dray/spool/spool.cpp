#include "dray/spool/spool.hpp"

#include <algorithm>
#include <bit>

#include "dray/spool/planted_fault.hpp"

namespace dray::spool {
namespace {

constexpr std::size_t kQueueItemsMax = 1U << 16;
constexpr std::size_t kQueueBytesMax = 64U << 20;
constexpr std::size_t kBatchItemsMax = 1024;
constexpr std::size_t kBatchBytesMax = 512U << 10;
constexpr std::size_t kLazyEntriesMax = 256;
constexpr auto kLazyWaitMax = std::chrono::milliseconds(5);
constexpr auto kMarkerIdle = std::chrono::milliseconds(50);
// A checkpoint costs at most 1/16 of what the log writes.
constexpr std::uint64_t kCheckpointShare = 16;

std::int64_t to_ms(const std::optional<UtcTime>& time) {
  return time ? time->time_since_epoch().count() : 0;
}

}  // namespace

struct Spool::Batch {
  Committed committed;
  struct Placed {
    std::size_t message;  // index in committed.messages
    std::shared_ptr<const std::string> owner;
    std::size_t offset;
    std::size_t size;
  };
  std::vector<Placed> placed;
};

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

GroupMask Spool::route(std::string_view topic) const {
  const auto found = routes_.find(topic);
  return found == routes_.end() ? 0 : found->second;
}

std::optional<Error> Spool::refusal(const Draft& draft, GroupMask& groups) const {
  if (failed_) {
    return Error{ErrorCode::kClosed, "the spool failed; restart the program to recover it",
                 directory_.path(), 0};
  }
  if (auto checked = check_draft(draft, options_.limits); !checked.ok()) return checked.error();
  const auto route = routes_.find(draft.topic);
  if (route != routes_.end()) groups = route->second;
  if (route == routes_.end()) {
    return Error{
        ErrorCode::kUnroutable,
        "no group of this spool takes topic '" + draft.topic + "'; add it to a group's topics",
        directory_.path(), 0};
  }
  if (draft.options.deliver_at && held_full_) {
    return Error{ErrorCode::kFull,
                 "as many messages as allowed (" + std::to_string(options_.held_max) +
                     ") are delayed, retrying or dead; settle some, or raise held_max",
                 directory_.path(), 0};
  }
  // Settlements go on when messages are refused. They need no more than this: segments that hold
  // nothing but settlements are freed wherever they stand in the log.
  const std::uint64_t reserve = std::min(options_.log.segment_size, options_.max_size / 8);
  const std::uint64_t needed = draft.body.size() + 512 + reserve;
  if (segments_->bytes_total() + needed > options_.max_size) {
    return Error{ErrorCode::kFull,
                 "the spool has reached max_size (" + std::to_string(options_.max_size) +
                     " bytes); let its groups settle, or raise it",
                 directory_.path(), 0};
  }
  if (disk_full_) {
    return Error{ErrorCode::kFull, "the disk is full; free some space", directory_.path(), 0};
  }
  return std::nullopt;
}

void Spool::publish_draft(Draft draft, ReceiptCallback done) {
  Publish publish;
  if (auto refused = refusal(draft, publish.groups)) return done(*refused);
  const UtcTime now = clock_.utc();
  publish.id = uuid_v7(now);
  publish.done = std::move(done);
  publish.published_at_ms = to_ms(now);
  if (!draft.options.dedup.empty() && !admit_dedup(draft, publish)) return;
  const auto& options = draft.options;
  publish.has_options = !options.dedup.empty() || options.deliver_at || options.expires_at;
  publish.wants_disk = options.durability.value_or(options_.durability) == Durability::kDisk;
  publish.envelope = encode_envelope(draft, publish.id, now);
  publish.priority = draft.options.priority;
  publish.deliver_at_ms = to_ms(draft.options.deliver_at);
  publish.expires_at_ms = to_ms(draft.options.expires_at);
  const std::size_t bytes = publish.envelope.size();
  enqueue(std::move(publish), bytes, true);
}

// False if the publish was answered, or waits for another's commit.
bool Spool::admit_dedup(const Draft& draft, Publish& publish) {
  publish.dedup = draft.options.dedup;
  publish.hash = dedup_hash(draft.topic, draft.body);
  const Error conflict{ErrorCode::kConflict,
                       "dedup id '" + publish.dedup + "' was used with another body", "", 0};
  std::unique_lock lock(dedup_mutex_);
  dedup_.trim(publish.published_at_ms);
  if (const auto* known = dedup_.find(publish.dedup, publish.published_at_ms)) {
    const auto durability = known->sequence <= durable_lsn_ ? Durability::kDisk : Durability::kOs;
    const Result<Receipt> answer =
        known->body_hash == publish.hash
            ? Result<Receipt>(Receipt{known->message_id, known->sequence, durability, true})
            : Result<Receipt>(conflict);
    lock.unlock();
    publish.done(answer);
    return false;
  }
  const auto [pending, fresh] = dedup_pending_.try_emplace(publish.dedup);
  if (fresh) {
    pending->second.hash = publish.hash;
    return true;
  }
  if (pending->second.hash == publish.hash) {
    pending->second.waiters.push_back(std::move(publish.done));
    return false;
  }
  lock.unlock();
  publish.done(conflict);
  return false;
}

void Spool::answer_dedup(const std::string& id, const Result<Receipt>& result,
                         const Publish* publish) {
  std::vector<ReceiptCallback> waiters;
  {
    const std::lock_guard lock(dedup_mutex_);
    const auto pending = dedup_pending_.find(id);
    if (pending == dedup_pending_.end()) return;
    waiters = std::move(pending->second.waiters);
    dedup_pending_.erase(pending);
    if (result.ok()) {
      dedup_.add(id, {publish->id, result->sequence, publish->hash, publish->published_at_ms});
    }
  }
  Result<Receipt> repeated = result;
  if (repeated.ok()) repeated->duplicate = true;
  for (const auto& waiter : waiters) waiter(repeated);
}

void Spool::submit(Submission submission) {
  if (submission.entries.empty()) return;
  enqueue(std::move(submission), 0, false);
}

void Spool::enqueue(Item item, std::size_t bytes, bool may_wait) {
  bool wake = false;
  {
    std::unique_lock lock(mutex_);
    if (may_wait) {
      room_.wait(lock, [&] {
        return closing_ || failed_ ||
               (queue_.size() < kQueueItemsMax && queue_bytes_ < kQueueBytesMax);
      });
    }
    if (closing_ || failed_) {
      lock.unlock();
      if (auto* publish = std::get_if<Publish>(&item)) {
        const Error closed{ErrorCode::kClosed, "the spool is stopped", directory_.path(), 0};
        if (!publish->dedup.empty()) answer_dedup(publish->dedup, closed, publish);
        publish->done(closed);
      }
      return;
    }
    const auto* submission = std::get_if<Submission>(&item);
    if (submission != nullptr && submission->lazy) {
      if (queue_lazy_entries_ == 0) lazy_since_ = clock_.steady();
      // The committer must hear of the first one (to start its 5 ms) and of a full load.
      wake = queue_lazy_entries_ == 0 ||
             queue_lazy_entries_ + submission->entries.size() >= kLazyEntriesMax;
      queue_lazy_entries_ += submission->entries.size();
    } else {
      wake = queue_urgent_ == 0;
      ++queue_urgent_;
    }
    queue_bytes_ += bytes;
    queue_.push_back(std::move(item));
  }
  if (wake) work_.notify_one();
}

// --- commit ---------------------------------------------------------------------------------

void Spool::start(CommitListener& listener) {
  DRAY_ASSERT(!committer_.joinable());
  committer_ = std::thread([this, &listener] { run(listener); });
  start_upkeep(listener);
}

void Spool::start_upkeep(CommitListener& listener) {
  DRAY_ASSERT(!upkeep_.joinable());
  upkeep_ = std::thread([this, &listener] { run_upkeep(listener); });
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
  for (;;) {
    std::span<Item> items;
    bool closing = false;
    bool work = taken_at_ < taken_.size();
    if (!work) {
      std::unique_lock lock(mutex_);
      work = wait_for_work(lock);
      closing = closing_ && queue_.empty();
    }
    if (work) items = take_batch();
    if (!items.empty()) {
      room_.notify_all();
      commit_batch(items, listener);
    } else if (marker_due_) {
      write_marker(listener);
    }
    pass_checkpoint_on(listener);
    if (closing) return;
  }
}

void Spool::idle(CommitListener& listener) {
  if (marker_due_) write_marker(listener);
}

void Spool::commit_pending(CommitListener& listener) {
  for (;;) {
    const auto items = take_batch();
    if (items.empty()) break;
    commit_batch(items, listener);
  }
  pass_checkpoint_on(listener);
}

// True if there is a batch to commit; false after the idle time, or when closing with nothing.
bool Spool::wait_for_work(std::unique_lock<std::mutex>& lock) {
  for (;;) {
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
    } else if (work_.wait_for(lock, kMarkerIdle) == std::cv_status::timeout && queue_.empty()) {
      return false;
    }
  }
}

// The queue goes over whole; what is too much for one commit waits in taken_, where it is out of
// the publishers' way. Both keep their room for the next time.
std::span<Spool::Item> Spool::take_batch() {
  if (taken_at_ == taken_.size()) {
    taken_.clear();
    taken_at_ = 0;
    const std::lock_guard lock(mutex_);
    taken_.swap(queue_);
    queue_bytes_ = queue_urgent_ = queue_lazy_entries_ = 0;
  }
  std::size_t bytes = 0;
  const std::size_t begin = taken_at_;
  while (taken_at_ < taken_.size() && taken_at_ - begin < kBatchItemsMax &&
         bytes < kBatchBytesMax) {
    const auto& item = taken_[taken_at_++];
    if (const auto* publish = std::get_if<Publish>(&item)) {
      bytes += publish->envelope.size();
    } else {
      for (const auto& entry : std::get<Submission>(item).entries) bytes += entry.payload.size();
    }
  }
  return {taken_.data() + begin, taken_at_ - begin};
}

void Spool::commit_batch(std::span<Item> items, CommitListener& listener) {
  const Error stopped{ErrorCode::kClosed, "the spool failed; restart the program to recover it",
                      directory_.path(), 0};
  if (failed_) return fail_batch(items, stopped);
  if (!refuse_for_room(items)) return;
  Batch batch;
  batch.committed.messages.reserve(items.size());
  batch.placed.reserve(items.size());
  batch.committed.first = segments_->next_lsn();
  if (auto wrote = write_batch(items, batch); !wrote.ok()) {
    // P7: the batch may or may not be on disk; the next start finds out.
    Error unknown = wrote.error();
    unknown.code = ErrorCode::kUnknown;
    unknown.message += "; whether this was stored is unknown, publish again with the same dedup id";
    fail(wrote.error(), listener);
    return fail_batch(items, unknown);
  }
  marker_due_ = true;
  const bool durable = segments_->durable_lsn() + 1 == segments_->next_lsn();
  durable_lsn_ = segments_->durable_lsn();
  for (auto& placed : batch.placed) {
    auto& message = batch.committed.messages[placed.message];
    message.envelope = std::string_view(*placed.owner).substr(placed.offset, placed.size);
    message.owner = std::move(placed.owner);
  }
  batch.committed.last = segments_->next_lsn() - 1;
  batch.committed.position = segments_->position();
  const std::uint64_t interval =
      std::max<std::uint64_t>(options_.log.segment_size, checkpoint_bytes_ * kCheckpointShare);
  batch.committed.checkpoint_due = segments_->bytes_appended() - checkpointed_at_ >= interval;
  std::vector<std::pair<Publish*, Sequence>> receipts;
  std::size_t next = 0;
  for (auto& item : items) {
    if (auto* publish = std::get_if<Publish>(&item)) {
      receipts.emplace_back(publish, batch.committed.messages[next++].sequence);
    } else {
      for (const auto& entry : std::get<Submission>(item).entries) {
        if (entry.type == RecordType::kMessage) ++next;
      }
    }
  }
  listener.on_committed(std::move(batch.committed));
  for (const auto& [publish, sequence] : receipts) {
    const Result<Receipt> receipt =
        Receipt{publish->id, sequence, durable ? Durability::kDisk : Durability::kOs, false};
    if (!publish->dedup.empty()) answer_dedup(publish->dedup, receipt, publish);
    if (publish->done) publish->done(receipt);
  }
}

// P7: what was queued while there was room must not eat the reserve that settling needs. False if
// nothing is left to commit.
bool Spool::refuse_for_room(std::span<Item> items) {
  if (segments_->spares().has_reserve() && segments_->bytes_total() < options_.max_size) {
    return true;
  }
  const Error full{ErrorCode::kFull, "the disk or the spool is full", directory_.path(), 0};
  bool left = false;
  for (auto& item : items) {
    if (std::holds_alternative<Submission>(item)) {
      left = true;
      continue;
    }
    fail_batch({&item, 1}, full);
    item = Submission{};
  }
  return left;
}

Status Spool::write_batch(std::span<Item> items, Batch& batch) {
  const auto place = [&](const SegmentLog::Added& added, GroupMask groups, Priority priority,
                         std::int64_t deliver_at_ms, std::int64_t expires_at_ms, std::size_t size) {
    batch.placed.push_back(
        {batch.committed.messages.size(), added.owner, added.payload_offset, size});
    batch.committed.messages.push_back(
        {added.lsn, groups, priority, deliver_at_ms, expires_at_ms, nullptr, {}});
  };
  bool sync = false;
  for (auto& item : items) {
    if (const auto* publish = std::get_if<Publish>(&item)) {
      const auto flags = message_flags(publish->priority, publish->has_options);
      auto added = segments_->add(RecordType::kMessage, flags, publish->envelope);
      if (!added.ok()) return added.error();
      count_accepted(publish->groups);
      sync = sync || publish->wants_disk;
      place(*added, publish->groups, publish->priority, publish->deliver_at_ms,
            publish->expires_at_ms, publish->envelope.size());
      continue;
    }
    const auto& submission = std::get<Submission>(item);
    if (submission.entries.empty()) continue;
    sync = sync || options_.durability == Durability::kDisk;
    Lsn first = 0;
    if ((submission.entries.front().flags & kContinues) != 0) {
      std::size_t bytes = 0;
      for (const auto& entry : submission.entries) bytes += record_size(entry.payload.size());
      DRAY_TRY(segments_->begin_unit(bytes));
    }
    for (const auto& entry : submission.entries) {
      auto added = segments_->add(entry.type, entry.flags, entry.payload);
      if (!added.ok()) return added.error();
      if (first == 0) first = added->lsn;
      if (entry.type != RecordType::kMessage) continue;
      auto envelope = parse_envelope(entry.payload);
      DRAY_ASSERT(envelope.ok());  // the dispatcher made it
      place(*added, entry.groups, envelope->priority, to_ms(envelope->deliver_at),
            to_ms(envelope->expires_at), entry.payload.size());
    }
    // S6: an opening in the middle of a unit does not count its messages yet.
    for (const auto& entry : submission.entries) count_accepted(entry.groups);
    if (submission.ticket != 0) batch.committed.tickets.emplace_back(submission.ticket, first);
  }
  return segments_->commit(sync);
}

void Spool::count_accepted(GroupMask groups) {
  for (; groups != 0; groups &= groups - 1) {
    ++accepted_[static_cast<std::size_t>(std::countr_zero(groups))];
  }
}

void Spool::fail(const Error& error, CommitListener& listener) {
  if (planted(Fault::kNoLatch)) return;
  if (failed_.exchange(true)) return;  // S5
  log_.error("the spool is poisoned: " + error.text());
  listener.on_failed(error);
  room_.notify_all();
}

void Spool::fail_batch(std::span<Item> items, const Error& error) {
  for (auto& item : items) {
    auto* publish = std::get_if<Publish>(&item);
    if (publish == nullptr) continue;
    if (!publish->dedup.empty()) answer_dedup(publish->dedup, error, publish);
    if (publish->done) publish->done(error);
  }
}

// S3: without it, rot in the last batch could not be told from a torn tail.
void Spool::write_marker(CommitListener& listener) {
  marker_due_ = false;
  if (failed_) return;
  Status status = segments_->commit(true);
  Committed committed;
  committed.first = committed.last = segments_->next_lsn();
  if (status.ok()) {
    MarkerRecord marker;
    marker.accepted.assign(accepted_.begin(),
                           accepted_.begin() + static_cast<std::ptrdiff_t>(declared_.size()));
    const auto added = segments_->add(RecordType::kMarker, 0, to_bytes(marker));
    if (added.ok()) status = segments_->commit(false);
    if (!added.ok()) status = added.error();
  }
  if (!status.ok()) return fail(status.error(), listener);
  durable_lsn_ = segments_->durable_lsn();
  committed.last = segments_->next_lsn() - 1;
  committed.position = segments_->position();
  listener.on_committed(std::move(committed));
}

}  // namespace dray::spool
