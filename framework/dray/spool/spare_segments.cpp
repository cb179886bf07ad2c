#include "dray/spool/spare_segments.hpp"

#include <algorithm>
#include <charconv>
#include <iterator>
#include <vector>

namespace dray::spool {
namespace {

constexpr std::string_view kPrefix = "spare.";
constexpr const char* kCheckpointRoom = "spare.checkpoint";  // never a segment
constexpr std::uint64_t kSlice = 128U << 10;
constexpr int kSkipWhenFull = 240;  // calls, four a second then
constexpr std::uint64_t kSliceUrgent = 1024U << 10;
constexpr std::uint64_t kReserveSizeMin = 1U << 20;
// A file that was extended record by record ends where the next one did not fit any more.
constexpr std::uint64_t kMissingShareMax = 8;

}  // namespace

bool SpareSegments::is_spare_name(std::string_view name) {
  return name.starts_with(kPrefix);
}

void SpareSegments::adopt(const std::string& name) {
  if (name == kCheckpointRoom) return (void)directory_.remove(name);  // made anew
  const std::lock_guard lock(mutex_);
  // A name is given once: a rename to one that is in use would put another file under it.
  std::uint64_t number = 0;
  std::from_chars(name.data() + kPrefix.size(), name.data() + name.size(), number);
  names_ = std::max(names_, number);
  auto file = directory_.open(name, OpenMode::kReadWrite);
  if (!file.ok()) return;
  const auto size = (*file)->size();
  const bool whole = size.ok() && *size >= segment_size_;
  if (whole && !reserve_) {
    reserve_ = Spare{std::move(*file), name, *size, false};
    has_reserve_ = true;
  } else if (size.ok() && is_usable(*size) && ready_.size() < ready_wanted_) {
    ready_.push_back({std::move(*file), name, *size, false});
    count();
  } else {
    (void)directory_.remove(name);
  }
}

std::string SpareSegments::fresh_name() {
  const std::lock_guard lock(mutex_);
  return std::string(kPrefix) + std::to_string(++names_);
}

std::optional<SpareSegments::Spare> SpareSegments::take(bool whole) {
  const std::lock_guard lock(mutex_);
  auto best = std::find_if(ready_.begin(), ready_.end(),
                           [&](const auto& spare) { return is_whole(spare); });
  if (best == ready_.end() && !whole) best = ready_.begin();
  if (best != ready_.end()) {
    Spare taken = std::move(*best);
    ready_.erase(best);
    count();
    return taken;
  }
  if (!whole) return std::nullopt;
  has_reserve_ = false;
  return std::exchange(reserve_, std::nullopt);
}

Result<SpareSegments::Spare> SpareSegments::create() {
  for (;;) {
    const std::string name = fresh_name();
    auto file = directory_.open(name, OpenMode::kCreateNew);
    if (file.ok()) return Spare{std::move(*file), name, 0, false};
    if (file.error().code != ErrorCode::kConflict) return file.error();
  }
}

bool SpareSegments::make_reserve(std::uint64_t size) {
  {
    const std::lock_guard lock(mutex_);
    if (reserve_ && reserve_->size >= size) return true;
  }
  // Another program may have taken the room: what is there is better than what may be had.
  auto spare = take_whole();
  if (!spare) spare = allocated(size);
  if (!spare) return false;
  std::optional<Spare> smaller;
  {
    const std::lock_guard lock(mutex_);
    smaller = std::exchange(reserve_, std::move(spare));
    has_reserve_ = true;
  }
  if (smaller) (void)directory_.remove(smaller->name);
  return true;
}

std::optional<SpareSegments::Spare> SpareSegments::take_whole() {
  const std::lock_guard lock(mutex_);
  const auto whole = std::find_if(ready_.begin(), ready_.end(),
                                  [&](const auto& spare) { return is_whole(spare); });
  if (whole == ready_.end()) return std::nullopt;
  Spare taken = std::move(*whole);
  ready_.erase(whole);
  count();
  return taken;
}

std::optional<SpareSegments::Spare> SpareSegments::allocated(std::uint64_t size) {
  auto spare = create();
  if (!spare.ok()) return std::nullopt;
  bool done = spare->file->allocate(size).ok();
  // Nor do files that are not whole keep the room that it needs.
  if (!done && drop_parts()) done = spare->file->allocate(size).ok();
  if (!done) {
    spare->file.reset();
    (void)directory_.remove(spare->name);
    return std::nullopt;
  }
  spare->size = size;
  spare->confined = size < segment_size_;
  return std::move(*spare);
}

bool SpareSegments::drop_parts() {
  std::vector<Spare> parts;
  {
    const std::lock_guard lock(mutex_);
    const auto whole = std::stable_partition(ready_.begin(), ready_.end(),
                                             [&](const auto& spare) { return is_whole(spare); });
    std::move(whole, ready_.end(), std::back_inserter(parts));
    ready_.erase(whole, ready_.end());
    count();
  }
  for (auto& part : parts) {
    part.file.reset();
    (void)directory_.remove(part.name);
  }
  return !parts.empty();
}

bool SpareSegments::ensure_reserve() {
  return make_reserve(segment_size_);
}

bool SpareSegments::ensure_some_reserve() {
  std::uint64_t size = segment_size_;
  while (!make_reserve(size)) {
    if (size <= kReserveSizeMin) return false;
    size /= 2;
  }
  return true;
}

// Freeing segments takes a checkpoint, also when the reserve is used up and nothing else is left.
bool SpareSegments::ensure_checkpoint_room(std::uint64_t size) {
  if (checkpoint_room_ >= size) return true;
  auto file = directory_.open(kCheckpointRoom, OpenMode::kCreateNew);
  if (!file.ok() && file.error().code == ErrorCode::kConflict) {
    file = directory_.open(kCheckpointRoom, OpenMode::kReadWrite);
  }
  if (!file.ok() || !(*file)->allocate(size).ok()) return false;
  checkpoint_room_ = size;
  return true;
}

bool SpareSegments::release_checkpoint_room() {
  if (std::exchange(checkpoint_room_, 0) == 0) return false;
  return directory_.remove(kCheckpointRoom).ok();
}

bool SpareSegments::has_reserve() const {
  return has_reserve_;
}

void SpareSegments::release_reserve() {
  std::optional<Spare> released;
  {
    const std::lock_guard lock(mutex_);
    released = std::exchange(reserve_, std::nullopt);
    has_reserve_ = false;
  }
  if (released) (void)directory_.remove(released->name);
}

bool SpareSegments::is_usable(std::uint64_t size) const {
  return size >= segment_size_ - segment_size_ / kMissingShareMax && size <= segment_size_;
}

std::size_t SpareSegments::usable() const {
  return static_cast<std::size_t>(std::count_if(
      ready_.begin(), ready_.end(), [&](const auto& spare) { return is_usable(spare.size); }));
}

void SpareSegments::count() {
  std::uint64_t filled = 0;
  std::size_t whole = 0;
  for (const auto& spare : ready_) {
    filled += spare.size;
    whole += is_whole(spare) ? 1U : 0U;
  }
  filled_ = filled;
  whole_ = whole;
}

bool SpareSegments::wants_recycled(std::uint64_t size, std::size_t coming) const {
  const std::lock_guard lock(mutex_);
  // On a full disk the room is worth more than a file that is not whole: the reserve needs it.
  const bool reserved = reserve_ && is_whole(*reserve_);
  if (size > segment_size_ || (!reserved && size != segment_size_)) return false;
  // Left early, for it grew: what it has need not be filled again.
  if (!is_usable(size)) return ready_.empty() && coming == 0 && size >= segment_size_ / 4;
  return (!reserved && coming == 0 && size == segment_size_) || usable() + coming < ready_wanted_;
}

void SpareSegments::recycle(Spare spare) {
  std::optional<Spare> replaced;
  {
    const std::lock_guard lock(mutex_);
    if (is_whole(spare) && !(reserve_ && is_whole(*reserve_))) {
      replaced = std::exchange(reserve_, std::move(spare));  // one that is not
      has_reserve_ = true;
    } else if (!is_usable(spare.size)) {  // prepare() fills the rest
      spare.size -= spare.size % kSlice;
      if (ready_.empty()) {
        ready_.push_back(std::move(spare));
      } else {
        replaced = std::move(spare);
      }
    } else {
      if (ready_.size() >= ready_wanted_) {  // the one that is being filled
        replaced = std::move(ready_.back());
        ready_.pop_back();
      }
      ready_.push_front(std::move(spare));
    }
    count();
  }
  if (replaced) (void)directory_.remove(replaced->name);
}

bool SpareSegments::prepare(bool urgent) {
  if (!has_reserve_) return false;
  if (skip_ > 0) {
    --skip_;
    return false;
  }
  std::optional<Spare> filling;
  {
    // Taken out while it is filled: a commit that needs a file makes one and does not wait.
    const std::lock_guard lock(mutex_);
    const auto part = std::find_if(ready_.begin(), ready_.end(),
                                   [&](const auto& spare) { return !is_whole(spare); });
    if (part != ready_.end()) {
      filling = std::move(*part);
      ready_.erase(part);
      count();
    } else if (ready_.size() >= ready_wanted_) {
      return false;
    }
  }
  if (!filling) {
    auto spare = create();
    if (!spare.ok()) return false;
    filling = std::move(*spare);
  }
  const std::uint64_t slice =
      std::min(urgent ? kSliceUrgent : kSlice, segment_size_ - filling->size);
  const bool filled = filling->file->fill_zeros(filling->size, slice).ok();
  filling->size += slice;
  {
    const std::lock_guard lock(mutex_);
    if (filled && ready_.size() < ready_wanted_) {
      ready_.push_back(std::move(*filling));
      count();
      return whole_ < ready_wanted_;
    }
  }
  // A full disk: leave what room there is to others, for a while. Or one was recycled meanwhile.
  if (!filled) skip_ = kSkipWhenFull;
  (void)directory_.remove(filling->name);
  return false;
}

}  // namespace dray::spool
