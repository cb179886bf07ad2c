#include "dray/balancing/worker_core.hpp"

#include <algorithm>
#include <cmath>

#include "dray/balancing/planted_fault.hpp"

namespace dray::balancing {
namespace {

// What waits behind jobs that do not end is given back after so long.
constexpr auto kStallFine = std::chrono::milliseconds(5);
constexpr auto kStallCoarse = std::chrono::milliseconds(100);
constexpr auto kBusyWait = std::chrono::milliseconds(250);
// A dispatcher that keeps to kUnconfirmedMax never reaches it; one HELLO still names them all.
constexpr std::size_t kHeldMax = kUnconfirmedMax / 2 * 3;
constexpr std::size_t kResultItemsMax = 4'096;
constexpr std::size_t kResultBytesMax = 1U << 20;     // of one frame, when there is more to say
constexpr std::size_t kFollowUpBytesMax = 32U << 20;  // of one result
constexpr std::size_t kOutcomeReasonMax = 1'024;

// Follow-ups may be refused, which makes the delivery a failed attempt.
bool asks_again(const ResultItem& result) {
  return !planted(Fault::kRetryAnsweredAgain) &&
         (result.kind == ResultKind::kRetry || result.kind == ResultKind::kSnooze ||
          result.kind == ResultKind::kReturned || !result.follow_ups.empty());
}

}  // namespace

WorkerCore::WorkerCore(WorkerOptions options, std::size_t links, SteadyTime now)
    : options_(std::move(options)),
      planner_({options_.threads, options_.window_max, options_.window_bytes_max,
                options_.queue_target, options_.seed, options_.window_fixed}),
      loads_(links),
      progress_at_(now) {
  for (std::size_t i = 0; i < links; ++i) {
    auto& link = links_.emplace_back();
    link.session = options_.make_session_id();
    link.sent_at = now;
  }
}

std::size_t WorkerCore::add_link(SteadyTime now) {
  const auto free =
      std::find_if(links_.begin(), links_.end(), [](const LinkState& link) { return link.closed; });
  const auto index = static_cast<std::size_t>(free - links_.begin());
  if (free == links_.end()) {
    links_.emplace_back();
    loads_.emplace_back();
  }
  links_[index] = LinkState();
  loads_[index] = WindowPlanner::Link();
  links_[index].session = options_.make_session_id();
  links_[index].sent_at = now;
  return index;
}

void WorkerCore::retire_link(std::size_t link, SteadyTime now) {
  auto& state = links_.at(link);
  if (state.retired_at || state.closed) return;
  state.retired_at = now;
  loads_[link].open = false;
  if (state.welcomed) send(link, encode(Window{0, options_.window_bytes_max}), now);
  cancel_all(link);
}

// What did not begin need not.
void WorkerCore::cancel_all(std::size_t link) {
  jobs_.for_runs([&](const JobTable::Run& run) {
    if (run.common.link != link) return;
    JobTable::for_here(run, run.first(), run.end(),
                       [&](const SequenceRun& part) { actions_.cancel.add(part); });
  });
}

void WorkerCore::end_retired(SteadyTime now) {
  for (std::size_t link = 0; link < links_.size(); ++link) {
    auto& state = links_[link];
    if (!state.retired_at || state.closed) continue;
    // The dispatcher may come back under another address, and be told there.
    const bool given_up = !state.connected && now - *state.retired_at >= state.lease;
    if (!state.held.empty() && !given_up) continue;
    if (state.welcomed && !state.said_bye) {
      state.said_bye = true;
      send(link, encode(Bye{}), now);
    }
    forget_all(link);
    state.closed = true;
    state.connected = state.welcomed = false;
    actions_.close.push_back(link);
  }
}

bool WorkerCore::welcomed(std::size_t link) const {
  return links_.at(link).welcomed;
}

std::optional<WorkerCore::Origin> WorkerCore::origin_of(std::uint64_t job) const {
  const auto* run = jobs_.find(job);
  if (run == nullptr) return std::nullopt;
  const Sequence sequence = run->common.sequence + (job - run->first());
  const auto& held = links_[run->common.link].held.find(sequence)->common;
  return Origin{run->common.link, held.epoch, held.number};
}

void WorkerCore::send(std::size_t link, std::string frame, SteadyTime now) {
  links_[link].sent_at = now;
  actions_.sends.push_back({link, std::move(frame)});
}

void WorkerCore::on_connected(std::size_t link, SteadyTime now) {
  auto& state = links_.at(link);
  state.connected = true;
  state.heard_at = now;
  state.broken_at.reset();
  say_hello(link, now);
}

void WorkerCore::on_disconnected(std::size_t link, SteadyTime now) {
  auto& state = links_.at(link);
  state.connected = false;
  state.welcomed = false;
  loads_[link].open = false;
  if (!state.broken_at) state.broken_at = now;
}

void WorkerCore::say_hello(std::size_t link, SteadyTime now) {
  auto& state = links_[link];
  state.welcomed = false;
  state.said_bye = false;
  state.offered_at.reset();
  loads_[link].open = false;
  loads_[link].waiting = 0;
  Hello hello;
  hello.session = state.session;
  hello.count = ++state.hellos;
  hello.worker = options_.name;
  hello.group = options_.group;
  const auto window = planner_.hello(loads_, link, now);
  hello.window_messages = draining_ || state.retired_at ? 0 : window.messages;
  hello.window_bytes = window.bytes;
  hello.retry = options_.retry;
  std::map<std::pair<std::uint64_t, std::uint32_t>, SequenceRuns> held;
  state.held.for_runs([&](const HeldTable::Run& run) {
    auto& sequences = held[{run.common.epoch, run.common.number}];
    HeldTable::for_here(run, run.first(), run.end(),
                        [&](const SequenceRun& part) { sequences.add(part); });
  });
  for (auto& [token, sequences] : held) {
    hello.held.push_back({token.first, token.second, std::move(sequences)});
  }
  send(link, encode(hello), now);
}

void WorkerCore::on_frame(std::size_t link, ProtocolFrame frame,
                          const std::shared_ptr<const void>& owner, SteadyTime now) {
  links_.at(link).heard_at = now;
  if (auto* deliver = std::get_if<Deliver>(&frame)) {
    on_deliver(link, std::move(*deliver), owner, now);
  } else if (const auto* confirm = std::get_if<Confirm>(&frame)) {
    on_confirm(link, *confirm);
  } else if (const auto* stepped = std::get_if<Stepped>(&frame)) {
    on_stepped(link, *stepped);
  } else if (const auto* busy = std::get_if<Busy>(&frame)) {
    on_busy(link, *busy, now);
  } else if (const auto* backlog = std::get_if<Backlog>(&frame)) {
    auto& load = loads_.at(link);
    load.waiting = backlog->waiting;
    // It is told to those that seem to have no room.
    load.closed = load.closed || backlog->waiting > 0;
    if (backlog->waiting == 0) links_[link].offered_at.reset();
  } else if (const auto* welcome = std::get_if<Welcome>(&frame)) {
    on_welcome(link, *welcome, now);
  } else if (const auto* refused = std::get_if<Refused>(&frame)) {
    // Known by the next HELLO, which tick() says: a refusal is no reason for a storm.
    links_[link].welcomed = false;
    loads_[link].open = false;
    actions_.problems.push_back("refused: " + refused->code + ": " + refused->reason);
  }
}

// Another link leads to this spool. If it is live it goes on; if not, this one takes over.
bool WorkerCore::yields(std::size_t link, const Welcome& welcome, SteadyTime now) {
  auto& state = links_[link];
  for (std::size_t other = 0; other < links_.size(); ++other) {
    const auto& theirs = links_[other];
    if (other == link || theirs.closed || theirs.spool != welcome.spool) continue;
    // One that is connected will be welcomed, or found silent.
    if (theirs.connected && !theirs.said_bye) {
      const bool known = state.second_of == welcome.spool;
      state.second_of = welcome.spool;
      state.left = true;
      if (!known && theirs.welcomed && theirs.epoch != welcome.epoch) {
        actions_.problems.push_back(
            "spool " + welcome.spool.text() + " is served twice, in epochs " +
            std::to_string(theirs.epoch) + " and " + std::to_string(welcome.epoch) +
            "; the second is refused. Is one of them a copy? See dray spool adopt");
      }
      send(link, encode(Bye{}), now);
      return true;
    }
    if (!theirs.held.empty() && state.held.empty()) {
      state.left = true;
      send(link, encode(Bye{}), now);
      move_session(other, link, now);
      return true;
    }
  }
  return false;
}

bool WorkerCore::is_second(std::size_t link) const {
  const auto& spool = links_[link].second_of;
  return spool && std::any_of(links_.begin(), links_.end(), [&](const LinkState& other) {
           return other.welcomed && other.spool == *spool;
         });
}

// What is held from a dispatcher that moved is named to it where it is now, under the same session.
void WorkerCore::move_session(std::size_t from, std::size_t to, SteadyTime now) {
  auto& old = links_[from];
  auto& fresh = links_[to];
  std::swap(fresh.session, old.session);
  std::swap(fresh.hellos, old.hellos);
  std::swap(fresh.held, old.held);
  fresh.results.swap(old.results);
  fresh.given_up.swap(old.given_up);
  fresh.spool = std::exchange(old.spool, Uuid{});
  old.unsent.clear();
  loads_[to].held = std::exchange(loads_[from].held, 0);
  jobs_.for_runs([&](JobTable::Run& run) {
    if (run.common.link == from) run.common.link = to;
  });
  say_hello(to, now);
}

void WorkerCore::on_welcome(std::size_t link, const Welcome& welcome, SteadyTime now) {
  auto& state = links_[link];
  if (!state.spool.is_nil() && state.spool != welcome.spool) {
    actions_.problems.push_back("another spool answers at this endpoint: " + welcome.spool.text() +
                                " instead of " + state.spool.text());
    forget_all(link);
    state.spool = {};
  }
  if (yields(link, welcome, now)) return;
  state.left = false;
  state.spool = welcome.spool;
  state.epoch = welcome.epoch;
  state.second_of.reset();
  state.lease = Milliseconds(std::max<std::uint32_t>(welcome.lease_ms, 100));
  state.grace = Milliseconds(welcome.reconnect_grace_ms);
  state.welcomed = true;
  loads_[link].open = !draining_ && !state.retired_at;
  state.unsent.clear();  // P5: all that is not confirmed is said again
  if (!planted(Fault::kResultNotRepeated)) {
    state.held.for_runs([&](const HeldTable::Run& run) {
      HeldTable::for_marked(run, run.first(), run.end(),
                            [&](const SequenceRun& part) { state.unsent.add(part); });
    });
    for (const auto& [sequence, result] : state.results) {
      loads_[link].closed = loads_[link].closed || result.kind == ResultKind::kReturned;
    }
  }
  for (const auto& undo : std::exchange(state.given_up, {})) send(link, encode(undo), now);
  for (const auto& [job, call] : steps_) {
    if (jobs_.find(job)->common.link == link) send_step(job, call, now);
  }
}

void WorkerCore::forget_all(std::size_t link) {
  auto& state = links_[link];
  cancel_all(link);
  state.held.for_runs([&](const HeldTable::Run& run) {
    HeldTable::for_unmarked(run, run.first(), run.end(), [&](const SequenceRun& part) {
      forget_jobs({run.common.job + (part.first - run.first()), part.count});
    });
  });
  state.held.clear();
  state.results.clear();
  state.unsent.clear();
  state.given_up.clear();
  loads_[link].held = 0;
}

// How many jobs may be here. Where each slot counts, what finds none waits elsewhere.
std::uint32_t WorkerCore::room_for_jobs(bool something_waits) const {
  if (planner_.is_fine()) return planner_.room(something_waits);
  return std::max({options_.window_max, options_.window_fixed, options_.threads});
}

void WorkerCore::on_deliver(std::size_t link, Deliver deliver,
                            const std::shared_ptr<const void>& owner, SteadyTime now) {
  auto& state = links_[link];
  // It crossed the BYE, which gives it back.
  if ((state.said_bye || state.left) && !planted(Fault::kByeCrossed)) return;
  const auto arrived = static_cast<std::uint32_t>(deliver.records.offsets.size());
  if (state.held.size() + arrived > kHeldMax) {
    actions_.problems.push_back(
        "a dispatcher delivers without confirming anything: " + std::to_string(state.held.size()) +
        " deliveries are held; connecting anew");
    on_disconnected(link, now);
    actions_.reconnect.push_back(link);
    return;
  }
  auto& load = loads_[link];
  load.active_at = now;
  load.waiting = deliver.waiting;
  load.offered -= std::min(load.offered, arrived);
  if (state.offered_at) planner_.on_round_trip(now - *state.offered_at);
  state.offered_at.reset();
  const bool was_queueing = jobs_.size() > options_.threads;
  const bool something_waits = std::any_of(
      loads_.begin(), loads_.end(), [](const auto& each) { return each.open && each.waiting > 0; });
  jobs_max_ = room_for_jobs(something_waits);
  const auto bytes = std::make_shared<const Bytes>(Bytes{std::move(deliver.records), owner});
  for (const auto& run : bytes->records.runs) {
    if (!state.held.any({run.first, run.count})) {
      take_run(link, deliver, run, bytes);
      continue;
    }
    for (std::uint32_t i = 0; i < run.count; ++i) {
      if (takes_again(link, deliver, run.first + i)) {
        take_run(link, deliver, {run.first + i, 1, run.index + i}, bytes);
      }
    }
  }
  if (!was_queueing && jobs_.size() > options_.threads) progress_at_ = now;
}

// Whether it is to be run. If it is here it was granted again: the work is not done twice, its
// answer gets the new token. But an answer that asks for another delivery was taken if there is
// one; only its CONFIRM was lost.
bool WorkerCore::takes_again(std::size_t link, const Deliver& deliver, Sequence sequence) {
  auto& state = links_[link];
  if (!state.held.contains(sequence)) return true;
  auto& run = state.held.isolate(sequence);
  const bool answered = run.is_marked(sequence);
  const auto result = state.results.find(sequence);
  if (answered && result != state.results.end() && asks_again(result->second)) {
    state.results.erase(result);
    state.held.erase(sequence);
    return true;
  }
  run.common.epoch = deliver.epoch;
  run.common.number = deliver.number;
  if (answered) state.unsent.add(sequence);
  return false;
}

// REQUIRES: none of them is here.
void WorkerCore::take_run(std::size_t link, const Deliver& deliver, const Delivered::Run& run,
                          const std::shared_ptr<const Bytes>& bytes) {
  auto& state = links_[link];
  const std::uint64_t job = last_job_ + 1;
  last_job_ += run.count;
  const auto free = jobs_max_ - std::min<std::size_t>(jobs_max_, jobs_.size());
  const bool ends = draining_ || state.retired_at.has_value();
  const auto taken = ends ? 0 : static_cast<std::uint32_t>(std::min<std::size_t>(free, run.count));
  state.held.add(run.first, run.count, {deliver.epoch, deliver.number, job});
  jobs_.add(job, run.count, {link, run.first});
  loads_[link].held += run.count;
  if (taken > 0) {
    actions_.start.push_back({job, taken, run.index, run.first, deliver.attempt, bytes});
  }
  if (taken < run.count) on_returned({job + taken, run.count - taken});
}

void WorkerCore::on_confirm(std::size_t link, const Confirm& confirm) {
  auto& state = links_[link];
  for (const auto& range : confirm.tokens) {
    for (const auto& run : range.sequences) {
      state.held.for_parts(run, [&](HeldTable::Run& held, Sequence first, Sequence end) {
        if (held.common.epoch != range.epoch || held.common.number != range.number) return;
        HeldTable::for_unmarked(held, first, end, [&](const SequenceRun& part) {
          // It is another's by now.
          const SequenceRun jobs{held.common.job + (part.first - held.first()), part.count};
          forget_jobs(jobs);
          loads_[link].held -= static_cast<std::uint32_t>(part.count);
          actions_.cancel.add(jobs);
        });
        forget_results(link, {first, end - first});
        state.held.erase(held, first, end);
      });
    }
  }
}

void WorkerCore::forget_results(std::size_t link, const SequenceRun& sequences) {
  auto& results = links_[link].results;
  if (results.empty()) return;
  results.erase(results.lower_bound(sequences.first), results.lower_bound(sequences.end()));
}

// Those that are known are answered: done, without more. How many they were.
std::uint64_t WorkerCore::answer_done(const SequenceRun& jobs) {
  std::uint64_t known = 0;
  jobs_.for_parts(jobs, [&](JobTable::Run& run, std::uint64_t first, std::uint64_t end) {
    const auto [link, sequence] = run.common;
    const std::uint64_t run_first = run.first();
    SequenceRuns here;
    JobTable::for_here(run, first, end, [&](const SequenceRun& part) { here.add(part); });
    for (const auto& part : here) {
      const SequenceRun sequences{sequence + (part.first - run_first), part.count};
      auto& state = links_[link];
      state.held.for_parts(sequences, [&](HeldTable::Run& held, Sequence from, Sequence until) {
        state.held.mark(held, from, until);
      });
      loads_[link].held -= static_cast<std::uint32_t>(part.count);
      state.unsent.add(sequences);
      forget_jobs(part);
      known += part.count;
    }
  });
  return known;
}

void WorkerCore::answer(std::uint64_t job, ResultItem result) {
  const auto* run = jobs_.find(job);
  if (run == nullptr) return;
  const Sequence sequence = run->common.sequence + (job - run->first());
  links_[run->common.link].results[sequence] = std::move(result);
  answer_done({job, 1});
}

void WorkerCore::on_done(const SequenceRun& jobs, std::chrono::nanoseconds took) {
  const auto known = answer_done(jobs);
  if (known == 0) return;
  planner_.on_outcomes(
      known, took / static_cast<std::int64_t>(jobs.count) * static_cast<std::int64_t>(known));
  progressed_ = true;
}

void WorkerCore::on_outcome(std::uint64_t job, const Outcome& outcome,
                            std::chrono::nanoseconds took, UtcTime now) {
  if (!jobs_.contains(job)) return;
  if (outcome.kind() == Outcome::Kind::kDone && outcome.follow_ups().empty()) {
    return on_done({job, 1}, took);
  }
  planner_.on_outcomes(1, took);
  progressed_ = true;
  ResultItem result;
  result.kind = static_cast<ResultKind>(outcome.kind());
  result.reason = outcome.reason().substr(0, kOutcomeReasonMax);
  result.delay_ms = outcome.delay() ? outcome.delay()->count() : -1;
  if (outcome.kind() != Outcome::Kind::kDone && !outcome.follow_ups().empty()) {
    constexpr std::string_view kNone = "its follow-ups are not published: they go with done()";
    result.reason.resize(std::min(result.reason.size(), kOutcomeReasonMax - kNone.size() - 2));
    result.reason += (result.reason.empty() ? "" : "; ") + std::string(kNone);
    return answer(job, std::move(result));
  }
  std::size_t bytes = 0;
  for (const auto& draft : outcome.follow_ups()) {
    const auto checked = check_draft(draft, MessageLimits{});
    bytes += draft.body.size();
    if (!checked.ok() || outcome.follow_ups().size() > kFollowUpsMax || bytes > kFollowUpBytesMax) {
      result.kind = ResultKind::kRetry;
      result.reason =
          "follow-up: " + (checked.ok() ? std::string("more than 64 of them, or over 32 MiB")
                                        : checked.error().text());
      result.follow_ups.clear();
      break;
    }
    result.follow_ups.push_back(encode_envelope(draft, uuid_v7(now), now));
  }
  answer(job, std::move(result));
}

void WorkerCore::forget_jobs(const SequenceRun& jobs) {
  if (!steps_.empty()) {
    for (auto job = jobs.first; job < jobs.end(); ++job) forget_step(job);
  }
  jobs_.for_parts(jobs, [&](JobTable::Run& run, std::uint64_t first, std::uint64_t end) {
    jobs_.erase(run, first, end);
  });
}

// Whoever waits for the answer to a step of it waits for nothing.
void WorkerCore::forget_step(std::uint64_t job) {
  const auto call = steps_.find(job);
  if (call == steps_.end()) return;
  // A beginning that was not answered, or was given up: it does not run.
  if (call->second.what != StepCall::kDone) {
    const auto [link, sequence] = place_of(job);
    auto& state = links_[link];
    const Held& held = state.held.find(sequence)->common;
    Step undo{held.epoch,       held.number,       sequence, StepCall::kNotDone,
              call->second.run, call->second.step, ""};
    if (!state.welcomed) {
      state.given_up.push_back(std::move(undo));
    } else if (call->second.what == StepCall::kBegin) {  // else it was said
      actions_.sends.push_back({link, encode(undo)});
    }
  }
  steps_.erase(call);
  actions_.stepped.emplace_back(job,
                                StepJournal::Reply{StepAnswer::kRefused, "this delivery was lost"});
}

// REQUIRES: it is known.
WorkerCore::JobPlace WorkerCore::place_of(std::uint64_t job) const {
  const auto& run = *jobs_.find(job);
  JobPlace place = run.common;
  place.skip(job - run.first());
  return place;
}

void WorkerCore::call_step(std::uint64_t job, JobStep call, SteadyTime now) {
  if (!jobs_.contains(job)) {
    actions_.stepped.emplace_back(
        job, StepJournal::Reply{StepAnswer::kRefused, "this delivery was lost"});
    return;
  }
  const auto& said = steps_[job] = std::move(call);
  if (links_[place_of(job).link].welcomed) send_step(job, said, now);  // else after WELCOME
}

void WorkerCore::send_step(std::uint64_t job, const JobStep& call, SteadyTime now) {
  const auto [link, sequence] = place_of(job);
  const Held& held = links_[link].held.find(sequence)->common;
  send(link,
       encode(Step{held.epoch, held.number, sequence, call.what, call.run, call.step, call.value}),
       now);
}

void WorkerCore::on_stepped(std::size_t link, const Stepped& stepped) {
  const auto* held = links_[link].held.find(stepped.sequence);
  if (held == nullptr || held->is_marked(stepped.sequence)) return;
  const auto call = steps_.find(held->common.job + (stepped.sequence - held->first()));
  if (call == steps_.end() || call->second.run != stepped.run ||
      call->second.what != stepped.what || call->second.step != stepped.step) {
    return;  // an answer that came twice
  }
  actions_.stepped.emplace_back(call->first, StepJournal::Reply{stepped.answer, stepped.value});
  steps_.erase(call);
}

void WorkerCore::on_busy(std::size_t link, const Busy& busy, SteadyTime now) {
  if (!busy.tokens.empty() && !links_[link].busy_until) links_[link].busy_until = now + kBusyWait;
}

void WorkerCore::on_returned(const SequenceRun& jobs) {
  for (auto job = jobs.first; job < jobs.end(); ++job) {
    if (!jobs_.contains(job)) continue;
    loads_[place_of(job).link].closed = true;  // the dispatcher takes it for a window of 0
    ResultItem result;
    result.kind = ResultKind::kReturned;
    answer(job, std::move(result));
  }
}

void WorkerCore::tick(SteadyTime now) {
  give_back_stalled(now);
  for (std::size_t link = 0; link < links_.size(); ++link) {
    auto& state = links_[link];
    // A dispatcher that is there says something every quarter of a lease. A connection may be gone
    // without either end hearing of it.
    const bool expects = state.welcomed || !is_second(link);
    if (state.connected && !state.said_bye && expects && now - state.heard_at >= state.lease) {
      on_disconnected(link, now);
      actions_.reconnect.push_back(link);
    }
    if (state.connected && !state.said_bye && now - state.sent_at >= state.lease / 4) {
      if (state.welcomed) {
        send(link, encode(Heartbeat{}), now);
      } else if (!is_second(link)) {
        say_hello(link, now);
      }
    }
    if (state.busy_until && now >= *state.busy_until) {
      state.busy_until.reset();
      for (const auto& [sequence, result] : state.results) {
        if (!result.follow_ups.empty()) state.unsent.add(sequence);
      }
    }
    if (state.broken_at && now - *state.broken_at >= state.grace) {
      // The lease is over: what did not start will be delivered elsewhere.
      cancel_all(link);
      state.broken_at.reset();
    }
  }
}

void WorkerCore::drain() {
  if (draining_) return;
  draining_ = true;
  for (std::size_t link = 0; link < links_.size(); ++link) {
    loads_[link].open = false;
    if (!links_[link].welcomed) continue;
    // Said at the next chance, with what may be sent now.
    farewells_.push_back(link);
  }
  for (const auto& run : jobs_.all_here()) actions_.cancel.add(run);
}

bool WorkerCore::drained() const {
  return draining_ && std::all_of(links_.begin(), links_.end(), [](const LinkState& link) {
           return link.held.empty() && (link.said_bye || !link.welcomed);
         });
}

void WorkerCore::send_windows(const std::vector<WindowPlanner::Said>& windows, bool before_results,
                              SteadyTime now) {
  for (const auto& said : windows) {
    if (said.before_results != before_results) continue;
    if (!before_results && planted(Fault::kRoomNotSaid)) continue;
    auto& state = links_[said.link];
    const auto& load = loads_[said.link];
    if (load.waiting > 0 && said.messages > load.held && !state.offered_at) state.offered_at = now;
    send(said.link, encode(Window{said.messages, said.bytes}), now);
  }
}

SteadyTime WorkerCore::next_deadline(SteadyTime now) const {
  SteadyTime next = now + std::chrono::milliseconds(50);
  if (!draining_ && jobs_.size() > options_.threads) {
    next = std::min(next, progress_at_ + (planner_.is_fine() ? kStallFine : kStallCoarse));
  }
  return std::max(next, now);
}

// What waits here behind jobs that do not end may begin elsewhere.
void WorkerCore::give_back_stalled(SteadyTime now) {
  if (std::exchange(progressed_, false)) progress_at_ = now;
  if (draining_ || jobs_.size() <= options_.threads) return;
  const std::chrono::nanoseconds stall = planner_.is_fine() ? kStallFine : kStallCoarse;
  if (now - progress_at_ < stall) return;
  planner_.on_stall(now - progress_at_);
  progress_at_ = now;
  // The oldest ones are those that run.
  std::uint64_t running = options_.threads;
  for (auto run : jobs_.all_here()) {
    const auto skipped = std::min(running, run.count);
    running -= skipped;
    if (skipped < run.count) actions_.cancel.add(run.first + skipped, run.count - skipped);
  }
}

void WorkerCore::flush_results(std::size_t link, SteadyTime now) {
  auto& state = links_[link];
  if (!state.welcomed || state.unsent.empty()) return;
  state.unsent.sort();
  Tokens done;
  ResultFrame frame;
  std::size_t bytes = 0;
  const auto flush = [&] {
    if (!frame.items.empty()) send(link, encode(frame), now);
    frame.items.clear();
    bytes = 0;
  };
  const auto say = [&](const Held& held, Sequence sequence, ResultItem item) {
    item.tokens = {held.epoch, held.number, {sequence}};
    bytes += item.reason.size();
    for (const auto& envelope : item.follow_ups) bytes += envelope.size();
    frame.items.push_back(std::move(item));
    if (frame.items.size() >= kResultItemsMax || bytes >= kResultBytesMax) flush();
  };
  const auto say_part = [&](const Held& held, const SequenceRun& part) {
    auto& sequences = done[{held.epoch, held.number}];
    Sequence next = part.first;
    for (auto each = state.results.lower_bound(part.first);
         each != state.results.end() && each->first < part.end(); ++each) {
      if (next < each->first) sequences.add(next, each->first - next);
      next = each->first + 1;
      say(held, each->first, each->second);
    }
    if (next < part.end()) sequences.add(next, part.end() - next);
  };
  for (const auto& run : std::exchange(state.unsent, {})) {
    state.held.for_parts(run, [&](HeldTable::Run& held, Sequence first, Sequence end) {
      HeldTable::for_marked(held, first, end,
                            [&](const SequenceRun& part) { say_part(held.common, part); });
    });
  }
  for (auto& tokens : in_frames(done)) {
    for (auto& each : tokens) {
      ResultItem item;
      item.tokens = std::move(each);
      frame.items.push_back(std::move(item));
    }
    flush();
  }
  flush();
}

WorkerCore::Actions WorkerCore::take_actions(SteadyTime now) {
  for (const auto link : std::exchange(farewells_, {})) {
    send(link, encode(Window{0, options_.window_bytes_max}), now);
  }
  const auto windows = planner_.plan(loads_, now);
  send_windows(windows, true, now);
  for (std::size_t link = 0; link < links_.size(); ++link) flush_results(link, now);
  send_windows(windows, false, now);
  end_retired(now);
  if (draining_) {
    for (std::size_t link = 0; link < links_.size(); ++link) {
      auto& state = links_[link];
      if (!state.welcomed || state.said_bye || !state.held.empty()) continue;
      state.said_bye = true;
      send(link, encode(Bye{}), now);
    }
  }
  actions_.cancel.sort();
  return std::exchange(actions_, Actions{});
}

}  // namespace dray::balancing
