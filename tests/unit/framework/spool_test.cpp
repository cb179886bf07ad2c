#include "dray/spool/spool.hpp"

#include <set>

#include "dray/spool/log_reader.hpp"

#include "support/simulated_disk.hpp"
#include "support/spool_owner.hpp"

using namespace dray;
using namespace dray::spool;

namespace {

struct Listener final : CommitListener {
  std::uint64_t messages = 0;
  std::optional<Error> failure;
  void on_committed(Committed committed) override {
    for (const auto& run : committed.runs) messages += run.count;
  }
  void on_failed(const Error& error) override { failure = error; }
};

SpoolOptions two_groups() {
  SpoolOptions options;
  options.log.segment_size = 16U << 10;  // so that segments roll often
  options.groups = std::vector<GroupDeclaration>{{"email", {"t"}}, {"view", {"t", "u"}}};
  return options;
}

Draft draft(const std::string& topic, const std::string& body, const std::string& dedup = "") {
  Draft out{topic, body, {}};
  out.options.dedup = dedup;
  return out;
}

// Publishes and commits on this thread.
Result<Receipt> publish(Spool& spool, Listener& listener, const Draft& message) {
  Result<Receipt> out = Error{ErrorCode::kTimeout, "no receipt", "", 0};
  spool.publish_draft(message, [&](Result<Receipt> receipt) { out = std::move(receipt); });
  spool.commit_pending(listener);
  return out;
}

// All messages that the spool has, by sequence.
std::map<Sequence, std::string> read_all(const Spool& spool) {
  std::map<Sequence, std::string> all;
  LogReader reader(spool.segments());
  REQUIRE(reader
              .read(1, spool.segments().next_lsn(),
                    [&](const Record& record) {
                      if (record.header.type == RecordType::kMessage) {
                        all[record.header.lsn] = parse_envelope(record.payload)->body;
                      }
                      return true;
                    })
              .ok());
  return all;
}

// `tests/run --deep N` asks for N times the seeds.
std::uint64_t deep() {
  const char* times = std::getenv("DRAY_TEST_DEEP");
  return times == nullptr ? 1 : std::strtoull(times, nullptr, 10);
}

std::string segment_of(test::SimulatedDisk& disk, std::size_t index) {
  std::vector<std::string> segments;
  for (const auto& name : disk.names()) {
    if (segment_number(name)) segments.push_back(name);
  }
  return segments.at(index);
}

}  // namespace

TEST_CASE("acknowledged messages survive a power cut at any moment, from many seeds") {
  for (std::uint64_t seed = 1; seed <= 300 * deep(); ++seed) {
    INFO("seed " << seed);
    test::SimulatedDisk disk(seed);
    std::mt19937_64 random(seed);
    SystemClock clock;
    std::map<Sequence, std::string> acknowledged;
    std::set<std::string> attempted;
    for (int life = 0; life < 4; ++life) {
      auto directory = disk.directory();
      Listener listener;
      disk.fail_at(1 + random() % 250, ErrorCode::kIo);  // dies in start or at work
      auto spool = Spool::open(*directory, clock, two_groups(), Log());
      if (spool.ok()) {
        for (int i = 0; i < 50; ++i) {
          const std::string body =
              std::to_string(life) + "/" + std::to_string(i) + std::string(random() % 900, 'b');
          attempted.insert(body);
          const auto receipt = publish(**spool, listener, draft("t", body));
          if (receipt.ok()) acknowledged[receipt->sequence] = body;
        }
      }
      spool = Error{};
      disk.cut_power();
    }
    auto directory = disk.directory();
    SpoolOptions options = two_groups();
    auto spool = Spool::open(*directory, clock, options, Log());
    INFO((spool.ok() ? "" : spool.error().text()));
    REQUIRE(spool.ok());
    CHECK((*spool)->scan_report().damaged.empty());
    const auto found = read_all(**spool);
    for (const auto& [sequence, body] : acknowledged) {
      REQUIRE(found.count(sequence) == 1);  // P1
      REQUIRE(found.at(sequence) == body);
    }
    for (const auto& [sequence, body] : found) REQUIRE(attempted.count(body) == 1);
  }
}

TEST_CASE("the harness catches a spool whose syncs do nothing") {
  bool lost = false;
  for (std::uint64_t seed = 1; seed <= 50 && !lost; ++seed) {
    test::SimulatedDisk disk(seed);
    SystemClock clock;
    Listener listener;
    auto directory = disk.directory();
    disk.ignore_syncs();
    auto spool = Spool::open(*directory, clock, two_groups(), Log());
    REQUIRE(spool.ok());
    const auto receipt = publish(**spool, listener, draft("t", "x"));
    REQUIRE(receipt.ok());
    spool = Error{};
    disk.cut_power();
    auto again = Spool::open(*directory, clock, two_groups(), Log());
    lost = !again.ok() || read_all(**again).count(receipt->sequence) == 0;
  }
  CHECK(lost);
}

TEST_CASE("every single I/O call may fail: receipts stay true and the spool refuses from then on") {
  for (std::uint64_t call = 1;; ++call) {
    INFO("failing call " << call);
    test::SimulatedDisk disk(call);
    SystemClock clock;
    Listener listener;
    auto directory = disk.directory();
    disk.fail_at(call, ErrorCode::kIo);
    std::map<Sequence, std::string> acknowledged;
    auto spool = Spool::open(*directory, clock, two_groups(), Log());
    bool failed = !spool.ok();
    for (int i = 0; spool.ok() && i < 50; ++i) {
      const std::string body = std::to_string(i) + std::string(700, 'b');
      const auto receipt = publish(**spool, listener, draft("t", body));
      if (failed) {
        REQUIRE(!receipt.ok());  // P7: poisoned
      } else if (receipt.ok()) {
        acknowledged[receipt->sequence] = body;
      } else if (receipt.error().code == ErrorCode::kFull) {
        // No new segment could be made: refused before anything was written.
        REQUIRE(!listener.failure.has_value());
        disk.heal();
      } else {
        REQUIRE(receipt.error().code == ErrorCode::kUnknown);
        REQUIRE(listener.failure.has_value());
        failed = true;
      }
    }
    spool = Error{};
    disk.cut_power();
    auto again = Spool::open(*directory, clock, two_groups(), Log());
    REQUIRE(again.ok());
    const auto found = read_all(**again);
    for (const auto& [sequence, body] : acknowledged) REQUIRE(found.at(sequence) == body);
    if (!failed) break;  // the script makes fewer calls than this
    REQUIRE(call < 1'000);
  }
}

TEST_CASE(
    "a bit that flips in acknowledged data is reported by its range, and the rest is served") {
  test::SimulatedDisk disk(7);
  SystemClock clock;
  Listener listener;
  auto directory = disk.directory();
  std::vector<Sequence> sequences;
  {
    auto spool = Spool::open(*directory, clock, two_groups(), Log());
    for (int i = 0; i < 10; ++i) {
      sequences.push_back(
          publish(**spool, listener, draft("t", std::string(100, static_cast<char>('a' + i))))
              ->sequence);
    }
  }
  const std::string segment = segment_of(disk, 0);
  const auto at = disk.bytes(segment).find(std::string(100, 'd'));
  REQUIRE(at != std::string::npos);
  disk.flip_bit(segment, at + 50);
  auto spool = Spool::open(*directory, clock, two_groups(), Log());
  REQUIRE(spool.ok());
  const auto& report = (*spool)->scan_report();
  REQUIRE(report.damaged.size() == 1);  // P6
  CHECK(report.damaged[0].first == sequences[3]);
  CHECK(report.damaged[0].last == sequences[3]);
  const auto found = read_all(**spool);
  CHECK(found.count(sequences[3]) == 0);
  CHECK(found.at(sequences[9]) == std::string(100, 'j'));
}

TEST_CASE("a torn tail is cut, and the sequence goes on behind it") {
  test::SimulatedDisk disk(8);
  SystemClock clock;
  Listener listener;
  auto directory = disk.directory();
  Sequence last = 0;
  {
    auto spool = Spool::open(*directory, clock, two_groups(), Log());
    for (int i = 0; i < 5; ++i) last = publish(**spool, listener, draft("t", "x"))->sequence;
  }
  std::string& bytes = disk.bytes(segment_of(disk, 0));
  const auto end = bytes.find_last_not_of('\0') + 1;
  bytes.replace((end + 7) / 8 * 8, 6, "\xD7\x5A\x03junk", 6);  // the beginning of a record
  auto spool = Spool::open(*directory, clock, two_groups(), Log());
  REQUIRE(spool.ok());
  CHECK((*spool)->scan_report().damaged.empty());
  CHECK((*spool)->scan_report().torn_bytes > 0);
  CHECK(read_all(**spool).size() == 5);
  CHECK(publish(**spool, listener, draft("t", "y"))->sequence > last);
}

TEST_CASE("a newer format and a foreign spool's segment are refused by name") {
  test::SimulatedDisk disk(9);
  SystemClock clock;
  auto directory = disk.directory();
  { REQUIRE(Spool::open(*directory, clock, two_groups(), Log()).ok()); }
  SegmentHeader header;
  header.version = kFormatVersion + 1;
  header.spool_id = uuid_v4();
  header.number = 2;
  SECTION("newer") {
    auto file = directory->open(segment_name(2), OpenMode::kCreateNew);
    REQUIRE((*file)->write_at(0, encode_segment_header(header)).ok());
    const auto spool = Spool::open(*directory, clock, two_groups(), Log());
    REQUIRE(!spool.ok());
    CHECK(spool.error().code == ErrorCode::kUnsupported);
  }
  SECTION("foreign") {
    header.version = kFormatVersion;
    auto file = directory->open(segment_name(2), OpenMode::kCreateNew);
    REQUIRE((*file)->write_at(0, encode_segment_header(header)).ok());
    const auto spool = Spool::open(*directory, clock, two_groups(), Log());
    REQUIRE(!spool.ok());
    CHECK(spool.error().code == ErrorCode::kCorrupt);
  }
}

TEST_CASE("a full disk refuses new messages, goes on settling, and recovers by itself") {
  test::SimulatedDisk disk(10);
  VirtualClock clock;
  Listener listener;
  auto directory = disk.directory();
  auto options = two_groups();
  auto spool = Spool::open(*directory, clock, options, Log());
  REQUIRE(spool.ok());
  options.max_size = 40U << 10;
  spool = Error{};
  spool = Spool::open(*directory, clock, options, Log());
  Result<Receipt> receipt = Error{};
  Sequence first = 0;
  for (int i = 0; i < 100; ++i) {
    receipt = publish(**spool, listener, draft("t", std::string(1000, 'x')));
    if (!receipt.ok()) break;
    if (first == 0) first = receipt->sequence;
  }
  REQUIRE(!receipt.ok());
  CHECK(receipt.error().code == ErrorCode::kFull);
  Submission settlement;
  settlement.entries.push_back({RecordType::kSettlement, 0,
                                encode(SettlementRecord{0, spool::Settlement::kDone, {first}}), 0});
  const auto before = (*spool)->segments().next_lsn();
  (*spool)->submit(settlement);
  (*spool)->commit_pending(listener);
  CHECK((*spool)->segments().next_lsn() == before + 1);
  CHECK(!listener.failure);
}

TEST_CASE("groups: declared, detached when absent, and only later messages for new ones") {
  test::SimulatedDisk disk(11);
  SystemClock clock;
  Listener listener;
  auto directory = disk.directory();
  auto options = two_groups();
  {
    auto spool = Spool::open(*directory, clock, options, Log());
    REQUIRE(publish(**spool, listener, draft("t", "1")).ok());
    REQUIRE(publish(**spool, listener, draft("u", "2")).ok());
  }
  options.groups = std::vector<GroupDeclaration>{{"view", {"t"}}, {"late", {"t"}}};
  auto spool = Spool::open(*directory, clock, options, Log());
  REQUIRE(spool.ok());
  CHECK((*spool)->detached_groups() == std::vector<std::string>{"email"});
  REQUIRE(publish(**spool, listener, draft("t", "3")).ok());
  CHECK(publish(**spool, listener, draft("u", "4")).error().code == ErrorCode::kUnroutable);
  spool = Error{};
  spool = Spool::open(*directory, clock, options, Log());
  for (const auto& group : (*spool)->take_groups()) {
    INFO(group->name());
    const std::map<std::string, std::uint64_t> wanted{{"email", 1}, {"view", 3}, {"late", 1}};
    CHECK(group->counts().accepted == wanted.at(group->name()));
    CHECK(group->counts().balanced());
  }
}

TEST_CASE("a unit of records counts together or not at all") {
  test::SimulatedDisk disk(12);
  SystemClock clock;
  Listener listener;
  auto directory = disk.directory();
  auto spool = Spool::open(*directory, clock, two_groups(), Log());
  const auto first = publish(**spool, listener, draft("t", "1"))->sequence;
  const std::string follow_up =
      encode_envelope(draft("u", "follow-up"), uuid_v7(clock.utc()), clock.utc());
  Submission unit;
  unit.entries.push_back({RecordType::kMessage, kContinues, follow_up, 2});
  SECTION("whole") {
    unit.entries.push_back({RecordType::kSettlement, 0,
                            encode(SettlementRecord{0, spool::Settlement::kDone, {first}}), 0});
  }
  SECTION("the second record is lost") {}
  const bool whole = unit.entries.size() == 2;
  (*spool)->submit(unit);
  (*spool)->commit_pending(listener);
  spool = Error{};
  spool = Spool::open(*directory, clock, two_groups(), Log());
  const auto groups = (*spool)->take_groups();
  CHECK(groups[0]->counts().done == (whole ? 1 : 0));
  CHECK(groups[1]->counts().accepted == (whole ? 2 : 1));
}

TEST_CASE("dedup: a repeat gets the first receipt, another body is a conflict") {
  test::SimulatedDisk disk(13);
  SystemClock clock;
  Listener listener;
  auto directory = disk.directory();
  auto spool = Spool::open(*directory, clock, two_groups(), Log());
  std::vector<Result<Receipt>> receipts;
  const auto collect = [&](Result<Receipt> receipt) { receipts.push_back(std::move(receipt)); };
  (*spool)->publish_draft(draft("t", "a", "id"), collect);
  (*spool)->publish_draft(draft("t", "a", "id"), collect);  // waits for the first one's commit
  (*spool)->publish_draft(draft("t", "b", "id"), collect);
  REQUIRE(receipts.size() == 1);
  CHECK(receipts[0].error().code == ErrorCode::kConflict);
  (*spool)->commit_pending(listener);
  REQUIRE(receipts.size() == 3);
  REQUIRE((receipts[1].ok() && receipts[2].ok()));
  CHECK(receipts[1]->sequence == receipts[2]->sequence);
  CHECK(listener.messages == 1);
}

TEST_CASE("dedup: a repeat gets its receipt also where nothing new is taken") {
  test::SimulatedDisk disk(15);
  SpoolOptions options;
  options.log.segment_size = 4096;
  options.groups = std::vector<GroupDeclaration>{{"email", {"t"}}};
  options.max_size = 24U << 10;
  const std::string body(1000, 'x');
  Result<Receipt> first = Error{};
  {
    test::SpoolOwner owner(disk, options);
    first = owner.publish("t", body, {.dedup = "once"});
    REQUIRE(first.ok());
    SECTION("the spool has reached max_size") {
      Result<Receipt> last = Error{};
      for (int i = 0; i == 0 || last.ok(); ++i) last = owner.publish("t", body);
      CHECK(last.error().code == ErrorCode::kFull);
      CHECK(owner.publish("t", body, {.dedup = "another"}).error().code == ErrorCode::kFull);
      const auto repeat = owner.publish("t", body, {.dedup = "once"});
      REQUIRE(repeat.ok());
      CHECK(repeat->duplicate);
      CHECK(repeat->sequence == first->sequence);
      CHECK(owner.publish("t", "other", {.dedup = "once"}).error().code == ErrorCode::kConflict);
      // What can never be accepted is not asked for.
      CHECK(owner.publish("no topic!", body, {.dedup = "once"}).error().code ==
            ErrorCode::kInvalid);
    }
    disk.kill();
  }
  options.groups = std::vector<GroupDeclaration>{{"email", {"u"}}};
  test::SpoolOwner owner(disk, options);
  const auto repeat = owner.publish("t", body, {.dedup = "once"});
  REQUIRE(repeat.ok());
  CHECK(repeat->sequence == first->sequence);
  CHECK(owner.publish("t", body).error().code == ErrorCode::kUnroutable);
}

TEST_CASE("a small disk that was full takes messages again once all is settled") {
  test::SimulatedDisk disk(16);
  SpoolOptions options;
  options.log.segment_size = 64U << 10;
  options.groups = std::vector<GroupDeclaration>{{"email", {"t"}}};
  test::SpoolOwner owner(disk, options);
  REQUIRE(owner.ok());
  std::uint64_t used = 0;
  for (const auto& name : disk.names()) used += disk.bytes(name).size();
  disk.limit_room(used + (400U << 10));
  for (int round = 0; round < 3; ++round) {
    Result<Receipt> last = Error{};
    std::vector<Sequence> accepted;
    for (int i = 0; i == 0 || last.ok(); ++i) {
      last = owner.publish("t", std::string(1000, 'x'));
      if (last.ok()) accepted.push_back(last->sequence);
      owner.clock().advance(std::chrono::seconds(1));
      owner.spool().upkeep(owner);
    }
    CHECK(last.error().code == ErrorCode::kFull);
    REQUIRE(accepted.size() > 100);
    // The group's workers were away, and come back.
    for (const auto sequence : accepted) owner.settle(0, sequence);
    REQUIRE(!owner.failure);
    for (int i = 0; i < 4; ++i) {
      owner.checkpoint();
      owner.clock().advance(std::chrono::seconds(1));
      owner.spool().upkeep(owner);
    }
    REQUIRE(!owner.failure);
    CHECK(owner.publish("t", "again").ok());
  }
}

TEST_CASE("who serves a spool without its owner's config goes by what the owner said") {
  test::SimulatedDisk disk(17);
  SpoolOptions options;
  options.log.segment_size = 4096;
  options.groups = std::vector<GroupDeclaration>{{"email", {"t"}}};
  options.durability = Durability::kOs;
  options.max_size = 20U << 20;
  options.held_max = 77;
  options.retain = {std::chrono::hours(24 * 7), 5U << 20};
  options.retained_topics = {"audit"};
  const bool checkpoint = GENERATE(false, true);
  {
    test::SpoolOwner owner(disk, options);
    REQUIRE(owner.publish("t", "a").ok());
    if (checkpoint) owner.checkpoint();
    disk.kill();
  }
  // What keeps no promise of durability "disk" is none for a spool that promises no more than "os".
  disk.set_volatile("a disk of memory");
  for (int i = 0; i < 2; ++i) {  // nor does the first one change it
    SpoolOptions alone;
    alone.log.segment_size = 4096;
    test::SpoolOwner owner(disk, alone);
    REQUIRE(owner.ok());
    const auto& known = owner.spool().options();
    CHECK(known.durability == Durability::kOs);
    CHECK(known.max_size == 20U << 20);
    CHECK(known.held_max == 77);
    CHECK(known.retain.age == std::chrono::hours(24 * 7));
    CHECK(known.retain.bytes == 5U << 20);
    const auto audit = owner.publish("audit", "b");
    REQUIRE(audit.ok());
    CHECK(audit->durability == Durability::kOs);
    disk.kill();
  }
  options.durability = Durability::kDisk;
  CHECK(!test::SpoolOwner(disk, options).ok());
  disk.set_volatile("");
  CHECK(test::SpoolOwner(disk, options).ok());
  disk.kill();
  // P1: nor does a receipt claim more because nobody's config was asked.
  disk.set_volatile("a disk of memory");
  SpoolOptions alone;
  alone.log.segment_size = 4096;
  alone.durability = Durability::kOs;
  const test::SpoolOwner refused(disk, alone);
  REQUIRE(!refused.ok());
  CHECK(refused.error().code == ErrorCode::kUnsupported);
}
