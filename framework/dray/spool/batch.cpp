#include "dray/spool/batch.hpp"

#include "dray/result.hpp"

namespace dray::spool {
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
