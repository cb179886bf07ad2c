#include "dray/balancing/worker_core.hpp"

#include <algorithm>
#include <cmath>

#include "dray/balancing/planted_fault.hpp"

namespace dray::balancing {
namespace {

constexpr double kSmoothing = 0.05;
constexpr auto kActiveFor = std::chrono::seconds(1);
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
    : options_(std::move(options)), links_(links) {
  for (auto& link : links_) {
    link.session = options_.make_session_id();
    link.sent_at = now;
  }
}

bool WorkerCore::welcomed(std::size_t link) const {
  return links_.at(link).welcomed;
}

std::optional<WorkerCore::Origin> WorkerCore::origin_of(std::uint64_t job) const {
  const auto found = jobs_.find(job);
  if (found == jobs_.end()) return std::nullopt;
  const auto& held = links_[found->second.link].held.at(found->second.sequence);
  return Origin{found->second.link, held.epoch, held.number};
}

void WorkerCore::send(std::size_t link, std::string frame, SteadyTime now) {
  links_[link].sent_at = now;
  actions_.sends.push_back({link, std::move(frame)});
}

void WorkerCore::on_connected(std::size_t link, SteadyTime now) {
  auto& state = links_.at(link);
  state.connected = true;
  state.broken_at.reset();
  say_hello(link, now);
}

void WorkerCore::on_disconnected(std::size_t link, SteadyTime now) {
  auto& state = links_.at(link);
  state.connected = false;
  state.welcomed = false;
  if (!state.broken_at) state.broken_at = now;
}

void WorkerCore::say_hello(std::size_t link, SteadyTime now) {
  auto& state = links_[link];
  state.welcomed = false;
  state.said_bye = false;
  Hello hello;
  hello.session = state.session;
  hello.worker = options_.name;
  hello.group = options_.group;
  hello.window_messages = state.window_said = window_of(link, now);
  hello.window_bytes = options_.window_bytes_max;
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
  if (const auto* deliver = std::get_if<Deliver>(&frame)) {
    on_deliver(link, *deliver, owner, now);
  } else if (const auto* confirm = std::get_if<Confirm>(&frame)) {
    on_confirm(link, *confirm);
  } else if (const auto* welcome = std::get_if<Welcome>(&frame)) {
    on_welcome(link, *welcome);
  } else if (const auto* refused = std::get_if<Refused>(&frame)) {
    // Known by the next HELLO, which tick() says: a refusal is no reason for a storm.
    links_[link].welcomed = false;
    actions_.problems.push_back("refused: " + refused->code + ": " + refused->reason);
  }
}

void WorkerCore::on_welcome(std::size_t link, const Welcome& welcome) {
  auto& state = links_[link];
  if (!state.spool.is_nil() && state.spool != welcome.spool) {
    actions_.problems.push_back("another spool answers at this endpoint: " + welcome.spool.text() +
                                " instead of " + state.spool.text());
    forget_all(link);
  }
  state.spool = welcome.spool;
  state.lease = Milliseconds(std::max<std::uint32_t>(welcome.lease_ms, 100));
  state.grace = Milliseconds(welcome.reconnect_grace_ms);
  state.welcomed = true;
  state.unsent.clear();  // P5: all that is not confirmed is said again
  for (const auto& [sequence, held] : state.held) {
    if (held.stage == Stage::kAnswered && !planted(Fault::kResultNotRepeated)) {
      state.unsent.push_back(sequence);
    }
  }
}

void WorkerCore::forget_all(std::size_t link) {
  auto& state = links_[link];
  for (const auto& [sequence, held] : state.held) {
    if (held.stage != Stage::kHeld) continue;
    jobs_.erase(held.job);
    actions_.cancel.push_back(held.job);
  }
  state.held.clear();
  state.unsent.clear();
}

void WorkerCore::on_deliver(std::size_t link, const Deliver& deliver,
                            const std::shared_ptr<const void>& owner, SteadyTime now) {
  auto& state = links_[link];
  if (state.said_bye && !planted(Fault::kByeCrossed))
    return;  // it crossed the BYE, which gives it back
  state.active_at = now;
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
    held.job = ++last_job_;
    jobs_[held.job] = {link, delivered.sequence};
    if (draining_) {
      on_returned(held.job);
      continue;
    }
    actions_.start.push_back(
        {held.job, delivered.sequence, delivered.attempt, owner, delivered.envelope});
  }
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
        jobs_.erase(found->second.job);
        actions_.cancel.push_back(found->second.job);
      }
      state.held.erase(found);
    }
  }
}

void WorkerCore::answer(std::size_t link, Sequence sequence, Held& held,
                        std::unique_ptr<ResultItem> result) {
  jobs_.erase(held.job);
  held.stage = Stage::kAnswered;
  held.result = std::move(result);
  links_[link].unsent.push_back(sequence);
}

void WorkerCore::on_outcome(std::uint64_t job, const Outcome& outcome,
                            std::chrono::nanoseconds took, UtcTime now) {
  const auto found = jobs_.find(job);
  if (found == jobs_.end()) return;
  const auto [link, sequence] = found->second;
  const double seconds = std::chrono::duration<double>(took).count();
  mean_seconds_ =
      mean_seconds_ < 0 ? seconds : mean_seconds_ + kSmoothing * (seconds - mean_seconds_);
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
  answer(link, sequence, links_[link].held.at(sequence), std::move(result));
}

void WorkerCore::on_returned(std::uint64_t job) {
  const auto found = jobs_.find(job);
  if (found == jobs_.end()) return;
  const auto [link, sequence] = found->second;
  auto result = std::make_unique<ResultItem>();
  result->kind = ResultKind::kReturned;
  answer(link, sequence, links_[link].held.at(sequence), std::move(result));
}

void WorkerCore::tick(SteadyTime now) {
  for (std::size_t link = 0; link < links_.size(); ++link) {
    auto& state = links_[link];
    if (state.connected && !state.said_bye && now - state.sent_at >= state.lease / 4) {
      if (state.welcomed) {
        send(link, encode(Heartbeat{}), now);
      } else {
        say_hello(link, now);
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
  for (const auto& [job, place] : jobs_) actions_.cancel.push_back(job);
}

bool WorkerCore::drained() const {
  return draining_ && std::all_of(links_.begin(), links_.end(), [](const LinkState& link) {
           return link.held.empty() && (link.said_bye || !link.welcomed);
         });
}

std::uint32_t WorkerCore::window_of(std::size_t link, SteadyTime now) const {
  if (draining_) return 0;
  const auto threads = static_cast<double>(options_.threads);
  double total = threads * 2;
  if (mean_seconds_ >= 0) {
    const double target = std::chrono::duration<double>(options_.queue_target).count();
    total = threads * (1 + target / std::max(mean_seconds_, 1e-7));
  }
  total = std::clamp(total, threads, static_cast<double>(std::max(options_.window_max, 1U)));
  std::size_t active = 0;
  for (const auto& each : links_) active += now - each.active_at < kActiveFor ? 1U : 0U;
  const bool is_active = now - links_[link].active_at < kActiveFor;
  // Idle links keep a small share, so that their first message does not wait.
  const double share = is_active || active == 0
                           ? total / static_cast<double>(std::max<std::size_t>(active, 1))
                           : std::max(1.0, total / 16);
  return static_cast<std::uint32_t>(std::max(1.0, std::floor(share)));
}

void WorkerCore::send_windows(SteadyTime now) {
  for (std::size_t link = 0; link < links_.size(); ++link) {
    auto& state = links_[link];
    if (!state.welcomed) continue;
    const std::uint32_t wanted = window_of(link, now);
    const std::uint32_t said = state.window_said;
    const std::uint32_t difference = wanted > said ? wanted - said : said - wanted;
    if (wanted != 0 && difference * 4 < said) continue;  // not worth a frame
    if (wanted == said) continue;
    state.window_said = wanted;
    send(link, encode(Window{wanted, options_.window_bytes_max}), now);
  }
}

void WorkerCore::flush_results(std::size_t link, SteadyTime now) {
  auto& state = links_[link];
  if (!state.welcomed || state.unsent.empty()) return;
  std::sort(state.unsent.begin(), state.unsent.end());
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
      done[{held.epoch, held.number}].push_back(sequence);
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
  for (std::size_t link = 0; link < links_.size(); ++link) flush_results(link, now);
  send_windows(now);
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
