#include "dray/balancing/key_lines.hpp"

#include <catch2/catch.hpp>
#include <map>
#include <random>
#include <set>

#include "dray/balancing/token_bucket.hpp"

using namespace dray;
using namespace dray::balancing;
using namespace std::chrono_literals;

TEST_CASE("the turn of a key goes from one message to the next in line") {
  KeyLines lines;
  CHECK(lines.take_turn(7, 10));
  CHECK(lines.take_turn(7, 10));
  CHECK_FALSE(lines.take_turn(7, 11));
  lines.wait(7, 12);
  lines.wait(7, 11);
  CHECK(lines.take_turn(8, 12));  // another key
  CHECK(lines.holder(7) == 10);
  CHECK(lines.waits(7, 11));
  CHECK(lines.release(7, 10) == 11);
  CHECK(lines.holder(7) == 11);
  CHECK(lines.release(7, 11) == 12);
  CHECK(lines.release(7, 12) == 0);
  CHECK(lines.release(8, 12) == 0);
  CHECK(lines.empty());
}

TEST_CASE("a message that is held already takes the turn from another") {
  KeyLines lines;
  CHECK(lines.take_turn(7, 10));
  CHECK(lines.force_turn(7, 11) == 10);
  CHECK(lines.force_turn(7, 11) == 0);
  CHECK(lines.waits(7, 10));
  CHECK(lines.release(7, 11) == 10);
  CHECK(lines.force_turn(9, 20) == 0);
  CHECK(lines.find(20) == 9);
}

TEST_CASE("lines agree with a plain model, from a seed") {
  std::mt19937_64 random(5);
  KeyLines lines;
  std::map<KeyHash, Sequence> holder;
  std::map<KeyHash, std::set<Sequence>> waiting;
  for (int i = 0; i < 20'000; ++i) {
    const KeyHash key = (1ULL << spool::kKeyHashBits) - 1 - random() % 20;
    const Sequence sequence = (1ULL << 54) + random() % 50;
    if (random() % 2 == 0) {
      const bool mine = holder.count(key) == 0 || holder[key] == sequence;
      REQUIRE(lines.take_turn(key, sequence) == mine);
      if (mine) {
        holder[key] = sequence;
        waiting[key].erase(sequence);
      } else {
        lines.wait(key, sequence);
        waiting[key].insert(sequence);
      }
    } else if (holder.count(key) != 0) {
      const Sequence next = waiting[key].empty() ? 0 : *waiting[key].begin();
      REQUIRE(lines.release(key, holder[key]) == next);
      holder.erase(key);
      if (next != 0) {
        holder[key] = next;
        waiting[key].erase(next);
      }
    }
    REQUIRE(lines.holder(key) == (holder.count(key) != 0 ? holder[key] : 0));
  }
}

TEST_CASE("a token bucket lets a burst go and then keeps its rate") {
  SteadyTime now{};
  TokenBucket bucket({100, 5}, now);
  CHECK(bucket.available() == 5);
  for (int i = 0; i < 5; ++i) bucket.take();
  CHECK(bucket.available() == 0);
  CHECK(bucket.until_next() == 10ms);
  now += 10ms;
  bucket.fill(now);
  CHECK(bucket.available() == 1);
  now += 10s;  // a quiet time gives no more than the burst
  bucket.fill(now);
  CHECK(bucket.available() == 5);
  CHECK(bucket.within(50ms) == 10);
}
