#include <atomic>
#include <mutex>

#include "dray/spooler.hpp"
#include "support/ping.hpp"

using namespace dray;
using namespace dray::test;

namespace {

Sequence publish_one(Spooler& spooler, std::uint64_t number, const PublishOptions& options = {},
                     const std::string& topic = "ping") {
  const auto receipt = spooler.publish(topic, Ping{number, "text"}, options);
  REQUIRE(receipt.ok());
  return receipt->sequence;
}

std::uint64_t number_of(const StoredMessage& message) {
  return from_bytes<Ping>(message.body)->number;
}

// All pages, and how many there were.
std::vector<PendingMessage> all_pending(Spooler& spooler, const std::string& group,
                                        std::size_t limit, int* pages = nullptr) {
  std::vector<PendingMessage> all;
  for (Sequence after = 0;;) {
    auto page = spooler.pending(group, after, limit);
    REQUIRE(page.ok());
    CHECK(page->messages.size() <= limit);
    if (pages != nullptr) ++*pages;
    for (auto& each : page->messages) {
      CHECK(each.sequence > after);
      after = each.sequence;
      all.push_back(std::move(each));
    }
    if (!page->more) return all;
    CHECK(page->next >= after);
    after = page->next;
  }
}

std::vector<std::uint64_t> numbers_of(const std::vector<PendingMessage>& messages) {
  std::vector<std::uint64_t> numbers;
  for (const auto& each : messages) numbers.push_back(number_of(each));
  return numbers;
}

}  // namespace

TEST_CASE("what is shown of a message is its whole life, and why it waits") {
  TemporaryFolder folder;
  const auto options = options_in(folder);
  auto spooler = open_spooler(options);
  const auto first = spooler->publish("ping", Ping{1, "a"}, {.key = "k"});
  const auto second = spooler->publish("ping", Ping{2, "a"}, {.key = "k"});
  REQUIRE(second.ok());
  auto life = spooler->show(std::to_string(first->sequence));
  REQUIRE(life.ok());
  CHECK(life->id == first->id.text());
  CHECK(life->durable);
  REQUIRE(life->groups.size() == 1);
  CHECK(life->groups[0].why == "no worker serves this group");
  Seen seen;
  std::atomic<bool> go{false};
  seen.what = [&](const Ping& ping, Delivery& delivery) {
    while (ping.number == 1 && !go) std::this_thread::yield();
    return delivery.attempt() == 1 ? retry("not yet", 1ms) : done();
  };
  auto worker = start_worker("email", options.bind, seen);
  wait_for(*spooler, "email", [](auto& s) { return s.in_flight == 1; });
  CHECK(spooler->show(first->id.text())->groups[0].state == "in flight");
  const std::string turn = "message " + std::to_string(first->sequence) + " has its key's turn";
  CHECK(spooler->show(second->id.text())->groups[0].why == turn);
  go = true;
  wait_for(*spooler, "email", [](auto& s) { return s.done == 2; });
  life = spooler->show(first->id.text());
  REQUIRE(life.ok());
  CHECK(life->groups[0].state == "settled");
  std::vector<std::string> whats;
  for (const auto& event : life->groups[0].events) whats.push_back(event.what);
  CHECK(whats == std::vector<std::string>{"delivered", "retry", "delivered", "done"});
  CHECK(life->groups[0].events[1].reason == "not yet");
  CHECK(life->groups[0].events[3].took_ms.has_value());
  CHECK(spooler->show("999999").error().code == ErrorCode::kNotFound);
  CHECK(spooler->show("019ab000-0000-7000-8000-000000000000").error().code == ErrorCode::kNotFound);
  CHECK(spooler->show("not an id").error().code == ErrorCode::kInvalid);
}

TEST_CASE("what waits in a group is shown as it lies, with why, and stays there") {
  TemporaryFolder folder;
  const auto options = options_in(folder, {{"email", {"ping"}}, {"other", {"pong"}}});
  auto spooler = open_spooler(options);
  publish_one(*spooler, 1);
  publish_one(*spooler, 2, {.priority = Priority::kHigh});
  publish_one(*spooler, 3, {}, "pong");
  publish_one(*spooler, 4, {.deliver_at = SystemClock().utc() + 1h});
  publish_one(*spooler, 5, {.key = "k", .headers = {{"colour", "red"}}});
  wait_for(*spooler, "email", [](auto& s) { return s.delayed == 1; });
  int pages = 0;
  const auto waiting = all_pending(*spooler, "email", 2, &pages);
  CHECK(pages >= 2);
  CHECK(numbers_of(waiting) == std::vector<std::uint64_t>{1, 2, 4, 5});
  CHECK(waiting[0].state == "waiting");
  CHECK(waiting[0].why == "no worker serves this group");
  CHECK(waiting[1].priority == Priority::kHigh);
  CHECK(waiting[2].why.find("delayed until") == 0);
  CHECK(waiting[3].key == "k");
  CHECK(waiting[3].headers.size() == 1);
  CHECK(numbers_of(all_pending(*spooler, "other", 10)) == std::vector<std::uint64_t>{3});
  CHECK(spooler->pending("nobody", 0, 10).error().code == ErrorCode::kNotFound);

  spooler.reset();  // and after a restart
  spooler = open_spooler(options);
  CHECK(numbers_of(all_pending(*spooler, "email", 3)) == std::vector<std::uint64_t>{1, 2, 4, 5});

  Seen seen;
  std::atomic<bool> go{false};
  seen.what = [&](const Ping& ping, Delivery&) {
    while (ping.number == 1 && !go) std::this_thread::yield();
    return ping.number == 2 ? reject("no") : done();
  };
  WorkerSettings settings;
  settings.threads = 2;
  auto worker = start_worker("email", options.bind, seen, settings);
  wait_for(*spooler, "email", [](auto& s) { return s.dead == 1 && s.done == 1; });
  const auto held = all_pending(*spooler, "email", 10);
  REQUIRE(numbers_of(held) == std::vector<std::uint64_t>{1, 4});  // the dead one is no more
  CHECK(held[0].state == "in flight");
  CHECK(held[0].why.find("which has not answered yet") != std::string::npos);
  go = true;
}

TEST_CASE("the oldest that waits is found behind much that is settled, and its age is known") {
  TemporaryFolder folder;
  const auto options = options_in(folder);
  auto spooler = open_spooler(options);
  const auto before = SystemClock().utc().time_since_epoch().count();
  publish_one(*spooler, 0);
  Seen seen;
  std::atomic<bool> go{false};
  seen.what = [&](const Ping& ping, Delivery&) {
    while (ping.number == 0 && !go) std::this_thread::yield();
    return done();
  };
  WorkerSettings settings;
  settings.threads = 2;
  auto worker = start_worker("email", options.bind, seen, settings);
  wait_for(*spooler, "email", [](auto& s) { return s.in_flight == 1; });
  constexpr std::uint64_t kMany = 5'000;
  for (std::uint64_t i = 1; i <= kMany; ++i) {
    spooler->publish_async("ping", Ping{i, ""}, {}, [](const auto&) {});
  }
  auto status = wait_for(*spooler, "email", [](auto& s) { return s.done == kMany; });
  REQUIRE(status.oldest_ms.has_value());
  CHECK(*status.oldest_ms >= before);
  CHECK(*status.oldest_ms <= SystemClock().utc().time_since_epoch().count());
  CHECK(numbers_of(all_pending(*spooler, "email", 1)) == std::vector<std::uint64_t>{0});
  go = true;
  status = wait_for(*spooler, "email", settled);
  CHECK(!status.oldest_ms.has_value());
  CHECK(all_pending(*spooler, "email", 1).empty());
}

TEST_CASE("what was delayed and is due counts among the oldest, what is dead or not due does not") {
  TemporaryFolder folder;
  const auto options = options_in(folder);
  auto spooler = open_spooler(options);
  publish_one(*spooler, 1, {.deliver_at = SystemClock().utc() + 1h});
  wait_for(*spooler, "email", [](auto& s) { return s.delayed == 1; });
  CHECK(!wait_for(*spooler, "email", [](auto&) { return true; }).oldest_ms.has_value());
  const auto soon = SystemClock().utc() + 50ms;
  publish_one(*spooler, 2, {.deliver_at = soon});
  const auto status = wait_for(*spooler, "email", [](auto& s) { return s.oldest_ms.has_value(); });
  CHECK(SystemClock().utc() >= soon);
  CHECK(status.pending == 2);
  Seen seen;
  seen.what = [](const Ping&, Delivery&) { return reject("no"); };
  auto worker = start_worker("email", options.bind, seen);
  wait_for(*spooler, "email", [](auto& s) { return s.dead == 1 && !s.oldest_ms.has_value(); });
}

TEST_CASE("what is accepted can be followed, from now on or from a time, also follow-ups") {
  TemporaryFolder folder;
  const auto options = options_in(folder, {{"email", {"ping"}}, {"other", {"pong"}}});
  auto spooler = open_spooler(options);
  const auto began = SystemClock().utc();
  publish_one(*spooler, 1);
  AcceptedRequest request;
  auto page = spooler->accepted(request);
  REQUIRE(page.ok());
  CHECK(page->messages.empty());
  CHECK(!page->more);
  publish_one(*spooler, 2);
  publish_one(*spooler, 3, {}, "pong");
  request.from = page->next;
  request.limit = 1;
  std::vector<std::uint64_t> seen_numbers;
  do {
    page = spooler->accepted(request);
    REQUIRE(page.ok());
    CHECK(!page->gap);
    REQUIRE(page->messages.size() <= 1);
    for (const auto& each : page->messages) seen_numbers.push_back(number_of(each));
    request.from = page->next;
  } while (page->more);
  CHECK(seen_numbers == std::vector<std::uint64_t>{2, 3});

  request.limit = 100;
  request.from = 0;
  request.since = began;
  CHECK(spooler->accepted(request)->messages.size() == 3);
  request.topic = "pong";
  CHECK(spooler->accepted(request)->messages.size() == 1);
  request.since = SystemClock().utc() + 1h;
  request.topic.clear();
  CHECK(spooler->accepted(request)->messages.empty());

  const auto end = spooler->accepted({})->next;
  AcceptedRequest beyond;  // what a log that is shorter now had
  beyond.from = UINT64_MAX;
  page = spooler->accepted(beyond);
  REQUIRE(page.ok());
  CHECK(page->gap);
  CHECK(page->next == end);
  CHECK(spooler->pending("email", UINT64_MAX, 10)->messages.empty());
  Seen seen;
  seen.what = [](const Ping& ping, Delivery&) {
    return done().publish("pong", Ping{ping.number + 100, ""});
  };
  auto worker = start_worker("email", options.bind, seen);
  wait_for(*spooler, "email", [](auto& s) { return s.done == 2; });
  AcceptedRequest follow;
  follow.from = end;
  page = spooler->accepted(follow);
  REQUIRE(page->messages.size() == 2);
  CHECK(number_of(page->messages[0]) == 101);
  CHECK(number_of(page->messages[1]) == 102);
}
