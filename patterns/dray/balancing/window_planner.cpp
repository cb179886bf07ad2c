#include "dray/balancing/window_planner.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <tuple>

namespace dray::balancing {
namespace {

constexpr double kSmoothing = 1.0 / 64;
constexpr double kSmoothingSlow = 1.0 / 512;  // long jobs are rare, and must not be forgotten
// To keep the threads busy takes what they handle in two round trips, however long some jobs are.
constexpr double kRoundTripMin = 150e-6;  // seconds
constexpr double kRoundTripMax = 0.1;
// Of jobs shorter than this more is taken ahead, up to so many times more: what a frame costs
// counts.
constexpr double kShortJob = 50e-6;  // seconds
constexpr double kShortJobsMore = 8;
// What a thread may take at once.
constexpr double kAtOnce = 100e-6;  // seconds
constexpr double kAtOnceMax = 256;  // jobs
// The outcomes of jobs up to this may be told together (HandlerThreads).
constexpr double kToldTogether = 500e-6;  // seconds
constexpr std::uint64_t kLookEvery = 16;
// A part of a delivery that is worth taking ahead when it would be waiting elsewhere.
constexpr double kRoundUp = 0.9;
constexpr auto kActiveFor = std::chrono::seconds(1);
// Free slots that nobody waits for are told to so many dispatchers, those that were busy last. The
// others know an old window, or say BACKLOG.
constexpr std::size_t kRecentMax = 8;
// Of the room: for each dispatcher with nothing to do, up to eight of them; more share as much.
constexpr double kIdleShare = 16;
// Room of so many times the threads is shared coarsely, and below three quarters of it finely.
constexpr std::uint32_t kCoarseFrom = 4;
constexpr auto kSaidAgain = std::chrono::milliseconds(5);
constexpr std::uint64_t kBytesMin = 64U << 10;

double seconds_of(std::chrono::nanoseconds time) {
  return std::chrono::duration<double>(time).count();
}

}  // namespace

WindowPlanner::WindowPlanner(const WindowOptions& options)
    : options_(options), random_(options.seed) {
  update_regime();
}

void WindowPlanner::on_outcomes(std::uint64_t jobs, std::chrono::nanoseconds took) {
  const double count = static_cast<double>(jobs);
  const double seconds = std::max(seconds_of(took) / count, 1e-7);
  // As if each had taken the mean.
  const double weight = jobs == 1 ? kSmoothing : 1 - std::pow(1 - kSmoothing, count);
  const double weight_slow = jobs == 1 ? kSmoothingSlow : 1 - std::pow(1 - kSmoothingSlow, count);
  if (mean_ < 0) {
    mean_ = mean_slow_ = seconds;
    mean_square_ = seconds * seconds;
  } else {
    mean_ += weight * (seconds - mean_);
    mean_slow_ += weight_slow * (seconds - mean_slow_);
    mean_square_ += weight_slow * (seconds * seconds - mean_square_);
  }
  const bool look = outcomes_ / kLookEvery != (outcomes_ + jobs) / kLookEvery;
  outcomes_ += jobs;
  if (look || mean_ > kShortJob) update_regime();
}

void WindowPlanner::on_stall(std::chrono::nanoseconds elapsed) {
  const double seconds = seconds_of(elapsed);
  mean_ = std::max(mean_, seconds);
  mean_slow_ = std::max(mean_slow_, seconds);
  mean_square_ = std::max(mean_square_, seconds * seconds);
  update_regime();
}

void WindowPlanner::on_round_trip(std::chrono::nanoseconds took) {
  // An offer that was long of no use says nothing of the wire.
  const double seconds = std::min(seconds_of(took), kRoundTripMax);
  round_trip_ += kSmoothing * (seconds - round_trip_);
}

std::uint32_t WindowPlanner::room(bool something_waits) const {
  const auto threads = static_cast<double>(options_.threads);
  if (options_.fixed != 0) return options_.fixed;
  const double most = std::max(options_.window_max, 1U);
  if (mean_ < 0) return static_cast<std::uint32_t>(std::min(threads, most));
  const double target = seconds_of(options_.queue_target);
  const double busy = 2 * std::max(kRoundTripMin, round_trip_) / mean_;
  const double comfortable = target * std::clamp(kShortJob / mean_, 1.0, kShortJobsMore) / mean_;
  // What would wait long behind what runs is not taken ahead.
  const double residual = mean_square_ / (2 * mean_slow_);
  const double ahead = threads * std::max(busy, comfortable * std::min(1.0, target / residual));
  return static_cast<std::uint32_t>(
      std::min(threads + std::floor(ahead + (something_waits ? kRoundUp : 0)), most));
}

std::uint32_t WindowPlanner::jobs_at_once() const {
  if (fine_ || mean_ <= 0) return 1;
  return static_cast<std::uint32_t>(std::clamp(kAtOnce / mean_, 1.0, kAtOnceMax));
}

bool WindowPlanner::tells_together() const {
  return !fine_ && mean_ > 0 && mean_ <= kToldTogether;
}

void WindowPlanner::update_regime() {
  const std::uint32_t now = room(false);
  const std::uint32_t coarse_from = kCoarseFrom * options_.threads;
  if (now > coarse_from) fine_ = false;
  if (now <= coarse_from - options_.threads) fine_ = true;
}

std::uint64_t WindowPlanner::bytes_of(std::uint32_t window) const {
  const double share = std::min(1.0, static_cast<double>(window) / room(true));
  const auto bytes =
      static_cast<std::uint64_t>(share * static_cast<double>(options_.window_bytes_max));
  return std::clamp<std::uint64_t>(bytes, std::min(kBytesMin, options_.window_bytes_max),
                                   options_.window_bytes_max);
}

std::uint32_t WindowPlanner::free_slots(const std::vector<Link>& links) const {
  std::uint64_t held = 0;
  bool something_waits = false;
  for (const auto& link : links) {
    held += link.held;
    something_waits = something_waits || (link.open && link.waiting > 0);
  }
  const std::uint32_t all = room(something_waits);
  return held < all ? all - static_cast<std::uint32_t>(held) : 0;
}

// Fine: every slot that is offered to one dispatcher is offered to no other.
void WindowPlanner::share_slots(std::vector<Link>& links) {
  std::uint64_t slots = free_slots(links);
  std::uint64_t waiting = 0;
  std::uint64_t offered = 0;
  for (auto& link : links) {
    link.offered =
        link.open ? static_cast<std::uint32_t>(std::min<std::uint64_t>(link.offered, link.waiting))
                  : 0;
    offered += link.offered;
    if (link.open) waiting += link.waiting;
  }
  const std::uint64_t alone = std::min(slots, waiting);
  // Fewer than before: taken back where most are offered.
  for (; offered > alone; --offered) {
    --std::max_element(links.begin(), links.end(), [](const Link& a, const Link& b) {
        return a.offered < b.offered;
      })->offered;
  }
  draw_slots(links, alone - offered);
  common_ = static_cast<std::uint32_t>(slots - alone);
  choose_recent(links);
  for (std::size_t i = 0; i < links.size(); ++i) {
    if (!links[i].open) continue;
    const bool told = recent_[i] || links[i].waiting > 0;
    wanted_[i] = links[i].held + links[i].offered + (told ? common_ : 0);
  }
}

// The dispatchers that delivered last, and of those that never did some or other, so that each has
// workers that told it.
void WindowPlanner::choose_recent(const std::vector<Link>& links) {
  recent_.assign(links.size(), links.size() <= kRecentMax);
  if (links.size() <= kRecentMax) return;
  const auto rank = [&](std::size_t i) {
    const auto scattered = (i + 1) * (options_.seed | 1) * 0x9E3779B97F4A7C15ULL;
    return std::tuple(links[i].open, links[i].active_at, scattered >> 32);
  };
  order_.resize(links.size());
  std::iota(order_.begin(), order_.end(), std::size_t{0});
  const auto end = order_.begin() + static_cast<std::ptrdiff_t>(kRecentMax);
  std::nth_element(order_.begin(), end, order_.end(),
                   [&](std::size_t a, std::size_t b) { return rank(a) > rank(b); });
  for (auto each = order_.begin(); each != end; ++each) recent_[*each] = true;
}

void WindowPlanner::draw_slots(std::vector<Link>& links, std::uint64_t slots) {
  weights_.assign(links.size(), 0);
  for (; slots > 0; --slots) {
    double total = 0;
    std::size_t waiting = 0;
    for (const auto& link : links) {
      if (!link.open || link.waiting <= link.offered) continue;
      total += static_cast<double>(link.waiting - link.offered);
      ++waiting;
    }
    if (waiting == 0) return;
    const double equal = total / static_cast<double>(waiting);
    double sum = 0;
    for (std::size_t i = 0; i < links.size(); ++i) {
      const auto& link = links[i];
      const bool wants = link.open && link.waiting > link.offered;
      weights_[i] = wants ? static_cast<double>(link.waiting - link.offered) + equal : 0;
      sum += weights_[i];
    }
    double drawn = std::uniform_real_distribution<double>(0, sum)(random_);
    std::size_t winner = 0;
    for (std::size_t i = 0; i < links.size(); ++i) {
      if (weights_[i] == 0) continue;
      winner = i;
      if (drawn < weights_[i]) break;
      drawn -= weights_[i];
    }
    ++links[winner].offered;
  }
}

double WindowPlanner::idle_room(std::size_t idle) const {
  const double crowd = static_cast<double>(idle) / static_cast<double>(kRecentMax);
  return room(true) / kIdleShare / std::max(1.0, crowd);
}

// Coarse: shares of the room.
void WindowPlanner::share_room(std::vector<Link>& links, SteadyTime now) {
  const auto all = static_cast<double>(room(true));
  const auto is_busy = [&](const Link& link) {
    return link.open && (link.waiting > 0 || link.held > 0 || now - link.active_at < kActiveFor);
  };
  double total = 0;
  std::size_t busy = 0;
  for (auto& link : links) {
    link.offered = 0;
    if (!is_busy(link)) continue;
    total += static_cast<double>(link.waiting + link.held + 1);
    ++busy;
  }
  const double equal = busy == 0 ? 0 : total / static_cast<double>(busy);
  double sum = 0;
  weights_.assign(links.size(), 0);
  for (std::size_t i = 0; i < links.size(); ++i) {
    if (!is_busy(links[i])) continue;
    weights_[i] = static_cast<double>(links[i].waiting + links[i].held + 1) + equal;
    sum += weights_[i];
  }
  const double idle_share = idle_room(links.size() - busy);
  recent_.assign(links.size(), true);
  for (std::size_t i = 0; i < links.size(); ++i) {
    const double share = weights_[i] > 0 ? all * weights_[i] / sum : idle_share;
    wanted_[i] = links[i].open ? static_cast<std::uint32_t>(std::max(1.0, share)) : 0;
  }
}

// A frame is worth it if the dispatcher could otherwise not send, or would send what has no place.
bool WindowPlanner::worth_saying(const Link& link, std::uint32_t wanted, bool recent,
                                 SteadyTime now) const {
  if (!link.open) return false;
  const bool may_send = !link.closed && link.said > link.held;
  const bool shall_send = wanted > link.held;
  if (link.closed && !shall_send) return false;
  if (shall_send && !may_send) return link.waiting > 0 || recent;
  if (wanted == link.said) return false;
  if (fine_ && (link.waiting > 0 || link.offered > 0)) return true;
  if (fine_ && !shall_send) return may_send;  // what is taken back
  const std::uint32_t difference = wanted > link.said ? wanted - link.said : link.said - wanted;
  return recent && difference * 4 >= link.said && now - link.said_at >= kSaidAgain;
}

std::vector<WindowPlanner::Said> WindowPlanner::plan(std::vector<Link>& links, SteadyTime now) {
  wanted_.assign(links.size(), 0);
  if (fine_) {
    share_slots(links);
  } else {
    share_room(links, now);
  }
  std::vector<Said> all;
  for (std::size_t i = 0; i < links.size(); ++i) {
    auto& link = links[i];
    if (!worth_saying(link, wanted_[i], recent_[i], now)) continue;
    all.push_back({i, wanted_[i], bytes_of(wanted_[i]), !link.closed && wanted_[i] < link.said});
    link.said = wanted_[i];
    link.said_at = now;
    link.closed = false;
  }
  return all;
}

WindowPlanner::Said WindowPlanner::hello(std::vector<Link>& links, std::size_t link,
                                         SteadyTime now) {
  auto& state = links[link];
  const std::uint32_t free = free_slots(links);
  if (fine_) {
    state.said = state.held + (links.size() <= kRecentMax ? free : 0);
  } else {
    state.said = static_cast<std::uint32_t>(std::max(1.0, idle_room(links.size())));
  }
  state.said_at = now;
  state.closed = false;
  return {link, state.said, bytes_of(state.said), false};
}

}  // namespace dray::balancing
