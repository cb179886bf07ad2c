// A whole cluster in a simulated world, from many seeds. A seed that fails is printed; it repeats
// with
//   cluster_simulation "one seed" with DRAY_TEST_SEED=<seed> (DRAY_TEST_TRACE=1 shows what happens)
#include <cstdlib>

#include "dray/spool/planted_fault.hpp"
#include "simulation/cluster_world.hpp"

using namespace dray;
using namespace dray::test;

namespace {

std::optional<std::string> fault_of(std::uint64_t seed) {
  try {
    ClusterWorld(seed).run();
  } catch (const WorldFault& fault) {
    return std::string(fault.what());
  }
  return std::nullopt;
}

void run_seeds(std::uint64_t first, std::uint64_t count) {
  for (std::uint64_t seed = first; seed < first + count; ++seed) {
    if (const auto fault = fault_of(seed)) FAIL("seed " << seed << ": " << *fault);
  }
}

}  // namespace

#ifndef DRAY_PLANTED_FAULTS

namespace {

std::uint64_t from_environment(const char* name, std::uint64_t otherwise) {
  const char* value = std::getenv(name);
  return value == nullptr ? otherwise : std::strtoull(value, nullptr, 10);
}

}  // namespace

TEST_CASE("a cluster keeps P2 to P5 and drains: 5000 seeds") {
  run_seeds(1, 5'000 * from_environment("DRAY_TEST_DEEP", 1));
}

TEST_CASE("a cluster keeps P2 to P5 and drains: 5000 more seeds") {
  run_seeds(1'000'000'000, 5'000 * from_environment("DRAY_TEST_DEEP", 1));
}

TEST_CASE("one seed", "[.]") {
  run_seeds(from_environment("DRAY_TEST_SEED", 1), 1);
}

#endif
