#include "dray/spool/records.hpp"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>

#include "dray/result.hpp"
#include "dray/spool/huge_pages.hpp"

namespace dray::spool {
namespace {

constexpr std::size_t kFirstCapacity = 16U << 10;

}  // namespace

void Records::Free::operator()(char* memory) const {
  if (bytes < huge_pages::kBlockMin) return std::free(memory);  // NOLINT: allocate() made it
  huge_pages::give_back(memory, bytes);
}

// What is written past the page cache begins with a page. Of little ones there are many.
Records::Memory Records::allocate(std::size_t bytes) {
  if (bytes >= huge_pages::kBlockMin) return Memory(huge_pages::take(bytes), Free{bytes});
  void* memory =
      bytes < kFirstCapacity
          ? std::malloc(bytes)  // NOLINT: its owner frees it
          : std::aligned_alloc(kPageSize, (bytes + kPageSize - 1) / kPageSize * kPageSize);
  if (memory == nullptr) throw std::bad_alloc();
  return Memory(static_cast<char*>(memory), Free{bytes});
}

void Records::reserve(std::size_t bytes) {
  DRAY_ASSERT(empty());
  if (bytes <= capacity_) return;
  bytes_ = allocate(bytes);
  capacity_ = bytes;
}

void Records::begin_at(std::size_t place_in_page) {
  DRAY_ASSERT(empty() && place_in_page < kPageSize);
  if (capacity_ < kFirstCapacity) {
    bytes_ = allocate(kFirstCapacity);
    capacity_ = kFirstCapacity;
  }
  lead_ = kPageSize + place_in_page;
}

// Room for so many bytes behind the last record.
char* Records::make_room(std::size_t size) {
  const std::size_t used = lead_ + size_;
  if (used + size > capacity_) {
    DRAY_ASSERT(used + size <= UINT32_MAX);
    const std::size_t wanted = std::max({used + size, 2 * capacity_, kFirstCapacity});
    auto larger = allocate(wanted);
    if (size_ > 0) std::memcpy(larger.get() + lead_, bytes_.get() + lead_, size_);
    bytes_ = std::move(larger);
    capacity_ = wanted;
  }
  return bytes_.get() + used;
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
  number_loose_record(data() + at, lsn);
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
