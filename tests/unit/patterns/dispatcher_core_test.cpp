#include "dray/balancing/dispatcher_core.hpp"

#include <algorithm>

#include "support/records.hpp"

using namespace dray;
using namespace dray::balancing;
using namespace std::chrono_literals;

namespace {

// Plays spool, network and clock for one dispatcher core with one group "g" of topic "t".
class Bench {
 public:
  explicit Bench(std::vector<spool::RecordedSession> recorded = {}, Sequence boundary = 2,
                 std::unique_ptr<spool::GroupState> state = nullptr,
                 std::uint64_t held_max = 1'000'000,
                 const std::function<void(DispatcherOptions&)>& tweak = {}) {
    if (!state) {
      state = std::make_unique<spool::GroupState>(spool::GroupId{0}, "g");
      state->declare(1, {"t"}, spool::GroupStanding::kAttached);
    }
    std::vector<std::unique_ptr<spool::GroupState>> groups;
    groups.push_back(std::move(state));
    DispatcherOptions options;
    options.epoch = 5;
    options.boundary = boundary;
    options.held_max = held_max;
    options.confirm_within = Milliseconds(0);
    if (tweak) tweak(options);
    next_ = boundary;
    core = std::make_unique<DispatcherCore>(
        options, std::move(groups), recorded,
        [](std::string_view topic) -> std::optional<spool::GroupMask> {
          if (topic != "t") return std::nullopt;
          return spool::GroupMask{1};
        },
        now());
  }

  Now now() const { return {clock.steady(), clock.utc()}; }

  Sequence publish(std::optional<UtcTime> expires_at = std::nullopt,
                   std::optional<UtcTime> deliver_at = std::nullopt) {
    const auto ms = [](const std::optional<UtcTime>& time) {
      return time ? time->time_since_epoch().count() : 0;
    };
    const Sequence sequence = next_++;
    spool::Committed committed;
    committed.first = committed.last = sequence;
    stored[sequence] = test::records_of({sequence}, "envelope " + std::to_string(sequence));
    committed.records = stored[sequence];
    committed.runs.push_back(
        {sequence, 1, 0, 1, Priority::kNormal, false, ms(deliver_at), ms(expires_at)});
    core->on_committed(committed, now());
    settle_down();
    return sequence;
  }

  // So many in one commit: neighbours.
  Sequence publish_run(std::uint32_t count) {
    const Sequence first = next_;
    std::vector<Sequence> sequences;
    for (std::uint32_t i = 0; i < count; ++i) sequences.push_back(next_++);
    for (const auto sequence : sequences) stored[sequence] = test::records_of({sequence}, "run");
    spool::Committed committed;
    committed.first = first;
    committed.last = next_ - 1;
    committed.records = test::records_of(sequences, "run");
    committed.runs.push_back({first, count, 0, 1});
    core->on_committed(committed, now());
    settle_down();
    return first;
  }

  std::uint64_t hellos = 0;

  void hello(const std::string& peer, const Uuid& session, std::uint32_t window = 10,
             std::vector<TokenRange> held = {}) {
    Hello hello;
    hello.count = ++hellos;
    hello.session = session;
    hello.group = "g";
    hello.window_messages = window;
    hello.window_bytes = 1 << 20;
    hello.retry.max_attempts = 3;
    hello.retry.jitter = 0;
    hello.held = std::move(held);
    core->on_frame(peer, hello, now());
    settle_down();
  }

  void answer(const std::string& peer, Sequence sequence, ResultKind kind, std::uint32_t number = 1,
              std::uint64_t epoch = 5) {
    ResultFrame frame;
    frame.items.push_back({kind, {epoch, number, {sequence}}, "because", -1, {}});
    core->on_frame(peer, frame, now());
    settle_down();
  }

  void answer_run(const std::string& peer, Sequence first, std::uint64_t count,
                  std::uint32_t number = 1) {
    ResultFrame frame;
    frame.items.push_back({ResultKind::kDone, {5, number, {}}, "", -1, {}});
    frame.items.back().tokens.sequences.add(first, count);
    core->on_frame(peer, frame, now());
    settle_down();
  }

  void window(const std::string& peer, std::uint32_t messages) {
    core->on_frame(peer, Window{messages, 1 << 20}, now());
    settle_down();
  }

  // As a dispatcher that lives: it looks at the clock at least four times a lease.
  void advance(std::chrono::nanoseconds by) {
    constexpr std::chrono::nanoseconds kMost = 2s;
    do {
      const auto step = std::min(by, kMost);
      clock.advance(step);
      core->tick(now());
      settle_down();
      by -= step;
    } while (by.count() > 0);
  }
  // As one whose process is stopped meanwhile.
  void sleep(std::chrono::nanoseconds by) {
    clock.advance(by);
    core->tick(now());
    settle_down();
  }

  // Carries out all actions, commits at once, until nothing is left to do.
  void settle_down() {
    for (auto actions = core->take_actions(now()); !actions.empty();
         actions = core->take_actions(now())) {
      for (auto& send : actions.sends) {
        auto frame = decode_frame(send.frame, send.records);
        REQUIRE(frame.ok());
        if (const auto* deliver = std::get_if<Deliver>(&*frame)) {
          last_waiting[send.peer] = deliver->waiting;
          ++delivers;
          for (const auto& run : deliver->records.runs) {
            for (std::uint32_t i = 0; i < run.count; ++i) {
              delivered[send.peer].push_back({run.first + i, deliver->number, deliver->attempt});
            }
          }
        } else if (const auto* confirm = std::get_if<Confirm>(&*frame)) {
          for (const auto& range : confirm->tokens) {
            for (const auto sequence : range.sequences.list()) {
              confirmed[send.peer].push_back(sequence);
            }
          }
        } else if (std::holds_alternative<Heartbeat>(*frame)) {
          ++heartbeats;
        } else if (const auto* backlog = std::get_if<Backlog>(&*frame)) {
          told[send.peer].push_back(backlog->waiting);
        } else if (const auto* busy = std::get_if<Busy>(&*frame)) {
          for (const auto& range : busy->tokens) {
            for (const auto sequence : range.sequences.list()) {
              put_off[send.peer].push_back(sequence);
            }
          }
        } else if (const auto* refused = std::get_if<Refused>(&*frame)) {
          refusals.push_back(refused->code);
        }
      }
      for (auto& submission : actions.submissions) {
        if (commits) {
          commit(submission);
        } else {
          uncommitted.push_back(submission);
        }
      }
      for (const auto& refill : actions.refills) {
        const auto& state = core->group_state(refill.group);
        spool::BacklogSlice slice;
        slice.next = refill.request.before;
        if (!refill.request.accounts) {  // all are of normal priority here
          core->on_refilled(refill, std::move(slice));
          continue;
        }
        Sequence skip_from = refill.request.from;
        for (auto each = stored.lower_bound(refill.request.from);
             each != stored.end() && each->first < refill.request.before; ++each) {
          if (each->first >= refill.request.known) ++slice.passed;
          if (skip_from < each->first) slice.skips.emplace_back(skip_from, each->first - 1);
          skip_from = each->first + 1;
          if (!state.is_plain(each->first)) continue;
          slice.runs.push_back({each->first, 1, 0, each->second});
        }
        if (skip_from < slice.next) slice.skips.emplace_back(skip_from, slice.next - 1);
        core->on_refilled(refill, std::move(slice));
      }
      for (const auto& each : actions.key_reads) core->on_key(each.group, each.sequence, 0, now());
      for (const auto& fetch : actions.fetches) {
        core->on_fetched(fetch.group, fetch.sequence,
                         spool::StoredRun{fetch.sequence, 1, 0, stored.at(fetch.sequence)});
        fetched_bytes += stored.at(fetch.sequence)->bytes();
      }
      CHECK(core->group_state(0).counts().balanced());  // P2
    }
  }

  // What was not committed while `commits` was false.
  void commit_all() {
    commits = true;
    for (const auto& submission : std::exchange(uncommitted, {})) commit(submission);
    settle_down();
  }

  const spool::GroupCounts& counts() const { return core->group_state(0).counts(); }

  VirtualClock clock;
  std::unique_ptr<DispatcherCore> core;
  std::map<std::string, std::vector<std::uint64_t>> told;
  std::map<std::string, std::vector<Sequence>> put_off;  // by BUSY
  std::map<std::string, std::uint64_t> last_waiting;
  int heartbeats = 0;
  std::size_t fetched_bytes = 0;
  struct Delivery {
    Sequence sequence = 0;
    std::uint32_t number = 0;
    std::uint32_t attempt = 0;
  };
  int delivers = 0;  // frames
  std::map<std::string, std::vector<Delivery>> delivered;
  std::map<std::string, std::vector<Sequence>> confirmed;
  std::vector<std::string> refusals;
  std::map<Sequence, std::shared_ptr<const spool::Records>> stored;
  std::vector<spool::RecordType> records;
  bool commits = true;
  std::vector<spool::Submission> uncommitted;

  void commit_now(const spool::Submission& submission) { commit(submission); }

 private:
  void commit(const spool::Submission& submission) {
    spool::Committed committed;
    committed.first = next_;
    for (const auto& entry : submission.entries) {
      records.push_back(entry.type);
      ++next_;
    }
    committed.last = next_ - 1;
    if (submission.ticket != 0) committed.tickets.emplace_back(submission.ticket, committed.first);
    core->on_committed(committed, now());
  }
  Sequence next_ = 1;
};

const Uuid kOne = *Uuid::from_text("00000000-0000-4000-8000-000000000001");
const Uuid kTwo = *Uuid::from_text("00000000-0000-4000-8000-000000000002");

}  // namespace

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

TEST_CASE("what is due again is read as far as its bytes allow (P8)") {
  Bench bench({}, 2, nullptr, 1'000'000,
              [](DispatcherOptions& options) { options.ready_bytes_max = 4U << 20; });
  const std::string large(512U << 10, 'x');
  bench.hello("a", kOne, 200);
  std::vector<Sequence> sequences;
  for (int i = 0; i < 100; ++i) {
    sequences.push_back(bench.publish());
    bench.stored[sequences.back()] = test::records_of({sequences.back()}, large);
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
  const auto records = test::records_of({sequence}, "envelope");
  bench.core->on_unsent({"a", encode(Deliver{5, 1, 1, 0}), records->extent(0, 1), records},
                        bench.now());
  bench.advance(1ms);
  REQUIRE(bench.delivered["b"].size() == 1);
  CHECK(bench.delivered["b"][0].attempt == 1);
  CHECK(bench.delivered["b"][0].number == 2);
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
    bench.stored[sequence] = test::records_of({sequence}, "old");
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
