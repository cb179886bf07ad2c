// Spooler: messages looked at: one and its life, what waits, what was accepted.
#include <algorithm>

#include "dray/life_reader.hpp"
#include "dray/spooler_state.hpp"

namespace dray {

Sequence end_of(const spool::SegmentLog& log) {
  Sequence end = 1;
  for (const auto& segment : log.segments()) end = std::max(end, segment.last_lsn + 1);
  return end;
}

Sequence first_since(const spool::SegmentLog& log, UtcTime since) {
  constexpr auto kClockSlack = std::chrono::minutes(1);
  Sequence first = 0;
  for (const auto& segment : log.segments()) {
    if (first == 0 || segment.created_at + kClockSlack <= since) first = segment.first_lsn;
  }
  return first;
}

std::vector<StepLife> steps_of(const spool::GroupState& state, Sequence sequence) {
  std::vector<StepLife> out;
  const auto* steps = state.steps().find(sequence);
  if (steps == nullptr) return out;
  for (const auto& step : *steps) out.push_back({step.name, step.done, step.value, step.at_ms});
  return out;
}

namespace {

constexpr std::size_t kPageMessagesMax = 1'000;
constexpr std::size_t kPageBytesMax = 4U << 20;
constexpr std::uint64_t kPageRecordsMax = 20'000;  // looked at on the dispatcher's thread
constexpr std::uint64_t kSliceRecordsMax = 512;    // then over what is settled behind them
constexpr std::uint64_t kAcceptedRecordsMax = 200'000;

std::optional<std::int64_t> in_ms(const std::optional<UtcTime>& time) {
  if (!time) return std::nullopt;
  return time->time_since_epoch().count();
}

void describe(StoredMessage& message, Sequence sequence, const EnvelopeView& envelope) {
  message.sequence = sequence;
  message.id = envelope.id.text();
  message.topic = envelope.topic;
  message.key = envelope.key;
  message.dedup = envelope.dedup;
  message.priority = envelope.priority;
  message.published_at_ms = envelope.published_at.time_since_epoch().count();
  message.deliver_at_ms = in_ms(envelope.deliver_at);
  message.expires_at_ms = in_ms(envelope.expires_at);
  if (auto headers = parse_headers(envelope.headers); headers.ok()) message.headers = *headers;
  message.body = envelope.body;
}

Result<Sequence> find_message(const spool::SegmentLog& log, const std::string& id) {
  const bool digits =
      !id.empty() && id.size() < 20 &&
      std::all_of(id.begin(), id.end(), [](char c) { return c >= '0' && c <= '9'; });
  if (digits) return Sequence{std::stoull(id)};
  const auto wanted = Uuid::from_text(id);
  if (!wanted) {
    return Error{ErrorCode::kInvalid,
                 "'" + id + "' is no message: give its id (a UUID) or its sequence (a number)", "",
                 0};
  }
  // A UUIDv7 begins with the time of its making (RFC 9562, section 5.7).
  std::int64_t made_ms = 0;
  for (std::size_t i = 0; i < 6; ++i) made_ms = made_ms * 256 + wanted->bytes.at(i);
  Sequence found = 0;
  spool::LogReader reader(log);
  const auto status = reader.read(first_since(log, UtcTime(Milliseconds(made_ms))), end_of(log),
                                  [&](const spool::Record& record) {
                                    if (record.header.type != spool::RecordType::kMessage)
                                      return true;
                                    const auto envelope = parse_envelope(record.payload);
                                    if (!envelope.ok() || envelope->id != *wanted) return true;
                                    found = record.header.lsn;
                                    return false;
                                  });
  if (!status.ok()) return status.error();
  if (found == 0) {
    return Error{ErrorCode::kNotFound,
                 "no message " + id +
                     " in this spool (settled ones go with their segments, see "
                     "'retain')",
                 "", 0};
  }
  return found;
}

// The plain messages of a group in [from, before), of any priority.
Result<spool::BacklogSlice> read_plain(spool::LogReader& reader, const spool::GroupState& group,
                                       Sequence from, Sequence before, std::size_t messages_max,
                                       std::uint64_t records_max) {
  spool::BacklogRequest request;
  request.from = from;
  request.before = before;
  request.known = group.known();
  request.messages_max = messages_max;
  request.bytes_max = kPageBytesMax;
  request.any_priority = true;
  request.accounts = false;
  request.records_max = records_max;
  return read_backlog(reader, group, request);
}

// When the oldest message was published that is open in the group, and neither dead nor to be
// delivered later than `now`. Looks at some thousands only: nothing if it is not among them.
std::optional<std::int64_t> oldest_open_ms(const spool::SegmentLog& log, spool::LogReader& reader,
                                           const spool::GroupState& group, UtcTime now) {
  constexpr std::uint64_t kRecordsMax = 4'096;
  constexpr std::uint64_t kEntriesMax = 10'000;
  const auto published_ms = [](std::string_view bytes) -> std::optional<std::int64_t> {
    const auto envelope = parse_envelope(bytes);
    if (!envelope.ok()) return std::nullopt;
    return envelope->published_at.time_since_epoch().count();
  };
  const Sequence end = end_of(log);
  const Sequence plain = std::min(group.first_plain(), end);
  // One with a history that is older.
  std::uint64_t looked_at = 0;
  for (const auto& [sequence, history] : group.entries()) {
    if (sequence > plain || ++looked_at > kEntriesMax) break;
    const bool is_due = history.due_ms() == spool::History::kAtHand ||
                        history.due_ms() <= now.time_since_epoch().count();
    if (history.dead() || !is_due) continue;
    const auto message = read_message(reader, sequence, &history);
    if (message.ok() && message->has_value()) return published_ms((*message)->envelope());
  }
  if (plain == end) return std::nullopt;
  const auto slice = read_plain(reader, group, plain, end, 1, kRecordsMax);
  if (!slice.ok() || slice->runs.empty()) return std::nullopt;
  return published_ms(slice->runs.front().envelope());
}

// Reads one page of what is open in a group.
class PendingReader {
 public:
  PendingReader(balancing::Dispatcher::Desk& desk, spool::GroupId id, Sequence end,
                std::size_t limit, balancing::Now now)
      : desk_(desk),
        id_(id),
        state_(desk.core.group_state(id)),
        end_(end),
        limit_(limit),
        now_(now),
        reader_(desk.reader.look_up()),
        single_(desk.reader.look_up()) {}

  Result<PendingPage> read(Sequence after) {
    Sequence at = std::min(after, end_) + 1;
    while (at < end_ && has_room()) {
      const auto held = next_held(at);
      if (!has_room()) {  // it went over as many dead ones as it may
        at = held;
        break;
      }
      const Sequence plain = std::min(state_.first_plain(at), end_);
      if (held <= plain) {
        if (held < end_) DRAY_TRY(add_held(held));
        at = held + 1;
        continue;
      }
      auto slice = read_plain(reader_, state_, plain, held, limit_ - page_.messages.size(),
                              kSliceRecordsMax);
      if (!slice.ok()) return slice.error();
      slice->for_each_message([&](Sequence sequence, const auto&, std::string_view envelope) {
        add(sequence, envelope);
      });
      looked_at_ += std::min(slice->next - plain, kSliceRecordsMax);
      at = slice->next;
    }
    page_.next = std::min(at, end_) - 1;
    page_.more = at < end_;
    return std::move(page_);
  }

 private:
  bool has_room() const {
    return page_.messages.size() < limit_ && bytes_ < kPageBytesMax && looked_at_ < kPageRecordsMax;
  }

  // The first message from `at` on that has a history and is not dead.
  Sequence next_held(Sequence at) {
    auto found = state_.entries().lower_bound(at);
    while (found != state_.entries().end() && found->second.dead() && has_room()) {
      ++looked_at_;
      ++found;
    }
    return found == state_.entries().end() ? end_ : std::min(found->first, end_);
  }

  Status add_held(Sequence sequence) {
    ++looked_at_;
    auto message = read_message(single_, sequence, state_.history(sequence));
    if (!message.ok()) return message.error();
    if (message->has_value()) add(sequence, (*message)->envelope());
    return {};
  }

  void add(Sequence sequence, std::string_view bytes) {
    const auto envelope = parse_envelope(bytes);
    if (!envelope.ok()) return;
    bytes_ += bytes.size();
    PendingMessage message;
    describe(message, sequence, *envelope);
    message.state = desk_.core.holder_of(id_, sequence) ? "in flight" : "waiting";
    message.why = desk_.core.why_waiting(id_, sequence, spool::key_hash(envelope->key), now_);
    if (const auto* history = state_.history(sequence)) message.attempts = history->attempts();
    page_.messages.push_back(std::move(message));
  }

  balancing::Dispatcher::Desk& desk_;
  const spool::GroupId id_;
  const spool::GroupState& state_;
  const Sequence end_;
  const std::size_t limit_;
  const balancing::Now now_;
  spool::LogReader reader_, single_;
  PendingPage page_;
  std::size_t bytes_ = 0;
  std::uint64_t looked_at_ = 0;
};

// Collects messages in the order of the log. A unit counts when it is whole (FORMATS.md, S6).
class AcceptedReader {
 public:
  explicit AcceptedReader(const AcceptedRequest& request, Sequence from)
      : request_(request), limit_(std::clamp<std::size_t>(request.limit, 1, kPageMessagesMax)) {
    page_.next = from;
  }

  bool on_record(const spool::Record& record) {
    using spool::RecordType;
    const bool message = record.header.type == RecordType::kMessage;
    if (record.header.type == RecordType::kEpoch) held_.clear();
    if (record.header.type == RecordType::kLost) on_gap();
    if ((record.header.flags & spool::kContinues) != 0) {
      if (message) held_.emplace_back(record.header.lsn, record.payload);
      ++looked_at_;
      return true;
    }
    if (record.header.type != RecordType::kOpening) {
      for (const auto& [lsn, payload] : std::exchange(held_, {})) take(lsn, payload);
    }
    if (message) take(record.header.lsn, record.payload);
    if (!held_.empty()) return true;
    page_.next = record.header.lsn + 1;
    return ++looked_at_ < kAcceptedRecordsMax && page_.messages.size() < limit_ &&
           bytes_ < kPageBytesMax;
  }
  void on_gap() {
    held_.clear();
    page_.gap = true;
  }
  AcceptedPage take_page(Sequence end, bool whole) {
    if (whole && held_.empty()) page_.next = end;
    page_.more = !whole;
    return std::move(page_);
  }

 private:
  void take(Sequence sequence, std::string_view bytes) {
    const auto envelope = parse_envelope(bytes);
    if (!envelope.ok() || envelope->published_at < request_.since ||
        (!request_.topic.empty() && envelope->topic != request_.topic)) {
      return;
    }
    bytes_ += bytes.size();
    describe(page_.messages.emplace_back(), sequence, *envelope);
  }

  const AcceptedRequest& request_;
  const std::size_t limit_;
  AcceptedPage page_;
  std::vector<std::pair<Sequence, std::string>> held_;  // of a unit that is not whole yet
  std::size_t bytes_ = 0;
  std::uint64_t looked_at_ = 0;
};

}  // namespace

std::optional<std::int64_t> Spooler::State::oldest_of(balancing::Dispatcher::Desk& desk,
                                                      spool::GroupId group) {
  constexpr int kShare = 50;
  auto& known = oldest[group];
  const auto begun = clock.steady();
  if (begun < known.again) return known.ms;
  spool::LogReader reader = desk.reader.look_up();
  known.ms = oldest_open_ms(spool->segments(), reader, desk.core.group_state(group), clock.utc());
  const auto ended = clock.steady();
  known.again = ended + kShare * (ended - begun);
  return known.ms;
}

Result<PendingPage> Spooler::pending(const std::string& group, Sequence after, std::size_t limit) {
  Result<PendingPage> page = PendingPage{};
  const bool answered = state_->dispatcher->call([&](balancing::Dispatcher::Desk& desk) {
    const auto id = desk.core.find_group(group);
    if (!id) {
      page = no_group(group);
      return;
    }
    PendingReader reader(desk, *id, end_of(state_->spool->segments()),
                         std::clamp<std::size_t>(limit, 1, kPageMessagesMax),
                         {state_->clock.steady(), state_->clock.utc()});
    page = reader.read(after);
  });
  if (!answered) return spooler_stopped();
  return page;
}

Result<AcceptedPage> Spooler::accepted(const AcceptedRequest& request) {
  const auto& log = state_->spool->segments();
  Sequence end = end_of(log);
  if (state_->spool->durability() == Durability::kDisk) {
    end = std::min(end, state_->spool->durable_lsn() + 1);
  }
  Sequence from = request.from;
  if (from == 0) from = request.since == UtcTime{} ? end : first_since(log, request.since);
  AcceptedReader reader(request, std::min(from, end));
  if (from > end)
    reader.on_gap();  // power failed, and what `os` promised was more than the disk has
  bool whole = true;
  if (from < end) {
    const auto read = spool::LogReader(log, 256U << 10)
                          .read(
                              from, end,
                              [&](const spool::Record& record) {
                                whole = reader.on_record(record);
                                return whole;
                              },
                              [&](spool::Lsn, spool::Lsn) { reader.on_gap(); });
    if (!read.ok()) return read.error();
  }
  return reader.take_page(end, whole);
}

Result<MessageLife> Spooler::show(const std::string& id) {
  const auto& log = state_->spool->segments();
  const auto sequence = find_message(log, id);
  if (!sequence.ok()) return sequence.error();
  LifeReader reader(*sequence);
  spool::LogReader records(log);
  std::string envelope_bytes;
  const auto read = records.read(*sequence, end_of(log), [&](const spool::Record& record) {
    if (record.header.lsn == *sequence && record.header.type == spool::RecordType::kMessage) {
      envelope_bytes = record.payload;
    }
    if (record.header.type == spool::RecordType::kCopy) {
      if (auto copy = from_bytes<spool::CopyRecord>(record.payload);
          copy.ok() && copy->sequence == *sequence) {
        // A group's edited copy is that group's alone (dead show); here it stands in for an
        // original that is gone.
        if (envelope_bytes.empty()) envelope_bytes = std::move(copy->envelope.bytes);
      }
    }
    reader.take(record);
    return true;
  });
  if (!read.ok()) return read.error();
  const auto envelope = parse_envelope(envelope_bytes);
  if (envelope_bytes.empty() || !envelope.ok()) {
    return Error{ErrorCode::kNotFound,
                 "no message with sequence " + std::to_string(*sequence) + " in this spool", "", 0};
  }
  MessageLife life;
  describe(life, *sequence, *envelope);
  life.durable = *sequence <= state_->spool->durable_lsn();
  const auto key = spool::key_hash(envelope->key);
  const bool answered = state_->dispatcher->call([&](balancing::Dispatcher::Desk& desk) {
    const balancing::Now now{state_->clock.steady(), state_->clock.utc()};
    for (const auto* state : desk.core.group_states()) {
      GroupLife group;
      group.group = state->name();
      group.events = reader.events(state->id());
      const auto* history = state->history(*sequence);
      const bool taken = state->takes(envelope->topic, *sequence) || history != nullptr;
      if (!taken && group.events.empty()) continue;
      group.steps = steps_of(*state, *sequence);
      if (state->is_settled(*sequence)) {
        group.state = "settled";
      } else {
        group.state = history != nullptr && history->dead()                     ? "dead"
                      : desk.core.holder_of(state->id(), *sequence).has_value() ? "in flight"
                                                                                : "waiting";
        group.why = desk.core.why_waiting(state->id(), *sequence, key, now);
      }
      life.groups.push_back(std::move(group));
    }
  });
  if (!answered) return spooler_stopped();
  return life;
}

}  // namespace dray
