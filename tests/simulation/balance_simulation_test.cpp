// How well the work is spread, in simulation. The figures are printed with `-s`.
#include <catch2/catch.hpp>

#include "simulation/balance_world.hpp"
#include "support/seeds.hpp"

using namespace dray;
using namespace dray::test;

namespace {

BalanceOptions heavy_tailed(std::uint64_t seed) {
  BalanceOptions options;
  constexpr double kAlpha = 1.1;
  options.service = bounded_pareto(kAlpha, 0.001, 1.0);
  options.mean_service = bounded_pareto_mean(kAlpha, 0.001, 1.0);
  options.seed = seed;
  return options;
}

void say(const char* what, const BalanceReport& report) {
  WARN(what << ": mean " << report.mean * 1e3 << " ms (central " << report.central_mean * 1e3
            << "), ratio " << report.mean / report.central_mean << "; p99 " << report.p99 * 1e3
            << " ms (central " << report.central_p99 * 1e3 << "), ratio "
            << report.p99 / report.central_p99 << "; frames per message "
            << report.frames_per_message << ", returned " << report.returns_per_message
            << ", dispatcher " << report.dispatcher_cpu_us << " us, worker " << report.worker_cpu_us
            << " us, busiest worker " << report.worst_share);
}

}  // namespace

TEST_CASE("skewed load and heavy-tailed jobs take hardly longer than in one central queue") {
  for (std::uint64_t seed = 1; seed <= times_deep(3); ++seed) {
    const auto report = run_balance(heavy_tailed(seed));
    INFO("seed " << seed);
    say("4 dispatchers, 8 workers", report);
    CHECK(report.mean <= 1.10 * report.central_mean);
    CHECK(report.p99 <= 1.25 * report.central_p99);
  }
}

TEST_CASE("a flood on one dispatcher does not starve the others") {
  BalanceOptions options = heavy_tailed(from_environment("DRAY_TEST_SEED", 1));
  options.load = 0.2;
  options.messages = 8'000;
  options.warm_up = 0;
  const auto calm = run_balance(options);
  options.flood = 30'000;
  const auto flooded = run_balance(options);
  WARN("others: mean " << calm.others_mean * 1e3 << " ms, beside a flood "
                       << flooded.others_mean * 1e3 << " ms; p99 " << calm.others_p99 * 1e3
                       << " and " << flooded.others_p99 * 1e3 << " ms");
  // They wait for the next thread that is free, not for the flood, which lasts for seconds.
  CHECK(flooded.others_mean <= 2 * calm.others_mean);
}

TEST_CASE("a hundred dispatchers and a thousand workers are balanced at a bounded cost") {
  BalanceOptions options = heavy_tailed(from_environment("DRAY_TEST_SEED", 1));
  options.dispatchers = 100;
  options.workers = 1'000;
  options.messages = 150'000;
  options.warm_up = 50'000;
  const auto report = run_balance(options);
  say("100 dispatchers, 1000 workers", report);
  CHECK(report.mean <= 1.25 * report.central_mean);
  CHECK(report.p99 <= 1.5 * report.central_p99);
}
