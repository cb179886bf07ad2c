#include "dray/spooler.hpp"

#include <atomic>
#include <future>
#include <mutex>
#include <set>

#include "dray/worker.hpp"
#include "support/temporary_folder.hpp"

using namespace dray;
using namespace std::chrono_literals;

namespace {

struct Ping {
  std::uint64_t number = 0;
  std::string text;
  DRAY_FIELDS(number, text)
};

// Counts what it saw, and runs `what` for each message.
struct Seen {
  std::mutex mutex;
  std::map<std::uint64_t, int> times;
  std::condition_variable changed;
  std::function<Outcome(const Ping&, Delivery&)> what;

  std::size_t count() { return snapshot().size(); }
  std::map<std::uint64_t, int> snapshot() {
    const std::lock_guard lock(mutex);
    return times;
  }
};

class SeenHandler final : public Handler<Ping> {
 public:
  explicit SeenHandler(Seen& seen) : seen_(seen) {}
  Outcome handle(const Ping& ping, Delivery& delivery) override {
    {
      const std::lock_guard lock(seen_.mutex);
      ++seen_.times[ping.number];
      seen_.changed.notify_all();
    }
    return seen_.what ? seen_.what(ping, delivery) : done();
  }

 private:
  Seen& seen_;
};

std::unique_ptr<Worker> start_worker(const std::string& group, const std::string& endpoint,
                                     Seen& seen, WorkerSettings settings = {}) {
  settings.group = group;
  settings.endpoints = {endpoint};
  settings.retry.initial = 10ms;
  settings.retry.max = 20ms;
  auto worker = Worker::start(settings, [&seen]() -> Result<std::unique_ptr<Consumer>> {
    return consumer_of(std::make_unique<SeenHandler>(seen), Log());
  });
  REQUIRE(worker.ok());
  return std::move(*worker);
}

SpoolerOptions options_in(const test::TemporaryFolder& folder,
                          std::vector<SpoolerGroup> groups = {{"email", {"ping"}}}) {
  SpoolerOptions options;
  options.directory = folder / "spool";
  options.bind = "ipc://" + (folder / "s");
  options.groups = std::move(groups);
  options.lease = 2s;
  options.reconnect_grace = 200ms;
  return options;
}

std::unique_ptr<Spooler> open_spooler(const SpoolerOptions& options) {
  auto spooler = Spooler::open(options);
  INFO((spooler.ok() ? std::string() : spooler.error().text()));
  REQUIRE(spooler.ok());
  return std::move(*spooler);
}

// Polls the status until `ready` says yes; the bound is there to fail, not to pace.
SpoolGroupStatus wait_for(Spooler& spooler, const std::string& group,
                          const std::function<bool(const SpoolGroupStatus&)>& ready) {
  const auto deadline = std::chrono::steady_clock::now() + 20s;
  for (;;) {
    auto status = spooler.status();
    REQUIRE(status.ok());
    for (const auto& each : status->groups) {
      CHECK(each.accepted == each.pending + each.done + each.dead + each.expired + each.dropped +
                                 each.damaged);  // P2
      if (each.name != group) continue;
      if (ready(each)) return each;
      INFO("accepted " << each.accepted << " pending " << each.pending << " done " << each.done
                       << " dead " << each.dead << " in flight " << each.in_flight << " workers "
                       << each.workers);
      REQUIRE(std::chrono::steady_clock::now() < deadline);
    }
    std::this_thread::yield();
  }
}

bool settled(const SpoolGroupStatus& status) {
  return status.pending == 0;
}

}  // namespace

TEST_CASE("a published message reaches a worker of each group and is settled once by each") {
  test::TemporaryFolder folder;
  const auto options = options_in(folder, {{"email", {"ping"}}, {"invoice", {"ping"}}});
  auto spooler = open_spooler(options);
  Seen email, invoice;
  auto email_worker = start_worker("email", options.bind, email);
  auto invoice_worker = start_worker("invoice", options.bind, invoice);
  std::atomic<int> durable{0};  // Catch's assertions belong to one thread
  for (std::uint64_t i = 0; i < 1000; ++i) {
    spooler->publish_async("ping", Ping{i, "hello"}, {}, [&durable](const auto& receipt) {
      if (receipt.ok() && receipt->durability == Durability::kDisk) ++durable;
    });
  }
  CHECK(wait_for(*spooler, "email", [](auto& s) { return s.done == 1000; }).accepted == 1000);
  CHECK(wait_for(*spooler, "invoice", [](auto& s) { return s.done == 1000; }).accepted == 1000);
  CHECK(durable == 1000);
  for (const auto& [number, times] : email.snapshot()) CHECK(times == 1);
  CHECK(invoice.count() == 1000);
  CHECK(email_worker->drain(5s));
}

TEST_CASE("messages published without any worker wait, and survive a restart of the spool") {
  test::TemporaryFolder folder;
  const auto options = options_in(folder);
  {
    auto spooler = open_spooler(options);
    for (std::uint64_t i = 0; i < 100; ++i) REQUIRE(spooler->publish("ping", Ping{i, "x"}).ok());
  }
  auto spooler = open_spooler(options);
  Seen seen;
  auto worker = start_worker("email", options.bind, seen);
  wait_for(*spooler, "email", [](auto& s) { return s.done == 100; });
  CHECK(seen.count() == 100);
}

TEST_CASE("a topic without a group is refused as unroutable") {
  test::TemporaryFolder folder;
  auto spooler = open_spooler(options_in(folder));
  const auto receipt = spooler->publish("pong", Ping{});
  REQUIRE(!receipt.ok());
  CHECK(receipt.error().code == ErrorCode::kUnroutable);
}

TEST_CASE("a dedup id gives the first receipt again, also after a restart") {
  test::TemporaryFolder folder;
  const auto options = options_in(folder);
  PublishOptions publish;
  publish.dedup = "order-1";
  Receipt first;
  {
    auto spooler = open_spooler(options);
    first = *spooler->publish("ping", Ping{1, "a"}, publish);
    const auto again = spooler->publish("ping", Ping{1, "a"}, publish);
    REQUIRE(again.ok());
    CHECK(again->duplicate);
    CHECK(again->id == first.id);
  }
  auto spooler = open_spooler(options);
  const auto again = spooler->publish("ping", Ping{1, "a"}, publish);
  REQUIRE(again.ok());
  CHECK(again->sequence == first.sequence);
  const auto other = spooler->publish("ping", Ping{2, "b"}, publish);
  REQUIRE(!other.ok());
  CHECK(other.error().code == ErrorCode::kConflict);
}

TEST_CASE(
    "a failing handler is retried with back-off and then becomes a dead letter with history") {
  test::TemporaryFolder folder;
  const auto options = options_in(folder);
  auto spooler = open_spooler(options);
  Seen seen;
  std::atomic<bool> healed{false};
  seen.what = [&](const Ping&, Delivery& delivery) {
    return healed ? done() : retry("smtp 451, attempt " + std::to_string(delivery.attempt()));
  };
  WorkerSettings settings;
  settings.retry.max_attempts = 3;
  auto worker = start_worker("email", options.bind, seen, settings);
  REQUIRE(spooler->publish("ping", Ping{1, "a"}).ok());
  wait_for(*spooler, "email", [](auto& s) { return s.dead == 1; });
  const auto dead = spooler->dead_letters("email", 0, 10);
  REQUIRE(dead.ok());
  REQUIRE(dead->size() == 1);
  CHECK(dead->front().attempts == 3);
  CHECK(dead->front().reason == "smtp 451, attempt 3");
  REQUIRE(dead->front().history.size() == 2);
  CHECK(dead->front().history[1].reason == "smtp 451, attempt 1");
  healed = true;
  const auto revived = spooler->retry_dead("email", {});
  REQUIRE(revived.ok());
  CHECK(*revived == 1);
  CHECK(wait_for(*spooler, "email", [](auto& s) { return s.done == 1; }).dead == 0);
}

TEST_CASE("a body that does not fit the handler's type is a dead letter at once, with the field") {
  test::TemporaryFolder folder;
  const auto options = options_in(folder);
  auto spooler = open_spooler(options);
  Seen seen;
  auto worker = start_worker("email", options.bind, seen);
  struct Other {
    std::uint64_t number = 1;
    DRAY_FIELDS(number)
  };
  REQUIRE(spooler->publish("ping", Other{}).ok());
  wait_for(*spooler, "email", [](auto& s) { return s.dead == 1; });
  CHECK(spooler->dead_letters("email", 0, 1)->front().reason == "body: text: missing");
  const auto dropped = spooler->drop_dead("email", {});
  REQUIRE(dropped.ok());
  CHECK(wait_for(*spooler, "email", settled).dropped == 1);
}

TEST_CASE("a follow-up is published in the commit of the settlement") {
  test::TemporaryFolder folder;
  const auto options = options_in(folder, {{"email", {"ping"}}, {"view", {"mail.sent"}}});
  auto spooler = open_spooler(options);
  Seen email, view;
  email.what = [](const Ping& ping, Delivery&) {
    return done().publish("mail.sent", Ping{ping.number + 1000, "sent"});
  };
  auto email_worker = start_worker("email", options.bind, email);
  auto view_worker = start_worker("view", options.bind, view);
  for (std::uint64_t i = 0; i < 50; ++i) REQUIRE(spooler->publish("ping", Ping{i, ""}).ok());
  wait_for(*spooler, "view", [](auto& s) { return s.done == 50; });
  CHECK(view.snapshot().begin()->first == 1000);
}

TEST_CASE("what a worker holds is not delivered again when the dispatcher restarts") {
  test::TemporaryFolder folder;
  const auto options = options_in(folder);
  auto spooler = open_spooler(options);
  Seen seen;
  std::promise<void> release;
  auto released = release.get_future().share();
  seen.what = [&](const Ping&, Delivery&) {
    released.wait();
    return done();
  };
  WorkerSettings settings;
  settings.threads = 2;
  auto worker = start_worker("email", options.bind, seen, settings);
  for (std::uint64_t i = 0; i < 20; ++i) REQUIRE(spooler->publish("ping", Ping{i, ""}).ok());
  wait_for(*spooler, "email", [&](auto& s) { return s.in_flight >= 2 && seen.count() >= 2; });
  spooler.reset();
  spooler = open_spooler(options);
  release.set_value();
  wait_for(*spooler, "email", [](auto& s) { return s.done == 20; });
  for (const auto& [number, times] : seen.snapshot()) {
    INFO("message " << number);
    CHECK(times == 1);  // P5
  }
}

TEST_CASE("a backlog larger than memory's share is read back from the segments in full") {
  test::TemporaryFolder folder;
  auto options = options_in(folder);
  options.durability = Durability::kOs;
  auto spooler = open_spooler(options);
  constexpr std::uint64_t kCount = 30'000;
  for (std::uint64_t i = 0; i < kCount; ++i) {
    spooler->publish_async("ping", Ping{i, "x"}, {}, [](const auto&) {});
  }
  wait_for(*spooler, "email", [](auto& s) { return s.accepted == kCount; });
  Seen seen;
  auto worker = start_worker("email", options.bind, seen);
  wait_for(*spooler, "email", [](auto& s) { return s.done == kCount; });
  CHECK(seen.count() == kCount);
}

TEST_CASE("a second process cannot open the same spool") {
  test::TemporaryFolder folder;
  auto options = options_in(folder);
  auto spooler = open_spooler(options);
  options.bind.clear();
  const auto second = Spooler::open(options);
  REQUIRE(!second.ok());
  CHECK(second.error().code == ErrorCode::kBusy);
}
