// Spooler: administration: groups, dead letters and replay.
#include <algorithm>
#include <future>

#include "dray/spooler_state.hpp"

namespace dray {
namespace {

constexpr std::size_t kDeadBatchMax = 10'000;
constexpr std::size_t kDeadHistoryMax = 32;
constexpr std::size_t kReplayRecordsMax = 200'000;  // looked at in one step
constexpr auto kChangeTimeout = std::chrono::seconds(10);

// Counts changes down to the last one that becomes durable.
class Pending {
 public:
  explicit Pending(std::size_t count) : left_(count) {
    if (count == 0) durable_.set_value();
  }
  void finish_one() {
    if (--left_ == 0) durable_.set_value();
  }
  void cancel() { durable_.set_value(); }
  bool wait() {
    return durable_.get_future().wait_for(kChangeTimeout) == std::future_status::ready;
  }

 private:
  std::size_t left_;  // on the dispatcher's thread
  std::promise<void> durable_;
};

const Error kNotConfirmed{ErrorCode::kTimeout,
                          "the change was not confirmed within 10s; look again", "", 0};

}  // namespace

namespace {

// Messages and the records of their attempts lie far apart: each has a reader that goes on from
// letter to letter.
DeadLetter read_dead_letter(spool::LogReader& messages, spool::LogReader& records,
                            Sequence sequence, const spool::History& history,
                            spool::GroupId group) {
  const auto time = [](std::int64_t ms) { return utc_text(UtcTime(Milliseconds(ms))); };
  DeadLetter letter;
  letter.sequence = sequence;
  if (auto message = spool::read_message(messages, sequence, &history); message.ok() && *message) {
    const auto envelope = parse_envelope((*message)->envelope());
    if (envelope.ok()) {
      letter.id = envelope->id.text();
      letter.topic = envelope->topic;
      letter.key = envelope->key;
      letter.body = envelope->body;
    }
  }
  letter.attempts = history.attempts();
  const auto attempts = spool::read_attempts(records, history, group, kDeadHistoryMax + 1);
  for (std::size_t i = 0; i < attempts.size(); ++i) {
    const auto& each = attempts[i];
    if (i == 0) {
      letter.cause = each.cause;
      letter.reason = each.reason;
      letter.worker = each.worker;
      letter.died_at = time(each.at_ms);
    } else {
      letter.history.push_back({time(each.at_ms), each.worker, each.reason, each.attempts});
    }
  }
  return letter;
}

}  // namespace

Result<std::vector<DeadLetter>> Spooler::dead_letters(const std::string& group, Sequence after,
                                                      std::size_t limit) {
  Result<std::vector<DeadLetter>> result = std::vector<DeadLetter>{};
  const bool answered = state_->dispatcher->call([&](balancing::Dispatcher::Desk& desk) {
    const auto id = desk.core.find_group(group);
    if (!id) {
      result = no_group(group);
      return;
    }
    const auto& state = desk.core.group_state(*id);
    spool::LogReader messages = desk.reader.look_up();
    spool::LogReader records = desk.reader.look_up();
    for (Sequence each = state.next_dead(after); each != 0 && result->size() < limit;
         each = state.next_dead(each)) {
      result->push_back(read_dead_letter(messages, records, each, *state.history(each), *id));
      result->back().steps = steps_of(state, each);
    }
  });
  if (!answered) return spooler_stopped();
  return result;
}

namespace {

// Applies `change` to the dead letters named (or to all), in batches; waits until durable.
Result<std::size_t> change_dead(balancing::Dispatcher& dispatcher, const std::string& group,
                                std::vector<Sequence> wanted,
                                std::uint64_t (balancing::DispatcherCore::*change)(
                                    spool::GroupId, const std::vector<Sequence>&)) {
  std::sort(wanted.begin(), wanted.end());
  wanted.erase(std::unique(wanted.begin(), wanted.end()), wanted.end());
  Result<std::size_t> result = std::size_t{0};
  auto durable = std::make_shared<std::promise<void>>();
  auto waiting = durable->get_future();
  const bool answered = dispatcher.call([&](balancing::Dispatcher::Desk& desk) {
    const auto id = desk.core.find_group(group);
    if (!id) {
      result = no_group(group);
      return durable->set_value();
    }
    const auto& state = desk.core.group_state(*id);
    if (wanted.empty()) {
      for (Sequence each = state.next_dead(0); each != 0; each = state.next_dead(each)) {
        wanted.push_back(each);
      }
    }
    for (const auto sequence : wanted) {
      const auto* history = state.history(sequence);
      if (history != nullptr && history->dead()) continue;
      result = Error{ErrorCode::kNotFound,
                     "message " + std::to_string(sequence) + " is no dead letter of group '" +
                         group + "'; nothing was changed",
                     "", 0};
      return durable->set_value();
    }
    auto left = std::make_shared<std::size_t>((wanted.size() + kDeadBatchMax - 1) / kDeadBatchMax);
    if (*left == 0) return durable->set_value();
    for (std::size_t at = 0; at < wanted.size(); at += kDeadBatchMax) {
      const auto end = std::min(at + kDeadBatchMax, wanted.size());
      const std::vector<Sequence> batch(wanted.begin() + static_cast<std::ptrdiff_t>(at),
                                        wanted.begin() + static_cast<std::ptrdiff_t>(end));
      desk.when_finished((desk.core.*change)(*id, batch), [left, durable] {
        if (--*left == 0) durable->set_value();
      });
    }
    result = wanted.size();
  });
  if (!answered) return spooler_stopped();
  if (waiting.wait_for(std::chrono::seconds(10)) != std::future_status::ready) {
    return Error{ErrorCode::kTimeout, "the change was not confirmed within 10s; look again", "", 0};
  }
  return result;
}

}  // namespace

Result<std::size_t> Spooler::retry_dead(const std::string& group, std::vector<Sequence> sequences) {
  return change_dead(*state_->dispatcher, group, std::move(sequences),
                     &balancing::DispatcherCore::revive);
}

Result<std::size_t> Spooler::drop_dead(const std::string& group, std::vector<Sequence> sequences) {
  return change_dead(*state_->dispatcher, group, std::move(sequences),
                     &balancing::DispatcherCore::drop);
}

bool DeadFilter::operator()(const DeadLetter& letter) const {
  return (topic.empty() || letter.topic == topic) && (cause.empty() || letter.cause == cause) &&
         (signature.empty() || error_signature(letter.reason) == signature);
}

std::string error_signature(std::string_view reason) {
  std::string out;
  const auto is_digit = [](char c) { return c >= '0' && c <= '9'; };
  for (std::size_t i = 0; i < reason.size(); ++i) {
    const char c = reason[i];
    if (is_digit(c)) {
      while (i + 1 < reason.size() && is_digit(reason[i + 1])) ++i;
      out += '#';
      continue;
    }
    const bool quote = c == '\'' || c == '"';
    const auto end = quote ? reason.find(c, i + 1) : std::string_view::npos;
    if (end == std::string_view::npos) {
      out += c;
      continue;
    }
    out += '*';
    i = end;
  }
  return out;
}

Status Spooler::edit_dead(const std::string& group, Sequence sequence, const std::string& body) {
  Status result;
  auto pending = std::make_shared<Pending>(1);
  const bool answered = state_->dispatcher->call([&](balancing::Dispatcher::Desk& desk) {
    const auto refuse = [&](Error error) {
      result = std::move(error);
      pending->cancel();
    };
    const auto id = desk.core.find_group(group);
    if (!id) return refuse(no_group(group));
    const auto& state = desk.core.group_state(*id);
    const auto* history = state.history(sequence);
    if (history == nullptr || !history->dead()) {
      return refuse(Error{
          ErrorCode::kNotFound,
          "message " + std::to_string(sequence) + " is no dead letter of group '" + group + "'", "",
          0});
    }
    spool::LogReader reader = desk.reader.look_up();
    auto copy = spool::make_copy(reader, sequence, {&state});
    if (!copy.ok()) return refuse(copy.error());
    if (!copy->has_value()) {
      return refuse(Error{ErrorCode::kCorrupt, "the message can no longer be read", "", 0});
    }
    auto edited = with_body((*copy)->envelope.bytes, body, state_->spool->options().limits);
    if (!edited.ok()) return refuse(edited.error());
    (*copy)->envelope.bytes = std::move(*edited);
    desk.when_finished(desk.core.revive_edited(*id, **copy), [pending] { pending->finish_one(); });
  });
  if (!answered) return spooler_stopped();
  if (!pending->wait()) return kNotConfirmed;
  return result;
}

namespace {

// Calls `change` with the group, and waits until what it submitted is durable.
Status change_group(balancing::Dispatcher& dispatcher, const std::string& group,
                    const std::function<Result<std::uint64_t>(balancing::DispatcherCore&,
                                                              spool::GroupId)>& change) {
  Status result;
  auto pending = std::make_shared<Pending>(1);
  const bool answered = dispatcher.call([&](balancing::Dispatcher::Desk& desk) {
    const auto id = desk.core.find_group(group);
    const auto ticket = id ? change(desk.core, *id) : Result<std::uint64_t>(no_group(group));
    if (ticket.ok()) {
      return desk.when_finished(*ticket, [pending] { pending->finish_one(); });
    }
    result = ticket.error();
    pending->cancel();
  });
  if (!answered) return spooler_stopped();
  if (!pending->wait()) return kNotConfirmed;
  return result;
}

}  // namespace

Status Spooler::decide_dead(const std::string& group, Sequence sequence, const std::string& step,
                            const std::optional<std::string>& value) {
  if (value && value->size() > kStepValueBytesMax) {
    return Error{ErrorCode::kInvalid,
                 "the value of a step has at most " + std::to_string(kStepValueBytesMax) + " bytes",
                 "", 0};
  }
  return change_group(*state_->dispatcher, group,
                      [&](balancing::DispatcherCore& core, spool::GroupId id) {
                        return core.decide(id, sequence, step, value,
                                           {state_->clock.steady(), state_->clock.utc()});
                      });
}

Status Spooler::set_paused(const std::string& group, bool paused) {
  return change_group(*state_->dispatcher, group,
                      [&](balancing::DispatcherCore& core, spool::GroupId id) {
                        return Result<std::uint64_t>(core.set_paused(id, paused));
                      });
}

Status Spooler::drop_group(const std::string& group) {
  return change_group(
      *state_->dispatcher, group,
      [&](balancing::DispatcherCore& core, spool::GroupId id) -> Result<std::uint64_t> {
        if (core.group_state(id).standing() == spool::GroupStanding::kAttached) {
          return Error{ErrorCode::kConflict,
                       "group '" + group +
                           "' is in the config of this spool; take it out and restart first, so "
                           "that it takes nothing new",
                       "", 0};
        }
        return core.drop_group(id);
      });
}

namespace {

struct Candidate {
  Sequence sequence = 0;
  std::string envelope;
};

std::string_view topic_of(const Candidate& candidate) {
  const auto envelope = parse_envelope(candidate.envelope);
  DRAY_ASSERT(envelope.ok());  // it was read before it became one
  return envelope->topic;
}

}  // namespace

Result<ReplayStep> Spooler::replay(const ReplayRequest& request) {
  std::optional<spool::GroupId> id;
  std::vector<std::string> topics;
  if (!state_->dispatcher->call([&](balancing::Dispatcher::Desk& desk) {
        id = desk.core.find_group(request.group);
        if (id) topics = desk.core.group_state(*id).topics();
      })) {
    return spooler_stopped();
  }
  if (!id) return no_group(request.group);
  // Read on this thread: the dispatcher goes on.
  const auto& log = state_->spool->segments();
  spool::LogReader reader(log);
  ReplayStep step;
  step.end = end_of(log);
  if (request.before != 0) step.end = std::min(step.end, request.before);
  const Sequence begin = std::max(request.from, first_since(log, request.since));
  std::vector<Candidate> candidates;
  std::size_t looked_at = 0;
  step.next = step.end;
  const auto read = reader.read(begin, step.end, [&](const spool::Record& record) {
    step.next = record.header.lsn + 1;
    if (record.header.type == spool::RecordType::kMessage) {
      const auto envelope = parse_envelope(record.payload);
      if (envelope.ok() && envelope->published_at >= request.since &&
          std::find(topics.begin(), topics.end(), envelope->topic) != topics.end() &&
          (!request.where || request.where(*envelope))) {
        candidates.push_back({record.header.lsn, std::string(record.payload)});
      }
    }
    return candidates.size() < request.limit && ++looked_at < kReplayRecordsMax;
  });
  if (!read.ok()) return read.error();
  if (candidates.size() < request.limit && looked_at < kReplayRecordsMax) step.next = step.end;
  step.matched = candidates.size();
  if (candidates.empty()) return step;
  std::optional<Error> refused;
  auto pending = std::make_shared<std::optional<Pending>>();
  const bool answered = state_->dispatcher->call([&](balancing::Dispatcher::Desk& desk) {
    const auto& state = desk.core.group_state(*id);
    const std::uint64_t held = desk.core.held();
    const std::uint64_t held_max = state_->spool->options().held_max;
    std::uint64_t room = request.dry_run ? UINT64_MAX : held_max - std::min(held, held_max);
    std::vector<Candidate> chosen;
    step.matched = 0;
    for (auto& each : candidates) {
      // What the group never took need not be closed yet.
      const bool settled =
          state.is_settled(each.sequence) ||
          (state.history(each.sequence) == nullptr && !state.takes(topic_of(each), each.sequence));
      if (settled && room == 0) {
        step.next = each.sequence;  // the rest in the next step
        break;
      }
      ++step.matched;
      if (!settled) continue;
      --room;
      chosen.push_back(std::move(each));
    }
    if (chosen.empty() && room == 0) {
      refused = Error{ErrorCode::kFull,
                      "as many messages as allowed (held_max) wait with a history; let the group "
                      "work first, or raise it",
                      "", 0};
    }
    step.replayed = chosen.size();
    if (request.dry_run) chosen.clear();
    pending->emplace(chosen.size());
    for (auto& each : chosen) {
      desk.when_finished(desk.core.replay(*id, each.sequence, std::move(each.envelope)),
                         [pending] { (*pending)->finish_one(); });
    }
  });
  if (!answered) return spooler_stopped();
  if (!(*pending)->wait()) return kNotConfirmed;
  if (refused) return *refused;
  return step;
}

}  // namespace dray
