// The spool in a simulated world, from many seeds. A seed that fails is printed; it repeats with
//   spool_simulation "one seed" with DRAY_TEST_SEED=<seed> (and DRAY_TEST_ROT=1 for rot;
//   DRAY_TEST_TRACE=1 shows every call to the disk).
#include "dray/spool/planted_fault.hpp"
#include "simulation/spool_world.hpp"
#include "support/seeds.hpp"

using namespace dray;
using namespace dray::test;

namespace {

// What went wrong with this seed, if anything.
std::optional<std::string> fault_of(std::uint64_t seed, bool rot) {
  WorldOptions options;
  options.rot = rot;
  try {
    SpoolWorld(seed, options).run();
  } catch (const WorldFault& fault) {
    return std::string(fault.what());
  }
  return std::nullopt;
}

std::optional<std::string> clean_fault(std::uint64_t seed) {
  return fault_of(seed, false);
}

std::optional<std::string> rot_fault(std::uint64_t seed) {
  return fault_of(seed, true);
}

}  // namespace

#ifndef DRAY_PLANTED_FAULTS

TEST_CASE("nothing acknowledged is lost and nothing settled comes back: 5000 seeds") {
  run_seeds(1, times_deep(5'000), clean_fault);
}

TEST_CASE("nothing acknowledged is lost and nothing settled comes back: 5000 more seeds") {
  run_seeds(1'000'000'000, times_deep(5'000), clean_fault);
}

TEST_CASE("what rots is reported and the rest is served: 4000 seeds") {
  run_seeds(1, times_deep(4'000), rot_fault);
}

TEST_CASE("the power may go after every single I/O call of a script of 50 operations") {
  for (std::uint64_t seed = 1; seed <= 5; ++seed) {
    for (std::uint64_t call = 0;; ++call) {
      try {
        if (!SpoolWorld(seed, {}).run_script(50, call)) break;
      } catch (const WorldFault& fault) {
        FAIL("seed " << seed << ", after call " << call << ": " << fault.what());
      }
      REQUIRE(call < 2'000);
    }
  }
}

TEST_CASE("one seed", "[.]") {
  const bool rot = std::getenv("DRAY_TEST_ROT") != nullptr;
  run_seeds(from_environment("DRAY_TEST_SEED", 1), 1, rot ? rot_fault : clean_fault);
}

#else

namespace dray::spool {
Fault planted_fault = Fault::kNone;
}

namespace {

struct Plant {
  spool::Fault fault;
  const char* name;
  bool rot = false;  // shows only where bits flip
};

}  // namespace

TEST_CASE("every planted fault is caught within 2000 seeds") {
  using spool::Fault;
  const auto plant =
      GENERATE(Plant{Fault::kNoCommitSync, "no sync before the receipt"},
               Plant{Fault::kNoHeaderSync, "no sync of a new segment's header"},
               Plant{Fault::kNoSegmentNameSync, "no sync of a new segment's name"},
               Plant{Fault::kNoSealSync, "no sync of a segment that is sealed"},
               Plant{Fault::kNoTailRewrite, "the tail believed after a crash"},
               Plant{Fault::kNoRecordCrc, "payloads unchecked", true},
               Plant{Fault::kNoRecordHeaderCrc, "records' headers unchecked", true},
               Plant{Fault::kDamageIsTornTail, "the durable_lsn rule ignored", true},
               Plant{Fault::kTornTailIsDamage, "a torn tail called damage"},
               Plant{Fault::kNoLatch, "going on after a failed write"},
               Plant{Fault::kLaterSyncCounts, "a later sync counts after one that failed"},
               Plant{Fault::kUnitsTorn, "part of a unit counts"},
               Plant{Fault::kNoCheckpointSync, "no sync of a checkpoint"},
               Plant{Fault::kNoCheckpointNameSync, "no sync of a checkpoint's name"},
               Plant{Fault::kNoCheckpointCrc, "checkpoints unchecked"},
               Plant{Fault::kCheckpointAhead, "a checkpoint ahead of the log"},
               Plant{Fault::kOneCheckpointFrees, "one checkpoint frees a segment"},
               Plant{Fault::kFreedWithOpen, "a segment freed with an open message"},
               Plant{Fault::kFreedBeforeCopy, "a segment freed before its copies"},
               Plant{Fault::kAttemptsForgotten, "attempts not replayed"});
  spool::planted_fault = plant.fault;
  const auto caught = first_fault(2'000, plant.rot ? rot_fault : clean_fault);
  spool::planted_fault = Fault::kNone;
  INFO(plant.name);
  REQUIRE(caught.has_value());
  WARN(plant.name << ": seed " << caught->first << ": " << caught->second);
}

TEST_CASE("without a planted fault the same build finds nothing") {
  run_seeds(1, 300, clean_fault);
  run_seeds(1, 300, rot_fault);
}

#endif
