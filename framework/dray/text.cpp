#include "dray/text.hpp"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <numeric>

namespace dray {
namespace {

struct Unit {
  std::string_view name;
  double factor;
};

constexpr std::array<Unit, 5> kDurationUnits{
    {{"ms", 1}, {"s", 1e3}, {"m", 60e3}, {"h", 3600e3}, {"d", 86400e3}}};
constexpr std::array<Unit, 9> kSizeUnits{{{"B", 1},
                                          {"KiB", 1024},
                                          {"MiB", 1048576},
                                          {"GiB", 1073741824},
                                          {"TiB", 1099511627776},
                                          {"kB", 1e3},
                                          {"MB", 1e6},
                                          {"GB", 1e9},
                                          {"TB", 1e12}}};

template <std::size_t N>
Result<double> parse_with_unit(std::string_view text, const std::array<Unit, N>& units,
                               std::string_view what, std::string_view example, double max) {
  double number = 0;
  const auto [end, fault] = std::from_chars(text.data(), text.data() + text.size(), number);
  const auto digits = static_cast<std::size_t>(end - text.data());
  const std::string_view unit = text.substr(std::min(digits, text.size()));
  const auto bad = [&](const std::string& why) {
    return Error{ErrorCode::kInvalid,
                 "'" + std::string(text) + "' is not a " + std::string(what) + ": " + why +
                     "; write it like \"" + std::string(example) + "\"",
                 "", 0};
  };
  if (fault != std::errc{} || !std::isfinite(number)) return bad("it does not begin with a number");
  if (number < 0) return bad("it is negative");
  if (unit.empty()) return bad("it has no unit");
  for (const auto& known : units) {
    if (known.name != unit) continue;
    const double value = number * known.factor;
    if (value > max) return bad("it is too large");
    return value;
  }
  return bad("unknown unit '" + std::string(unit) + "'");
}

}  // namespace

Result<Milliseconds> parse_duration(std::string_view text) {
  constexpr double kHundredYearsMs = 100 * 365.25 * 86400e3;
  auto value = parse_with_unit(text, kDurationUnits, "duration", "30s", kHundredYearsMs);
  if (!value.ok()) return value.error();
  return Milliseconds(std::llround(*value));
}

Result<std::uint64_t> parse_size(std::string_view text) {
  auto value = parse_with_unit(text, kSizeUnits, "size", "64MiB", 9e15);
  if (!value.ok()) return value.error();
  return static_cast<std::uint64_t>(std::llround(*value));
}

std::string duration_text(Milliseconds duration) {
  const auto ms = duration.count();
  constexpr std::array<std::pair<std::int64_t, const char*>, 4> kWhole{
      {{86400000, "d"}, {3600000, "h"}, {60000, "m"}, {1000, "s"}}};
  for (const auto& [factor, unit] : kWhole) {
    if (ms != 0 && ms % factor == 0) return std::to_string(ms / factor) + unit;
  }
  if (ms > 1000) {
    std::array<char, 32> text{};
    std::snprintf(text.data(), text.size(), "%.3gs", static_cast<double>(ms) / 1000);
    return text.data();
  }
  return std::to_string(ms) + "ms";
}

std::string size_text(std::uint64_t bytes) {
  constexpr std::array<const char*, 5> kUnits{"B", "KiB", "MiB", "GiB", "TiB"};
  double value = static_cast<double>(bytes);
  std::size_t unit = 0;
  while (value >= 1024 && unit + 1 < kUnits.size()) {
    value /= 1024;
    ++unit;
  }
  std::array<char, 32> text{};
  std::snprintf(text.data(), text.size(), unit == 0 || value >= 100 ? "%.0f %s" : "%.1f %s", value,
                kUnits.at(unit));
  return text.data();
}

std::string nearest_word(std::string_view word, const std::vector<std::string>& candidates) {
  std::string best;
  std::size_t best_distance = std::max<std::size_t>(word.size() < 4 ? 1 : 2, word.size() / 3) + 1;
  for (const auto& candidate : candidates) {
    // Levenshtein distance, one row at a time.
    std::vector<std::size_t> row(candidate.size() + 1);
    std::iota(row.begin(), row.end(), std::size_t{0});
    for (std::size_t i = 1; i <= word.size(); ++i) {
      std::size_t diagonal = row[0];
      row[0] = i;
      for (std::size_t j = 1; j <= candidate.size(); ++j) {
        const std::size_t substitution = diagonal + (word[i - 1] == candidate[j - 1] ? 0U : 1U);
        diagonal = row[j];
        row[j] = std::min({substitution, row[j] + 1, row[j - 1] + 1});
      }
    }
    if (row.back() < best_distance) {
      best_distance = row.back();
      best = candidate;
    }
  }
  return best;
}

Result<std::string> expand_environment(std::string_view text) {
  std::string out;
  for (std::size_t at = 0; at < text.size();) {
    const auto open = text.find("${", at);
    out += text.substr(at, open - at);
    if (open == std::string_view::npos) break;
    // The closing brace of this one: a default may hold others.
    std::size_t close = open + 2;
    for (int depth = 1; close < text.size(); ++close) {
      if (text[close] == '{') ++depth;
      if (text[close] == '}' && --depth == 0) break;
    }
    if (close >= text.size()) {
      return Error{ErrorCode::kInvalid, "'${' without a closing '}'", "", 0};
    }
    const std::string_view inside = text.substr(open + 2, close - open - 2);
    const auto split = inside.find(":-");
    const std::string name(inside.substr(0, split));
    const char* value = std::getenv(name.c_str());  // before any thread is started
    if (value != nullptr && *value != '\0') {
      out += value;
    } else if (split != std::string_view::npos) {
      auto otherwise = expand_environment(inside.substr(split + 2));
      if (!otherwise.ok()) return otherwise.error();
      out += *otherwise;
    } else {
      return Error{ErrorCode::kInvalid,
                   "environment variable " + name + " is not set; set it, or give a default: ${" +
                       name + ":-value}",
                   "", 0};
    }
    at = close + 1;
  }
  return out;
}

}  // namespace dray
