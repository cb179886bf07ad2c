// Reclaim: which segments nothing needs any more, and which would be free if a few messages were
// copied out of them. Pure.
//
// A segment is dead when every group's cursor is behind it, no open message lies in it (in its
// place or as a copy), and it need not be retained. Dead segments are left out of the next
// checkpoint, and go when both kept checkpoints leave them out (S9).
//
// Threading: pure function.
#pragma once

#include <cstdint>
#include <set>
#include <vector>

#include "dray/spool/group_state.hpp"
#include "dray/spool/segment_log.hpp"

namespace dray::spool {

struct RetainOptions {
  Milliseconds age{0};      // segments younger than this stay, settled or not
  std::uint64_t bytes = 0;  // but not more than this of settled ones; 0 with an age: no limit
};

struct ReclaimPlan {
  std::set<std::uint64_t> dead;   // segment numbers
  std::vector<Sequence> to_copy;  // open messages in segments that hold few; oldest segment first
};

// `copies_max`: at most so many in to_copy.
ReclaimPlan plan_reclaim(const std::vector<SegmentSummary>& segments,
                         const std::vector<const GroupState*>& groups, const RetainOptions& retain,
                         UtcTime now, std::size_t copies_max);

}  // namespace dray::spool
