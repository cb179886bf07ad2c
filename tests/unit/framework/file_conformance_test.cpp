// One suite for all implementations of File and Directory.
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
    REQUIRE((*file)->write_durable_at(0, std::string(10'000, 'a')).ok());
    REQUIRE((*file)->write_durable_at(9'999, "bb").ok());
    REQUIRE((*file)->write_at(5'000, "c").ok());
    REQUIRE((*file)->sync_data().ok());
    CHECK(*(*file)->size() == 10'001);
    std::string bytes(3, '?');
    REQUIRE((*file)->read_at(9'998, bytes.data(), 3).ok());
    CHECK(bytes == "abb");
    CHECK(directory.identity() != 0);
    CHECK(directory.identity() == directory.identity());
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
