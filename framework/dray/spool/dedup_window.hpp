// DedupWindow: remembers publisher-given ids, bounded by count and time. Pure.
//
// Kept are hashes (XXH3, 128 bits of the id, 64 of topic and body), so that an entry costs 56 bytes
// and its index about as much again, however long the ids are. They lie in the order in which they
// came, so that a snapshot is a copy, and may be taken piece by piece.
//
// Threading: one thread at a time.
#pragma once

#include <array>
#include <deque>
#include <string>
#include <string_view>
#include <unordered_map>

#include "dray/message.hpp"

namespace dray::spool {

struct DedupOptions {
  std::size_t count_max = 1'000'000;
  Milliseconds age_max = std::chrono::hours(24);
};

class DedupWindow {
 public:
  static constexpr std::size_t kEntrySize = 56;  // bytes in a snapshot
  struct Known {
    Uuid message_id;
    Sequence sequence = 0;
    std::uint64_t body_hash = 0;
    std::int64_t at_ms = 0;
  };
  explicit DedupWindow(const DedupOptions& options) : options_(options) {}

  // Nothing also for an id that is older than the window.
  const Known* find(std::string_view id, std::int64_t now_ms) const;
  // Does nothing for an id that is known and not older than the window.
  void add(std::string_view id, const Known& known);
  // Forgets what is older than the window.
  void trim(std::int64_t now_ms);
  std::size_t size() const { return size_; }
  // For how long ids are known as it is: less than their age if there are too many of them.
  Milliseconds reach(std::int64_t now_ms) const;

  // Appends entries of messages up to `last` to `out`, oldest first, 56 bytes each (FORMATS.md,
  // "Checkpoint"); looks at `count_max` at most, from `position` (0 at first) on. False at the end.
  // In between entries may be added and trimmed: what is older than the window may be left out.
  bool snapshot(Sequence last, std::uint64_t& position, std::size_t count_max,
                std::string& out) const;
  // False if these are no such bytes.
  bool restore(std::string_view bytes);

 private:
  struct Key {
    std::uint64_t low = 0;
    std::uint64_t high = 0;
    bool operator==(const Key&) const = default;
  };
  struct KeyHash {
    std::size_t operator()(const Key& key) const noexcept { return key.low; }
  };
  struct Entry {
    Key key;
    Known known;
  };
  static Key key_of(std::string_view id);
  void add(const Key& key, const Known& known);
  void forget_oldest();

  DedupOptions options_;
  std::deque<Entry> entries_;
  std::uint64_t forgotten_ = 0;  // entries that were before entries_.front()
  // Where an id's entry is, the forgotten counted. Many small maps: one large one would make a
  // publisher wait for as long as it takes to grow.
  using Shard = std::unordered_map<Key, std::uint64_t, KeyHash>;
  Shard& shard(const Key& key) { return index_[key.high % kShards]; }
  const Shard& shard(const Key& key) const { return index_[key.high % kShards]; }
  static constexpr std::size_t kShards = 128;
  std::array<Shard, kShards> index_;
  std::size_t size_ = 0;  // over all of index_
};

// Hash of topic and body: tells a repeated publish from another message under the same id.
std::uint64_t dedup_hash(std::string_view topic, std::string_view body);

}  // namespace dray::spool
