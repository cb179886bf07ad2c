// Sequence runs: sequences as runs of neighbours. What is granted, answered and settled together
// are mostly neighbours in the log: a run costs what one sequence costs.
//
// Format: a MessagePack array of naturals in pairs (gap, length): `gap` sequences after the end of
// the run before (the first counts from 0), then `length` >= 1 neighbours. 1,2,3,7 -> [1,3,3,1].
//
// Threading: values and pure functions. Limits: at most kRunSequencesMax sequences per list that is
// decoded, so that a few bytes cannot ask for work without end.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <vector>

#include "dray/codec.hpp"
#include "dray/message.hpp"

namespace dray {

inline constexpr std::size_t kRunSequencesMax = 1U << 20;

struct SequenceRun {
  Sequence first = 0;
  std::uint64_t count = 0;

  Sequence end() const { return first + count; }
  Sequence last() const { return first + count - 1; }
  bool operator==(const SequenceRun&) const = default;
};

class SequenceRuns {
 public:
  SequenceRuns() = default;
  SequenceRuns(std::initializer_list<Sequence> sequences) {
    for (const auto sequence : sequences) add(sequence);
  }
  static SequenceRuns of(const std::vector<Sequence>& sequences);

  // Behind the last one, in whatever order they come.
  void add(Sequence first, std::uint64_t count = 1) {
    size_ += count;
    if (!runs_.empty() && runs_.back().end() == first) {
      runs_.back().count += count;
    } else {
      runs_.push_back({first, count});
    }
  }
  void add(const SequenceRun& run) { add(run.first, run.count); }
  // Ascending, each sequence once.
  void sort();
  void clear() {
    runs_.clear();
    size_ = 0;
  }

  bool empty() const { return runs_.empty(); }
  // Sequences in all.
  std::uint64_t size() const { return size_; }
  // REQUIRES: !empty().
  Sequence front() const { return runs_.front().first; }
  // REQUIRES: sorted.
  bool contains(Sequence sequence) const;
  std::vector<Sequence> list() const;

  // The runs.
  std::vector<SequenceRun>::const_iterator begin() const { return runs_.begin(); }
  std::vector<SequenceRun>::const_iterator end() const { return runs_.end(); }
  std::size_t run_count() const { return runs_.size(); }

  bool operator==(const SequenceRuns&) const = default;

 private:
  std::vector<SequenceRun> runs_;
  std::uint64_t size_ = 0;
};

// REQUIRES: strictly ascending, none 0, at most kRunSequencesMax.
void encode_runs(Encoder& encoder, const SequenceRuns& sequences);

// kCorrupt if it is no such list.
Result<SequenceRuns> decode_runs(const Value& value);
// The same, with a bound that several lists share; `left` is lowered by what was read.
Result<SequenceRuns> decode_runs(const Value& value, std::size_t& left);

}  // namespace dray
