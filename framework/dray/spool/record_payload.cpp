#include "dray/spool/record_payload.hpp"

#include <algorithm>

namespace dray::spool {
namespace {

Error fault(const char* what) {
  return Error{ErrorCode::kCorrupt, std::string("not a ") + what + " record", "", 0};
}

bool read_group(const Value& value, GroupId& out) {
  std::uint64_t number = 0;
  if (!value.get(number) || number >= kGroupsMax) return false;
  out = static_cast<GroupId>(number);
  return true;
}

// Negative times are none.
std::uint64_t time_of(std::int64_t at_ms) {
  return static_cast<std::uint64_t>(std::max<std::int64_t>(0, at_ms));
}

bool read_time(const Value& value, std::int64_t& out) {
  std::uint64_t at_ms = 0;
  if (!value.get(at_ms) || !std::in_range<std::int64_t>(at_ms)) return false;
  out = static_cast<std::int64_t>(at_ms);
  return true;
}

}  // namespace

std::string encode(const DeliveryRecord& record) {
  std::string bytes;
  Encoder encoder(bytes);
  encoder.array(5);
  encoder.natural(record.group);
  encoder.binary(record.session.view());
  encoder.natural(record.number);
  encode_runs(encoder, record.sequences);
  encoder.natural(time_of(record.at_ms));
  return bytes;
}

Result<DeliveryRecord> decode_delivery(std::string_view payload) {
  auto document = Document::parse(payload);
  if (!document.ok()) return document.error();
  const Value root = document->root();
  DeliveryRecord record;
  std::string_view session;
  std::uint64_t number = 0;
  if (root.kind() != Value::Kind::kArray || root.size() != 5 ||
      !read_group(root.at(0), record.group) || !root.at(1).get_binary(session) ||
      session.size() != 16 || !root.at(2).get(number) || !std::in_range<std::uint32_t>(number) ||
      !read_time(root.at(4), record.at_ms)) {
    return fault("delivery");
  }
  record.session = *Uuid::from_bytes(session);
  record.number = static_cast<std::uint32_t>(number);
  auto sequences = decode_runs(root.at(3));
  if (!sequences.ok()) return sequences.error();
  record.sequences = std::move(*sequences);
  return record;
}

std::string encode(const SettlementRecord& record) {
  std::string bytes;
  Encoder encoder(bytes);
  encoder.array(4);
  encoder.natural(record.group);
  encoder.natural(static_cast<std::uint64_t>(record.settlement));
  encode_runs(encoder, record.sequences);
  encoder.natural(time_of(record.at_ms));
  return bytes;
}

Result<SettlementRecord> decode_settlement(std::string_view payload) {
  auto document = Document::parse(payload);
  if (!document.ok()) return document.error();
  const Value root = document->root();
  SettlementRecord record;
  std::uint64_t settlement = 0;
  if (root.kind() != Value::Kind::kArray || root.size() != 4 ||
      !read_group(root.at(0), record.group) || !root.at(1).get(settlement) ||
      !read_time(root.at(3), record.at_ms) ||
      settlement > static_cast<std::uint64_t>(Settlement::kDamaged)) {
    return fault("settlement");
  }
  record.settlement = static_cast<Settlement>(settlement);
  auto sequences = decode_runs(root.at(2));
  if (!sequences.ok()) return sequences.error();
  record.sequences = std::move(*sequences);
  return record;
}

std::string encode(const ReviveRecord& record) {
  std::string bytes;
  Encoder encoder(bytes);
  encoder.array(2);
  encoder.natural(record.group);
  encode_runs(encoder, record.sequences);
  return bytes;
}

Result<ReviveRecord> decode_revive(std::string_view payload) {
  auto document = Document::parse(payload);
  if (!document.ok()) return document.error();
  const Value root = document->root();
  ReviveRecord record;
  if (root.kind() != Value::Kind::kArray || root.size() != 2 ||
      !read_group(root.at(0), record.group)) {
    return fault("revive");
  }
  auto sequences = decode_runs(root.at(1));
  if (!sequences.ok()) return sequences.error();
  record.sequences = std::move(*sequences);
  return record;
}

}  // namespace dray::spool
