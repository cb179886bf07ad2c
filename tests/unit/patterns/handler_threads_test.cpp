#include "dray/handler_threads.hpp"

#include <functional>
#include <future>
#include <semaphore>
#include <set>

#include "catch2/catch.hpp"
#include "support/records.hpp"

using namespace dray;
using namespace std::chrono_literals;

namespace {

using Handle = std::function<Outcome(const ConsumerJob&, const std::stop_token&)>;

class Calls final : public Consumer {
 public:
  explicit Calls(Handle handle) : handle_(std::move(handle)) {}
  Outcome consume(const ConsumerJob& job, const std::stop_token& stop) override {
    return handle_(job, stop);
  }

 private:
  Handle handle_;
};

// Plays the socket thread.
struct ThreadsBench {
  ThreadsBench(WorkerSettings settings, Handle handle)
      : threads(settings, [handle]() -> Result<std::unique_ptr<Consumer>> {
          return std::unique_ptr<Consumer>(std::make_unique<Calls>(handle));
        }) {
    for (std::uint32_t i = 0; i < settings.threads; ++i) REQUIRE(threads.add().ok());
    poller.add(threads.wake_up());
  }

  // Jobs `first` and on are messages `first` and on.
  void give(std::uint64_t first, std::uint32_t count) {
    std::vector<Sequence> sequences;
    for (std::uint64_t i = 0; i < count; ++i) sequences.push_back(first + i);
    auto deliver = test::deliver_frame(1, sequences);
    auto bytes = std::make_shared<balancing::WorkerCore::Bytes>();
    bytes->records = std::get<balancing::Deliver>(deliver.frame).records;
    bytes->owner = deliver.owner;
    HandlerThreads::Jobs jobs;
    jobs.first = first;
    jobs.count = count;
    jobs.sequence = first;
    jobs.bytes = std::move(bytes);
    threads.give({jobs});
  }

  // Reads news until as many jobs as wanted ended, or were written off, in all. It is woken for
  // them, or looks at the clock now and then if it is to.
  bool wait_for(std::uint64_t wanted) {
    const auto until = std::chrono::steady_clock::now() + 20s;
    while (seen < wanted) {
      poller.wait(watches ? 5ms : 20'000ms);
      if (std::chrono::steady_clock::now() >= until) return false;
      read();
    }
    return seen == wanted;
  }
  void read() {
    auto news = threads.take_news();
    for (auto& each : news.ended) {
      seen += each.jobs.count;
      for (auto job = each.jobs.first; job < each.jobs.end(); ++job)
        CHECK(ended.insert(job).second);
      if (each.outcome != nullptr) outcomes.emplace(each.jobs.first, std::move(*each.outcome));
    }
    for (const auto job : threads.watch_timeouts()) {
      ++seen;
      written_off.insert(job);
    }
  }

  HandlerThreads threads;
  transport::Poller poller;
  bool watches = false;  // time-outs
  std::uint64_t seen = 0;
  std::set<std::uint64_t> ended;
  std::set<std::uint64_t> written_off;
  std::map<std::uint64_t, Outcome> outcomes;
};

WorkerSettings settings_of(std::uint32_t threads) {
  WorkerSettings settings;
  settings.group = "group";
  settings.threads = threads;
  return settings;
}

}  // namespace

TEST_CASE("handler threads: every job ends once, with its own outcome, however many are taken") {
  const std::uint32_t at_once = GENERATE(1U, 7U, 64U);
  const bool together = GENERATE(false, true);
  ThreadsBench bench(settings_of(3), [](const ConsumerJob& job, const auto&) {
    return job.sequence % 10 == 0 ? reject("ten") : done();
  });
  bench.threads.set_pace(at_once, together);
  for (std::uint64_t first = 1; first <= 1'000; first += 100) bench.give(first, 100);
  REQUIRE(bench.wait_for(1'000));
  CHECK(bench.ended.size() == 1'000);
  CHECK(bench.outcomes.size() == 100);
  for (const auto& [job, outcome] : bench.outcomes) {
    CHECK(job % 10 == 0);
    CHECK(outcome.kind() == Outcome::Kind::kReject);
  }
}

TEST_CASE("handler threads: what no thread has begun is taken back, the rest ends") {
  std::binary_semaphore begun(0);
  std::counting_semaphore go(0);
  ThreadsBench bench(settings_of(1), [&](const ConsumerJob& job, const auto&) {
    if (job.sequence == 1) begun.release();
    go.acquire();
    return done();
  });
  bench.threads.set_pace(8, true);
  bench.give(1, 100);
  begun.acquire();
  SequenceRuns wanted;
  wanted.add(1, 2);   // the first of them runs
  wanted.add(4, 60);  // some of these are with the thread, some in the queue
  const auto taken = bench.threads.take_back(wanted);
  std::uint64_t count = 0;
  for (const auto& run : taken) {
    count += run.count;
    CHECK(run.first >= 2);
    CHECK((run.first == 2 || run.first >= 4));
    CHECK(run.end() <= 64);
  }
  CHECK(count == 61);
  CHECK(bench.threads.take_back(wanted).empty());
  go.release(39);
  REQUIRE(bench.wait_for(39));
  CHECK(bench.ended.count(1) == 1);
  CHECK(bench.ended.count(2) == 0);
  CHECK(bench.ended.count(3) == 1);
  CHECK(bench.ended.count(64) == 1);
}

TEST_CASE("handler threads: what is told together does not wait for a long job") {
  std::binary_semaphore go(0);
  ThreadsBench bench(settings_of(1), [&](const ConsumerJob& job, const auto&) {
    if (job.sequence == 4) go.acquire();
    return done();
  });
  bench.watches = true;
  bench.threads.set_pace(GENERATE(1U, 4U), true);
  bench.give(1, 8);
  CHECK(bench.wait_for(3));
  CHECK(bench.ended == std::set<std::uint64_t>{1, 2, 3});
  go.release();
  CHECK(bench.wait_for(8));
}

TEST_CASE("handler threads: what was done is told while as much is left to do") {
  std::binary_semaphore go(0);
  ThreadsBench bench(settings_of(1), [&](const ConsumerJob& job, const auto&) {
    if (job.sequence == 3) go.acquire();
    return done();
  });
  bench.threads.set_pace(1, true);
  bench.give(1, 4);
  CHECK(bench.wait_for(2));  // woken, without a look at the clock
  go.release();
  CHECK(bench.wait_for(4));
}

TEST_CASE("handler threads: one that is too late is asked to stop, then written off and replaced") {
  auto settings = settings_of(2);
  settings.timeout = 30ms;
  settings.timeout_grace = 30ms;
  std::promise<void> exhausted;
  settings.on_exhausted = [&] { exhausted.set_value(); };
  // Outlives the test: a thread that was written off waits for it.
  auto never = std::make_shared<std::binary_semaphore>(0);
  ThreadsBench bench(settings, [never](const ConsumerJob& job, const std::stop_token& stop) {
    if (job.sequence == 3) never->acquire();
    if (job.sequence == 5) {
      while (!stop.stop_requested()) std::this_thread::sleep_for(1ms);
      return snooze(1s);
    }
    return done();
  });
  bench.watches = true;
  bench.threads.set_pace(4, true);
  bench.give(1, 20);
  REQUIRE(bench.wait_for(20));
  CHECK(bench.written_off == std::set<std::uint64_t>{3});
  CHECK(bench.threads.written_off() == 1);
  CHECK(bench.ended.size() == 19);
  CHECK(bench.outcomes.at(5).kind() == Outcome::Kind::kSnooze);
  CHECK(exhausted.get_future().wait_for(0s) == std::future_status::ready);  // half of the two
  // What it says when it ends after all is nobody's any more: it counts as nothing.
  never->release();
  bench.poller.wait(20'000ms);  // its thread's end wakes it
  CHECK(bench.threads.take_news().ended.empty());
}

TEST_CASE("handler threads: neither a constructor nor a stop callback holds the socket thread up") {
  auto settings = settings_of(1);
  settings.timeout = 30ms;
  settings.timeout_grace = 30ms;
  struct Gates {
    std::promise<void> open;
    std::shared_future<void> opened = open.get_future().share();
    std::atomic<int> made{0};
    std::atomic<bool> asked{false};
  };
  auto gates = std::make_shared<Gates>();  // outlives the test, as do the threads that wait for it
  HandlerThreads threads(settings, [gates]() -> Result<std::unique_ptr<Consumer>> {
    if (gates->made++ > 0) gates->opened.wait();  // what made the first one hang
    return std::unique_ptr<Consumer>(
        std::make_unique<Calls>([gates](const ConsumerJob& job, const std::stop_token& stop) {
          if (job.sequence != 1) return done();
          const std::stop_callback callback(stop, [gates] {
            gates->asked = true;
            gates->opened.wait();
          });
          gates->opened.wait();
          return done();
        }));
  });
  REQUIRE(threads.add().ok());
  auto deliver = test::deliver_frame(1, {1, 2});
  auto bytes = std::make_shared<balancing::WorkerCore::Bytes>();
  bytes->records = std::get<balancing::Deliver>(deliver.frame).records;
  bytes->owner = deliver.owner;
  HandlerThreads::Jobs jobs;
  jobs.first = jobs.sequence = 1;
  jobs.count = 2;
  jobs.bytes = std::move(bytes);
  threads.give({jobs});
  // The socket thread comes back at once, whatever it finds.
  transport::Poller poller;
  poller.add(threads.wake_up());
  std::vector<std::uint64_t> written_off;
  while (written_off.empty()) {
    poller.wait(5ms);
    (void)threads.take_news();
    written_off = threads.watch_timeouts();
  }
  CHECK(written_off == std::vector<std::uint64_t>{1});
  CHECK(gates->asked);
  gates->open.set_value();
  std::uint64_t ended = 0;
  while (ended == 0) {  // by the replacement, once it is made
    poller.wait(5ms);
    for (const auto& each : threads.take_news().ended) ended = each.jobs.first;
    CHECK(threads.watch_timeouts().empty());
  }
  CHECK(ended == 2);
}

TEST_CASE("handler threads: a consumer that cannot be made is an error; stop waits for who runs") {
  HandlerThreads none(settings_of(1), []() -> Result<std::unique_ptr<Consumer>> {
    return Error{ErrorCode::kInvalid, "no plugin", "", 0};
  });
  CHECK(none.add().error().message == "no plugin");
  HandlerThreads throws(settings_of(1), []() -> Result<std::unique_ptr<Consumer>> {
    throw std::runtime_error("no database");
  });
  CHECK(throws.add().error().message == "the handler's constructor: no database");

  std::atomic<bool> ended{false};
  std::binary_semaphore begun(0);
  {
    ThreadsBench bench(settings_of(1), [&](const auto&, const std::stop_token& stop) {
      begun.release();
      while (!stop.stop_requested()) std::this_thread::sleep_for(1ms);
      ended = true;
      return done();
    });
    bench.give(1, 10);
    begun.acquire();
  }
  CHECK(ended);
}
