#include "dray/spool/group_state.hpp"

#include <catch2/catch.hpp>

#include "dray/spool/checkpoint.hpp"

using namespace dray;
using namespace dray::spool;

namespace {

GroupState group_with(std::uint64_t messages) {
  GroupState state(0, "g");
  state.declare(1, {"t"}, GroupStanding::kAttached);
  state.accept(messages);
  return state;
}

StepRecord step(Sequence sequence, StepCall what, std::uint64_t run = 1) {
  return {0, sequence, what, run, "charge", Binary{what == StepCall::kDone ? "\x01" : ""}, 5};
}

}  // namespace

TEST_CASE("a checkpoint keeps the steps of hundreds of thousands of messages") {
  constexpr std::uint64_t kMessages = 200'000;
  auto state = group_with(kMessages);
  for (Sequence each = 2; each < kMessages + 2; ++each) state.step(step(each, StepCall::kDone));
  Checkpoint checkpoint;
  checkpoint.spool.bytes = std::string(16, 's');
  checkpoint.groups.push_back(state.snapshot());
  const auto decoded = decode_checkpoint(encode(checkpoint));
  REQUIRE(decoded.checkpoint.has_value());
  auto again = GroupState::restore(decoded.checkpoint->groups.at(0));
  REQUIRE(again.ok());
  CHECK(again->steps().bytes() == state.steps().bytes());
  REQUIRE(again->steps().find(kMessages, "charge") != nullptr);
  CHECK(again->steps().find(kMessages, "charge")->done);
  auto broken = decoded.checkpoint->groups.at(0);
  broken.steps.bytes.pop_back();
  CHECK(!GroupState::restore(broken).ok());
}

TEST_CASE("steps go with their message, and only with it") {
  auto state = group_with(9);
  for (Sequence each = 2; each < 8; ++each) state.step(step(each, StepCall::kBegin));
  state.settle(2, Settlement::kDone);
  CHECK(state.steps().find(2) == nullptr);
  state.step(step(2, StepCall::kBegin));  // late: it is settled
  CHECK(state.steps().find(2) == nullptr);
  CHECK(state.dead({0, 3, 1, 1, "rejected", "no", "w", 0, 0}, 20));
  CHECK(state.steps().find(3) != nullptr);
  CHECK(state.revive(3));
  CHECK(state.steps().find(3) != nullptr);
  // A message with an entry may be open though its place is damaged.
  state.damage({3, 5, 2});
  CHECK(state.steps().find(3) != nullptr);
  CHECK(state.steps().find(4) == nullptr);
  CHECK(state.steps().find(5) == nullptr);
  CHECK(state.steps().find(6) != nullptr);
  state.declare(30, {}, GroupStanding::kDropped);
  CHECK(state.steps().empty());
  CHECK(state.steps().bytes() == 0);
}

TEST_CASE("a beginning is undone by its own run alone, and an end stands") {
  auto state = group_with(3);
  state.step(step(2, StepCall::kBegin, 7));
  state.step(step(2, StepCall::kNotDone, 8));
  CHECK(state.steps().find(2, "charge") != nullptr);
  state.step(step(2, StepCall::kNotDone, 7));
  CHECK(state.steps().find(2) == nullptr);
  CHECK(state.steps().bytes() == 0);
  state.step(step(2, StepCall::kDone, 9));
  state.step(step(2, StepCall::kBegin, 10));
  state.step(step(2, StepCall::kNotDone, 9));
  CHECK(state.steps().find(2, "charge")->done);
}
