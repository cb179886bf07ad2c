// Seeds: what the random tests share: how many seeds, from where, and how one that fails is named.
//
// Threading: one thread. Failure: a Catch2 failure that names the seed.
#pragma once

#include <algorithm>
#include <catch2/catch.hpp>
#include <cstdint>
#include <cstdlib>
#include <optional>
#include <string>

namespace dray::test {

inline std::uint64_t from_environment(const char* name, std::uint64_t otherwise) {
  const char* value = std::getenv(name);
  return value == nullptr ? otherwise : std::strtoull(value, nullptr, 10);
}

// ./tests/run --deep N takes N times as many; a slow build so many of a hundred
// (DRAY_TEST_PERCENT).
inline std::uint64_t times_deep(std::uint64_t seeds) {
  const std::uint64_t all = seeds * from_environment("DRAY_TEST_DEEP", 1);
  return std::max<std::uint64_t>(1, all * from_environment("DRAY_TEST_PERCENT", 100) / 100);
}

// `fault_of(seed)` says what went wrong with a seed, if anything.
template <typename FaultOf>
void run_seeds(std::uint64_t first, std::uint64_t count, FaultOf fault_of) {
  for (std::uint64_t seed = first; seed < first + count; ++seed) {
    if (const std::optional<std::string> fault = fault_of(seed)) {
      FAIL("seed " << seed << ": " << *fault);
    }
  }
}

// The first seed up to `last` that shows a fault, and what it shows.
template <typename FaultOf>
std::optional<std::pair<std::uint64_t, std::string>> first_fault(std::uint64_t last,
                                                                 FaultOf fault_of) {
  for (std::uint64_t seed = 1; seed <= last; ++seed) {
    if (const std::optional<std::string> fault = fault_of(seed)) return std::pair(seed, *fault);
  }
  return std::nullopt;
}

}  // namespace dray::test
