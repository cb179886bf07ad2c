#include "dray/spool/buffers.hpp"

namespace dray::spool {
namespace {

constexpr std::size_t kBytesKept = 16U << 20;
// A buffer that one large message blew up is not kept.
constexpr std::size_t kBufferBytesMax = 8U << 20;

}  // namespace

std::shared_ptr<Records> Buffers::take() {
  std::unique_ptr<Records> buffer;
  {
    const std::lock_guard lock(mutex_);
    if (!free_.empty()) {
      buffer = std::move(free_.back());
      free_.pop_back();
      bytes_ -= buffer->capacity();
    }
  }
  if (buffer == nullptr) buffer = std::make_unique<Records>();
  return {buffer.release(), [self = shared_from_this()](Records* used) { self->give_back(used); }};
}

void Buffers::give_back(Records* used) {
  std::unique_ptr<Records> back(used);
  back->clear();
  const std::size_t bytes = back->capacity();
  if (bytes > kBufferBytesMax) return;
  const std::lock_guard lock(mutex_);
  if (bytes_ + bytes > kBytesKept) return;
  bytes_ += bytes;
  free_.push_back(std::move(back));
}

}  // namespace dray::spool
