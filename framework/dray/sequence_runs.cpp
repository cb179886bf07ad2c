#include "dray/sequence_runs.hpp"

#include <limits>

namespace dray {

void encode_runs(Encoder& encoder, const std::vector<Sequence>& sequences) {
  DRAY_ASSERT(sequences.size() <= kRunSequencesMax);
  std::vector<std::uint64_t> numbers;
  Sequence end = 0;  // one past the run before, minus 0 for the first
  for (std::size_t i = 0; i < sequences.size();) {
    std::size_t length = 1;
    while (i + length < sequences.size() && sequences[i + length] == sequences[i] + length) {
      ++length;
    }
    DRAY_ASSERT(sequences[i] >= end && sequences[i] != 0);
    numbers.push_back(sequences[i] - end);
    numbers.push_back(length);
    end = sequences[i] + length;
    i += length;
  }
  encoder.array(numbers.size());
  for (const auto number : numbers) encoder.natural(number);
}

Result<std::vector<Sequence>> decode_runs(const Value& value) {
  std::size_t left = kRunSequencesMax;
  return decode_runs(value, left);
}

Result<std::vector<Sequence>> decode_runs(const Value& value, std::size_t& left) {
  const Error fault{ErrorCode::kCorrupt, "not a list of sequence runs", "", 0};
  if (value.kind() != Value::Kind::kArray || value.size() % 2 != 0) return fault;
  std::vector<Sequence> sequences;
  Sequence end = 0;
  for (std::size_t i = 0; i < value.size(); i += 2) {
    std::uint64_t gap = 0;
    std::uint64_t length = 0;
    if (!value.at(i).get(gap) || !value.at(i + 1).get(length)) return fault;
    constexpr auto kMax = std::numeric_limits<Sequence>::max();
    if (length == 0 || length > left) return fault;
    if (gap > kMax - end || length > kMax - end - gap || end + gap == 0) return fault;
    left -= static_cast<std::size_t>(length);
    if (sequences.empty()) sequences.reserve(static_cast<std::size_t>(length));
    end += gap;
    for (std::uint64_t k = 0; k < length; ++k) sequences.push_back(end++);
  }
  return sequences;
}

}  // namespace dray
