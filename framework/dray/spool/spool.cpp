#include "dray/spool/spool.hpp"

#include <algorithm>

namespace dray::spool {
namespace {

constexpr std::size_t kQueueItemsMax = 1U << 16;
constexpr std::size_t kQueueBytesMax = 64U << 20;
constexpr std::size_t kBatchItemsMax = 1024;
constexpr std::size_t kBatchBytesMax = 256U << 10;
constexpr std::size_t kLazyEntriesMax = 256;
constexpr auto kLazyWaitMax = std::chrono::milliseconds(5);
constexpr auto kMarkerIdle = std::chrono::milliseconds(50);
constexpr auto kSpareRetry = std::chrono::seconds(1);

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
      dedup_(options_.dedup.count_max, options_.dedup.age_max) {}

Spool::~Spool() {
  stop();
}

// --- open -----------------------------------------------------------------------------------

Result<std::unique_ptr<Spool>> Spool::open(Directory& directory, const Clock& clock,
                                           SpoolOptions options, Log log) {
  std::unique_ptr<Spool> spool(new Spool(directory, clock, std::move(options), std::move(log)));
  DRAY_TRY(spool->recover());
  return spool;
}

Status Spool::recover() {
  auto held = directory_.lock("lock");
  if (!held.ok()) return held.error();
  lock_ = std::move(*held);
  if (options_.durability == Durability::kDisk && !options_.allow_volatile) {
    if (const auto reason = directory_.volatile_reason(); !reason.empty()) {
      return Error{ErrorCode::kUnsupported,
                   "this folder is on " + reason +
                       ", which keeps no promise of durability \"disk\"; choose another folder, or "
                       "set durability = \"os\"",
                   directory_.path(), 0};
    }
  }
  SpoolState state(options_.dedup);
  std::size_t damage_seen = 0;
  auto opened = SegmentLog::open(
      directory_, clock_, options_.log,
      [&](const Record& record) -> Status {
        // Damage counts from where it lies: what later records say of it must find it gone.
        for (; damage_seen < scan_.damaged.size(); ++damage_seen) {
          state.skip(scan_.damaged[damage_seen].first, scan_.damaged[damage_seen].last);
        }
        return state.apply(record);
      },
      scan_);
  if (!opened.ok()) return opened.error();
  state.finish();
  segments_ = std::move(*opened);
  for (const auto& range : scan_.damaged) {
    log_.error("acknowledged records are damaged; the rest is served",
               {{"segment", segment_name(range.segment)},
                {"offset", std::to_string(range.offset)},
                {"first", std::to_string(range.first)},
                {"last", std::to_string(range.last)}});
  }
  if (scan_.torn_bytes > 0) {
    log_.info("cut an unacknowledged tail", {{"bytes", std::to_string(scan_.torn_bytes)}});
  }
  DRAY_TRY(prepare_epoch(state));
  DRAY_TRY(declare_groups(state));
  DRAY_TRY(segments_->commit(true));
  disk_full_ = !segments_->ensure_spare();
  for (const auto& [id, session] : state.sessions()) sessions_.push_back(session);
  for (const auto& group : state.groups()) {
    if (group->standing() != GroupStanding::kAttached) continue;
    for (const auto& topic : group->topics()) routes_[topic] |= GroupMask{1} << group->id();
  }
  // Records that open() wrote are nobody's messages.
  for (const auto& group : state.groups()) group->skip(boundary_, segments_->next_lsn() - 1);
  groups_ = std::move(state.groups());
  dedup_ = std::move(state.dedup());
  dedup_.trim(to_ms(clock_.utc()));
  return {};
}

Status Spool::prepare_epoch(SpoolState& state) {
  boundary_ = segments_->next_lsn();
  epoch_ = state.epoch() + 1;
  const std::uint64_t random = random_u64();
  id_ = segments_->spool_id().is_nil() ? uuid_v4() : segments_->spool_id();
  DRAY_TRY(segments_->start(id_, epoch_, random));
  const auto added = segments_->add(RecordType::kEpoch, 0,
                                    to_bytes(EpochRecord{epoch_, random, to_ms(clock_.utc())}));
  if (!added.ok()) return added.error();
  return {};
}

Status Spool::declare_groups(SpoolState& state) {
  if (!options_.groups) return {};
  auto& groups = state.groups();
  const auto declare = [&](const GroupRecord& record) -> Status {
    const auto added = segments_->add(RecordType::kGroup, 0, to_bytes(record));
    if (!added.ok()) return added.error();
    if (record.id == groups.size()) {
      groups.push_back(std::make_unique<GroupState>(record.id, record.name));
      groups.back()->skip(1, added->lsn);
    }
    groups[record.id]->declare(added->lsn, record.topics, record.standing);
    return {};
  };
  for (const auto& wanted : *options_.groups) {
    const GroupState* known = state.find_group(wanted.name);
    if (known != nullptr && known->standing() == GroupStanding::kAttached &&
        known->topics() == wanted.topics) {
      continue;
    }
    if (known == nullptr && !scan_.damaged.empty() && segments_->next_lsn() > 2) {
      return Error{ErrorCode::kCorrupt,
                   "group '" + wanted.name +
                       "' is new to this spool, or its declaration is among the damaged records; "
                       "declaring it now could lose its backlog. Serve the spool with `dray run "
                       "--spool` first, or take the group out of the config",
                   directory_.path(), 0};
    }
    if (known == nullptr && groups.size() == kGroupsMax) {
      return Error{ErrorCode::kFull,
                   "group '" + wanted.name + "' would be number " + std::to_string(kGroupsMax + 1) +
                       " of this spool, the limit is " + std::to_string(kGroupsMax),
                   directory_.path(), 0};
    }
    const auto id = known != nullptr ? known->id() : static_cast<GroupId>(groups.size());
    DRAY_TRY(declare({id, wanted.name, wanted.topics, GroupStanding::kAttached}));
  }
  for (std::size_t i = 0; i < groups.size(); ++i) {
    const auto& group = *groups[i];
    if (group.standing() == GroupStanding::kDropped) continue;
    const bool wanted = std::any_of(options_.groups->begin(), options_.groups->end(),
                                    [&](const auto& each) { return each.name == group.name(); });
    if (wanted) continue;
    detached_.push_back(group.name());
    log_.warning(
        "group is not in the config any more: it takes nothing new and keeps what is "
        "pending",
        {{"group", group.name()}, {"pending", std::to_string(group.counts().pending)}});
    if (group.standing() == GroupStanding::kAttached) {
      DRAY_TRY(declare({group.id(), group.name(), group.topics(), GroupStanding::kDetached}));
    }
  }
  return {};
}

// --- publish --------------------------------------------------------------------------------

GroupMask Spool::route(std::string_view topic) const {
  const auto found = routes_.find(std::string(topic));
  return found == routes_.end() ? 0 : found->second;
}

std::optional<Error> Spool::refusal(const Draft& draft, GroupMask& groups) const {
  if (failed_) {
    return Error{ErrorCode::kClosed, "the spool failed; restart the program to recover it",
                 directory_.path(), 0};
  }
  if (auto checked = check_draft(draft, options_.limits); !checked.ok()) return checked.error();
  groups = route(draft.topic);
  if (groups == 0) {
    return Error{
        ErrorCode::kUnroutable,
        "no group of this spool takes topic '" + draft.topic + "'; add it to a group's topics",
        directory_.path(), 0};
  }
  // The reserve lets settlements go on when messages are refused.
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
    const Result<Receipt> answer = known->body_hash == publish.hash
                                       ? Result<Receipt>(Receipt{known->message_id, known->sequence,
                                                                 options_.durability, true})
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
}

void Spool::stop() {
  {
    const std::lock_guard lock(mutex_);
    closing_ = true;
  }
  work_.notify_all();
  room_.notify_all();
  if (committer_.joinable()) committer_.join();
}

void Spool::run(CommitListener& listener) {
  for (;;) {
    std::vector<Item> items;
    bool closing = false;
    {
      std::unique_lock lock(mutex_);
      const bool work = wait_for_work(lock);
      closing = closing_ && queue_.empty();
      if (work) items = take_batch();
    }
    if (!items.empty()) {
      room_.notify_all();
      commit_batch(std::move(items), listener);
    } else if (marker_due_) {
      write_marker(listener);
    }
    refresh_room();
    if (closing) return;
  }
}

void Spool::commit_pending(CommitListener& listener) {
  for (;;) {
    std::vector<Item> items;
    {
      const std::lock_guard lock(mutex_);
      items = take_batch();
    }
    if (items.empty()) return;
    commit_batch(std::move(items), listener);
  }
}

// True if there is a batch to commit; false after the idle time, or when closing with nothing.
bool Spool::wait_for_work(std::unique_lock<std::mutex>& lock) {
  for (;;) {
    if (closing_ || queue_urgent_ > 0 || queue_lazy_entries_ >= kLazyEntriesMax) {
      return !queue_.empty();
    }
    if (queue_lazy_entries_ > 0) {
      const auto waited = clock_.steady() - lazy_since_;
      if (waited >= kLazyWaitMax) return true;
      work_.wait_for(lock, kLazyWaitMax - waited);
      continue;
    }
    const auto idle =
        marker_due_ ? std::chrono::nanoseconds(kMarkerIdle) : std::chrono::nanoseconds(kSpareRetry);
    if (work_.wait_for(lock, idle) == std::cv_status::timeout && queue_.empty()) return false;
  }
}

std::vector<Spool::Item> Spool::take_batch() {
  std::vector<Item> items;
  std::size_t bytes = 0;
  while (!queue_.empty() && items.size() < kBatchItemsMax && bytes < kBatchBytesMax) {
    if (const auto* publish = std::get_if<Publish>(&queue_.front())) {
      bytes += publish->envelope.size();
      queue_bytes_ -= publish->envelope.size();
      --queue_urgent_;
    } else {
      const auto& submission = std::get<Submission>(queue_.front());
      for (const auto& entry : submission.entries) bytes += entry.payload.size();
      if (submission.lazy) {
        queue_lazy_entries_ -= submission.entries.size();
      } else {
        --queue_urgent_;
      }
    }
    items.push_back(std::move(queue_.front()));
    queue_.pop_front();
  }
  return items;
}

void Spool::commit_batch(std::vector<Item> items, CommitListener& listener) {
  const Error stopped{ErrorCode::kClosed, "the spool failed; restart the program to recover it",
                      directory_.path(), 0};
  if (failed_) return fail_batch(items, stopped);
  refuse_for_room(items);
  if (items.empty()) return;
  Batch batch;
  batch.committed.first = segments_->next_lsn();
  if (auto wrote = write_batch(items, batch); !wrote.ok()) {
    // P7: the batch may or may not be on disk; the next start finds out.
    failed_ = true;
    Error unknown = wrote.error();
    unknown.code = ErrorCode::kUnknown;
    unknown.message += "; whether this was stored is unknown, publish again with the same dedup id";
    log_.error("the spool is poisoned: " + wrote.error().text());
    listener.on_failed(wrote.error());
    return fail_batch(items, unknown);
  }
  marker_due_ = true;
  for (auto& placed : batch.placed) {
    auto& message = batch.committed.messages[placed.message];
    message.envelope = std::string_view(*placed.owner).substr(placed.offset, placed.size);
    message.owner = std::move(placed.owner);
  }
  batch.committed.last = segments_->next_lsn() - 1;
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
    const Result<Receipt> receipt = Receipt{publish->id, sequence, options_.durability, false};
    if (!publish->dedup.empty()) answer_dedup(publish->dedup, receipt, publish);
    if (publish->done) publish->done(receipt);
  }
}

// P7: what was queued while there was room must not eat the reserve that settling needs.
void Spool::refuse_for_room(std::vector<Item>& items) {
  if (segments_->has_spare() && segments_->bytes_total() < options_.max_size) return;
  if (segments_->ensure_spare() && segments_->bytes_total() < options_.max_size) return;
  std::vector<Item> refused;
  std::vector<Item> kept;
  for (auto& item : items) {
    (std::holds_alternative<Publish>(item) ? refused : kept).push_back(std::move(item));
  }
  items = std::move(kept);
  fail_batch(refused,
             Error{ErrorCode::kFull, "the disk or the spool is full", directory_.path(), 0});
}

Status Spool::write_batch(std::vector<Item>& items, Batch& batch) {
  const auto place = [&](const SegmentLog::Added& added, GroupMask groups, Priority priority,
                         std::int64_t deliver_at_ms, std::int64_t expires_at_ms, std::size_t size) {
    batch.placed.push_back(
        {batch.committed.messages.size(), added.owner, added.payload_offset, size});
    batch.committed.messages.push_back(
        {added.lsn, groups, priority, deliver_at_ms, expires_at_ms, nullptr, {}});
  };
  for (auto& item : items) {
    if (const auto* publish = std::get_if<Publish>(&item)) {
      const auto flags = static_cast<std::uint8_t>(publish->priority);
      auto added = segments_->add(RecordType::kMessage, flags, publish->envelope);
      if (!added.ok()) return added.error();
      place(*added, publish->groups, publish->priority, publish->deliver_at_ms,
            publish->expires_at_ms, publish->envelope.size());
      continue;
    }
    const auto& submission = std::get<Submission>(item);
    Lsn first = 0;
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
    if (submission.ticket != 0) batch.committed.tickets.emplace_back(submission.ticket, first);
  }
  return segments_->commit(options_.durability == Durability::kDisk);
}

void Spool::fail_batch(std::vector<Item>& items, const Error& error) {
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
    const auto added = segments_->add(RecordType::kMarker, 0, "");
    if (added.ok()) status = segments_->commit(false);
    if (!added.ok()) status = added.error();
  }
  if (status.ok()) return listener.on_committed(std::move(committed));
  failed_ = true;
  log_.error("the spool is poisoned: " + status.error().text());
  listener.on_failed(status.error());
}

void Spool::refresh_room() {
  if (failed_) return;
  const auto now = clock_.steady();
  if (disk_full_ && now - spare_tried_at_ < kSpareRetry) return;
  spare_tried_at_ = now;
  const bool room = segments_->ensure_spare();
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
