// GroupLimits: how fast, and how many at a time, a group of one spool is delivered.
//
// Threading: values.
#pragma once

#include <cstdint>
#include <optional>

namespace dray {

// Deliveries per second; up to `burst` of them at once after a quiet time.
struct RateLimit {
  double per_second = 0;  // > 0
  std::uint32_t burst = 1;
};

struct GroupLimits {
  bool ordered = true;  // keys are obeyed (P10)
  // Unanswered deliveries at a time, over all workers; 0: no limit.
  std::uint32_t concurrency = 0;
  std::optional<RateLimit> rate;
};

}  // namespace dray
