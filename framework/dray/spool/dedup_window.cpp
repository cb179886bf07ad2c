#include "dray/spool/dedup_window.hpp"

#include "dray/spool/bytes.hpp"

#define XXH_INLINE_ALL
#include <xxhash.h>

namespace dray::spool {
namespace {
constexpr std::size_t kEntrySize = 56;
}

DedupWindow::Key DedupWindow::key_of(std::string_view id) {
  const auto hash = XXH3_128bits(id.data(), id.size());
  return {hash.low64, hash.high64};
}

std::uint64_t dedup_hash(std::string_view topic, std::string_view body) {
  return XXH3_64bits_withSeed(body.data(), body.size(), XXH3_64bits(topic.data(), topic.size()));
}

const DedupWindow::Known* DedupWindow::find(std::string_view id, std::int64_t now_ms) const {
  const auto found = known_.find(key_of(id));
  const bool known =
      found != known_.end() && found->second.at_ms + options_.age_max.count() > now_ms;
  return known ? &found->second : nullptr;
}

void DedupWindow::add(std::string_view id, const Known& known) {
  add(key_of(id), known);
}

void DedupWindow::add(const Key& key, const Known& known) {
  const auto [found, fresh] = known_.try_emplace(key, known);
  if (!fresh) {
    const bool over = found->second.at_ms + options_.age_max.count() <= known.at_ms;
    if (over) found->second = known;
    return;
  }
  order_.push_back(key);
  while (order_.size() > options_.count_max) {
    known_.erase(order_.front());
    order_.pop_front();
  }
}

void DedupWindow::trim(std::int64_t now_ms) {
  while (!order_.empty()) {
    const auto oldest = known_.find(order_.front());
    if (oldest != known_.end() && oldest->second.at_ms + options_.age_max.count() > now_ms) return;
    if (oldest != known_.end()) known_.erase(oldest);
    order_.pop_front();
  }
}

std::string DedupWindow::snapshot(Sequence last) const {
  std::string out;
  out.reserve(order_.size() * kEntrySize);
  for (const auto& key : order_) {
    const auto& known = known_.at(key);
    if (known.sequence > last) continue;
    put_le(out, key.low);
    put_le(out, key.high);
    out += known.message_id.view();
    put_le(out, known.sequence);
    put_le(out, known.body_hash);
    put_le(out, static_cast<std::uint64_t>(known.at_ms));
  }
  return out;
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
