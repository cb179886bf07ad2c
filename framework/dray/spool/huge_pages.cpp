#include "dray/spool/huge_pages.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <mutex>
#include <new>
#include <vector>

#include "dray/result.hpp"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(address, size) ((void)(address), (void)(size))
#define ASAN_UNPOISON_MEMORY_REGION(address, size) ((void)(address), (void)(size))
#endif

namespace dray::spool::huge_pages {
namespace {

constexpr std::size_t kSlab = 2U << 20;  // the size of a huge page on x86-64, and usual on ARM
constexpr std::size_t kGranule = kBlockMin;
static_assert(kSlab / kGranule == 32, "a slab's granules are the bits of a word");

// From a multiple of kSlab on.
char* map(std::size_t bytes) {
  const std::size_t wanted = bytes + kSlab;
  void* const mapped =
      mmap(nullptr, wanted, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) throw std::bad_alloc();
  char* const begin = static_cast<char*>(mapped);
  const std::size_t before =
      (kSlab - reinterpret_cast<std::uintptr_t>(mapped) % kSlab) % kSlab;  // NOLINT: an address
  if (before > 0) munmap(begin, before);
  munmap(begin + before + bytes, wanted - before - bytes);
  (void)madvise(begin + before, bytes, MADV_HUGEPAGE);  // without it: usual pages
  return begin + before;
}

std::size_t rounded(std::size_t bytes, std::size_t unit) {
  return (bytes + unit - 1) / unit * unit;
}

class Slabs {
 public:
  char* take(std::size_t bytes) {
    const std::size_t granules = rounded(bytes, kGranule) / kGranule;
    const std::lock_guard lock(mutex_);
    for (auto& slab : slabs_) {
      if (char* block = take_from(slab, granules)) return block;
    }
    slabs_.reserve(slabs_.size() + 1);  // or the mapping would be nobody's
    slabs_.push_back({map(kSlab), 0});
    ASAN_POISON_MEMORY_REGION(slabs_.back().begin, kSlab);
    return take_from(slabs_.back(), granules);
  }

  void give_back(char* block, std::size_t bytes) {
    const std::size_t granules = rounded(bytes, kGranule) / kGranule;
    const std::lock_guard lock(mutex_);
    const auto slab = std::find_if(slabs_.begin(), slabs_.end(), [&](const Slab& each) {
      return block >= each.begin && block < each.begin + kSlab;
    });
    DRAY_ASSERT(slab != slabs_.end());
    const std::uint32_t bits = run_of(granules)
                               << (static_cast<std::size_t>(block - slab->begin) / kGranule);
    DRAY_ASSERT((slab->used & bits) == bits);
    slab->used &= ~bits;
    ASAN_POISON_MEMORY_REGION(block, granules * kGranule);
    if (slab->used != 0) return;
    const bool another = std::any_of(slabs_.begin(), slabs_.end(), [&](const Slab& each) {
      return each.used == 0 && each.begin != slab->begin;
    });
    if (!another) return;
    ASAN_UNPOISON_MEMORY_REGION(slab->begin, kSlab);
    munmap(slab->begin, kSlab);
    slabs_.erase(slab);
  }

  std::size_t bytes_mapped() {
    const std::lock_guard lock(mutex_);
    return slabs_.size() * kSlab;
  }

 private:
  struct Slab {
    char* begin;
    std::uint32_t used;  // granules, as bits
  };

  static std::uint32_t run_of(std::size_t granules) {
    return granules == 32 ? UINT32_MAX : (1U << granules) - 1;
  }

  // Null if no run of so many granules is free.
  static char* take_from(Slab& slab, std::size_t granules) {
    for (std::size_t at = 0; at + granules <= 32; ++at) {
      const std::uint32_t bits = run_of(granules) << at;
      if ((slab.used & bits) != 0) continue;
      slab.used |= bits;
      char* const block = slab.begin + at * kGranule;
      ASAN_UNPOISON_MEMORY_REGION(block, granules * kGranule);
      return block;
    }
    return nullptr;
  }

  std::mutex mutex_;
  std::vector<Slab> slabs_;  // the oldest are filled first, so that the newest come free
};

Slabs& slabs() {
  static auto* const all = new Slabs;  // lives on: blocks are given back until the very end
  return *all;
}

}  // namespace

char* take(std::size_t bytes) {
  DRAY_ASSERT(bytes >= kBlockMin);
  return bytes <= kSlab ? slabs().take(bytes) : map(rounded(bytes, kSlab));
}

void give_back(char* block, std::size_t bytes) noexcept {
  if (bytes <= kSlab) return slabs().give_back(block, bytes);
  munmap(block, rounded(bytes, kSlab));
}

std::size_t bytes_mapped() {
  return slabs().bytes_mapped();
}

}  // namespace dray::spool::huge_pages
