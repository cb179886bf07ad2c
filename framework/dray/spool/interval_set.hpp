// IntervalSet: sequences as disjoint, closed, non-touching intervals.
//
// Threading: one thread at a time. Cost: add and contains are O(log n) in the number of
// intervals; extending the last interval, the usual case, is O(1).
#pragma once

#include <cstdint>
#include <iterator>
#include <map>

namespace dray::spool {

class IntervalSet {
 public:
  // REQUIRES: first <= last.
  void add(std::uint64_t first, std::uint64_t last);
  void add(std::uint64_t value) { add(value, value); }
  void remove(std::uint64_t value);
  bool contains(std::uint64_t value) const;
  // The smallest value >= `from` that is not in the set.
  std::uint64_t first_gap(std::uint64_t from) const;
  // Number of intervals, for limits.
  std::size_t interval_count() const { return intervals_.size(); }
  // first -> last, ascending.
  const std::map<std::uint64_t, std::uint64_t>& intervals() const { return intervals_; }

 private:
  std::map<std::uint64_t, std::uint64_t> intervals_;  // first -> last
};

}  // namespace dray::spool
