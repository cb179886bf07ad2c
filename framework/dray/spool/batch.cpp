#include "dray/spool/batch.hpp"

#include "dray/result.hpp"

namespace dray::spool {
namespace {

constexpr std::size_t kBuffersKept = 8;
// A buffer that one large message blew up is not kept.
constexpr std::size_t kBufferBytesMax = 2U << 20;

}  // namespace

std::shared_ptr<std::string> BatchBuffers::take() {
  std::unique_ptr<std::string> buffer;
  {
    const std::lock_guard lock(mutex_);
    if (!free_.empty()) {
      buffer = std::move(free_.back());
      free_.pop_back();
    }
  }
  if (buffer == nullptr) buffer = std::make_unique<std::string>();
  return {buffer.release(),
          [self = shared_from_this()](std::string* used) { self->give_back(used); }};
}

void BatchBuffers::give_back(std::string* used) {
  std::unique_ptr<std::string> back(used);
  if (back->capacity() > kBufferBytesMax) return;
  back->clear();
  const std::lock_guard lock(mutex_);
  if (free_.size() < kBuffersKept) free_.push_back(std::move(back));
}

void Batch::add(Frame frame, std::string_view payload, std::uint32_t payload_crc) {
  if (bytes_ == nullptr) bytes_ = buffers_->take();
  DRAY_ASSERT(padding_ == 0);
  DRAY_ASSERT(bytes_->size() + record_size(payload.size()) <= UINT32_MAX);
  frame.offset = static_cast<std::uint32_t>(bytes_->size());
  frame.payload_size = static_cast<std::uint32_t>(payload.size());
  frame_record(*bytes_, frame.type, frame.flags, payload, payload_crc);
  frames_.push_back(frame);
}

void Batch::add_from(const Batch& other, const Frame& frame) {
  add(frame, other.payload(frame), crc32c(0, other.payload(frame)));
}

void Batch::pad(std::size_t zeros) {
  bytes_->resize(bytes_->size() - padding_ + zeros, '\0');
  padding_ = zeros;
}

void Batch::clear() {
  bytes_.reset();
  frames_.clear();
  padding_ = 0;
}

std::size_t Batch::extent(std::size_t from, std::size_t until) const {
  const std::size_t end = until == frames_.size() ? bytes() : frames_[until].offset;
  return end - frames_[from].offset;
}

}  // namespace dray::spool
