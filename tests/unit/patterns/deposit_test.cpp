// Remote publishing: both cores over a network that breaks, to a spool that restarts, from a seed.
#include <algorithm>
#include <catch2/catch.hpp>
#include <deque>
#include <functional>
#include <map>
#include <random>

#include "dray/balancing/deposit_core.hpp"
#include "dray/balancing/deposit_desk.hpp"
#include "support/seeds.hpp"

using namespace dray;
using namespace dray::balancing;
using namespace std::chrono_literals;

namespace {

const Uuid kPublisher = *Uuid::from_text("00000000-0000-4000-8000-000000000001");
const Uuid kSpool = *Uuid::from_text("00000000-0000-4000-8000-0000000000aa");

std::string envelope_of(const std::string& body, const std::string& dedup = "") {
  Draft draft{"t", to_bytes(body), {}};
  draft.options.dedup = dedup;
  return encode_envelope(draft, Uuid{}, UtcTime(Milliseconds(1)));
}

struct World {
  explicit World(std::uint64_t seed) : random(seed) { restart(); }

  std::uint64_t draw(std::uint64_t below) { return random() % below; }
  SteadyTime now() const { return clock.steady(); }

  // --- the spool: commits when told, remembers dedup ids, may be full ---
  void restart() {
    ++epoch;
    DepositOptions options;
    options.spool = kSpool;
    options.epoch = epoch;
    options.lease = 1s;
    options.memory = std::chrono::hours(1);
    options.window_messages = 1 + static_cast<std::uint32_t>(draw(20));
    options.window_bytes = 1U << (8 + draw(6));
    desk = std::make_unique<DepositDesk>(options);
    late.clear();  // with the sockets of the one before
    // Some commits were made, their receipts were not sent.
    committing.resize(committing.empty() ? 0 : draw(committing.size() + 1));
    for (auto& each : committing) (void)accept(each);
    committing.clear();
  }
  Result<Receipt> accept(const DepositDesk::Wanted& wanted) {
    const auto& dedup = wanted.draft.options.dedup;
    const auto [entry, fresh] = by_dedup.try_emplace(dedup, accepted.size() + 1);
    if (fresh) accepted.push_back(*from_bytes<std::string>(wanted.draft.body));
    return Receipt{Uuid{}, entry->second, Durability::kDisk, !fresh};
  }
  void commit() {
    for (auto& each : std::exchange(committing, {})) {
      if (full && by_dedup.count(each.draft.options.dedup) == 0) {
        desk->on_receipt(each, Error{ErrorCode::kFull, "full", "", 0});
      } else {
        desk->on_receipt(each, accept(each));
      }
    }
  }

  // --- the network ---
  void connect() {
    if (up) return;
    up = true;
    ++connection;
    core.on_connected(now());
  }
  void disconnect() {
    if (!up) return;
    up = false;
    // What the old connection still brings is read later, in its order.
    if (draw(2) == 0) late.insert(late.end(), to_desk.begin(), to_desk.end());
    to_desk.clear();
    to_core.clear();
    core.on_disconnected();
  }
  std::string peer() const { return "peer " + std::to_string(connection); }

  void pump() {
    core.tick(now());
    desk->tick(now());
    auto from_core = core.take_actions(now());
    for (auto& answer : from_core.answers) answer.done(std::move(answer.receipt));
    for (auto& frame : from_core.frames) {
      if (up) to_desk.emplace_back(peer(), std::move(frame));
    }
    if (from_core.reconnect) disconnect();
    for (std::size_t i = draw(to_desk.size() + late.size() + 1); i > 0; --i) {
      auto& from = to_desk.empty() || (!late.empty() && draw(2) == 0) ? late : to_desk;
      const auto [sender, bytes] = std::move(from.front());
      from.pop_front();
      const auto frame = decode_frame(bytes);
      REQUIRE(frame.ok());
      desk->on_frame(sender, *frame, now());
      auto actions = desk->take_actions(now());
      for (auto& each : actions.publish) committing.push_back(std::move(each));
      keep(actions);
    }
    auto actions = desk->take_actions(now());
    REQUIRE(actions.publish.empty());
    keep(actions);
    for (std::size_t i = draw(to_core.size() + 1); i > 0; --i) {
      const auto bytes = std::move(to_core.front());
      to_core.pop_front();
      const auto frame = decode_frame(bytes);
      REQUIRE(frame.ok());
      core.on_frame(*frame, now());
    }
  }
  void keep(const DepositDesk::Actions& actions) {
    for (const auto& each : actions.sends) {
      if (!up || each.peer != peer()) {
        desk->on_unsent(each.peer);
        continue;
      }
      const auto frame = decode_frame(each.frame);
      if (const auto* refused = std::get_if<Refused>(&*frame)) {
        INFO(refused->code << ": " << refused->reason);
        REQUIRE(refused->code == "unknown-session");  // nothing else is the publisher's fault
      }
      to_core.push_back(each.frame);
    }
  }

  void publish() {
    const std::size_t index = answers.size();
    answers.emplace_back();
    core.publish(
        envelope_of(std::to_string(index)), std::nullopt,
        [this, index](Result<Receipt> receipt) { answers[index].push_back(std::move(receipt)); },
        now());
  }

  std::mt19937_64 random;
  VirtualClock clock;
  std::uint64_t epoch = 0;
  std::unique_ptr<DepositDesk> desk;
  DepositCore core{kPublisher, "p", 1h};
  std::vector<DepositDesk::Wanted> committing;
  std::map<std::string, Sequence> by_dedup;
  std::vector<std::string> accepted;
  bool full = false;
  bool up = false;
  std::uint64_t connection = 0;
  std::deque<std::pair<std::string, std::string>> to_desk, late;  // peer, frame
  std::deque<std::string> to_core;
  std::vector<std::vector<Result<Receipt>>> answers;
};

}  // namespace

TEST_CASE(
    "what is published over a network that breaks is accepted once, in order, and answered once") {
  test::run_seeds(1, test::times_deep(2'000), [](std::uint64_t seed) -> std::optional<std::string> {
    INFO("seed " << seed);
    World world(seed);
    const bool may_be_full = seed % 2 == 0;
    for (int turn = 0; turn < 300; ++turn) {
      world.clock.advance(Milliseconds(world.draw(30)));
      switch (world.draw(12)) {
        case 0:
          world.disconnect();
          break;
        case 1:
          if (world.draw(4) == 0) {
            world.disconnect();
            world.restart();
          }
          break;
        case 2:
          world.full = may_be_full && world.draw(4) == 0;
          break;
        case 3:
        case 4:
          world.commit();
          break;
        case 5:
        case 6:
        case 7:
          if (world.answers.size() < 60) world.publish();
          break;
        default:
          world.connect();
      }
      world.pump();
    }
    world.full = false;
    for (int turn = 0; turn < 5'000 && world.core.pending() > 0; ++turn) {
      world.clock.advance(10ms);
      world.connect();
      world.commit();
      world.pump();
    }
    world.pump();  // the last answers
    REQUIRE(world.core.pending() == 0);
    REQUIRE(world.core.pending_bytes() == 0);
    std::vector<std::string> wanted;
    for (std::size_t i = 0; i < world.answers.size(); ++i) {
      INFO("message " << i);
      REQUIRE(world.answers[i].size() == 1);
      const auto& answer = world.answers[i].front();
      if (answer.ok()) {
        wanted.push_back(std::to_string(i));
        REQUIRE(world.accepted.at(answer->sequence - 1) == wanted.back());
      } else {
        REQUIRE(answer.error().code == ErrorCode::kFull);
      }
    }
    // Once, and nothing that was refused. In order, unless a refusal was lost: then what was
    // refused is deposited again, behind what was not.
    if (may_be_full) {
      std::sort(wanted.begin(), wanted.end());
      std::sort(world.accepted.begin(), world.accepted.end());
    }
    REQUIRE(world.accepted == wanted);
    return std::nullopt;
  });
}

TEST_CASE("a message without a receipt in time is unknown if it was sent, and else was not") {
  VirtualClock clock;
  DepositCore core(kPublisher, "p", 5s);
  std::vector<ErrorCode> codes;
  const auto note = [&](const Result<Receipt>& receipt) { codes.push_back(receipt.error().code); };
  core.publish(envelope_of("1"), std::nullopt, note, clock.steady());
  core.on_connected(clock.steady());
  core.on_frame(PublisherWelcome{kSpool, 1, 10'000, 1, 1'000, 3'600'000}, clock.steady());
  (void)core.take_actions(clock.steady());
  core.publish(envelope_of("2"), std::nullopt, note, clock.steady());  // no room in the window
  clock.advance(5s);
  core.tick(clock.steady());
  for (auto& each : core.take_actions(clock.steady()).answers) each.done(each.receipt);
  CHECK(codes == std::vector<ErrorCode>{ErrorCode::kUnknown, ErrorCode::kTimeout});
  CHECK(core.pending() == 0);
}

TEST_CASE("what the spool has forgotten, or another spool, is not sent again") {
  const bool other = GENERATE(false, true);
  VirtualClock clock;
  DepositCore core(kPublisher, "p", 5h);
  std::vector<ErrorCode> codes;
  core.publish(
      envelope_of("1"), std::nullopt,
      [&](const Result<Receipt>& receipt) { codes.push_back(receipt.error().code); },
      clock.steady());
  core.on_connected(clock.steady());
  core.on_frame(PublisherWelcome{kSpool, 1, 10'000, 100, 1'000, 3'600'000}, clock.steady());
  CHECK(core.take_actions(clock.steady()).frames.size() == 2);
  core.on_disconnected();
  if (!other) clock.advance(2h);
  core.on_connected(clock.steady());
  core.on_frame(PublisherWelcome{other ? kPublisher : kSpool, 2, 10'000, 100, 1'000, 3'600'000},
                clock.steady());
  auto actions = core.take_actions(clock.steady());
  REQUIRE(actions.answers.size() == 1);
  actions.answers[0].done(actions.answers[0].receipt);
  CHECK(codes == std::vector<ErrorCode>{ErrorCode::kUnknown});
  for (const auto& frame : actions.frames) {
    CHECK(!std::holds_alternative<Deposit>(*decode_frame(frame)));
  }
}

TEST_CASE("a gap, too much, and a second session of one publisher end a session; others go on") {
  VirtualClock clock;
  DepositOptions options;
  options.window_messages = 2;
  DepositDesk desk(options);
  const auto refusals = [&] {
    std::vector<std::string> codes;
    for (const auto& each : desk.take_actions(clock.steady()).sends) {
      const auto frame = decode_frame(each.frame);
      if (const auto* refused = std::get_if<Refused>(&*frame)) {
        codes.push_back(each.peer + " " + refused->code);
      }
    }
    return codes;
  };
  const auto bytes = envelope_of("x");
  const auto deposit = [&](std::uint64_t first, std::size_t count) {
    Deposit frame;
    frame.first = frame.lowest = first;
    frame.items.resize(count, {std::nullopt, bytes});
    return frame;
  };
  using Codes = std::vector<std::string>;
  desk.on_frame("a", deposit(1, 1), clock.steady());
  CHECK(refusals() == Codes{"a unknown-session"});
  desk.on_frame("a", PublisherHello{kPublisher, "p", 5}, clock.steady());
  desk.on_frame("a", deposit(6, 1), clock.steady());
  CHECK(refusals() == Codes{"a gap"});
  desk.on_frame("a", PublisherHello{kPublisher, "p", 5}, clock.steady());
  desk.on_frame("a", deposit(5, 3), clock.steady());
  CHECK(refusals() == Codes{"a window"});
  desk.on_frame("a", PublisherHello{kPublisher, "p", 5}, clock.steady());
  desk.on_frame("b", PublisherHello{kSpool, "other", 1}, clock.steady());
  desk.on_frame("c", PublisherHello{kPublisher, "twin", 1, 7}, clock.steady());
  CHECK(refusals() == Codes{"a fenced"});
  // What an old connection said before that, and is read only now.
  desk.on_frame("a", PublisherHello{kPublisher, "p", 1, 6}, clock.steady());
  CHECK(refusals() == Codes{"a unknown-session"});
  CHECK(desk.sessions() == 2);
  clock.advance(11s);
  desk.tick(clock.steady());
  CHECK(desk.sessions() == 0);
}

TEST_CASE("a deposit that is no envelope ends its session; what was before it counts") {
  VirtualClock clock;
  DepositDesk desk(DepositOptions{});
  desk.on_frame("a", PublisherHello{kPublisher, "p", 1}, clock.steady());
  const auto good = envelope_of("x", "mine");
  Deposit frame;
  frame.items = {{Durability::kOs, good}, {std::nullopt, "nonsense"}, {std::nullopt, good}};
  desk.on_frame("a", frame, clock.steady());
  const auto actions = desk.take_actions(clock.steady());
  REQUIRE(actions.publish.size() == 1);
  CHECK(actions.publish[0].draft.options.dedup == "mine");
  CHECK(actions.publish[0].draft.options.durability == Durability::kOs);
  bool told = false;
  for (const auto& each : actions.sends) {
    const auto sent = decode_frame(each.frame);
    if (const auto* refused = std::get_if<Refused>(&*sent)) told = refused->code == "bad-frame";
  }
  CHECK(told);
  CHECK(desk.sessions() == 0);
}

TEST_CASE("a number that went to another spool is not used again here") {
  VirtualClock clock;
  DepositCore core(kPublisher, "p", 5h);
  const auto ignore = [](const Result<Receipt>&) {};
  const auto welcome = [&](const Uuid& spool) {
    core.on_disconnected();
    core.on_connected(clock.steady());
    (void)core.take_actions(clock.steady());
    core.on_frame(PublisherWelcome{spool, 1, 10'000, 100, 1'000, 3'600'000}, clock.steady());
    return core.take_actions(clock.steady());
  };
  core.publish(envelope_of("old"), std::nullopt, ignore, clock.steady());
  CHECK(welcome(kSpool).frames.size() == 1);
  const auto at_other = welcome(kPublisher);
  CHECK(at_other.answers.size() == 1);
  REQUIRE(at_other.frames.size() == 1);
  CHECK(std::get<PublisherHello>(*decode_frame(at_other.frames[0])).next == 2);
  core.publish(envelope_of("new"), std::nullopt, ignore, clock.steady());
  const auto back = welcome(kSpool);
  REQUIRE(back.frames.size() == 1);
  CHECK(std::get<Deposit>(*decode_frame(back.frames[0])).first == 2);
}

TEST_CASE("a fenced publisher says nothing any more") {
  VirtualClock clock;
  DepositCore core(kPublisher, "p", 5h);
  core.on_connected(clock.steady());
  core.on_frame(Refused{"fenced", "another"}, clock.steady());
  (void)core.take_actions(clock.steady());
  core.on_disconnected();
  core.on_connected(clock.steady());
  CHECK(core.take_actions(clock.steady()).frames.empty());
}

TEST_CASE("all publishers together are bounded, and one that does not hear is") {
  VirtualClock clock;
  DepositOptions options;
  options.window_messages = 4;
  options.bytes_max = 1'000;
  DepositDesk desk(options);
  const auto last_code = [&] {
    std::string code;
    for (const auto& each : desk.take_actions(clock.steady()).sends) {
      const auto frame = decode_frame(each.frame);
      if (const auto* refused = std::get_if<Refused>(&*frame)) code = refused->code;
    }
    return code;
  };
  const auto deposit = [](std::uint64_t first, std::uint64_t lowest, const std::string& bytes) {
    Deposit frame;
    frame.first = first;
    frame.lowest = lowest;
    frame.items.push_back({std::nullopt, bytes});
    return frame;
  };
  const auto big = envelope_of(std::string(600, 'x'));
  desk.on_frame("a", PublisherHello{kPublisher, "p", 1}, clock.steady());
  desk.on_frame("b", PublisherHello{kSpool, "q", 1}, clock.steady());
  desk.on_frame("a", deposit(1, 1, big), clock.steady());
  desk.on_frame("b", deposit(1, 1, big), clock.steady());
  CHECK(last_code() == "busy");
  // Its receipts are made, but it never says that it has them.
  desk.on_frame("c",
                PublisherHello{*Uuid::from_text("00000000-0000-4000-8000-0000000000cc"), "r", 1},
                clock.steady());
  for (std::uint64_t number = 1; number <= 5; ++number) {
    desk.on_frame("c", deposit(number, 1, envelope_of("x")), clock.steady());
  }
  CHECK(last_code() == "window");
}
