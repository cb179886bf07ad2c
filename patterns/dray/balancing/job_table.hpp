// JobTable: what is known of jobs, by an id that says where it stands. Ids grow, none is 0, and
// none is given twice.
//
// Threading: one thread. Failure: none. Limits: 1,048,576 jobs at a time; ids for 2^44 of them.
// Ownership: holds the values; an add() may move them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "dray/result.hpp"

namespace dray::balancing {

template <typename T>
class JobTable {
 public:
  // REQUIRES: size() < 2^20.
  std::uint64_t add(const T& value) {
    if (free_.empty()) {
      DRAY_ASSERT(slots_.size() <= kSlotMask);
      free_.push_back(static_cast<std::uint32_t>(slots_.size()));
      slots_.emplace_back();
    }
    auto& slot = slots_[free_.back()];
    slot.id = ++last_ << kSlotBits | free_.back();
    slot.value = value;
    free_.pop_back();
    ++size_;
    return slot.id;
  }
  T* find(std::uint64_t id) {
    const auto at = static_cast<std::size_t>(id & kSlotMask);
    return id != 0 && at < slots_.size() && slots_[at].id == id ? &slots_[at].value : nullptr;
  }
  const T* find(std::uint64_t id) const {
    return const_cast<JobTable*>(this)->find(id);  // NOLINT: changes nothing
  }
  // REQUIRES: it is there.
  T& at(std::uint64_t id) {
    T* const found = find(id);
    DRAY_ASSERT(found != nullptr);
    return *found;
  }
  void erase(std::uint64_t id) {
    if (find(id) == nullptr) return;
    const auto at = static_cast<std::uint32_t>(id & kSlotMask);
    slots_[at].id = 0;
    free_.push_back(at);
    --size_;
  }
  std::size_t size() const { return size_; }
  // Oldest first.
  std::vector<std::uint64_t> ids() const {
    std::vector<std::uint64_t> all;
    all.reserve(size_);
    for (const auto& slot : slots_) {
      if (slot.id != 0) all.push_back(slot.id);
    }
    std::sort(all.begin(), all.end());
    return all;
  }

 private:
  static constexpr unsigned kSlotBits = 20;
  static constexpr std::uint64_t kSlotMask = (1U << kSlotBits) - 1;
  struct Slot {
    std::uint64_t id = 0;  // 0: free
    T value{};
  };

  std::vector<Slot> slots_;
  std::vector<std::uint32_t> free_;  // the last one was in use last
  std::uint64_t last_ = 0;
  std::size_t size_ = 0;
};

}  // namespace dray::balancing
