#include "dray/balancing/worker_core.hpp"

#include <random>

#include "support/records.hpp"

using namespace dray;
using namespace dray::balancing;
using namespace std::chrono_literals;

namespace {

// Plays one dispatcher and the handler threads for a worker core.
class Bench {
 public:
  explicit Bench(std::uint32_t window_fixed = 0) {
    WorkerOptions options;
    options.group = "g";
    options.threads = 2;
    options.window_fixed = window_fixed;
    core = std::make_unique<WorkerCore>(options, 1, clock.steady());
  }
  void connect() {
    core->on_connected(0, clock.steady());
    act();
    core->on_frame(0, Welcome{spool, 1, 10'000, 2'000}, nullptr, clock.steady());
    act();
  }
  void deliver(const std::vector<Sequence>& sequences, std::uint32_t number = 1,
               std::size_t link = 0, std::uint64_t epoch = 1) {
    auto deliver = test::deliver_frame(epoch, sequences, number);
    core->on_frame(link, std::move(deliver.frame), deliver.owner, clock.steady());
    act();
  }
  void deliver(Sequence sequence, std::uint32_t number = 1) {
    deliver(std::vector<Sequence>{sequence}, number);
  }
  void confirm(Sequence sequence, std::uint32_t number = 1) {
    core->on_frame(0, Confirm{{{1, number, {sequence}}}}, nullptr, clock.steady());
    act();
  }
  void finish(std::uint64_t job, const Outcome& outcome = done()) {
    core->on_outcome(job, outcome, 1ms, clock.utc());
    act();
  }
  void act() {
    auto actions = core->take_actions(clock.steady());
    for (const auto& jobs : actions.start) {
      runs.push_back(jobs);
      for (const auto& job : jobs.apart()) started.push_back({job.first, job.sequence});
    }
    for (const auto job : actions.cancel.list()) cancelled.push_back(job);
    closed.insert(closed.end(), actions.close.begin(), actions.close.end());
    problems.insert(problems.end(), actions.problems.begin(), actions.problems.end());
    for (auto& send : actions.sends) frames.push_back(std::move(*decode_frame(send.frame)));
  }
  // The frames of type T since the last call of clear().
  template <typename T>
  std::vector<T> sent() const {
    std::vector<T> out;
    for (const auto& frame : frames) {
      if (const auto* each = std::get_if<T>(&frame)) out.push_back(*each);
    }
    return out;
  }

  VirtualClock clock;
  Uuid spool = uuid_v4();
  std::unique_ptr<WorkerCore> core;
  struct Job {
    std::uint64_t id = 0;
    Sequence sequence = 0;
  };
  std::vector<Job> started;
  std::vector<WorkerCore::Jobs> runs;  // the same
  std::vector<std::uint64_t> cancelled;
  std::vector<std::size_t> closed;
  std::vector<std::string> problems;
  std::vector<ProtocolFrame> frames;
};

}  // namespace

TEST_CASE("many results are said in frames that can be read") {
  Bench bench(1'000'000);
  bench.connect();
  constexpr std::uint64_t kMany = 3 * kFrameSequencesMax;
  std::vector<Sequence> sequences;
  for (Sequence each = 1; each <= kMany; ++each) sequences.push_back(each);
  bench.deliver(sequences);
  REQUIRE(bench.started.size() == kMany);
  bench.frames.clear();
  bench.core->on_done({bench.started.front().id, kMany}, 1ms);
  bench.act();
  const auto said = bench.sent<ResultFrame>();
  CHECK(said.size() == 3);
  std::uint64_t count = 0;
  for (const auto& frame : said) {
    for (const auto& item : frame.items) count += item.tokens.sequences.size();
  }
  CHECK(count == kMany);
}

TEST_CASE("from a dispatcher that confirms nothing no more is taken than a HELLO can name") {
  Bench bench(1'000'000);
  bench.connect();
  Sequence next = 1;
  const auto deliver = [&](std::uint64_t count) {
    std::vector<Sequence> sequences;
    for (std::uint64_t i = 0; i < count; ++i) sequences.push_back(2 * next++);  // scattered
    auto frame = test::deliver_frame(1, sequences, 1, 1, "e");
    bench.core->on_frame(0, std::move(frame.frame), frame.owner, bench.clock.steady());
  };
  for (int i = 0; i < 6; ++i) deliver(kFrameSequencesMax);
  auto actions = bench.core->take_actions(bench.clock.steady());
  CHECK(actions.reconnect.empty());
  deliver(1);
  actions = bench.core->take_actions(bench.clock.steady());
  CHECK(actions.reconnect == std::vector<std::size_t>{0});
  CHECK(actions.problems.size() == 1);
  bench.connect();  // says HELLO
  const auto hellos = bench.sent<Hello>();
  REQUIRE(!hellos.empty());
  CHECK(hellos.back().held.at(0).sequences.size() == 6 * kFrameSequencesMax);
}

TEST_CASE("follow-ups of what is not done are not sent, and the reason says so") {
  Bench bench;
  bench.connect();
  bench.deliver(std::vector<Sequence>{7, 8});
  const auto with_more = [](Outcome outcome) {
    outcome.follow_ups().push_back({"t", to_bytes(std::string("more")), {}});
    return outcome;
  };
  bench.finish(bench.started[0].id, with_more(reject("no address")));
  bench.finish(bench.started[1].id, with_more(retry(std::string(2'000, 'x'))));
  std::vector<ResultItem> items;
  for (const auto& frame : bench.sent<ResultFrame>()) {
    items.insert(items.end(), frame.items.begin(), frame.items.end());
  }
  REQUIRE(items.size() == 2);
  for (const auto& item : items) {
    CHECK(item.follow_ups.empty());
    CHECK(item.reason.ends_with("; its follow-ups are not published: they go with done()"));
    CHECK(item.reason.size() <= 1'024);
  }
  CHECK(items[0].kind == ResultKind::kReject);
  CHECK(items[0].reason.starts_with("no address"));
  CHECK(items[1].kind == ResultKind::kRetry);
}

TEST_CASE("a result that finds no room for its follow-ups is said again, and not run again") {
  Bench bench;
  bench.connect();
  bench.deliver(7);
  bench.finish(bench.started[0].id, done().publish("t", std::string("more")));
  REQUIRE(bench.sent<ResultFrame>().size() == 1);
  bench.core->on_frame(0, Busy{{{1, 1, {7}}}}, nullptr, bench.clock.steady());
  bench.act();
  bench.frames.clear();
  bench.clock.advance(200ms);
  bench.core->tick(bench.clock.steady());
  bench.act();
  CHECK(bench.sent<ResultFrame>().empty());
  bench.clock.advance(100ms);
  bench.core->tick(bench.clock.steady());
  bench.act();
  REQUIRE(bench.sent<ResultFrame>().size() == 1);
  CHECK(bench.sent<ResultFrame>()[0].items.at(0).follow_ups.size() == 1);
  CHECK(bench.started.size() == 1);
  bench.confirm(7);
  bench.clock.advance(1s);
  bench.frames.clear();
  bench.core->tick(bench.clock.steady());
  bench.act();
  CHECK(bench.sent<ResultFrame>().empty());
}

TEST_CASE("a step's call is repeated after a reconnect, answered once, and refused with its job") {
  Bench bench;
  bench.connect();
  bench.deliver(7);
  const auto job = bench.started[0].id;
  bench.core->call_step(job, {StepCall::kBegin, 5, "s", ""}, bench.clock.steady());
  bench.act();
  bench.core->on_disconnected(0, bench.clock.steady());
  bench.frames.clear();
  bench.connect();
  REQUIRE(bench.sent<Step>().size() == 1);
  CHECK(bench.sent<Step>()[0].run == 5);
  const Stepped answer{7, 5, StepCall::kBegin, "s", StepAnswer::kRecorded, ""};
  const auto answers = [&] {
    std::vector<StepAnswer> out;
    for (const auto& each : bench.core->take_actions(bench.clock.steady()).stepped) {
      CHECK(each.first == job);
      out.push_back(each.second.answer);
    }
    return out;
  };
  using Answers = std::vector<StepAnswer>;
  for (const auto& other :
       {Stepped{7, 6, StepCall::kBegin, "s", StepAnswer::kRecorded, ""},
        Stepped{7, 5, StepCall::kDone, "s", StepAnswer::kRecorded, ""},
        Stepped{8, 5, StepCall::kBegin, "s", StepAnswer::kRecorded, ""}, answer, answer}) {
    bench.core->on_frame(0, other, nullptr, bench.clock.steady());
  }
  CHECK(answers() == Answers{StepAnswer::kRecorded});
  bench.core->call_step(job, {StepCall::kDone, 5, "s", ""}, bench.clock.steady());
  bench.confirm(7);  // it is another's
  bench.core->call_step(job, {StepCall::kDone, 5, "s", ""}, bench.clock.steady());
  CHECK(answers() == Answers{StepAnswer::kRefused});
}

TEST_CASE("a beginning that is given up is said to be none, also after a reconnect") {
  Bench bench;
  bench.connect();
  bench.deliver(7);
  const auto job = bench.started[0].id;
  bench.core->call_step(job, {StepCall::kBegin, 5, "s", ""}, bench.clock.steady());
  SECTION("while the connection is there") {
    bench.act();
    bench.frames.clear();
    bench.finish(job, retry("stopped"));
  }
  SECTION("while it is not") {
    bench.act();
    bench.core->on_disconnected(0, bench.clock.steady());
    bench.finish(job, retry("stopped"));
    bench.frames.clear();
    bench.connect();
  }
  REQUIRE(bench.sent<Step>().size() == 1);
  CHECK(bench.sent<Step>()[0].what == StepCall::kNotDone);
  CHECK(bench.sent<Step>()[0].run == 5);
  // It comes before the answer, so that the next delivery finds it.
  REQUIRE(bench.sent<ResultFrame>().size() == 1);
  std::size_t step = 0;
  std::size_t result = 0;
  for (std::size_t i = 0; i < bench.frames.size(); ++i) {
    if (std::holds_alternative<Step>(bench.frames[i])) step = i;
    if (std::holds_alternative<ResultFrame>(bench.frames[i])) result = i;
  }
  CHECK(step < result);
}

TEST_CASE("a result is repeated after each reconnect until it is confirmed") {
  Bench bench;
  bench.connect();
  bench.deliver(7);
  bench.finish(bench.started[0].id);
  REQUIRE(bench.sent<ResultFrame>().size() == 1);
  for (int i = 0; i < 3; ++i) {
    bench.core->on_disconnected(0, bench.clock.steady());
    bench.frames.clear();
    bench.connect();
    REQUIRE(bench.sent<Hello>().size() == 1);
    CHECK(bench.sent<Hello>()[0].held.at(0).sequences == SequenceRuns{7});
    REQUIRE(bench.sent<ResultFrame>().size() == 1);
  }
  bench.confirm(7);
  bench.frames.clear();
  bench.connect();
  CHECK(bench.sent<Hello>()[0].held.empty());
  CHECK(bench.sent<ResultFrame>().empty());
}

TEST_CASE("what is granted again while it is here is run once, and answered with the new token") {
  Bench bench;
  bench.connect();
  bench.deliver(7, 1);
  bench.deliver(7, 2);
  CHECK(bench.started.size() == 1);
  bench.finish(bench.started[0].id);
  REQUIRE(bench.sent<ResultFrame>().size() == 1);
  CHECK(bench.sent<ResultFrame>()[0].items[0].tokens.number == 2);
  bench.deliver(7, 3);
  CHECK(bench.started.size() == 1);
  CHECK(bench.sent<ResultFrame>()[1].items[0].tokens.number == 3);
}

TEST_CASE("a retry whose CONFIRM was lost is run when it is delivered again") {
  Bench bench;
  bench.connect();
  bench.deliver(7, 1);
  bench.core->on_outcome(bench.started[0].id, retry("later"), 1ms, bench.clock.utc());
  bench.act();
  REQUIRE(bench.sent<ResultFrame>().size() == 1);
  // The dispatcher took the retry; this is the next attempt. The answer is being repeated.
  bench.core->on_disconnected(0, bench.clock.steady());
  bench.core->on_connected(0, bench.clock.steady());
  bench.core->on_frame(0, Welcome{bench.spool, 1, 10'000, 2'000}, nullptr, bench.clock.steady());
  bench.deliver(7, 2);
  REQUIRE(bench.started.size() == 2);
  CHECK(bench.sent<ResultFrame>().size() == 1);
  bench.finish(bench.started[1].id);
  REQUIRE(bench.sent<ResultFrame>().size() == 2);
  CHECK(bench.sent<ResultFrame>()[1].items[0].tokens.number == 2);
  CHECK(bench.sent<ResultFrame>()[1].items[0].kind == ResultKind::kDone);
}

namespace {

// Short jobs first: so many may lie ready then.
void widen(Bench& bench) {
  for (Sequence i = 1; i <= 400; ++i) {
    bench.deliver(i);
    bench.core->on_outcome(bench.started.back().id, done(), 20us, bench.clock.utc());
    bench.act();
    bench.confirm(i);
  }
  bench.started.clear();
  bench.runs.clear();
  bench.frames.clear();
}

std::vector<Sequence> range(Sequence first, Sequence count) {
  std::vector<Sequence> all;
  for (Sequence i = 0; i < count; ++i) all.push_back(first + i);
  return all;
}

}  // namespace

TEST_CASE("neighbours are one run of jobs, and what is done of them one run of a result") {
  Bench bench;
  bench.connect();
  widen(bench);
  bench.deliver(range(1'000, 100));
  REQUIRE(bench.runs.size() == 1);
  const auto jobs = bench.runs[0];
  CHECK((jobs.count == 100 && jobs.sequence == 1'000));
  CHECK(jobs.envelope(99) == "envelope");
  bench.core->on_done({jobs.first, 60}, 60 * 20us);
  bench.core->on_done({jobs.first + 60, 40}, 40 * 20us);
  bench.act();
  REQUIRE(bench.sent<ResultFrame>().size() == 1);
  const auto result = bench.sent<ResultFrame>()[0];
  REQUIRE(result.items.size() == 1);
  CHECK(result.items[0].tokens.sequences.run_count() == 1);
  CHECK(result.items[0].tokens.sequences.size() == 100);
  bench.core->on_frame(0, Confirm{{{1, 1, result.items[0].tokens.sequences}}}, nullptr,
                       bench.clock.steady());
  CHECK(bench.core->held() == 0);
  bench.frames.clear();
  bench.core->on_disconnected(0, bench.clock.steady());
  bench.connect();
  CHECK(bench.sent<Hello>()[0].held.empty());
}

TEST_CASE("of a run, some are done, one fails, some are given back, some are another's") {
  Bench bench;
  bench.connect();
  widen(bench);
  bench.deliver(range(1'000, 10));
  const auto first = bench.runs.at(0).first;
  bench.core->on_done({first, 2}, 40us);
  bench.core->on_outcome(first + 2, retry("no"), 20us, bench.clock.utc());
  bench.core->on_returned({first + 3, 2});
  bench.core->on_done({first + 5, 1}, 20us);
  bench.act();
  SequenceRuns done_ones;
  SequenceRuns retried;
  SequenceRuns returned;
  for (const auto& frame : bench.sent<ResultFrame>()) {
    for (const auto& item : frame.items) {
      auto& list = item.kind == ResultKind::kDone    ? done_ones
                   : item.kind == ResultKind::kRetry ? retried
                                                     : returned;
      for (const auto& run : item.tokens.sequences) list.add(run);
    }
  }
  CHECK(done_ones == SequenceRuns{1'000, 1'001, 1'005});
  CHECK(retried == SequenceRuns{1'002});
  CHECK(returned == SequenceRuns{1'003, 1'004});
  CHECK(bench.core->held() == 4);
  // Two that run are another's by now: nobody waits for them.
  bench.confirm(1'006);
  bench.confirm(1'008);
  CHECK(bench.cancelled == std::vector<std::uint64_t>{first + 6, first + 8});
  CHECK(bench.core->held() == 2);
  bench.frames.clear();
  bench.core->on_done({first + 6, 4}, 80us);
  bench.act();
  REQUIRE(bench.sent<ResultFrame>().size() == 1);
  CHECK(bench.sent<ResultFrame>()[0].items.at(0).tokens.sequences == SequenceRuns{1'007, 1'009});
  // All that is not confirmed is said again, each as it was.
  bench.core->on_disconnected(0, bench.clock.steady());
  bench.frames.clear();
  bench.connect();
  std::uint64_t said = 0;
  for (const auto& frame : bench.sent<ResultFrame>()) {
    for (const auto& item : frame.items) said += item.tokens.sequences.size();
  }
  CHECK(said == 8);
}

TEST_CASE("a part of a run that is granted again is not run twice, and gets the new number") {
  Bench bench;
  bench.connect();
  widen(bench);
  bench.deliver(range(1'000, 6));
  const auto first = bench.runs.at(0).first;
  bench.core->on_done({first, 2}, 40us);
  bench.core->on_outcome(first + 2, retry("no"), 20us, bench.clock.utc());
  bench.act();
  bench.frames.clear();
  bench.deliver(range(1'001, 4), 2);  // one that is done, one that is retried, two that run
  CHECK(bench.runs.size() == 2);
  CHECK((bench.runs[1].count == 1 && bench.runs[1].sequence == 1'002));
  bench.core->on_done({first + 3, 2}, 40us);
  bench.act();
  SequenceRuns with_two;
  for (const auto& frame : bench.sent<ResultFrame>()) {
    for (const auto& item : frame.items) {
      CHECK(item.tokens.number == 2);
      for (const auto& run : item.tokens.sequences) with_two.add(run);
    }
  }
  with_two.sort();
  CHECK(with_two == SequenceRuns{1'001, 1'003, 1'004});
}

TEST_CASE("a drain returns what did not start, finishes what did, and says BYE") {
  Bench bench;
  bench.connect();
  bench.deliver(1);
  bench.deliver(2);
  bench.frames.clear();
  bench.core->drain();
  bench.act();
  CHECK(bench.sent<Window>().back().messages == 0);
  CHECK(bench.cancelled.size() == 2);
  bench.core->on_returned({bench.started[1].id, 1});  // the first runs already
  bench.act();
  CHECK(bench.sent<ResultFrame>()[0].items[0].kind == ResultKind::kReturned);
  CHECK(!bench.core->drained());
  bench.finish(bench.started[0].id);
  bench.confirm(1);
  CHECK(!bench.core->drained());
  bench.confirm(2);
  CHECK(bench.sent<Bye>().size() == 1);
  CHECK(bench.core->drained());
}

TEST_CASE("a delivery that crosses the BYE does not keep a drained worker") {
  Bench bench;
  bench.connect();
  bench.core->drain();
  bench.act();
  REQUIRE(bench.sent<Bye>().size() == 1);
  bench.deliver(1);
  CHECK(bench.started.empty());
  CHECK(bench.core->drained());
}

TEST_CASE("a stale claim is forgotten: its job is cancelled and its outcome is not sent") {
  Bench bench;
  bench.connect();
  bench.deliver(1);
  bench.confirm(1);
  CHECK(bench.cancelled == std::vector<std::uint64_t>{bench.started[0].id});
  bench.finish(bench.started[0].id);
  CHECK(bench.sent<ResultFrame>().empty());
}

TEST_CASE("short jobs widen the window, long ones narrow it to the threads") {
  Bench bench;
  bench.connect();
  for (Sequence i = 1; i <= 400; ++i) {
    bench.deliver(i);
    bench.core->on_outcome(bench.started.back().id, done(), 20us, bench.clock.utc());
    bench.clock.advance(1ms);
    bench.act();
  }
  CHECK(bench.sent<Window>().back().messages > 150);
  for (Sequence i = 401; i <= 800; ++i) {
    bench.deliver(i);
    bench.core->on_outcome(bench.started.back().id, done(), 1s, bench.clock.utc());
    bench.clock.advance(1ms);
    bench.act();
  }
  CHECK(bench.sent<Window>().back().messages == 2);
}

TEST_CASE("what finds no thread free, where each slot counts, goes back at once") {
  Bench bench;
  bench.connect();
  for (Sequence i = 1; i <= 3; ++i) bench.deliver(i);
  CHECK(bench.started.size() == 2);
  REQUIRE(bench.sent<ResultFrame>().size() == 1);
  CHECK(bench.sent<ResultFrame>()[0].items[0].kind == ResultKind::kReturned);
  CHECK(bench.sent<ResultFrame>()[0].items[0].tokens.sequences == SequenceRuns{3});
  bench.frames.clear();
  bench.finish(bench.started[0].id);
  // The room that it has again is said behind the result.
  REQUIRE(bench.sent<Window>().size() == 1);
  CHECK(bench.sent<Window>()[0].messages >= 2);
  CHECK(std::holds_alternative<Window>(bench.frames.back()));
}

TEST_CASE("what waits behind jobs that do not end goes back, the jobs go on") {
  Bench bench;
  bench.connect();
  for (Sequence i = 1; i <= 400; ++i) {
    bench.deliver(i);
    bench.core->on_outcome(bench.started.back().id, done(), 20us, bench.clock.utc());
    bench.act();
  }
  bench.core->tick(bench.clock.steady());
  const std::size_t before = bench.started.size();
  for (Sequence i = 401; i <= 410; ++i) bench.deliver(i);
  REQUIRE(bench.started.size() == before + 10);
  CHECK(bench.core->next_deadline(bench.clock.steady()) <= bench.clock.steady() + 100ms);
  bench.clock.advance(100ms);
  bench.core->tick(bench.clock.steady());
  bench.act();
  CHECK(bench.cancelled.size() == 8);
  CHECK(bench.cancelled[0] == bench.started[before + 2].id);
}

TEST_CASE("a dispatcher that says that something waits is told the window again") {
  Bench bench;
  bench.connect();
  bench.frames.clear();
  bench.core->on_frame(0, Backlog{5}, nullptr, bench.clock.steady());
  bench.act();
  REQUIRE(bench.sent<Window>().size() == 1);
  CHECK(bench.sent<Window>()[0].messages >= 2);
}

namespace {

void welcome(Bench& bench, std::size_t link, const Uuid& spool, std::uint64_t epoch) {
  bench.core->on_connected(link, bench.clock.steady());
  bench.act();
  bench.core->on_frame(link, Welcome{spool, epoch, 10'000, 2'000}, nullptr, bench.clock.steady());
  bench.act();
}

}  // namespace

TEST_CASE("a link that is retired takes nothing new and closes once all is confirmed") {
  Bench bench;
  bench.connect();
  bench.deliver(7);
  bench.core->retire_link(0, bench.clock.steady());
  bench.act();
  CHECK(bench.sent<Window>().back().messages == 0);
  bench.deliver(8);  // it was on its way
  CHECK(bench.started.size() == 1);
  bench.finish(bench.started[0].id);
  CHECK(bench.closed.empty());
  bench.confirm(7);
  bench.confirm(8);
  CHECK(bench.sent<Bye>().size() == 1);
  CHECK(bench.closed == std::vector<std::size_t>{0});
  CHECK(bench.core->add_link(bench.clock.steady()) == 0);  // the slot is free
}

TEST_CASE("a second way to the same spool waits, and takes over when the first one ends") {
  Bench bench;
  bench.connect();
  const auto second = bench.core->add_link(bench.clock.steady());
  welcome(bench, second, bench.spool, 1);
  CHECK(!bench.core->welcomed(second));
  CHECK(bench.problems.empty());
  CHECK(bench.sent<Bye>().size() == 1);
  const auto hellos = bench.sent<Hello>().size();
  bench.clock.advance(3s);
  bench.core->tick(bench.clock.steady());
  bench.act();
  CHECK(bench.sent<Hello>().size() == hellos);  // no HELLO while the first is served
  bench.core->on_disconnected(0, bench.clock.steady());
  bench.clock.advance(3s);
  bench.core->tick(bench.clock.steady());
  bench.act();
  CHECK(bench.sent<Hello>().size() == hellos + 1);
  bench.core->on_frame(second, Welcome{bench.spool, 1, 10'000, 2'000}, nullptr,
                       bench.clock.steady());
  CHECK(bench.core->welcomed(second));
}

TEST_CASE("what a refused link delivers crosses its BYE, and is not run") {
  Bench bench;
  bench.connect();
  const auto second = bench.core->add_link(bench.clock.steady());
  welcome(bench, second, bench.spool, 2);
  bench.deliver({7}, 1, second, 2);
  CHECK(bench.started.empty());
  CHECK(bench.core->held() == 0);
  bench.core->drain();
  bench.act();
  CHECK(bench.core->drained());
}

TEST_CASE("a session stays with its link while that is connected, also if another is faster") {
  Bench bench;
  bench.connect();
  bench.deliver(7);
  const auto second = bench.core->add_link(bench.clock.steady());
  bench.core->on_disconnected(0, bench.clock.steady());
  bench.core->on_connected(0, bench.clock.steady());  // its WELCOME is on the way
  bench.act();
  bench.frames.clear();
  welcome(bench, second, bench.spool, 2);
  CHECK(bench.sent<Hello>().size() == 1);
  CHECK(bench.sent<Hello>()[0].held.empty());
  CHECK(!bench.core->welcomed(second));
  bench.core->on_frame(0, Welcome{bench.spool, 2, 10'000, 2'000}, nullptr, bench.clock.steady());
  bench.act();
  CHECK(bench.core->welcomed(0));
  CHECK(bench.problems.empty());
}

TEST_CASE(
    "a link whose dispatcher became another's forgets first, then takes over what that left") {
  Bench bench;
  bench.connect();
  bench.deliver(7);
  const Uuid session = bench.sent<Hello>()[0].session;
  const auto other = bench.core->add_link(bench.clock.steady());
  const Uuid other_spool = uuid_v4();
  welcome(bench, other, other_spool, 1);
  bench.deliver({9}, 1, other);
  bench.core->on_disconnected(0, bench.clock.steady());
  bench.core->on_disconnected(other, bench.clock.steady());
  bench.act();
  bench.frames.clear();
  welcome(bench, other, bench.spool, 2);  // its address leads to the first spool now
  REQUIRE(bench.sent<Hello>().size() == 2);
  CHECK(bench.sent<Hello>()[1].session == session);
  CHECK(bench.sent<Hello>()[1].held.at(0).sequences == SequenceRuns{7});
}

TEST_CASE("what was given back and is said again after a reconnect closes the window again") {
  Bench bench;
  bench.connect();
  for (Sequence i = 1; i <= 3; ++i) bench.deliver(i);
  bench.core->on_disconnected(0, bench.clock.steady());
  bench.frames.clear();
  bench.connect();
  REQUIRE(bench.sent<ResultFrame>().size() == 1);
  bench.frames.clear();
  bench.finish(bench.started[0].id);
  CHECK(bench.sent<Window>().size() == 1);
}

TEST_CASE("another incarnation of a spool that is served is refused, loudly") {
  Bench bench;
  bench.connect();
  const auto second = bench.core->add_link(bench.clock.steady());
  welcome(bench, second, bench.spool, 2);
  CHECK(!bench.core->welcomed(second));
  REQUIRE(bench.problems.size() == 1);
  CHECK(bench.problems[0].find("served twice") != std::string::npos);
}

TEST_CASE("a dispatcher that comes back under another address is told what is held of it") {
  Bench bench;
  bench.connect();
  bench.deliver(7);
  bench.deliver(8);
  bench.finish(bench.started[0].id);
  const Uuid session = bench.sent<Hello>()[0].session;
  bench.core->on_disconnected(0, bench.clock.steady());
  bench.core->retire_link(0, bench.clock.steady());
  bench.act();
  CHECK(bench.closed.empty());  // not yet: its answers are wanted
  const auto moved = bench.core->add_link(bench.clock.steady());
  REQUIRE(moved == 1);
  bench.frames.clear();
  welcome(bench, moved, bench.spool, 2);
  REQUIRE(bench.sent<Hello>().size() == 2);
  CHECK(bench.sent<Hello>()[1].session == session);
  CHECK(bench.sent<Hello>()[1].held.at(0).sequences == SequenceRuns{7, 8});
  CHECK(bench.sent<Bye>().size() == 1);  // of the session that it need not have
  CHECK(bench.closed == std::vector<std::size_t>{0});
  bench.core->on_frame(moved, Welcome{bench.spool, 2, 10'000, 2'000}, nullptr,
                       bench.clock.steady());
  bench.finish(bench.started[1].id);
  std::vector<Sequence> answered;
  for (const auto& frame : bench.sent<ResultFrame>()) {
    for (const auto& item : frame.items) {
      for (const auto sequence : item.tokens.sequences.list()) answered.push_back(sequence);
    }
  }
  CHECK(answered == std::vector<Sequence>{7, 8});
}

TEST_CASE("every frame comes back as it was, and no damaged one crashes the reader") {
  Hello hello;
  hello.session = uuid_v4();
  hello.worker = "w";
  hello.group = "g";
  hello.held = {{3, 1, {4, 5, 9}}};
  ResultFrame result;
  const auto envelope = encode_envelope(Draft{"t", "\xc0", {}}, uuid_v4(), UtcTime(1ms));
  result.items.push_back({ResultKind::kDone, {1, 1, {2}}, "", -1, {envelope}});
  const Deliver deliver{2, 1, 1, 0};
  const auto records = test::records_of({1, 2}, "bytes");
  const std::vector<std::string> frames{encode(hello),
                                        encode(Window{3, 4}),
                                        encode(result),
                                        encode(Bye{}),
                                        encode(Heartbeat{}),
                                        encode(Welcome{uuid_v4(), 1, 2, 3}),
                                        encode(Refused{"a", "b"}),
                                        encode(deliver),
                                        encode(Confirm{{{1, 2, {3}}}}),
                                        encode(Backlog{4})};
  std::mt19937 random(17);
  for (std::size_t i = 0; i < frames.size(); ++i) {
    const auto second = frames[i] == encode(deliver) ? records->extent(0, 2) : std::string_view();
    const auto frame = decode_frame(frames[i], second);
    REQUIRE(frame.ok());
    CHECK(frame->index() == i);
    for (int k = 0; k < 5'000; ++k) {
      std::string damaged = frames[i].substr(0, random() % (frames[i].size() + 1));
      if (!damaged.empty()) damaged[random() % damaged.size()] = static_cast<char>(random());
      (void)decode_frame(damaged, second);
      std::string altered(second.substr(0, random() % (second.size() + 1)));
      if (!altered.empty()) altered[random() % altered.size()] = static_cast<char>(random());
      (void)decode_frame(frames[i], altered);
    }
  }
  CHECK(std::get<Hello>(*decode_frame(frames[0])).held[0].sequences == hello.held[0].sequences);
  // The examples of PROTOCOL.md.
  CHECK(encode(Heartbeat{}) == std::string("\x44\x52\x00\x05\x90", 5));
  CHECK(encode(Window{16, 1 << 20}) ==
        std::string("\x44\x52\x00\x02\x92\x10\xce\x00\x10\x00\x00", 11));
  std::string other = frames[3];
  other[2] = 9;
  CHECK(decode_frame(other).error().code == ErrorCode::kUnsupported);
}
