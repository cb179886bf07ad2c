#include "dray/message.hpp"

#include <algorithm>
#include <cstring>
#include <set>

#include "dray/codec.hpp"
#include "dray/fields.hpp"
#include "dray/flat_reader.hpp"
#include "dray/flat_writer.hpp"

namespace dray {
namespace {

constexpr unsigned kEnvelopeFields = 10;
// fixarray 10, bin 8 of 16 bytes: the id.
constexpr std::string_view kEnvelopeBegin = "\x9a\xc4\x10";
constexpr std::size_t kEnvelopeIdAt = 3;

bool read_time(FlatReader& in, UtcTime& out) {
  std::uint64_t ms = 0;
  if (!in.natural(ms) || ms > static_cast<std::uint64_t>(kTimeMsMax)) return false;
  out = UtcTime(Milliseconds(static_cast<std::int64_t>(ms)));
  return true;
}

bool read_time_or_nil(FlatReader& in, std::optional<UtcTime>& out) {
  return in.nil() || read_time(in, out.emplace());
}

bool read_priority(FlatReader& in, Priority& out) {
  std::uint64_t priority = 0;
  if (!in.natural(priority) || priority > static_cast<std::uint64_t>(Priority::kLow)) return false;
  out = static_cast<Priority>(priority);
  return true;
}

void write_text_or_nil(FlatWriter& out, std::string_view text) {
  if (text.empty()) {
    out.nil();
  } else {
    out.text(text);
  }
}

void write_time(FlatWriter& out, const std::optional<UtcTime>& time) {
  if (time) {
    out.natural(static_cast<std::uint64_t>(time->time_since_epoch().count()));
  } else {
    out.nil();
  }
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

Status check_draft(const DraftView& draft, const MessageLimits& limits) {
  if (auto fault = name_fault(draft.topic, limits.topic_bytes_max)) {
    return Error{ErrorCode::kInvalid, "topic '" + std::string(draft.topic) + "': " + *fault, "", 0};
  }
  return check_options(draft, limits);
}

Status check_options(const DraftView& draft, const MessageLimits& limits) {
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
      !options.headers.empty() &&
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
  for (const auto* time : {&options.deliver_at, &options.expires_at}) {
    if (*time && ((*time)->time_since_epoch().count() < 0 ||
                  (*time)->time_since_epoch().count() > kTimeMsMax)) {
      return Error{ErrorCode::kInvalid, "deliver_at and expires_at must lie from 1970 to 9999", "",
                   0};
    }
  }
  return {};
}

std::string encode_envelope(const DraftView& draft, const Uuid& id, UtcTime published_at) {
  std::string bytes;
  bytes.resize(encode_envelope_head(draft, id, published_at, bytes).size());
  bytes += draft.body;
  return bytes;
}

std::string_view encode_envelope_head(const DraftView& draft, const Uuid& id, UtcTime published_at,
                                      std::string& room) {
  const auto& options = draft.options;
  std::string headers;
  if (!options.headers.empty()) headers = encode_headers(options.headers);
  const std::size_t most = (kEnvelopeFields + 1) * FlatWriter::kPrefixMax + id.bytes.size() +
                           draft.topic.size() + options.key.size() + options.dedup.size() +
                           headers.size();
  if (room.size() < most) room.resize(most);
  FlatWriter out(room.data());
  out.small_array(kEnvelopeFields);
  out.binary(id.view());
  out.text(draft.topic);
  write_text_or_nil(out, options.key);
  out.natural(static_cast<std::uint64_t>(options.priority));
  write_time(out, published_at);
  write_time(out, options.deliver_at);
  write_time(out, options.expires_at);
  write_text_or_nil(out, options.dedup);
  out.binary(headers);
  out.binary_head(draft.body.size());
  return {room.data(), static_cast<std::size_t>(out.at() - room.data())};
}

std::string_view envelope_topic(std::string_view bytes) {
  // Behind the id, as fixstr or str 8.
  constexpr std::size_t kTopicAt = kEnvelopeIdAt + 16;
  if (bytes.size() <= kTopicAt + 1 || !bytes.starts_with(kEnvelopeBegin)) return {};
  const auto first = static_cast<unsigned char>(bytes[kTopicAt]);
  std::size_t size = first & 0x1F;
  std::size_t at = kTopicAt + 1;
  if (first == 0xD9) size = static_cast<unsigned char>(bytes[at++]);
  if ((first & 0xE0) != 0xA0 && first != 0xD9) return {};
  return size <= bytes.size() - at ? bytes.substr(at, size) : std::string_view{};
}

bool read_envelope(std::string_view bytes, EnvelopeView& out) {
  // Once per message on every worker, and in every recovery.
  FlatReader in(bytes);
  std::uint64_t fields = 0;
  std::string_view id;
  const bool read = in.array(fields) && fields == kEnvelopeFields && in.binary(id) &&
                    in.text(out.topic) && (in.nil() || in.text(out.key)) &&
                    read_priority(in, out.priority) && read_time(in, out.published_at) &&
                    read_time_or_nil(in, out.deliver_at) && read_time_or_nil(in, out.expires_at) &&
                    (in.nil() || in.text(out.dedup)) && in.binary(out.headers) &&
                    in.binary(out.body) && in.at_end();
  if (!read || id.size() != out.id.bytes.size()) return false;
  std::memcpy(out.id.bytes.data(), id.data(), out.id.bytes.size());
  return true;
}

Result<EnvelopeView> parse_envelope(std::string_view bytes) {
  EnvelopeView view;
  if (!read_envelope(bytes, view)) {
    return Error{ErrorCode::kCorrupt, "not an envelope (FORMATS.md, Envelope)", "", 0};
  }
  return view;
}

std::string encode_headers(const Headers& headers) {
  std::string bytes;
  if (headers.empty()) return bytes;
  Encoder encoder(bytes);
  encoder.map(headers.size());
  for (const auto& [name, value] : headers) {
    encoder.text(name);
    encoder.text(value);
  }
  return bytes;
}

Result<Headers> parse_headers(std::string_view bytes) {
  Headers headers;
  if (bytes.empty()) return headers;
  auto map = from_bytes<std::map<std::string, std::string>>(bytes);
  if (!map.ok()) return map.error();
  for (auto& [name, value] : *map) headers.emplace_back(name, value);
  return headers;
}

Result<Draft> draft_of(const EnvelopeView& envelope) {
  auto headers = parse_headers(envelope.headers);
  if (!headers.ok()) return headers.error();
  Draft draft;
  draft.topic = envelope.topic;
  draft.body = envelope.body;
  draft.options.key = envelope.key;
  draft.options.priority = envelope.priority;
  draft.options.headers = std::move(*headers);
  draft.options.deliver_at = envelope.deliver_at;
  draft.options.expires_at = envelope.expires_at;
  draft.options.dedup = envelope.dedup;
  return draft;
}

Result<std::string> with_body(std::string_view envelope, const std::string& body,
                              const MessageLimits& limits) {
  auto view = parse_envelope(envelope);
  if (!view.ok()) return view.error();
  view->body = body;
  auto draft = draft_of(*view);
  if (!draft.ok()) return draft.error();
  DRAY_TRY(check_options(*draft, limits));
  return encode_envelope(*draft, view->id, view->published_at);
}

}  // namespace dray
