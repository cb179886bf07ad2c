#include "dray/spool/spare_segments.hpp"

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
  CHECK(!spares.wants_recycled(kSize / 2));
  CHECK(!spares.wants_recycled(kSize + 1));
  REQUIRE(spares.wants_recycled(kSize - 100));
  const auto name = spares.fresh_name();
  make_file(*directory, name, kSize - 100);
  auto file = directory->open(name, OpenMode::kReadWrite);
  spares.recycle({std::move(*file), name, kSize - 100, false});
  CHECK(!spares.wants_recycled(kSize - 100));
  CHECK(spares.take(true)->name != name);  // the reserve
  CHECK(!spares.prepare());                // nothing is left to fill
  CHECK(spares.filled() == kSize);
  CHECK(spares.take(true)->name == name);
}
