// Fuzz target: envelopes and what is in them, MessagePack documents, typed bodies, and the payloads
// of records.
#include <cstdlib>
#include <map>
#include <optional>

#include "dray/fields.hpp"
#include "dray/message.hpp"
#include "dray/spool/record_payload.hpp"

using namespace dray;

namespace {

struct Inner {
  std::vector<std::string> list;
  std::map<std::string, std::int64_t> map;
  DRAY_FIELDS(list, map)
};
struct Outer {
  std::string text;
  std::optional<double> real;
  bool flag = false;
  std::vector<Inner> inner;
  DRAY_FIELDS(text, real, flag, inner)
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const auto topic = envelope_topic(input);
  const auto envelope = parse_envelope(input);
  if (envelope.ok()) {
    if (!topic.empty() && topic != envelope->topic) std::abort();
    (void)parse_headers(envelope->headers);
    (void)from_bytes<Outer>(envelope->body);
    const auto changed = with_body(input, std::string(envelope->body), MessageLimits{});
    if (changed.ok() && parse_envelope(*changed)->body != envelope->body) std::abort();
  }
  (void)parse_headers(input);
  if (const auto outer = from_bytes<Outer>(input); outer.ok()) {
    if (!from_bytes<Outer>(to_bytes(*outer)).ok()) std::abort();
  }
  (void)spool::decode_delivery(input);
  (void)spool::decode_settlement(input);
  (void)spool::decode_revive(input);
  (void)from_bytes<spool::CopyRecord>(input);
  (void)from_bytes<spool::OpeningRecord>(input);
  (void)from_bytes<spool::RetryRecord>(input);
  return 0;
}
