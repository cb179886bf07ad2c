#include "dray/clock.hpp"

#include <array>
#include <cstdio>
#include <ctime>
#include <string_view>

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

std::optional<UtcTime> parse_utc(const std::string& text) {
  int year = 0, month = 0, day = 0, hour = 0, minute = 0, second = 0, ms = 0;
  int read = 0;
  const char* at = text.c_str();
  if (std::sscanf(at, "%4d-%2d-%2dT%2d:%2d%n", &year, &month, &day, &hour, &minute, &read) < 5) {
    return std::nullopt;
  }
  at += read;
  read = 0;
  if (std::sscanf(at, ":%2d%n", &second, &read) == 1) at += read;
  read = 0;
  if (std::sscanf(at, ".%3d%n", &ms, &read) == 1) at += read;
  const auto date = std::chrono::year(year) / month / day;
  const auto within = [](int value, int below) { return value >= 0 && value < below; };
  if (std::string_view(at) != "Z" || !date.ok() || !within(hour, 24) || !within(minute, 60) ||
      !within(second, 60) || !within(ms, 1'000)) {
    return std::nullopt;
  }
  return std::chrono::sys_days(date) + std::chrono::hours(hour) + std::chrono::minutes(minute) +
         std::chrono::seconds(second) + Milliseconds(ms);
}

}  // namespace dray
