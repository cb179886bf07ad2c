// How messages end: retries, dead letters, expiry, delays, follow-ups and steps.
#include "dray/balancing/dispatcher_core.hpp"

#include <algorithm>

#include "support/dispatcher_bench.hpp"

using namespace dray;
using namespace dray::test;
using Bench = DispatcherBench;

TEST_CASE("a retry waits its back-off, counts, and ends as a dead letter at max_attempts") {
  Bench bench;
  const auto sequence = bench.publish();
  bench.hello("a", kOne);
  bench.answer("a", sequence, ResultKind::kRetry, 1);
  CHECK(bench.delivered["a"].size() == 1);
  bench.advance(999ms);
  CHECK(bench.delivered["a"].size() == 1);
  bench.advance(1ms);
  REQUIRE(bench.delivered["a"].size() == 2);
  CHECK(bench.delivered["a"][1].number == 2);
  CHECK(bench.delivered["a"][1].attempt == 2);
  bench.answer("a", sequence, ResultKind::kRetry, 2);
  bench.advance(2s);
  REQUIRE(bench.delivered["a"].size() == 3);
  bench.answer("a", sequence, ResultKind::kRetry, 3);
  CHECK(bench.counts().dead == 1);
  CHECK(bench.counts().pending == 0);
  bench.core->revive(0, {sequence});
  bench.settle_down();
  CHECK(bench.counts().dead == 0);
  REQUIRE(bench.delivered["a"].size() == 4);
  CHECK(bench.delivered["a"][3].attempt == 1);
  CHECK(bench.delivered["a"][3].number == 4);
}

TEST_CASE("snooze and return count no attempt; reject is dead at once") {
  Bench bench;
  const auto sequence = bench.publish();
  bench.hello("a", kOne);
  bench.answer("a", sequence, ResultKind::kReturned, 1);
  CHECK(bench.delivered["a"].size() == 1);  // it has no room before it says so
  bench.window("a", 10);
  REQUIRE(bench.delivered["a"].size() == 2);
  CHECK(bench.delivered["a"][1].attempt == 1);
  bench.answer("a", sequence, ResultKind::kSnooze, 2);
  bench.advance(1ms);
  REQUIRE(bench.delivered["a"].size() == 3);
  CHECK(bench.delivered["a"][2].attempt == 1);
  bench.answer("a", sequence, ResultKind::kReject, 3);
  CHECK(bench.counts().dead == 1);
}

TEST_CASE(
    "an answer of a delivery that is no longer granted changes nothing and is told to forget") {
  Bench bench;
  const auto sequence = bench.publish();
  bench.hello("a", kOne);
  bench.answer("a", sequence, ResultKind::kReturned, 1);
  bench.window("a", 10);
  bench.answer("a", sequence, ResultKind::kDone, 1);  // number 2 is granted by now
  CHECK(bench.counts().done == 0);
  CHECK(bench.core->stale_results() == 1);
  bench.answer("a", sequence, ResultKind::kDone, 2, 4);  // another epoch
  CHECK(bench.counts().done == 0);
  CHECK(bench.confirmed["a"].size() == 3);
  bench.answer("a", sequence, ResultKind::kDone, 2);
  CHECK(bench.counts().done == 1);
}

TEST_CASE("a silent session loses its deliveries after one lease: alone counts an attempt") {
  Bench bench;
  bench.publish();
  bench.hello("a", kOne);
  bench.advance(9'999ms);
  CHECK(bench.core->session_status().size() == 1);
  bench.advance(1ms);
  CHECK(bench.core->session_status().empty());
  bench.hello("b", kTwo);
  bench.advance(1s);
  REQUIRE(bench.delivered["b"].size() == 1);
  CHECK(bench.delivered["b"][0].attempt == 2);
}

TEST_CASE("what is due again is read as far as its bytes allow (P8)") {
  Bench bench({}, 2, nullptr, 1'000'000,
              [](DispatcherOptions& options) { options.ready_bytes_max = 4U << 20; });
  const std::string large(512U << 10, 'x');
  bench.hello("a", kOne, 200);
  std::vector<Sequence> sequences;
  for (int i = 0; i < 100; ++i) {
    sequences.push_back(bench.publish());
    bench.stored[sequences.back()] = records_of({sequences.back()}, large);
  }
  REQUIRE(bench.delivered["a"].size() == 100);
  for (const auto sequence : sequences) bench.answer("a", sequence, ResultKind::kRetry);
  bench.window("a", 1);
  bench.advance(5s);
  CHECK(bench.fetched_bytes >= 2U << 20);
  CHECK(bench.fetched_bytes <= 6U << 20);  // of 50 MiB that are due
  CHECK(bench.core->next_deadline(bench.now()) > bench.now().steady);
  // They go on as there is room.
  for (std::uint32_t i = 1; i <= 100; ++i) {
    const auto& last = bench.delivered["a"].back();
    REQUIRE(bench.delivered["a"].size() == 100 + i);
    bench.answer("a", last.sequence, ResultKind::kDone, 2);
  }
  CHECK(bench.counts().done == 100);
}

TEST_CASE("ends of steps that never began are kept within the limits of beginnings") {
  Bench bench;
  const auto sequence = bench.publish();
  bench.hello("a", kOne);
  bench.core->set_room(false);  // what took effect is worth the reserve
  Step step{5, 1, sequence, StepCall::kDone, 0, "", std::string(4'096, 'v')};
  for (std::uint64_t i = 1; i <= 100; ++i) {
    step.run = i;
    step.step = "step " + std::to_string(i);
    bench.core->on_frame("a", step, bench.now());
    bench.settle_down();
  }
  const auto* journal = bench.core->group_state(0).steps().find(sequence);
  REQUIRE(journal != nullptr);
  CHECK(journal->size() == kStepsMax);
}

TEST_CASE("in company nobody is counted; suspects come back one at a time, alone") {
  Bench bench;
  bench.hello("a", kOne);
  for (int i = 0; i < 3; ++i) bench.publish();
  bench.core->on_unsent({"a", ""}, bench.now());
  bench.advance(2s);  // reconnect_grace
  bench.hello("b", kTwo);
  REQUIRE(bench.delivered["b"].size() == 1);
  CHECK(bench.delivered["b"][0].attempt == 1);
  bench.publish();
  CHECK(bench.delivered["b"].size() == 1);  // the suspect is alone with the worker
  bench.answer("b", bench.delivered["b"][0].sequence, ResultKind::kDone, 2);
  REQUIRE(bench.delivered["b"].size() == 2);
  bench.answer("b", bench.delivered["b"][1].sequence, ResultKind::kDone, 2);
  REQUIRE(bench.delivered["b"].size() == 3);
  bench.answer("b", bench.delivered["b"][2].sequence, ResultKind::kDone, 2);
  REQUIRE(bench.delivered["b"].size() == 4);  // now the new one
  bench.answer("b", bench.delivered["b"][3].sequence, ResultKind::kDone, 1);
  CHECK(bench.counts().done == 4);
}

TEST_CASE(
    "a poison message that kills each worker is dead after max_attempts, its company is not") {
  Bench bench;
  std::vector<Sequence> sequences;
  for (int i = 0; i < 3; ++i) sequences.push_back(bench.publish());
  const Sequence poison = sequences[1];
  for (std::uint8_t life = 1; life < 12 && bench.counts().pending > 0; ++life) {
    Uuid session = kOne;
    session.bytes[0] = life;
    const std::string peer = "w" + std::to_string(life);
    bench.hello(peer, session);
    bench.advance(5s);  // back-off of what was lost alone
    bool alive = true;
    for (std::size_t i = 0; alive && i < bench.delivered[peer].size(); ++i) {
      const auto each = bench.delivered[peer][i];
      if (each.sequence == poison) {
        alive = false;
      } else {
        bench.answer(peer, each.sequence, ResultKind::kDone, each.number);
      }
    }
    if (!alive) {
      bench.core->on_unsent({peer, ""}, bench.now());
      bench.advance(2s);
    }
  }
  CHECK(bench.counts().done == 2);
  CHECK(bench.counts().dead == 1);
}

TEST_CASE("a follow-up to a topic without a group is a failed attempt, and nothing is published") {
  Bench bench;
  const auto sequence = bench.publish();
  bench.hello("a", kOne);
  ResultFrame frame;
  const auto now = bench.clock.utc();
  frame.items.push_back({ResultKind::kDone,
                         {5, 1, {sequence}},
                         "",
                         -1,
                         {encode_envelope(Draft{"elsewhere", "\xc0", {}}, uuid_v7(now), now)}});
  bench.core->on_frame("a", frame, bench.now());
  bench.settle_down();
  CHECK(bench.counts().done == 0);
  bench.advance(1s);
  REQUIRE(bench.delivered["a"].size() == 2);
  CHECK(bench.delivered["a"][1].attempt == 2);
}

TEST_CASE("follow-ups wait for room: their result is put off and changes nothing; others settle") {
  Bench bench;
  const auto first = bench.publish();
  const auto second = bench.publish();
  bench.hello("a", kOne);
  const auto now = bench.clock.utc();
  ResultFrame frame;
  frame.items.push_back({ResultKind::kDone,
                         {5, 1, {first}},
                         "",
                         -1,
                         {encode_envelope(Draft{"t", "\xc0", {}}, uuid_v7(now), now)}});
  bench.core->set_room(false);
  bench.core->on_frame("a", frame, bench.now());
  bench.settle_down();
  bench.answer("a", second, ResultKind::kDone);
  CHECK(bench.put_off["a"] == std::vector<Sequence>{first});
  CHECK(bench.confirmed["a"] == std::vector<Sequence>{second});
  CHECK(bench.counts().done == 1);
  bench.core->set_room(true);
  bench.core->on_frame("a", frame, bench.now());
  bench.settle_down();
  CHECK(bench.confirmed["a"] == std::vector<Sequence>{second, first});
  CHECK(bench.counts().done == 2);
  CHECK(bench.delivered["a"].size() == 2);  // each once
}

TEST_CASE("no step begins without room; one that began may end") {
  Bench bench;
  const auto sequence = bench.publish();
  bench.hello("a", kOne);
  const auto say = [&](StepCall what, const std::string& step) {
    bench.core->on_frame("a", Step{5, 1, sequence, what, 9, step, ""}, bench.now());
    std::vector<StepAnswer> answers;
    for (auto actions = bench.core->take_actions(bench.now()); !actions.empty();
         actions = bench.core->take_actions(bench.now())) {
      for (const auto& each : actions.sends) {
        const auto frame = decode_frame(each.frame);
        if (const auto* stepped = std::get_if<Stepped>(&*frame)) {
          answers.push_back(stepped->answer);
        }
      }
      for (auto& submission : actions.submissions) bench.commit_now(submission);
    }
    return answers;
  };
  using Answers = std::vector<StepAnswer>;
  CHECK(say(StepCall::kBegin, "one") == Answers{StepAnswer::kRecorded});
  bench.core->set_room(false);
  CHECK(say(StepCall::kBegin, "two") == Answers{StepAnswer::kBusy});
  CHECK(say(StepCall::kDone, "one") == Answers{StepAnswer::kRecorded});
  CHECK(say(StepCall::kBegin, "one") == Answers{StepAnswer::kDoneBefore});
  // Of a delivery that is not this session's.
  bench.core->on_frame("a", Bye{}, bench.now());
  bench.hello("b", kTwo);
  CHECK(say(StepCall::kBegin, "three").empty());  // its session is over
}

TEST_CASE("expiry pauses when the wall clock jumps, until it has been steady or is confirmed") {
  Bench bench;
  const auto soon = bench.clock.utc() + 30s;
  bench.publish(soon);
  SECTION("no jump: it expires") {
    bench.advance(31s);
    bench.hello("a", kOne);
    CHECK(bench.counts().expired == 1);
  }
  SECTION("a jump of an hour: it is delivered") {
    bench.advance(1s);
    bench.clock.jump_utc(Milliseconds(3'600'000));
    bench.advance(1ms);
    CHECK(bench.core->expiry_paused(bench.now()));
    bench.hello("a", kOne);
    CHECK(bench.counts().expired == 0);
    CHECK(bench.delivered["a"].size() == 1);
  }
  SECTION("steady again for five minutes, or confirmed: it expires") {
    bench.advance(1s);
    bench.clock.jump_utc(Milliseconds(3'600'000));
    bench.advance(1ms);
    if (GENERATE(true, false)) {
      bench.core->confirm_clock();
    } else {
      for (int i = 0; i < 301; ++i) bench.advance(1s);
    }
    bench.hello("a", kOne);
    CHECK(bench.counts().expired == 1);
  }
}

TEST_CASE("a delayed message waits for its time and costs one entry") {
  Bench bench;
  bench.hello("a", kOne);
  const auto sequence = bench.publish(std::nullopt, bench.clock.utc() + 60s);
  CHECK(bench.delivered["a"].empty());
  CHECK(bench.core->held() == 1);
  bench.advance(59s);
  bench.hello("a", kOne);
  CHECK(bench.delivered["a"].empty());
  bench.advance(1001ms);
  REQUIRE(bench.delivered["a"].size() == 1);
  bench.answer("a", sequence, ResultKind::kDone, 1);
  CHECK(bench.counts().done == 1);
  CHECK(bench.core->held() == 0);
}

TEST_CASE("at the limit of held messages nothing new is granted until some are settled") {
  Bench bench({}, 2, nullptr, 2);
  bench.hello("a", kOne, 1);
  for (int i = 0; i < 4; ++i) bench.publish();
  for (int i = 0; i < 2; ++i) {
    const auto sequence = bench.delivered["a"].at(static_cast<std::size_t>(i)).sequence;
    bench.answer("a", sequence, ResultKind::kReject);
  }
  CHECK(bench.counts().dead == 2);
  CHECK(bench.core->held_full());
  // P8. What was under way when the limit was reached is finished; nothing new begins.
  bench.answer("a", bench.delivered["a"].back().sequence, ResultKind::kDone);
  const auto before = bench.delivered["a"].size();
  bench.publish();
  CHECK(bench.delivered["a"].size() == before);
  bench.core->drop(0, {bench.delivered["a"].front().sequence});
  bench.settle_down();
  CHECK(bench.delivered["a"].size() == before + 1);
}

TEST_CASE("a dead letter that is given another chance and dropped frees its key (P10)") {
  Bench bench;
  bench.hello("a", kOne, 1);
  const auto dead = bench.publish_keyed("k");
  bench.answer("a", dead, ResultKind::kReject);
  REQUIRE(bench.counts().dead == 1);
  // Both commands find it dead; their records are committed one after the other.
  bench.commits = false;
  bench.core->revive(0, {dead});
  bench.core->drop(0, {dead});
  bench.settle_down();
  const auto commands = std::exchange(bench.uncommitted, {});
  REQUIRE(commands.size() == 2);
  bench.commits = true;
  Sequence next = 0;
  SECTION("at once") {
    for (const auto& command : commands) bench.commit_now(command);
    bench.settle_down();
    next = bench.publish_keyed("k");
  }
  SECTION("while it waits for room") {
    const auto other = bench.publish();  // takes the room
    bench.commit_now(commands[0]);
    bench.settle_down();
    bench.commit_now(commands[1]);
    bench.settle_down();
    next = bench.publish_keyed("k");
    bench.answer("a", other, ResultKind::kDone);
  }
  SECTION("while it waits behind another of its key") {
    bench.window("a", 3);
    const auto other = bench.publish_keyed("k");
    REQUIRE(bench.delivered["a"].back().sequence == other);
    bench.commit_now(commands[0]);
    bench.settle_down();
    REQUIRE(bench.delivered["a"].back().sequence == other);
    bench.commit_now(commands[1]);
    bench.settle_down();
    next = bench.publish_keyed("k");
    bench.answer("a", other, ResultKind::kDone);
  }
  SECTION("while a worker has it") {
    bench.commit_now(commands[0]);
    bench.settle_down();
    REQUIRE(bench.delivered["a"].back().sequence == dead);
    next = bench.publish_keyed("k");
    bench.commit_now(commands[1]);
    bench.settle_down();
    SECTION("which answers") {
      bench.answer("a", dead, ResultKind::kDone, bench.delivered["a"].back().number);
    }
    SECTION("which is lost") {
      bench.advance(21s);
      bench.hello("a", kTwo, 1);
    }
  }
  REQUIRE(bench.delivered["a"].back().sequence == next);
  CHECK(bench.counts().dropped == 1);
  bench.answer("a", next, ResultKind::kDone, bench.delivered["a"].back().number);
  CHECK(bench.counts().pending == 0);
}
