#include "dray/spooler.hpp"

#include <algorithm>
#include <fstream>
#include <future>

#include "dray/balancing/dispatcher.hpp"
#include "dray/disk/posix_directory.hpp"

namespace dray {
namespace {

constexpr std::size_t kDeadBatchMax = 10'000;
constexpr std::size_t kDeadHistoryMax = 32;

// systemd's machine-id(5): 32 hexadecimal digits. Nil where there is none.
Uuid machine_id() {
  std::ifstream file("/etc/machine-id");
  std::string digits;
  file >> digits;
  if (digits.size() != 32) return {};
  for (const std::size_t at : {8U, 13U, 18U, 23U}) digits.insert(at, "-");
  return Uuid::from_text(digits).value_or(Uuid{});
}

}  // namespace

struct Spooler::State {
  SpoolerOptions options;
  SystemClock clock;
  transport::Context context;
  std::unique_ptr<Directory> directory;
  std::unique_ptr<spool::Spool> spool;
  std::unique_ptr<transport::Authenticator> authenticator;
  std::unique_ptr<balancing::Dispatcher> dispatcher;
  std::string endpoint;  // with the port that was chosen for "tcp://127.0.0.1:*"
  bool stopped = false;
};

Spooler::Spooler(std::unique_ptr<State> state) : state_(std::move(state)) {}
Spooler::~Spooler() {
  stop();
}

Result<std::unique_ptr<Spooler>> Spooler::open(SpoolerOptions options) {
  auto state = std::make_unique<State>();
  state->options = std::move(options);
  const auto& wanted = state->options;
  auto directory = open_posix_directory(wanted.directory, true);
  if (!directory.ok()) return directory.error();
  state->directory = std::move(*directory);
  spool::SpoolOptions spool_options;
  spool_options.durability = wanted.durability;
  spool_options.max_size = wanted.max_size;
  spool_options.log.preallocate = wanted.preallocate;
  spool_options.held_max = wanted.held_max;
  spool_options.dedup = {wanted.dedup_count, wanted.dedup_age};
  spool_options.retain = {wanted.retain_age, wanted.retain_size};
  spool_options.retained_topics = wanted.retain_topics;
  spool_options.log.machine_id = machine_id();
  if (!wanted.keep_groups) {
    auto& groups = spool_options.groups.emplace();
    for (const auto& group : wanted.groups) groups.push_back({group.name, group.topics});
  }
  auto opened = spool::Spool::open(*state->directory, state->clock, spool_options, wanted.log);
  if (!opened.ok()) return opened.error();
  state->spool = std::move(*opened);
  balancing::DispatcherOptions dispatcher_options;
  dispatcher_options.spool = state->spool->id();
  dispatcher_options.epoch = state->spool->epoch();
  dispatcher_options.boundary = state->spool->boundary();
  dispatcher_options.lease = wanted.lease;
  dispatcher_options.reconnect_grace = wanted.reconnect_grace;
  dispatcher_options.held_max = state->spool->options().held_max;
  dispatcher_options.retain = state->spool->options().retain;
  dispatcher_options.last_utc_ms = state->spool->last_utc_ms();
  dispatcher_options.seed = random_u64();
  std::optional<balancing::DispatcherSecurity> security;
  if (const auto& keys = wanted.keys) {
    if (!transport::is_curve_key(keys->public_key) || !transport::is_curve_key(keys->secret_key)) {
      return Error{ErrorCode::kInvalid, "a key has 40 characters of Z85; make keys by dray keygen",
                   wanted.bind, 0};
    }
    auto started = transport::Authenticator::start(state->context, keys->allow_file,
                                                   keys->public_key, wanted.log);
    if (!started.ok()) return started.error();
    state->authenticator = std::move(*started);
    security = {{keys->secret_key}, state->authenticator.get()};
  }
  try {
    state->dispatcher = std::make_unique<balancing::Dispatcher>(
        state->context, state->clock, *state->spool, dispatcher_options,
        [failed = wanted.on_failure](const Error& error) {
          if (failed) failed(error);
        },
        wanted.log, std::move(security));
  } catch (const std::exception& exception) {  // no descriptor is left, or a libzmq without CURVE
    return Error{ErrorCode::kIo, std::string("no socket: ") + exception.what(), wanted.bind, 0};
  }
  if (!wanted.bind.empty()) {
    DRAY_TRY(state->dispatcher->bind(wanted.bind));
    state->endpoint = state->dispatcher->bound_endpoint();
    if (wanted.keys) {
      DRAY_TRY(transport::check_strangers_are_refused(state->endpoint, wanted.keys->public_key));
    }
  }
  state->dispatcher->start();
  state->spool->start(*state->dispatcher);
  wanted.log.info("spool is open",
                  {{"directory", wanted.directory},
                   {"epoch", std::to_string(state->spool->epoch())},
                   {"records", std::to_string(state->spool->scan_report().records)}});
  return std::unique_ptr<Spooler>(new Spooler(std::move(state)));
}

Status Spooler::adopt(const std::string& path) {
  auto directory = open_posix_directory(path, false);
  if (!directory.ok()) return directory.error();
  SystemClock clock;
  spool::SpoolOptions options;
  options.log.machine_id = machine_id();
  options.log.adopt = true;
  options.allow_volatile = true;
  auto opened = spool::Spool::open(**directory, clock, options, Log());
  return opened.ok() ? Status() : Status(opened.error());
}

void Spooler::stop() {
  if (std::exchange(state_->stopped, true)) return;
  state_->spool->stop();
  state_->dispatcher->stop();
  auto snapshot = state_->dispatcher->last_snapshot();
  if (snapshot.lsn != 0) state_->spool->checkpoint_at_stop(snapshot);
}

Status Spooler::bind(const std::string& endpoint) {
  Status bound = Error{ErrorCode::kClosed, "the spool is stopped", endpoint, 0};
  state_->dispatcher->call(
      [&](balancing::Dispatcher::Desk&) { bound = state_->dispatcher->bind(endpoint); });
  return bound;
}

Status Spooler::confirm_clock() {
  const bool answered = state_->dispatcher->call(
      [](balancing::Dispatcher::Desk& desk) { desk.core.confirm_clock(); });
  return answered ? Status() : Status(Error{ErrorCode::kClosed, "the spool is stopped", "", 0});
}

void Spooler::publish_draft(Draft draft, ReceiptCallback done) {
  state_->spool->publish_draft(std::move(draft), std::move(done));
}

namespace {
const Error kStopped{ErrorCode::kClosed, "the spool is stopped", "", 0};
}

Result<SpoolStatus> Spooler::status() {
  SpoolStatus status;
  auto& spool = *state_->spool;
  status.id = spool.id().text();
  status.directory = state_->options.directory;
  status.endpoint = state_->endpoint;
  status.epoch = spool.epoch();
  status.durability = spool.durability();
  status.size_bytes = spool.size_bytes();
  status.max_size_bytes = spool.max_size();
  status.ready_bytes = spool.segments().spares().filled();
  status.damaged_ranges = spool.scan_report().damaged.size();
  status.detached_groups = spool.detached_groups();
  status.segments = spool.segments().segments().size();
  status.held_max = spool.options().held_max;
  const bool answered = state_->dispatcher->call([&](balancing::Dispatcher::Desk& desk) {
    status.stale_results = desk.core.stale_results();
    status.expiry_paused = desk.core.expiry_paused({state_->clock.steady(), state_->clock.utc()});
    for (const auto& group : desk.core.group_status()) {
      status.groups.push_back({group.name, group.topics, group.attached, group.gated,
                               group.counts.accepted, group.counts.pending, group.counts.done,
                               group.counts.dead, group.counts.expired, group.counts.dropped,
                               group.counts.damaged, group.in_flight, group.delayed, group.workers,
                               group.held});
    }
    for (const auto& session : desk.core.session_status()) {
      status.workers.push_back({session.id.text(), session.worker, session.group,
                                session.outstanding, session.window, session.connected});
    }
  });
  if (!answered) return kStopped;
  return status;
}

namespace {

Error no_group(const std::string& group) {
  return Error{ErrorCode::kNotFound, "this spool has no group '" + group + "'", "", 0};
}

DeadLetter read_dead_letter(spool::LogReader& reader, Sequence sequence,
                            const spool::History& history, spool::GroupId group) {
  const auto time = [](std::int64_t ms) { return utc_text(UtcTime(Milliseconds(ms))); };
  DeadLetter letter;
  letter.sequence = sequence;
  if (auto message = spool::read_message(reader, sequence, &history); message.ok() && *message) {
    const auto envelope = parse_envelope((*message)->envelope);
    if (envelope.ok()) {
      letter.id = envelope->id.text();
      letter.topic = envelope->topic;
      letter.key = envelope->key;
      letter.body = envelope->body;
    }
  }
  letter.attempts = history.attempts();
  const auto attempts = spool::read_attempts(reader, history, group, kDeadHistoryMax + 1);
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
    spool::LogReader reader = desk.reader.look_up();
    for (Sequence each = state.next_dead(after); each != 0 && result->size() < limit;
         each = state.next_dead(each)) {
      result->push_back(read_dead_letter(reader, each, *state.history(each), *id));
    }
  });
  if (!answered) return kStopped;
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
  if (!answered) return kStopped;
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

}  // namespace dray
