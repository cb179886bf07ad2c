// The test kit: what the tests of handlers rely on.
#include "dray/testing.hpp"

#include <catch2/catch.hpp>

using namespace dray;
using namespace std::chrono_literals;
using testing::Counts;
using testing::CrashPoint;
using testing::Harness;

namespace {

struct Placed {
  std::string id;
  DRAY_FIELDS(id)
};
struct Sent {
  std::string id;
  std::uint32_t attempt = 0;
  DRAY_FIELDS(id, attempt)
};

// Does as the message says.
class Mailer final : public Handler<Placed> {
 public:
  Outcome handle(const Placed& placed, Delivery& delivery) override {
    delivery.log().info("sending", {{"id", placed.id}});
    if (delivery.stop_token().stop_requested()) return retry("stopped");
    if (placed.id == "fails once" && delivery.attempt() == 1) return retry("smtp 451", 30s);
    if (placed.id == "fails") return retry("smtp 550");
    if (placed.id == "throws") throw std::runtime_error("no socket");
    if (placed.id == "rejected") return reject("no such address");
    if (placed.id == "later" && delivery.attempt() == 1 && !snoozed_) {
      snoozed_ = true;
      return snooze(1h);
    }
    return done().publish("mail.sent", Sent{placed.id, delivery.attempt()});
  }

 private:
  bool snoozed_ = false;
};

struct Mail {
  explicit Mail(const testing::GroupOptions& options = {}) {
    queue.handle<Mailer>("email", {"order.placed"}, {}, options);
    queue.observe({"mail.sent"});
  }
  Result<Receipt> place(const std::string& id, PublishOptions options = {}) {
    return queue.publish("order.placed", Placed{id}, std::move(options));
  }
  std::vector<Sent> sent() const { return queue.published<Sent>("mail.sent"); }
  Harness queue;
};

}  // namespace

TEST_CASE("what is published is handled when the harness runs, and its follow-up is seen") {
  Mail mail;
  REQUIRE(mail.place("1").ok());
  CHECK(mail.queue.counts("email") == Counts{.pending = 1});
  mail.queue.run();
  CHECK(mail.queue.counts("email") == Counts{.done = 1});
  REQUIRE(mail.sent().size() == 1);
  CHECK(mail.sent()[0].id == "1");
  REQUIRE(mail.queue.log_lines().size() == 1);
  CHECK(mail.queue.log_lines()[0].find("id=1") != std::string::npos);
  CHECK(mail.queue.log_lines()[0].find("group=email attempt=1") != std::string::npos);
}

TEST_CASE("a retry comes back in its time, not before") {
  Mail mail;
  REQUIRE(mail.place("fails once").ok());
  mail.queue.run();
  mail.queue.advance(29s);
  CHECK(mail.queue.counts("email") == Counts{.pending = 1});
  mail.queue.advance(1s);
  CHECK(mail.queue.counts("email") == Counts{.done = 1});
  CHECK(mail.sent().at(0).attempt == 2);
}

TEST_CASE("what fails for good is a dead letter, with its reason and its attempts") {
  Mail mail({.max_attempts = 3, .initial = 10s});
  REQUIRE(mail.place("fails").ok());
  REQUIRE(mail.place("rejected").ok());
  REQUIRE(mail.place("throws").ok());
  CHECK(mail.queue.settle());
  CHECK(mail.queue.counts("email") == Counts{.dead = 3});
  const auto dead = mail.queue.dead("email");
  REQUIRE(dead.size() == 3);
  CHECK(dead[0].reason == "smtp 550");
  CHECK(dead[0].attempts == 3);
  CHECK(dead[0].cause == "attempts");
  CHECK(dead[1].reason == "no such address");
  CHECK(dead[1].cause == "rejected");
  CHECK(dead[2].reason == "exception: no socket");
  CHECK(mail.queue.handled().size() == 7);
}

TEST_CASE("a worker may die at every point of a message, and nothing is lost") {
  const auto point =
      GENERATE(CrashPoint::kBeforeHandler, CrashPoint::kAfterHandler, CrashPoint::kAfterResult);
  Mail mail;
  mail.queue.crash_next("email", point);
  REQUIRE(mail.place("1").ok());
  CHECK(mail.queue.settle());
  CHECK(mail.queue.counts("email") == Counts{.done = 1});
  CHECK(mail.sent().size() == 1);
  // The handler runs twice exactly where its outcome was lost.
  CHECK(mail.queue.handled().size() == (point == CrashPoint::kAfterHandler ? 2 : 1));
}

TEST_CASE("the producer may die or lose power, and what has a receipt is handled once") {
  const bool power = GENERATE(false, true);
  Mail mail;
  for (int i = 0; i < 20; ++i) REQUIRE(mail.place(std::to_string(i)).ok());
  REQUIRE(mail.place("later").ok());
  power ? mail.queue.cut_power() : mail.queue.kill_producer();
  mail.queue.run();
  power ? mail.queue.cut_power() : mail.queue.kill_producer();
  CHECK(mail.queue.settle());
  CHECK(mail.queue.counts("email") == Counts{.done = 21});
  CHECK(mail.sent().size() == 21);
}

TEST_CASE("delay, snooze, expiry and stop tokens go by the virtual clock") {
  Mail mail;
  const auto begun = mail.queue.clock().utc();
  REQUIRE(mail.place("delayed", {.deliver_at = begun + 24h}).ok());
  REQUIRE(mail.place("expires", {.deliver_at = begun + 2h, .expires_at = begun + 1h}).ok());
  REQUIRE(mail.place("later").ok());
  mail.queue.stop_next("email");
  CHECK(mail.queue.settle(48h));
  CHECK(mail.queue.counts("email") == Counts{.done = 2, .expired = 1});
  CHECK(mail.queue.clock().utc() - begun >= 24h);
  CHECK(mail.queue.handled().at(0).reason == "stopped");
}

TEST_CASE("a month passes in no time") {
  Mail mail;
  REQUIRE(mail.place("1", {.deliver_at = mail.queue.clock().utc() + 30 * 24h}).ok());
  mail.queue.advance(31 * 24h);
  CHECK(mail.queue.counts("email") == Counts{.done = 1});
}

TEST_CASE("duplicates by dedup id, topics without a group and bad bodies are as in production") {
  Mail mail;
  REQUIRE(mail.place("1", {.dedup = "order 1"}).ok());
  const auto again = mail.place("1", {.dedup = "order 1"});
  REQUIRE(again.ok());
  CHECK(again->duplicate);
  CHECK(mail.queue.publish("order.unknown", Placed{"1"}).error().code == ErrorCode::kUnroutable);
  REQUIRE(mail.queue.publish("order.placed", Sent{"x", 1}).ok());  // has an id: one more field
  struct Other {
    int number = 0;
    DRAY_FIELDS(number)
  };
  REQUIRE(mail.queue.publish("order.placed", Other{1}).ok());
  mail.queue.run();
  CHECK(mail.queue.counts("email") == Counts{.done = 2, .dead = 1});
  CHECK(mail.queue.dead("email").at(0).reason == "body: id: missing");
}

TEST_CASE("misuse of the harness is said at once") {
  Mail mail;
  CHECK_THROWS_AS(mail.queue.counts("invoice"), std::logic_error);
  REQUIRE(mail.place("1").ok());
  CHECK_THROWS_AS(mail.queue.observe({"x"}), std::logic_error);
  mail.queue.run();
  CHECK_THROWS_AS(mail.queue.published<Placed>("mail.sent").at(5), std::out_of_range);
  struct Other {
    int number = 0;
    DRAY_FIELDS(number)
  };
  CHECK_THROWS_AS(mail.queue.published<Other>("mail.sent"), std::logic_error);
}
