#include "dray/spool/step_journals.hpp"

#include <algorithm>

#include "dray/spool/bytes.hpp"

namespace dray::spool {
namespace {

constexpr std::size_t kJournalCost = 96;  // a node of the map

std::size_t cost(const StepState& step) {
  return sizeof(StepState) + step.name.size() + step.value.size();
}

}  // namespace

void StepJournals::apply(const StepRecord& record) {
  if (record.what == StepCall::kNotDone) {
    const auto journal = journals_.find(record.sequence);
    if (journal == journals_.end()) return;
    std::erase_if(journal->second, [&](const StepState& step) {
      const bool gone = step.name == record.step && !step.done && step.run == record.run;
      bytes_ -= gone ? cost(step) : 0;
      return gone;
    });
    if (journal->second.empty()) forget(record.sequence);
    return;
  }
  const auto [journal, fresh] = journals_.try_emplace(record.sequence);
  if (fresh) bytes_ += kJournalCost;
  auto& steps = journal->second;
  auto step = std::find_if(steps.begin(), steps.end(),
                           [&](const StepState& each) { return each.name == record.step; });
  if (step == steps.end()) {
    step = steps.insert(steps.end(), StepState{record.step, false, 0, "", 0});
    bytes_ += cost(*step);
  }
  if (step->done) return;
  bytes_ -= cost(*step);
  step->done = record.what == StepCall::kDone;
  step->run = record.run;
  step->value = record.value.bytes;
  step->at_ms = record.at_ms;
  bytes_ += cost(*step);
}

const std::vector<StepState>* StepJournals::find(Sequence sequence) const {
  if (journals_.empty()) return nullptr;
  const auto journal = journals_.find(sequence);
  return journal == journals_.end() ? nullptr : &journal->second;
}

const StepState* StepJournals::find(Sequence sequence, std::string_view step) const {
  const auto* steps = find(sequence);
  if (steps == nullptr) return nullptr;
  const auto found = std::find_if(steps->begin(), steps->end(),
                                  [&](const StepState& each) { return each.name == step; });
  return found == steps->end() ? nullptr : &*found;
}

void StepJournals::forget(Sequence sequence) {
  if (journals_.empty()) return;
  const auto journal = journals_.find(sequence);
  if (journal == journals_.end()) return;
  bytes_ -= kJournalCost;
  for (const auto& step : journal->second) bytes_ -= cost(step);
  journals_.erase(journal);
}

void StepJournals::clear() {
  journals_.clear();
  bytes_ = 0;
}

std::string StepJournals::encode(GroupId group) const {
  std::string bytes;
  for (const auto& [sequence, steps] : journals_) {
    for (const auto& step : steps) {
      const std::string record =
          to_bytes(StepRecord{group, sequence, step.done ? StepCall::kDone : StepCall::kBegin,
                              step.run, step.name, Binary{step.value}, step.at_ms});
      put_le(bytes, static_cast<std::uint32_t>(record.size()));
      bytes.append(record);
    }
  }
  return bytes;
}

bool StepJournals::decode(std::string_view bytes) {
  while (!bytes.empty()) {
    if (bytes.size() < sizeof(std::uint32_t)) return false;
    const std::size_t size = get_le<std::uint32_t>(bytes.data());
    bytes.remove_prefix(sizeof(std::uint32_t));
    if (size > bytes.size()) return false;
    const auto record = from_bytes<StepRecord>(bytes.substr(0, size));
    if (!record.ok() || record->what > StepCall::kDone) return false;
    apply(*record);
    bytes.remove_prefix(size);
  }
  return true;
}

}  // namespace dray::spool
