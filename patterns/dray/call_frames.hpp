// The frames of request/reply: "DC", version 0, and a MessagePack array:
//
//   client -> service   [0, id, timeout_ms, request (bin)]     [1, id]: cancelled
//   service -> client   [2, id, reply (bin)]                   [3, id, code, message]
//
// Threading: pure functions. Failure: decode_call returns nothing for anything else.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "dray/clock.hpp"
#include "dray/result.hpp"

namespace dray::plain {

enum class CallKind : std::uint8_t { kRequest = 0, kCancel = 1, kReply = 2, kFailure = 3 };

struct CallFrame {
  CallKind kind = CallKind::kRequest;
  std::uint64_t id = 0;
  std::uint64_t timeout_ms = 0;
  std::string body;  // of a request or a reply; the message of a failure
  std::string code;
};

std::string encode_request(std::uint64_t id, Milliseconds timeout, std::string_view body);
std::string encode_cancel(std::uint64_t id);
std::string encode_reply(std::uint64_t id, std::string_view body);
std::string encode_failure(std::uint64_t id, const Error& error);
std::optional<CallFrame> decode_call(std::string_view bytes);

}  // namespace dray::plain
