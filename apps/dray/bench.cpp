#include "dray/bench.hpp"

#include <signal.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <condition_variable>
#include <cstdio>
#include <filesystem>
#include <iostream>
#include <mutex>
#include <nlohmann/json.hpp>
#include <thread>

#include "dray/node.hpp"
#include "dray/spooler.hpp"
#include "dray/worker.hpp"

namespace dray::app {
namespace {

using nlohmann::json;

class EmptyHandler final : public RawHandler {
 public:
  Outcome handle_body(std::string_view, Delivery&) override { return done(); }
};

double cpu_seconds(int who) {
  rusage usage{};
  getrusage(who, &usage);
  const auto seconds = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_usec) / 1e6;
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

pid_t start_worker(const std::string& endpoint, const std::string& group, std::uint32_t threads) {
  const pid_t pid = fork();
  if (pid != 0) return pid;
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  const std::string thread_text = std::to_string(threads);
  execl("/proc/self/exe", "dray", "bench", "worker", endpoint.c_str(), group.c_str(),
        thread_text.c_str(), static_cast<char*>(nullptr));
  _exit(127);
}

// Publishes with at most `window` receipts outstanding; notes how long each receipt took.
class WindowedPublisher {
 public:
  WindowedPublisher(Spooler& spooler, const EndToEndOptions& options)
      : spooler_(spooler), options_(options) {
    latency_ns_.reserve(options.messages);
  }

  Status run() {
    const std::string body = to_bytes(Binary{std::string(options_.size, 'x')});
    for (std::uint64_t i = 0; i < options_.messages; ++i) {
      {
        std::unique_lock lock(mutex_);
        room_.wait(lock, [&] { return outstanding_ < options_.window; });
        ++outstanding_;
      }
      const auto started = std::chrono::steady_clock::now();
      spooler_.publish_draft(Draft{"bench", body, {}}, [this, started](const auto& receipt) {
        on_receipt(receipt, std::chrono::steady_clock::now() - started);
      });
    }
    std::unique_lock lock(mutex_);
    room_.wait(lock, [&] { return outstanding_ == 0; });
    return failed_;
  }

  double percentile_us(double p) {
    if (latency_ns_.empty()) return 0;
    std::sort(latency_ns_.begin(), latency_ns_.end());
    const auto last = static_cast<double>(latency_ns_.size() - 1);
    return static_cast<double>(latency_ns_[static_cast<std::size_t>(p * last)]) / 1e3;
  }

 private:
  void on_receipt(const Result<Receipt>& receipt, std::chrono::nanoseconds took) {
    const std::lock_guard lock(mutex_);
    if (!receipt.ok()) failed_ = receipt.error();
    latency_ns_.push_back(static_cast<std::uint64_t>(took.count()));
    --outstanding_;
    if (outstanding_ == 0 || outstanding_ == options_.window / 2) room_.notify_one();
  }

  Spooler& spooler_;
  const EndToEndOptions& options_;
  std::mutex mutex_;
  std::condition_variable room_;
  std::uint64_t outstanding_ = 0;
  std::vector<std::uint64_t> latency_ns_;
  Status failed_;
};

bool wait_settled(Spooler& spooler, std::uint64_t messages, std::size_t workers) {
  for (;;) {
    const auto status = spooler.status();
    if (!status.ok()) return false;
    const bool settled = std::all_of(
        status->groups.begin(), status->groups.end(),
        [&](const auto& group) { return group.done >= messages && group.workers >= workers; });
    if (settled) return true;
    std::this_thread::sleep_for(Milliseconds(1));
  }
}

// Runs the bare program with the same figures; nothing if there is none.
json run_limits(const EndToEndOptions& options, const std::string& directory) {
  if (options.limits.empty()) return nullptr;
  const std::string command =
      "'" + options.limits + "' composite --messages " + std::to_string(options.messages) +
      " --size " + std::to_string(options.size) + " --window " + std::to_string(options.window) +
      " --dir '" + directory + "'" + (options.durability == Durability::kDisk ? "" : " --no-sync");
  FILE* pipe = popen(command.c_str(), "r");
  if (pipe == nullptr) return nullptr;
  std::string text;
  std::array<char, 4096> buffer{};
  while (fgets(buffer.data(), buffer.size(), pipe) != nullptr) text += buffer.data();
  pclose(pipe);
  return json::parse(text, nullptr, false);
}

void print(const json& report) {
  std::printf(
      "end to end: %s messages of %s bytes, %s outstanding, %s worker(s), %s group(s), %s\n",
      report["messages"].dump().c_str(), report["size"].dump().c_str(),
      report["window"].dump().c_str(), report["workers"].dump().c_str(),
      report["groups"].dump().c_str(), report["durability"].get<std::string>().c_str());
  std::printf("  %12.0f messages/s, published to settled\n",
              report["messages_per_second"].get<double>());
  std::printf("  %12.0f us p50, %.0f us p99 of a receipt\n", report["p50_us"].get<double>(),
              report["p99_us"].get<double>());
  std::printf("  %12.2f CPU-seconds per million, all processes\n",
              report["cpu_seconds_per_million"].get<double>());
  if (report.contains("ratio_to_limit")) {
    std::printf("  %12.2f of the bare program's %.0f/s\n", report["ratio_to_limit"].get<double>(),
                report["limit_messages_per_second"].get<double>());
  }
}

}  // namespace

int bench_end_to_end(const EndToEndOptions& options) {
  std::string folder =
      options.directory.empty() ? "dray-bench-XXXXXX" : options.directory + "/dray-bench-XXXXXX";
  if (mkdtemp(folder.data()) == nullptr) {
    std::cerr << "dray: cannot make a folder like " << folder << "\n";
    return kExitFailed;
  }
  const json limit = run_limits(options, folder);
  block_signals();
  SpoolerOptions spooler_options;
  spooler_options.directory = folder + "/spool";
  spooler_options.bind = "ipc://" + folder + "/s";
  spooler_options.durability = options.durability;
  spooler_options.max_size = 1ULL << 40;
  for (std::uint32_t i = 0; i < options.groups; ++i) {
    spooler_options.groups.push_back({"group" + std::to_string(i), {"bench"}});
  }
  int code = 0;
  {
    // Workers first: fork before this process has threads.
    std::vector<pid_t> workers;
    for (const auto& group : spooler_options.groups) {
      for (std::uint32_t i = 0; i < options.workers; ++i) {
        workers.push_back(start_worker(spooler_options.bind, group.name, options.threads));
      }
    }
    auto spooler = Spooler::open(spooler_options);
    if (!spooler.ok()) {
      std::cerr << "dray: " << spooler.error().text() << "\n";
      code = kExitFailed;
    } else {
      wait_settled(**spooler, 0, options.workers);
      const double cpu_before = cpu_seconds(RUSAGE_SELF);
      const auto started = std::chrono::steady_clock::now();
      WindowedPublisher publisher(**spooler, options);
      const auto published = publisher.run();
      if (!published.ok()) {
        std::cerr << "dray: " << published.error().text() << "\n";
        code = kExitFailed;
      } else {
        wait_settled(**spooler, options.messages, 0);
      }
      const std::chrono::duration<double> took = std::chrono::steady_clock::now() - started;
      const double own_cpu = cpu_seconds(RUSAGE_SELF) - cpu_before;
      for (const pid_t pid : workers) kill(pid, SIGTERM);
      for (const pid_t pid : workers) waitpid(pid, nullptr, 0);
      workers.clear();
      rusage self{};
      getrusage(RUSAGE_SELF, &self);
      const auto count = static_cast<double>(options.messages);
      json report{
          {"workload", "end-to-end"},
          {"messages", options.messages},
          {"size", options.size},
          {"window", options.window},
          {"workers", options.workers},
          {"groups", options.groups},
          {"durability", durability_name(options.durability)},
          {"messages_per_second", count / took.count()},
          {"p50_us", publisher.percentile_us(0.5)},
          {"p99_us", publisher.percentile_us(0.99)},
          {"p999_us", publisher.percentile_us(0.999)},
          {"cpu_seconds_per_million", (own_cpu + cpu_seconds(RUSAGE_CHILDREN)) * 1e6 / count},
          {"rss_bytes_peak", self.ru_maxrss * 1024}};
      if (limit.is_object()) {
        report["limit_messages_per_second"] = limit["messages_per_second"];
        report["ratio_to_limit"] =
            count / took.count() / limit["messages_per_second"].get<double>();
      }
      if (options.json) {
        std::cout << report.dump(2) << "\n";
      } else {
        print(report);
      }
    }
    for (const pid_t pid : workers) {
      kill(pid, SIGKILL);
      waitpid(pid, nullptr, 0);
    }
  }
  std::error_code ignored;
  std::filesystem::remove_all(folder, ignored);
  return code;
}

int bench_worker(const std::string& endpoint, const std::string& group, std::uint32_t threads) {
  block_signals();
  WorkerSettings settings;
  settings.group = group;
  settings.endpoints = {endpoint};
  settings.threads = threads;
  auto worker = Worker::start(settings, []() -> Result<std::unique_ptr<Consumer>> {
    return consumer_of(std::make_unique<EmptyHandler>(), Log());
  });
  if (!worker.ok()) return kExitFailed;
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  int number = 0;
  sigwait(&signals, &number);
  return 0;
}

}  // namespace dray::app
