#include "dray/spool/reclaim.hpp"

#include <algorithm>
#include <set>

#include "dray/spool/planted_fault.hpp"

namespace dray::spool {
namespace {

// Copying pays if it frees at least four times what it writes.
constexpr std::uint64_t kCopyShare = 4;
// The newest sealed segments are left alone: what is open there may settle by itself.
constexpr std::size_t kYoungSegments = 2;

// Where an open message with a history lies: itself, and behind it the records of its attempts, of
// which the last one's place is known.
struct Tenant {
  Lsn first = 0;
  Lsn last = 0;
  Sequence sequence = 0;
};

std::vector<Tenant> all_tenants(const std::vector<const GroupState*>& groups) {
  std::vector<Tenant> tenants;
  for (const auto* group : groups) {
    for (const auto& [sequence, history] : group->entries()) {
      const Lsn place = history.copy_lsn() != 0 ? history.copy_lsn() : sequence;
      const Lsn record = history.record_lsn() != 0 ? history.record_lsn() : place;
      tenants.push_back({std::min(place, record), std::max(place, record), sequence});
    }
  }
  return tenants;
}

// How many tenants each segment has.
std::vector<std::uint64_t> count_tenants(const std::vector<SegmentSummary>& segments,
                                         const std::vector<Tenant>& tenants) {
  std::vector<std::uint64_t> begin(segments.size() + 1, 0);
  std::vector<std::uint64_t> end(segments.size() + 1, 0);
  for (const auto& tenant : tenants) {
    const auto first = std::lower_bound(
        segments.begin(), segments.end(), tenant.first,
        [](const SegmentSummary& segment, Lsn lsn) { return segment.last_lsn < lsn; });
    const auto last = std::upper_bound(
        segments.begin(), segments.end(), tenant.last,
        [](Lsn lsn, const SegmentSummary& segment) { return lsn < segment.first_lsn; });
    ++begin[static_cast<std::size_t>(first - segments.begin())];
    ++end[static_cast<std::size_t>(std::max(first, last) - segments.begin())];
  }
  std::uint64_t inside = 0;
  for (std::size_t i = 0; i < segments.size(); ++i) {
    inside += begin[i];
    inside -= end[i];
    begin[i] = inside;
  }
  begin.resize(segments.size());
  return begin;
}

bool has_plain(const SegmentSummary& segment, const std::vector<const GroupState*>& groups) {
  return std::any_of(groups.begin(), groups.end(), [&](const GroupState* group) {
    return group->known() <= segment.last_lsn ||
           group->first_plain(segment.first_lsn) <= segment.last_lsn;
  });
}

}  // namespace

ReclaimPlan plan_reclaim(const std::vector<SegmentSummary>& segments,
                         const std::vector<const GroupState*>& groups, const RetainOptions& retain,
                         UtcTime now, std::size_t copies_max) {
  ReclaimPlan plan;
  const auto tenants = all_tenants(groups);
  const auto tenant_counts = count_tenants(segments, tenants);
  std::uint64_t retained = 0;
  const std::size_t sealed = segments.empty() ? 0 : segments.size() - 1;
  std::vector<const SegmentSummary*> sparse;
  // Newest first, so that what is retained is the newest.
  for (std::size_t i = sealed; i-- > 0;) {
    const auto& segment = segments[i];
    const bool empty = segment.last_lsn < segment.first_lsn;
    if (!empty && has_plain(segment, groups)) continue;
    if (empty || tenant_counts[i] == 0 || planted(Fault::kFreedWithOpen)) {
      const bool young =
          !empty && retain.age.count() != 0 && now - segments[i + 1].created_at < retain.age;
      retained += young ? segment.bytes : 0;
      const bool keep = young && (retain.bytes == 0 || retained <= retain.bytes);
      if (!keep) plan.dead.insert(segment.number);
      continue;
    }
    const std::uint64_t records = segment.last_lsn - segment.first_lsn + 1;
    if (i + kYoungSegments < sealed && tenant_counts[i] * kCopyShare <= records) {
      sparse.push_back(&segment);
    }
  }
  std::set<Sequence> chosen;
  for (auto each = sparse.rbegin(); each != sparse.rend(); ++each) {
    for (const auto& tenant : tenants) {
      if (chosen.size() >= copies_max) break;
      const bool inside = tenant.first <= (*each)->last_lsn && tenant.last >= (*each)->first_lsn;
      if (inside && chosen.insert(tenant.sequence).second) plan.to_copy.push_back(tenant.sequence);
    }
    if (planted(Fault::kFreedBeforeCopy)) plan.dead.insert((*each)->number);
  }
  return plan;
}

}  // namespace dray::spool
