#include "dray/spool/segment_log.hpp"

#include <filesystem>
#include <map>

#include "catch2/catch.hpp"
#include "dray/disk/posix_directory.hpp"
#include "support/temporary_folder.hpp"

using namespace dray;
using namespace dray::spool;

namespace {

// How many descriptors this process has of each segment.
std::map<std::string, int> descriptors_of_segments() {
  std::map<std::string, int> count;
  for (const auto& each : std::filesystem::directory_iterator("/proc/self/fd")) {
    std::error_code gone;
    const auto target = std::filesystem::read_symlink(each.path(), gone);
    if (!gone && target.extension() == ".segment") ++count[target.filename().string()];
  }
  return count;
}

}  // namespace

TEST_CASE("a sealed segment costs one descriptor, whatever it was written with") {
  test::TemporaryFolder folder;
  auto directory = open_posix_directory(folder.path(), true);
  REQUIRE(directory.ok());
  SystemClock clock;
  LogOptions options;
  options.segment_size = 1U << 20;
  options.preallocate = 4 * options.segment_size;
  ScanReport report;
  auto log = SegmentLog::open(**directory, clock, options, std::nullopt, {}, report);
  REQUIRE(log.ok());
  REQUIRE((*log)->spares().ensure_reserve());
  while ((*log)->spares().prepare(true)) {
  }
  REQUIRE((*log)->start(uuid_v4(), 1, 1, [] { return std::string("opening"); }).ok());
  const std::string payload(100'000, 'x');
  const auto buffers = std::make_shared<Buffers>();
  while ((*log)->segments().size() < 4) {
    Batch batch(buffers);
    batch.add({RecordType::kMarker}, payload);
    REQUIRE((*log)->write(batch, 0, true).ok());
  }
  const auto current = segment_name((*log)->segments().back().number);
  const auto count = descriptors_of_segments();
  REQUIRE(count.size() == 4);
  for (const auto& [name, descriptors] : count) {
    INFO(name);
    if (name != current) CHECK(descriptors == 1);
  }
}
