#include "dray/clock.hpp"

#include <array>
#include <cstdio>
#include <ctime>

namespace dray {

UtcTime SystemClock::utc() const {
  // The kernel's last tick, at most 4 ms ago: a tenth of the cost, and every publish asks.
  timespec now{};
  clock_gettime(CLOCK_REALTIME_COARSE, &now);
  return UtcTime(Milliseconds(now.tv_sec * 1'000 + now.tv_nsec / 1'000'000));
}

SteadyTime SystemClock::steady() const {
  return std::chrono::time_point_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now());
}

std::string utc_text(UtcTime time) {
  const auto total_ms = time.time_since_epoch().count();
  std::time_t seconds = total_ms / 1000;
  auto ms = total_ms % 1000;
  if (ms < 0) {
    ms += 1000;
    --seconds;
  }
  std::tm parts{};
  gmtime_r(&seconds, &parts);
  std::array<char, 64> text{};
  std::snprintf(text.data(), text.size(), "%04d-%02d-%02dT%02d:%02d:%02d.%03dZ",
                parts.tm_year + 1900, parts.tm_mon + 1, parts.tm_mday, parts.tm_hour, parts.tm_min,
                parts.tm_sec, static_cast<int>(ms));
  return text.data();
}

}  // namespace dray
