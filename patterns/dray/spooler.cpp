#include "dray/spooler.hpp"

#include <sys/resource.h>

#include <algorithm>
#include <fstream>
#include <future>

#include "dray/disk/posix_directory.hpp"
#include "dray/spooler_state.hpp"

namespace dray {
namespace {

// systemd's machine-id(5): 32 hexadecimal digits. Nil where there is none.
Uuid machine_id() {
  std::ifstream file("/etc/machine-id");
  std::string digits;
  file >> digits;
  if (digits.size() != 32) return {};
  for (const std::size_t at : {8U, 13U, 18U, 23U}) digits.insert(at, 1, '-');
  return Uuid::from_text(digits).value_or(Uuid{});
}

// A spool has one descriptor for each segment, a worker one for each connection; nothing here uses
// select(), for which the soft limit is low.
void raise_descriptor_limit() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur == limit.rlim_max) return;
  limit.rlim_cur = limit.rlim_max;
  (void)setrlimit(RLIMIT_NOFILE, &limit);
}

}  // namespace

Spooler::Spooler(std::unique_ptr<State> state) : state_(std::move(state)) {}
Spooler::~Spooler() {
  stop();
}

Result<std::unique_ptr<Spooler>> Spooler::open(SpoolerOptions options) {
  auto state = std::make_unique<State>();
  state->options = std::move(options);
  const auto& wanted = state->options;
  raise_descriptor_limit();
  auto directory = open_posix_directory(wanted.directory, true);
  if (!directory.ok()) return directory.error();
  state->directory = std::move(*directory);
  spool::SpoolOptions spool_options;
  spool_options.durability = wanted.durability;
  spool_options.max_size = wanted.max_size;
  spool_options.log.preallocate = wanted.preallocate;
  spool_options.held_max = wanted.held_max;
  spool_options.dedup = {wanted.dedup_count, wanted.dedup_age};
  // What the owner remembers is not known here: nothing is forgotten meanwhile.
  if (wanted.keep_groups) spool_options.dedup = {SIZE_MAX, std::chrono::years(100)};
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
  dispatcher_options.publisher_memory = wanted.dedup_age;
  for (const auto& group : wanted.groups) dispatcher_options.limits[group.name] = group.limits;
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

// NOLINTNEXTLINE(performance-unnecessary-value-param): as the interface says
void Spooler::publish_draft(Draft draft, ReceiptCallback done) {
  state_->spool->publish_view(draft, std::move(done));
}

void Spooler::publish_view(const DraftView& draft, ReceiptCallback done) {
  state_->spool->publish_view(draft, std::move(done));
}

Result<Receipt> Spooler::publish_and_wait(const DraftView& draft) {
  return state_->spool->publish_and_wait(draft);
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
  status.segments = spool.segments().segments().size();
  status.held_max = spool.options().held_max;
  const bool answered = state_->dispatcher->call([&](balancing::Dispatcher::Desk& desk) {
    status.stale_results = desk.core.stale_results();
    status.expiry_paused = desk.core.expiry_paused({state_->clock.steady(), state_->clock.utc()});
    for (const auto& group : desk.core.group_status()) {
      if (!group.attached) status.detached_groups.push_back(group.name);
      status.groups.push_back({group.name, group.topics, group.attached, group.gated,
                               group.counts.accepted, group.counts.pending, group.counts.done,
                               group.counts.dead, group.counts.expired, group.counts.dropped,
                               group.counts.damaged, group.in_flight, group.delayed, group.workers,
                               group.held, group.in_line, group.paused, group.limits});
      if (group.counts.pending > 0) {
        status.groups.back().oldest_ms = state_->oldest_of(desk, *desk.core.find_group(group.name));
      }
    }
    for (const auto& session : desk.core.session_status()) {
      status.workers.push_back({session.id.text(), session.worker, session.group,
                                session.outstanding, session.window, session.connected});
    }
  });
  if (!answered) return spooler_stopped();
  return status;
}

}  // namespace dray
