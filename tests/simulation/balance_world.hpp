// BalanceWorld: many dispatcher cores and worker cores with a network of constant delay between
// them and a log that is always fast, to see how well the work is spread: how long messages spend
// in the system against one ideal central queue with the same arrivals and service times.
//
// Threading: one thread. Failure: asserts. All is drawn from one seed.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <queue>
#include <random>
#include <string>
#include <vector>

#include "dray/balancing/dispatcher_core.hpp"
#include "dray/balancing/worker_core.hpp"

namespace dray::test {

struct BalanceOptions {
  std::size_t dispatchers = 4;
  std::size_t workers = 8;
  std::uint32_t threads = 4;
  std::vector<double> shares;  // of the arrivals, by dispatcher; empty: each 1/(i + 1) of the first
  double load = 0.8;           // of all threads
  std::size_t messages = 100'000;
  std::size_t warm_up = 10'000;  // of them, not counted
  std::size_t flood = 0;  // so many more at once at the first dispatcher, which gets no others
  std::chrono::nanoseconds one_way = std::chrono::microseconds(100);
  // Of one handling, seconds.
  std::function<double(std::mt19937_64&)> service;
  double mean_service = 0;  // seconds, of `service`
  std::uint64_t seed = 1;
};

// Pareto, bounded to [least, most] seconds: Harchol-Balter, Performance Modeling and Design of
// Computer Systems (2013), 20.2.
std::function<double(std::mt19937_64&)> bounded_pareto(double alpha, double least, double most);
double bounded_pareto_mean(double alpha, double least, double most);

struct BalanceReport {
  double mean = 0, p99 = 0;                  // seconds from published to handled
  double central_mean = 0, central_p99 = 0;  // of the ideal queue
  double frames_per_message = 0;
  double returns_per_message = 0;
  double dispatcher_cpu_us = 0, worker_cpu_us = 0;  // of the cores, per message
  double others_mean = 0;  // of those that did not arrive at the first dispatcher
  double others_p99 = 0;
  double worst_share = 0;  // busiest worker's messages against an even share
};

BalanceReport run_balance(const BalanceOptions& options);

}  // namespace dray::test
