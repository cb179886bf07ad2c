// DedupWindow: remembers publisher-given ids, bounded by count and time. Pure.
//
// Kept are hashes (XXH3, 128 bits of the id, 64 of topic and body), so that an entry costs 56 bytes
// and its index about as much again, however long the ids are.
//
// Threading: one thread at a time.
#pragma once

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
  std::size_t size() const { return order_.size(); }

  // Entries of messages up to `last`, oldest first, 56 bytes each (FORMATS.md, "Checkpoint").
  std::string snapshot(Sequence last) const;
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
  static Key key_of(std::string_view id);
  void add(const Key& key, const Known& known);

  DedupOptions options_;
  std::unordered_map<Key, Known, KeyHash> known_;
  std::deque<Key> order_;
};

// Hash of topic and body: tells a repeated publish from another message under the same id.
std::uint64_t dedup_hash(std::string_view topic, std::string_view body);

}  // namespace dray::spool
