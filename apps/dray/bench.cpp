// dray bench end-to-end, fan-out, latency, limits: with workers in processes of their own.
#include "dray/bench.hpp"

#include <netinet/in.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <csignal>
#include <cstring>
#include <iostream>
#include <map>
#include <thread>

#include "dray/bench_tools.hpp"
#include "dray/command_tools.hpp"
#include "dray/fields.hpp"
#include "dray/node.hpp"
#include "dray/spooler.hpp"
#include "dray/worker.hpp"

namespace dray::app {
namespace {

using nlohmann::json;

std::int64_t steady_ns() {
  return std::chrono::steady_clock::now().time_since_epoch().count();
}

// What a body of `latency` begins with: when it was due, on the clock of this machine.
std::string stamped(std::string body, std::chrono::steady_clock::time_point due) {
  const std::int64_t at = due.time_since_epoch().count();
  std::memcpy(body.data(), &at, sizeof(at));
  return body;
}

class BenchHandler final : public RawHandler {
 public:
  BenchHandler(const BenchOptions& options, Latencies& latencies)
      : sleep_(options.sleep_us),
        spin_(options.spin_us),
        stamps_(options.stamps),
        latencies_(latencies) {}
  Outcome handle_body(std::string_view body, Delivery&) override {
    if (stamps_) note(body);
    if (sleep_.count() != 0) std::this_thread::sleep_for(sleep_);
    if (spin_.count() == 0) return done();
    const auto until = std::chrono::steady_clock::now() + spin_;
    while (std::chrono::steady_clock::now() < until) {
    }
    return done();
  }

 private:
  void note(std::string_view body) {
    const auto bytes = from_bytes<Binary>(body);
    if (!bytes.ok() || bytes->bytes.size() < sizeof(std::int64_t)) return;
    std::int64_t published = 0;
    std::memcpy(&published, bytes->bytes.data(), sizeof(published));
    latencies_.add(std::chrono::nanoseconds(steady_ns() - published));
  }

  const std::chrono::microseconds sleep_;
  const std::chrono::microseconds spin_;
  const bool stamps_;
  Latencies& latencies_;
};

// A port that was free a moment ago: the workers are told it before the spool is there.
std::string free_endpoint() {
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof(address);
  auto* plain = reinterpret_cast<sockaddr*>(&address);  // NOLINT: as POSIX has it
  const bool ok = fd >= 0 && bind(fd, plain, size) == 0 && getsockname(fd, plain, &size) == 0;
  if (fd >= 0) close(fd);
  return ok ? "tcp://127.0.0.1:" + std::to_string(ntohs(address.sin_port)) : "";
}

// A spool in this process and workers in others, as users run them.
class Flow {
 public:
  Flow(const BenchOptions& options, const std::string& folder) : options_(options) {
    spooler_options_.directory = folder + "/spool";
    spooler_options_.bind = options.transport == "tcp" ? free_endpoint() : "ipc://" + folder + "/s";
    spooler_options_.durability = options.durability;
    spooler_options_.max_size = 1ULL << 40;
    if (!options.growing) spooler_options_.preallocate = room_for(options);
    for (std::uint32_t i = 0; i < options.groups; ++i) {
      spooler_options_.groups.push_back({"group" + std::to_string(i), {"bench"}});
    }
  }
  ~Flow() { end_workers(SIGKILL); }
  Flow(const Flow&) = delete;
  Flow& operator=(const Flow&) = delete;

  // Returns when every worker has a session and the room is made.
  Status start() {
    for (const auto& group : spooler_options_.groups) {
      for (std::uint32_t i = 0; i < options_.workers; ++i) DRAY_TRY(start_worker(group.name));
    }
    auto opened = Spooler::open(spooler_options_);
    if (!opened.ok()) return opened.error();
    spooler_ = std::move(*opened);
    DRAY_TRY(wait_settled(0, options_.workers));
    DRAY_TRY(wait_for_room(*spooler_, spooler_options_.preallocate));
    cpu_before_ = cpu_seconds(RUSAGE_SELF);
    // The bare program's, and what the workers needed to start.
    others_before_ = cpu_seconds(RUSAGE_CHILDREN);
    for (const auto& child : children_) others_before_ += cpu_seconds_of(child.pid);
    return {};
  }
  Spooler& spooler() { return *spooler_; }

  // Until each group has settled so many.
  Status wait_settled(std::uint64_t messages, std::size_t workers = 0) {
    for (;;) {
      const auto status = spooler_->status();
      if (!status.ok()) return status.error();
      const bool settled = std::all_of(
          status->groups.begin(), status->groups.end(),
          [&](const auto& group) { return group.done >= messages && group.workers >= workers; });
      if (settled) return {};
      for (const auto& child : children_) {
        siginfo_t ended{};
        const auto id = static_cast<id_t>(child.pid);
        if (waitid(P_PID, id, &ended, WEXITED | WNOHANG | WNOWAIT) == 0 && ended.si_pid != 0) {
          return Error{ErrorCode::kIo, "a worker ended before its work", "", 0};
        }
      }
      std::this_thread::sleep_for(Milliseconds(1));
    }
  }

  // Ends the workers. CPU of all processes since start(), in seconds.
  double finish() {
    const double own = cpu_seconds(RUSAGE_SELF) - cpu_before_;
    end_workers(SIGTERM);
    return own + cpu_seconds(RUSAGE_CHILDREN) - others_before_;
  }
  // What the handlers noted; after finish().
  Latencies& latencies() { return latencies_; }

 private:
  struct Child {
    pid_t pid = -1;
    int out = -1;
  };

  Status start_worker(const std::string& group) {
    std::vector<std::string> arguments{"bench", "worker", spooler_options_.bind, group};
    for (const auto& [name, value] :
         {std::pair{"--threads", options_.threads}, std::pair{"--sleep-us", options_.sleep_us},
          std::pair{"--spin-us", options_.spin_us},
          std::pair{"--worker-window", options_.worker_window}}) {
      arguments.insert(arguments.end(), {name, std::to_string(value)});
    }
    if (options_.stamps) arguments.emplace_back("--stamps");
    Child child;
    child.pid = start_self(arguments, &child.out);
    if (child.pid <= 0) return io_error("start", "a worker", errno);
    children_.push_back(child);
    return {};
  }

  void end_workers(int signal) {
    for (const auto& child : children_) kill(child.pid, signal);
    for (const auto& child : children_) {
      std::string text;
      std::array<char, 65536> buffer{};
      for (ssize_t got = 0; (got = read(child.out, buffer.data(), buffer.size())) > 0;) {
        text.append(buffer.data(), static_cast<std::size_t>(got));
      }
      close(child.out);
      latencies_.take(text);
      waitpid(child.pid, nullptr, 0);
    }
    children_.clear();
  }

  const BenchOptions& options_;
  SpoolerOptions spooler_options_;
  std::vector<Child> children_;
  std::unique_ptr<Spooler> spooler_;
  double cpu_before_ = 0, others_before_ = 0;
  Latencies latencies_;
};

json flow_report(const BenchOptions& options, const char* workload) {
  return {{"workload", workload},
          {"size", options.size},
          {"workers", options.workers},
          {"threads", options.threads},
          {"groups", options.groups},
          {"transport", options.transport},
          {"sleep_us", options.sleep_us},
          {"spin_us", options.spin_us},
          {"worker_window", options.worker_window},
          {"durability", durability_name(options.durability)}};
}

void add_latencies(json& report, Latencies& latencies, const std::string& prefix = "") {
  report[prefix + "p50_us"] = latencies.percentile_us(0.5);
  report[prefix + "p99_us"] = latencies.percentile_us(0.99);
  report[prefix + "p999_us"] = latencies.percentile_us(0.999);
}

// Published, delivered and settled by all groups: the report without its limit.
Result<json> end_to_end_once(const BenchOptions& options) {
  const ScratchFolder folder(options.directory);
  if (!folder.ok()) return Error{ErrorCode::kIo, "no folder to work in", options.directory, 0};
  Flow flow(options, folder.path());
  DRAY_TRY(flow.start());
  const auto started = std::chrono::steady_clock::now();
  WindowedPublisher publisher(flow.spooler(), options.messages, options.size, options.window);
  DRAY_TRY(publisher.run());
  DRAY_TRY(flow.wait_settled(options.messages));
  const double took = seconds_since(started);
  const auto count = static_cast<double>(options.messages);
  json report = flow_report(options, "end-to-end");
  report["messages"] = options.messages;
  report["window"] = options.window;
  report["growing"] = options.growing;
  report["messages_per_second"] = count / took;
  report["cpu_seconds_per_million"] = flow.finish() * 1e6 / count;
  report["rss_bytes_peak"] = rss_bytes_peak();
  add_latencies(report, publisher.latencies());
  return report;
}

}  // namespace

int bench_end_to_end(const BenchOptions& options) {
  block_signals();
  std::optional<json> limit;
  if (const ScratchFolder folder(options.directory); folder.ok()) {
    limit = run_limits(options, "composite", folder.path());
  }
  auto report = end_to_end_once(options);
  if (!report.ok()) return fail(report.error());
  if (limit) add_limit(*report, limit->value("messages_per_second", 0.0));
  print_report(*report, options.json);
  return 0;
}

int bench_fan_out(const BenchOptions& wanted) {
  block_signals();
  BenchOptions options = wanted;
  options.groups = std::max(2U, wanted.groups);
  BenchOptions single = options;
  single.groups = 1;
  std::vector<double> one;
  std::map<std::string, std::vector<double>> many;
  json report;
  for (std::uint32_t i = 0; i < options.runs; ++i) {
    auto alone = end_to_end_once(single);
    if (!alone.ok()) return fail(alone.error());
    one.push_back((*alone)["messages_per_second"]);
    auto measured = end_to_end_once(options);
    if (!measured.ok()) return fail(measured.error());
    for (const char* figure :
         {"messages_per_second", "cpu_seconds_per_million", "p50_us", "p99_us", "p999_us"}) {
      many[figure].push_back((*measured)[figure]);
    }
    report = std::move(*measured);
  }
  report["workload"] = "fan-out";
  for (const auto& [figure, values] : many) report[figure] = median(values);
  report["one_group_messages_per_second"] = median(one);
  report["ratio_to_one_group"] = report["messages_per_second"].get<double>() / median(one);
  print_report(report, options.json);
  return 0;
}

int bench_latency(const BenchOptions& wanted) {
  block_signals();
  BenchOptions options = wanted;
  options.stamps = true;
  options.size = std::max<std::uint64_t>(wanted.size, sizeof(std::int64_t));
  options.messages = static_cast<std::uint64_t>(options.rate) * options.seconds;
  const ScratchFolder folder(options.directory);
  if (!folder.ok()) return kExitFailed;
  Flow flow(options, folder.path());
  if (const auto started = flow.start(); !started.ok()) return fail(started.error());
  PacedPublisher publisher(flow.spooler(), options.messages, options.rate);
  const auto published = publisher.run([&, body = std::string(options.size, 'x')](auto due) {
    return to_bytes(Binary{stamped(body, due)});
  });
  if (!published.ok()) return fail(published.error());
  if (const auto settled = flow.wait_settled(options.messages); !settled.ok()) {
    return fail(settled.error());
  }
  const double cpu = flow.finish();
  json report = flow_report(options, "latency");
  report["messages"] = options.messages;
  report["rate"] = options.rate;
  add_latencies(report, flow.latencies());
  add_latencies(report, publisher.latencies(), "receipt_");
  report["cpu_seconds_per_million"] = cpu * 1e6 / static_cast<double>(options.messages);
  report["rss_bytes_peak"] = rss_bytes_peak();
  print_report(report, options.json);
  return 0;
}

// Load without end: whether speed, memory and descriptors stay as they are.
int bench_soak(const BenchOptions& wanted) {
  block_signals();
  constexpr std::uint64_t kPiece = 50'000;
  constexpr std::uint64_t kBacklogMax = 4 * kPiece;
  BenchOptions options = wanted;
  options.messages = 10 * kPiece;  // what room is made for
  const ScratchFolder folder(options.directory);
  if (!folder.ok()) return kExitFailed;
  Flow flow(options, folder.path());
  if (const auto started = flow.start(); !started.ok()) return fail(started.error());
  struct Sample {
    double at;
    std::uint64_t settled, rss, descriptors;
  };
  std::vector<Sample> samples;
  std::uint64_t published = 0;
  const auto started = std::chrono::steady_clock::now();
  while (seconds_since(started) < options.seconds) {
    WindowedPublisher publisher(flow.spooler(), kPiece, options.size, options.window);
    if (const auto done = publisher.run(); !done.ok()) return fail(done.error());
    published += kPiece;
    const std::uint64_t least = published > kBacklogMax ? published - kBacklogMax : 0;
    if (const auto settled = flow.wait_settled(least); !settled.ok()) return fail(settled.error());
    const auto status = flow.spooler().status();
    if (!status.ok()) return fail(status.error());
    samples.push_back(
        {seconds_since(started), status->groups.front().done, rss_bytes(), open_descriptors()});
  }
  // A tenth at either end, after a tenth in which buffers and windows find their sizes.
  const std::size_t part = samples.size() / 10;
  if (part < 2)
    return fail(Error{ErrorCode::kInvalid, "too short to compare; more --seconds", "", 0});
  const auto speed = [&](std::size_t from) {
    const auto& [begin, end] = std::pair(samples[from], samples[from + part - 1]);
    return static_cast<double>(end.settled - begin.settled) / (end.at - begin.at);
  };
  const auto& first = samples[2 * part];
  const auto& last = samples.back();
  json report = flow_report(options, "soak");
  report["messages"] = published;
  report["window"] = options.window;
  report["seconds"] = options.seconds;
  report["messages_per_second"] = static_cast<double>(last.settled) / last.at;
  report["first_per_second"] = speed(part);
  report["last_per_second"] = speed(samples.size() - part);
  report["ratio_last_to_first"] = speed(samples.size() - part) / speed(part);
  report["rss_bytes_first"] = first.rss;
  report["rss_bytes_last"] = last.rss;
  report["descriptors_first"] = first.descriptors;
  report["descriptors_last"] = last.descriptors;
  report["cpu_seconds_per_million"] = flow.finish() * 1e6 / static_cast<double>(published);
  print_report(report, options.json);
  return 0;
}

int bench_limits(const BenchOptions& wanted) {
  const ScratchFolder folder(wanted.directory);
  if (!folder.ok()) return kExitFailed;
  json report{{"workload", "limits"},
              {"messages", wanted.messages},
              {"size", wanted.size},
              {"durability", durability_name(wanted.durability)}};
  const auto measure = [&](const char* mode, const std::string& name, const BenchOptions& options) {
    const auto bare = run_limits(options, mode, folder.path());
    if (!bare) return false;
    report[name + "_per_second"] = bare->value("messages_per_second", 0.0);
    report[name + "_commit_p50_us"] = bare->value("p50_us", 0.0);
    return true;
  };
  bool all = true;
  for (const std::uint64_t batch : {1U, 1024U}) {
    BenchOptions options = wanted;
    options.batch = batch;
    options.messages =
        batch == 1 ? std::min<std::uint64_t>(wanted.messages, 20'000) : wanted.messages;
    all = all && measure("append", "append_batch_" + std::to_string(batch), options);
  }
  for (const std::uint64_t window : {1000U, 10000U}) {
    BenchOptions options = wanted;
    options.window = window;
    all = all && measure("composite", "composite_window_" + std::to_string(window), options);
  }
  if (!all) {
    std::cerr << "dray: the bare program does not run; build it (tests/bench/limits.cpp) and say "
                 "where it is by --limits\n";
    return kExitFailed;
  }
  print_report(report, wanted.json);
  return 0;
}

int bench_worker(const BenchOptions& options, const std::string& endpoint,
                 const std::string& group) {
  block_signals();
  WorkerSettings settings;
  settings.group = group;
  settings.endpoints = {endpoint};
  settings.threads = options.threads;
  settings.window_fixed = options.worker_window;
  std::vector<std::unique_ptr<Latencies>> latencies;  // of each handler thread
  auto worker = Worker::start(settings, [&]() -> Result<std::unique_ptr<Consumer>> {
    latencies.push_back(std::make_unique<Latencies>());
    return consumer_of(std::make_unique<BenchHandler>(options, *latencies.back()), Log());
  });
  if (!worker.ok()) return kExitFailed;
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  int number = 0;
  sigwait(&signals, &number);
  (*worker)->stop();
  for (const auto& each : latencies) std::cout << each->text();
  return 0;
}

}  // namespace dray::app
