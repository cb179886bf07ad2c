// dray bench: measures this machine, with real processes.
//
// Threading: main thread. Returns the exit code.
#pragma once

#include <cstdint>
#include <string>

#include "dray/publisher.hpp"

namespace dray::app {

struct EndToEndOptions {
  std::uint64_t messages = 500'000;
  std::uint64_t size = 256;      // bytes of body
  std::uint64_t window = 1'000;  // receipts outstanding
  std::uint32_t workers = 1;
  std::uint32_t threads = 1;  // handler threads per worker
  std::uint32_t groups = 1;
  Durability durability = Durability::kDisk;
  std::string directory;  // empty: a temporary folder in the working directory
  std::string limits;     // the bare program, run first for the ratio
  bool json = false;
};

int bench_end_to_end(const EndToEndOptions& options);
// The worker process of bench_end_to_end.
int bench_worker(const std::string& endpoint, const std::string& group, std::uint32_t threads);

}  // namespace dray::app
