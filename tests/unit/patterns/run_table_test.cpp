#include "dray/balancing/run_table.hpp"

#include <catch2/catch.hpp>
#include <map>
#include <random>

#include "support/seeds.hpp"

using namespace dray;
using namespace dray::balancing;
using namespace dray::test;

namespace {

// Says of each number what it is: its own and a colour that only some share.
struct Common {
  std::uint64_t number = 0;
  int colour = 0;

  void skip(std::uint64_t count) { number += count; }
  bool goes_on(const Common& next, std::uint64_t count) const {
    return colour == next.colour && number + count == next.number;
  }
};
using Table = RunTable<Common>;

struct Entry {
  int colour = 0;
  bool marked = false;
};
constexpr std::uint64_t kNumbers = 400;

// A table and a map that are told the same.
class Pair {
 public:
  explicit Pair(std::uint64_t seed) : random_(seed) {}

  std::optional<std::string> step() {
    const SequenceRun range{1 + draw(kNumbers), 1 + (draw(3) == 0 ? draw(200) : draw(6))};
    switch (draw(6)) {
      case 0:
      case 1: {
        const int colour = static_cast<int>(draw(3));
        table_.add(range.first, static_cast<std::uint32_t>(range.count), {range.first, colour});
        for (auto number = range.first; number < range.end(); ++number) {
          map_[number] = {colour, false};
        }
        break;
      }
      case 2:
      case 3:
        table_.for_parts(range, [&](Table::Run& run, std::uint64_t first, std::uint64_t end) {
          table_.mark(run, first, end);
        });
        for (auto number = range.first; number < range.end(); ++number) {
          if (const auto found = map_.find(number); found != map_.end()) {
            found->second.marked = true;
          }
        }
        break;
      case 4:
        table_.for_parts(range, [&](Table::Run& run, std::uint64_t first, std::uint64_t end) {
          table_.erase(run, first, end);
        });
        map_.erase(map_.lower_bound(range.first), map_.lower_bound(range.end()));
        break;
      default:
        if (!table_.contains(range.first)) break;
        auto& alone = table_.isolate(range.first);
        if (alone.first() != range.first || alone.end() != range.first + 1) return "not alone";
        if (draw(2) == 0) {
          table_.unmark(alone, range.first);
          map_[range.first].marked = false;
        }
        alone.common.colour = 7;
        map_[range.first].colour = 7;
    }
    return compare();
  }

 private:
  std::uint64_t draw(std::uint64_t below) { return random_() % below; }

  std::optional<std::string> compare() const {
    if (table_.size() != map_.size() || table_.empty() != map_.empty()) return "another size";
    std::map<std::uint64_t, Entry> seen;
    std::uint64_t end = 0;
    std::string fault;
    table_.for_runs([&](const Table::Run& run) {
      if (run.first() < end) fault = "runs overlap";
      end = run.end();
      std::uint32_t here = 0;
      Table::for_here(run, run.first(), run.end(), [&](const SequenceRun& part) {
        here += static_cast<std::uint32_t>(part.count);
        for (auto number = part.first; number < part.end(); ++number) {
          seen[number] = {run.common.colour, run.is_marked(number)};
        }
      });
      if (here != run.here()) fault = "a run's count is wrong";
      if (run.common.number != run.first()) fault = "what a run says of its first is wrong";
      std::uint32_t marked = 0;
      std::uint32_t unmarked = 0;
      Table::for_marked(run, run.first(), run.end(), [&](const SequenceRun& part) {
        marked += static_cast<std::uint32_t>(part.count);
      });
      Table::for_unmarked(run, run.first(), run.end(), [&](const SequenceRun& part) {
        unmarked += static_cast<std::uint32_t>(part.count);
      });
      if (marked != run.marked() || marked + unmarked != here) fault = "marks are miscounted";
    });
    if (!fault.empty()) return fault;
    if (seen.size() != map_.size()) return "others are here";
    for (const auto& [number, entry] : map_) {
      const auto found = seen.find(number);
      if (found == seen.end() || found->second.colour != entry.colour ||
          found->second.marked != entry.marked || !table_.contains(number)) {
        return "number " + std::to_string(number) + " is not what it was told to be";
      }
    }
    for (const std::uint64_t number : {std::uint64_t{0}, kNumbers + 300}) {
      if (table_.contains(number)) return "one that was never added is here";
    }
    return std::nullopt;
  }

  std::mt19937_64 random_;
  Table table_;
  std::map<std::uint64_t, Entry> map_;
};

}  // namespace

TEST_CASE("a table of runs says the same as a map of numbers") {
  run_seeds(1, times_deep(100), [](std::uint64_t seed) -> std::optional<std::string> {
    Pair pair(seed);
    for (int i = 0; i < 200; ++i) {
      if (const auto fault = pair.step()) return "step " + std::to_string(i) + ": " + *fault;
    }
    return std::nullopt;
  });
}

TEST_CASE("neighbours that have the same in common are one run, up to a bound") {
  Table table;
  std::uint64_t next = 1;
  const auto runs = [&] {
    std::size_t count = 0;
    table.for_runs([&](const Table::Run&) { ++count; });
    return count;
  };
  for (int i = 0; i < 10; ++i, next += 100) table.add(next, 100, {next, 1});
  CHECK(runs() == 1);
  table.add(next, 100, {next, 2});
  CHECK(runs() == 2);
  CHECK(table.size() == 1'100);
  CHECK(table.any({1'050, 1'000}));
  CHECK(!table.any({1'101, 1'000}));
  table.erase(500);
  CHECK(!table.any({500, 1}));
  CHECK(table.all_here().run_count() == 2);
}
