// What processes use: CPU time, memory, descriptors (getrusage(2), proc(5)).
//
// Threading: any. Failure: what cannot be read counts as 0.
#pragma once

#include <sys/types.h>

#include <cstdint>

namespace dray::app {

// Of this process, or of its children that have ended: RUSAGE_SELF, RUSAGE_CHILDREN. Seconds.
double cpu_seconds(int who);
double cpu_seconds_of(pid_t pid);  // a process that lives, in steps of 10 ms
std::uint64_t rss_bytes();         // now
std::uint64_t rss_bytes_peak();    // of this process
std::uint64_t open_descriptors();

}  // namespace dray::app
