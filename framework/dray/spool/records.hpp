// Records: framed records in memory, one behind the other as they lie in a segment, and where each
// begins. What was written is what is delivered: the bytes are copied into place once.
//
// Threading: filled by one thread at a time; then shared, and read by any.
// Failure: none. Limits: less than 4 GiB in all. Ownership: owns the bytes.
#pragma once

#include <memory>
#include <string_view>
#include <vector>

#include "dray/spool/record.hpp"

namespace dray::spool {

constexpr std::size_t kPageSize = 4096;  // of memory, of the page cache, and of what disks align to

class Records {
 public:
  // Appends a record without its seal (seal_record()). The payload is `head` and `tail` together;
  // `payload_crc` is that of both. REQUIRES: at most kPayloadSizeMax bytes of payload.
  void add(RecordType type, std::uint8_t flags, std::string_view head, std::string_view tail,
           std::uint32_t payload_crc);
  // A message whose seal says its number and no more, for it lies in no segment.
  void add_loose(Lsn lsn, std::uint8_t flags, std::string_view payload, std::uint32_t payload_crc);
  void add_loose(Lsn lsn, std::string_view payload) {
    add_loose(lsn, 0, payload, crc32c(0, payload));
  }
  // Another's record, as it is.
  void add_from(const Records& other, std::size_t index);
  // A whole record as it was read: header, payload and padding.
  void add_whole(std::string_view record);
  // Room for so many bytes, and no more for now: what it costs in memory. REQUIRES: empty().
  void reserve(std::size_t bytes);
  // The first record will lie at this place of a page of memory, with a page or more before it that
  // is nobody's: WriteHints::room_before. REQUIRES: empty().
  void begin_at(std::size_t place_in_page);
  std::size_t room_before() const { return lead_; }
  // Room for so many zeros behind the last record. What was there is overwritten by the next add().
  void pad(std::size_t zeros);
  // Empty; the room stays.
  void clear() {
    offsets_.clear();
    size_ = 0;
    lead_ = 0;
  }

  std::size_t size() const { return offsets_.size(); }
  bool empty() const { return offsets_.empty(); }
  // With headers and padding, without pad()'s zeros.
  std::size_t bytes() const { return size_; }
  std::size_t capacity() const { return capacity_; }
  // Of the record's header. REQUIRES: index <= size(), which is the end.
  std::size_t offset(std::size_t index) const {
    return index == offsets_.size() ? size_ : offsets_[index];
  }
  // With headers and padding: the records [from, until).
  std::string_view extent(std::size_t from, std::size_t until) const {
    return {bytes_.get() + lead_ + offset(from), offset(until) - offset(from)};
  }
  std::string_view payload(std::size_t index) const {
    const char* header = bytes_.get() + lead_ + offsets_[index];
    return {header + kRecordHeaderSize, payload_size_at(header)};
  }
  std::uint8_t flags(std::size_t index) const {
    return static_cast<std::uint8_t>(bytes_[lead_ + offsets_[index] + 3]);
  }
  // Where the records are; its owner may seal them.
  char* data() { return bytes_.get() + lead_; }

 private:
  static std::uint32_t payload_size_at(const char* header) {
    return get_le<std::uint32_t>(header + 4);
  }
  char* make_room(std::size_t size);

  struct Free {
    std::size_t bytes;  // as asked of allocate()
    void operator()(char* memory) const;
  };
  using Memory = std::unique_ptr<char[], Free>;  // NOLINT(modernize-avoid-c-arrays)
  static Memory allocate(std::size_t bytes);

  Memory bytes_;          // not filled with zeros
  std::size_t lead_ = 0;  // bytes before the first record
  std::size_t size_ = 0;
  std::size_t capacity_ = 0;
  std::vector<std::uint32_t> offsets_;
};

}  // namespace dray::spool
