#include "dray/bench_tools.hpp"

#include <signal.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <csignal>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <sstream>
#include <thread>

#include "dray/node.hpp"

namespace dray::app {

using nlohmann::json;

namespace {
constexpr std::size_t kLatenciesMax = 1U << 20;
constexpr std::uint64_t kTimedEvery = 16;
constexpr auto kSleepLate = std::chrono::microseconds(150);
constexpr std::uint64_t kSectorBytes = 512;  // of /sys/dev/block/*/stat, whatever the device's
}  // namespace

double seconds_since(std::chrono::steady_clock::time_point started) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - started).count();
}

ScratchFolder::ScratchFolder(const std::string& parent)
    : path_(parent.empty() ? "dray-bench-XXXXXX" : parent + "/dray-bench-XXXXXX") {
  ok_ = mkdtemp(path_.data()) != nullptr;
  if (!ok_) std::cerr << "dray: cannot make a folder like " << path_ << "\n";
  if (!ok_) return;
  block_signals();
  watch_ = std::thread([this] { watch_signals(); });
}

void ScratchFolder::watch_signals() {
  sigset_t signals;
  sigemptyset(&signals);
  for (const int number : {SIGINT, SIGTERM}) sigaddset(&signals, number);
  const timespec wait{0, 50'000'000};
  while (!over_) {
    if (sigtimedwait(&signals, nullptr, &wait) < 0) continue;
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
    std::cerr << "dray: interrupted\n";
    _exit(kExitFailed);
  }
}

ScratchFolder::~ScratchFolder() {
  over_ = true;
  if (watch_.joinable()) watch_.join();
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

std::string Latencies::text() const {
  std::string out;
  for (const auto each : kept_) out += std::to_string(each) + "\n";
  return out;
}

void Latencies::take(const std::string& text) {
  std::istringstream lines(text);
  for (std::uint32_t each = 0; lines >> each;) add(std::chrono::nanoseconds(each) * 10);
}

Status WindowedPublisher::run() {
  const std::string body = to_bytes(Binary{std::string(size_, 'x')});
  const PublishOptions none;
  return window_ == 1 ? run_one_by_one(body, none) : run_ahead(body, none);
}

// As those do who wait for each.
Status WindowedPublisher::run_one_by_one(const std::string& body, const PublishOptions& none) {
  for (std::uint64_t i = 0; i < messages_; ++i) {
    const auto started = std::chrono::steady_clock::now();
    if (const auto receipt = publisher_.publish_and_wait({"bench", body, none}); !receipt.ok()) {
      return receipt.error();
    }
    latencies_.add(std::chrono::steady_clock::now() - started);
  }
  return {};
}

Status WindowedPublisher::run_ahead(const std::string& body, const PublishOptions& none) {
  std::uint64_t answered = 0;  // as it was when it was last looked at
  const auto wait_for = [&](std::uint64_t wanted) {
    answered = answered_.load(std::memory_order_acquire);
    if (answered >= wanted) return;
    std::unique_lock lock(mutex_);
    // Rather some at a time than woken for each.
    wanted_.store(std::min(messages_, wanted + window_ / 4), std::memory_order_seq_cst);
    room_.wait(lock, [&] {
      return answered_.load(std::memory_order_seq_cst) >= wanted_.load(std::memory_order_relaxed);
    });
    wanted_.store(kNobodyWaits, std::memory_order_relaxed);
    answered = answered_.load(std::memory_order_acquire);
  };
  for (std::uint64_t i = 0; i < messages_; ++i) {
    if (i - answered >= window_) wait_for(i + 1 - window_);
    if (i % kTimedEvery != 0) {
      publisher_.publish_view({"bench", body, none},
                              [this](const auto& receipt) { on_receipt(receipt); });
      continue;
    }
    const auto started = std::chrono::steady_clock::now();
    publisher_.publish_view({"bench", body, none}, [this, started](const auto& receipt) {
      {
        const std::lock_guard lock(mutex_);
        latencies_.add(std::chrono::steady_clock::now() - started);
      }
      on_receipt(receipt);
    });
  }
  wait_for(messages_);
  const std::lock_guard lock(mutex_);
  return failed_;
}

void WindowedPublisher::on_receipt(const Result<Receipt>& receipt) {
  if (!receipt.ok()) {
    const std::lock_guard lock(mutex_);
    failed_ = receipt.error();
  }
  const std::uint64_t answered = answered_.fetch_add(1, std::memory_order_seq_cst) + 1;
  if (answered < wanted_.load(std::memory_order_seq_cst)) return;
  const std::lock_guard lock(mutex_);  // the publisher is waiting, or has not looked yet
  room_.notify_one();
}

Status PacedPublisher::run(
    const std::function<std::string(std::chrono::steady_clock::time_point due)>& body) {
  const auto started = std::chrono::steady_clock::now();
  for (std::uint64_t i = 0; i < messages_; ++i) {
    const auto due = started + std::chrono::nanoseconds(1'000'000'000 / rate_) * i;
    // A sleep ends late: by what Linux may delay a timer, and by how long the processor wakes.
    std::this_thread::sleep_until(due - kSleepLate);
    while (std::chrono::steady_clock::now() < due) {
    }
    // Measured from when it was due: one that waits for the one before it is late as well.
    publisher_.publish_draft(Draft{"bench", body(due), {}}, [this, due](const auto& receipt) {
      const std::lock_guard lock(mutex_);
      if (!receipt.ok()) failed_ = receipt.error();
      latencies_.add(std::chrono::steady_clock::now() - due);
      if (++receipts_ == messages_) changed_.notify_one();
    });
  }
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return receipts_ == messages_; });
  return failed_;
}

std::uint64_t room_for(const BenchOptions& options) {
  constexpr std::uint64_t kRecordOverhead = 160;  // headers, envelope, settlements, padding: less
  constexpr std::uint64_t kSegment = 64U << 20;
  const std::uint64_t bytes = options.messages * (options.size + kRecordOverhead);
  return (bytes + kSegment - 1) / kSegment * kSegment;
}

Status wait_for_room(Spooler& spooler, std::uint64_t room) {
  for (const auto started = std::chrono::steady_clock::now(); seconds_since(started) < 600;) {
    const auto status = spooler.status();
    if (!status.ok()) return status.error();
    if (status->ready_bytes >= room) return {};
    std::this_thread::sleep_for(Milliseconds(5));
  }
  return Error{ErrorCode::kFull, "no room for a run of this size was made within 600s", "", 0};
}

std::optional<json> run_limits(const BenchOptions& options, const std::string& mode,
                               const std::string& folder, const std::string& more) {
  std::string program = options.limits;
  if (program.empty()) {
    std::error_code ignored;
    program = std::filesystem::read_symlink("/proc/self/exe", ignored).parent_path() / "limits";
    if (!std::filesystem::exists(program, ignored)) return std::nullopt;
  }
  const std::string command =
      "'" + program + "' " + mode + " --messages " + std::to_string(options.messages) + " --size " +
      std::to_string(options.size) + " --window " + std::to_string(options.window) + " --batch " +
      std::to_string(options.batch) + " --dir '" + folder + "' " + more +
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

void add_limit(json& report, double limit_per_second, double limit_p50_us, double limit_p99_us) {
  if (limit_per_second <= 0) return;
  report["limit_messages_per_second"] = limit_per_second;
  report["ratio_to_limit"] = report["messages_per_second"].get<double>() / limit_per_second;
  if (limit_p50_us > 0) report["limit_p50_us"] = limit_p50_us;
  if (limit_p99_us > 0) report["limit_p99_us"] = limit_p99_us;
}

namespace {

constexpr int kBarWidth = 40;
constexpr int kNameWidth = 34;

// 1234567.8 as "1,234,568"; small numbers with three digits behind the point.
std::string number_text(double number) {
  std::array<char, 48> digits{};
  std::snprintf(digits.data(), digits.size(), std::abs(number) >= 1'000 ? "%.0f" : "%.3f", number);
  std::string text = digits.data();
  const auto point = text.find('.');
  if (point != std::string::npos) {
    text.erase(text.find_last_not_of('0') + 1);
    if (text.back() == '.') text.pop_back();
    return text;
  }
  for (int at = static_cast<int>(text.size()) - 3; at > (text[0] == '-' ? 1 : 0); at -= 3) {
    text.insert(static_cast<std::size_t>(at), ",");
  }
  return text;
}

std::string value_text(const std::string& name, const json& value) {
  if (value.is_string()) return value.get<std::string>();
  if (!value.is_number()) return value.dump();
  const double number = value.get<double>();
  if (name.starts_with("rss_bytes")) return number_text(number / (1 << 20)) + " MiB";
  if (name.ends_with("_us")) return number_text(number) + " us";
  if (name.ends_with("_seconds")) return number_text(number) + " s";
  return number_text(number);
}

std::string name_text(std::string name) {
  for (const char* unit : {"_us", "_seconds"}) {
    if (name.ends_with(unit)) name.resize(name.size() - std::string_view(unit).size());
  }
  if (name.starts_with("rss_bytes")) name.replace(0, 9, "memory");
  std::replace(name.begin(), name.end(), '_', ' ');
  return name;
}

bool is_speed(const std::string& name) {
  return name.ends_with("per_second");
}

}  // namespace

void print_report(const json& report, bool as_json) {
  if (as_json) {
    std::cout << report.dump(2) << "\n";
    return;
  }
  double most = 0;
  for (const auto& [name, value] : report.items()) {
    if (is_speed(name)) most = std::max(most, value.get<double>());
  }
  std::printf("%s\n", report.value("workload", "").c_str());
  for (const bool speeds : {true, false}) {
    for (const auto& [name, value] : report.items()) {
      if (is_speed(name) != speeds || name == "workload") continue;
      std::printf("  %-*s %16s", kNameWidth, name_text(name).c_str(),
                  value_text(name, value).c_str());
      if (speeds && most > 0) {
        std::printf("  ");
        const int length = static_cast<int>(std::lround(value.get<double>() / most * kBarWidth));
        for (int i = 0; i < length; ++i) std::printf("\u2588");
      }
      std::printf("\n");
    }
  }
}

}  // namespace dray::app
