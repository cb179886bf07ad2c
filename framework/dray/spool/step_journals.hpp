// StepJournals: the steps (Delivery::once) of a group's open messages, and what is known of each.
//
// Kept in memory and in checkpoints for as long as the message is open, dead letters included.
//
// Threading: owned by one thread. Pure.
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "dray/spool/record_payload.hpp"

namespace dray::spool {

struct StepState {
  std::string name;
  bool done = false;      // its end is recorded; else it began
  std::uint64_t run = 0;  // the handling that began it
  std::string value;      // MessagePack, of one that is done
  std::int64_t at_ms = 0;
};

class StepJournals {
 public:
  // What the record says becomes so; records may be applied again.
  void apply(const StepRecord& record);
  // In the order of their beginnings; nothing for a message without steps.
  const std::vector<StepState>* find(Sequence sequence) const;
  const StepState* find(Sequence sequence, std::string_view step) const;
  bool any(const SequenceRun& run) const {
    const auto found = journals_.lower_bound(run.first);
    return found != journals_.end() && found->first < run.end();
  }
  void forget(Sequence sequence);
  // In [first, last], but for those that `keep` says.
  template <typename Keep>
  void forget(Sequence first, Sequence last, Keep keep) {
    for (auto each = journals_.lower_bound(first);
         each != journals_.end() && each->first <= last;) {
      const Sequence sequence = (each++)->first;
      if (!keep(sequence)) forget(sequence);
    }
  }
  void clear();

  bool empty() const { return journals_.empty(); }
  // Of memory, about.
  std::size_t bytes() const { return bytes_; }
  // All of it, as a checkpoint keeps it (FORMATS.md, "Checkpoint"): one value for the decoder,
  // however many steps there are.
  std::string encode(GroupId group) const;
  // False if these are no such bytes. REQUIRES: empty().
  bool decode(std::string_view bytes);

 private:
  std::map<Sequence, std::vector<StepState>> journals_;
  std::size_t bytes_ = 0;
};

}  // namespace dray::spool
