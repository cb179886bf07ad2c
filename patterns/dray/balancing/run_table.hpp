// RunTable: numbers of which each is here or not, marked or not, and what is known of them, once
// for a run of neighbours: the grants of a session, the deliveries of a link, the jobs of a worker.
// What comes in runs and goes in runs costs a few bits each.
//
//   (not here) --add()--> here --mark()--> marked
//        ^                 |                 |
//        +-----------------+----erase()------+
//
// T is what a run has in common. If it says something of the run's first number, it has
// `void skip(std::uint64_t n)`, which makes that of the n-th; and `bool goes_on(const T& next,
// std::uint64_t count) const`: whether `next` may be the same run's, `count` behind its first.
//
// Threading: one thread. Failure: none. Cost: O(log runs), and a word for 64 numbers.
// Ownership: a Run lives until something is added or erased.
#pragma once

#include <absl/container/btree_map.h>
#include <absl/container/inlined_vector.h>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "dray/sequence_runs.hpp"

namespace dray::balancing {

template <typename T>
class RunTable {
 public:
  class Run {
   public:
    std::uint64_t first() const { return first_; }
    std::uint64_t end() const { return first_ + count_; }
    // Numbers that are here, and those of them that are marked.
    std::uint32_t here() const { return here_; }
    std::uint32_t marked() const { return marked_; }
    bool is_marked(std::uint64_t number) const {
      const auto at = number - first_;
      return (words_[at / 64].marked >> (at % 64) & 1U) != 0;
    }

    T common;

   private:
    friend class RunTable;
    struct Word {
      std::uint64_t here = 0;
      std::uint64_t marked = 0;
    };

    bool is_here(std::uint64_t number) const {
      const auto at = number - first_;
      return (words_[at / 64].here >> (at % 64) & 1U) != 0;
    }

    std::uint64_t first_ = 0;
    std::uint32_t count_ = 0;
    std::uint32_t here_ = 0;
    std::uint32_t marked_ = 0;
    absl::InlinedVector<Word, 2> words_;
  };

  // What was known of them before is forgotten. REQUIRES: count > 0.
  void add(std::uint64_t first, std::uint32_t count, const T& common) {
    clear_way(first, first + count);
    size_ += count;
    auto after = runs_.lower_bound(first);
    if (after != runs_.begin()) {
      Run& before = *std::prev(after)->second;
      if (before.end() == first && before.count_ + count <= kRunMax &&
          before.common.goes_on(common, before.count_)) {
        return extend(before, count);
      }
    }
    auto run = take_run();
    run->first_ = first;
    run->common = common;
    extend(*run, count);
    runs_.emplace_hint(after, first, std::move(run));
  }
  bool contains(std::uint64_t number) const { return find(number) != nullptr; }
  // Nothing if it is not here.
  Run* find(std::uint64_t number) {
    Run* run = around(number);
    return run != nullptr && run->is_here(number) ? run : nullptr;
  }
  const Run* find(std::uint64_t number) const {
    return const_cast<RunTable*>(this)->find(number);  // NOLINT: changes nothing
  }
  // Any of them is here.
  bool any(const SequenceRun& range) const {
    bool found = false;
    const_cast<RunTable*>(this)->for_parts(  // NOLINT: changes nothing
        range, [&](Run& run, std::uint64_t first, std::uint64_t end) {
          for_numbers(run, first, end, &here, [&](const SequenceRun&) { found = true; });
        });
    return found;
  }
  bool empty() const { return size_ == 0; }
  // Numbers that are here.
  std::size_t size() const { return size_; }

  // Marks those that are here. How many were not marked.
  std::uint32_t mark(Run& run, std::uint64_t first, std::uint64_t end) {
    std::uint32_t fresh = 0;
    for_words(run, first, end, [&](auto& word, std::uint64_t mask) {
      const std::uint64_t added = word.here & ~word.marked & mask;
      word.marked |= added;
      fresh += static_cast<std::uint32_t>(std::popcount(added));
    });
    run.marked_ += fresh;
    return fresh;
  }
  void unmark(Run& run, std::uint64_t number) {
    auto& word = run.words_[(number - run.first_) / 64];
    const std::uint64_t bit = std::uint64_t{1} << ((number - run.first_) % 64);
    if ((word.marked & bit) == 0) return;
    word.marked &= ~bit;
    --run.marked_;
  }
  // How many were here. The run may be gone after it.
  std::uint32_t erase(Run& run, std::uint64_t first, std::uint64_t end) {
    std::uint32_t gone = 0;
    std::uint32_t gone_marked = 0;
    for_words(run, first, end, [&](auto& word, std::uint64_t mask) {
      gone += static_cast<std::uint32_t>(std::popcount(word.here & mask));
      gone_marked += static_cast<std::uint32_t>(std::popcount(word.marked & mask));
      word.here &= ~mask;
      word.marked &= ~mask;
    });
    run.here_ -= gone;
    run.marked_ -= gone_marked;
    size_ -= gone;
    if (run.here_ == 0) drop(run);
    return gone;
  }
  void erase(std::uint64_t number) {
    if (Run* run = find(number)) erase(*run, number, number + 1);
  }
  void clear() {
    runs_.clear();
    size_ = 0;
  }
  // A run of its own. REQUIRES: it is here.
  Run& isolate(std::uint64_t number) {
    Run& run = *around(number);
    if (run.count_ == 1) return run;
    const auto whole = take_out(run);
    put_part(*whole, whole->first_, number);
    put_part(*whole, number, number + 1);
    put_part(*whole, number + 1, whole->end());
    return *around(number);
  }

  // Calls visit(run, first, end) for each run that has a place in the range, with that part of it;
  // not all of it need be here. Ascending. It may erase from that run.
  template <typename Visit>
  void for_parts(const SequenceRun& range, const Visit& visit) {
    for (std::uint64_t next = range.first; next < range.end();) {
      Run* run = around(next);
      if (run == nullptr) {
        const auto after = runs_.upper_bound(next);
        if (after == runs_.end()) return;
        run = after->second.get();
      }
      const std::uint64_t first = std::max(next, run->first_);
      if (first >= range.end()) return;
      next = std::min(range.end(), run->end());
      visit(*run, first, next);
    }
  }
  // Calls visit(run) for each. It must neither add nor erase.
  template <typename Visit>
  void for_runs(const Visit& visit) {
    for (auto& [first, run] : runs_) visit(*run);
  }
  template <typename Visit>
  void for_runs(const Visit& visit) const {
    for (const auto& [first, run] : runs_) visit(std::as_const(*run));
  }

  // Calls visit(SequenceRun) for the numbers of [first, end) that are here; or not; or here and
  // marked; or here and not marked. Ascending; neighbours together.
  template <typename Visit>
  static void for_here(const Run& run, std::uint64_t first, std::uint64_t end, const Visit& visit) {
    for_numbers(run, first, end, &here, visit);
  }
  template <typename Visit>
  static void for_missing(const Run& run, std::uint64_t first, std::uint64_t end,
                          const Visit& visit) {
    for_numbers(run, first, end, &missing, visit);
  }
  template <typename Visit>
  static void for_marked(const Run& run, std::uint64_t first, std::uint64_t end,
                         const Visit& visit) {
    for_numbers(run, first, end, &marked, visit);
  }
  template <typename Visit>
  static void for_unmarked(const Run& run, std::uint64_t first, std::uint64_t end,
                           const Visit& visit) {
    for_numbers(run, first, end, &unmarked, visit);
  }
  // Those of all runs, in a list of their own, so that the table may be changed.
  SequenceRuns all_here() const {
    SequenceRuns all;
    for_runs([&](const Run& run) {
      for_here(run, run.first(), run.end(), [&](const SequenceRun& part) { all.add(part); });
    });
    return all;
  }
  SequenceRuns all_unmarked() const {
    SequenceRuns all;
    for_runs([&](const Run& run) {
      for_unmarked(run, run.first(), run.end(), [&](const SequenceRun& part) { all.add(part); });
    });
    return all;
  }

 private:
  static constexpr std::uint32_t kRunMax = 4'096;  // numbers
  static constexpr std::size_t kFreeMax = 64;      // runs

  using Word = typename Run::Word;
  static std::uint64_t here(const Word& word) { return word.here; }
  static std::uint64_t missing(const Word& word) { return ~word.here; }
  static std::uint64_t marked(const Word& word) { return word.marked; }
  static std::uint64_t unmarked(const Word& word) { return word.here & ~word.marked; }

  // Ones at [first, end) of the word that `at` is in.
  static std::uint64_t mask_of(std::uint64_t word, std::uint64_t first, std::uint64_t end) {
    std::uint64_t mask = ~std::uint64_t{0};
    if (first > word * 64) mask &= ~std::uint64_t{0} << (first - word * 64);
    if (end < (word + 1) * 64) mask &= ~std::uint64_t{0} >> ((word + 1) * 64 - end);
    return mask;
  }
  template <typename Visit>
  static void for_words(Run& run, std::uint64_t first, std::uint64_t end, const Visit& visit) {
    const std::uint64_t from = first - run.first_;
    const std::uint64_t until = end - run.first_;
    for (std::uint64_t word = from / 64; word * 64 < until; ++word) {
      visit(run.words_[word], mask_of(word, from, until));
    }
  }
  template <typename Visit>
  static void for_numbers(const Run& run, std::uint64_t first, std::uint64_t end,
                          std::uint64_t (*which)(const Word&), const Visit& visit) {
    SequenceRun found;
    const std::uint64_t from = first - run.first_;
    const std::uint64_t until = end - run.first_;
    for (std::uint64_t word = from / 64; word * 64 < until; ++word) {
      std::uint64_t bits = which(run.words_[word]) & mask_of(word, from, until);
      while (bits != 0) {
        const auto begin = static_cast<std::uint64_t>(std::countr_zero(bits));
        const auto length = static_cast<std::uint64_t>(std::countr_one(bits >> begin));
        const std::uint64_t number = run.first_ + word * 64 + begin;
        if (found.count > 0 && found.end() == number) {
          found.count += length;
        } else {
          if (found.count > 0) visit(found);
          found = {number, length};
        }
        bits &= begin + length == 64 ? 0 : ~std::uint64_t{0} << (begin + length);
      }
    }
    if (found.count > 0) visit(found);
  }

  // The run whose place `number` is, here or not.
  Run* around(std::uint64_t number) {
    const auto after = runs_.upper_bound(number);
    if (after == runs_.begin()) return nullptr;
    Run* run = std::prev(after)->second.get();
    return number < run->end() ? run : nullptr;
  }
  void extend(Run& run, std::uint32_t count) {
    const std::uint64_t from = run.count_;
    run.count_ += count;
    run.here_ += count;
    run.words_.resize((run.count_ + 63) / 64);
    for_words(run, run.first_ + from, run.end(),
              [](Word& word, std::uint64_t mask) { word.here |= mask; });
  }
  // No run has a place in [first, end) after it.
  void clear_way(std::uint64_t first, std::uint64_t end) {
    for (Run* run = overlapping(first, end); run != nullptr; run = overlapping(first, end)) {
      const auto whole = take_out(*run);
      if (whole->first_ < first) put_part(*whole, whole->first_, first);
      if (whole->end() > end) put_part(*whole, end, whole->end());
    }
  }
  Run* overlapping(std::uint64_t first, std::uint64_t end) {
    if (Run* run = around(first)) return run;
    const auto after = runs_.upper_bound(first);
    return after == runs_.end() || after->first >= end ? nullptr : after->second.get();
  }
  std::unique_ptr<Run> take_out(Run& run) {
    const auto found = runs_.find(run.first_);
    auto out = std::move(found->second);
    runs_.erase(found);
    size_ -= out->here_;
    return out;
  }
  // [first, end) of it becomes a run, unless nothing of it is here.
  void put_part(const Run& whole, std::uint64_t first, std::uint64_t end) {
    std::unique_ptr<Run> part;
    for_here(whole, first, end, [&](const SequenceRun& found) {
      if (part == nullptr) {
        part = take_run();
        part->first_ = found.first;
        part->common = whole.common;
        part->common.skip(found.first - whole.first_);
      }
      part->count_ = static_cast<std::uint32_t>(found.first - part->first_);
      extend(*part, static_cast<std::uint32_t>(found.count));
      for (auto number = found.first; number < found.end(); ++number) {
        if (whole.is_marked(number)) mark(*part, number, number + 1);
      }
    });
    if (part == nullptr) return;
    size_ += part->here_;
    runs_.emplace(part->first_, std::move(part));
  }

  std::unique_ptr<Run> take_run() {
    if (free_.empty()) return std::make_unique<Run>();
    auto run = std::move(free_.back());
    free_.pop_back();
    return run;
  }
  void drop(Run& run) {
    auto dropped = take_out(run);
    if (free_.size() >= kFreeMax) return;
    dropped->count_ = dropped->here_ = dropped->marked_ = 0;
    dropped->words_.clear();
    free_.push_back(std::move(dropped));
  }

  absl::btree_map<std::uint64_t, std::unique_ptr<Run>> runs_;  // by first number; apart
  std::vector<std::unique_ptr<Run>> free_;
  std::size_t size_ = 0;
};

}  // namespace dray::balancing
