#include "dray/spool/record.hpp"

#include <charconv>
#include <cstdio>

#include "dray/spool/bytes.hpp"
#include "dray/spool/planted_fault.hpp"

namespace dray::spool {
namespace {

constexpr std::string_view kSegmentMagic("DRAYSEG\0", 8);
constexpr std::string_view kSegmentSuffix = ".segment";
constexpr std::size_t kSegmentCrcOffset = 100;
// In a record's header.
constexpr std::size_t kLsnAt = 8;
constexpr std::size_t kDurableLsnAt = 16;
constexpr std::size_t kPayloadCrcAt = 24;
constexpr std::size_t kHeaderCrcAt = 28;

// Differs for all offsets of a segment, and so does every CRC that begins with it: a CRC's final
// value is a bijection of its initial one.
std::uint32_t offset_seed(std::uint32_t seed, std::uint64_t offset) {
  return seed ^ static_cast<std::uint32_t>(offset / kRecordAlignment);
}

}  // namespace

std::string encode_segment_header(const SegmentHeader& header) {
  std::string out;
  out.reserve(kSegmentHeaderSize);
  out += kSegmentMagic;
  put_le(out, header.version);
  put_le(out, static_cast<std::uint32_t>(kSegmentHeaderSize));
  out += header.spool_id.view();
  put_le(out, header.number);
  put_le(out, header.epoch);
  put_le(out, header.epoch_random);
  put_le(out, header.first_lsn);
  put_le(out, static_cast<std::uint64_t>(header.created_at.time_since_epoch().count()));
  out += header.machine_id.view();
  put_le(out, header.home);
  out.resize(kSegmentCrcOffset, '\0');
  put_le(out, crc32c(0, out));
  return out;
}

SegmentHeaderResult decode_segment_header(std::string_view bytes) {
  SegmentHeaderResult result;
  if (bytes.size() < kSegmentHeaderSize) {
    result.fault = HeaderFault::kForeign;
    return result;
  }
  const char* in = bytes.data();
  const bool magic = bytes.substr(0, 8) == kSegmentMagic;
  std::string wanted(bytes.substr(0, kSegmentCrcOffset));
  wanted.replace(0, 8, kSegmentMagic);  // rot may be in the magic itself
  if (get_le<std::uint32_t>(in + kSegmentCrcOffset) != crc32c(0, wanted)) {
    result.fault = magic ? HeaderFault::kDamaged : HeaderFault::kForeign;
    return result;
  }
  result.header.version = get_le<std::uint32_t>(in + 8);
  if (result.header.version > kFormatVersion) {
    result.fault = HeaderFault::kNewerVersion;
    return result;
  }
  result.header.spool_id = *Uuid::from_bytes(bytes.substr(16, 16));
  result.header.number = get_le<std::uint64_t>(in + 32);
  result.header.epoch = get_le<std::uint64_t>(in + 40);
  result.header.epoch_random = get_le<std::uint64_t>(in + 48);
  result.header.first_lsn = get_le<std::uint64_t>(in + 56);
  result.header.created_at =
      UtcTime(Milliseconds(static_cast<std::int64_t>(get_le<std::uint64_t>(in + 64))));
  result.header.machine_id = *Uuid::from_bytes(bytes.substr(72, 16));
  result.header.home = get_le<std::uint64_t>(in + 88);
  return result;
}

std::uint32_t segment_seed(const SegmentHeader& header) {
  std::string bytes(header.spool_id.view());
  put_le(bytes, header.epoch);
  put_le(bytes, header.epoch_random);
  put_le(bytes, header.number);
  return crc32c(0, bytes);
}

void frame_header(char* out, RecordType type, std::uint8_t flags, std::uint32_t payload_size,
                  std::uint32_t payload_crc) {
  DRAY_ASSERT(payload_size <= kPayloadSizeMax);
  out[0] = kRecordMagic[0];
  out[1] = kRecordMagic[1];
  out[2] = static_cast<char>(type);
  out[3] = static_cast<char>(flags);
  put_le_at(out + 4, payload_size);
  put_le_at(out + kPayloadCrcAt, payload_crc);
}

void seal_record(char* header, std::uint32_t seed, std::uint64_t offset, Lsn lsn, Lsn durable_lsn) {
  put_le_at(header + kLsnAt, lsn);
  put_le_at(header + kDurableLsnAt, durable_lsn);
  put_le_at(header + kHeaderCrcAt, crc32c(offset_seed(seed, offset), {header, kHeaderCrcAt}));
}

void number_loose_record(char* header, Lsn lsn) {
  put_le_at(header + kLsnAt, lsn);
  put_le_at(header + kDurableLsnAt, Lsn{0});
  put_le_at(header + kHeaderCrcAt, std::uint32_t{0});
}

void append_record(std::string& out, std::uint32_t seed, std::uint64_t offset,
                   const RecordHeader& header, std::string_view payload) {
  const std::size_t at = out.size();
  out.append(kRecordHeaderSize, '\0');
  out.append(payload);
  out.append(record_size(payload.size()) - (out.size() - at), '\0');
  frame_header(out.data() + at, header.type, header.flags,
               static_cast<std::uint32_t>(payload.size()), crc32c(0, payload));
  seal_record(out.data() + at, seed, offset, header.lsn, header.durable_lsn);
}

namespace {

RecordHeader read_header(const char* in) {
  RecordHeader header;
  header.type = static_cast<RecordType>(in[2]);
  header.flags = static_cast<std::uint8_t>(in[3]);
  header.payload_size = get_le<std::uint32_t>(in + 4);
  header.lsn = get_le<std::uint64_t>(in + kLsnAt);
  header.durable_lsn = get_le<std::uint64_t>(in + kDurableLsnAt);
  header.payload_crc = get_le<std::uint32_t>(in + kPayloadCrcAt);
  return header;
}

bool has_magic(std::string_view bytes) {
  return bytes.size() >= kRecordHeaderSize && bytes[0] == kRecordMagic[0] &&
         bytes[1] == kRecordMagic[1];
}

}  // namespace

std::optional<RecordHeader> decode_record_header(std::string_view bytes, std::uint32_t seed,
                                                 std::uint64_t offset) {
  if (!has_magic(bytes)) return std::nullopt;
  const auto wanted = crc32c(offset_seed(seed, offset), bytes.substr(0, kHeaderCrcAt));
  const bool passes = get_le<std::uint32_t>(bytes.data() + kHeaderCrcAt) == wanted;
  if (!passes && !planted(Fault::kNoRecordHeaderCrc)) return std::nullopt;
  const RecordHeader header = read_header(bytes.data());
  if (header.payload_size > kPayloadSizeMax) return std::nullopt;
  return header;
}

std::optional<RecordHeader> parse_loose_record(std::string_view bytes) {
  if (!has_magic(bytes)) return std::nullopt;
  const RecordHeader header = read_header(bytes.data());
  if (header.type != RecordType::kMessage || header.payload_size > kPayloadSizeMax ||
      record_size(header.payload_size) > bytes.size()) {
    return std::nullopt;
  }
  return header;
}

bool payload_passes(const RecordHeader& header, std::string_view payload) {
  return planted(Fault::kNoRecordCrc) || header.payload_crc == crc32c(0, payload);
}

std::string segment_name(std::uint64_t number) {
  std::array<char, 32> digits{};
  std::snprintf(digits.data(), digits.size(), "%016llx", static_cast<unsigned long long>(number));
  return digits.data() + std::string(kSegmentSuffix);
}

std::optional<std::uint64_t> segment_number(std::string_view name) {
  if (name.size() != 16 + kSegmentSuffix.size() || !name.ends_with(kSegmentSuffix)) {
    return std::nullopt;
  }
  std::uint64_t number = 0;
  const auto [end, fault] = std::from_chars(name.data(), name.data() + 16, number, 16);
  if (fault != std::errc{} || end != name.data() + 16) return std::nullopt;
  return number;
}

}  // namespace dray::spool
