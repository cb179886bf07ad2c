// Clock: the only way to learn the time, so that tests and simulations own it.
//
// UTC is for what users name (deliver_at, expires_at); steady time is for leases, time-outs and
// rates and never jumps. UTC may lag by 4 ms.
//
// Threading: all functions may be called from any thread. Ownership: callers keep the Clock alive
// for as long as anything built on it.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <optional>
#include <string>

#include "dray/export.hpp"

namespace dray {

using Milliseconds = std::chrono::milliseconds;
using UtcTime = std::chrono::sys_time<Milliseconds>;
using SteadyTime = std::chrono::time_point<std::chrono::steady_clock, std::chrono::nanoseconds>;

class DRAY_API Clock {
 public:
  virtual ~Clock() = default;
  virtual UtcTime utc() const = 0;
  virtual SteadyTime steady() const = 0;
};

class DRAY_API SystemClock final : public Clock {
 public:
  UtcTime utc() const override;
  SteadyTime steady() const override;
};

// A clock that stands still until a test moves it.
class DRAY_API VirtualClock final : public Clock {
 public:
  UtcTime utc() const override {
    return std::chrono::time_point_cast<Milliseconds>(
        std::chrono::sys_time<std::chrono::nanoseconds>(std::chrono::nanoseconds(utc_ns_.load())));
  }
  SteadyTime steady() const override {
    return SteadyTime(std::chrono::nanoseconds(steady_ns_.load()));
  }
  // Moves both clocks forward.
  void advance(std::chrono::nanoseconds by) {
    steady_ns_ += by.count();
    utc_ns_ += by.count();
  }
  // Moves only the wall clock, as an operator or NTP does.
  void jump_utc(Milliseconds by) { utc_ns_ += std::chrono::nanoseconds(by).count(); }

 private:
  std::atomic<std::int64_t> utc_ns_{1'700'000'000'000'000'000};
  std::atomic<std::int64_t> steady_ns_{1'000'000'000};
};

// 2026-11-22T10:00:00.000Z
DRAY_API std::string utc_text(UtcTime time);
// The same back; seconds and their parts may be missing. Nothing: it is no such time.
DRAY_API std::optional<UtcTime> parse_utc(const std::string& text);

// A time-out may be longer than time is: in nanoseconds it would overflow.
inline constexpr Milliseconds kTimeoutMax = std::chrono::hours(24 * 366 * 100);
inline SteadyTime deadline_in(SteadyTime now, Milliseconds timeout) {
  return now + std::clamp(timeout, Milliseconds(0), kTimeoutMax);
}

}  // namespace dray
