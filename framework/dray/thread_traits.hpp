// What the system is told of threads: a name, as `top -H`, gdb and perf show it, and whether the
// thread is one that others wait for.
//
// Threading: any. Failure: none; a name of more than 15 bytes is cut there, as Linux demands.
#pragma once

#include <pthread.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>
#include <string>
#include <string_view>

namespace dray {

// Names the thread that calls this.
inline void name_thread(std::string_view name) {
  (void)pthread_setname_np(pthread_self(), std::string(name.substr(0, 15)).c_str());
}

// For a thread that runs briefly and is waited for: the scheduler is asked for slices of this
// length, and lets the thread run soon after it wakes, also beside threads with longer ones, or
// that compute on and on. It gets no more time than others. Threads that it starts later take after
// it. Since Linux 6.12 (sched_setattr(2), sched_runtime of SCHED_OTHER); before that it changes
// nothing.
enum class Slice : std::uint64_t {
  kShort = 500'000,     // ns: of who has a socket
  kShortest = 100'000,  // the least that there is: for whom everybody waits
};
inline void take_slice(Slice slice) {
#ifdef SYS_sched_setattr
  struct {  // struct sched_attr, SCHED_ATTR_SIZE_VER0, of sched_setattr(2)
    std::uint32_t size = 48;
    std::uint32_t policy = 0;  // SCHED_OTHER
    std::uint64_t flags = 0;
    std::int32_t nice = 0;
    std::uint32_t priority = 0;
    std::uint64_t runtime_ns = 0, deadline_ns = 0, period_ns = 0;
  } wanted;
  static_assert(sizeof(wanted) == 48);
  // As it is, but for the slice.
  if (syscall(SYS_sched_getattr, 0, &wanted, sizeof(wanted), 0) != 0 || wanted.policy != 0) return;
  wanted.runtime_ns = static_cast<std::uint64_t>(slice);
  (void)syscall(SYS_sched_setattr, 0, &wanted, 0);
#endif
}

}  // namespace dray
