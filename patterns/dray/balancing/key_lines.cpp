#include "dray/balancing/key_lines.hpp"

#include <algorithm>

#include "dray/result.hpp"

namespace dray::balancing {

KeyLines::Place::Place(KeyHash key, bool waits, Sequence sequence)
    : high(static_cast<std::uint32_t>(key >> 8)),
      middle(static_cast<std::uint32_t>((key & 0xFF) << 24) | (waits ? 1U << 23 : 0U) |
             static_cast<std::uint32_t>(sequence >> 32)),
      low(static_cast<std::uint32_t>(sequence)) {
  DRAY_ASSERT(key < (1ULL << spool::kKeyHashBits) && sequence < (1ULL << 55));
}

KeyHash KeyLines::Place::key() const {
  return (KeyHash{high} << 8) | (middle >> 24);
}

KeyLines::Places::const_iterator KeyLines::find_holder(KeyHash key) const {
  const auto first = places_.lower_bound(Place(key, false, 0));
  const bool held = first != places_.end() && first->key() == key && !first->waits();
  return held ? first : places_.end();
}

bool KeyLines::take_turn(KeyHash key, Sequence sequence) {
  const auto holder = find_holder(key);
  if (holder != places_.end()) return holder->sequence() == sequence;
  places_.erase(Place(key, true, sequence));
  places_.insert(Place(key, false, sequence));
  return true;
}

Sequence KeyLines::force_turn(KeyHash key, Sequence sequence) {
  const Sequence before = holder(key);
  if (before == sequence) return 0;
  if (before != 0) {
    places_.erase(Place(key, false, before));
    places_.insert(Place(key, true, before));
  }
  (void)take_turn(key, sequence);
  return before;
}

void KeyLines::wait(KeyHash key, Sequence sequence) {
  places_.insert(Place(key, true, sequence));
}

Sequence KeyLines::release(KeyHash key, Sequence sequence) {
  places_.erase(Place(key, true, sequence));
  if (places_.erase(Place(key, false, sequence)) == 0) return 0;
  const auto next = places_.lower_bound(Place(key, true, 0));
  if (next == places_.end() || next->key() != key) return 0;
  const Sequence first = next->sequence();
  places_.erase(next);
  places_.insert(Place(key, false, first));
  return first;
}

Sequence KeyLines::holder(KeyHash key) const {
  const auto holder = find_holder(key);
  return holder == places_.end() ? 0 : holder->sequence();
}

KeyHash KeyLines::find(Sequence sequence) const {
  const auto found = std::find_if(places_.begin(), places_.end(),
                                  [&](const Place& place) { return place.sequence() == sequence; });
  return found == places_.end() ? 0 : found->key();
}

}  // namespace dray::balancing
