#include "dray/spool/dedup_window.hpp"

#include "catch2/catch.hpp"

using namespace dray;
using namespace dray::spool;

namespace {

DedupWindow::Known known(Sequence sequence, std::int64_t at_ms) {
  return {uuid_v4(), sequence, sequence * 10, at_ms};
}

std::string whole(const DedupWindow& window, Sequence last) {
  std::string out;
  std::uint64_t position = 0;
  while (window.snapshot(last, position, 3, out)) {
  }
  return out;
}

}  // namespace

TEST_CASE("ids are known for their time, and no more of them than allowed") {
  DedupWindow window({3, Milliseconds(100)});
  for (Sequence i = 1; i <= 3; ++i) window.add(std::to_string(i), known(i, 10 * std::int64_t(i)));
  REQUIRE(window.find("1", 109) != nullptr);
  CHECK(window.find("1", 109)->sequence == 1);
  CHECK(window.find("1", 110) == nullptr);
  window.add("4", known(4, 40));
  CHECK(window.size() == 3);
  CHECK(window.find("1", 41) == nullptr);
  CHECK(window.find("2", 41)->body_hash == 20);
  window.add("2", known(9, 41));  // it is known
  CHECK(window.find("2", 41)->sequence == 2);
  window.add("2", known(9, 120));  // it is over
  CHECK(window.find("2", 121)->sequence == 9);
  CHECK(window.size() == 3);
  window.trim(140);
  CHECK(window.size() == 1);
  CHECK(window.find("2", 141)->sequence == 9);
  CHECK(window.find("4", 140) == nullptr);
}

TEST_CASE("a snapshot taken in pieces says what is kept, while ids come and go") {
  DedupWindow window({100, Milliseconds(1'000)});
  for (Sequence i = 1; i <= 10; ++i) window.add(std::to_string(i), known(i, std::int64_t(i)));
  DedupWindow again({100, Milliseconds(1'000)});
  REQUIRE(again.restore(whole(window, 7)));
  CHECK(again.size() == 7);
  CHECK(again.find("7", 8)->message_id == window.find("7", 8)->message_id);
  CHECK(again.find("8", 8) == nullptr);
  std::string pieces;
  std::uint64_t position = 0;
  REQUIRE(window.snapshot(10, position, 4, pieces));
  window.trim(1'006);  // 1 to 6 are over
  window.add("11", known(11, 1'007));
  while (window.snapshot(10, position, 4, pieces)) {
  }
  DedupWindow third({100, Milliseconds(1'000)});
  REQUIRE(third.restore(pieces));
  for (const char* id : {"7", "8", "9", "10"}) CHECK(third.find(id, 11) != nullptr);
  CHECK(third.find("11", 1'007) == nullptr);
  CHECK(!third.restore("short"));
}
