#include "dray/spooler.hpp"

#include <sys/resource.h>

#include <atomic>
#include <future>
#include <set>

#include "support/ping.hpp"

using namespace dray;
using namespace dray::test;
using namespace std::chrono_literals;

TEST_CASE("a spool raises the limit of open files, of which it needs one for each segment") {
  rlimit before{};
  REQUIRE(getrlimit(RLIMIT_NOFILE, &before) == 0);
  rlimit low = before;
  low.rlim_cur = std::min<rlim_t>(before.rlim_max, 256);
  REQUIRE(setrlimit(RLIMIT_NOFILE, &low) == 0);
  const TemporaryFolder folder;
  const auto spooler = open_spooler(options_in(folder));
  rlimit now{};
  REQUIRE(getrlimit(RLIMIT_NOFILE, &now) == 0);
  CHECK(now.rlim_cur == before.rlim_max);
  REQUIRE(setrlimit(RLIMIT_NOFILE, &before) == 0);
}

TEST_CASE("a published message reaches a worker of each group and is settled once by each") {
  TemporaryFolder folder;
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
  TemporaryFolder folder;
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

TEST_CASE("a receipt comes by a future, in order of publishing, or an error does") {
  TemporaryFolder folder;
  auto spooler = open_spooler(options_in(folder));
  std::vector<std::future<Result<Receipt>>> futures;
  for (std::uint64_t i = 0; i < 100; ++i) {
    futures.push_back(spooler->publish_future("ping", Ping{i, "x"}));
  }
  (void)spooler->publish_future("ping", Ping{100, "nobody waits for it"});
  auto refused = spooler->publish_future("pong", Ping{});
  Sequence before = 0;
  for (auto& future : futures) {
    const auto receipt = future.get();
    REQUIRE(receipt.ok());
    CHECK(receipt->durability == Durability::kDisk);
    CHECK(receipt->sequence > before);
    before = receipt->sequence;
  }
  CHECK(refused.get().error().code == ErrorCode::kUnroutable);
}

TEST_CASE("a topic without a group is refused as unroutable") {
  TemporaryFolder folder;
  auto spooler = open_spooler(options_in(folder));
  const auto receipt = spooler->publish("pong", Ping{});
  REQUIRE(!receipt.ok());
  CHECK(receipt.error().code == ErrorCode::kUnroutable);
}

TEST_CASE("a dedup id gives the first receipt again, also after a restart") {
  TemporaryFolder folder;
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
  TemporaryFolder folder;
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
  TemporaryFolder folder;
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
  TemporaryFolder folder;
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
  TemporaryFolder folder;
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
  TemporaryFolder folder;
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
  TemporaryFolder folder;
  auto options = options_in(folder);
  auto spooler = open_spooler(options);
  options.bind.clear();
  const auto second = Spooler::open(options);
  REQUIRE(!second.ok());
  CHECK(second.error().code == ErrorCode::kBusy);
}
