// dray bench append, publish, backlog: the spool alone.
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <csignal>
#include <deque>
#include <filesystem>
#include <iostream>
#include <semaphore>
#include <thread>

#include "dray/bench_tools.hpp"
#include "dray/command_tools.hpp"
#include "dray/disk/posix_directory.hpp"
#include "dray/node.hpp"
#include "dray/spool/spool.hpp"
#include "dray/spooler.hpp"

namespace dray::app {
namespace {

using nlohmann::json;

json base_report(const BenchOptions& options, const char* workload) {
  return {{"workload", workload},
          {"messages", options.messages},
          {"size", options.size},
          {"durability", durability_name(options.durability)}};
}

// Owns the state of a spool's one group, as a dispatcher would, and settles what was committed with
// the next commit, if it is to.
class StateOwner final : public spool::CommitListener {
 public:
  StateOwner(spool::Spool& spool, const Clock& clock, bool settles)
      : spool_(spool),
        clock_(clock),
        settles_(settles),
        state_(std::move(spool.take_groups().front())) {}
  ~StateOwner() override { spool_.stop(); }  // its threads call this object
  StateOwner(const StateOwner&) = delete;
  StateOwner& operator=(const StateOwner&) = delete;

  void on_committed(spool::Committed committed) override {
    spool::Lsn skip_from = committed.first;
    std::uint64_t messages = 0;
    for (const auto& run : committed.runs) {
      messages += run.count;
      state_->accept(run.count);
      if (skip_from < run.first) state_->skip(skip_from, run.first - 1);
      skip_from = run.first + run.count;
      open_.add(run.first, run.count);
    }
    if (skip_from <= committed.last) state_->skip(skip_from, committed.last);
    state_->pass(committed.last + 1, messages);
    for (std::size_t i = 0; i < committed.tickets.size(); ++i) {
      for (const auto& run : settling_.front()) state_->settle(run, spool::Settlement::kDone);
      settling_.pop_front();
    }
    if (messages > 0) ++commits_;
    if (settles_ && !open_.empty()) settle_open();
    checkpoint_if_due(committed);
  }
  void on_failed(const Error& error) override { failed = error; }
  // That had messages in them.
  std::uint64_t commits() const { return commits_; }

  std::optional<Error> failed;

 private:
  void settle_open() {
    settling_.push_back(std::exchange(open_, {}));
    spool::Submission submission;
    submission.entries.push_back(
        {spool::RecordType::kSettlement, 0,
         spool::encode(spool::SettlementRecord{0, spool::Settlement::kDone, settling_.back()}), 0});
    submission.ticket = 1;
    submission.lazy = true;
    spool_.submit(submission);
  }
  void checkpoint_if_due(const spool::Committed& committed) {
    if (!committed.checkpoint_due || spool_.checkpoint_under_way()) return;
    spool::Snapshot snapshot;
    snapshot.lsn = committed.last;
    snapshot.position = committed.position;
    snapshot.groups.push_back(state_->snapshot());
    snapshot.dead =
        spool::plan_reclaim(spool_.segments().segments(), {state_.get()}, {}, clock_.utc(), 0).dead;
    spool_.checkpoint(std::move(snapshot));
  }

  spool::Spool& spool_;
  const Clock& clock_;
  const bool settles_;
  std::unique_ptr<spool::GroupState> state_;
  SequenceRuns open_;
  std::deque<SequenceRuns> settling_;  // on their way into the log
  std::atomic<std::uint64_t> commits_{0};
};

// Publishes batches. Of one message, each is committed before the next; larger ones are handed in
// while those before them are committed.
class BatchAppender {
 public:
  BatchAppender(spool::Spool& spool, const BenchOptions& options)
      : spool_(spool), batch_(options.batch), size_(options.size) {}

  // Returns when the last receipt is there; how long each batch took, from its first message on.
  Result<Latencies> run(std::uint64_t messages) {
    if (batch_ == 1) {
      WindowedPublisher one_by_one(spool_, messages, size_, 1);
      DRAY_TRY(one_by_one.run());
      return std::move(one_by_one.latencies());
    }
    const std::string body = to_bytes(Binary{std::string(size_, 'x')});
    const PublishOptions none;
    Latencies latencies;
    std::deque<std::chrono::steady_clock::time_point> begun;
    for (std::uint64_t i = 0; i < messages; i += batch_) {
      if (begun.size() == kBatchesAhead) {  // rather woken for two than for each
        finish(begun, latencies);
        finish(begun, latencies);
      }
      begun.push_back(std::chrono::steady_clock::now());
      for (std::uint64_t k = 0; k < batch_; ++k) {
        const bool last = k + 1 == batch_;
        spool_.publish_view({"bench", body, none},
                            [this, last](const auto& receipt) { on_receipt(receipt, last); });
      }
    }
    while (!begun.empty()) finish(begun, latencies);
    if (failed_) return *failed_;
    return latencies;
  }

 private:
  // Waits for a batch's last receipt.
  void finish(std::deque<std::chrono::steady_clock::time_point>& begun, Latencies& latencies) {
    done_.acquire();
    latencies.add(std::chrono::steady_clock::now() - begun.front());
    begun.pop_front();
  }
  void on_receipt(const Result<Receipt>& receipt, bool last) {
    if (!receipt.ok()) failed_ = receipt.error();
    if (last) done_.release();
  }

  static constexpr std::size_t kBatchesAhead = 4;

  spool::Spool& spool_;
  const std::uint64_t batch_;
  const std::uint64_t size_;
  std::counting_semaphore<> done_{0};  // batches
  std::optional<Error> failed_;        // by the committer, before it releases
};

struct Measured {
  double per_second = 0, p50_us = 0, p99_us = 0, p999_us = 0, cpu_per_million = 0;
  double encoded_per_message = 0;  // bytes in the log
  double per_commit = 0;           // messages
  std::optional<double> written_per_encoded;
};

Result<Measured> append_once(const BenchOptions& options, const std::string& folder) {
  auto directory = open_posix_directory(folder, true);
  if (!directory.ok()) return directory.error();
  SystemClock clock;
  spool::SpoolOptions spool_options;
  spool_options.durability = options.durability;
  spool_options.max_size = 1ULL << 40;
  spool_options.groups = std::vector<spool::GroupDeclaration>{{"group", {"bench"}}};
  auto spool = spool::Spool::open(**directory, clock, spool_options, Log());
  if (!spool.ok()) return spool.error();
  StateOwner owner(**spool, clock, options.settle);
  (*spool)->start(owner);
  BatchAppender appender(**spool, options);
  // Until segments are recycled, the log writes into files that upkeep had to make first.
  if (options.settle) {
    const auto warmed = appender.run(std::min<std::uint64_t>(options.messages, 800'000));
    if (!warmed.ok()) return warmed.error();
  }
  const auto encoded_before = (*spool)->segments().bytes_appended();
  const auto commits_before = owner.commits();
  const auto device_before = device_bytes_written(folder);
  const double cpu_before = cpu_seconds(RUSAGE_SELF);
  const auto started = std::chrono::steady_clock::now();
  auto latencies = appender.run(options.messages);
  if (!latencies.ok()) return latencies.error();
  const double took = seconds_since(started);
  Measured measured;
  const auto count = static_cast<double>(options.messages);
  measured.per_second = count / took;
  measured.per_commit = count / static_cast<double>(owner.commits() - commits_before);
  measured.p50_us = latencies->percentile_us(0.5);
  measured.p99_us = latencies->percentile_us(0.99);
  measured.p999_us = latencies->percentile_us(0.999);
  measured.cpu_per_million = (cpu_seconds(RUSAGE_SELF) - cpu_before) * 1e6 / count;
  const auto encoded = (*spool)->segments().bytes_appended() - encoded_before;
  measured.encoded_per_message = static_cast<double>(encoded) / count;
  if (const auto device = device_bytes_written(folder); device && device_before) {
    measured.written_per_encoded =
        static_cast<double>(*device - *device_before) / static_cast<double>(encoded);
  }
  (*spool)->stop();
  if (owner.failed) return *owner.failed;
  return measured;
}

Result<Measured> publish_once(const BenchOptions& options, const std::string& folder) {
  SpoolerOptions spooler_options;
  spooler_options.directory = folder;
  spooler_options.durability = options.durability;
  spooler_options.max_size = 1ULL << 40;
  spooler_options.groups = {{"group", {"bench"}}};
  if (!options.growing) spooler_options.preallocate = room_for(options);
  auto spooler = Spooler::open(spooler_options);
  if (!spooler.ok()) return spooler.error();
  DRAY_TRY(wait_for_room(**spooler, spooler_options.preallocate));
  std::vector<std::unique_ptr<WindowedPublisher>> publishers;
  for (std::uint32_t i = 0; i < options.threads; ++i) {
    publishers.push_back(std::make_unique<WindowedPublisher>(
        **spooler, options.messages / options.threads, options.size, options.window));
  }
  std::vector<Status> outcomes(options.threads);
  const double cpu_before = cpu_seconds(RUSAGE_SELF);
  const auto started = std::chrono::steady_clock::now();
  std::vector<std::thread> threads;
  for (std::uint32_t i = 0; i < options.threads; ++i) {
    threads.emplace_back([&, i] { outcomes[i] = publishers[i]->run(); });
  }
  for (auto& thread : threads) thread.join();
  const double took = seconds_since(started);
  for (const auto& outcome : outcomes) DRAY_TRY(outcome);
  Measured measured;
  const std::uint64_t messages_each = options.messages / options.threads;
  const auto count = static_cast<double>(messages_each * options.threads);
  measured.per_second = count / took;
  measured.cpu_per_million = (cpu_seconds(RUSAGE_SELF) - cpu_before) * 1e6 / count;
  for (auto& publisher : publishers) {  // the slowest thread's
    measured.p50_us = std::max(measured.p50_us, publisher->latencies().percentile_us(0.5));
    measured.p99_us = std::max(measured.p99_us, publisher->latencies().percentile_us(0.99));
    measured.p999_us = std::max(measured.p999_us, publisher->latencies().percentile_us(0.999));
  }
  return measured;
}

// Alternates with the bare program and reports medians.
template <typename Once, typename Limit>
int alternate(const BenchOptions& options, json report, Once once, Limit limit) {
  std::vector<Measured> all;
  std::vector<double> limits;
  std::vector<double> limit_p50s;
  std::vector<double> limit_p99s;
  for (std::uint32_t i = 0; i < options.runs; ++i) {
    const ScratchFolder folder(options.directory);
    if (!folder.ok()) return kExitFailed;
    auto measured = once(options, folder.path() + "/spool");
    if (!measured.ok()) return fail(measured.error());
    all.push_back(*measured);
    if (const std::optional<json> bare = limit(folder.path(), *measured)) {
      limits.push_back(bare->value("messages_per_second", 0.0));
      limit_p50s.push_back(bare->value("p50_us", 0.0));
      limit_p99s.push_back(bare->value("p99_us", 0.0));
    }
  }
  const auto of = [&](double Measured::*field) {
    std::vector<double> values;
    for (const auto& each : all) values.push_back(each.*field);
    return median(values);
  };
  report["messages_per_second"] = of(&Measured::per_second);
  report["p50_us"] = of(&Measured::p50_us);
  report["p99_us"] = of(&Measured::p99_us);
  report["p999_us"] = of(&Measured::p999_us);
  report["cpu_seconds_per_million"] = of(&Measured::cpu_per_million);
  report["rss_bytes_peak"] = rss_bytes_peak();
  if (all.front().per_commit > 0) report["messages_per_commit"] = of(&Measured::per_commit);
  std::vector<double> written;
  for (const auto& each : all) {
    if (each.written_per_encoded) written.push_back(*each.written_per_encoded);
  }
  if (!written.empty()) report["bytes_written_per_encoded_byte"] = median(written);
  add_limit(report, median(limits), median(limit_p50s), median(limit_p99s));
  print_report(report, options.json);
  return 0;
}

std::uint64_t segment_files(const std::string& folder) {
  std::uint64_t count = 0;
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator(folder, ignored)) {
    const auto name = entry.path().filename().string();
    const bool counts = name.ends_with(".segment") || name.starts_with("spare.");
    count += counts ? 1U : 0U;
  }
  return count;
}

SpoolerOptions backlog_options(const BenchOptions& options) {
  SpoolerOptions spooler_options;
  spooler_options.directory = options.directory + "/spool";
  spooler_options.bind = "ipc://" + options.directory + "/s";
  spooler_options.durability = options.durability;
  spooler_options.max_size = 1ULL << 40;
  spooler_options.groups = {{"group", {"bench"}}};
  return spooler_options;
}

std::vector<std::string> self_arguments(const BenchOptions& options, const char* command) {
  return {"bench",        command,
          "--messages",   std::to_string(options.messages),
          "--size",       std::to_string(options.size),
          "--dir",        options.directory,
          "--durability", std::string(durability_name(options.durability))};
}

// How fast messages are appended with and without the backlog, alternating.
Result<double> append_ratio(const BenchOptions& options, Spooler& with, std::uint64_t& published) {
  SpoolerOptions empty_options = backlog_options(options);
  empty_options.directory = options.directory + "/empty";
  empty_options.bind.clear();
  auto without = Spooler::open(empty_options);
  if (!without.ok()) return without.error();
  const std::uint64_t messages = std::min<std::uint64_t>(200'000, options.messages);
  const auto rate = [&](Spooler& spooler) -> Result<double> {
    const auto started = std::chrono::steady_clock::now();
    DRAY_TRY(WindowedPublisher(spooler, messages, options.size, options.window).run());
    return static_cast<double>(messages) / seconds_since(started);
  };
  std::vector<double> ratios;
  for (int i = 0; i < 7; ++i) {
    const auto bare = rate(**without);
    if (!bare.ok()) return bare.error();
    const auto laden = rate(with);
    if (!laden.ok()) return laden.error();
    published += messages;
    if (i > 0) ratios.push_back(*laden / *bare);
  }
  return median(ratios);
}

}  // namespace

int bench_append(const BenchOptions& options) {
  json report = base_report(options, "append");
  report["batch"] = options.batch;
  report["settle"] = options.settle;
  return alternate(options, report, append_once, [&](const std::string& folder, const auto& own) {
    // The fastest of the three ways to write the same bytes.
    BenchOptions same = options;
    same.size = static_cast<std::uint64_t>(own.encoded_per_message);
    std::optional<json> best;
    for (const char* file : {"recycled", "extending", "fallocated"}) {
      const auto each = run_limits(same, "append", folder, std::string("--file ") + file);
      const auto speed = [](const json& of) { return of.value("messages_per_second", 0.0); };
      if (each && (!best || speed(*each) > speed(*best))) best = each;
    }
    return best;
  });
}

int bench_publish(const BenchOptions& options) {
  json report = base_report(options, "publish");
  report["window"] = options.window;
  report["threads"] = options.threads;
  report["growing"] = options.growing;
  return alternate(options, report, publish_once, [&](const std::string& folder, const auto&) {
    return run_limits(options, "composite", folder);
  });
}

int bench_backlog(const BenchOptions& wanted) {
  const ScratchFolder folder(wanted.directory);
  if (!folder.ok()) return kExitFailed;
  BenchOptions options = wanted;
  options.directory = std::filesystem::absolute(folder.path()).string();
  // Filled by a process that is killed, so that the next one has to recover.
  const pid_t filler = start_self(self_arguments(options, "backlog-fill"));
  int how = 0;
  waitpid(filler, &how, 0);
  if (!WIFSIGNALED(how) || WTERMSIG(how) != SIGKILL) {
    std::cerr << "dray: filling the spool failed\n";
    return kExitFailed;
  }
  auto arguments = self_arguments(options, "backlog-serve");
  if (options.json) arguments.emplace_back("--json");
  const pid_t server = start_self(arguments);
  waitpid(server, &how, 0);
  return WIFEXITED(how) ? WEXITSTATUS(how) : kExitFailed;
}

int bench_backlog_fill(const BenchOptions& options) {
  auto spooler = Spooler::open(backlog_options(options));
  if (!spooler.ok()) return fail(spooler.error());
  WindowedPublisher publisher(**spooler, options.messages, options.size, options.window);
  if (const auto published = publisher.run(); !published.ok()) return fail(published.error());
  kill(getpid(), SIGKILL);
  return kExitFailed;
}

int bench_backlog_serve(const BenchOptions& options) {
  block_signals();
  const auto serving = backlog_options(options);
  const pid_t worker = start_self({"bench", "worker", serving.bind + "2", "group"});
  const auto started = std::chrono::steady_clock::now();
  auto spooler = Spooler::open(serving);
  if (!spooler.ok()) return fail(spooler.error());
  json report = base_report(options, "backlog");
  report["reopen_seconds"] = seconds_since(started);
  report["rss_bytes_after_reopen"] = rss_bytes();
  std::uint64_t total = options.messages;
  const auto ratio = append_ratio(options, **spooler, total);
  if (!ratio.ok()) return fail(ratio.error());
  report["append_ratio_with_backlog"] = *ratio;
  // The worker finds the spool from now on.
  if (const auto bound = (*spooler)->bind(serving.bind + "2"); !bound.ok()) {
    return fail(bound.error());
  }
  const std::uint64_t part = std::min<std::uint64_t>(1'000'000, total / 4);
  std::optional<std::chrono::steady_clock::time_point> begun;
  double first_part = 0;
  double before_last_part = 0;
  double all = 0;
  for (std::uint64_t done = 0; done < total;) {
    std::this_thread::sleep_for(Milliseconds(5));
    const auto status = (*spooler)->status();
    if (!status.ok()) return fail(status.error());
    done = status->groups.front().done;
    if (done == 0) continue;
    if (!begun) begun = std::chrono::steady_clock::now();
    all = seconds_since(*begun);
    if (done < part) first_part = all;
    if (done < total - part) before_last_part = all;
  }
  const auto speed = [&](double seconds) { return static_cast<double>(part) / seconds; };
  report["messages_per_second"] = static_cast<double>(total) / all;
  report["drain_start_per_second"] = speed(first_part);
  report["drain_end_per_second"] = speed(all - before_last_part);
  report["rss_bytes_peak"] = rss_bytes_peak();
  kill(worker, SIGKILL);
  waitpid(worker, nullptr, 0);
  // Reclaiming takes two checkpoints, a moment each.
  for (int i = 0; i < 100 && segment_files(serving.directory) > 3; ++i) {
    std::this_thread::sleep_for(Milliseconds(50));
  }
  report["segments_after_drain"] = segment_files(serving.directory);
  print_report(report, options.json);
  return 0;
}

}  // namespace dray::app
