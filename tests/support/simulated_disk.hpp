// The simulated disk, under the name that the tests use.
#pragma once

#include "dray/disk/simulated_disk.hpp"

namespace dray::test {

using testing::SimulatedDisk;

}  // namespace dray::test
