// dray bench: measures this machine, with real processes.
//
// Reports are one JSON schema (README, "Measuring"), or a few lines for people. Limits are what a
// bare program does in the same run: tests/bench/limits.cpp.
//
// Threading: main thread. Returns the exit code.
#pragma once

#include <cstdint>
#include <string>

#include "dray/publisher.hpp"

namespace dray::app {

struct BenchOptions {
  std::uint64_t messages = 500'000;
  std::uint64_t size = 256;      // bytes of body
  std::uint64_t window = 1'000;  // receipts outstanding, per publishing thread
  std::uint64_t batch = 1'024;   // append: messages per commit
  std::uint32_t workers = 1;
  std::uint32_t threads = 1;  // end-to-end: handler threads per worker; publish: publishers
  std::uint32_t groups = 1;
  std::uint32_t runs = 3;  // append, publish: each alternates with the bare program
  Durability durability = Durability::kDisk;
  std::string directory;  // empty: a temporary folder in the working directory
  std::string limits;     // the bare program, for the ratio; empty: none
  bool settle = true;     // append: settle each batch with the commit of the next
  bool json = false;
};

int bench_end_to_end(const BenchOptions& options);
int bench_append(const BenchOptions& options);
int bench_publish(const BenchOptions& options);
int bench_backlog(const BenchOptions& options);
// Processes of the benchmarks above.
int bench_worker(const std::string& endpoint, const std::string& group, std::uint32_t threads);
int bench_backlog_fill(const BenchOptions& options);
int bench_backlog_serve(const BenchOptions& options);

}  // namespace dray::app
