#include "dray/balancing/worker_core.hpp"

#include <algorithm>
#include <cmath>

#include "dray/balancing/planted_fault.hpp"
#include "dray/sequence_runs.hpp"

namespace dray::balancing {
namespace {

// What waits behind jobs that do not end is given back after so long.
constexpr auto kStallFine = std::chrono::milliseconds(5);
constexpr auto kStallCoarse = std::chrono::milliseconds(100);
constexpr auto kBusyWait = std::chrono::milliseconds(250);
constexpr std::size_t kResultItemsMax = 4'096;
constexpr std::size_t kResultBytesMax = 1U << 20;     // of one frame, when there is more to say
constexpr std::size_t kFollowUpBytesMax = 32U << 20;  // of one result

// Follow-ups may be refused, which makes the delivery a failed attempt.
bool asks_again(const ResultItem* result) {
  return result != nullptr && !planted(Fault::kRetryAnsweredAgain) &&
         (result->kind == ResultKind::kRetry || result->kind == ResultKind::kSnooze ||
          result->kind == ResultKind::kReturned || !result->follow_ups.empty());
}

}  // namespace

WorkerCore::WorkerCore(WorkerOptions options, std::size_t links, SteadyTime now)
    : options_(std::move(options)),
      planner_({options_.threads, options_.window_max, options_.window_bytes_max,
                options_.queue_target, options_.seed, options_.window_fixed}),
      loads_(links),
      progress_at_(now) {
  for (std::size_t i = 0; i < links; ++i) {
    auto& link = links_.emplace_back(nodes_.get());
    link.session = options_.make_session_id();
    link.sent_at = now;
  }
}

std::size_t WorkerCore::add_link(SteadyTime now) {
  const auto free =
      std::find_if(links_.begin(), links_.end(), [](const LinkState& link) { return link.closed; });
  const auto index = static_cast<std::size_t>(free - links_.begin());
  if (free == links_.end()) {
    links_.emplace_back(nodes_.get());
    loads_.emplace_back();
  }
  links_[index] = LinkState(nodes_.get());
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
  for (const auto job : jobs_.ids()) {
    if (jobs_.at(job).link == link) actions_.cancel.push_back(job);
  }
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
  const auto* found = jobs_.find(job);
  if (found == nullptr) return std::nullopt;
  return Origin{found->link, found->held->epoch, found->held->number};
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
  std::map<std::pair<std::uint64_t, std::uint32_t>, std::vector<Sequence>> held;
  for (const auto& [sequence, each] : state.held) {
    held[{each.epoch, each.number}].push_back(sequence);
  }
  for (auto& [token, sequences] : held) {
    std::sort(sequences.begin(), sequences.end());
    hello.held.push_back({token.first, token.second, std::move(sequences)});
  }
  send(link, encode(hello), now);
}

void WorkerCore::on_frame(std::size_t link, ProtocolFrame frame,
                          const std::shared_ptr<const void>& owner, SteadyTime now) {
  links_.at(link).heard_at = now;
  if (const auto* deliver = std::get_if<Deliver>(&frame)) {
    on_deliver(link, *deliver, owner, now);
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
  fresh.held.swap(old.held);
  fresh.given_up.swap(old.given_up);
  fresh.spool = std::exchange(old.spool, Uuid{});
  old.unsent.clear();
  loads_[to].held = std::exchange(loads_[from].held, 0);
  for (const auto job : jobs_.ids()) {
    if (auto& place = jobs_.at(job); place.link == from) place.link = to;
  }
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
  for (const auto& [sequence, held] : state.held) {
    if (held.stage != Stage::kAnswered || planted(Fault::kResultNotRepeated)) continue;
    state.unsent.push_back(sequence);
    const bool back = held.result && held.result->kind == ResultKind::kReturned;
    loads_[link].closed = loads_[link].closed || back;
  }
  for (const auto& undo : std::exchange(state.given_up, {})) send(link, encode(undo), now);
  for (const auto& [job, call] : steps_) {
    if (jobs_.at(job).link == link) send_step(job, call, now);
  }
}

void WorkerCore::forget_all(std::size_t link) {
  auto& state = links_[link];
  for (const auto& [sequence, held] : state.held) {
    if (held.stage != Stage::kHeld) continue;
    forget_job(held.job);
    actions_.cancel.push_back(held.job);
  }
  state.held.clear();
  state.unsent.clear();
  state.given_up.clear();
  loads_[link].held = 0;
}

void WorkerCore::on_deliver(std::size_t link, const Deliver& deliver,
                            const std::shared_ptr<const void>& owner, SteadyTime now) {
  auto& state = links_[link];
  // It crossed the BYE, which gives it back.
  if ((state.said_bye || state.left) && !planted(Fault::kByeCrossed)) return;
  auto& load = loads_[link];
  load.active_at = now;
  load.waiting = deliver.waiting;
  const auto arrived = static_cast<std::uint32_t>(deliver.deliveries.size());
  load.offered -= std::min(load.offered, arrived);
  if (state.offered_at) planner_.on_round_trip(now - *state.offered_at);
  state.offered_at.reset();
  const bool was_queueing = jobs_.size() > options_.threads;
  const bool something_waits = std::any_of(
      loads_.begin(), loads_.end(), [](const auto& each) { return each.open && each.waiting > 0; });
  const std::uint32_t room = planner_.room(something_waits);
  const std::uint32_t cap =
      std::max({options_.window_max, options_.window_fixed, options_.threads});
  actions_.start.reserve(actions_.start.size() + deliver.deliveries.size());
  for (const auto& delivered : deliver.deliveries) {
    const auto [slot, fresh] = state.held.try_emplace(delivered.sequence);
    Held& held = slot->second;
    held.epoch = deliver.epoch;
    held.number = delivered.number;
    // Granted again while it is here: the work is not done twice, its answer gets the new token.
    // But an answer that asks for another delivery was taken if there is one; only its CONFIRM was
    // lost.
    const bool again = held.stage == Stage::kAnswered && asks_again(held.result.get());
    if (!fresh && !again) {
      if (held.stage == Stage::kAnswered) state.unsent.push_back(delivered.sequence);
      continue;
    }
    held.stage = Stage::kHeld;
    held.result.reset();
    held.job = jobs_.add({link, delivered.sequence, &held});
    ++load.held;
    // Where each slot counts, what finds none waits elsewhere; and the cap is one.
    const bool too_many = jobs_.size() > (planner_.is_fine() ? room : cap);
    if (draining_ || state.retired_at || too_many) {
      on_returned(held.job);
      continue;
    }
    actions_.start.push_back(
        {held.job, delivered.sequence, delivered.attempt, owner, delivered.envelope});
  }
  if (!was_queueing && jobs_.size() > options_.threads) progress_at_ = now;
}

void WorkerCore::on_confirm(std::size_t link, const Confirm& confirm) {
  auto& state = links_[link];
  for (const auto& range : confirm.tokens) {
    for (const auto sequence : range.sequences) {
      const auto found = state.held.find(sequence);
      if (found == state.held.end() || found->second.epoch != range.epoch ||
          found->second.number != range.number) {
        continue;
      }
      if (found->second.stage == Stage::kHeld) {  // it is another's by now
        forget_job(found->second.job);
        --loads_[link].held;
        actions_.cancel.push_back(found->second.job);
      }
      state.held.erase(found);
    }
  }
}

void WorkerCore::answer(std::size_t link, Sequence sequence, Held& held,
                        std::unique_ptr<ResultItem> result) {
  forget_job(held.job);
  --loads_[link].held;
  held.stage = Stage::kAnswered;
  held.result = std::move(result);
  links_[link].unsent.push_back(sequence);
}

void WorkerCore::on_outcome(std::uint64_t job, const Outcome& outcome,
                            std::chrono::nanoseconds took, UtcTime now) {
  const auto* found = jobs_.find(job);
  if (found == nullptr) return;
  const auto [link, sequence, held] = *found;
  planner_.on_outcome(took);
  progressed_ = true;
  std::unique_ptr<ResultItem> result;
  if (outcome.kind() != Outcome::Kind::kDone || !outcome.follow_ups().empty()) {
    result = std::make_unique<ResultItem>();
    result->kind = static_cast<ResultKind>(outcome.kind());
    result->reason = outcome.reason().substr(0, 1'024);
    result->delay_ms = outcome.delay() ? outcome.delay()->count() : -1;
    std::size_t bytes = 0;
    for (const auto& draft : outcome.follow_ups()) {
      const auto checked = check_draft(draft, MessageLimits{});
      bytes += draft.body.size();
      if (!checked.ok() || outcome.follow_ups().size() > kFollowUpsMax ||
          bytes > kFollowUpBytesMax) {
        result->kind = ResultKind::kRetry;
        result->reason =
            "follow-up: " + (checked.ok() ? std::string("more than 64 of them, or over 32 MiB")
                                          : checked.error().text());
        result->follow_ups.clear();
        break;
      }
      result->follow_ups.push_back(encode_envelope(draft, uuid_v7(now), now));
    }
  }
  answer(link, sequence, *held, std::move(result));
}

// Whoever waits for the answer to a step of it waits for nothing.
void WorkerCore::forget_job(std::uint64_t job) {
  const auto call = steps_.empty() ? steps_.end() : steps_.find(job);
  if (call == steps_.end()) {
    jobs_.erase(job);
    return;
  }
  // A beginning that was not answered, or was given up: it does not run.
  if (call->second.what != StepCall::kDone) {
    const auto [link, sequence, place] = jobs_.at(job);
    auto& state = links_[link];
    const Held& held = *place;
    Step undo{held.epoch,       held.number,       sequence, StepCall::kNotDone,
              call->second.run, call->second.step, ""};
    if (!state.welcomed) {
      state.given_up.push_back(std::move(undo));
    } else if (call->second.what == StepCall::kBegin) {  // else it was said
      actions_.sends.push_back({link, encode(undo)});
    }
  }
  steps_.erase(call);
  jobs_.erase(job);
  actions_.stepped.emplace_back(job,
                                StepJournal::Reply{StepAnswer::kRefused, "this delivery was lost"});
}

void WorkerCore::call_step(std::uint64_t job, JobStep call, SteadyTime now) {
  if (jobs_.find(job) == nullptr) {
    actions_.stepped.emplace_back(
        job, StepJournal::Reply{StepAnswer::kRefused, "this delivery was lost"});
    return;
  }
  const auto& said = steps_[job] = std::move(call);
  if (links_[jobs_.at(job).link].welcomed) send_step(job, said, now);  // else after WELCOME
}

void WorkerCore::send_step(std::uint64_t job, const JobStep& call, SteadyTime now) {
  const auto [link, sequence, place] = jobs_.at(job);
  const Held& held = *place;
  send(link,
       encode(Step{held.epoch, held.number, sequence, call.what, call.run, call.step, call.value}),
       now);
}

void WorkerCore::on_stepped(std::size_t link, const Stepped& stepped) {
  const auto found = links_[link].held.find(stepped.sequence);
  if (found == links_[link].held.end() || found->second.stage != Stage::kHeld) return;
  const auto call = steps_.find(found->second.job);
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

void WorkerCore::on_returned(std::uint64_t job) {
  const auto* found = jobs_.find(job);
  if (found == nullptr) return;
  const auto [link, sequence, held] = *found;
  auto result = std::make_unique<ResultItem>();
  result->kind = ResultKind::kReturned;
  answer(link, sequence, *held, std::move(result));
  loads_[link].closed = true;  // the dispatcher takes it for a window of 0
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
      for (const auto& [sequence, held] : state.held) {
        const bool put_off =
            held.stage == Stage::kAnswered && held.result && !held.result->follow_ups.empty();
        if (put_off) state.unsent.push_back(sequence);
      }
    }
    if (state.broken_at && now - *state.broken_at >= state.grace) {
      // The lease is over: what did not start will be delivered elsewhere.
      for (const auto& [sequence, held] : state.held) {
        if (held.stage == Stage::kHeld) actions_.cancel.push_back(held.job);
      }
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
  for (const auto job : jobs_.ids()) actions_.cancel.push_back(job);
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
  const auto ids = jobs_.ids();
  actions_.cancel.insert(actions_.cancel.end(),
                         ids.begin() + static_cast<std::ptrdiff_t>(options_.threads), ids.end());
}

void WorkerCore::flush_results(std::size_t link, SteadyTime now) {
  auto& state = links_[link];
  if (!state.welcomed || state.unsent.empty()) return;
  sort_if_needed(state.unsent);
  state.unsent.erase(std::unique(state.unsent.begin(), state.unsent.end()), state.unsent.end());
  std::map<std::pair<std::uint64_t, std::uint32_t>, std::vector<Sequence>> done;
  ResultFrame frame;
  std::size_t bytes = 0;
  const auto flush = [&] {
    if (!frame.items.empty()) send(link, encode(frame), now);
    frame.items.clear();
    bytes = 0;
  };
  for (const auto sequence : state.unsent) {
    const auto found = state.held.find(sequence);
    if (found == state.held.end() || found->second.stage != Stage::kAnswered) continue;
    const Held& held = found->second;
    if (!held.result) {
      auto& sequences = done[{held.epoch, held.number}];
      if (sequences.empty()) sequences.reserve(state.unsent.size());
      sequences.push_back(sequence);
      continue;
    }
    ResultItem item = *held.result;
    item.tokens = {held.epoch, held.number, {sequence}};
    bytes += item.reason.size();
    for (const auto& envelope : item.follow_ups) bytes += envelope.size();
    frame.items.push_back(std::move(item));
    if (frame.items.size() >= kResultItemsMax || bytes >= kResultBytesMax) flush();
  }
  state.unsent.clear();
  for (auto& [token, sequences] : done) {
    ResultItem item;
    item.tokens = {token.first, token.second, std::move(sequences)};
    frame.items.push_back(std::move(item));
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
  return std::exchange(actions_, Actions{});
}

}  // namespace dray::balancing
