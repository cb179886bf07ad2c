// Batch: records in the making, framed as they will lie in the log. Publishers put them in; the
// log gives each its number and its seal and writes them from where they are, and they are
// delivered from there. So a message's bytes are copied into place once.
//
// Threading: one thread at a time; the bytes that share() gives out may be read on any thread once
// they are written. Failure: none.
// Ownership: buffers come from a Buffers and go back to it when the last reader lets go.
#pragma once

#include <memory>
#include <vector>

#include "dray/spool/buffers.hpp"
#include "dray/spool/record.hpp"
#include "dray/spool/record_payload.hpp"

namespace dray::spool {

// A record that is to be written, and for a message who takes it when.
struct Frame {
  RecordType type = RecordType::kMarker;
  std::uint8_t flags = 0;
  std::uint32_t offset = 0;  // of its header, from the beginning of the batch
  std::uint32_t payload_size = 0;
  GroupMask groups = 0;
  std::int64_t deliver_at_ms = 0;
  std::int64_t expires_at_ms = 0;
  Lsn lsn = 0;  // once it is written
};

class Batch {
 public:
  explicit Batch(std::shared_ptr<Buffers> buffers) : buffers_(std::move(buffers)) {}

  // `payload_crc` is crc32c(0, payload). Offset and size of the frame are filled in.
  // REQUIRES: payload.size() <= kPayloadSizeMax, and less than 4 GiB in all.
  void add(Frame frame, std::string_view payload, std::uint32_t payload_crc);
  // Another batch's record, as it is.
  void add_from(const Batch& other, const Frame& frame);
  // Zeros behind the last record, which belong to none. REQUIRES: size() > 0, nothing added since.
  void pad(std::size_t zeros);
  // Empty, with a fresh buffer.
  void clear();

  std::size_t size() const { return frames_.size(); }
  std::size_t bytes() const { return bytes_ == nullptr ? 0 : bytes_->size() - padding_; }
  const std::vector<Frame>& frames() const { return frames_; }
  // Bytes of the records [from, until), with headers and padding. REQUIRES: from < size().
  std::size_t extent(std::size_t from, std::size_t until) const;
  std::string_view payload(const Frame& frame) const {
    return std::string_view(*bytes_).substr(frame.offset + kRecordHeaderSize, frame.payload_size);
  }
  // Keeps the bytes alive for their readers.
  std::shared_ptr<const std::string> share() const { return bytes_; }

 private:
  friend class SegmentLog;  // numbers and seals

  std::shared_ptr<Buffers> buffers_;
  std::shared_ptr<std::string> bytes_;
  std::vector<Frame> frames_;
  std::size_t padding_ = 0;
};

}  // namespace dray::spool
