// Batch: records in the making, framed as they will lie in the log. Publishers put them in; the
// log gives each its number and its seal and writes them from where they are, and they are
// delivered from there.
//
// Threading: one thread at a time; what share() gives out may be read on any thread once it is
// written. Failure: none.
// Ownership: buffers come from a Buffers and go back to it when the last reader lets go.
#pragma once

#include <memory>
#include <vector>

#include "dray/spool/buffers.hpp"
#include "dray/spool/record_payload.hpp"

namespace dray::spool {

// What a record is, and for a message who takes it when.
struct RecordKind {
  RecordType type = RecordType::kMarker;
  std::uint8_t flags = 0;
  GroupMask groups = 0;
  std::int64_t deliver_at_ms = 0;
  std::int64_t expires_at_ms = 0;
  bool operator==(const RecordKind&) const = default;
};

// Neighbours of one kind: messages without times of their own, or one record.
struct Stretch {
  RecordKind kind;
  std::uint32_t from = 0;  // index of the first
  std::uint32_t count = 1;
  Lsn lsn = 0;  // of the first, once it is written

  std::uint32_t until() const { return from + count; }
};

class Batch {
 public:
  explicit Batch(std::shared_ptr<Buffers> buffers) : buffers_(std::move(buffers)) {}

  // Where in a page the first record will lie in the file, as far as can be told: it is laid there
  // in memory too (Records::begin_at). REQUIRES: size() == 0.
  void expect_at(std::size_t place_in_page) { place_ = place_in_page; }
  // The payload is `head` and `tail` together; `payload_crc` is crc32c(0, payload).
  // REQUIRES: at most kPayloadSizeMax of them, and less than 4 GiB in all.
  void add(const RecordKind& kind, std::string_view head, std::string_view tail,
           std::uint32_t payload_crc);
  void add(const RecordKind& kind, std::string_view payload) {
    add(kind, payload, {}, crc32c(0, payload));
  }
  // Another batch's records, as they are: of one of its stretches.
  void add_from(const Batch& other, const Stretch& stretch, std::uint32_t from,
                std::uint32_t until);
  // Empty, with a fresh buffer.
  void clear();

  std::size_t size() const { return records_ == nullptr ? 0 : records_->size(); }
  std::size_t bytes() const { return records_ == nullptr ? 0 : records_->bytes(); }
  const std::vector<Stretch>& stretches() const { return stretches_; }
  // REQUIRES: size() > 0.
  const Records& records() const { return *records_; }
  // Keeps the records alive for their readers.
  std::shared_ptr<const Records> share() const { return records_; }

 private:
  friend class SegmentLog;  // numbers and seals

  // With room for one more stretch.
  Records& open();
  // The last record is one of these.
  void count(const RecordKind& kind);
  // What is on either side of `index` is no stretch any more.
  void split(std::uint32_t index);

  std::shared_ptr<Buffers> buffers_;
  std::shared_ptr<Records> records_;
  std::vector<Stretch> stretches_;  // ascending
  std::size_t place_ = 0;
};

}  // namespace dray::spool
