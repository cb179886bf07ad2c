#include "dray/spool/records.hpp"

#include <algorithm>
#include <cstring>

#include "dray/result.hpp"

namespace dray::spool {
namespace {

constexpr std::size_t kFirstCapacity = 16U << 10;

}  // namespace

void Records::reserve(std::size_t bytes) {
  DRAY_ASSERT(empty());
  if (bytes <= capacity_) return;
  bytes_ = std::make_unique_for_overwrite<char[]>(bytes);  // NOLINT: as in the header
  capacity_ = bytes;
}

// Room for so many bytes behind the last record.
char* Records::make_room(std::size_t size) {
  if (size_ + size > capacity_) {
    DRAY_ASSERT(size_ + size <= UINT32_MAX);
    const std::size_t wanted = std::max({size_ + size, 2 * capacity_, kFirstCapacity});
    auto larger = std::make_unique_for_overwrite<char[]>(wanted);  // NOLINT: as in the header
    if (size_ > 0) std::memcpy(larger.get(), bytes_.get(), size_);
    bytes_ = std::move(larger);
    capacity_ = wanted;
  }
  return bytes_.get() + size_;
}

void Records::add(RecordType type, std::uint8_t flags, std::string_view head, std::string_view tail,
                  std::uint32_t payload_crc) {
  const std::size_t payload = head.size() + tail.size();
  DRAY_ASSERT(payload <= kPayloadSizeMax);
  const std::size_t size = record_size(payload);
  char* out = make_room(size);
  // The padding; the payload is written over the rest of it.
  if (size > kRecordHeaderSize) put_le_at(out + size - kRecordAlignment, std::uint64_t{0});
  frame_header(out, type, flags, static_cast<std::uint32_t>(payload), payload_crc);
  std::memcpy(out + kRecordHeaderSize, head.data(), head.size());
  if (!tail.empty()) std::memcpy(out + kRecordHeaderSize + head.size(), tail.data(), tail.size());
  offsets_.push_back(static_cast<std::uint32_t>(size_));
  size_ += size;
}

void Records::add_loose(Lsn lsn, std::uint8_t flags, std::string_view payload,
                        std::uint32_t payload_crc) {
  const std::size_t at = size_;
  add(RecordType::kMessage, flags, payload, {}, payload_crc);
  number_loose_record(bytes_.get() + at, lsn);
}

void Records::add_whole(std::string_view record) {
  std::memcpy(make_room(record.size()), record.data(), record.size());
  offsets_.push_back(static_cast<std::uint32_t>(size_));
  size_ += record.size();
}

void Records::add_from(const Records& other, std::size_t index) {
  add_whole(other.extent(index, index + 1));
}

void Records::pad(std::size_t zeros) {
  std::memset(make_room(zeros), 0, zeros);
}

}  // namespace dray::spool
