#include "dray/spool/batch.hpp"

#include <algorithm>

#include "dray/result.hpp"

namespace dray::spool {
namespace {

bool may_have_neighbours(const RecordKind& kind) {
  return kind.type == RecordType::kMessage && (kind.flags & kContinues) == 0 &&
         kind.deliver_at_ms == 0 && kind.expires_at_ms == 0;
}

}  // namespace

Records& Batch::open() {
  if (records_ == nullptr) {
    records_ = buffers_->take();
    records_->begin_at(place_);
  }
  if (stretches_.size() == stretches_.capacity()) stretches_.reserve(2 * stretches_.size() + 8);
  return *records_;
}

void Batch::count(const RecordKind& kind) {
  if (!stretches_.empty() && stretches_.back().kind == kind && may_have_neighbours(kind)) {
    ++stretches_.back().count;
  } else {
    stretches_.push_back({kind, static_cast<std::uint32_t>(records_->size() - 1)});
  }
}

// If there is no memory for the record nothing is changed.
void Batch::add(const RecordKind& kind, std::string_view head, std::string_view tail,
                std::uint32_t payload_crc) {
  open().add(kind.type, kind.flags, head, tail, payload_crc);
  count(kind);
}

void Batch::add_from(const Batch& other, const Stretch& stretch, std::uint32_t from,
                     std::uint32_t until) {
  for (std::uint32_t i = std::max(from, stretch.from); i < std::min(until, stretch.until()); ++i) {
    open().add_from(*other.records_, i);
    count(stretch.kind);
  }
}

void Batch::clear() {
  records_.reset();
  stretches_.clear();
  place_ = 0;
}

void Batch::split(std::uint32_t index) {
  const auto after = std::upper_bound(
      stretches_.begin(), stretches_.end(), index,
      [](std::uint32_t wanted, const Stretch& each) { return wanted < each.from; });
  if (after == stretches_.begin()) return;
  auto& before = *std::prev(after);
  if (before.from == index || index >= before.until()) return;
  Stretch rest = before;
  rest.from = index;
  rest.count = before.until() - index;
  before.count -= rest.count;
  stretches_.insert(after, rest);
}

}  // namespace dray::spool
