#include <random>
#include <set>

#include "dray/fields.hpp"
#include "dray/flat_writer.hpp"
#include "dray/message.hpp"
#include "dray/sequence_runs.hpp"
#include "dray/spool/bytes.hpp"
#include "dray/spool/record.hpp"

using namespace dray;

namespace {

struct Line {
  std::string product;
  int quantity = 0;
  DRAY_FIELDS(product, quantity)
};
struct Order {
  std::string id;
  std::vector<Line> lines;
  std::optional<std::string> note;
  std::map<std::string, double> extra;
  Binary blob;
  DRAY_FIELDS(id, lines, note, extra, blob)
};

}  // namespace

TEST_CASE("a struct with fields comes back as it was") {
  const Order order{"o1", {{"rope", 2}, {"crate", -3}}, std::nullopt, {{"x", 1.5}}, {"\x01\x00z"}};
  const auto back = from_bytes<Order>(to_bytes(order));
  REQUIRE(back.ok());
  CHECK(back->lines[1].quantity == -3);
  CHECK(!back->note);
  CHECK(back->extra.at("x") == 1.5);
}

TEST_CASE("a missing required field, a wrong type and an overflow are named by their path") {
  struct Bare {
    std::string id = "x";
    DRAY_FIELDS(id)
  };
  CHECK(from_bytes<Order>(to_bytes(Bare{})).error().text() == "lines: missing");
  struct WideLine {
    std::string product = "rope";
    std::int64_t quantity = 1LL << 40;
    std::string unknown = "ignored";
    DRAY_FIELDS(product, quantity, unknown)
  };
  CHECK(from_bytes<Line>(to_bytes(WideLine{})).error().text() ==
        "quantity: integer 1099511627776 is out of range");
  CHECK(from_bytes<Line>("\xc3").error().text() == "expected a map, found a boolean");
}

namespace {

struct Counted {
  inline static int made = 0;
  Counted() { ++made; }
  std::string text;
  DRAY_FIELDS(text)
};
struct ManyCounted {
  std::vector<Counted> many;
  DRAY_FIELDS(many)
};

}  // namespace

TEST_CASE("an array of a thousand nothings makes no thousand elements") {
  const std::string bytes =
      "\x81\xa4many" + std::string("\xdc\x03\xe8", 3) + std::string(1'000, '\xc0');
  CHECK(from_bytes<ManyCounted>(bytes).error().text() == "many[0]: expected a map, found nil");
  CHECK(Counted::made == 1);
}

TEST_CASE("five bytes cannot ask for gigabytes, and deep nesting is refused") {
  CHECK(!Document::parse(std::string_view("\xdd\xff\x00\x00\x00", 5)).ok());
  CHECK(!Document::parse(std::string(100, '\x91') + "\xc0").ok());
  CHECK(!Document::parse("").ok());
  CHECK(!Document::parse("\xc0\xc0").ok());
}

TEST_CASE("what is written flat is what the encoder writes") {
  std::mt19937_64 random(12);
  for (int i = 0; i < 20'000; ++i) {
    std::string encoded;
    std::string room(1 << 18, '?');
    Encoder encoder(encoded);
    FlatWriter writer(room.data());
    const std::uint64_t number = random() >> (random() % 64);
    const std::string text(random() % 3 == 0 ? random() % 70'000 : random() % 300, 'x');
    encoder.array(5);
    writer.small_array(5);
    encoder.natural(number);
    writer.natural(number);
    encoder.text(text);
    writer.text(text);
    encoder.binary(text);
    writer.binary(text);
    encoder.nil();
    writer.nil();
    REQUIRE(std::string_view(room.data(), static_cast<std::size_t>(writer.at() - room.data())) ==
            encoded);
    if (i > 2'000 && text.size() > 1'000) i += 10;  // they take their time
  }
}

TEST_CASE("an envelope comes back, and no damaged one crashes the reader") {
  Draft draft{"order.placed", "\xa1x", {}};
  draft.options.key = "k";
  draft.options.dedup = "d";
  draft.options.headers = {{"traceparent", "00-1"}};
  draft.options.expires_at = UtcTime(Milliseconds(1234));
  const auto bytes = encode_envelope(draft, uuid_v4(), UtcTime(Milliseconds(99)));
  const auto view = parse_envelope(bytes);
  REQUIRE(view.ok());
  CHECK(view->topic == "order.placed");
  CHECK(view->key == "k");
  CHECK(view->expires_at->time_since_epoch().count() == 1234);
  CHECK(!view->deliver_at);
  CHECK(parse_headers(view->headers)->front().second == "00-1");
  std::mt19937 random(4711);
  for (int i = 0; i < 20'000; ++i) {
    std::string damaged = bytes.substr(0, random() % (bytes.size() + 1));
    for (int k = 0; k < 3 && !damaged.empty(); ++k) {
      damaged[random() % damaged.size()] = static_cast<char>(random());
    }
    (void)parse_envelope(damaged);
    (void)Document::parse(damaged);
  }
}

namespace {

// The same by msgpack-cxx.
std::optional<EnvelopeView> parse_by_library(std::string_view bytes, const Document& document) {
  const Value root = document.root();
  if (root.kind() != Value::Kind::kArray || root.size() != 10) return std::nullopt;
  EnvelopeView view;
  const auto text = [&](std::size_t at, std::string_view& out) {
    return root.at(at).get_text(out) || (at != 1 && root.at(at).is_nil());
  };
  const auto time = [&](std::size_t at, std::optional<UtcTime>& out) {
    std::uint64_t ms = 0;
    if (root.at(at).is_nil()) return at != 4;
    if (!root.at(at).get(ms) || ms > static_cast<std::uint64_t>(kTimeMsMax)) return false;
    out = UtcTime(Milliseconds(static_cast<std::int64_t>(ms)));
    return true;
  };
  std::string_view id;
  std::uint64_t priority = 0;
  std::optional<UtcTime> published;
  const bool read = root.at(0).get_binary(id) && id.size() == 16 && text(1, view.topic) &&
                    text(2, view.key) && root.at(3).get(priority) && priority <= 2 &&
                    time(4, published) && time(5, view.deliver_at) && time(6, view.expires_at) &&
                    text(7, view.dedup) && root.at(8).get_binary(view.headers) &&
                    root.at(9).get_binary(view.body);
  if (!read || bytes.empty()) return std::nullopt;
  view.id = *Uuid::from_bytes(id);
  view.priority = static_cast<Priority>(priority);
  view.published_at = *published;
  return view;
}

}  // namespace

TEST_CASE("an envelope is read as msgpack-cxx reads it, damaged or not") {
  const auto seed = std::random_device()();
  INFO("seed " << seed);
  std::mt19937 random(seed);
  const auto up_to = [&](unsigned most) { return static_cast<unsigned>(random() % (most + 1)); };
  int accepted = 0;
  for (int round = 0; round < 20'000; ++round) {
    Draft draft{std::string(1 + up_to(60), 't'), std::string(up_to(300), 'b'), {}};
    draft.options.key = std::string(up_to(1) * up_to(40), 'k');
    draft.options.dedup = std::string(up_to(1) * up_to(300), 'd');
    draft.options.priority = static_cast<Priority>(up_to(2));
    if (up_to(1) == 1) draft.options.deliver_at = UtcTime(Milliseconds(up_to(UINT32_MAX - 1)));
    std::string bytes = encode_envelope(draft, uuid_v4(), UtcTime(Milliseconds(up_to(1'000'000))));
    for (unsigned i = up_to(3); i > 0; --i) {
      bytes[up_to(static_cast<unsigned>(bytes.size()) - 1)] = static_cast<char>(up_to(255));
    }
    if (up_to(9) == 0) bytes.resize(up_to(static_cast<unsigned>(bytes.size())));
    const auto document = Document::parse(bytes);
    const auto wanted =
        document.ok() ? parse_by_library(bytes, *document) : std::optional<EnvelopeView>();
    const auto read = parse_envelope(bytes);
    REQUIRE(read.ok() == wanted.has_value());
    if (!wanted) continue;
    ++accepted;
    REQUIRE(std::tie(read->id, read->topic, read->key, read->priority, read->published_at,
                     read->deliver_at, read->expires_at, read->dedup, read->headers, read->body) ==
            std::tie(wanted->id, wanted->topic, wanted->key, wanted->priority, wanted->published_at,
                     wanted->deliver_at, wanted->expires_at, wanted->dedup, wanted->headers,
                     wanted->body));
  }
  CHECK(accepted > 5'000);
}

TEST_CASE("drafts beyond the limits are refused with the limit") {
  Draft draft{"t", "", {}};
  CHECK(check_draft(draft, {}).ok());
  draft.topic = "a..b";
  CHECK(check_draft(draft, {}).error().text() == "topic 'a..b': a part between dots is empty");
  draft.topic = "t";
  draft.body.resize((16U << 20) + 1);
  CHECK(check_draft(draft, {}).error().text() ==
        "the body is 16777217 bytes, the limit is 16777216");
  draft.body.clear();
  draft.options.headers.resize(65, {"a", "b"});
  CHECK(!check_draft(draft, {}).ok());
}

TEST_CASE("runs: neighbours cost two numbers, and hostile lists are refused") {
  const SequenceRuns sequences{1, 2, 3, 7, 1000};
  std::string bytes;
  Encoder encoder(bytes);
  encode_runs(encoder, sequences);
  CHECK(bytes.size() == 9);
  CHECK(*decode_runs(Document::parse(bytes)->root()) == sequences);
  std::string hostile;
  Encoder bad(hostile);
  bad.array(2);
  bad.natural(1);
  bad.natural(1ULL << 60);
  CHECK(!decode_runs(Document::parse(hostile)->root()).ok());
}

TEST_CASE("runs: what comes in any order and twice is sorted, each once") {
  SequenceRuns runs{9, 3, 4, 5, 1, 4, 2};
  CHECK(runs.size() == 7);
  runs.sort();
  CHECK(runs == SequenceRuns{1, 2, 3, 4, 5, 9});
  CHECK(runs.run_count() == 2);
  CHECK((runs.contains(1) && runs.contains(5) && runs.contains(9)));
  CHECK((!runs.contains(0) && !runs.contains(6) && !runs.contains(10)));
  CHECK(runs.list() == std::vector<Sequence>{1, 2, 3, 4, 5, 9});
  SequenceRuns overlapping;
  overlapping.add(10, 5);
  overlapping.add(12, 10);
  overlapping.add(1, 9);  // up to 9: right before the first
  overlapping.sort();
  CHECK((overlapping.run_count() == 1 && overlapping.size() == 21));
}

TEST_CASE("CRC-32C has the value of RFC 3720") {
  CHECK(spool::crc32c(0, "123456789") == 0xE3069283);
  CHECK(spool::crc32c(spool::crc32c(0, "1234"), "56789") == 0xE3069283);
}

TEST_CASE("a record that was moved, or altered in any byte, fails") {
  std::string bytes;
  spool::RecordHeader header;
  header.type = spool::RecordType::kMessage;
  header.lsn = 17;
  spool::append_record(bytes, 42, 4096, header, "payload");
  CHECK(bytes.size() == spool::record_size(7));
  const auto whole = [&](std::string_view in, std::uint64_t offset) {
    const auto found = spool::decode_record_header(in, 42, offset);
    return found && spool::payload_passes(*found, in.substr(32, found->payload_size));
  };
  CHECK(whole(bytes, 4096));
  CHECK(!whole(bytes, 4104));
  for (std::size_t i = 0; i < 39; ++i) {
    std::string altered = bytes;
    altered[i] = static_cast<char>(altered[i] ^ 4);
    INFO(i);
    CHECK(!whole(altered, 4096));
  }
}
