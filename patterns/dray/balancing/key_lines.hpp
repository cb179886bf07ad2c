// KeyLines: whose turn it is for each ordering key of a group (P10). Pure.
//
//   take_turn()                          release()
//   free ------> held by one message ----------------> held by the first in line, or free
//                      ^   others wait(): in line, by their sequence
//
// A message keeps its turn while it is delivered, retried, snoozed or suspect; it ends with done,
// dead, expired, dropped or damaged. A delayed message gets in line when it is first due.
//
// Memory: 12 bytes for each message that has the turn or is in line (P8).
// Threading: one thread. Failure: none.
#pragma once

#include <absl/container/btree_set.h>

#include <compare>
#include <cstdint>

#include "dray/spool/backlog.hpp"

namespace dray::balancing {

using spool::KeyHash;

class KeyLines {
 public:
  // True if `sequence` has the turn of its key, from now on if nobody had it.
  bool take_turn(KeyHash key, Sequence sequence);
  // The turn is its own: a worker holds it already. Who had it is in line now, 0 for nobody.
  Sequence force_turn(KeyHash key, Sequence sequence);
  // REQUIRES: another has the turn.
  void wait(KeyHash key, Sequence sequence);
  // Ends its turn, or its waiting. Who has the turn next; 0 for nobody, or if it had not the turn.
  Sequence release(KeyHash key, Sequence sequence);
  // 0: nobody.
  Sequence holder(KeyHash key) const;
  bool waits(KeyHash key, Sequence sequence) const {
    return places_.contains(Place(key, true, sequence));
  }
  bool empty() const { return places_.empty(); }
  std::size_t size() const { return places_.size(); }
  // The key of a message that has the turn or is in line; 0 for others. Looks at all of them.
  KeyHash find(Sequence sequence) const;
  void clear() { places_.clear(); }

 private:
  // 40 bits of key, 1 bit whether it waits, 55 bits of sequence.
  struct Place {
    std::uint32_t high = 0;
    std::uint32_t middle = 0;
    std::uint32_t low = 0;

    Place(KeyHash key, bool waits, Sequence sequence);
    KeyHash key() const;
    bool waits() const { return ((middle >> 23) & 1U) != 0; }
    Sequence sequence() const { return (Sequence{middle & 0x7F'FFFFU} << 32) | low; }
    auto operator<=>(const Place&) const = default;
  };
  static_assert(sizeof(Place) == 12);

  using Places = absl::btree_set<Place>;
  Places::const_iterator find_holder(KeyHash key) const;

  Places places_;
};

}  // namespace dray::balancing
