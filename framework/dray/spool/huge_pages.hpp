// Huge pages: memory for large buffers that a disk reads from. In pages of 4 KiB each is a piece of
// its own to pin, to describe and to fetch: durable writes of 340 KiB past the page cache took 4 to
// 11 % longer (p50, a virtual disk). Where the system has none to give, it is usual memory.
//
//   slab of 2 MiB, one huge page:  | granule 64 KiB | granule | ... | 32 of them
//
// A block is a run of neighbouring granules, the first that fits; one of more than a slab is a
// mapping of its own. One slab that nobody uses is kept, others go back to the system.
//
// Threading: any. Failure: std::bad_alloc. Ownership: a block is given back by its holder; slabs
// belong to the process.
#pragma once

#include <cstddef>

namespace dray::spool::huge_pages {

// Below, a buffer is better off with the allocator.
constexpr std::size_t kBlockMin = 64U << 10;

// At least `bytes`, which are at least kBlockMin, from a page's start on; not filled with zeros.
char* take(std::size_t bytes);
// `bytes` as they were asked for.
void give_back(char* block, std::size_t bytes) noexcept;
// Of slabs, whether anybody uses them or not.
std::size_t bytes_mapped();

}  // namespace dray::spool::huge_pages
