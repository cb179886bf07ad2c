#include "dray/bench_tools.hpp"

#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <csignal>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iostream>

namespace dray::app {

using nlohmann::json;

namespace {
constexpr std::size_t kLatenciesMax = 1U << 20;
constexpr std::uint64_t kSectorBytes = 512;  // of /sys/dev/block/*/stat, whatever the device's
}  // namespace

double cpu_seconds(int who) {
  rusage usage{};
  getrusage(who, &usage);
  const auto seconds = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_usec) / 1e6;
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

std::uint64_t rss_bytes() {
  std::ifstream file("/proc/self/statm");
  std::uint64_t all = 0;
  std::uint64_t resident = 0;
  file >> all >> resident;
  return resident * static_cast<std::uint64_t>(sysconf(_SC_PAGESIZE));
}

std::uint64_t rss_bytes_peak() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<std::uint64_t>(usage.ru_maxrss) * 1024;
}

double seconds_since(std::chrono::steady_clock::time_point started) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - started).count();
}

ScratchFolder::ScratchFolder(const std::string& parent)
    : path_(parent.empty() ? "dray-bench-XXXXXX" : parent + "/dray-bench-XXXXXX") {
  ok_ = mkdtemp(path_.data()) != nullptr;
  if (!ok_) std::cerr << "dray: cannot make a folder like " << path_ << "\n";
}

ScratchFolder::~ScratchFolder() {
  std::error_code ignored;
  if (ok_) std::filesystem::remove_all(path_, ignored);
}

std::optional<std::uint64_t> device_bytes_written(const std::string& path) {
  struct stat info {};
  if (stat(path.c_str(), &info) != 0) return std::nullopt;
  const std::string name = "/sys/dev/block/" + std::to_string(major(info.st_dev)) + ":" +
                           std::to_string(minor(info.st_dev)) + "/stat";
  std::ifstream file(name);
  std::array<std::uint64_t, 7> fields{};  // the seventh: sectors written
  for (auto& field : fields) file >> field;
  if (!file) return std::nullopt;
  return fields[6] * kSectorBytes;
}

void Latencies::add(std::chrono::nanoseconds took) {
  if (seen_++ % every_ != 0) return;
  kept_.push_back(
      static_cast<std::uint32_t>(std::min<std::int64_t>(took.count() / 10, 0xFFFFFFFF)));
  if (kept_.size() < kLatenciesMax) return;
  for (std::size_t i = 0; i < kept_.size() / 2; ++i) kept_[i] = kept_[2 * i];
  kept_.resize(kept_.size() / 2);
  every_ *= 2;
}

double Latencies::percentile_us(double p) {
  if (kept_.empty()) return 0;
  std::sort(kept_.begin(), kept_.end());
  const auto last = static_cast<double>(kept_.size() - 1);
  return static_cast<double>(kept_[static_cast<std::size_t>(p * last)]) / 100;
}

Status WindowedPublisher::run() {
  const std::string body = to_bytes(Binary{std::string(size_, 'x')});
  for (std::uint64_t i = 0; i < messages_; ++i) {
    {
      std::unique_lock lock(mutex_);
      room_.wait(lock, [&] { return outstanding_ < window_; });
      ++outstanding_;
    }
    const auto started = std::chrono::steady_clock::now();
    publisher_.publish_draft(Draft{"bench", body, {}}, [this, started](const auto& receipt) {
      on_receipt(receipt, std::chrono::steady_clock::now() - started);
    });
  }
  std::unique_lock lock(mutex_);
  room_.wait(lock, [&] { return outstanding_ == 0; });
  return failed_;
}

void WindowedPublisher::on_receipt(const Result<Receipt>& receipt, std::chrono::nanoseconds took) {
  const std::lock_guard lock(mutex_);
  if (!receipt.ok()) failed_ = receipt.error();
  latencies_.add(took);
  --outstanding_;
  if (outstanding_ == 0 || outstanding_ == window_ / 2) room_.notify_one();
}

std::optional<json> run_limits(const BenchOptions& options, const std::string& mode,
                               const std::string& folder, const std::string& more) {
  if (options.limits.empty()) return std::nullopt;
  const std::string command =
      "'" + options.limits + "' " + mode + " --messages " + std::to_string(options.messages) +
      " --size " + std::to_string(options.size) + " --window " + std::to_string(options.window) +
      " --batch " + std::to_string(options.batch) + " --dir '" + folder + "' " + more +
      (options.durability == Durability::kDisk ? "" : " --no-sync");
  FILE* pipe = popen(command.c_str(), "r");
  if (pipe == nullptr) return std::nullopt;
  std::string text;
  std::array<char, 4096> buffer{};
  while (fgets(buffer.data(), buffer.size(), pipe) != nullptr) text += buffer.data();
  pclose(pipe);
  auto report = json::parse(text, nullptr, false);
  if (!report.is_object()) return std::nullopt;
  return report;
}

pid_t start_self(const std::vector<std::string>& arguments, int* out) {
  std::array<int, 2> ends{-1, -1};
  if (out != nullptr && pipe(ends.data()) != 0) return -1;
  const pid_t pid = fork();
  if (pid != 0) {
    if (out != nullptr) {
      close(ends[1]);
      *out = ends[0];
    }
    return pid;
  }
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (out != nullptr) dup2(ends[1], STDOUT_FILENO);
  std::vector<std::string> copy = arguments;
  std::vector<char*> pointers{const_cast<char*>("dray")};  // NOLINT: execv's signature
  for (auto& each : copy) pointers.push_back(each.data());
  pointers.push_back(nullptr);
  execv("/proc/self/exe", pointers.data());
  _exit(127);
}

double median(std::vector<double> values) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

void add_limit(json& report, double limit_per_second, double limit_p50_us) {
  if (limit_per_second <= 0) return;
  report["limit_messages_per_second"] = limit_per_second;
  report["ratio_to_limit"] = report["messages_per_second"].get<double>() / limit_per_second;
  if (limit_p50_us > 0) report["limit_p50_us"] = limit_p50_us;
}

namespace {

std::string value_text(const json& value) {
  if (value.is_string()) return value.get<std::string>();
  if (!value.is_number_float()) return value.dump();
  std::array<char, 32> digits{};
  const double number = value.get<double>();
  std::snprintf(digits.data(), digits.size(), number >= 1000 ? "%.0f" : "%.3f", number);
  return digits.data();
}

}  // namespace

void print_report(const json& report, bool as_json) {
  if (as_json) {
    std::cout << report.dump(2) << "\n";
    return;
  }
  for (const auto& each : report.items()) {
    std::printf("  %-32s %16s\n", each.key().c_str(), value_text(each.value()).c_str());
  }
}

}  // namespace dray::app
