#include "simulation/balance_world.hpp"

#include <time.h>

#include <algorithm>
#include <cmath>
#include <deque>
#include <numeric>

namespace dray::test {
namespace {

using balancing::DispatcherCore;
using balancing::WorkerCore;
using Nanoseconds = std::chrono::nanoseconds;

constexpr auto kTurn = std::chrono::microseconds(5);  // of a node's thread
constexpr auto kIdleTick = std::chrono::milliseconds(50);
const std::string kGroup(1, 'g');

double cpu_now_us() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) * 1e6 + static_cast<double>(now.tv_nsec) / 1e3;
}

Nanoseconds of_seconds(double seconds) {
  return Nanoseconds(std::llround(seconds * 1e9));
}

struct Arrival {
  SteadyTime at;
  std::size_t dispatcher = 0;
  double service = 0;
  SteadyTime ended{};
};

class World {
 public:
  explicit World(const BalanceOptions& options) : options_(options), random_(options.seed) {
    draw_arrivals();
    for (std::size_t i = 0; i < options_.dispatchers; ++i) add_dispatcher(i);
    for (std::size_t i = 0; i < options_.workers; ++i) add_worker(i);
  }

  BalanceReport run() {
    for (std::size_t w = 0; w < workers_.size(); ++w) {
      for (std::size_t d = 0; d < dispatchers_.size(); ++d) {
        workers_[w].core->on_connected(d, now_);
      }
      wake_worker(w);
    }
    next_arrival_ = 0;
    schedule_arrival();
    while (ended_ < arrivals_.size()) {
      DRAY_ASSERT(!events_.empty());
      const Event event = events_.top();
      events_.pop();
      now_ = event.at;
      event.run();
    }
    return report();
  }

 private:
  struct Event {
    SteadyTime at;
    std::uint64_t serial;
    std::function<void()> run;
    bool operator>(const Event& other) const {
      return std::pair(at, serial) > std::pair(other.at, other.serial);
    }
  };
  struct Dispatcher {
    std::unique_ptr<DispatcherCore> core;
    Sequence next = 2;
    std::uint64_t position = 0;
    std::unordered_map<Sequence, std::size_t> arrivals;  // by sequence
    bool awake = false;
    SteadyTime timer{};
  };
  struct WorkerNode {
    std::string peer;
    std::unique_ptr<WorkerCore> core;
    std::deque<WorkerCore::Jobs> queue;  // single ones
    std::uint32_t busy = 0;
    bool awake = false;
    SteadyTime timer{};
    std::uint64_t handled = 0;
  };

  balancing::Now stamp() const {
    return {now_, UtcTime(std::chrono::duration_cast<Milliseconds>(now_.time_since_epoch()))};
  }
  void at(SteadyTime when, std::function<void()> run) {
    events_.push({when, ++serial_, std::move(run)});
  }

  void draw_arrivals() {
    std::vector<double> shares = options_.shares;
    for (std::size_t i = shares.size(); i < options_.dispatchers; ++i) {
      shares.push_back(1.0 / static_cast<double>(i + 1));
    }
    if (options_.flood > 0) shares[0] = 0;
    std::discrete_distribution<std::size_t> where(shares.begin(), shares.end());
    const double servers = static_cast<double>(options_.workers) * options_.threads;
    std::exponential_distribution<double> gap(options_.load * servers / options_.mean_service);
    SteadyTime when = now_ + std::chrono::milliseconds(10);
    for (std::size_t i = 0; i < options_.flood; ++i) {
      arrivals_.push_back({when, 0, options_.service(random_), {}});
    }
    for (std::size_t i = 0; i < options_.messages; ++i) {
      when += of_seconds(gap(random_));
      arrivals_.push_back({when, where(random_), options_.service(random_), {}});
    }
  }

  void add_dispatcher(std::size_t index) {
    auto state = std::make_unique<spool::GroupState>(spool::GroupId{0}, kGroup);
    state->declare(1, {"t"}, spool::GroupStanding::kAttached);
    std::vector<std::unique_ptr<spool::GroupState>> groups;
    groups.push_back(std::move(state));
    balancing::DispatcherOptions options;
    options.epoch = 1;
    options.boundary = 2;
    options.spool.bytes[0] = static_cast<std::uint8_t>(index);
    options.spool.bytes[1] = 1;
    options.ready_messages_max = 1U << 30;
    options.ready_bytes_max = 1U << 30;
    options.seed = random_();
    Dispatcher dispatcher;
    dispatcher.core = std::make_unique<DispatcherCore>(
        options, std::move(groups), std::vector<spool::RecordedSession>{},
        [](std::string_view) { return spool::GroupMask{1}; }, stamp());
    dispatchers_.push_back(std::move(dispatcher));
  }

  void add_worker(std::size_t index) {
    balancing::WorkerOptions options;
    options.name = std::to_string(index);
    options.group = kGroup;
    options.threads = options_.threads;
    options.seed = random_();
    options.make_session_id = [this] {
      Uuid id;
      const std::uint64_t number = ++last_session_;
      for (std::size_t i = 0; i < 8; ++i) {
        id.bytes[i] = static_cast<std::uint8_t>(number >> (8 * i));
      }
      return id;
    };
    WorkerNode worker;
    worker.peer = options.name;
    worker.core = std::make_unique<WorkerCore>(options, dispatchers_.size(), now_);
    workers_.push_back(std::move(worker));
  }

  void schedule_arrival() {
    if (next_arrival_ == arrivals_.size()) return;
    at(arrivals_[next_arrival_].at, [this] {
      publish(next_arrival_++);
      schedule_arrival();
    });
  }

  void publish(std::size_t number) {
    auto& dispatcher = dispatchers_[arrivals_[number].dispatcher];
    const Sequence sequence = dispatcher.next++;
    dispatcher.arrivals[sequence] = number;
    spool::Committed committed;
    committed.first = committed.last = sequence;
    committed.records = records_of(sequence);
    committed.runs.push_back({sequence, 1, 0, 1});
    measure(dispatcher_cpu_, [&] { dispatcher.core->on_committed(committed, stamp()); });
    wake_dispatcher(arrivals_[number].dispatcher);
  }

  static std::shared_ptr<const spool::Records> records_of(Sequence sequence) {
    auto records = std::make_shared<spool::Records>();
    records->reserve(64);
    records->add_loose(sequence, "envelope");
    return records;
  }

  template <typename Work>
  void measure(double& sum, Work work) {
    const double before = cpu_now_us();
    work();
    sum += cpu_now_us() - before;
  }

  void wake_dispatcher(std::size_t index) {
    auto& dispatcher = dispatchers_[index];
    if (std::exchange(dispatcher.awake, true)) return;
    at(now_ + kTurn, [this, index] { step_dispatcher(index); });
  }

  void step_dispatcher(std::size_t index) {
    auto& dispatcher = dispatchers_[index];
    dispatcher.awake = false;
    measure(dispatcher_cpu_, [&] { dispatcher.core->tick(stamp()); });
    for (;;) {
      DispatcherCore::Actions actions;
      measure(dispatcher_cpu_, [&] { actions = dispatcher.core->take_actions(stamp()); });
      if (actions.empty()) break;
      for (auto& each : actions.sends) {
        const std::size_t worker = std::stoul(each.peer);
        ++frames_;
        at(now_ + options_.one_way,
           [this, index, worker, sent = std::make_shared<DispatcherCore::Send>(std::move(each))] {
             auto frame = balancing::decode_frame(sent->frame, sent->records);
             DRAY_ASSERT(frame.ok());
             measure(worker_cpu_, [&] {
               workers_[worker].core->on_frame(index, std::move(*frame), sent->owner, now_);
             });
             wake_worker(worker);
           });
      }
      DRAY_ASSERT(actions.refills.empty());
      for (const auto& each : actions.submissions) commit(dispatcher, each);
      for (const auto& each : actions.fetches) {
        measure(dispatcher_cpu_, [&] {
          dispatcher.core->on_fetched(
              each.group, each.sequence,
              spool::StoredRun{each.sequence, 1, 0, records_of(each.sequence)});
        });
      }
    }
    const SteadyTime next = std::max(now_ + kTurn, dispatcher.core->next_deadline(stamp()));
    if (dispatcher.timer > now_ && dispatcher.timer <= next) return;
    dispatcher.timer = next;
    at(next, [this, index, next] {
      if (dispatchers_[index].timer == next) wake_dispatcher(index);
    });
  }

  // A log that is durable at once.
  void commit(Dispatcher& dispatcher, const spool::Submission& submission) {
    spool::Committed committed;
    committed.first = dispatcher.next;
    dispatcher.next += submission.entries.size();
    committed.last = dispatcher.next - 1;
    if (submission.ticket != 0) committed.tickets.emplace_back(submission.ticket, committed.first);
    measure(dispatcher_cpu_, [&] { dispatcher.core->on_committed(committed, stamp()); });
  }

  void wake_worker(std::size_t index) {
    auto& worker = workers_[index];
    if (std::exchange(worker.awake, true)) return;
    at(now_ + kTurn, [this, index] { step_worker(index); });
  }

  void step_worker(std::size_t index) {
    auto& worker = workers_[index];
    worker.awake = false;
    WorkerCore::Actions actions;
    measure(worker_cpu_, [&] {
      worker.core->tick(now_);
      actions = worker.core->take_actions(now_);
    });
    for (const auto& jobs : actions.start) {
      for (auto& job : jobs.apart()) worker.queue.push_back(std::move(job));
    }
    SequenceRuns given_back;
    std::erase_if(worker.queue, [&](const auto& job) {
      if (!actions.cancel.contains(job.first)) return false;
      given_back.add(job.first);
      return true;
    });
    for (const auto& jobs : given_back) {
      measure(worker_cpu_, [&] { worker.core->on_returned(jobs); });
    }
    const bool again = !given_back.empty();
    for (auto& each : actions.sends) {
      ++frames_;
      at(now_ + options_.one_way, [this, index, link = each.link,
                                   bytes = std::make_shared<std::string>(std::move(each.frame))] {
        auto frame = balancing::decode_frame(*bytes);
        DRAY_ASSERT(frame.ok());
        if (const auto* result = std::get_if<balancing::ResultFrame>(&*frame)) {
          for (const auto& item : result->items) {
            const bool back = item.kind == balancing::ResultKind::kReturned;
            returns_ += back ? item.tokens.sequences.size() : 0;
          }
        }
        measure(dispatcher_cpu_,
                [&] { dispatchers_[link].core->on_frame(workers_[index].peer, *frame, stamp()); });
        wake_dispatcher(link);
      });
    }
    start_jobs(index);
    if (again) wake_worker(index);
    const SteadyTime next =
        std::min(std::max(now_ + kTurn, worker.core->next_deadline(now_)), now_ + kIdleTick);
    if (worker.timer > now_ && worker.timer <= next) return;
    worker.timer = next;
    at(next, [this, index, next] {
      if (workers_[index].timer == next) wake_worker(index);
    });
  }

  void start_jobs(std::size_t index) {
    auto& worker = workers_[index];
    while (worker.busy < options_.threads && !worker.queue.empty()) {
      const auto job = std::move(worker.queue.front());
      worker.queue.pop_front();
      const auto origin = worker.core->origin_of(job.first);
      if (!origin) continue;
      ++worker.busy;
      const auto number = dispatchers_[origin->link].arrivals.at(job.sequence);
      const Nanoseconds took = of_seconds(arrivals_[number].service);
      at(now_ + took, [this, index, id = job.first, number, took] {
        auto& node = workers_[index];
        --node.busy;
        ++node.handled;
        DRAY_ASSERT(arrivals_[number].ended == SteadyTime{});
        arrivals_[number].ended = now_;
        ++ended_;
        measure(worker_cpu_, [&] { node.core->on_outcome(id, done(), took, stamp().utc); });
        start_jobs(index);
        wake_worker(index);
      });
    }
  }

  BalanceReport report() const {
    BalanceReport report;
    std::vector<double> times;
    std::vector<double> central;
    std::vector<double> others;
    // First come, first served, by the server that is free first.
    std::priority_queue<SteadyTime, std::vector<SteadyTime>, std::greater<>> free;
    for (std::size_t i = 0; i < options_.workers * options_.threads; ++i) free.push({});
    for (std::size_t i = 0; i < arrivals_.size(); ++i) {
      const auto& arrival = arrivals_[i];
      const SteadyTime ends = std::max(free.top(), arrival.at) + of_seconds(arrival.service);
      free.pop();
      free.push(ends);
      if (i < options_.warm_up) continue;
      times.push_back(std::chrono::duration<double>(arrival.ended - arrival.at).count());
      if (arrival.dispatcher != 0) others.push_back(times.back());
      central.push_back(std::chrono::duration<double>(ends - arrival.at).count());
    }
    const auto mean = [](const std::vector<double>& values) {
      return std::accumulate(values.begin(), values.end(), 0.0) /
             static_cast<double>(values.size());
    };
    const auto p99 = [](std::vector<double>& values) {
      const auto at = values.begin() + static_cast<std::ptrdiff_t>(values.size() * 99 / 100);
      std::nth_element(values.begin(), at, values.end());
      return *at;
    };
    report.mean = mean(times);
    report.central_mean = mean(central);
    report.p99 = p99(times);
    report.central_p99 = p99(central);
    if (!others.empty()) {
      report.others_mean = mean(others);
      report.others_p99 = p99(others);
    }
    const auto count = static_cast<double>(arrivals_.size());
    report.frames_per_message = static_cast<double>(frames_) / count;
    report.returns_per_message = static_cast<double>(returns_) / count;
    report.dispatcher_cpu_us = dispatcher_cpu_ / count;
    report.worker_cpu_us = worker_cpu_ / count;
    std::uint64_t most = 0;
    for (const auto& worker : workers_) most = std::max(most, worker.handled);
    report.worst_share = static_cast<double>(most) * static_cast<double>(workers_.size()) / count;
    return report;
  }

  const BalanceOptions options_;
  std::mt19937_64 random_;
  SteadyTime now_{std::chrono::seconds(1'000)};
  std::priority_queue<Event, std::vector<Event>, std::greater<>> events_;
  std::uint64_t serial_ = 0;
  std::vector<Arrival> arrivals_;
  std::size_t next_arrival_ = 0;
  std::size_t ended_ = 0;
  std::vector<Dispatcher> dispatchers_;
  std::vector<WorkerNode> workers_;
  std::uint64_t last_session_ = 0;
  std::uint64_t frames_ = 0;
  std::uint64_t returns_ = 0;
  double dispatcher_cpu_ = 0;
  double worker_cpu_ = 0;
};

}  // namespace

std::function<double(std::mt19937_64&)> bounded_pareto(double alpha, double least, double most) {
  const double ratio = std::pow(least / most, alpha);
  return [=](std::mt19937_64& random) {
    const double u = std::uniform_real_distribution<double>(0, 1)(random);
    return least * std::pow(1 - u * (1 - ratio), -1 / alpha);
  };
}

double bounded_pareto_mean(double alpha, double least, double most) {
  const double ratio = std::pow(least / most, alpha);
  return alpha / (alpha - 1) * std::pow(least, alpha) / (1 - ratio) *
         (std::pow(least, 1 - alpha) - std::pow(most, 1 - alpha));
}

BalanceReport run_balance(const BalanceOptions& options) {
  return World(options).run();
}

}  // namespace dray::test
