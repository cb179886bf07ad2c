#include "dray/balancing/dispatcher_core.hpp"

#include <algorithm>

#include "support/dispatcher_bench.hpp"

using namespace dray;
using namespace dray::test;
using Bench = DispatcherBench;

TEST_CASE(
    "a session is recorded before its first delivery, and a result settles and is confirmed") {
  Bench bench;
  const auto sequence = bench.publish();
  bench.hello("a", kOne);
  REQUIRE(bench.delivered["a"].size() == 1);
  CHECK(bench.records.front() == spool::RecordType::kSession);
  CHECK(bench.counts().pending == 1);
  bench.answer("a", sequence, ResultKind::kDone);
  CHECK(bench.counts().done == 1);
  CHECK(bench.confirmed["a"] == std::vector<Sequence>{sequence});
}

TEST_CASE("a window is never exceeded, and its credit comes back with each answer") {
  Bench bench;
  bench.hello("a", kOne, 2);
  std::vector<Sequence> sequences;
  for (int i = 0; i < 5; ++i) sequences.push_back(bench.publish());
  CHECK(bench.delivered["a"].size() == 2);
  for (const auto sequence : sequences) bench.answer("a", sequence, ResultKind::kDone);
  CHECK(bench.delivered["a"].size() == 5);
  CHECK(bench.counts().done == 5);
}

TEST_CASE("a confirmation goes with the next delivery, before it, or soon without one") {
  Bench bench({}, 2, nullptr, 9, [](DispatcherOptions& options) { options.confirm_within = 5ms; });
  bench.hello("a", kOne, 1);
  const auto first = bench.publish();
  const auto second = bench.publish();
  bench.answer("a", first, ResultKind::kDone);
  CHECK(bench.counts().done == 1);
  CHECK(bench.delivered["a"].size() == 2);
  bench.answer("a", second, ResultKind::kDone);
  CHECK(bench.confirmed["a"] == std::vector<Sequence>{});
  CHECK(bench.core->next_deadline(bench.now()) <= bench.now().steady + 5ms);
  bench.advance(4ms);
  bench.publish();
  CHECK(bench.confirmed["a"] == std::vector<Sequence>{first, second});
  bench.answer("a", bench.delivered["a"].back().sequence, ResultKind::kDone);
  CHECK(bench.confirmed["a"].size() == 2);
  bench.advance(4ms);
  CHECK(bench.confirmed["a"].size() == 2);
  bench.advance(1ms);
  CHECK(bench.confirmed["a"].size() == 3);
}

TEST_CASE("neighbours go as a run: in one frame, answered and settled as one") {
  Bench bench;
  bench.hello("a", kOne, 1'000);
  const auto first = bench.publish_run(300);
  CHECK(bench.delivers == 1);
  REQUIRE(bench.delivered["a"].size() == 300);
  CHECK(bench.delivered["a"][299].sequence == first + 299);
  bench.records.clear();
  bench.answer_run("a", first, 300);
  CHECK(bench.counts().done == 300);
  CHECK(bench.records == std::vector<spool::RecordType>{spool::RecordType::kSettlement});
  CHECK(bench.confirmed["a"].size() == 300);
}

TEST_CASE("of a run, parts are settled, repeated, given back and stale, each by itself") {
  Bench bench;
  bench.hello("a", kOne, 100);
  const auto first = bench.publish_run(100);
  bench.answer_run("a", first + 20, 10);
  CHECK(bench.counts().done == 10);
  bench.answer_run("a", first + 15, 20);  // ten of them again
  CHECK(bench.counts().done == 20);
  CHECK(bench.core->stale_results() == 10);
  bench.answer("a", first + 50, ResultKind::kReturned);
  bench.window("a", 100);
  CHECK(bench.delivered["a"].back().sequence == first + 50);
  CHECK(bench.delivered["a"].back().number == 2);
  bench.answer_run("a", first, 100);  // what was not answered, but for the one with number 2
  CHECK(bench.counts().done == 99);
  CHECK(bench.core->stale_results() == 10 + 20 + 1);
  bench.answer("a", first + 50, ResultKind::kDone, 2);
  CHECK(bench.counts().done == 100);
  CHECK(bench.core->session_status().front().outstanding == 0);
}

TEST_CASE("a run is split by the room that there is, and by the group's limits") {
  SECTION("windows") {
    Bench bench;
    bench.hello("a", kOne, 7);
    bench.hello("b", kTwo, 30);
    bench.publish_run(100);
    CHECK(bench.delivered["a"].size() == 7);
    CHECK(bench.delivered["b"].size() == 30);
    bench.window("b", 200);
    CHECK(bench.delivered["b"].size() == 93);
  }
  SECTION("bytes: a window of them may be passed by one") {
    Bench bench;
    bench.hello("a", kOne, 100);
    bench.core->on_frame("a", Window{100, 100}, bench.now());  // two records of 40 bytes fit
    bench.publish_run(10);
    CHECK(bench.delivered["a"].size() == 3);
  }
  SECTION("concurrency") {
    Bench bench({}, 2, nullptr, 9,
                [](DispatcherOptions& options) { options.limits["g"].concurrency = 5; });
    bench.hello("a", kOne, 100);
    const auto first = bench.publish_run(20);
    CHECK(bench.delivered["a"].size() == 5);
    bench.answer_run("a", first, 3);
    CHECK(bench.delivered["a"].size() == 8);
  }
}

TEST_CASE("what of a run never arrived is delivered elsewhere, the rest is not") {
  Bench bench;
  bench.hello("a", kOne, 100);
  const auto first = bench.publish_run(10);
  TokenRange held{5, 1, {}};
  held.sequences.add(first, 4);
  bench.hello("a2", kOne, 100, {held});  // by a new connection
  REQUIRE(bench.delivered["a2"].size() == 6);
  for (const auto& each : bench.delivered["a2"]) {
    CHECK(each.sequence >= first + 4);
    CHECK(each.number == 2);
    CHECK(each.attempt == 1);
  }
  bench.answer_run("a2", first, 4);
  bench.answer_run("a2", first + 4, 6, 2);
  CHECK(bench.counts().done == 10);
}

TEST_CASE("work is spread over sessions, least loaded first") {
  Bench bench;
  bench.hello("a", kOne, 100);
  bench.hello("b", kTwo, 100);
  for (int i = 0; i < 40; ++i) bench.publish();
  CHECK(bench.delivered["a"].size() == 20);
  CHECK(bench.delivered["b"].size() == 20);
}

TEST_CASE("a backlog that leaves 0 is told at once, and its end to who keeps room for it") {
  Bench bench;
  bench.hello("a", kOne, 1);
  const auto first = bench.publish();
  CHECK(bench.told["a"].empty());
  const auto second = bench.publish();
  CHECK(bench.told["a"] == std::vector<std::uint64_t>{1});
  bench.publish();
  CHECK(bench.told["a"].size() == 1);  // not told again before it is four times as much
  for (int i = 0; i < 2; ++i) bench.publish();
  CHECK(bench.told["a"].back() == 4);
  bench.window("a", 10);
  CHECK(bench.delivered["a"].size() == 5);
  CHECK(bench.last_waiting["a"] == 0);  // the delivery said so
  bench.answer("a", first, ResultKind::kDone);
  bench.answer("a", second, ResultKind::kDone);
  CHECK(bench.told["a"].back() == 4);
}

TEST_CASE("each message that comes when nothing waited is told at once, also one by one") {
  Bench bench;
  bench.hello("a", kOne, 0);
  for (std::size_t i = 1; i <= 3; ++i) {
    const auto sequence = bench.publish();
    CHECK(bench.told["a"].size() == i);
    CHECK(bench.told["a"].back() == 1);
    bench.window("a", 1);
    REQUIRE(bench.delivered["a"].size() == i);
    bench.window("a", 0);
    bench.answer("a", sequence, ResultKind::kDone);
  }
}

TEST_CASE("who keeps room for what went elsewhere is told that nothing waits any more") {
  Bench bench;
  bench.hello("a", kOne, 0);
  bench.hello("b", kTwo, 0);
  bench.publish();
  CHECK(bench.told["a"] == std::vector<std::uint64_t>{1});
  CHECK(bench.told["b"] == std::vector<std::uint64_t>{1});
  bench.window("a", 1);
  CHECK(bench.delivered["a"].size() == 1);
  bench.window("b", 1);
  CHECK(bench.delivered["b"].empty());
  CHECK(bench.told["b"] == std::vector<std::uint64_t>{1, 0});
}

TEST_CASE("a heartbeat corrects who believes that something waits") {
  Bench bench;
  bench.hello("a", kOne, 0);
  bench.hello("b", kTwo, 0);
  bench.publish();
  bench.window("a", 1);
  CHECK(bench.told["b"] == std::vector<std::uint64_t>{1});
  bench.advance(2'500ms);
  CHECK(bench.told["b"] == std::vector<std::uint64_t>{1, 0});
}

TEST_CASE("a session that comes while something waits, and has no room, is told") {
  Bench bench;
  bench.hello("a", kOne, 0);
  bench.publish();
  bench.hello("b", kTwo, 0);
  CHECK(bench.told["b"] == std::vector<std::uint64_t>{1});
}

TEST_CASE("a backlog is told again now and then, for a worker that missed it") {
  Bench bench;
  bench.hello("a", kOne, 0);
  bench.publish();
  bench.advance(2'500ms);
  CHECK(bench.told["a"] == std::vector<std::uint64_t>{1, 1});
}

TEST_CASE("after a broken link every session is asked again soon, not at the next heartbeat") {
  Bench bench;
  bench.hello("a", kOne);
  bench.advance(1ms);
  bench.heartbeats = 0;
  bench.core->on_link_broken(bench.now());
  bench.settle_down();
  CHECK(bench.heartbeats == 1);
  for (int i = 0; i < 100; ++i) bench.advance(1ms);
  CHECK(bench.heartbeats == 4);
}

TEST_CASE("a silent session is lost after one lease, not later") {
  Bench bench;
  bench.hello("a", kOne);
  bench.advance(9'999ms);
  CHECK(bench.core->session_status().size() == 1);
  CHECK(bench.core->next_deadline(bench.now()) <= bench.now().steady + 1ms);
  bench.advance(1ms);
  CHECK(bench.core->session_status().empty());
}

TEST_CASE("a dispatcher that was stopped for longer than a lease takes nobody for lost") {
  Bench bench({}, 2, nullptr, 1'000'000,
              [](DispatcherOptions& options) { options.reconnect_grace = 2s; });
  const auto first = bench.publish();
  const auto second = bench.publish();
  bench.hello("a", kOne, 1);
  bench.hello("b", kTwo, 1);
  bench.sleep(15s);
  CHECK(bench.core->session_status().size() == 2);
  CHECK(bench.core->next_deadline(bench.now()) > bench.now().steady);
  // What they said meanwhile is read by now.
  bench.answer("a", first, ResultKind::kDone);
  CHECK(bench.counts().done == 1);
  bench.advance(9'999ms);
  CHECK(bench.core->session_status().size() == 2);
  bench.advance(1ms);
  CHECK(bench.core->session_status().empty());  // silent for a lease in which it listened
  bench.answer("b", second, ResultKind::kDone);
  CHECK(bench.counts().done == 1);
}

TEST_CASE("a peer that takes nothing has to say HELLO when it speaks again, and loses nothing") {
  Bench bench;
  bench.hello("a", kOne);
  const auto sequence = bench.publish();
  bench.core->on_stuck({"a", encode(Heartbeat{})}, bench.now());
  bench.core->on_frame("a", Heartbeat{}, bench.now());
  bench.settle_down();
  CHECK(bench.refusals == std::vector<std::string>{"unknown-session"});
  bench.hello("a", kOne, 10, {{5, 1, {sequence}}});
  bench.advance(3s);  // more than reconnect_grace
  bench.answer("a", sequence, ResultKind::kDone);
  CHECK(bench.counts().done == 1);
  CHECK(bench.delivered["a"].size() == 1);
}

TEST_CASE("a HELLO that makes deliveries up takes nothing from whoever has them") {
  Bench bench;
  bench.hello("a", kOne, 100);
  const auto first = bench.publish_run(20);
  REQUIRE(bench.delivered["a"].size() == 20);
  TokenRange made_up{99, 1, {}};
  made_up.sequences.add(1, 1'000);
  bench.hello("b", kTwo, 100, {made_up});
  CHECK(bench.confirmed["b"].size() == 1'000);
  CHECK(bench.confirmed["a"].empty());
  CHECK(bench.delivered["b"].empty());
  bench.answer_run("a", first, 20);
  CHECK(bench.counts().done == 20);
  CHECK(bench.confirmed["a"].size() == 20);
}

TEST_CASE("results that nobody asked for are confirmed in frames that can be read, however many") {
  Bench bench;
  bench.hello("a", kOne);
  Sequence next = 1;
  for (int i = 0; i < 2; ++i) {  // in one turn
    ResultFrame frame;
    frame.items.push_back({ResultKind::kDone, {5, 1, {}}, "", -1, {}});
    frame.items.back().tokens.sequences.add(next, kRunSequencesMax);
    next += kRunSequencesMax;
    bench.core->on_frame("a", frame, bench.now());
  }
  bench.settle_down();  // decodes what is sent
  CHECK(bench.confirmed["a"].size() == 2 * kRunSequencesMax);
  // Scattered ones are not gathered without end.
  ResultFrame frame;
  frame.items.push_back({ResultKind::kDone, {5, 1, {}}, "", -1, {}});
  for (Sequence i = 0; i < 3 * kFrameSequencesMax; ++i) {
    frame.items.back().tokens.sequences.add(next + 2 * i);
  }
  bench.core->on_frame("a", frame, bench.now());
  const auto actions = bench.core->take_actions(bench.now());
  CHECK(actions.sends.size() == 3);
}

TEST_CASE("a session has no more deliveries unconfirmed than one HELLO names") {
  Bench bench({}, 2, nullptr, 1'000'000,
              [](DispatcherOptions& options) { options.unconfirmed_max = 50; });
  bench.hello("a", kOne, 40);
  const auto first = bench.publish_run(200);
  CHECK(bench.delivered["a"].size() == 40);
  bench.commits = false;
  bench.answer_run("a", first, 40);
  CHECK(bench.delivered["a"].size() == 50);
  bench.answer_run("a", first + 40, 10);
  CHECK(bench.delivered["a"].size() == 50);
  bench.commit_all();
  CHECK(bench.confirmed["a"].size() == 50);
  CHECK(bench.delivered["a"].size() == 90);
  for (Sequence done = 50; done < 200; done += 10) bench.answer_run("a", first + done, 10);
  CHECK(bench.counts().done == 200);
}

TEST_CASE("a HELLO that is repeated by the same connection takes nothing back") {
  Bench bench;
  bench.hello("a", kOne);
  bench.publish();
  REQUIRE(bench.delivered["a"].size() == 1);  // it may still be on its way
  bench.hello("a", kOne);
  CHECK(bench.delivered["a"].size() == 1);
  bench.hello("a2", kOne);  // a new connection: it never arrived
  REQUIRE(bench.delivered["a2"].size() == 1);
  CHECK(bench.delivered["a2"][0].number == 2);
}

TEST_CASE("a delivery that could not be sent is no attempt, and is free for others at once") {
  Bench bench;
  bench.hello("a", kOne);
  const auto sequence = bench.publish();
  bench.hello("b", kTwo);
  REQUIRE(bench.delivered["a"].size() == 1);
  const auto records = records_of({sequence}, "envelope");
  bench.core->on_unsent({"a", encode(Deliver{5, 1, 1, 0}), records->extent(0, 1), records},
                        bench.now());
  bench.advance(1ms);
  REQUIRE(bench.delivered["b"].size() == 1);
  CHECK(bench.delivered["b"][0].attempt == 1);
  CHECK(bench.delivered["b"][0].number == 2);
}

TEST_CASE("a reconnect inside the grace keeps what is held, and gives back what never arrived") {
  Bench bench;
  bench.hello("a", kOne);
  const auto first = bench.publish();
  const auto second = bench.publish();
  bench.core->on_unsent({"a", ""}, bench.now());
  bench.advance(1s);
  bench.hello("a2", kOne, 10, {{5, 1, {first}}});
  REQUIRE(bench.delivered["a2"].size() == 1);
  CHECK(bench.delivered["a2"][0].sequence == second);
  CHECK(bench.delivered["a2"][0].number == 2);
  CHECK(bench.delivered["a2"][0].attempt == 1);
  bench.answer("a2", first, ResultKind::kDone, 1);
  bench.answer("a2", second, ResultKind::kDone, 2);
  CHECK(bench.counts().done == 2);
}

TEST_CASE("after a restart older messages wait for recorded sessions, new ones flow at once") {
  auto state = std::make_unique<spool::GroupState>(spool::GroupId{0}, "g");
  state->declare(1, {"t"}, spool::GroupStanding::kAttached);
  for (int i = 0; i < 3; ++i) state->accept();  // sequences 2, 3, 4
  state->skip(1, 1);
  state->skip(5, 9);
  state->delivered(2, 1, 4);
  Bench bench({{kOne, 0, "old worker"}}, 10, std::move(state));
  for (Sequence sequence = 2; sequence <= 4; ++sequence) {
    bench.stored[sequence] = records_of({sequence}, "old");
  }
  SECTION("the session returns: what it holds is not delivered a second time (P5)") {
    bench.hello("b", kTwo);
    const auto fresh = bench.publish();
    REQUIRE(bench.delivered["b"].size() == 1);
    CHECK(bench.delivered["b"][0].sequence == fresh);
    bench.hello("a", kOne, 10, {{4, 1, {2, 3}}});  // 3: granted, and the record was lost
    bench.advance(0s);
    std::vector<Sequence> all;
    for (const auto* peer : {"a", "b"}) {
      for (const auto& each : bench.delivered[peer]) all.push_back(each.sequence);
    }
    std::sort(all.begin(), all.end());
    CHECK(all == std::vector<Sequence>{4, fresh});
    bench.answer("a", 2, ResultKind::kDone, 1, 4);
    bench.answer("a", 3, ResultKind::kDone, 1, 4);
    CHECK(bench.counts().done == 2);
    CHECK(bench.core->stale_results() == 0);
  }
  SECTION("the session stays away: one lease later all is delivered, and its late word is stale") {
    bench.hello("b", kTwo);
    CHECK(bench.delivered["b"].empty());
    bench.core->on_frame("b", Heartbeat{}, bench.now());
    bench.advance(9s);
    bench.core->on_frame("b", Heartbeat{}, bench.now());
    bench.advance(1s);
    CHECK(bench.delivered["b"].size() == 3);
    bench.hello("a", kOne, 10, {{4, 1, {2}}});
    CHECK(bench.confirmed["a"] == std::vector<Sequence>{2});
    bench.answer("a", 2, ResultKind::kDone, 1, 4);
    CHECK(bench.counts().done == 0);
  }
}

TEST_CASE("what an old connection brings late does not take the session from the new one") {
  Bench bench;
  const auto sequence = bench.publish();
  bench.hello("a", kOne);
  bench.hello("b", kOne, 10, {{5, 1, {sequence}}});
  Hello late;
  late.session = kOne;
  late.group = "g";
  late.count = 1;  // said before the one by which "b" came
  bench.core->on_frame("a", late, bench.now());
  bench.settle_down();
  CHECK(bench.refusals == std::vector<std::string>{"unknown-session"});
  CHECK(bench.delivered["b"].empty());  // nothing was given back
  bench.answer("b", sequence, ResultKind::kDone);
  CHECK(bench.counts().done == 1);
}

TEST_CASE("a window is bounded, whatever a worker says") {
  Bench bench({}, 2, nullptr, 9,
              [](DispatcherOptions& options) { options.window_messages_max = 5; });
  for (int i = 0; i < 9; ++i) bench.publish();
  bench.hello("a", kOne, 4'000'000'000);
  CHECK(bench.delivered["a"].size() == 5);
  bench.core->on_frame("a", Window{4'000'000'000, 1ULL << 60}, bench.now());
  bench.settle_down();
  CHECK(bench.delivered["a"].size() == 5);
}

TEST_CASE("a connection has one session: one that says HELLO for many does not keep others out") {
  Bench bench({}, 2, nullptr, 9, [](DispatcherOptions& options) { options.sessions_max = 3; });
  const auto sequence = bench.publish();
  for (int i = 0; i < 10; ++i) bench.hello("flood", uuid_v4());
  CHECK(bench.refusals.empty());
  bench.hello("b", kOne);
  bench.core->on_frame("flood", Bye{}, bench.now());
  bench.settle_down();
  CHECK(bench.delivered["b"].size() == 1);
  bench.hello("c", uuid_v4());
  bench.hello("d", uuid_v4());
  bench.hello("e", uuid_v4());
  CHECK(bench.refusals == std::vector<std::string>{"too-many-sessions"});
  bench.answer("b", sequence, ResultKind::kDone, bench.delivered["b"].at(0).number);
  CHECK(bench.counts().done == 1);
  CHECK(bench.counts().dead == 0);
}

TEST_CASE("frames of strangers are refused: no session, no such group") {
  Bench bench;
  bench.core->on_frame("x", Heartbeat{}, bench.now());
  Hello hello;
  hello.group = "nowhere";
  bench.core->on_frame("x", hello, bench.now());
  bench.settle_down();
  CHECK(bench.refusals == std::vector<std::string>{"unknown-session", "unknown-group"});
}

TEST_CASE("answers that name a million deliveries of nobody cost no more than a few (P9)") {
  Bench bench;
  bench.hello("a", kOne);
  const auto sequence = bench.publish();
  constexpr std::uint64_t kMany = 1U << 20;
  constexpr int kFrames = 200;
  ResultFrame frame;
  frame.items.push_back({ResultKind::kRetry, {5, 1, {}}, "because", -1, {}});
  frame.items.back().tokens.sequences.add(sequence, kMany);
  Hello hello;
  hello.group = "g";
  hello.window_messages = 10;
  hello.window_bytes = 1 << 20;
  hello.retry.max_attempts = 3;
  hello.held.push_back({5, 1, {}});
  hello.held.back().sequences.add(sequence, kMany);
  const auto begun = std::chrono::steady_clock::now();
  for (int i = 0; i < kFrames; ++i) {
    bench.core->on_frame("a", frame, bench.now());
    hello.count = static_cast<std::uint64_t>(i) + 1;
    hello.session = uuid_v4();
    bench.core->on_frame("b", hello, bench.now());
    (void)bench.core->take_actions(bench.now());
  }
  CHECK(std::chrono::steady_clock::now() - begun < 1s);         // one by one: minutes
  CHECK(bench.core->stale_results() == kFrames * (kMany - 1));  // it has the first
  CHECK(bench.counts().pending == 1);
}
