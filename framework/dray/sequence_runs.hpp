// Sequence runs: an ascending list of sequences as runs of neighbours, for records and frames.
//
// Format: a MessagePack array of naturals in pairs (gap, length): `gap` sequences after the end of
// the run before (the first counts from 0), then `length` >= 1 neighbours. 1,2,3,7 -> [1,3,3,1].
//
// Threading: pure functions. Limits: at most kRunSequencesMax sequences per list, so that a few
// bytes cannot ask for gigabytes.
#pragma once

#include <algorithm>
#include <vector>

#include "dray/codec.hpp"
#include "dray/message.hpp"

namespace dray {

inline constexpr std::size_t kRunSequencesMax = 1U << 20;

// Most lists are ascending as they come.
inline void sort_if_needed(std::vector<Sequence>& sequences) {
  if (std::is_sorted(sequences.begin(), sequences.end())) return;
  std::sort(sequences.begin(), sequences.end());
}

// REQUIRES: strictly ascending, none 0, at most kRunSequencesMax.
void encode_runs(Encoder& encoder, const std::vector<Sequence>& sequences);

// kCorrupt if it is no such list.
Result<std::vector<Sequence>> decode_runs(const Value& value);
// The same, with a bound that several lists share; `left` is lowered by what was read.
Result<std::vector<Sequence>> decode_runs(const Value& value, std::size_t& left);

}  // namespace dray
