#include "dray/uuid.hpp"

#include <algorithm>
#include <mutex>
#include <set>
#include <thread>

#include "catch2/catch.hpp"

using namespace dray;

TEST_CASE("a version 7 UUID has its time and its version and variant bits") {
  const Uuid id = uuid_v7(UtcTime(Milliseconds(0x0123456789AB)));
  CHECK(id.text().substr(0, 15) == "01234567-89ab-7");
  CHECK((id.bytes[8] & 0xC0) == 0x80);
}

TEST_CASE("version 7 UUIDs of one thread ascend, and those of many threads differ") {
  std::set<Uuid> all;
  std::mutex mutex;
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      std::vector<Uuid> own;
      for (int k = 0; k < 5'000; ++k) own.push_back(uuid_v7(UtcTime(Milliseconds(k / 1'000))));
      const bool ascend = std::is_sorted(own.begin(), own.end());
      const std::lock_guard lock(mutex);
      CHECK(ascend);
      all.insert(own.begin(), own.end());
    });
  }
  for (auto& thread : threads) thread.join();
  CHECK(all.size() == 20'000);
}
