#include "dray/trace.hpp"

#include <array>

#include "dray/uuid.hpp"

namespace dray {
namespace {

constexpr std::size_t kLength = 55;  // of version 00

bool is_hex(std::string_view text) {
  return text.find_first_not_of("0123456789abcdef") == std::string_view::npos;
}
bool is_zero(std::string_view text) {
  return text.find_first_not_of('0') == std::string_view::npos;
}

}  // namespace

std::optional<TraceParent> parse_traceparent(std::string_view text) {
  if (text.size() < kLength || text[2] != '-' || text[35] != '-' || text[52] != '-') {
    return std::nullopt;
  }
  const auto version = text.substr(0, 2);
  if (!is_hex(version) || version == "ff") return std::nullopt;
  if (version == "00" ? text.size() != kLength : text.size() > kLength && text[kLength] != '-') {
    return std::nullopt;
  }
  const auto trace_id = text.substr(3, 32);
  const auto parent_id = text.substr(36, 16);
  const auto flags = text.substr(53, 2);
  if (!is_hex(trace_id) || !is_hex(parent_id) || !is_hex(flags)) return std::nullopt;
  if (is_zero(trace_id) || is_zero(parent_id)) return std::nullopt;
  return TraceParent{std::string(trace_id), std::string(parent_id), std::string(flags)};
}

std::string traceparent_text(const TraceParent& trace) {
  return "00-" + trace.trace_id + '-' + trace.parent_id + '-' + trace.flags;
}

TraceParent child_of(const TraceParent& trace) {
  constexpr std::string_view kDigits = "0123456789abcdef";
  std::array<std::uint8_t, 8> bytes{};
  random_bytes(bytes);
  TraceParent child = trace;
  child.parent_id.clear();
  for (const auto byte : bytes) {
    child.parent_id += kDigits[byte >> 4];
    child.parent_id += kDigits[byte & 15];
  }
  if (is_zero(child.parent_id)) child.parent_id.back() = '1';
  return child;
}

}  // namespace dray
