#include "dray/spool/spare_segments.hpp"

#include <algorithm>
#include <charconv>

namespace dray::spool {
namespace {

constexpr std::string_view kPrefix = "spare.";
constexpr std::uint64_t kSlice = 1024U << 10;
constexpr std::uint64_t kReserveSizeMin = 1U << 20;
// A file that was extended record by record ends where the next one did not fit any more.
constexpr std::uint64_t kMissingShareMax = 8;

}  // namespace

bool SpareSegments::is_spare_name(std::string_view name) {
  return name.starts_with(kPrefix);
}

void SpareSegments::adopt(const std::string& name) {
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
  } else if (size.ok() && is_usable(*size) && !next_) {
    next_ = Spare{std::move(*file), name, *size, false};
    next_whole_ = whole;
    filled_ = *size;
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
  if (next_ && (!whole || next_whole_)) {
    filled_ = 0;
    return std::exchange(next_, std::nullopt);
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
    if (reserve_) return true;
  }
  auto spare = create();
  if (!spare.ok()) return false;
  if (spare->file->allocate(size).ok()) {
    spare->size = size;
    spare->confined = size < segment_size_;
    const std::lock_guard lock(mutex_);
    reserve_ = std::move(*spare);
    has_reserve_ = true;
    return true;
  }
  spare->file.reset();
  (void)directory_.remove(spare->name);
  return false;
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

bool SpareSegments::wants_recycled(std::uint64_t size) const {
  const std::lock_guard lock(mutex_);
  if (!is_usable(size)) return false;
  return (!reserve_ && size == segment_size_) || !next_ || !is_usable(next_->size);
}

void SpareSegments::recycle(Spare spare) {
  const bool whole = spare.size == segment_size_;
  std::optional<Spare> replaced;
  {
    const std::lock_guard lock(mutex_);
    if (whole && !reserve_) {
      reserve_ = std::move(spare);
      has_reserve_ = true;
      return;
    }
    replaced = std::exchange(next_, std::move(spare));
    next_whole_ = whole;
    filled_ = next_->size;
  }
  if (replaced) (void)directory_.remove(replaced->name);
}

bool SpareSegments::prepare() {
  std::optional<Spare> filling;
  {
    // Taken out while it is filled: a commit that needs a file makes one and does not wait.
    const std::lock_guard lock(mutex_);
    if (next_ && next_whole_) return false;
    filling = std::exchange(next_, std::nullopt);
  }
  if (!filling) {
    auto spare = create();
    if (!spare.ok()) return false;
    filling = std::move(*spare);
  }
  const std::string zeros(static_cast<std::size_t>(std::min(kSlice, segment_size_ - filling->size)),
                          '\0');
  const bool filled = filling->file->write_durable_at(filling->size, zeros).ok();
  filling->size += zeros.size();
  {
    const std::lock_guard lock(mutex_);
    if (filled && !next_) {
      next_ = std::move(filling);
      next_whole_ = next_->size >= segment_size_;
      filled_ = next_->size;
      return !next_whole_;
    }
    filled_ = next_ ? next_->size : 0;
  }
  // A full disk: leave what room there is to others. Or one was recycled meanwhile.
  (void)directory_.remove(filling->name);
  return false;
}

}  // namespace dray::spool
