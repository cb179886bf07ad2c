// What the benchmarks share: folders, clocks, counters of the machine, a publisher with a window,
// the bare program, and the report.
//
// Threading: as each says. Failure: a counter that this machine does not have is left out.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "dray/bench.hpp"
#include "dray/process_usage.hpp"
#include "dray/spooler.hpp"

namespace dray::app {

double seconds_since(std::chrono::steady_clock::time_point started);

// A fresh folder in `parent` (or here), removed at the end: also at that which SIGINT or SIGTERM
// makes, which then end this process, and with it those that it started. Made before other threads.
class ScratchFolder {
 public:
  explicit ScratchFolder(const std::string& parent);
  ~ScratchFolder();
  ScratchFolder(const ScratchFolder&) = delete;
  ScratchFolder& operator=(const ScratchFolder&) = delete;
  bool ok() const { return ok_; }
  const std::string& path() const { return path_; }

 private:
  void watch_signals();

  std::string path_;
  bool ok_ = false;
  std::atomic<bool> over_{false};
  std::thread watch_;
};

// Bytes written so far to the block device under `path`; nothing if that cannot be told.
// (/proc/self/io counts what goes to the page cache.)
std::optional<std::uint64_t> device_bytes_written(const std::string& path);

// Durations, of which at most a million are kept: every one, then every second, and so on.
class Latencies {
 public:
  void add(std::chrono::nanoseconds took);
  double percentile_us(double p);
  // One number per line, in units of 10 ns; what take() reads.
  std::string text() const;
  void take(const std::string& text);

 private:
  std::vector<std::uint32_t> kept_;  // units of 10 ns
  std::uint64_t seen_ = 0;
  std::uint64_t every_ = 1;
};

// Publishes with at most `window` receipts outstanding; notes how long every 16th receipt took.
// With a window of 1 it waits for each, and notes all.
class WindowedPublisher {
 public:
  WindowedPublisher(Publisher& publisher, std::uint64_t messages, std::uint64_t size,
                    std::uint64_t window)
      : publisher_(publisher), messages_(messages), size_(size), window_(window) {}
  // Returns when the last receipt is there.
  Status run();
  Latencies& latencies() { return latencies_; }

 private:
  Status run_one_by_one(const std::string& body, const PublishOptions& none);
  Status run_ahead(const std::string& body, const PublishOptions& none);
  void on_receipt(const Result<Receipt>& receipt);

  Publisher& publisher_;
  const std::uint64_t messages_, size_, window_;
  static constexpr std::uint64_t kNobodyWaits = UINT64_MAX;
  alignas(64) std::atomic<std::uint64_t> answered_{0};
  alignas(64) std::atomic<std::uint64_t> wanted_{kNobodyWaits};  // the publisher waits for so many

  // Guarded by mutex_.
  std::mutex mutex_;
  std::condition_variable room_;
  Latencies latencies_;
  Status failed_;
};

// Publishes so many a second, whatever becomes of them; notes how long every receipt took.
class PacedPublisher {
 public:
  PacedPublisher(Publisher& publisher, std::uint64_t messages, std::uint32_t rate)
      : publisher_(publisher), messages_(messages), rate_(rate) {}
  // Returns when the last receipt is there.
  Status run(const std::function<std::string(std::chrono::steady_clock::time_point due)>& body);
  Latencies& latencies() { return latencies_; }

 private:
  Publisher& publisher_;
  const std::uint64_t messages_;
  const std::uint32_t rate_;

  // Guarded by mutex_.
  std::mutex mutex_;
  std::condition_variable changed_;
  std::uint64_t receipts_ = 0;
  Latencies latencies_;
  Status failed_;
};

// Room for all that a run will write, as the bare program has: what a spool reaches by itself once
// its segments are recycled.
std::uint64_t room_for(const BenchOptions& options);
// Until that is made.
Status wait_for_room(Spooler& spooler, std::uint64_t room);

// Runs the bare program; nothing if there is none.
std::optional<nlohmann::json> run_limits(const BenchOptions& options, const std::string& mode,
                                         const std::string& folder, const std::string& more = "");
// Starts this program again with these arguments; its standard output goes to `out` if given.
pid_t start_self(const std::vector<std::string>& arguments, int* out = nullptr);

double median(std::vector<double> values);
// Times of 0 are not known.
void add_limit(nlohmann::json& report, double limit_per_second, double limit_p50_us = 0,
               double limit_p99_us = 0);
// As JSON, or a table with a bar for each speed.
void print_report(const nlohmann::json& report, bool as_json);

}  // namespace dray::app
