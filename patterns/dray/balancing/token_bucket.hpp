// TokenBucket: how fast a group is delivered.
//
// Threading: one thread. Failure: none.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>

#include "dray/clock.hpp"
#include "dray/group_limits.hpp"

namespace dray::balancing {

// The token bucket of RFC 2697 with one rate: it fills at a steady rate up to its burst, and
// begins full.
class TokenBucket {
 public:
  TokenBucket(const RateLimit& limit, SteadyTime now)
      : limit_(limit), tokens_(limit.burst), filled_at_(now) {}

  void fill(SteadyTime now) {
    const std::chrono::duration<double> passed = now - filled_at_;
    filled_at_ = now;
    tokens_ = std::min<double>(limit_.burst, tokens_ + passed.count() * limit_.per_second);
  }
  // Whole tokens.
  std::uint64_t available() const { return static_cast<std::uint64_t>(tokens_ + kRounding); }
  void take(std::uint32_t tokens = 1) { tokens_ -= tokens; }
  // Until there is a whole one.
  std::chrono::nanoseconds until_next() const {
    if (available() > 0) return std::chrono::nanoseconds(0);
    constexpr double kWaitMax = 3600;  // seconds; then it is asked again
    const std::chrono::duration<double> wait(std::min(kWaitMax, (1 - tokens_) / limit_.per_second));
    return std::chrono::ceil<std::chrono::nanoseconds>(wait);
  }
  // What it may give within `time` from now.
  std::uint64_t within(std::chrono::duration<double> time) const {
    return static_cast<std::uint64_t>(tokens_ + time.count() * limit_.per_second);
  }

 private:
  static constexpr double kRounding = 1e-6;

  RateLimit limit_;
  double tokens_;
  SteadyTime filled_at_;
};

}  // namespace dray::balancing
