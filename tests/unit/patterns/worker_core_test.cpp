#include "dray/balancing/worker_core.hpp"

#include <random>

using namespace dray;
using namespace dray::balancing;
using namespace std::chrono_literals;

namespace {

// Plays one dispatcher and the handler threads for a worker core.
class Bench {
 public:
  Bench() {
    WorkerOptions options;
    options.group = "g";
    options.threads = 2;
    core = std::make_unique<WorkerCore>(options, 1, clock.steady());
  }
  void connect() {
    core->on_connected(0, clock.steady());
    act();
    core->on_frame(0, Welcome{spool, 1, 10'000, 2'000}, nullptr, clock.steady());
    act();
  }
  void deliver(Sequence sequence, std::uint32_t number = 1) {
    Deliver frame;
    frame.epoch = 1;
    frame.deliveries.push_back({sequence, number, 1, "envelope"});
    core->on_frame(0, frame, nullptr, clock.steady());
    act();
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
    for (auto& job : actions.start) started.push_back(job);
    for (const auto job : actions.cancel) cancelled.push_back(job);
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
  std::vector<WorkerCore::Job> started;
  std::vector<std::uint64_t> cancelled;
  std::vector<ProtocolFrame> frames;
};

}  // namespace

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
    CHECK(bench.sent<Hello>()[0].held.at(0).sequences == std::vector<Sequence>{7});
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

TEST_CASE("a drain returns what did not start, finishes what did, and says BYE") {
  Bench bench;
  bench.connect();
  bench.deliver(1);
  bench.deliver(2);
  bench.core->drain();
  bench.act();
  CHECK(bench.sent<Window>().back().messages == 0);
  CHECK(bench.cancelled.size() == 2);
  bench.core->on_returned(bench.started[1].id);  // the first runs already
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
  for (Sequence i = 1; i <= 200; ++i) {
    bench.deliver(i);
    bench.core->on_outcome(bench.started.back().id, done(), 20us, bench.clock.utc());
    bench.act();
  }
  CHECK(bench.sent<Window>().back().messages > 500);
  for (Sequence i = 201; i <= 500; ++i) {
    bench.deliver(i);
    bench.core->on_outcome(bench.started.back().id, done(), 1s, bench.clock.utc());
    bench.act();
  }
  CHECK(bench.sent<Window>().back().messages == 2);
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
  Deliver deliver;
  deliver.epoch = 2;
  deliver.deliveries.push_back({1, 1, 1, "bytes"});
  const std::vector<std::string> frames{encode(hello),
                                        encode(Window{3, 4}),
                                        encode(result),
                                        encode(Bye{}),
                                        encode(Heartbeat{}),
                                        encode(Welcome{uuid_v4(), 1, 2, 3}),
                                        encode(Refused{"a", "b"}),
                                        encode(deliver),
                                        encode(Confirm{{{1, 2, {3}}}})};
  std::mt19937 random(17);
  for (std::size_t i = 0; i < frames.size(); ++i) {
    const auto frame = decode_frame(frames[i]);
    REQUIRE(frame.ok());
    CHECK(frame->index() == i);
    for (int k = 0; k < 5'000; ++k) {
      std::string damaged = frames[i].substr(0, random() % (frames[i].size() + 1));
      if (!damaged.empty()) damaged[random() % damaged.size()] = static_cast<char>(random());
      (void)decode_frame(damaged);
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
