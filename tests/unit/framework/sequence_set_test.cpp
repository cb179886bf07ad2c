#include "dray/spool/sequence_set.hpp"

#include <catch2/catch.hpp>
#include <random>
#include <set>

using namespace dray::spool;

namespace {

constexpr std::uint64_t kBlock = 4096;

}  // namespace

TEST_CASE("a sequence set agrees with a plain set, from a seed") {
  // Few positions close together, and blocks that become whole and are broken again.
  const auto [range, length] = GENERATE(std::pair{300U, 4U}, std::pair{5U * 4096, 9'000U});
  std::mt19937 random(99);
  SequenceSet set;
  std::set<std::uint64_t> plain;
  for (int i = 0; i < 1000; ++i) {
    const std::uint64_t value = 1 + random() % range;
    if (random() % 3 == 0) {
      set.remove(value);
      plain.erase(value);
    } else {
      const std::uint64_t last = value + random() % length;
      set.add(value, last);
      for (auto each = value; each <= last; ++each) plain.insert(each);
    }
    const std::uint64_t probe = 1 + random() % (range + 10);
    REQUIRE(set.contains(probe) == (plain.count(probe) != 0));
    auto gap = probe;
    while (plain.count(gap) != 0) ++gap;
    REQUIRE(set.first_gap(probe) == gap);
    if (i % 50 == 0) {
      SequenceSet restored;
      REQUIRE(restored.decode(set.encode()));
      for (int j = 0; j < 100; ++j) {
        const std::uint64_t each = 1 + random() % (range + 10);
        REQUIRE(restored.contains(each) == (plain.count(each) != 0));
      }
    }
  }
}

TEST_CASE("positions closed in order cost a part or two, others a bit each") {
  SequenceSet ordered;
  for (std::uint64_t each = 1; each < 1'000'000; ++each) ordered.add(each);
  CHECK(ordered.part_count() <= 2);
  SequenceSet every_second;
  for (std::uint64_t each = 1; each < 1'000'000; each += 2) every_second.add(each);
  CHECK(every_second.part_count() <= 1'000'000 / kBlock + 1);
}

TEST_CASE("a sequence set takes all that there is and gives single positions back") {
  SequenceSet set;
  set.add(1, UINT64_MAX - 1);
  CHECK(set.contains(UINT64_MAX - 1));
  CHECK(set.first_gap(1) == UINT64_MAX);
  set.remove(10 * kBlock);
  CHECK(set.first_gap(1) == 10 * kBlock);
  CHECK(set.contains(10 * kBlock + 1));
}

TEST_CASE("bytes that are no sequence set are refused") {
  SequenceSet set;
  set.add(5, 9'000);
  const std::string good = set.encode();
  CHECK_FALSE(set.decode(std::string(8, 'x')));
  CHECK_FALSE(set.decode(std::string(16, '\xff')));
  CHECK_FALSE(set.decode(good + good));
  CHECK_FALSE(set.decode(good.substr(0, good.size() - 1)));
  CHECK(set.part_count() == 0);
  CHECK(set.decode(""));
}
