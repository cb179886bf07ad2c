#include "dray/spool/dedup_window.hpp"

#include <algorithm>

#include "dray/spool/bytes.hpp"

#define XXH_INLINE_ALL
#include <xxhash.h>

namespace dray::spool {
DedupWindow::Key DedupWindow::key_of(std::string_view id) {
  const auto hash = XXH3_128bits(id.data(), id.size());
  return {hash.low64, hash.high64};
}

std::uint64_t dedup_hash(std::string_view topic, std::string_view body) {
  return XXH3_64bits_withSeed(body.data(), body.size(), XXH3_64bits(topic.data(), topic.size()));
}

const DedupWindow::Known* DedupWindow::find(std::string_view id, std::int64_t now_ms) const {
  const Key key = key_of(id);
  const auto found = shard(key).find(key);
  if (found == shard(key).end()) return nullptr;
  const Known& known = entries_[found->second - forgotten_].known;
  return known.at_ms + options_.age_max.count() > now_ms ? &known : nullptr;
}

void DedupWindow::add(std::string_view id, const Known& known) {
  add(key_of(id), known);
}

void DedupWindow::add(const Key& key, const Known& known) {
  const std::uint64_t position = forgotten_ + entries_.size();
  const auto [found, fresh] = shard(key).try_emplace(key, position);
  if (fresh) {
    ++size_;
  } else {
    const Known& before = entries_[found->second - forgotten_].known;
    if (before.at_ms + options_.age_max.count() > known.at_ms) return;
    found->second = position;  // the old entry is nobody's any more
  }
  entries_.push_back({key, known});
  while (size_ > options_.count_max) forget_oldest();
}

void DedupWindow::forget_oldest() {
  auto& index = shard(entries_.front().key);
  const auto found = index.find(entries_.front().key);
  if (found != index.end() && found->second == forgotten_) {
    index.erase(found);
    --size_;
  }
  entries_.pop_front();
  ++forgotten_;
}

Milliseconds DedupWindow::reach(std::int64_t now_ms) const {
  if (size_ < options_.count_max || entries_.empty()) return options_.age_max;
  return std::clamp(Milliseconds(now_ms - entries_.front().known.at_ms), Milliseconds(0),
                    options_.age_max);
}

void DedupWindow::trim(std::int64_t now_ms) {
  while (!entries_.empty() && entries_.front().known.at_ms + options_.age_max.count() <= now_ms) {
    forget_oldest();
  }
}

bool DedupWindow::snapshot(Sequence last, std::uint64_t& position, std::size_t count_max,
                           std::string& out) const {
  position = std::max(position, forgotten_);
  const std::uint64_t end = forgotten_ + entries_.size();
  const std::uint64_t until = std::min<std::uint64_t>(end, position + count_max);
  for (; position < until; ++position) {
    const auto& [key, known] = entries_[position - forgotten_];
    if (known.sequence > last) continue;
    put_le(out, key.low);
    put_le(out, key.high);
    out += known.message_id.view();
    put_le(out, known.sequence);
    put_le(out, known.body_hash);
    put_le(out, static_cast<std::uint64_t>(known.at_ms));
  }
  return position < end;
}

bool DedupWindow::restore(std::string_view bytes) {
  if (bytes.size() % kEntrySize != 0) return false;
  for (; !bytes.empty(); bytes.remove_prefix(kEntrySize)) {
    const char* in = bytes.data();
    Known known;
    known.message_id = *Uuid::from_bytes(bytes.substr(16, 16));
    known.sequence = get_le<std::uint64_t>(in + 32);
    known.body_hash = get_le<std::uint64_t>(in + 40);
    known.at_ms = static_cast<std::int64_t>(get_le<std::uint64_t>(in + 48));
    add(Key{get_le<std::uint64_t>(in), get_le<std::uint64_t>(in + 8)}, known);
  }
  return true;
}

}  // namespace dray::spool
