// Message and envelope: what a message is, and its bytes on disk and on the wire.
//
// The envelope is encoded once, by the publisher; the same bytes are written to the spool and
// sent to the worker. Byte table: framework/FORMATS.md, "Envelope".
//
// Threading: values and pure functions. Ownership: an EnvelopeView points into the bytes parsed.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "dray/clock.hpp"
#include "dray/export.hpp"
#include "dray/result.hpp"
#include "dray/uuid.hpp"

namespace dray {

// Position of a message in its spool: the lsn of its record. 0 names no message.
using Sequence = std::uint64_t;

enum class Priority : std::uint8_t { kHigh = 0, kNormal = 1, kLow = 2 };

// What a receipt is worth (P1): kOs survives SIGKILL, kDisk also power loss.
enum class Durability : std::uint8_t { kOs, kDisk };

DRAY_API std::string_view durability_name(Durability durability);

using Headers = std::vector<std::pair<std::string, std::string>>;

// Upper bounds of what a publisher may hand in (design: limits are named and configurable).
struct MessageLimits {
  std::size_t body_bytes_max = 16U << 20;
  std::size_t headers_max = 64;
  std::size_t header_bytes_max = 4096;
  std::size_t key_bytes_max = 256;
  std::size_t topic_bytes_max = 128;
  std::size_t dedup_bytes_max = 256;
};

struct PublishOptions {
  std::string key = {};
  Priority priority = Priority::kNormal;
  Headers headers = {};
  std::optional<UtcTime> deliver_at = std::nullopt;
  std::optional<UtcTime> expires_at = std::nullopt;
  // Publisher-given id: a second publish with it inside the dedup window is the first one. Of a
  // follow-up it says nothing: that counts once, with its settlement.
  std::string dedup = {};
  // What the receipt waits for; nothing: the spool's own.
  std::optional<Durability> durability = std::nullopt;
};

// A message before it has an id and a sequence.
struct Draft {
  std::string topic;
  std::string body;  // MessagePack
  PublishOptions options;
};

// The same in somebody else's memory, for the length of a call.
struct DraftView {
  std::string_view topic;
  std::string_view body;
  const PublishOptions& options;

  DraftView(std::string_view topic_in, std::string_view body_in, const PublishOptions& options_in)
      : topic(topic_in), body(body_in), options(options_in) {}
  DraftView(const Draft& draft)  // NOLINT: implicit by design
      : topic(draft.topic), body(draft.body), options(draft.options) {}
};

// A message as read back; all views point into the envelope's bytes.
struct EnvelopeView {
  Uuid id;
  std::string_view topic;
  std::string_view key;
  Priority priority = Priority::kNormal;
  UtcTime published_at{};
  std::optional<UtcTime> deliver_at;
  std::optional<UtcTime> expires_at;
  std::string_view dedup;
  std::string_view headers;  // MessagePack map of text to text
  std::string_view body;     // MessagePack
};

// The latest time that a message may name: the end of the year 9999, in milliseconds.
inline constexpr std::int64_t kTimeMsMax = 253402300799999;

// Topics and groups are dotted names: letters, digits, '.', '-', '_', 1 to 128 bytes, no empty
// part. Returns the fault in words, or nothing.
DRAY_API std::optional<std::string> name_fault(std::string_view name, std::size_t bytes_max = 128);

// kInvalid, naming the limit, if the draft breaks one.
DRAY_API Status check_draft(const DraftView& draft, const MessageLimits& limits);
// The same without a look at the topic.
DRAY_API Status check_options(const DraftView& draft, const MessageLimits& limits);
// True for most that check_options() lets pass, and for none that it does not: it costs less.
inline bool options_pass(const DraftView& draft, const MessageLimits& limits) {
  const auto& options = draft.options;
  return draft.body.size() <= limits.body_bytes_max && options.headers.empty() &&
         options.key.size() <= limits.key_bytes_max &&
         options.dedup.size() <= limits.dedup_bytes_max && !options.deliver_at &&
         !options.expires_at;
}

DRAY_API std::string encode_envelope(const DraftView& draft, const Uuid& id, UtcTime published_at);
// All of it that stands before the body's bytes, which are its end. At the beginning of `room`,
// which grows as it must and may be used again: nothing is allocated, nothing cleared.
DRAY_API std::string_view encode_envelope_head(const DraftView& draft, const Uuid& id,
                                               UtcTime published_at, std::string& room);

// The topic alone, at the cost of a few comparisons; empty if this is no envelope.
DRAY_API std::string_view envelope_topic(std::string_view bytes);

// Reads an envelope without copying and without decoding the body. kCorrupt on any fault.
DRAY_API Result<EnvelopeView> parse_envelope(std::string_view bytes);
// The same; false on any fault, with `out` as it may be. `out` is one that was just made.
DRAY_API bool read_envelope(std::string_view bytes, EnvelopeView& out);

// The same as a publisher hands it in: without id and time. kCorrupt if its headers cannot be read.
DRAY_API Result<Draft> draft_of(const EnvelopeView& envelope);

// The same message with another body. kCorrupt if `envelope` is none, kInvalid beyond a limit.
DRAY_API Result<std::string> with_body(std::string_view envelope, const std::string& body,
                                       const MessageLimits& limits);

// A MessagePack map of text to text; nothing for no headers.
DRAY_API std::string encode_headers(const Headers& headers);
DRAY_API Result<Headers> parse_headers(std::string_view bytes);

}  // namespace dray
