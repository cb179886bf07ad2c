#include "dray/spool/spare_segments.hpp"

#include <algorithm>

#include "catch2/catch.hpp"
#include "support/simulated_disk.hpp"

using namespace dray;
using namespace dray::spool;

namespace {

constexpr std::uint64_t kSize = 4096;

void make_file(Directory& directory, const std::string& name, std::uint64_t size) {
  auto file = directory.open(name, OpenMode::kCreateNew);
  REQUIRE(file.ok());
  REQUIRE((*file)->allocate(size).ok());
}

}  // namespace

TEST_CASE("a recycled file never takes the name of one that an earlier run left") {
  test::SimulatedDisk disk(1);
  const auto directory = disk.directory();
  make_file(*directory, "spare.2", kSize);
  SpareSegments spares(*directory, kSize);
  spares.adopt("spare.2");
  for (int i = 0; i < 5; ++i) CHECK(spares.fresh_name() != "spare.2");
  CHECK(spares.take(true)->name == "spare.2");
}

TEST_CASE("a segment that ended a little short is recycled, and filled before it counts as whole") {
  test::SimulatedDisk disk(1);
  const auto directory = disk.directory();
  SpareSegments spares(*directory, kSize);
  REQUIRE(spares.ensure_reserve());
  CHECK(!spares.wants_recycled(kSize + 1));
  REQUIRE(spares.wants_recycled(kSize - 100));
  const auto name = spares.fresh_name();
  make_file(*directory, name, kSize - 100);
  auto file = directory->open(name, OpenMode::kReadWrite);
  spares.recycle({std::move(*file), name, kSize - 100, false});
  CHECK(!spares.wants_recycled(kSize - 100));
  CHECK(!spares.wants_recycled(kSize / 2));
  CHECK(spares.take(true)->name != name);  // the reserve
  REQUIRE(spares.ensure_reserve());
  CHECK(!spares.prepare());  // nothing is left to fill
  CHECK(spares.filled() == kSize);
  CHECK(spares.take(true)->name == name);
}

TEST_CASE("a segment that was left early is filled to its end, if no other file is ready") {
  constexpr std::uint64_t kLarge = 1U << 20;
  test::SimulatedDisk disk(1);
  const auto directory = disk.directory();
  SpareSegments spares(*directory, kLarge);
  REQUIRE(spares.ensure_reserve());
  CHECK(!spares.wants_recycled(kLarge / 8));
  REQUIRE(spares.wants_recycled(kLarge / 2));
  CHECK(!spares.wants_recycled(kLarge / 2, 1));
  const auto name = spares.fresh_name();
  make_file(*directory, name, kLarge / 2 + 100);
  auto file = directory->open(name, OpenMode::kReadWrite);
  spares.recycle({std::move(*file), name, kLarge / 2 + 100, false});
  CHECK(spares.filled() == kLarge / 2);
  CHECK(!spares.has_whole());
  CHECK(!spares.wants_recycled(kLarge / 2));
  while (spares.prepare()) {
  }
  CHECK(spares.filled() == kLarge);
  const auto taken = spares.take(true);
  CHECK(taken->name == name);
  const auto size = taken->file->size();
  CHECK((size.ok() && *size == kLarge));
}

TEST_CASE("on a full disk a file that is not whole gives its room to the reserve") {
  constexpr std::uint64_t kLarge = 1U << 20;
  for (const std::uint64_t part : {kLarge / 2, kLarge - 100}) {
    CAPTURE(part);
    test::SimulatedDisk disk(1);
    const auto directory = disk.directory();
    SpareSegments spares(*directory, kLarge);
    REQUIRE(spares.ensure_reserve());
    REQUIRE(spares.wants_recycled(part));
    const auto name = spares.fresh_name();
    make_file(*directory, name, part);
    auto file = directory->open(name, OpenMode::kReadWrite);
    spares.recycle({std::move(*file), name, part, false});
    spares.release_reserve();
    CHECK(!spares.wants_recycled(part));
    CHECK(spares.wants_recycled(kLarge));
    disk.fail_at(2, ErrorCode::kFull, true);  // not the new file, but its blocks
    CHECK(spares.ensure_reserve());
    CHECK(spares.filled() == 0);
    const auto names = disk.names();
    CHECK(std::find(names.begin(), names.end(), name) == names.end());
  }
}

TEST_CASE("as many files as wanted are kept ready, recycled ones among them") {
  test::SimulatedDisk disk(1);
  const auto directory = disk.directory();
  SpareSegments spares(*directory, kSize, 3);
  REQUIRE(spares.ensure_reserve());
  CHECK(spares.behind());
  while (spares.prepare()) {
  }
  CHECK(!spares.behind());
  CHECK(spares.filled() == 3 * kSize);
  CHECK(!spares.wants_recycled(kSize));
  const auto first = spares.take(false);
  REQUIRE(first.has_value());
  CHECK(first->size == kSize);
  CHECK(spares.behind());
  CHECK(spares.has_whole());
  CHECK(spares.wants_recycled(kSize));
  CHECK(!spares.wants_recycled(kSize, 1));
  spares.recycle(*first);
  CHECK(!spares.behind());
  for (int i = 0; i < 3; ++i) CHECK(spares.take(false).has_value());
  CHECK(!spares.has_whole());
  CHECK(spares.filled() == 0);
  CHECK(!spares.take(false).has_value());
  CHECK(spares.take(true).has_value());  // the reserve
}

TEST_CASE("files that an earlier run made ready are taken over") {
  test::SimulatedDisk disk(1);
  const auto directory = disk.directory();
  for (const char* name : {"spare.1", "spare.2", "spare.3", "spare.4"}) {
    make_file(*directory, name, kSize);
  }
  SpareSegments spares(*directory, kSize, 2);
  for (const char* name : {"spare.1", "spare.2", "spare.3", "spare.4"}) spares.adopt(name);
  CHECK(spares.has_reserve());
  CHECK(spares.filled() == 2 * kSize);
  CHECK(directory->list()->size() == 3);  // one is too many
}

TEST_CASE("a ready file becomes the reserve when the disk has no room for one") {
  test::SimulatedDisk disk(1);
  const auto directory = disk.directory();
  SpareSegments spares(*directory, kSize, 2);
  REQUIRE(spares.ensure_reserve());
  while (spares.prepare()) {
  }
  spares.release_reserve();
  CHECK(!spares.has_reserve());
  CHECK(!spares.prepare());  // room that others took is not taken for files ahead
  CHECK(spares.ensure_reserve());
  CHECK(spares.filled() == kSize);
}

TEST_CASE("a reserve that had to be smaller is no whole one, and is replaced when there is room") {
  constexpr std::uint64_t kLarge = 8U << 20;
  test::SimulatedDisk disk(1);
  const auto directory = disk.directory();
  SpareSegments spares(*directory, kLarge);
  disk.limit_room(3U << 20);
  REQUIRE(spares.ensure_some_reserve());
  CHECK(!spares.ensure_reserve());
  CHECK(spares.has_reserve());
  disk.limit_room(0);
  CHECK(spares.ensure_reserve());
  CHECK(disk.names().size() == 1);
  const auto reserve = spares.take(true);
  REQUIRE(reserve);
  CHECK(reserve->size == kLarge);
  CHECK(!reserve->confined);
  SECTION("a segment that is freed replaces it as well") {
    disk.limit_room(10U << 20);
    REQUIRE(spares.ensure_some_reserve());
    CHECK(!spares.ensure_reserve());
    REQUIRE(spares.wants_recycled(kLarge));
    spares.recycle({reserve->file, reserve->name, kLarge, false});
    CHECK(spares.ensure_reserve());
    CHECK(spares.take(true)->name == reserve->name);
  }
}

TEST_CASE("room for a checkpoint is kept, given back once, and grows with it") {
  test::SimulatedDisk disk(1);
  const auto directory = disk.directory();
  SpareSegments spares(*directory, kSize);
  CHECK(!spares.release_checkpoint_room());
  REQUIRE(spares.ensure_checkpoint_room(10'000));
  CHECK(disk.bytes("spare.checkpoint").size() == 10'000);
  REQUIRE(spares.ensure_checkpoint_room(20'000));
  CHECK(disk.bytes("spare.checkpoint").size() == 20'000);
  CHECK(spares.release_checkpoint_room());
  CHECK(disk.names().empty());
  CHECK(!spares.release_checkpoint_room());
  make_file(*directory, "spare.checkpoint", kSize);  // left by another run
  spares.adopt("spare.checkpoint");
  CHECK(spares.take(false) == std::nullopt);
  CHECK(disk.names().empty());
}
