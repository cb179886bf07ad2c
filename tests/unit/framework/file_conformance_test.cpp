// One suite for all implementations of File and Directory.
#include <algorithm>
#include <random>
#include <vector>

#include "dray/disk/posix_directory.hpp"
#include "support/simulated_disk.hpp"
#include "support/temporary_folder.hpp"

using namespace dray;

namespace {

void conforms(Directory& directory) {
  SECTION("a file is made once, found again, and keeps what was written") {
    REQUIRE(directory.open("a", OpenMode::kReadWrite).error().code == ErrorCode::kNotFound);
    auto file = directory.open("a", OpenMode::kCreateNew);
    REQUIRE(file.ok());
    CHECK(directory.open("a", OpenMode::kCreateNew).error().code == ErrorCode::kConflict);
    REQUIRE((*file)->write_at(3, "hello").ok());
    REQUIRE((*file)->sync_data().ok());
    auto again = directory.open("a", OpenMode::kRead);
    REQUIRE(again.ok());
    std::string bytes(16, '?');
    const auto got = (*again)->read_at(0, bytes.data(), bytes.size());
    REQUIRE(got.ok());
    CHECK(bytes.substr(0, *got) == std::string("\0\0\0hello", 8));
    CHECK(*(*again)->size() == 8);
    CHECK(*(*again)->read_at(8, bytes.data(), 4) == 0);
  }
  SECTION("a durable write writes, extends and overwrites; sync makes the rest durable") {
    auto file = directory.open("a", OpenMode::kCreateNew);
    REQUIRE((*file)->write_durable_at(0, std::string(10'000, 'a'), {Caching::kKeep}).ok());
    REQUIRE((*file)->write_durable_at(9'999, "bb", {Caching::kKeep}).ok());
    REQUIRE((*file)->write_at(5'000, "c").ok());
    REQUIRE((*file)->sync_data().ok());
    CHECK(*(*file)->size() == 10'001);
    std::string bytes(3, '?');
    REQUIRE((*file)->read_at(9'998, bytes.data(), 3).ok());
    CHECK(bytes == "abb");
    CHECK(directory.identity() != 0);
    CHECK(directory.identity() == directory.identity());
  }
  SECTION("what is written in either way is read, whatever was read or written before") {
    constexpr std::uint64_t kSize = 1U << 20;
    const std::uint64_t seed = Catch::rngSeed();
    INFO("seed " << seed);
    std::mt19937_64 random(seed);
    auto file = directory.open("a", OpenMode::kCreateNew);
    REQUIRE((*file)->fill_zeros(0, kSize).ok());
    std::string wanted(kSize, '\0');
    std::uint64_t at = 0;
    int went_ahead = 0;
    for (int i = 0; i < 2'000; ++i) {
      // Mostly one behind the other, to the end of a block, as a log does it.
      if (random() % 8 == 0) at = random() % kSize;
      std::uint64_t size = 1 + random() % (random() % 4 == 0 ? 300'000 : 6'000);
      if (random() % 8 != 0) size += 4096 - (at + size) % 4096;
      if (at + size > kSize) at = 0, size = 4096;
      const std::string bytes(size, static_cast<char>('a' + i % 26));
      const auto how = random() % 8;
      if (random() % 16 == 0) (*file)->rest();
      if (how == 0) {
        REQUIRE((*file)->write_at(at, bytes).ok());
      } else if (how == 1) {
        REQUIRE((*file)->write_durable_at(at, bytes, {Caching::kKeep}).ok());
      } else if (how < 5) {
        REQUIRE((*file)->write_durable_at(at, bytes, {Caching::kPast}).ok());
      } else {
        // At the same place in a page as in the file, or not; with enough room before it, or not.
        const std::size_t room = random() % 4 == 0 ? random() % 4096 : 4096;
        const std::size_t place = random() % 4 == 0 ? random() % 4096 : at % 4096;
        std::vector<char> memory(3 * 4096 + size);
        const auto address = reinterpret_cast<std::uintptr_t>(memory.data());
        char* const begin = memory.data() + (4096 - address % 4096) % 4096 + 4096 + place;
        std::fill(memory.begin(), memory.end(), '#');
        std::copy(bytes.begin(), bytes.end(), begin);
        if (how == 5) {
          REQUIRE((*file)->write_durable_at(at, {begin, size}, {Caching::kPast, room}).ok());
        } else {
          const auto ahead = (*file)->write_ahead_at(at, {begin, size}, room);
          REQUIRE(ahead.ok());
          if (!*ahead) REQUIRE((*file)->write_at(at, {begin, size}).ok());
          went_ahead += *ahead ? 1 : 0;
          if (random() % 2 == 0) REQUIRE((*file)->sync_data().ok());
        }
        CHECK(std::string_view(begin, size) == bytes);
        const char* const kept = begin - room;  // what lies before the room is another's
        CHECK(std::all_of(memory.data(), const_cast<char*>(kept), [](char c) { return c == '#'; }));
      }
      wanted.replace(at, size, bytes);
      at += random() % size;  // the rest is padding
      if (random() % 4 != 0) continue;
      const std::uint64_t from = random() % kSize;
      std::string back(random() % (kSize - from) + 1, '?');
      const auto got = (*file)->read_at(from, back.data(), back.size());
      REQUIRE(got.ok());
      REQUIRE((back == wanted.substr(from, back.size())));
    }
    CHECK(went_ahead > 100);
    CHECK(*(*file)->size() == kSize);
    REQUIRE((*file)->truncate(5'000).ok());
    REQUIRE((*file)->write_durable_at(5'000, std::string(3'192, 'z'), {Caching::kPast}).ok());
    wanted.replace(5'000, kSize, std::string(3'192, 'z'));
    std::string all(kSize, '?');
    CHECK(*(*file)->read_at(0, all.data(), all.size()) == 8'192);
    CHECK((all.substr(0, 8'192) == wanted));
  }
  SECTION("filling with zeros extends and overwrites, aligned or not, and nothing beside it") {
    constexpr std::uint64_t kMany = (1U << 20) + (64U << 10);
    auto file = directory.open("a", OpenMode::kCreateNew);
    REQUIRE((*file)->write_at(0, std::string(kMany, 'x')).ok());
    REQUIRE((*file)->fill_zeros(0, kMany - (64U << 10)).ok());
    REQUIRE((*file)->fill_zeros(kMany, 2 * kMany).ok());
    REQUIRE((*file)->fill_zeros(kMany - 10, 3).ok());
    CHECK(*(*file)->size() == 3 * kMany);
    std::string bytes(3 * kMany, '?');
    CHECK(*(*file)->read_at(0, bytes.data(), bytes.size()) == bytes.size());
    std::string wanted(3 * kMany, '\0');
    wanted.replace(kMany - (64U << 10), 64U << 10, std::string(64U << 10, 'x'));
    wanted.replace(kMany - 10, 3, std::string(3, '\0'));
    CHECK((bytes == wanted));
  }
  SECTION("allocate and truncate set the size; new bytes are zero") {
    auto file = directory.open("a", OpenMode::kCreateNew);
    REQUIRE((*file)->write_at(0, "xyz").ok());
    REQUIRE((*file)->allocate(4096).ok());
    CHECK(*(*file)->size() == 4096);
    char byte = 'x';
    REQUIRE((*file)->read_at(4095, &byte, 1).ok());
    CHECK(byte == 0);
    REQUIRE((*file)->truncate(2).ok());
    CHECK(*(*file)->size() == 2);
  }
  SECTION("rename replaces, remove removes, list is sorted") {
    REQUIRE(directory.open("b", OpenMode::kCreateNew).ok());
    REQUIRE(directory.open("a", OpenMode::kCreateNew).ok());
    CHECK(*directory.list() == std::vector<std::string>{"a", "b"});
    REQUIRE(directory.rename("b", "a").ok());
    CHECK(*directory.list() == std::vector<std::string>{"a"});
    REQUIRE(directory.remove("a").ok());
    CHECK(!directory.remove("a").ok());
    CHECK(!directory.rename("nothing", "a").ok());
    REQUIRE(directory.sync().ok());
    CHECK(directory.list()->empty());
  }
  SECTION("a lock is held by one at a time") {
    CHECK(!directory.is_locked("lock"));
    auto lock = directory.lock("lock");
    REQUIRE(lock.ok());
    CHECK(directory.is_locked("lock"));
    CHECK(directory.lock("lock").error().code == ErrorCode::kBusy);
    lock->reset();
    CHECK(directory.lock("lock").ok());
  }
}

}  // namespace

TEST_CASE("the real file system conforms") {
  test::TemporaryFolder folder;
  auto directory = open_posix_directory(folder / "deep/er", true);
  REQUIRE(directory.ok());
  conforms(**directory);
}

TEST_CASE("the simulated disk conforms") {
  test::SimulatedDisk disk(1);
  auto directory = disk.directory();
  conforms(*directory);
}
