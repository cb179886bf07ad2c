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

// The thread that calls this, and those that it starts from now on, run briefly and are waited for:
// the scheduler is asked for short slices, and so lets them run soon after they wake, also beside
// threads that compute on and on. They get no more time than others. Since Linux 6.12 (sched(7),
// sched_setattr(2): sched_runtime of SCHED_OTHER); before that it changes nothing.
inline void take_short_slices() {
#ifdef SYS_sched_setattr
  constexpr std::uint64_t kSliceNs = 100'000;  // the least that there is
  struct {  // struct sched_attr, SCHED_ATTR_SIZE_VER0, of sched_setattr(2)
    std::uint32_t size = 48;
    std::uint32_t policy = 0;  // SCHED_OTHER
    std::uint64_t flags = 0;
    std::int32_t nice = 0;
    std::uint32_t priority = 0;
    std::uint64_t runtime_ns = kSliceNs, deadline_ns = 0, period_ns = 0;
  } wanted;
  static_assert(sizeof(wanted) == 48);
  // As it is, but for the slice.
  if (syscall(SYS_sched_getattr, 0, &wanted, sizeof(wanted), 0) != 0 || wanted.policy != 0) return;
  wanted.runtime_ns = kSliceNs;
  (void)syscall(SYS_sched_setattr, 0, &wanted, 0);
#endif
}

}  // namespace dray
