#include "dray/message.hpp"

#include <algorithm>
#include <set>

#include "dray/codec.hpp"
#include "dray/fields.hpp"
#include "dray/msgpack_limits.hpp"

namespace dray {
namespace {

constexpr std::size_t kEnvelopeFields = 10;
enum Field : std::size_t {
  kId,
  kTopic,
  kKey,
  kPriority,
  kPublishedAt,
  kDeliverAt,
  kExpiresAt,
  kDedup,
  kHeaders,
  kBody
};

// Collects the top-level elements of the envelope array without building a tree: this runs once
// per message on every worker and on every recovery.
class EnvelopeVisitor : public LimitVisitor {
 public:
  EnvelopeView view;

  bool start_array(std::uint32_t size) {
    if (depth() == 0 && size != kEnvelopeFields) return false;
    if (depth() != 0) return false;
    is_array_ = true;
    return LimitVisitor::start_array(size);
  }
  bool end_array_item() {
    ++field_;
    return true;
  }
  bool visit_nil() {
    return field_ == kKey || field_ == kDeliverAt || field_ == kExpiresAt || field_ == kDedup;
  }
  bool visit_positive_integer(std::uint64_t value) {
    switch (field_) {
      case kPriority:
        if (value > static_cast<std::uint64_t>(Priority::kLow)) return false;
        view.priority = static_cast<Priority>(value);
        return true;
      case kPublishedAt:
        return time(value, view.published_at);
      case kDeliverAt:
        return time(value, view.deliver_at.emplace());
      case kExpiresAt:
        return time(value, view.expires_at.emplace());
      default:
        return false;
    }
  }
  bool visit_negative_integer(std::int64_t) { return false; }
  bool visit_boolean(bool) { return false; }
  bool visit_float32(float) { return false; }
  bool visit_float64(double) { return false; }
  bool visit_ext(const char*, std::uint32_t) { return false; }
  bool start_map(std::uint32_t) { return false; }
  bool visit_str(const char* data, std::uint32_t size) {
    switch (field_) {
      case kTopic:
        view.topic = {data, size};
        return true;
      case kKey:
        view.key = {data, size};
        return true;
      case kDedup:
        view.dedup = {data, size};
        return true;
      default:
        return false;
    }
  }
  bool visit_bin(const char* data, std::uint32_t size) {
    switch (field_) {
      case kId:
        if (auto id = Uuid::from_bytes({data, size})) {
          view.id = *id;
          return true;
        }
        return false;
      case kHeaders:
        view.headers = {data, size};
        return true;
      case kBody:
        view.body = {data, size};
        return true;
      default:
        return false;
    }
  }
  bool complete() const { return is_array_ && field_ == kEnvelopeFields; }

 private:
  static bool time(std::uint64_t ms, UtcTime& out) {
    if (ms > static_cast<std::uint64_t>(kTimeMsMax)) return false;
    out = UtcTime(Milliseconds(static_cast<std::int64_t>(ms)));
    return true;
  }

  bool is_array_ = false;
  std::size_t field_ = 0;
};

void encode_time(Encoder& encoder, const std::optional<UtcTime>& time) {
  if (!time) return encoder.nil();
  encoder.natural(static_cast<std::uint64_t>(time->time_since_epoch().count()));
}

void encode_text_or_nil(Encoder& encoder, const std::string& text) {
  if (text.empty()) return encoder.nil();
  encoder.text(text);
}

Error over_limit(const std::string& what, std::size_t size, std::size_t limit) {
  return Error{
      ErrorCode::kInvalid,
      what + " is " + std::to_string(size) + " bytes, the limit is " + std::to_string(limit), "",
      0};
}

}  // namespace

std::optional<std::string> name_fault(std::string_view name, std::size_t bytes_max) {
  if (name.empty()) return "a name must not be empty";
  if (name.size() > bytes_max) return "longer than " + std::to_string(bytes_max) + " bytes";
  char before = '.';
  for (const char c : name) {
    const bool letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
                        (c >= '0' && c <= '9') || c == '-' || c == '_';
    if (!letter && c != '.') return "only letters, digits, '.', '-' and '_' may be used";
    if (c == '.' && before == '.') return "a part between dots is empty";
    before = c;
  }
  if (before == '.') return "it must not end with a dot";
  return std::nullopt;
}

Status check_draft(const Draft& draft, const MessageLimits& limits) {
  if (auto fault = name_fault(draft.topic, limits.topic_bytes_max)) {
    return Error{ErrorCode::kInvalid, "topic '" + draft.topic + "': " + *fault, "", 0};
  }
  const auto& options = draft.options;
  if (draft.body.size() > limits.body_bytes_max) {
    return over_limit("the body", draft.body.size(), limits.body_bytes_max);
  }
  if (options.key.size() > limits.key_bytes_max) {
    return over_limit("the key", options.key.size(), limits.key_bytes_max);
  }
  if (options.dedup.size() > limits.dedup_bytes_max) {
    return over_limit("the dedup id", options.dedup.size(), limits.dedup_bytes_max);
  }
  if (options.headers.size() > limits.headers_max) {
    return Error{ErrorCode::kInvalid,
                 std::to_string(options.headers.size()) + " headers, the limit is " +
                     std::to_string(limits.headers_max),
                 "", 0};
  }
  if (std::set<std::string_view> names;
      !std::all_of(options.headers.begin(), options.headers.end(),
                   [&](const auto& header) { return names.insert(header.first).second; })) {
    return Error{ErrorCode::kInvalid, "a header is given twice", "", 0};
  }
  for (const auto& [name, value] : options.headers) {
    if (name.empty() || name.size() + value.size() > limits.header_bytes_max) {
      return over_limit("header '" + name + "'", name.size() + value.size(),
                        limits.header_bytes_max);
    }
  }
  for (const auto& time : {options.deliver_at, options.expires_at}) {
    if (time &&
        (time->time_since_epoch().count() < 0 || time->time_since_epoch().count() > kTimeMsMax)) {
      return Error{ErrorCode::kInvalid, "deliver_at and expires_at must lie from 1970 to 9999", "",
                   0};
    }
  }
  return {};
}

std::string encode_envelope(const Draft& draft, const Uuid& id, UtcTime published_at) {
  std::string bytes;
  bytes.reserve(draft.body.size() + draft.topic.size() + draft.options.key.size() + 80);
  Encoder encoder(bytes);
  encoder.array(kEnvelopeFields);
  encoder.binary(id.view());
  encoder.text(draft.topic);
  encode_text_or_nil(encoder, draft.options.key);
  encoder.natural(static_cast<std::uint64_t>(draft.options.priority));
  encode_time(encoder, published_at);
  encode_time(encoder, draft.options.deliver_at);
  encode_time(encoder, draft.options.expires_at);
  encode_text_or_nil(encoder, draft.options.dedup);
  std::string headers;
  if (!draft.options.headers.empty()) {
    Encoder header_encoder(headers);
    header_encoder.map(draft.options.headers.size());
    for (const auto& [name, value] : draft.options.headers) {
      header_encoder.text(name);
      header_encoder.text(value);
    }
  }
  encoder.binary(headers);
  encoder.binary(draft.body);
  return bytes;
}

std::string_view envelope_topic(std::string_view bytes) {
  // fixarray 10, bin 8 of 16 bytes, then the topic as fixstr or str 8.
  constexpr std::size_t kTopicAt = 19;
  if (bytes.size() <= kTopicAt + 1 || !bytes.starts_with("\x9a\xc4\x10")) return {};
  const auto first = static_cast<unsigned char>(bytes[kTopicAt]);
  std::size_t size = first & 0x1F;
  std::size_t at = kTopicAt + 1;
  if (first == 0xD9) size = static_cast<unsigned char>(bytes[at++]);
  if ((first & 0xE0) != 0xA0 && first != 0xD9) return {};
  return size <= bytes.size() - at ? bytes.substr(at, size) : std::string_view{};
}

Result<EnvelopeView> parse_envelope(std::string_view bytes) {
  EnvelopeVisitor visitor;
  std::size_t offset = 0;
  if (!msgpack::parse(bytes.data(), bytes.size(), offset, visitor) || offset != bytes.size() ||
      !visitor.complete()) {
    return Error{ErrorCode::kCorrupt, "not an envelope (FORMATS.md, Envelope)", "", 0};
  }
  return visitor.view;
}

Result<Headers> parse_headers(std::string_view bytes) {
  Headers headers;
  if (bytes.empty()) return headers;
  auto map = from_bytes<std::map<std::string, std::string>>(bytes);
  if (!map.ok()) return map.error();
  for (auto& [name, value] : *map) headers.emplace_back(name, value);
  return headers;
}

}  // namespace dray
