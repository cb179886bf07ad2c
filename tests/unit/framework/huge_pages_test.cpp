#include "dray/spool/huge_pages.hpp"

#include <algorithm>
#include <catch2/catch.hpp>
#include <cstdint>
#include <cstring>
#include <random>
#include <thread>
#include <utility>
#include <vector>

namespace dray::spool {
namespace {

struct Block {
  char* memory;
  std::size_t bytes;
  char fill;

  bool whole() const {
    return std::all_of(memory, memory + bytes, [&](char each) { return each == fill; });
  }
};

// Takes and gives back in random order; every block keeps what was put into it.
bool shuffle_blocks(std::uint64_t seed, int steps) {
  std::mt19937_64 random(seed);
  std::vector<Block> held;
  bool whole = true;
  for (int step = 0; step < steps; ++step) {
    if (held.empty() || (random() % 2 == 0 && held.size() < 12)) {
      const std::size_t bytes =
          huge_pages::kBlockMin + random() % (std::size_t{1} << (16 + random() % 6));
      Block block{huge_pages::take(bytes), bytes, static_cast<char>(random())};
      std::memset(block.memory, block.fill, block.bytes);
      held.push_back(block);
    } else {
      std::swap(held[random() % held.size()], held.back());
      whole = whole && held.back().whole();
      huge_pages::give_back(held.back().memory, held.back().bytes);
      held.pop_back();
    }
  }
  for (const auto& block : held) {
    whole = whole && block.whole();
    huge_pages::give_back(block.memory, block.bytes);
  }
  return whole;
}

}  // namespace

TEST_CASE("huge pages: blocks begin with a page and are nobody else's") {
  const auto seed = std::random_device{}();
  CAPTURE(seed);
  char* const first = huge_pages::take(huge_pages::kBlockMin);
  CHECK(reinterpret_cast<std::uintptr_t>(first) % 4096 == 0);  // NOLINT: an address
  huge_pages::give_back(first, huge_pages::kBlockMin);
  REQUIRE(shuffle_blocks(seed, 400));
  std::vector<std::thread> threads;
  std::vector<char> whole(4);
  for (std::size_t i = 0; i < whole.size(); ++i) {
    threads.emplace_back([&, i] { whole[i] = shuffle_blocks(seed + i, 200) ? 1 : 0; });
  }
  for (auto& thread : threads) thread.join();
  CHECK(std::count(whole.begin(), whole.end(), 1) == 4);
}

TEST_CASE("huge pages: room is used again, and given back to the system but for one slab") {
  constexpr std::size_t kSlab = 2U << 20;
  constexpr std::size_t kBytes = kSlab / 4 - 100;
  const std::size_t before = huge_pages::bytes_mapped();
  std::vector<char*> blocks(16);
  for (auto& block : blocks) block = huge_pages::take(kBytes);
  const std::size_t full = huge_pages::bytes_mapped();
  CHECK(full <= before + 4 * kSlab);
  // A hole in the middle is filled.
  huge_pages::give_back(blocks[5], kBytes);
  blocks[5] = huge_pages::take(kBytes);
  CHECK(huge_pages::bytes_mapped() == full);
  for (char* block : blocks) huge_pages::give_back(block, kBytes);
  CHECK(huge_pages::bytes_mapped() <= before + kSlab);
}

}  // namespace dray::spool
