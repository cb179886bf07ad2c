// spool_storm: a writer to be killed and a reader to look at what is left.
//
//   spool_storm write DIR [--no-sync]   publishes and settles for ever, with the spool's own
//                                       threads; says on standard output, before or after the fact:
//                                         A seq   accepted: the receipt is there
//                                         T seq   its settlement was submitted
//                                         S seq   its settlement is durable
//                                       Exits 3 when the disk fails.
//   spool_storm read DIR                recovers; O seq for every open message, then "C" and the
//                                       counts; exits 1 if a body is wrong or counts do not balance
//
// Threading: state belongs to the committer's callbacks. Lines of one commit are one write.
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <random>
#include <thread>

#include "dray/disk/posix_directory.hpp"
#include "dray/spool/backlog.hpp"
#include "dray/spool/spool.hpp"

using namespace dray;
using namespace dray::spool;

namespace {

constexpr std::size_t kOpenMin = 300;

std::string body_of(std::uint64_t serial) {
  std::mt19937_64 random(serial);
  std::string body = std::to_string(serial) + "/";
  body.append(random() % 700, static_cast<char>('a' + serial % 26));
  return body;
}

bool body_is_right(std::string_view body) {
  return body_of(std::strtoull(std::string(body).c_str(), nullptr, 10)) == body;
}

void say(const std::string& lines) {
  if (write(STDOUT_FILENO, lines.data(), lines.size()) < 0) _exit(4);
}

// A disk whose syncs do nothing: the test of the test.
class LazyFile final : public File {
 public:
  explicit LazyFile(std::unique_ptr<File> file) : file_(std::move(file)) {}
  Status write_at(std::uint64_t offset, std::string_view bytes) override {
    return file_->write_at(offset, bytes);
  }
  Status write_durable_at(std::uint64_t offset, std::string_view bytes,
                          const WriteHints&) override {
    return file_->write_at(offset, bytes);
  }
  Result<bool> write_ahead_at(std::uint64_t offset, std::string_view bytes,
                              std::size_t room_before) override {
    return file_->write_ahead_at(offset, bytes, room_before);
  }
  Result<std::size_t> read_at(std::uint64_t offset, char* out, std::size_t size) const override {
    return file_->read_at(offset, out, size);
  }
  Status sync_data() override { return {}; }
  Result<std::uint64_t> size() const override { return file_->size(); }
  Status truncate(std::uint64_t size) override { return file_->truncate(size); }
  Status allocate(std::uint64_t size) override { return file_->allocate(size); }

 private:
  std::unique_ptr<File> file_;
};

class LazyDirectory final : public Directory {
 public:
  explicit LazyDirectory(std::unique_ptr<Directory> directory) : directory_(std::move(directory)) {}
  const std::string& path() const override { return directory_->path(); }
  Result<std::unique_ptr<File>> open(const std::string& name, OpenMode mode) override {
    auto file = directory_->open(name, mode);
    if (!file.ok()) return file.error();
    return std::unique_ptr<File>(std::make_unique<LazyFile>(std::move(*file)));
  }
  Result<std::vector<std::string>> list() override { return directory_->list(); }
  Status rename(const std::string& from, const std::string& to) override {
    return directory_->rename(from, to);
  }
  Status remove(const std::string& name) override { return directory_->remove(name); }
  Status sync() override { return {}; }
  std::uint64_t identity() override { return directory_->identity(); }
  Result<std::unique_ptr<DirectoryLock>> lock(const std::string& name) override {
    return directory_->lock(name);
  }
  bool is_locked(const std::string& name) override { return directory_->is_locked(name); }
  std::string volatile_reason() override { return directory_->volatile_reason(); }

 private:
  std::unique_ptr<Directory> directory_;
};

SpoolOptions storm_options() {
  SpoolOptions options;
  options.log.segment_size = 256U << 10;
  options.max_size = 24U << 20;
  // Small loads as the large ones are: several writes for a sync, some while one is under way.
  options.log.read_back_commits = 0;
  options.write_records = 16;
  options.worth_a_write = 2U << 10;
  options.sync_records = 32;
  options.groups = std::vector<GroupDeclaration>{{"g", {"t"}}};
  return options;
}

class Storm final : public CommitListener {
 public:
  explicit Storm(Spool& spool) : spool_(spool), group_(std::move(spool.take_groups().front())) {
    // What is open from before is settled like the rest.
    LogReader reader(spool.segments());
    const BacklogRequest request{std::min(group_->first_plain(), group_->known()),
                                 spool.segments().next_lsn(),
                                 group_->passed(),
                                 group_->known(),
                                 1U << 24,
                                 1U << 30};
    auto slice = read_backlog(reader, *group_, request);
    if (!slice.ok() || !slice->lost.empty() || !slice->damaged.empty()) _exit(5);
    for (const auto& [first, last] : slice->skips) group_->skip(first, last);
    if (slice->next > group_->known()) group_->pass(slice->next, slice->passed);
    slice->for_each_message(
        [&](Sequence sequence, const StoredRun&, std::string_view) { open_.push_back(sequence); });
    for (const auto& [sequence, history] : group_->entries()) open_.push_back(sequence);
  }

  void on_committed(Committed committed) override {
    Lsn skip_from = committed.first;
    std::uint64_t messages = 0;
    committed.for_each_message([&](Sequence sequence, const AcceptedRun&, std::string_view) {
      ++messages;
      group_->accept();
      if (skip_from < sequence) group_->skip(skip_from, sequence - 1);
      skip_from = sequence + 1;
      open_.push_back(sequence);
    });
    if (skip_from <= committed.last) group_->skip(skip_from, committed.last);
    group_->pass(committed.last + 1, messages);
    std::string lines;
    for (std::size_t i = 0; i < committed.tickets.size(); ++i) {
      for (const auto sequence : settling_.front()) {
        group_->settle(sequence, Settlement::kDone);
        lines += "S " + std::to_string(sequence) + "\n";
      }
      settling_.pop_front();
    }
    say(lines);
    settle_some();
    if (++commits_ % 8 == 0 && !spool_.checkpoint_under_way()) checkpoint(committed);
  }
  void on_failed(const Error& error) override {
    std::fprintf(stderr, "%s\n", error.text().c_str());
    _exit(3);
  }

 private:
  void settle_some() {
    if (open_.size() <= kOpenMin) return;
    std::vector<Sequence> some;
    std::string lines;
    // Mostly the oldest; one in ten is left for later, so that the order is not perfect.
    const std::size_t count = open_.size() - kOpenMin;
    for (std::size_t i = 0; i < count; ++i) {
      const Sequence sequence = open_.front();
      open_.pop_front();
      if (random_() % 10 == 0) {
        open_.push_back(sequence);
        continue;
      }
      some.push_back(sequence);
      lines += "T " + std::to_string(sequence) + "\n";
    }
    if (some.empty()) return;
    std::sort(some.begin(), some.end());
    say(lines);
    Submission submission;
    submission.entries.push_back(
        {RecordType::kSettlement, 0,
         encode(SettlementRecord{0, Settlement::kDone, SequenceRuns::of(some)}), 0});
    submission.ticket = 1;
    submission.lazy = true;
    settling_.push_back(std::move(some));
    spool_.submit(submission);
  }

  void checkpoint(const Committed& committed) {
    Snapshot snapshot;
    snapshot.lsn = committed.last;
    snapshot.position = committed.position;
    snapshot.groups.push_back(group_->snapshot());
    snapshot.dead =
        plan_reclaim(spool_.segments().segments(), {group_.get()}, {}, UtcTime{}, 0).dead;
    spool_.checkpoint(std::move(snapshot));
  }

  Spool& spool_;
  std::unique_ptr<GroupState> group_;
  std::deque<Sequence> open_;
  std::deque<std::vector<Sequence>> settling_;
  std::mt19937_64 random_{std::random_device{}()};
  std::uint64_t commits_ = 0;
};

int run_writer(Directory& directory) {
  SystemClock clock;
  auto spool = Spool::open(directory, clock, storm_options(), Log());
  if (!spool.ok()) {
    std::fprintf(stderr, "%s\n", spool.error().text().c_str());
    return 3;
  }
  Storm storm(**spool);
  (*spool)->start(storm);
  std::mt19937_64 random{std::random_device{}()};
  for (;;) {
    const std::size_t burst = 1 + random() % 64;
    for (std::size_t i = 0; i < burst; ++i) {
      const std::uint64_t serial = random() >> 1;
      (*spool)->publish_draft(Draft{"t", body_of(serial), {}}, [](const Result<Receipt>& receipt) {
        if (receipt.ok()) say("A " + std::to_string(receipt->sequence) + "\n");
      });
    }
    std::this_thread::sleep_for(std::chrono::microseconds(random() % 2'000));
  }
}

int run_reader(Directory& directory) {
  SystemClock clock;
  auto spool = Spool::open(directory, clock, storm_options(), Log());
  if (!spool.ok()) {
    std::fprintf(stderr, "%s\n", spool.error().text().c_str());
    return 1;
  }
  for (const auto& range : (*spool)->scan_report().damaged) {
    std::fprintf(stderr, "damaged: %s\n", range.what.c_str());
    return 1;
  }
  auto group = std::move((*spool)->take_groups().front());
  LogReader reader((*spool)->segments());
  const BacklogRequest request{std::min(group->first_plain(), group->known()),
                               (*spool)->segments().next_lsn(),
                               group->passed(),
                               group->known(),
                               1U << 24,
                               1U << 30};
  auto slice = read_backlog(reader, *group, request);
  if (!slice.ok() || !slice->lost.empty() || !slice->damaged.empty()) {
    std::fprintf(stderr, "messages are missing\n");
    return 1;
  }
  std::string lines;
  std::uint64_t messages = 0;
  bool right = true;
  slice->for_each_message([&](Sequence sequence, const StoredRun&, std::string_view envelope) {
    ++messages;
    right = right && body_is_right(parse_envelope(envelope)->body);
    lines += "O " + std::to_string(sequence) + "\n";
  });
  if (!right) {
    std::fprintf(stderr, "a body is wrong\n");
    return 1;
  }
  const auto& counts = group->counts();
  lines += "C " + std::to_string(counts.accepted) + " " + std::to_string(counts.pending) + " " +
           std::to_string(counts.done) + "\n";
  say(lines);
  return counts.balanced() && counts.pending == messages ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) {
    std::fprintf(stderr, "usage: spool_storm write|read DIR [--no-sync]\n");
    return 2;
  }
  auto directory = open_posix_directory(argv[2], true);
  if (!directory.ok()) {
    std::fprintf(stderr, "%s\n", directory.error().text().c_str());
    return 3;
  }
  if (argc > 3 && std::strcmp(argv[3], "--no-sync") == 0) {
    *directory = std::make_unique<LazyDirectory>(std::move(*directory));
  }
  return std::strcmp(argv[1], "write") == 0 ? run_writer(**directory) : run_reader(**directory);
}
