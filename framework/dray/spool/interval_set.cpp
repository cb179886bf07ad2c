#include "dray/spool/interval_set.hpp"

#include <algorithm>

#include "dray/result.hpp"

namespace dray::spool {

void IntervalSet::add(std::uint64_t first, std::uint64_t last) {
  DRAY_ASSERT(first <= last);
  if (!intervals_.empty()) {
    auto& [tail_first, tail_last] = *intervals_.rbegin();
    if (first == tail_last + 1) {
      tail_last = last;
      return;
    }
  }
  auto after = intervals_.upper_bound(first);
  if (after != intervals_.begin()) {
    const auto before = std::prev(after);
    if (before->second + 1 >= first) {
      first = before->first;
      last = std::max(last, before->second);
      after = intervals_.erase(before);
    }
  }
  while (after != intervals_.end() && after->first <= last + 1) {
    last = std::max(last, after->second);
    after = intervals_.erase(after);
  }
  intervals_.emplace_hint(after, first, last);
}

void IntervalSet::remove(std::uint64_t value) {
  auto after = intervals_.upper_bound(value);
  if (after == intervals_.begin()) return;
  const auto found = std::prev(after);
  if (found->second < value) return;
  const auto [first, last] = *found;
  intervals_.erase(found);
  if (first < value) intervals_.emplace(first, value - 1);
  if (value < last) intervals_.emplace(value + 1, last);
}

bool IntervalSet::contains(std::uint64_t value) const {
  const auto after = intervals_.upper_bound(value);
  return after != intervals_.begin() && std::prev(after)->second >= value;
}

std::uint64_t IntervalSet::first_gap(std::uint64_t from) const {
  const auto after = intervals_.upper_bound(from);
  if (after == intervals_.begin()) return from;
  const auto before = std::prev(after);
  return before->second >= from ? before->second + 1 : from;
}

}  // namespace dray::spool
