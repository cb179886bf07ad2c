// lock_briefly: for a mutex that is never held for longer than a microsecond or so. Who finds it
// taken tries again for about as long: to fall asleep and be woken takes many times that.
//
// Threading: any. Failure: none.
#pragma once

#include <mutex>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace dray {

inline std::unique_lock<std::mutex> lock_briefly(std::mutex& mutex) {
  constexpr int kTries = 50;
  for (int i = 0; i < kTries; ++i) {
    std::unique_lock lock(mutex, std::try_to_lock);
    if (lock.owns_lock()) return lock;
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }
  return std::unique_lock(mutex);
}

}  // namespace dray
