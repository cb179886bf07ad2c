#include "dray/spool/sequence_set.hpp"

#include <algorithm>
#include <bit>

#include "dray/result.hpp"
#include "dray/spool/bytes.hpp"

namespace dray::spool {
namespace {

constexpr std::uint64_t kIsBitmap = UINT64_MAX;  // in place of a last block
constexpr std::size_t kHeadSize = 16;

// Ones at [first, last]. REQUIRES: first <= last < 64.
constexpr std::uint64_t ones(std::uint64_t first, std::uint64_t last) {
  return (UINT64_MAX >> (63 - last)) & (UINT64_MAX << first);
}

}  // namespace

std::uint32_t SequenceSet::Bits::set(std::uint64_t first, std::uint64_t last) {
  const std::uint32_t before = count;
  for (std::uint64_t word = first / 64; word <= last / 64; ++word) {
    const std::uint64_t from = word == first / 64 ? first % 64 : 0;
    const std::uint64_t until = word == last / 64 ? last % 64 : 63;
    const std::uint64_t added = ones(from, until) & ~words[word];
    words[word] |= added;
    count += static_cast<std::uint32_t>(std::popcount(added));
  }
  return count - before;
}

std::uint64_t SequenceSet::Bits::first_unset(std::uint64_t from) const {
  for (std::uint64_t word = from / 64; word < words.size(); ++word) {
    std::uint64_t unset = ~words[word];
    if (word == from / 64) unset &= ones(from % 64, 63);
    if (unset != 0) return word * 64 + static_cast<std::uint64_t>(std::countr_zero(unset));
  }
  return kBlockSize;
}

bool SequenceSet::is_full(std::uint64_t block) const {
  const auto after = full_.upper_bound(block);
  return after != full_.begin() && std::prev(after)->second >= block;
}

SequenceSet::Bits* SequenceSet::find(std::uint64_t block) const {
  if (block == near_block_) return near_;
  const auto found = partial_.find(block);
  if (found == partial_.end()) return nullptr;
  near_block_ = block;
  near_ = found->second.get();
  return near_;
}

void SequenceSet::add_full(std::uint64_t first_block, std::uint64_t last_block) {
  const auto begin = partial_.lower_bound(first_block);
  const auto end = partial_.upper_bound(last_block);
  if (begin != end) {
    near_block_ = UINT64_MAX;
    partial_.erase(begin, end);
  }
  auto after = full_.upper_bound(first_block);
  if (after != full_.begin()) {
    const auto before = std::prev(after);
    if (before->second + 1 >= first_block) {
      first_block = before->first;
      last_block = std::max(last_block, before->second);
      after = full_.erase(before);
    }
  }
  while (after != full_.end() && after->first <= last_block + 1) {
    last_block = std::max(last_block, after->second);
    after = full_.erase(after);
  }
  full_.emplace_hint(after, first_block, last_block);
}

std::uint32_t SequenceSet::add_in_block(std::uint64_t block, std::uint64_t first,
                                        std::uint64_t last) {
  Bits* bits = find(block);
  if (bits == nullptr) {
    if (is_full(block)) return 0;
    auto fresh = std::make_unique<Bits>();
    if (block == 0) fresh->set(0, 0);
    bits = fresh.get();
    partial_.emplace(block, std::move(fresh));
    near_block_ = block;
    near_ = bits;
  }
  const std::uint32_t added = bits->set(first, last);
  if (bits->count == kBlockSize) add_full(block, block);
  return added;
}

void SequenceSet::add(std::uint64_t first, std::uint64_t last) {
  DRAY_ASSERT(first <= last);
  const std::uint64_t first_block = first >> kBlockBits;
  const std::uint64_t last_block = last >> kBlockBits;
  const std::uint64_t from = first % kBlockSize;
  const std::uint64_t until = last % kBlockSize;
  if (first_block == last_block) {
    add_in_block(first_block, from, until);
    return;
  }
  add_in_block(first_block, from, kBlockSize - 1);
  if (first_block + 1 < last_block) add_full(first_block + 1, last_block - 1);
  add_in_block(last_block, 0, until);
}

std::uint64_t SequenceSet::add_counting(std::uint64_t first, std::uint64_t last) {
  DRAY_ASSERT(first <= last);
  std::uint64_t added = 0;
  for (std::uint64_t block = first >> kBlockBits; block <= last >> kBlockBits; ++block) {
    const std::uint64_t begin = block << kBlockBits;
    added += add_in_block(block, std::max(first, begin) - begin,
                          std::min(last, begin + kBlockSize - 1) - begin);
  }
  return added;
}

void SequenceSet::remove(std::uint64_t value) {
  const std::uint64_t block = value >> kBlockBits;
  const std::uint64_t at = value % kBlockSize;
  Bits* bits = find(block);
  if (bits == nullptr) {
    if (!is_full(block)) return;
    auto run = std::prev(full_.upper_bound(block));
    const auto [first_block, last_block] = *run;
    full_.erase(run);
    if (first_block < block) full_.emplace(first_block, block - 1);
    if (block < last_block) full_.emplace(block + 1, last_block);
    auto fresh = std::make_unique<Bits>();
    fresh->set(0, kBlockSize - 1);
    bits = fresh.get();
    partial_.emplace(block, std::move(fresh));
  }
  if (!bits->has(at)) return;
  bits->words[at / 64] &= ~(1ULL << (at % 64));
  if (--bits->count > 0) return;
  near_block_ = UINT64_MAX;
  partial_.erase(block);
}

bool SequenceSet::contains(std::uint64_t value) const {
  const std::uint64_t block = value >> kBlockBits;
  if (const Bits* bits = find(block)) return bits->has(value % kBlockSize);
  return is_full(block);
}

std::uint64_t SequenceSet::first_gap(std::uint64_t from) const {
  for (;;) {
    const std::uint64_t block = from >> kBlockBits;
    if (const Bits* bits = find(block)) {
      const auto at = bits->first_unset(from % kBlockSize);
      if (at < kBlockSize) return (block << kBlockBits) + at;
      from = (block + 1) << kBlockBits;
      continue;
    }
    if (!is_full(block)) return from;
    from = (std::prev(full_.upper_bound(block))->second + 1) << kBlockBits;
  }
}

std::string SequenceSet::encode() const {
  std::string bytes;
  for (const auto& [first, last] : full_) {
    put_le(bytes, first);
    put_le(bytes, last);
  }
  for (const auto& [block, bits] : partial_) {
    put_le(bytes, block);
    put_le(bytes, kIsBitmap);
    for (const auto word : bits->words) put_le(bytes, word);
  }
  return bytes;
}

bool SequenceSet::decode(std::string_view bytes) {
  *this = SequenceSet();
  while (!bytes.empty()) {
    if (decode_part(bytes)) continue;
    *this = SequenceSet();
    return false;
  }
  return true;
}

// Takes one part off `bytes`.
bool SequenceSet::decode_part(std::string_view& bytes) {
  constexpr std::size_t kBitmapSize = kBlockSize / 8;
  constexpr std::uint64_t kBlockMax = UINT64_MAX >> kBlockBits;
  if (bytes.size() < kHeadSize) return false;
  const auto first = get_le<std::uint64_t>(bytes.data());
  const auto last = get_le<std::uint64_t>(bytes.data() + 8);
  bytes.remove_prefix(kHeadSize);
  if (first > kBlockMax || is_full(first) || find(first) != nullptr) return false;
  if (last != kIsBitmap) {
    if (last < first || last > kBlockMax) return false;
    add_full(first, last);
    return true;
  }
  if (bytes.size() < kBitmapSize) return false;
  auto bits = std::make_unique<Bits>();
  for (std::size_t i = 0; i < bits->words.size(); ++i) {
    bits->words[i] = get_le<std::uint64_t>(bytes.data() + i * 8);
    bits->count += static_cast<std::uint32_t>(std::popcount(bits->words[i]));
  }
  bytes.remove_prefix(kBitmapSize);
  if (bits->count == 0 || bits->count == kBlockSize) return false;
  partial_.emplace(first, std::move(bits));
  return true;
}

}  // namespace dray::spool
