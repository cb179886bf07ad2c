#include "dray/call_frames.hpp"

#include <algorithm>

#include "dray/codec.hpp"

namespace dray::plain {
namespace {

constexpr std::string_view kMagic("DC\0", 3);
constexpr std::size_t kMessageBytesMax = 4'096;

std::string begin(std::size_t fields, CallKind kind, std::uint64_t id, std::size_t body) {
  std::string bytes;
  bytes.reserve(kMagic.size() + 32 + body);
  bytes.append(kMagic);
  Encoder encoder(bytes);
  encoder.array(fields);
  encoder.natural(static_cast<std::uint64_t>(kind));
  encoder.natural(id);
  return bytes;
}

}  // namespace

std::string encode_request(std::uint64_t id, Milliseconds timeout, std::string_view body) {
  std::string bytes = begin(4, CallKind::kRequest, id, body.size());
  Encoder encoder(bytes);
  encoder.natural(static_cast<std::uint64_t>(std::max<std::int64_t>(0, timeout.count())));
  encoder.binary(body);
  return bytes;
}

std::string encode_cancel(std::uint64_t id) {
  return begin(2, CallKind::kCancel, id, 0);
}

std::string encode_reply(std::uint64_t id, std::string_view body) {
  std::string bytes = begin(3, CallKind::kReply, id, body.size());
  Encoder(bytes).binary(body);
  return bytes;
}

std::string encode_failure(std::uint64_t id, const Error& error) {
  std::string bytes = begin(4, CallKind::kFailure, id, 0);
  Encoder encoder(bytes);
  encoder.text(error_code_name(error.code));
  encoder.text(error.text().substr(0, kMessageBytesMax));
  return bytes;
}

std::optional<CallFrame> decode_call(std::string_view bytes) {
  if (bytes.substr(0, kMagic.size()) != kMagic) return std::nullopt;
  const auto document = Document::parse(bytes.substr(kMagic.size()));
  if (!document.ok()) return std::nullopt;
  const Value root = document->root();
  CallFrame frame;
  std::uint64_t kind = 0;
  if (root.kind() != Value::Kind::kArray || root.size() < 2 || !root.at(0).get(kind) ||
      !root.at(1).get(frame.id) || kind > static_cast<std::uint64_t>(CallKind::kFailure)) {
    return std::nullopt;
  }
  frame.kind = static_cast<CallKind>(kind);
  std::string_view body;
  std::string_view code;
  switch (frame.kind) {
    case CallKind::kRequest:
      if (root.size() < 4 || !root.at(2).get(frame.timeout_ms) || !root.at(3).get_binary(body)) {
        return std::nullopt;
      }
      break;
    case CallKind::kCancel:
      break;
    case CallKind::kReply:
      if (root.size() < 3 || !root.at(2).get_binary(body)) return std::nullopt;
      break;
    case CallKind::kFailure:
      if (root.size() < 4 || !root.at(2).get_text(code) || !root.at(3).get_text(body)) {
        return std::nullopt;
      }
      frame.code = code;
      break;
  }
  frame.body = body;
  return frame;
}

}  // namespace dray::plain
