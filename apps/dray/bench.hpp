// dray bench: measures this machine, with real processes.
//
// Reports are one JSON schema (README, "How fast"), or a few lines for people. Limits are what a
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
  std::uint32_t sleep_us = 0;       // end-to-end: what the handler does: sleeps,
  std::uint32_t spin_us = 0;        // or works
  std::uint32_t worker_window = 0;  // of each worker; 0: sized by itself
  std::uint32_t runs = 3;           // append, publish, fan-out: of each, alternating
  std::uint32_t rate = 1'000;       // latency: messages per second
  std::uint32_t seconds = 10;       // latency, soak: for so long
  std::string transport = "ipc";    // or "tcp", over loopback
  Durability durability = Durability::kDisk;
  std::string directory;  // empty: a temporary folder in the working directory
  std::string limits;     // the bare program, for the ratio; empty: `limits` beside this program
  bool settle = true;     // append: settle each batch with the commit of the next
  bool growing = false;   // disk is not made ready ahead of the run
  bool stamps = false;    // worker: bodies begin with the time they were published at
  bool json = false;
};

int bench_end_to_end(const BenchOptions& options);
int bench_fan_out(const BenchOptions& options);
int bench_latency(const BenchOptions& options);
int bench_soak(const BenchOptions& options);
int bench_limits(const BenchOptions& options);
int bench_append(const BenchOptions& options);
int bench_publish(const BenchOptions& options);
int bench_backlog(const BenchOptions& options);
// Processes of the benchmarks above.
int bench_worker(const BenchOptions& options, const std::string& endpoint,
                 const std::string& group);
int bench_backlog_fill(const BenchOptions& options);
int bench_backlog_serve(const BenchOptions& options);

}  // namespace dray::app
