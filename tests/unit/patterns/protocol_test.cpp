#include "dray/balancing/protocol.hpp"

#include "dray/spool/records.hpp"

#include <catch2/catch.hpp>
#include <fstream>
#include <set>
#include <sstream>

using namespace dray;
using namespace dray::balancing;

namespace {

struct Example {
  std::string title;
  std::string bytes;
  std::string records;  // the second frame
};

// The blocks of PROTOCOL.md that begin with ```hex, and with ```hex-records behind them.
std::vector<Example> examples() {
  std::ifstream file(DRAY_PROTOCOL_MD);
  REQUIRE(file);
  std::vector<Example> all;
  std::string* inside = nullptr;
  for (std::string line; std::getline(file, line);) {
    if (line.rfind("```hex ", 0) == 0) {
      all.push_back({line.substr(7), {}, {}});
      inside = &all.back().bytes;
    } else if (line.rfind("```hex-records ", 0) == 0) {
      inside = &all.back().records;
    } else if (line == "```") {
      inside = nullptr;
    } else if (inside != nullptr) {
      std::istringstream bytes(line);
      for (unsigned value = 0; bytes >> std::hex >> value;) {
        *inside += static_cast<char>(value);
      }
    }
  }
  return all;
}

std::string encode_again(const ProtocolFrame& frame) {
  return std::visit([](const auto& each) { return encode(each); }, frame);
}

}  // namespace

TEST_CASE("every example of PROTOCOL.md decodes, encodes to the same bytes, and none is missing") {
  std::set<std::size_t> kinds;
  for (const auto& example : examples()) {
    INFO(example.title);
    const auto frame = decode_frame(example.bytes, example.records);
    REQUIRE(frame.ok());
    CHECK(encode_again(*frame) == example.bytes);
    kinds.insert(frame->index());
  }
  CHECK(kinds.size() == std::variant_size_v<ProtocolFrame>);
}

TEST_CASE("the examples of PROTOCOL.md say what they are said to say") {
  for (const auto& [title, bytes, records] : examples()) {
    const auto frame = decode_frame(bytes, records);
    REQUIRE(frame.ok());
    if (const auto* hello = std::get_if<Hello>(&*frame)) {
      CHECK(hello->group == "email");
      CHECK(hello->held.at(0).sequences == SequenceRuns{7, 8});
    } else if (const auto* result = std::get_if<ResultFrame>(&*frame)) {
      CHECK(result->items.at(1).kind == ResultKind::kRetry);
      CHECK(result->items.at(1).delay_ms == 30'000);
    } else if (const auto* welcome = std::get_if<Welcome>(&*frame)) {
      CHECK(welcome->lease_ms == 10'000);
    } else if (const auto* deliver = std::get_if<Deliver>(&*frame)) {
      CHECK(deliver->waiting == 2);
      REQUIRE(deliver->records.runs.size() == 1);
      CHECK(deliver->records.runs.front().first == 7);
      CHECK(deliver->records.envelope(0) == "\x01\x02\x03");
    }
  }
}

TEST_CASE("no frame that is cut short or altered in one byte crashes the decoder") {
  for (const auto& [title, bytes, records] : examples()) {
    for (std::size_t size = 0; size < bytes.size(); ++size) {
      CHECK(!decode_frame(std::string_view(bytes).substr(0, size), records).ok());
    }
    for (std::size_t size = 0; size < records.size(); ++size) {
      CHECK(!decode_frame(bytes, std::string_view(records).substr(0, size)).ok());
    }
    for (const auto* part : {&bytes, &records}) {
      for (std::size_t at = 0; at < part->size(); ++at) {
        std::string altered = *part;
        for (const int bit : {0, 3, 7}) {
          altered[at] = static_cast<char>((*part)[at] ^ (1 << bit));
          (void)(part == &bytes ? decode_frame(altered, records) : decode_frame(bytes, altered));
        }
      }
    }
  }
}

TEST_CASE("a sequence behind which none could be counted is refused") {
  for (const Sequence sequence :
       {Sequence{UINT64_MAX}, Sequence{UINT64_MAX - kRunSequencesMax + 1}}) {
    spool::Records records;
    records.add_loose(sequence, "envelope");
    CHECK(!decode_frame(encode(Deliver{1, 1, 1, 0}), records.extent(0, 1)).ok());
  }
  spool::Records records;
  records.add_loose(UINT64_MAX - kRunSequencesMax, "envelope");
  CHECK(decode_frame(encode(Deliver{1, 1, 1, 0}), records.extent(0, 1)).ok());
}

TEST_CASE("a follow-up beyond the limits of a publish is refused with its frame") {
  const auto result_with = [](const Draft& draft) {
    ResultFrame frame;
    frame.items.push_back({ResultKind::kDone, {1, 1, {7}}, "", -1, {}});
    frame.items.back().follow_ups.push_back(encode_envelope(draft, uuid_v4(), UtcTime{}));
    return encode(frame);
  };
  Draft draft{"t", to_bytes(std::string("body")), {}};
  CHECK(decode_frame(result_with(draft)).ok());
  draft.options.key = std::string(257, 'k');
  CHECK(!decode_frame(result_with(draft)).ok());
  draft.options.key.clear();
  for (int i = 0; i < 65; ++i) draft.options.headers.emplace_back("h" + std::to_string(i), "x");
  CHECK(!decode_frame(result_with(draft)).ok());
}

TEST_CASE("a frame of another version is refused by its number") {
  std::string bytes = encode(Heartbeat{});
  bytes[2] = 9;
  const auto frame = decode_frame(bytes);
  REQUIRE(!frame.ok());
  CHECK(frame.error().code == ErrorCode::kUnsupported);
  CHECK(frame.error().text().find("version 9") != std::string::npos);
}
