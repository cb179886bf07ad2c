// Recovery, row by row of the decision table (FORMATS.md, "Recovery"), and what the tools say.
#include "dray/spool/bytes.hpp"
#include "dray/spool/inspection.hpp"
#include "support/spool_owner.hpp"

using namespace dray;
using namespace dray::spool;
using test::SimulatedDisk;
using test::SpoolOwner;

namespace {

SpoolOptions one_group() {
  SpoolOptions options;
  options.log.segment_size = 4096;
  options.groups = std::vector<GroupDeclaration>{{"email", {"t"}}};
  return options;
}

std::string body_of(int number) {
  return std::to_string(number) + "/" + std::string(300, static_cast<char>('a' + number % 26));
}

// A spool of 60 messages in several segments, every third settled, with two checkpoints in the
// middle; killed.
struct Wreck {
  SimulatedDisk disk{1};
  std::map<Sequence, std::string> open;

  explicit Wreck(bool with_checkpoints = true) {
    SpoolOwner owner(disk, one_group());
    REQUIRE(owner.ok());
    for (int i = 0; i < 60; ++i) {
      const auto receipt = owner.publish("t", body_of(i));
      REQUIRE(receipt.ok());
      open[receipt->sequence] = body_of(i);
      if (i % 3 == 0) {
        owner.settle(0, receipt->sequence);
        open.erase(receipt->sequence);
      }
      if (with_checkpoints && (i == 35 || i == 40)) owner.checkpoint();
    }
    owner.spool().idle(owner);
    disk.kill();
  }

  std::vector<std::string> segments() const {
    std::vector<std::string> out;
    for (const auto& name : disk.names()) {
      if (segment_number(name)) out.push_back(name);
    }
    return out;
  }
  // The segment that holds this body, and where.
  std::pair<std::string, std::size_t> find(const std::string& body) {
    for (const auto& name : segments()) {
      const auto at = disk.bytes(name).find(body);
      if (at != std::string::npos) return {name, at};
    }
    FAIL("no segment holds it");
    return {};
  }
  Sequence sequence_of(int number) const {
    for (const auto& [sequence, body] : open) {
      if (body == body_of(number)) return sequence;
    }
    return 0;
  }
};

// Opens, reads all, and expects every open message but `lost`.
void serves_all_but(Wreck& wreck, const std::set<Sequence>& lost) {
  SpoolOwner owner(wreck.disk, one_group());
  INFO((owner.ok() ? "" : owner.error().text()));
  REQUIRE(owner.ok());
  auto expected = wreck.open;
  for (const auto sequence : lost) expected.erase(sequence);
  CHECK(owner.read_backlog(0) == expected);
  const auto& counts = owner.group(0).counts();
  CHECK(counts.balanced());
  CHECK(counts.damaged == lost.size());
  CHECK(counts.pending == expected.size());
  CHECK(counts.accepted == 60);
}

SpoolFindings verify(SimulatedDisk& disk) {
  auto directory = disk.directory();
  auto findings = look_at_spool(*directory, true, nullptr);
  REQUIRE(findings.ok());
  return *findings;
}

}  // namespace

TEST_CASE("recovery: nothing is wrong") {
  Wreck wreck;
  CHECK(verify(wreck.disk).good());
  serves_all_but(wreck, {});
}

TEST_CASE("recovery: a sealed segment before the checkpoint is damaged") {
  Wreck wreck;
  const auto [name, at] = wreck.find(body_of(5));
  wreck.disk.flip_bit(name, at + 10);
  const auto findings = verify(wreck.disk);
  CHECK(!findings.good());
  const auto lost = wreck.sequence_of(5);
  bool named = false;
  for (const auto& segment : findings.segments) {
    for (const auto& range : segment.damaged) {
      named = named || (segment.file == name && range.first == lost && range.last == lost);
    }
  }
  CHECK(named);
  serves_all_but(wreck, {lost});
}

TEST_CASE("recovery: acknowledged records behind the checkpoint are damaged") {
  Wreck wreck;
  for (const int number : {50, 52}) {
    const auto [name, at] = wreck.find(body_of(number));
    wreck.disk.flip_bit(name, at);
  }
  CHECK(!verify(wreck.disk).good());
  serves_all_but(wreck, {wreck.sequence_of(50), wreck.sequence_of(52)});
}

TEST_CASE("recovery: a sector can no longer be read") {
  Wreck wreck;
  const auto [name, at] = wreck.find(body_of(7));
  wreck.disk.break_sector(name, at + 100);
  SpoolOwner owner(wreck.disk, one_group());
  REQUIRE(owner.ok());
  const auto found = owner.read_backlog(0);
  CHECK(found.count(wreck.sequence_of(7)) == 0);
  CHECK(found.size() > wreck.open.size() / 2);  // a block of 4 KiB is a whole segment here
  const auto& counts = owner.group(0).counts();
  CHECK(counts.damaged == wreck.open.size() - found.size());
  CHECK(counts.balanced());
}

TEST_CASE("a device that cannot be read at the moment is no damage; one spot that cannot is") {
  SimulatedDisk disk{6};
  SpoolOptions options = one_group();
  options.log.segment_size = 8U << 20;
  SpoolOwner owner(disk, options);
  std::vector<Sequence> sequences;
  for (int i = 0; i < 50; ++i) {
    sequences.push_back(owner.publish("t", body_of(i) + std::string(100'000, 'x'))->sequence);
  }
  const auto name = segment_name(1);
  const auto wanted = sequences[25];
  const auto at = disk.bytes(name).find(body_of(25) + "x");
  REQUIRE(at != std::string::npos);
  const LogReader reader(owner.spool().segments());
  SECTION("one spot") {
    disk.break_sector(name, at);
    const auto record = reader.look_up().at(wanted);
    REQUIRE(record.ok());
    CHECK(!record->has_value());
  }
  SECTION("nothing") {
    for (std::size_t sector = 0; sector < disk.bytes(name).size(); sector += 512) {
      disk.break_sector(name, sector);
    }
    CHECK(!reader.look_up().at(wanted).ok());
    disk.mend_sectors();
    const auto record = reader.look_up().at(wanted);
    REQUIRE(record.ok());
    CHECK(record->has_value());
  }
}

TEST_CASE("recovery: a segment is missing") {
  Wreck wreck;
  const auto name = wreck.find(body_of(11)).first;
  std::set<Sequence> lost;
  for (const auto& [sequence, body] : wreck.open) {
    if (wreck.disk.bytes(name).find(body) != std::string::npos) lost.insert(sequence);
  }
  wreck.disk.erase(name);
  const auto findings = verify(wreck.disk);
  REQUIRE(findings.missing.size() == 1);
  CHECK(findings.missing[0].first <= *lost.begin());
  CHECK(findings.missing[0].last >= *lost.rbegin());
  serves_all_but(wreck, lost);
}

TEST_CASE("recovery: a segment's header is damaged and the checkpoint knows it") {
  Wreck wreck;
  wreck.disk.flip_bit(wreck.segments().front(), 40);
  CHECK(!verify(wreck.disk).good());
  serves_all_but(wreck, {});
}

TEST_CASE("recovery: a segment's header is damaged and no checkpoint knows it") {
  Wreck wreck;
  const auto names = wreck.segments();
  // Without its last file or two: each may have held acknowledged messages, whatever is left of it.
  const std::size_t bad = GENERATE(1U, 2U);
  std::map<Sequence, std::string> kept;
  for (auto name = names.begin(); name != names.end() - static_cast<std::ptrdiff_t>(bad); ++name) {
    for (const auto& message : wreck.open) {
      if (wreck.disk.bytes(*name).find(message.second) != std::string::npos) kept.insert(message);
    }
  }
  REQUIRE(kept.size() < wreck.open.size());
  REQUIRE(kept.size() > 10);
  const Sequence last_lost = wreck.open.rbegin()->first;
  const auto damage = GENERATE(0, 1, 2, 3);
  for (auto name = names.end() - static_cast<std::ptrdiff_t>(bad); name != names.end(); ++name) {
    if (damage == 0) wreck.disk.flip_bit(*name, 40);
    if (damage == 1) wreck.disk.overwrite(*name, 0, std::string(kSegmentHeaderSize, '\0'));
    if (damage == 2) wreck.disk.overwrite(*name, 0, std::string(4096, '\0'));
    // A recycled file's old header.
    if (damage == 3) {
      wreck.disk.overwrite(*name, 0,
                           wreck.disk.bytes(names[names.size() - 3]).substr(0, kSegmentHeaderSize));
    }
  }
  // Starts that are cut short, wherever, change nothing; nor does one more after the first.
  std::uint64_t call = 1;
  for (int good = 0; good < 2;) {
    wreck.disk.fail_at(call++, ErrorCode::kIo);
    SpoolOwner owner(wreck.disk, one_group());
    wreck.disk.kill();
    if (!owner.ok()) continue;
    ++good;
    const auto& damaged = owner.spool().scan_report().damaged;
    REQUIRE(damaged.size() == 1);
    CHECK(damaged[0].first > kept.rbegin()->first);
    CHECK(damaged[0].first <= last_lost);
    CHECK(damaged[0].last >= last_lost);
    auto served = owner.read_backlog(0);
    // A settlement that is lost lets its message come again.
    for (auto each = served.begin(); each != served.end();) {
      each = wreck.open.count(each->first) == 0 ? served.erase(each) : std::next(each);
    }
    CHECK(served == kept);
    CHECK(owner.group(0).counts().balanced());
    CHECK(owner.spool().boundary() > last_lost);  // no number is given twice
    const auto now = wreck.disk.names();
    CHECK(std::count_if(now.begin(), now.end(), [](const std::string& name) {
            return name.ends_with(".quarantine");
          }) == static_cast<std::ptrdiff_t>(bad));
  }
  CHECK(call > 10);
}

TEST_CASE("recovery: a header that cannot be read just now is not given up") {
  Wreck wreck;
  const auto name = wreck.segments().back();
  wreck.disk.break_sector(name, 0);
  const auto before = wreck.disk.bytes(name);
  {
    SpoolOwner owner(wreck.disk, one_group());
    REQUIRE(!owner.ok());
    CHECK(owner.error().text().find("cannot be read") != std::string::npos);
    CHECK(owner.error().text().find("dray spool repair") != std::string::npos);
  }
  CHECK(wreck.disk.bytes(name) == before);
  SECTION("it can be read again") {
    wreck.disk.mend_sectors();
    serves_all_but(wreck, {});
  }
  SECTION("it stays so: repair gives up what nobody can read") {
    auto directory = wreck.disk.directory();
    const auto report = repair_spool(*directory, nullptr);
    REQUIRE(report.ok());
    CHECK(!report->done.empty());
    SpoolOwner owner(wreck.disk, one_group());
    INFO((owner.ok() ? "" : owner.error().text()));
    REQUIRE(owner.ok());
    CHECK(!owner.spool().scan_report().damaged.empty());
    CHECK(owner.read_backlog(0).size() > 10);
    CHECK(wreck.disk.bytes(name + ".unreadable.quarantine") == before);
  }
}

TEST_CASE("recovery: what was kept of a damaged file is kept also when it is damaged once more") {
  Wreck wreck;
  const auto name = wreck.find(body_of(11)).first;
  auto directory = wreck.disk.directory();
  const auto damage_and_repair = [&](std::size_t at) {
    wreck.disk.flip_bit(name, at);
    const auto damaged = wreck.disk.bytes(name);
    const auto report = repair_spool(*directory, nullptr);
    REQUIRE(report.ok());
    REQUIRE(!report->done.empty());
    return damaged;
  };
  std::vector<std::size_t> bodies;  // in that segment
  for (const auto& [sequence, body] : wreck.open) {
    const auto at = wreck.disk.bytes(name).find(body);
    if (at != std::string::npos) bodies.push_back(at);
  }
  REQUIRE(bodies.size() >= 2);
  const auto first = damage_and_repair(bodies[0]);
  const auto second = damage_and_repair(bodies[1]);
  CHECK(wreck.disk.bytes(name + ".quarantine") == first);
  CHECK(wreck.disk.bytes(name + ".2.quarantine") == second);
  CHECK(kept_number(name + ".quarantine") == segment_number(name));
  CHECK(kept_number(name + ".12.quarantine") == segment_number(name));
  CHECK(!kept_number(name + ".unreadable.quarantine").has_value());
  CHECK(!kept_number("checkpoint.a.quarantine").has_value());
  CHECK(!kept_number(name).has_value());
}

TEST_CASE("recovery: a file that is named like a segment and is none is never removed") {
  Wreck wreck;
  const std::string text = "somebody's notes, which are no segment; they happen to be here";
  const auto put = [&](std::uint64_t number) {
    auto file = wreck.disk.directory()->open(segment_name(number), OpenMode::kCreateNew);
    REQUIRE(file.ok());
    REQUIRE((*file)->write_at(0, text).ok());
    REQUIRE((*file)->sync_data().ok());
  };
  SECTION("before the checkpoint: set aside") {
    put(0);
    CHECK(verify(wreck.disk).good());
    serves_all_but(wreck, {});
    CHECK(wreck.disk.bytes(segment_name(0) + ".quarantine") == text);
  }
  SECTION("behind it: the start is refused, and repair says why") {
    put(99);
    const auto findings = verify(wreck.disk);
    CHECK(!findings.good());
    CHECK(findings.in_the_way == std::vector<std::string>{segment_name(99)});
    auto directory = wreck.disk.directory();
    CHECK(repair_spool(*directory, nullptr).error().code == ErrorCode::kConflict);
    SpoolOwner owner(wreck.disk, one_group());
    CHECK(!owner.ok());
    CHECK(wreck.disk.bytes(segment_name(99)) == text);
  }
}

TEST_CASE("recovery: what repair gave up completes no unit") {
  SimulatedDisk disk{3};
  SpoolOptions options = one_group();
  options.groups = std::vector<GroupDeclaration>{{"email", {"t"}}, {"view", {"u"}}};
  options.log.segment_size = 64U << 10;
  Sequence origin = 0;
  {
    SpoolOwner owner(disk, options);
    origin = owner.publish("t", "origin")->sequence;
    Submission unit;
    const auto now = owner.clock().utc();
    unit.entries.push_back({RecordType::kMessage, static_cast<std::uint8_t>(kContinues | 1),
                            encode_envelope(Draft{"u", "follow-up", {}}, uuid_v7(now), now), 2});
    unit.entries.push_back(
        {RecordType::kSettlement, 0, encode(SettlementRecord{0, Settlement::kDone, {origin}}), 0});
    owner.spool().submit(unit);
    owner.spool().commit_pending(owner);
    CHECK(owner.publish("t", "later").ok());
    owner.spool().idle(owner);
    disk.kill();
  }
  // The settlement rots.
  const auto name = segment_name(1);
  auto& bytes = disk.bytes(name);
  const auto follow_up = bytes.find("follow-up");
  REQUIRE(follow_up != std::string::npos);
  const auto settlement = (follow_up + 9 + 7 - kSegmentHeaderSize % 8) / 8 * 8;
  disk.flip_bit(name, bytes.find("\xd7\x5a", settlement) + 5);
  if (GENERATE(false, true)) {
    auto directory = disk.directory();
    const auto report = repair_spool(*directory, nullptr);
    REQUIRE(report.ok());
    REQUIRE(report->done.size() == 1);
  }
  SpoolOwner owner(disk, options);
  REQUIRE(owner.ok());
  const auto open = owner.read_backlog(0);
  CHECK(open.size() == 2);
  CHECK(open.at(origin) == "origin");
  CHECK(owner.read_backlog(1).empty());
  CHECK(owner.group(0).counts().balanced());
  CHECK(owner.group(1).counts().balanced());
}

TEST_CASE(
    "recovery: what declared a group is given up by repair, and it is still not lost silently") {
  SimulatedDisk disk{4};
  {
    SpoolOwner owner(disk, one_group());
    for (int i = 0; i < 3; ++i) owner.settle(0, owner.publish("t", body_of(i))->sequence);
    CHECK(owner.publish("t", "waits").ok());
    owner.spool().idle(owner);
    disk.kill();
  }
  // The first records: opening, epoch, the group's declaration.
  const auto name = segment_name(1);
  const auto first_body = disk.bytes(name).find(body_of(0));
  const auto until = disk.bytes(name).rfind("\xd7\x5a", first_body);
  disk.overwrite(name, kSegmentHeaderSize, std::string(until - kSegmentHeaderSize, '\0'));
  {
    SpoolOwner owner(disk, one_group());
    REQUIRE(!owner.ok());
    CHECK(owner.error().text().find("declaration") != std::string::npos);
  }
  auto directory = disk.directory();
  REQUIRE(repair_spool(*directory, nullptr).ok());
  {
    SpoolOwner owner(disk, one_group());
    REQUIRE(!owner.ok());
    CHECK(owner.error().text().find("dray run --spool") != std::string::npos);
  }
  auto served = one_group();
  served.groups.reset();  // as dray run --spool does
  {
    SpoolOwner owner(disk, served);
    INFO((owner.ok() ? "" : owner.error().text()));
    REQUIRE(owner.ok());
    disk.kill();
  }
  {
    SpoolOwner owner(disk, one_group());
    CHECK(!owner.ok());  // it told nothing of groups
  }
  {
    SpoolOwner owner(disk, served);
    owner.submit(RecordType::kMarker, "");
    owner.checkpoint();
    owner.submit(RecordType::kMarker, "");
    owner.checkpoint();
  }
  SpoolOwner owner(disk, one_group());
  INFO((owner.ok() ? "" : owner.error().text()));
  CHECK(owner.ok());
}

TEST_CASE("recovery: repair changes nothing that is newer, or cannot be read just now") {
  Wreck wreck;
  SECTION("a checkpoint of a newer version") {
    auto& bytes = wreck.disk.bytes("checkpoint.a");
    bytes[8] = static_cast<char>(kFormatVersion + 1);
    put_le_at(bytes.data() + 36, crc32c(0, std::string_view(bytes).substr(0, 36)));
  }
  SECTION("a checkpoint in a bad sector") {
    wreck.disk.break_sector("checkpoint.b", 0);
  }
  auto directory = wreck.disk.directory();
  const auto names = wreck.disk.names();
  const auto report = repair_spool(*directory, nullptr);
  REQUIRE(!report.ok());
  CHECK(report.error().text().find("Nothing was changed") != std::string::npos);
  CHECK(wreck.disk.names() == names);
}

TEST_CASE("recovery: one checkpoint is bad, the other serves") {
  Wreck wreck;
  wreck.disk.flip_bit(GENERATE("checkpoint.a", "checkpoint.b"), 100);
  CHECK(!verify(wreck.disk).good());
  serves_all_but(wreck, {});
}

TEST_CASE("recovery: both checkpoints are bad, the log is read from its beginning") {
  Wreck wreck;
  wreck.disk.flip_bit("checkpoint.a", 100);
  wreck.disk.flip_bit("checkpoint.b", 100);
  {
    SpoolOwner owner(wreck.disk, one_group());
    REQUIRE(owner.ok());
    CHECK(owner.spool().scan_report().checkpoints_lost);
  }
  wreck.disk.kill();
  serves_all_but(wreck, {});
}

TEST_CASE("recovery: both checkpoints are bad and old segments are gone, with a copied message") {
  SimulatedDisk disk{2};
  Sequence kept = 0;
  {
    SpoolOwner owner(disk, one_group());
    kept = owner.publish("t", "kept")->sequence;
    const DeadRecord dead{0, kept, 1, 3, "attempts", "no such address", "w", 1, 0};
    owner.submit(RecordType::kDead, to_bytes(dead));
    owner.group(0).dead(dead, owner.spool().segments().next_lsn() - 1);
    for (int i = 0; i < 60; ++i) {
      const auto sequence = owner.publish("t", body_of(i))->sequence;
      owner.settle(0, sequence);
    }
    const auto plan = owner.checkpoint();
    REQUIRE(plan.to_copy == std::vector<Sequence>{kept});  // it alone holds the first segment
    owner.copy(plan.to_copy);
    owner.checkpoint();
    owner.checkpoint();
    CHECK(owner.spool().segments().segments().front().first_lsn > kept);
    disk.kill();
  }
  SECTION("with its checkpoints: a dead letter with its history") {}
  SECTION("without them: still there") {
    disk.flip_bit("checkpoint.a", 100);
    disk.flip_bit("checkpoint.b", 100);
  }
  SECTION("without them, and something was set aside before: the same") {
    disk.flip_bit("checkpoint.a", 100);
    disk.flip_bit("checkpoint.b", 100);
    REQUIRE(disk.directory()->open("old.quarantine", OpenMode::kCreateNew).ok());
  }
  SpoolOwner owner(disk, one_group());
  REQUIRE(owner.ok());
  CHECK(owner.group(0).counts().dead == 1);
  CHECK(owner.group(0).counts().balanced());
  const auto* history = owner.group(0).history(kept);
  REQUIRE(history != nullptr);
  LogReader reader(owner.spool().segments());
  auto message = read_message(reader, kept, history);
  REQUIRE((message.ok() && message->has_value()));
  CHECK(parse_envelope((*message)->envelope())->body == "kept");
  const auto attempts = read_attempts(reader, *history, 0, 10);
  REQUIRE(attempts.size() == 1);
  CHECK(attempts[0].reason == "no such address");
}

TEST_CASE("recovery: what declared a group is damaged, its messages are served") {
  SimulatedDisk disk{5};
  SpoolOptions options = one_group();
  const auto one = *options.groups;
  const auto two = std::vector<GroupDeclaration>{one[0], {"late", {"t", "u"}}};
  std::string damaged;
  {
    SpoolOwner owner(disk, options);
    CHECK(owner.publish("t", "before late").ok());
    disk.kill();
  }
  options.groups = two;
  {
    SpoolOwner owner(disk, options);
    damaged = segment_name(owner.spool().segments().segments().back().number);
    CHECK(owner.publish("u", "a").ok());
    CHECK(owner.publish("t", "b").ok());
    disk.kill();
  }
  bool last = false;
  SECTION("and the next segment says which groups there are") {
    SpoolOwner begins_one(disk, options);
    REQUIRE(begins_one.ok());
    disk.kill();
  }
  SECTION(
      "and nothing else says that there is such a group: refused, declared anew it would lose "
      "them") {
    last = true;
  }
  // The segment's opening, and the record of the declaration.
  int declarations = 0;
  for (auto at = disk.bytes(damaged).find("late"); at != std::string::npos;
       at = disk.bytes(damaged).find("late", at)) {
    disk.flip_bit(damaged, at);
    ++declarations;
  }
  REQUIRE(declarations == 2);
  SpoolOwner owner(disk, options);
  if (last) {
    REQUIRE(!owner.ok());
    CHECK(owner.error().code == ErrorCode::kCorrupt);
    CHECK(owner.error().message.find("'late' is new to this spool, or its declaration") == 6);
    options.groups = one;
    CHECK(SpoolOwner(disk, options).ok());
    return;
  }
  REQUIRE(owner.ok());
  CHECK(owner.group(1).counts().accepted == 2);
  CHECK(owner.group(1).counts().pending == 2);
  CHECK(owner.group(1).counts().balanced());
  CHECK(owner.group(0).counts().pending == 2);
  std::string bodies;
  for (const auto& [sequence, body] : owner.read_backlog(1)) bodies += body;
  CHECK(bodies == "ab");
}

TEST_CASE("attempts of before a copy are still there when a retry overtook the copy") {
  test::SimulatedDisk disk(8);
  SpoolOwner owner(disk, one_group());
  REQUIRE(owner.ok());
  const Sequence kept = owner.publish("t", "kept")->sequence;
  const auto retry = [&](std::uint32_t attempts, const std::string& reason) {
    const auto* history = owner.group(0).history(kept);
    const Lsn before = history == nullptr ? 0 : history->record_lsn();
    const RetryRecord record{0, kept, 1, attempts, 0, 1, false, reason, "worker", 5, before};
    owner.submit(RecordType::kRetry, to_bytes(record));
    owner.group(0).retry(record, owner.spool().segments().next_lsn() - 1);
  };
  retry(1, "first");
  for (int i = 0; i < 60; ++i) owner.settle(0, owner.publish("t", body_of(i))->sequence);
  // The copy is made of the first attempt; the second one fails before it is written.
  LogReader reader(owner.spool().segments());
  const auto copy = make_copy(reader, kept, {&owner.group(0)});
  REQUIRE((copy.ok() && copy->has_value()));
  retry(2, "second");
  owner.submit(RecordType::kCopy, to_bytes(**copy));
  owner.group(0).copied(kept, owner.spool().segments().next_lsn() - 1,
                        (*copy)->histories.at(0).record_lsn);
  for (int i = 0; i < 60; ++i) owner.settle(0, owner.publish("t", body_of(i))->sequence);
  for (int i = 0; i < 3; ++i) owner.checkpoint();
  REQUIRE(owner.spool().segments().segments().front().first_lsn > kept);
  LogReader later(owner.spool().segments());
  const auto attempts = read_attempts(later, *owner.group(0).history(kept), 0, 10);
  REQUIRE(attempts.size() == 2);
  CHECK(attempts[0].reason == "second");
  CHECK(attempts[1].reason == "first");
}

TEST_CASE("recovery: a newer checkpoint is refused") {
  Wreck wreck;
  auto& bytes = wreck.disk.bytes("checkpoint.a");
  bytes[8] = static_cast<char>(kFormatVersion + 1);
  put_le_at(bytes.data() + 36, crc32c(0, std::string_view(bytes).substr(0, 36)));
  const SpoolOwner owner(wreck.disk, one_group());
  REQUIRE(!owner.ok());
  CHECK(owner.error().code == ErrorCode::kUnsupported);
  CHECK(owner.error().text().find("newer") != std::string::npos);
}

TEST_CASE("recovery: a file that is no segment is refused by name") {
  Wreck wreck;
  auto directory = wreck.disk.directory();
  {
    auto file = directory->open(segment_name(0x99), OpenMode::kCreateNew);
    REQUIRE(
        (*file)
            ->write_at(0, "somebody's notes, longer than a header would be" + std::string(200, '.'))
            .ok());
  }
  const SpoolOwner owner(wreck.disk, one_group());
  REQUIRE(!owner.ok());
  CHECK(owner.error().text().find("0000000000000099.segment: not a Dray segment") !=
        std::string::npos);
}

TEST_CASE("recovery: a copied spool is refused until it is adopted") {
  Wreck wreck;
  wreck.disk.move_to(2);
  {
    const SpoolOwner owner(wreck.disk, one_group());
    REQUIRE(!owner.ok());
    CHECK(owner.error().code == ErrorCode::kConflict);
    CHECK(owner.error().text().find("dray spool adopt") != std::string::npos);
  }
  SECTION("another machine is the same") {
    wreck.disk.move_to(1);
    auto options = one_group();
    options.log.machine_id = uuid_v4();
    { REQUIRE(SpoolOwner(wreck.disk, options).ok()); }
    options.log.machine_id = uuid_v4();
    const SpoolOwner owner(wreck.disk, options);
    REQUIRE(!owner.ok());
    CHECK(owner.error().code == ErrorCode::kConflict);
  }
  SECTION("adopted") {
    auto options = one_group();
    options.log.adopt = true;
    { REQUIRE(SpoolOwner(wreck.disk, options).ok()); }
    serves_all_but(wreck, {});
  }
}

TEST_CASE("recovery: a second process is refused") {
  Wreck wreck;
  SpoolOwner first(wreck.disk, one_group());
  REQUIRE(first.ok());
  const SpoolOwner second(wreck.disk, one_group());
  REQUIRE(!second.ok());
  CHECK(second.error().code == ErrorCode::kBusy);
}

TEST_CASE("repair gives up what is lost, and verify finds nothing any more") {
  Wreck wreck;
  std::set<Sequence> lost;
  for (const int number : {5, 14, 50}) {
    const auto [name, at] = wreck.find(body_of(number));
    wreck.disk.flip_bit(name, at + 20);
    lost.insert(wreck.sequence_of(number));
  }
  wreck.disk.flip_bit("checkpoint.a", 60);
  auto directory = wreck.disk.directory();
  const auto report = repair_spool(*directory, nullptr);
  INFO((report.ok() ? "" : report.error().text()));
  REQUIRE(report.ok());
  CHECK(report->done.size() == 4);
  const auto findings = verify(wreck.disk);
  for (const auto& segment : findings.segments) {
    INFO(segment.file << " " << segment.status);
    CHECK(segment.damaged.empty());
  }
  CHECK(findings.good());
  CHECK(findings.lost_by_repair == 3);
  serves_all_but(wreck, lost);
}

TEST_CASE("verify of a spool that is served finds no damage") {
  SimulatedDisk disk{3};
  SpoolOwner owner(disk, one_group());
  for (int i = 0; i < 100; ++i) {
    const auto sequence = owner.publish("t", body_of(i))->sequence;
    owner.settle(0, sequence);
    if (i % 7 == 0) owner.checkpoint();
    const auto findings = verify(disk);
    for (const auto& segment : findings.segments) {
      INFO(i << " " << segment.file << " " << segment.status);
      REQUIRE(segment.damaged.empty());
    }
    REQUIRE(findings.missing.empty());
    REQUIRE(findings.faults.empty());
    REQUIRE(findings.served);
  }
}

TEST_CASE("room comes back when a full spool is settled, and retained segments stay their time") {
  SimulatedDisk disk{4};
  auto options = one_group();
  options.max_size = 40'000;
  SpoolOwner owner(disk, options);
  std::vector<Sequence> open;
  Result<Receipt> receipt = owner.publish("t", body_of(0));
  for (int i = 1; receipt.ok(); ++i) {
    open.push_back(receipt->sequence);
    receipt = owner.publish("t", body_of(i));
  }
  CHECK(receipt.error().code == ErrorCode::kFull);
  for (const auto sequence : open) owner.settle(0, sequence);  // there is always room for that
  REQUIRE(!owner.failure);
  SECTION("settled: freed") {
    owner.checkpoint();
    owner.checkpoint();
    CHECK(owner.publish("t", body_of(1)).ok());
    CHECK(owner.spool().segments().segments().size() <= 2);
  }
  SECTION("retained by time") {
    const RetainOptions retain{std::chrono::hours(1), 0};
    owner.checkpoint(retain);
    owner.checkpoint(retain);
    CHECK(owner.spool().segments().segments().size() > 5);
    owner.clock().advance(std::chrono::hours(2));
    owner.checkpoint(retain);
    owner.checkpoint(retain);
    CHECK(owner.spool().segments().segments().size() <= 2);
  }
  SECTION("retained by size") {
    const RetainOptions retain{std::chrono::hours(1), 10'000};
    owner.checkpoint(retain);
    owner.checkpoint(retain);
    const auto left = owner.spool().segments().segments().size();
    CHECK(left <= 5);
    CHECK(left >= 2);
  }
}

TEST_CASE("the dedup window outlives checkpoints, restarts and the segments of its messages") {
  SimulatedDisk disk{5};
  PublishOptions with_id;
  with_id.dedup = "order-1";
  Sequence first = 0;
  {
    SpoolOwner owner(disk, one_group());
    first = owner.publish("t", "x", with_id)->sequence;
    owner.settle(0, first);
    for (int i = 0; i < 40; ++i) owner.settle(0, owner.publish("t", body_of(i))->sequence);
    owner.checkpoint();
    owner.checkpoint();
    REQUIRE(owner.spool().segments().segments().front().first_lsn > first);
    disk.kill();
  }
  SpoolOwner owner(disk, one_group());
  const auto again = owner.publish("t", "x", with_id);
  REQUIRE(again.ok());
  CHECK(again->duplicate);
  CHECK(again->sequence == first);
  CHECK(owner.publish("t", "y", with_id).error().code == ErrorCode::kConflict);
}

TEST_CASE("a message with a history costs at most 64 bytes, and one that waits nothing") {
  GroupState state(0, "g");
  state.declare(1, {"t"}, GroupStanding::kAttached);
  constexpr Sequence kCount = 1'000'000;
  state.accept(kCount);
  // Every second one is dead, the others are done: no interval may be left between them.
  for (Sequence i = 2; i < 2 + kCount; ++i) {
    if (i % 2 == 0) {
      state.dead({0, i, 1, 3, "attempts", "", "", 0, 0}, i + kCount);
    } else {
      state.settle(i, Settlement::kDone);
    }
  }
  CHECK(state.entries().size() == kCount / 2);
  const auto snapshot = state.snapshot();
  CHECK(snapshot.closed.bytes.size() <= 2 * 528);
  // A B-tree's nodes of 256 bytes hold six entries of 40.
  CHECK(sizeof(GroupState::Entries::value_type) == 40);
  const auto copy = GroupState::restore(snapshot);
  REQUIRE(copy.ok());
  CHECK(copy->counts() == state.counts());
  CHECK(copy->next_dead(0) == 2);
}

TEST_CASE("a group that gets a topic later takes what came from then on, read in one go") {
  SimulatedDisk disk{6};
  auto options = one_group();
  options.groups = std::vector<GroupDeclaration>{{"email", {"t"}}, {"late", {"u"}}};
  {
    SpoolOwner owner(disk, options);
    REQUIRE(owner.publish("u", "1").ok());
    REQUIRE(owner.publish("t", "2").ok());
  }
  options.groups = std::vector<GroupDeclaration>{{"email", {"t"}}, {"late", {"u", "t"}}};
  {
    SpoolOwner owner(disk, options);
    REQUIRE(owner.publish("t", "3").ok());
  }
  SpoolOwner owner(disk, options);
  std::vector<std::string> bodies;
  for (const auto& [sequence, body] : owner.read_backlog(1)) bodies.push_back(body);
  CHECK(bodies == std::vector<std::string>{"1", "3"});
  CHECK(owner.group(1).counts().damaged == 0);
}
