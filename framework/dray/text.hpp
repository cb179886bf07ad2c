// Durations and sizes as people write them ("30s", "2GiB"), and spelling help.
//
// Threading: pure functions.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "dray/clock.hpp"
#include "dray/export.hpp"
#include "dray/result.hpp"

namespace dray {

// "250ms", "30s", "10m", "2h", "7d", with decimals ("1.5s"). A bare number is an error: the unit
// is the point. Resolution 1 ms, at most 100 years.
DRAY_API Result<Milliseconds> parse_duration(std::string_view text);

// "512B", "64KiB", "2GiB", also kB, MB, GB (powers of 1000). A bare number is an error.
DRAY_API Result<std::uint64_t> parse_size(std::string_view text);

// A short form: "1.5s", "10m"; from a minute on, without what is less than a tenth of its unit.
DRAY_API std::string duration_text(Milliseconds duration);

// 1536 -> "1.5 KiB".
DRAY_API std::string size_text(std::uint64_t bytes);

// The candidate nearest to `word` if it is near enough to be a slip of the pen, else empty.
DRAY_API std::string nearest_word(std::string_view word,
                                  const std::vector<std::string>& candidates);

// Replaces ${NAME} and ${NAME:-default} from the environment; a default may hold others. kInvalid
// names what is not set.
DRAY_API Result<std::string> expand_environment(std::string_view text);

}  // namespace dray
