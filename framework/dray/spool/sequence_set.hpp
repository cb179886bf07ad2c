// SequenceSet: which positions of a log are closed for a group.
//
// Positions stand in blocks of 4,096: runs of blocks that are wholly in the set, and a bitmap for
// each block that is in part. So a set costs next to nothing where positions are closed in order,
// and one bit for each position of the log where they are not (P8): a priority that runs far ahead
// of another costs 1.2 MiB per ten million messages.
//
// Threading: one thread at a time. Cost: O(log blocks); next to the position used last, O(1).
#pragma once

#include <absl/container/btree_map.h>

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

namespace dray::spool {

class SequenceSet {
 public:
  // REQUIRES: first <= last. Position 0 names no message; it comes in with its block.
  void add(std::uint64_t first, std::uint64_t last);
  void add(std::uint64_t value) { add(value, value); }
  // The same; how many of them were not in the set. For a few blocks of positions: looks at each.
  std::uint64_t add_counting(std::uint64_t first, std::uint64_t last);
  void remove(std::uint64_t value);
  bool contains(std::uint64_t value) const;
  // The smallest value >= `from` that is not in the set.
  std::uint64_t first_gap(std::uint64_t from) const;
  // What it costs, for limits: runs and bitmaps.
  std::size_t part_count() const { return full_.size() + partial_.size(); }

  // The bytes of a checkpoint (framework/FORMATS.md, "Closed positions").
  std::string encode() const;
  // False, with the set empty, if they are no such bytes.
  bool decode(std::string_view bytes);

 private:
  static constexpr std::uint64_t kBlockBits = 12;
  static constexpr std::uint64_t kBlockSize = 1ULL << kBlockBits;

  struct Bits {
    std::array<std::uint64_t, kBlockSize / 64> words{};
    std::uint32_t count = 0;

    bool has(std::uint64_t at) const { return ((words[at / 64] >> (at % 64)) & 1U) != 0; }
    // How many were not set.
    std::uint32_t set(std::uint64_t first, std::uint64_t last);
    // kBlockSize if there is none.
    std::uint64_t first_unset(std::uint64_t from) const;
  };

  bool is_full(std::uint64_t block) const;
  void add_full(std::uint64_t first_block, std::uint64_t last_block);
  std::uint32_t add_in_block(std::uint64_t block, std::uint64_t first, std::uint64_t last);
  Bits* find(std::uint64_t block) const;
  bool decode_part(std::string_view& bytes);

  absl::btree_map<std::uint64_t, std::uint64_t> full_;  // first block -> last block
  absl::btree_map<std::uint64_t, std::unique_ptr<Bits>> partial_;
  // The block used last.
  mutable std::uint64_t near_block_ = UINT64_MAX;
  mutable Bits* near_ = nullptr;
};

}  // namespace dray::spool
