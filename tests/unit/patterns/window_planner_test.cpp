#include "dray/balancing/window_planner.hpp"

#include <catch2/catch.hpp>
#include <numeric>

using namespace dray;
using namespace dray::balancing;
using namespace std::chrono_literals;

namespace {

using Links = std::vector<WindowPlanner::Link>;

constexpr SteadyTime kNow{1'000s};

Links open_links(std::size_t count) {
  Links links(count);
  for (auto& link : links) link.open = true;
  return links;
}

WindowPlanner planner_of(std::uint32_t threads, std::chrono::nanoseconds job) {
  WindowPlanner planner({threads});
  for (int i = 0; i < 2'000; ++i) planner.on_outcomes(1, job);
  return planner;
}

std::uint32_t offered(const Links& links) {
  return std::accumulate(links.begin(), links.end(), 0U, [](std::uint32_t sum, const auto& link) {
    return sum + (link.said > link.held ? link.said - link.held : 0);
  });
}

}  // namespace

TEST_CASE("room is one delivery for each thread until more is known") {
  CHECK(WindowPlanner({4}).room(false) == 4);
  CHECK(WindowPlanner({4, 2}).room(true) == 2);  // the cap of the config
}

TEST_CASE("long jobs get hardly more room than the threads, short ones thousands") {
  CHECK(planner_of(4, 1s).room(true) == 4);
  CHECK(planner_of(4, 10ms).room(true) <= 5);
  CHECK(planner_of(4, 10us).room(false) >= 800);
  CHECK(planner_of(4, 1us).room(false) >= 8'000);
  CHECK(planner_of(4, 1us).room(false) <= 8'192);
}

TEST_CASE("a few long jobs among many short ones leave no room to take ahead") {
  WindowPlanner planner({4});
  for (int i = 0; i < 10'000; ++i) planner.on_outcomes(1, i % 100 == 0 ? 500ms : 1ms);
  CHECK(planner.room(false) == 4);
  CHECK(planner.is_fine());
}

TEST_CASE("handlers that end nothing make the room small at once, and it grows back") {
  auto planner = planner_of(4, 20us);
  CHECK(!planner.is_fine());
  planner.on_stall(200ms);
  CHECK(planner.room(false) == 4);
  for (int i = 0; i < 20'000; ++i) planner.on_outcomes(1, 20us);
  CHECK(planner.room(false) > 100);
}

TEST_CASE("free slots that nobody waits for are offered to all") {
  auto planner = planner_of(4, 1s);
  auto links = open_links(3);
  planner.plan(links, kNow);
  for (const auto& link : links) CHECK(link.said == 4);
}

TEST_CASE(
    "each free slot is offered to one dispatcher that waits, and taken back from the others") {
  auto planner = planner_of(4, 1s);
  auto links = open_links(4);
  planner.plan(links, kNow);
  links[1].waiting = 100;
  links[2].waiting = 50;
  planner.plan(links, kNow);
  CHECK(links[0].said == 0);
  CHECK(links[3].said == 0);
  CHECK(offered(links) == 4);
}

TEST_CASE("slots go by what waits, and a flood does not starve another") {
  auto planner = planner_of(8, 1s);
  auto links = open_links(3);
  links[0].waiting = 1'000'000;
  links[1].waiting = 500'000;
  links[2].waiting = 1;
  std::vector<std::uint64_t> slots(3, 0);
  for (int i = 0; i < 3'000; ++i) {
    for (auto& link : links) link.offered = 0;
    planner.plan(links, kNow);
    for (std::size_t k = 0; k < 3; ++k) slots[k] += links[k].said;
  }
  CHECK(slots[0] > slots[1] * 5 / 4);
  CHECK(slots[1] > slots[2]);
  // At most one for its message, and mostly that one.
  CHECK(slots[2] > 1'500);
  CHECK(slots[2] <= 3'000);
}

TEST_CASE("when all slots are in use nobody may send") {
  auto planner = planner_of(4, 1s);
  auto links = open_links(2);
  planner.plan(links, kNow);
  links[0].held = 4;
  planner.plan(links, kNow);
  CHECK(links[0].said <= 4);
  CHECK(links[1].said == 0);
}

TEST_CASE("a shrinking window is said before the results, an opening one behind them") {
  auto planner = planner_of(2, 1s);
  auto links = open_links(2);
  planner.plan(links, kNow);
  links[0].held = 2;
  auto said = planner.plan(links, kNow);
  REQUIRE(said.size() == 1);
  CHECK(said[0].link == 1);
  CHECK(said[0].before_results);
  links[0].held = 1;
  links[0].closed = true;  // it gave one back
  said = planner.plan(links, kNow);
  for (const auto& each : said) CHECK(!each.before_results);
  CHECK(said.size() == 2);
}

TEST_CASE("shares of a large room follow what waits; idle dispatchers keep a small one") {
  auto planner = planner_of(4, 10us);
  auto links = open_links(3);
  links[0].waiting = 30'000;
  links[1].waiting = 10'000;
  planner.plan(links, kNow);
  CHECK(links[0].said > links[1].said * 3 / 2);
  CHECK(links[0].said + links[1].said <= planner.room(true));
  CHECK(links[2].said >= 1);
  CHECK(links[2].said <= planner.room(true) / 8);
}

TEST_CASE("windows in bytes share the limit of all links") {
  WindowPlanner planner({4, 1'000, 1 << 20});
  for (int i = 0; i < 2'000; ++i) planner.on_outcomes(1, 1us);
  auto links = open_links(2);
  links[0].waiting = links[1].waiting = 100'000;
  std::uint64_t bytes = 0;
  for (const auto& said : planner.plan(links, kNow)) bytes += said.bytes;
  CHECK(bytes <= (1 << 20) + 2);
}

TEST_CASE("of a hundred dispatchers only a few are told of every free slot") {
  auto planner = planner_of(4, 1s);
  auto links = open_links(100);
  CHECK(planner.plan(links, kNow).size() == 8);
  links[50].waiting = 1;
  CHECK(planner.plan(links, kNow).size() <= 10);
  CHECK(links[50].said > 0);
}
