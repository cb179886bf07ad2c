// Steps (Delivery::once) in the whole queue of the test kit: what runs once, what runs again, and
// what a person decides, wherever worker, producer or power fail.
#include <catch2/catch.hpp>

#include "dray/testing.hpp"

using namespace dray;
using testing::Counts;
using testing::CrashPoint;
using testing::Harness;

namespace {

struct Payment {
  std::int64_t cents = 0;
  DRAY_FIELDS(cents)
};

// A handler with two steps, and what it did to the till.
struct Till {
  explicit Till(IfUnknown choice) : if_unknown(choice) {
    options.max_attempts = 4;
    queue.group("pay", {"order"},
                handle_with<Payment>([this](const Payment& payment, Delivery& delivery) {
                  const auto receipt = delivery.once("charge", if_unknown, [&] {
                    ++charges;
                    if (on_charge) on_charge();
                    return "receipt " + std::to_string(payment.cents);
                  });
                  receipts.push_back(receipt);
                  delivery.once("ship", IfUnknown::kAgain, [&] {
                    ++shipments;
                    if (on_ship) on_ship();
                  });
                  if (on_end) on_end();
                  return done();
                }),
                options);
  }

  Harness queue;
  testing::GroupOptions options;
  IfUnknown if_unknown;
  int charges = 0;
  int shipments = 0;
  std::vector<std::string> receipts;
  std::function<void()> on_charge, on_ship, on_end;
};

// Each fails the first time it is called.
std::function<void()> once_only(std::function<void()> action) {
  return [action = std::move(action), called = std::make_shared<bool>(false)] {
    if (!std::exchange(*called, true)) action();
  };
}

}  // namespace

TEST_CASE("a step that ended is not run again, and its value comes from the journal") {
  Till till(IfUnknown::kAsk);
  till.on_end = once_only([] { throw std::runtime_error("later"); });
  REQUIRE(till.queue.publish("order", Payment{5}).ok());
  CHECK(till.queue.settle());
  CHECK(till.queue.counts("pay") == Counts{.done = 1});
  CHECK(till.queue.handled().size() == 2);
  CHECK(till.charges == 1);
  CHECK(till.shipments == 1);
  CHECK(till.receipts == std::vector<std::string>{"receipt 5", "receipt 5"});
}

TEST_CASE("a worker dies at each point of the journal") {
  struct Row {
    CrashPoint point;
    IfUnknown if_unknown;
    int charges;
    bool dies;
  };
  const auto row = GENERATE(Row{CrashPoint::kBeforeHandler, IfUnknown::kAsk, 1, false},
                            Row{CrashPoint::kStepBegun, IfUnknown::kAsk, 0, true},
                            Row{CrashPoint::kStepBegun, IfUnknown::kAgain, 1, false},
                            Row{CrashPoint::kStepRan, IfUnknown::kAsk, 1, true},
                            Row{CrashPoint::kStepRan, IfUnknown::kAgain, 2, false},
                            Row{CrashPoint::kStepDone, IfUnknown::kAsk, 1, false},
                            Row{CrashPoint::kAfterHandler, IfUnknown::kAsk, 1, false},
                            Row{CrashPoint::kAfterResult, IfUnknown::kAsk, 1, false});
  CAPTURE(static_cast<int>(row.point), static_cast<int>(row.if_unknown));
  Till till(row.if_unknown);
  till.queue.crash_next("pay", row.point);
  REQUIRE(till.queue.publish("order", Payment{5}).ok());
  CHECK(till.queue.settle());
  CHECK(till.charges == row.charges);
  CHECK(till.shipments == (row.dies ? 0 : 1));
  CHECK(till.queue.counts("pay") == (row.dies ? Counts{.dead = 1} : Counts{.done = 1}));
  if (!row.dies) return;
  const auto dead = till.queue.dead("pay");
  REQUIRE(dead.size() == 1);
  CHECK(dead[0].reason.rfind("needs a decision: step 'charge'", 0) == 0);
  CHECK(dead[0].undecided == std::vector<std::string>{"charge"});
}

TEST_CASE("a producer dies, or its power fails, at each point of the journal") {
  const bool power = GENERATE(false, true);
  const auto where = GENERATE(&Till::on_charge, &Till::on_ship, &Till::on_end);
  Till till(IfUnknown::kAsk);
  till.*where = once_only([&] { power ? till.queue.cut_power() : till.queue.kill_producer(); });
  REQUIRE(till.queue.publish("order", Payment{5}).ok());
  CHECK(till.queue.settle());
  CHECK(till.queue.counts("pay") == Counts{.done = 1});
  CHECK(till.charges == 1);
  CHECK(till.shipments == 1);
  CHECK(till.queue.handled().size() == 1);
}

TEST_CASE("a restart remembers the steps of open messages, with and without a checkpoint") {
  const bool power = GENERATE(false, true);
  Till till(IfUnknown::kAsk);
  till.on_ship = once_only([] { throw std::runtime_error("later"); });
  REQUIRE(till.queue.publish("order", Payment{5}).ok());
  till.queue.run();
  CHECK(till.charges == 1);
  CHECK(till.queue.counts("pay") == Counts{.pending = 1});
  power ? till.queue.cut_power() : till.queue.kill_producer();
  CHECK(till.queue.settle());
  CHECK(till.queue.counts("pay") == Counts{.done = 1});
  CHECK(till.charges == 1);
  CHECK(till.shipments == 2);
}

TEST_CASE("a person decides what became of a step") {
  Till till(IfUnknown::kAsk);
  till.queue.crash_next("pay", CrashPoint::kStepRan);
  const auto receipt = till.queue.publish("order", Payment{5});
  REQUIRE(receipt.ok());
  CHECK(till.queue.settle());
  CHECK_THROWS_WITH(till.queue.decide_done("pay", receipt->sequence, "ship"),
                    Catch::Contains("undecided: charge"));
  SECTION("it took effect") {
    till.queue.decide_done("pay", receipt->sequence, "charge", std::string("by hand"));
    CHECK(till.queue.settle());
    CHECK(till.charges == 1);
    CHECK(till.receipts == std::vector<std::string>{"by hand"});
  }
  SECTION("it took none") {
    till.queue.decide_not_done("pay", receipt->sequence, "charge");
    CHECK(till.queue.settle());
    CHECK(till.charges == 2);
    CHECK(till.receipts == std::vector<std::string>{"receipt 5"});
  }
  SECTION("it survives a restart, and a value of another type is said") {
    till.queue.kill_producer();
    till.queue.decide_done("pay", receipt->sequence, "charge");  // nil
    CHECK(till.queue.settle());
    REQUIRE(till.queue.dead("pay").size() == 1);
    CHECK_THAT(till.queue.dead("pay")[0].reason,
               Catch::Contains("of step 'charge' is of another type"));
    return;
  }
  CHECK(till.queue.counts("pay") == Counts{.done = 1});
  CHECK_THROWS_AS(till.queue.decide_done("pay", receipt->sequence, "charge"), std::logic_error);
}

TEST_CASE("a step that says it took no effect begins anew; any other exception leaves it unknown") {
  Till till(IfUnknown::kAsk);
  SECTION("StepNotDone") {
    till.on_charge = once_only([] { throw StepNotDone("refused"); });
    REQUIRE(till.queue.publish("order", Payment{5}).ok());
    CHECK(till.queue.settle());
    CHECK(till.queue.counts("pay") == Counts{.done = 1});
    CHECK(till.queue.handled()[0].reason == "exception: refused");
  }
  SECTION("another") {
    till.on_charge = once_only([] { throw std::runtime_error("no answer"); });
    REQUIRE(till.queue.publish("order", Payment{5}).ok());
    CHECK(till.queue.settle());
    CHECK(till.queue.counts("pay") == Counts{.dead = 1});
    CHECK(till.charges == 1);
  }
}

TEST_CASE("what an earlier handling left unknown is not made undone by a later one") {
  Till till(IfUnknown::kAgain);
  till.queue.crash_next("pay", CrashPoint::kStepRan);
  int calls = 0;
  till.on_charge = [&] {
    if (++calls == 2) throw StepNotDone("refused");
  };
  REQUIRE(till.queue.publish("order", Payment{5}).ok());
  for (int i = 0; i < 100 && calls < 2; ++i) till.queue.advance(std::chrono::milliseconds(100));
  CHECK(calls == 2);
  till.if_unknown = IfUnknown::kAsk;
  CHECK(till.queue.settle());
  CHECK(till.queue.counts("pay") == Counts{.dead = 1});
}

TEST_CASE("a handler that swallows the question, or uses steps wrongly") {
  Harness queue;
  testing::GroupOptions options;
  options.max_attempts = 2;
  std::function<Outcome(Delivery&)> handler;
  queue.group("g", {"t"}, handle_with<Payment>([&](const Payment&, Delivery& delivery) {
                return handler(delivery);
              }),
              options);
  const auto reason_of = [&](std::function<Outcome(Delivery&)> what) {
    handler = std::move(what);
    REQUIRE(queue.publish("t", Payment{}).ok());
    CHECK(queue.settle());
    return queue.dead("g").empty() ? std::string() : queue.dead("g").back().reason;
  };
  CHECK_THAT(reason_of([](Delivery& delivery) {
               delivery.once("", IfUnknown::kAsk, [] {});
               return done();
             }),
             Catch::Contains("name of a step has 1 to 128 bytes"));
  CHECK_THAT(reason_of([](Delivery& delivery) {
               (void)delivery.once("s", IfUnknown::kAgain, [] { return std::string(5'000, 'x'); });
               return done();
             }),
             Catch::Contains("at most 4096 can be kept"));
  CHECK_THAT(reason_of([](Delivery& delivery) {
               for (int i = 0; i < 40; ++i) {
                 delivery.once("step " + std::to_string(i), IfUnknown::kAsk, [] {});
               }
               return done();
             }),
             Catch::Contains("at most 32 steps"));
  queue.crash_next("g", CrashPoint::kStepBegun);
  CHECK_THAT(reason_of([](Delivery& delivery) -> Outcome {
               try {
                 delivery.once("s", IfUnknown::kAsk, [] {});
               } catch (const std::exception&) {
                 return retry("something went wrong");
               }
               return done();
             }),
             Catch::Contains("needs a decision"));
}

TEST_CASE("without a journal a step is refused") {
  auto consumer = consumer_of(
      [] {
        class Steps final : public RawHandler {
          Outcome handle_body(std::string_view, Delivery& delivery) override {
            delivery.once("s", IfUnknown::kAgain, [] {});
            return done();
          }
        };
        return std::make_unique<Steps>();
      }(),
      Log());
  const auto envelope = encode_envelope(Draft{"t", "\xc0", {}}, uuid_v7(UtcTime{}), UtcTime{});
  const auto outcome = consumer->consume({envelope, "g", 1, 1}, {});
  CHECK(outcome.kind() == Outcome::Kind::kRetry);
  CHECK_THAT(outcome.reason(), Catch::Contains("keeps no journal"));
}

TEST_CASE("a step that failed is not run again in the same handling, and steps are not nested") {
  Harness queue;
  testing::GroupOptions options;
  options.max_attempts = 1;
  int effects = 0;
  queue.group("g", {"t"}, handle_with<Payment>([&](const Payment&, Delivery& delivery) {
                for (int i = 0; i < 3; ++i) {
                  try {
                    delivery.once("charge", IfUnknown::kAsk, [&] {
                      ++effects;
                      throw std::runtime_error("no answer");
                    });
                  } catch (const std::exception&) {  // tries again
                  }
                }
                return retry("three times");
              }),
              options);
  queue.group("nested", {"u"}, handle_with<Payment>([](const Payment&, Delivery& delivery) {
                delivery.once("outer", IfUnknown::kAgain,
                              [&] { delivery.once("inner", IfUnknown::kAgain, [] {}); });
                return done();
              }),
              options);
  REQUIRE(queue.publish("t", Payment{}).ok());
  REQUIRE(queue.publish("u", Payment{}).ok());
  CHECK(queue.settle());
  CHECK(effects == 1);
  REQUIRE(queue.dead("g").size() == 1);
  CHECK_THAT(queue.dead("g")[0].reason, Catch::Contains("needs a decision"));
  REQUIRE(queue.dead("nested").size() == 1);
  CHECK_THAT(queue.dead("nested")[0].reason, Catch::Contains("not nested"));
}

TEST_CASE("what took effect in part does not expire") {
  Till till(IfUnknown::kAsk);
  till.on_ship = once_only([] { throw std::runtime_error("later"); });
  PublishOptions options;
  options.expires_at = till.queue.clock().utc() + Milliseconds(500);
  REQUIRE(till.queue.publish("order", Payment{5}, options).ok());
  CHECK(till.queue.settle());  // the retry comes after a second
  CHECK(till.queue.counts("pay") == Counts{.done = 1});
  CHECK(till.charges == 1);
}
