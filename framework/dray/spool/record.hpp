// Records and segment headers: the bytes of the log (framework/FORMATS.md).
//
// Threading: pure functions and values. Failure: decoding returns nothing for bytes that fail
// their check; it never reads past what it was given.
// Ownership: views point into the bytes that were decoded.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "dray/message.hpp"
#include "dray/spool/bytes.hpp"

namespace dray::spool {

using Lsn = std::uint64_t;  // position in the log, strictly increasing in file order, from 1

inline constexpr std::uint32_t kFormatVersion = 0;
inline constexpr std::size_t kSegmentHeaderSize = 104;
inline constexpr std::size_t kRecordHeaderSize = 32;
inline constexpr std::size_t kRecordAlignment = 8;
// A body of 16 MiB with its envelope fits.
inline constexpr std::size_t kPayloadSizeMax = (16U << 20) + (1U << 19);

enum class RecordType : std::uint8_t {
  kEpoch = 1,       // one per open: counter and random bits
  kGroup = 2,       // a group's declaration: from here on it takes its topics
  kMessage = 3,     // payload is the envelope
  kSession = 4,     // a worker session began
  kSessionEnd = 5,  // a worker session said BYE or was lost
  kDelivery = 6,    // messages granted to a session
  kSettlement = 7,  // messages settled for a group
  kRetry = 8,       // a message waits to be delivered again
  kDead = 9,        // a message became a dead letter
  kRevive = 10,     // a dead letter became pending again
  kMarker = 11,     // carries durable_lsn, and what every group had accepted
  kOpening = 12,    // first in a segment: groups, and what each had accepted
  kCopy = 13,       // an open message and its history, copied forward out of an old segment
  kDamage = 14,     // messages of a group that can no longer be read
  kLost = 15,       // written over damaged records by `dray spool repair`; lsn: of the last of them
  kStep = 16,       // a step of a handling began or ended (Delivery::once)
};

// Flags of a record header.
inline constexpr std::uint8_t kPriorityMask = 0x03;  // messages: dray::Priority
// This record takes effect only together with the record after it (S6).
inline constexpr std::uint8_t kContinues = 0x04;
// A message with a dedup id, deliver_at or expires_at: replay must look into the envelope.
inline constexpr std::uint8_t kHasOptions = 0x08;
// A message with an ordering key. Its priority is normal: it keeps its place in its key's order.
inline constexpr std::uint8_t kHasKey = 0x10;

// Of a message. What is no priority counts as normal.
constexpr Priority priority_of(std::uint8_t flags) {
  const auto given = flags & kPriorityMask;
  return given <= static_cast<std::uint8_t>(Priority::kLow) ? static_cast<Priority>(given)
                                                            : Priority::kNormal;
}

struct SegmentHeader {
  std::uint32_t version = kFormatVersion;
  Uuid spool_id;
  std::uint64_t number = 0;
  std::uint64_t epoch = 0;
  std::uint64_t epoch_random = 0;
  Lsn first_lsn = 1;
  UtcTime created_at{};
  Uuid machine_id;
  std::uint64_t home = 0;  // Directory::identity() where it was made
};

std::string encode_segment_header(const SegmentHeader& header);

enum class HeaderFault { kNone, kForeign, kNewerVersion, kDamaged };
struct SegmentHeaderResult {
  HeaderFault fault = HeaderFault::kNone;
  SegmentHeader header;
};
SegmentHeaderResult decode_segment_header(std::string_view bytes);

// The seed of the header CRCs of a segment: stale bytes of a recycled file, and bytes that lie
// elsewhere than they were written, fail (S2). The header vouches for its payload's CRC.
std::uint32_t segment_seed(const SegmentHeader& header);

struct RecordHeader {
  RecordType type = RecordType::kMarker;
  std::uint8_t flags = 0;
  std::uint32_t payload_size = 0;
  Lsn lsn = 0;
  Lsn durable_lsn = 0;  // highest lsn that was synced when this was written
  std::uint32_t payload_crc = 0;
};

struct Record {
  RecordHeader header;
  std::string_view payload;
};

constexpr std::size_t record_size(std::size_t payload_size) {
  const std::size_t size = kRecordHeaderSize + payload_size;
  return (size + kRecordAlignment - 1) / kRecordAlignment * kRecordAlignment;
}

// Writes a header without its seal: what its place in the log decides is still missing.
// `payload_crc` is crc32c(0, payload). REQUIRES: payload_size <= kPayloadSizeMax.
void frame_header(char* out, RecordType type, std::uint8_t flags, std::uint32_t payload_size,
                  std::uint32_t payload_crc);
// Completes the header at `header`; `offset` is where it will lie in the segment. May be repeated
// for another place.
void seal_record(char* header, std::uint32_t seed, std::uint64_t offset, Lsn lsn, Lsn durable_lsn);
// The same for a record that lies in no segment: its header's CRC is 0 and vouches for nothing.
void number_loose_record(char* header, Lsn lsn);

// Both at once. REQUIRES: payload.size() <= kPayloadSizeMax.
void append_record(std::string& out, std::uint32_t seed, std::uint64_t offset,
                   const RecordHeader& header, std::string_view payload);

// The header at `offset` of a segment, if its bytes pass their CRC. Trust payload_size only then.
std::optional<RecordHeader> decode_record_header(std::string_view bytes, std::uint32_t seed,
                                                 std::uint64_t offset);
// A message's record at the beginning of `bytes`, by itself: what its place would vouch for is not
// looked at. Nothing if it is none, or its bytes are not all there.
std::optional<RecordHeader> parse_loose_record(std::string_view bytes);
bool payload_passes(const RecordHeader& header, std::string_view payload);

// First two bytes of every record, for finding records behind damage.
inline constexpr std::array<char, 2> kRecordMagic{'\xD7', '\x5A'};

std::string segment_name(std::uint64_t number);
std::optional<std::uint64_t> segment_number(std::string_view name);

}  // namespace dray::spool
