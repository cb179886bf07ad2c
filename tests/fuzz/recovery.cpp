// Fuzz target: a spool's files with bytes changed, cut or added: it opens or says why not, and
// never hands out what fails its check.
//
// Input: edits of 6 bytes each: which file, where (3 bytes), what is done, a byte.
#include <cstdlib>

#include "dray/spool/backlog.hpp"
#include "dray/spool/checkpoint.hpp"
#include "dray/spool/spool.hpp"
#include "support/simulated_disk.hpp"

using namespace dray;
using namespace dray::spool;

namespace {

using Files = std::vector<std::pair<std::string, std::string>>;

struct Nobody final : CommitListener {
  void on_committed(Committed committed) override {
    last = committed.last;
    position = committed.position;
  }
  void on_failed(const Error&) override {}
  Lsn last = 0;
  LogPosition position;
};

SpoolOptions options() {
  SpoolOptions out;
  out.log.segment_size = 8U << 10;
  out.groups = std::vector<GroupDeclaration>{{"g", {"t"}}};
  return out;
}

// A spool with several segments, settlements, a retry, a dead letter and a checkpoint.
Files good_spool() {
  test::SimulatedDisk disk(1);
  VirtualClock clock;
  auto directory = disk.directory();
  auto opened = Spool::open(*directory, clock, options(), Log());
  if (!opened.ok()) std::abort();
  auto& spool = **opened;
  Nobody listener;
  auto groups = spool.take_groups();
  for (int i = 0; i < 40; ++i) {
    Draft draft{"t", std::string(300, static_cast<char>('a' + i % 26)), {}};
    spool.publish_draft(draft, [](const Result<Receipt>&) {});
    spool.commit_pending(listener);
    groups[0]->accept();
    Submission submission;
    if (i % 2 == 0) {
      submission.entries.push_back({RecordType::kSettlement, 0,
                                    encode(SettlementRecord{0, Settlement::kDone, {listener.last}}),
                                    0});
      groups[0]->settle(listener.last, Settlement::kDone);
    } else {
      RetryRecord retry;
      retry.sequence = listener.last;
      retry.number = 1;
      submission.entries.push_back({RecordType::kRetry, 0, to_bytes(retry), 0});
    }
    spool.submit(submission);
    spool.commit_pending(listener);
    if (i == 20) {
      Snapshot snapshot;
      snapshot.lsn = listener.last;
      snapshot.position = listener.position;
      snapshot.groups.push_back(groups[0]->snapshot());
      spool.checkpoint(std::move(snapshot));
      spool.commit_pending(listener);
      spool.upkeep(listener);
    }
  }
  opened->reset();
  Files files;
  for (const auto& name : disk.names()) files.emplace_back(name, disk.bytes(name));
  return files;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const Files kGood = good_spool();
  (void)decode_checkpoint(std::string_view(reinterpret_cast<const char*>(data), size));
  Files files = kGood;
  for (std::size_t at = 0; at + 6 <= size; at += 6) {
    auto& bytes = files[data[at] % files.size()].second;
    if (bytes.empty()) continue;
    const std::size_t where =
        (data[at + 1] + data[at + 2] * 256U + data[at + 3] * 65536U) % bytes.size();
    switch (data[at + 4] % 4) {
      case 0:
        bytes[where] = static_cast<char>(data[at + 5]);
        break;
      case 1:
        bytes.resize(where);
        break;
      case 2:
        bytes.append(data[at + 5], 'z');
        break;
      default: {
        // Copies a piece to another place: right bytes at the wrong position.
        const std::size_t length = std::min<std::size_t>(512, bytes.size() - where);
        bytes.replace((where * 7) % (bytes.size() - length + 1), length,
                      bytes.substr(where, length));
      }
    }
  }
  test::SimulatedDisk disk(1);
  VirtualClock clock;
  auto directory = disk.directory();
  for (const auto& [name, bytes] : files) {
    auto file = directory->open(name, OpenMode::kCreateNew);
    if (!file.ok() || !(*file)->write_at(0, bytes).ok() || !(*file)->sync_data().ok()) std::abort();
  }
  if (!directory->sync().ok()) std::abort();
  auto opened = Spool::open(*directory, clock, options(), Log());
  if (!opened.ok()) return 0;
  auto groups = (*opened)->take_groups();
  LogReader reader((*opened)->segments());
  BacklogRequest request;
  request.from = std::min(groups[0]->first_plain(), groups[0]->known());
  request.before = (*opened)->boundary();
  request.passed = groups[0]->passed();
  request.known = groups[0]->known();
  request.messages_max = request.bytes_max = 1U << 20;
  const auto slice = read_backlog(reader, *groups[0], request);
  if (!slice.ok()) return 0;
  slice->for_each_message([](Sequence, const StoredRun&, std::string_view bytes) {
    const auto envelope = parse_envelope(bytes);
    if (!envelope.ok() || envelope->body.size() != 300) std::abort();  // P6
    for (const char c : envelope->body) {
      if (c != envelope->body.front()) std::abort();
    }
  });
  return 0;
}
