#include "dray/spool/backlog.hpp"

#include <algorithm>

#include "dray/spool/planted_fault.hpp"

namespace dray::spool {
namespace {

constexpr std::size_t kCopiedAttemptsMax = 16;
constexpr std::size_t kCopiedHistoriesBytesMax = 256U << 10;
constexpr std::size_t kCopiedTextMax = 1024;

std::int64_t to_ms(const std::optional<UtcTime>& time) {
  return time ? time->time_since_epoch().count() : 0;
}

// Follows the log for one group and notices what is missing.
class GroupReader {
 public:
  GroupReader(const GroupState& group, const BacklogRequest& request,
              std::shared_ptr<Records> buffer)
      : group_(group),
        request_(request),
        records_(std::move(buffer)),
        gaps_(request.gaps),
        skip_from_(request.from) {
    slice_.next = request.from;
  }

  bool on_record(const Record& record) {
    const Lsn lsn = record.header.lsn;
    if (record.header.type == RecordType::kEpoch) held_.clear();
    if (record.header.type == RecordType::kLost) on_gap(lsn, lsn);  // S6: nor is what went before
    if ((record.header.flags & kContinues) != 0 && lsn >= request_.known &&
        !planted(Fault::kUnitsTorn)) {
      // S6: it counts only with the records after it. (Behind the cursor it did.)
      if (record.header.type == RecordType::kMessage) {
        held_.emplace_back(record.header, std::string(record.payload));
      }
      return true;
    }
    if (!held_.empty() && record.header.type != RecordType::kOpening) {
      for (const auto& [header, payload] : std::exchange(held_, {})) on_message({header, payload});
    }
    if (record.header.type == RecordType::kMessage) {
      on_message(record);
    } else if (lsn >= request_.known) {
      if (record.header.type == RecordType::kMarker) {
        if (auto marker = from_bytes<MarkerRecord>(record.payload); marker.ok()) {
          on_count(lsn, marker->accepted);
        }
      } else if (record.header.type == RecordType::kOpening) {
        if (auto opening = from_bytes<OpeningRecord>(record.payload); opening.ok()) {
          on_count(lsn, opening->accepted);
        }
      }
    }
    if (!held_.empty()) return true;
    slice_.next = lsn + 1;
    return records_->size() < request_.messages_max && records_->bytes() < request_.bytes_max &&
           ++looked_at_ < request_.records_max;
  }

  void on_gap(Lsn first, Lsn last) {
    if (!held_.empty()) first = std::min(first, held_.front().first.lsn);
    held_.clear();
    if (first < request_.known) {
      const Lsn end = std::min(last + 1, request_.known);
      for (Lsn lost = group_.first_plain(first); lost < end; lost = group_.first_plain(lost + 1)) {
        slice_.lost.push_back(lost);
      }
    }
    if (last < request_.known || !request_.accounts) return;
    first = std::max(first, request_.known);
    slice_.passed += group_.damaged_between(first, last + 1);
    gaps_.push_back({first, last, 0});
  }

  BacklogSlice take(bool whole) {
    if (whole) slice_.next = request_.before;
    if (whole && request_.accounts && request_.accepted_at_end)
      count(request_.before, *request_.accepted_at_end);
    skip_to(slice_.next);
    slice_.gaps = std::move(gaps_);
    for (auto& run : slice_.runs) run.records = records_;
    return std::move(slice_);
  }

 private:
  void on_message(const Record& record) {
    const Lsn lsn = record.header.lsn;
    const bool look_inside = (record.header.flags & (kHasOptions | kHasKey)) != 0;
    std::string_view topic = envelope_topic(record.payload);
    std::optional<EnvelopeView> view;
    if (topic.empty() || look_inside) {
      auto parsed = parse_envelope(record.payload);
      if (!parsed.ok()) return;
      view = *parsed;
      topic = view->topic;
    }
    if (!group_.takes(topic, lsn)) return;
    if (lsn >= request_.known) ++slice_.passed;
    skip_to(lsn);
    skip_from_ = lsn + 1;
    if (!group_.is_plain(lsn)) return;  // settled, or it has an entry
    const auto priority = priority_of(record.header.flags);
    if (priority != request_.priority && !request_.any_priority) return;
    const auto index = static_cast<std::uint32_t>(records_->size());
    records_->add_loose(lsn, record.header.flags, record.payload, record.header.payload_crc);
    StoredRun run{lsn, 1, index, nullptr, priority};
    if (view) {
      run.deliver_at_ms = to_ms(view->deliver_at);
      run.expires_at_ms = to_ms(view->expires_at);
      run.key = key_hash(view->key);
    }
    if (!slice_.runs.empty() && follows(slice_.runs.back(), run)) {
      ++slice_.runs.back().count;
    } else {
      slice_.runs.push_back(std::move(run));
    }
  }

  static bool follows(const StoredRun& before, const StoredRun& run) {
    const auto plain = [](const StoredRun& each) {
      return each.deliver_at_ms == 0 && each.expires_at_ms == 0 && each.key == 0;
    };
    return before.first + before.count == run.first && plain(before) && plain(run);
  }

  void skip_to(Lsn lsn) {
    if (!request_.accounts) return;
    const Lsn from = std::max(skip_from_, request_.known);  // behind it all is accounted for
    if (from < lsn) slice_.skips.emplace_back(from, lsn - 1);
    skip_from_ = std::max(skip_from_, lsn);
  }

  // The log says how many the group had accepted up to here.
  void on_count(Lsn lsn, const std::vector<std::uint64_t>& accepted) {
    if (request_.accounts && group_.id() < accepted.size()) count(lsn, accepted[group_.id()]);
  }

  void count(Lsn lsn, std::uint64_t wanted) {
    const std::uint64_t read = request_.passed + slice_.passed;
    if (wanted > read) {
      if (gaps_.empty()) gaps_.push_back({lsn, lsn, 0});
      gaps_.back().count = wanted - read;
      slice_.passed += wanted - read;
      slice_.damaged.insert(slice_.damaged.end(), gaps_.begin(), gaps_.end());
    }
    gaps_.clear();
  }

  const GroupState& group_;
  const BacklogRequest& request_;
  BacklogSlice slice_;
  std::shared_ptr<Records> records_;
  std::vector<DamagedPart> gaps_;                           // since the last count
  std::vector<std::pair<RecordHeader, std::string>> held_;  // of a unit that is not complete yet
  Lsn skip_from_;
  std::size_t looked_at_ = 0;
};

}  // namespace

Result<BacklogSlice> read_backlog(LogReader& reader, const GroupState& group,
                                  const BacklogRequest& request) {
  GroupReader follow(group, request, reader.take_buffer());
  bool whole = true;
  const auto status = reader.read(
      request.from, request.before,
      [&](const Record& record) {
        whole = follow.on_record(record);
        return whole;
      },
      [&](Lsn first, Lsn last) { follow.on_gap(first, last); });
  if (!status.ok()) return status.error();
  return follow.take(whole);
}

Result<std::optional<StoredRun>> read_message(LogReader& reader, Sequence sequence,
                                              const History* history) {
  const Lsn lsn = history != nullptr && history->copy_lsn() != 0 ? history->copy_lsn() : sequence;
  auto record = reader.at(lsn);
  if (!record.ok()) return record.error();
  if (!record->has_value()) return std::optional<StoredRun>{};
  std::string copied;
  std::string_view bytes;
  if ((*record)->header.type == RecordType::kMessage) {
    bytes = (*record)->payload;
  } else if ((*record)->header.type == RecordType::kCopy) {
    auto copy = from_bytes<CopyRecord>((*record)->payload);
    if (copy.ok() && copy->sequence == sequence) copied = std::move(copy->envelope.bytes);
    bytes = copied;
  }
  const auto envelope = parse_envelope(bytes);
  if (!envelope.ok()) return std::optional<StoredRun>{};
  auto records = std::make_shared<Records>();
  records->reserve(record_size(bytes.size()));
  records->add_loose(sequence, bytes);
  return std::optional<StoredRun>(
      {sequence, 1, 0, records, envelope->key.empty() ? envelope->priority : Priority::kNormal,
       to_ms(envelope->deliver_at), to_ms(envelope->expires_at), key_hash(envelope->key)});
}

Result<KeyHash> read_key(LogReader& reader, Sequence sequence, const History* history) {
  auto message = read_message(reader, sequence, history);
  if (!message.ok()) return message.error();
  return message->has_value() ? (*message)->key : 0;
}

KeyHash key_hash(std::string_view key) {
  if (key.empty()) return 0;
  const auto hash = static_cast<std::uint64_t>(std::hash<std::string_view>()(key));
  const auto part = (hash ^ (hash >> kKeyHashBits)) & ((1ULL << kKeyHashBits) - 1);
  return part == 0 ? 1 : part;
}

namespace {

// What a copy says that the records before it did not.
void add_copied(std::vector<AttemptRecord>& attempts, const CopyRecord& copy, GroupId group) {
  for (const auto& history : copy.histories) {
    if (history.group != group) continue;
    for (const auto& each : history.attempts) {
      const bool known = std::any_of(attempts.begin(), attempts.end(), [&](const auto& seen) {
        return seen.at_ms == each.at_ms && seen.attempts == each.attempts;
      });
      if (!known) attempts.push_back(each);
    }
  }
}

}  // namespace

std::vector<AttemptRecord> read_attempts(LogReader& reader, const History& history, GroupId group,
                                         std::size_t count_max) {
  std::vector<AttemptRecord> attempts;
  Lsn copy_lsn = history.copy_lsn();
  // Each record names the one before it. Where that went with its segment, the copy goes on.
  for (Lsn lsn = history.record_lsn() != 0 ? history.record_lsn() : copy_lsn;
       lsn != 0 && attempts.size() < count_max;) {
    if (lsn == copy_lsn) copy_lsn = 0;
    const auto record = reader.at(lsn);
    const bool there = record.ok() && record->has_value();
    const auto type = there ? (*record)->header.type : RecordType::kMarker;
    const auto payload = there ? (*record)->payload : std::string_view();
    lsn = 0;
    if (type == RecordType::kDead) {
      const auto dead = from_bytes<DeadRecord>(payload);
      if (!dead.ok()) break;
      attempts.push_back({dead->at_ms, dead->attempts, dead->cause, dead->reason, dead->worker});
      lsn = dead->before;
    } else if (type == RecordType::kRetry) {
      const auto retry = from_bytes<RetryRecord>(payload);
      if (!retry.ok()) break;
      attempts.push_back({retry->at_ms, retry->attempts, "", retry->reason, retry->worker});
      lsn = retry->before;
    } else if (type == RecordType::kCopy) {
      const auto copy = from_bytes<CopyRecord>(payload);
      if (copy.ok()) add_copied(attempts, *copy, group);
    } else {
      lsn = std::exchange(copy_lsn, 0);
    }
  }
  if (attempts.size() > count_max) attempts.resize(count_max);
  return attempts;
}

Result<std::optional<CopyRecord>> make_copy(LogReader& reader, Sequence sequence,
                                            const std::vector<const GroupState*>& groups) {
  CopyRecord copy;
  copy.sequence = sequence;
  std::size_t bytes = 0;
  // A dead letter may have been edited for one group: what lies elsewhere is another message. The
  // oldest place goes first.
  const History* any = nullptr;
  for (const auto* group : groups) {
    const auto* history = group->history(sequence);
    if (history != nullptr && (any == nullptr || history->copy_lsn() < any->copy_lsn())) {
      any = history;
    }
  }
  for (const auto* group : groups) {
    const auto* history = group->history(sequence);
    if (history == nullptr || history->copy_lsn() != any->copy_lsn()) continue;
    CopiedHistory copied{group->id(), history->record_lsn(), {}};
    for (auto& attempt : read_attempts(reader, *history, group->id(), kCopiedAttemptsMax)) {
      if (attempt.reason.size() > kCopiedTextMax) attempt.reason.resize(kCopiedTextMax);
      bytes += attempt.reason.size() + attempt.worker.size() + attempt.cause.size() + 64;
      if (bytes > kCopiedHistoriesBytesMax) break;
      copied.attempts.push_back(std::move(attempt));
    }
    copy.histories.push_back(std::move(copied));
  }
  if (any == nullptr) return std::optional<CopyRecord>{};
  auto message = read_message(reader, sequence, any);
  if (!message.ok()) return message.error();
  if (!message->has_value()) return std::optional<CopyRecord>{};
  copy.envelope.bytes = std::string((*message)->envelope());
  return std::optional<CopyRecord>(std::move(copy));
}

}  // namespace dray::spool
