#include "dray/bench.hpp"

#include <sys/resource.h>
#include <sys/wait.h>

#include <algorithm>
#include <csignal>
#include <iostream>
#include <thread>

#include "dray/bench_tools.hpp"
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

}  // namespace

int bench_end_to_end(const BenchOptions& options) {
  const ScratchFolder folder(options.directory);
  if (!folder.ok()) return kExitFailed;
  const auto limit = run_limits(options, "composite", folder.path());
  block_signals();
  SpoolerOptions spooler_options;
  spooler_options.directory = folder.path() + "/spool";
  spooler_options.bind = "ipc://" + folder.path() + "/s";
  spooler_options.durability = options.durability;
  spooler_options.max_size = 1ULL << 40;
  for (std::uint32_t i = 0; i < options.groups; ++i) {
    spooler_options.groups.push_back({"group" + std::to_string(i), {"bench"}});
  }
  // Workers first: fork before this process has threads.
  std::vector<pid_t> workers;
  const auto end_workers = [&](int signal) {
    for (const pid_t pid : workers) kill(pid, signal);
    for (const pid_t pid : workers) waitpid(pid, nullptr, 0);
    workers.clear();
  };
  for (const auto& group : spooler_options.groups) {
    for (std::uint32_t i = 0; i < options.workers; ++i) {
      workers.push_back(start_self(
          {"bench", "worker", spooler_options.bind, group.name, std::to_string(options.threads)}));
    }
  }
  auto spooler = Spooler::open(spooler_options);
  if (!spooler.ok()) {
    std::cerr << "dray: " << spooler.error().text() << "\n";
    end_workers(SIGKILL);
    return kExitFailed;
  }
  wait_settled(**spooler, 0, options.workers);
  const double cpu_before = cpu_seconds(RUSAGE_SELF);
  const auto started = std::chrono::steady_clock::now();
  WindowedPublisher publisher(**spooler, options.messages, options.size, options.window);
  const auto published = publisher.run();
  if (!published.ok()) {
    std::cerr << "dray: " << published.error().text() << "\n";
    end_workers(SIGKILL);
    return kExitFailed;
  }
  wait_settled(**spooler, options.messages, 0);
  const double took = seconds_since(started);
  const double own_cpu = cpu_seconds(RUSAGE_SELF) - cpu_before;
  end_workers(SIGTERM);
  const auto count = static_cast<double>(options.messages);
  json report{{"workload", "end-to-end"},
              {"messages", options.messages},
              {"size", options.size},
              {"window", options.window},
              {"workers", options.workers},
              {"groups", options.groups},
              {"durability", durability_name(options.durability)},
              {"messages_per_second", count / took},
              {"p50_us", publisher.latencies().percentile_us(0.5)},
              {"p99_us", publisher.latencies().percentile_us(0.99)},
              {"p999_us", publisher.latencies().percentile_us(0.999)},
              {"cpu_seconds_per_million", (own_cpu + cpu_seconds(RUSAGE_CHILDREN)) * 1e6 / count},
              {"rss_bytes_peak", rss_bytes_peak()}};
  if (limit) add_limit(report, limit->value("messages_per_second", 0.0), 0);
  print_report(report, options.json);
  return 0;
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
