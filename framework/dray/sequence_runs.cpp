#include "dray/sequence_runs.hpp"

#include <algorithm>
#include <limits>

namespace dray {

SequenceRuns SequenceRuns::of(const std::vector<Sequence>& sequences) {
  SequenceRuns runs;
  for (const auto sequence : sequences) runs.add(sequence);
  return runs;
}

void SequenceRuns::sort() {
  const auto in_order = [](const SequenceRun& one, const SequenceRun& other) {
    return one.end() < other.first;
  };
  bool sorted = true;
  for (std::size_t i = 1; sorted && i < runs_.size(); ++i) {
    sorted = in_order(runs_[i - 1], runs_[i]);
  }
  if (sorted) return;
  std::sort(runs_.begin(), runs_.end(),
            [](const auto& one, const auto& other) { return one.first < other.first; });
  auto out = runs_.begin();
  for (auto each = std::next(out); each != runs_.end(); ++each) {
    if (in_order(*out, *each)) {
      *++out = *each;
    } else {
      out->count = std::max(out->end(), each->end()) - out->first;
    }
  }
  runs_.erase(std::next(out), runs_.end());
  size_ = 0;
  for (const auto& run : runs_) size_ += run.count;
}

bool SequenceRuns::contains(Sequence sequence) const {
  const auto after =
      std::upper_bound(runs_.begin(), runs_.end(), sequence,
                       [](Sequence wanted, const SequenceRun& run) { return wanted < run.first; });
  return after != runs_.begin() && sequence < std::prev(after)->end();
}

std::vector<Sequence> SequenceRuns::list() const {
  std::vector<Sequence> all;
  all.reserve(static_cast<std::size_t>(size_));
  for (const auto& run : runs_) {
    for (std::uint64_t i = 0; i < run.count; ++i) all.push_back(run.first + i);
  }
  return all;
}

void encode_runs(Encoder& encoder, const SequenceRuns& sequences) {
  DRAY_ASSERT(sequences.size() <= kRunSequencesMax);
  encoder.array(2 * sequences.run_count());
  Sequence end = 0;  // one past the run before, minus 0 for the first
  for (const auto& run : sequences) {
    DRAY_ASSERT(run.first >= end && run.first != 0);
    encoder.natural(run.first - end);
    encoder.natural(run.count);
    end = run.end();
  }
}

Result<SequenceRuns> decode_runs(const Value& value) {
  std::size_t left = kRunSequencesMax;
  return decode_runs(value, left);
}

Result<SequenceRuns> decode_runs(const Value& value, std::size_t& left) {
  const auto fault = [] {
    return Error{ErrorCode::kCorrupt, "not a list of sequence runs", "", 0};
  };
  if (value.kind() != Value::Kind::kArray || value.size() % 2 != 0) return fault();
  SequenceRuns sequences;
  Sequence end = 0;
  for (std::size_t i = 0; i < value.size(); i += 2) {
    std::uint64_t gap = 0;
    std::uint64_t length = 0;
    if (!value.at(i).get(gap) || !value.at(i + 1).get(length)) return fault();
    constexpr auto kMax = std::numeric_limits<Sequence>::max();
    if (length == 0 || length > left) return fault();
    if (gap > kMax - end || length > kMax - end - gap || end + gap == 0) return fault();
    left -= static_cast<std::size_t>(length);
    sequences.add(end + gap, length);
    end += gap + length;
  }
  return sequences;
}

}  // namespace dray
