#include <atomic>
#include <mutex>

#include "dray/spooler.hpp"
#include "support/ping.hpp"

using namespace dray;
using namespace dray::test;

namespace {

void publish_all(Spooler& spooler, std::uint64_t count, const std::string& topic = "ping",
                 const PublishOptions& options = {}) {
  std::atomic<std::uint64_t> durable{0};
  for (std::uint64_t i = 0; i < count; ++i) {
    spooler.publish_async(topic, Ping{i, "text " + std::to_string(i)}, options,
                          [&durable](const auto& receipt) { durable += receipt.ok() ? 1U : 0U; });
  }
  while (durable < count) std::this_thread::yield();
}

Sequence only_dead(Spooler& spooler, const std::string& group) {
  const auto dead = spooler.dead_letters(group, 0, 10);
  REQUIRE(dead.ok());
  REQUIRE(dead->size() == 1);
  return dead->front().sequence;
}

}  // namespace

TEST_CASE("messages of a key are handled one at a time and in order, also when one is retried") {
  TemporaryFolder folder;
  const auto options = options_in(folder);
  auto spooler = open_spooler(options);
  std::mutex mutex;
  std::map<std::string, std::vector<std::uint64_t>> order;
  std::map<std::string, int> running;
  bool together = false;
  Seen seen;
  seen.what = [&](const Ping& ping, Delivery& delivery) {
    {
      const std::lock_guard lock(mutex);
      together = together || ++running[ping.text] > 1;
    }
    std::this_thread::yield();
    const std::lock_guard lock(mutex);
    --running[ping.text];
    if (ping.number % 10 == 3 && delivery.attempt() == 1) return retry("once", 1ms);
    order[ping.text].push_back(ping.number);
    return done();
  };
  WorkerSettings settings;
  settings.threads = 4;
  auto one = start_worker("email", options.bind, seen, settings);
  auto other = start_worker("email", options.bind, seen, settings);
  for (std::uint64_t i = 0; i < 300; ++i) {
    const std::string key = "key " + std::to_string(i % 3);
    REQUIRE(spooler->publish("ping", Ping{i, key}, {.key = key}).ok());
  }
  wait_for(*spooler, "email", [](auto& s) { return s.done == 300; });
  const std::lock_guard lock(mutex);
  CHECK_FALSE(together);
  REQUIRE(order.size() == 3);
  for (const auto& [key, numbers] : order) {
    CHECK(numbers.size() == 100);
    CHECK(std::is_sorted(numbers.begin(), numbers.end()));
  }
}

TEST_CASE("high priority goes first, out of a backlog too, and low is not starved") {
  TemporaryFolder folder;
  const auto options = options_in(folder);
  // More than are kept in memory, so that each priority reads the log by itself.
  constexpr std::uint64_t kEach = 12'000;
  {
    auto spooler = open_spooler(options);
    for (const auto priority : {Priority::kLow, Priority::kNormal, Priority::kHigh}) {
      PublishOptions each;
      each.priority = priority;
      publish_all(*spooler, kEach, "ping", each);
    }
  }
  auto spooler = open_spooler(options);
  std::mutex mutex;
  std::vector<int> order;
  Seen seen;
  seen.what = [&](const Ping&, Delivery& delivery) {
    const std::lock_guard lock(mutex);
    order.push_back(static_cast<int>(delivery.priority()));
    return done();
  };
  auto worker = start_worker("email", options.bind, seen);
  wait_for(*spooler, "email", [](auto& s) { return s.done == 3 * kEach; });
  const std::lock_guard lock(mutex);
  const auto count = [&](std::size_t until, int priority) {
    return std::count(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(until), priority);
  };
  const std::size_t tenth = kEach / 10;
  CHECK(count(tenth, 0) > static_cast<std::ptrdiff_t>(tenth) * 7 / 10);
  CHECK(count(kEach, 2) > 0);  // low has its share
  CHECK(count(2 * kEach, 2) < static_cast<std::ptrdiff_t>(kEach) / 4);
}

TEST_CASE("a group's concurrency holds over all its workers") {
  TemporaryFolder folder;
  auto options = options_in(folder);
  options.groups.front().limits.concurrency = 3;
  auto spooler = open_spooler(options);
  std::atomic<int> running{0};
  std::atomic<int> most{0};
  Seen seen;
  seen.what = [&](const Ping&, Delivery&) {
    const int now = ++running;
    for (int before = most; before < now && !most.compare_exchange_weak(before, now);) {
    }
    std::this_thread::yield();
    --running;
    return done();
  };
  WorkerSettings settings;
  settings.threads = 8;
  auto one = start_worker("email", options.bind, seen, settings);
  auto other = start_worker("email", options.bind, seen, settings);
  publish_all(*spooler, 500);
  wait_for(*spooler, "email", [](auto& s) { return s.done == 500; });
  CHECK(most <= 3);
}

TEST_CASE("a paused group gets nothing, also after a restart, until it is resumed") {
  TemporaryFolder folder;
  const auto options = options_in(folder, {{"email", {"ping"}}, {"invoice", {"ping"}}});
  {
    auto spooler = open_spooler(options);
    CHECK(spooler->set_paused("email", true).ok());
    CHECK(spooler->set_paused("nobody", true).error().code == ErrorCode::kNotFound);
  }
  auto spooler = open_spooler(options);
  Seen email, invoice;
  auto email_worker = start_worker("email", options.bind, email);
  auto invoice_worker = start_worker("invoice", options.bind, invoice);
  publish_all(*spooler, 20);
  wait_for(*spooler, "invoice", [](auto& s) { return s.done == 20; });
  const auto paused = wait_for(*spooler, "email", [](auto& s) { return s.workers == 1; });
  CHECK(paused.paused);
  CHECK(paused.pending == 20);
  CHECK(email.count() == 0);
  CHECK(spooler->set_paused("email", false).ok());
  wait_for(*spooler, "email", [](auto& s) { return s.done == 20; });
}

TEST_CASE("only a group that left the config can be dropped, and then its name is free again") {
  TemporaryFolder folder;
  const auto with = options_in(folder, {{"email", {"ping"}}, {"old", {"ping"}}});
  const auto without = options_in(folder);
  {
    auto spooler = open_spooler(with);
    publish_all(*spooler, 5);
    CHECK(spooler->drop_group("old").error().code == ErrorCode::kConflict);
  }
  {
    auto spooler = open_spooler(without);
    CHECK(spooler->status()->detached_groups == std::vector<std::string>{"old"});
    CHECK(spooler->drop_group("old").ok());
    CHECK(spooler->status()->groups.size() == 1);
    CHECK(spooler->drop_group("old").error().code == ErrorCode::kNotFound);
  }
  auto spooler = open_spooler(with);
  publish_all(*spooler, 1);
  CHECK(wait_for(*spooler, "old", [](auto& s) { return s.accepted == 1; }).pending == 1);
}

TEST_CASE("replay gives settled messages once more, also those from before a group") {
  TemporaryFolder folder;
  auto options = options_in(folder);
  options.retain_age = 1h;
  {
    auto spooler = open_spooler(options);
    Seen seen;
    auto worker = start_worker("email", options.bind, seen);
    publish_all(*spooler, 10);
    wait_for(*spooler, "email", [](auto& s) { return s.done == 10; });
  }
  options.groups.push_back({"late", {"ping"}});
  auto spooler = open_spooler(options);
  ReplayRequest request;
  request.group = "late";
  request.dry_run = true;
  auto step = spooler->replay(request);
  REQUIRE(step.ok());
  CHECK(step->matched == 10);
  CHECK(step->replayed == 10);
  CHECK(step->next == step->end);
  CHECK(wait_for(*spooler, "late", [](auto&) { return true; }).accepted == 0);
  request.dry_run = false;
  request.where = [](const EnvelopeView& envelope) {
    return from_bytes<Ping>(envelope.body)->number < 4;
  };
  CHECK(spooler->replay(request)->replayed == 4);
  CHECK(spooler->replay(request)->replayed == 0);  // they are pending now
  Seen late;
  auto worker = start_worker("late", options.bind, late);
  const auto status = wait_for(*spooler, "late", [](auto& s) { return s.done == 4; });
  CHECK(status.accepted == 4);
  CHECK(late.count() == 4);
  request.since = SystemClock().utc() + 1h;
  CHECK(spooler->replay(request)->matched == 0);
  request.group = "nobody";
  CHECK(spooler->replay(request).error().code == ErrorCode::kNotFound);
}

TEST_CASE("a dead letter with another body gets another chance, for its group alone") {
  TemporaryFolder folder;
  const auto options = options_in(folder, {{"email", {"ping"}}, {"invoice", {"ping"}}});
  auto spooler = open_spooler(options);
  Seen email, invoice;
  email.what = invoice.what = [](const Ping& ping, Delivery&) {
    return ping.text == "bad" ? reject("bad text") : done();
  };
  auto email_worker = start_worker("email", options.bind, email);
  auto invoice_worker = start_worker("invoice", options.bind, invoice);
  REQUIRE(spooler->publish("ping", Ping{1, "bad"}).ok());
  wait_for(*spooler, "email", [](auto& s) { return s.dead == 1; });
  wait_for(*spooler, "invoice", [](auto& s) { return s.dead == 1; });
  const auto sequence = only_dead(*spooler, "email");
  CHECK(spooler->edit_dead("email", sequence + 1, to_bytes(Ping{})).error().code ==
        ErrorCode::kNotFound);
  REQUIRE(spooler->edit_dead("email", sequence, to_bytes(Ping{2, "good"})).ok());
  wait_for(*spooler, "email", [](auto& s) { return s.done == 1; });
  CHECK(email.snapshot().count(2) == 1);
  REQUIRE(spooler->retry_dead("invoice", {sequence}).ok());
  wait_for(*spooler, "invoice", [&](auto& s) { return s.dead == 1 && invoice.snapshot()[1] == 2; });
}

TEST_CASE("an error's signature leaves out what differs from message to message") {
  CHECK(error_signature("smtp 451 for 'a@b.org' after 12 s") == "smtp # for * after # s");
  CHECK(error_signature("it's 5") == "it's #");
  CHECK(error_signature("") == "");
}

TEST_CASE("100,000 dead letters are listed, given another chance and dropped within seconds") {
  constexpr std::uint64_t kCount = 100'000;
  TemporaryFolder folder;
  const auto options = options_in(folder);
  auto spooler = open_spooler(options);
  std::atomic<bool> bad{true};
  Seen seen;
  seen.what = [&bad](const Ping& ping, Delivery&) {
    return bad ? reject("no " + std::to_string(ping.number)) : done();
  };
  auto worker = start_worker("email", options.bind, seen);
  publish_all(*spooler, kCount);
  wait_for(*spooler, "email", [](auto& s) { return s.dead == kCount; });
  bad = false;
  const auto begun = std::chrono::steady_clock::now();
  std::vector<Sequence> wanted;
  const DeadFilter filter{"ping", "rejected", "no #"};
  for (Sequence after = 0;;) {
    const auto page = spooler->dead_letters("email", after, 1'000);
    REQUIRE(page.ok());
    if (page->empty()) break;
    for (const auto& letter : *page) {
      if (filter(letter)) wanted.push_back(letter.sequence);
    }
    after = page->back().sequence;
  }
  REQUIRE(wanted.size() == kCount);
  const std::vector<Sequence> dropped(wanted.begin() + kCount / 2, wanted.end());
  wanted.resize(kCount / 2);
  CHECK(*spooler->drop_dead("email", dropped) == kCount / 2);
  CHECK(*spooler->retry_dead("email", wanted) == kCount / 2);
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begun;
#ifdef NDEBUG
  constexpr double kSecondsMax = 5;
#else
  constexpr double kSecondsMax = 60;  // with a sanitizer
#endif
  CHECK(took.count() < kSecondsMax);
  const auto status = wait_for(*spooler, "email", [](auto& s) { return s.pending == 0; });
  CHECK(status.done == kCount / 2);
  CHECK(status.dropped == kCount / 2);
}
