// Two committer threads: one writes while the other waits for the disk.
#include <condition_variable>
#include <functional>
#include <future>
#include <mutex>
#include <random>
#include <set>
#include <thread>

#include "dray/disk/posix_directory.hpp"
#include "dray/spool/log_reader.hpp"
#include "dray/spool/spool.hpp"
#include "support/temporary_folder.hpp"

using namespace dray;
using namespace dray::spool;
using dray::test::TemporaryFolder;

namespace {

// Once it is shut, each sync waits until it is let through, and returns what it is told.
class Gate {
 public:
  void shut() {
    const std::lock_guard lock(mutex_);
    shut_ = true;
    syncs_ = written_ = 0;
  }
  // Lets that sync through, the first one since shut() being 1.
  void let(int sync, Status outcome = {}) {
    const std::lock_guard lock(mutex_);
    outcomes_[sync] = std::move(outcome);
    changed_.notify_all();
  }
  Status pass() {
    std::unique_lock lock(mutex_);
    if (!shut_) return {};
    const int mine = ++syncs_;
    changed_.notify_all();
    changed_.wait(lock, [&] { return outcomes_.count(mine) != 0; });
    return outcomes_[mine];
  }
  void break_writes() {
    const std::lock_guard lock(mutex_);
    broken_ = true;
  }
  Status note_written() {
    const std::lock_guard lock(mutex_);
    ++written_;
    changed_.notify_all();
    return broken_ ? Status(Error{ErrorCode::kIo, "write", "disk", 5}) : Status();
  }
  // Since shut().
  bool await(int written, int syncs) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, std::chrono::seconds(20),
                             [&] { return written_ >= written && syncs_ >= syncs; });
  }
  std::pair<int, int> seen() {
    const std::lock_guard lock(mutex_);
    return {written_, syncs_};
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool shut_ = false;
  bool broken_ = false;
  int syncs_ = 0;    // begun
  int written_ = 0;  // ahead
  std::map<int, Status> outcomes_;
};

class GatedFile final : public File {
 public:
  GatedFile(std::unique_ptr<File> file, Gate& gate) : file_(std::move(file)), gate_(gate) {}
  Status write_at(std::uint64_t offset, std::string_view bytes) override {
    return file_->write_at(offset, bytes);
  }
  Status write_durable_at(std::uint64_t offset, std::string_view bytes,
                          const WriteHints&) override {
    DRAY_TRY(file_->write_at(offset, bytes));
    return file_->sync_data();
  }
  Result<bool> write_ahead_at(std::uint64_t offset, std::string_view bytes, std::size_t) override {
    DRAY_TRY(file_->write_at(offset, bytes));
    ahead_ = true;
    DRAY_TRY(gate_.note_written());
    return true;
  }
  Result<std::size_t> read_at(std::uint64_t offset, char* out, std::size_t size) const override {
    return file_->read_at(offset, out, size);
  }
  // Files that are made ready by another thread are not waited for.
  Status sync_data() override { return ahead_ ? gate_.pass() : file_->sync_data(); }
  Result<std::uint64_t> size() const override { return file_->size(); }
  Status truncate(std::uint64_t size) override { return file_->truncate(size); }
  Status allocate(std::uint64_t size) override { return file_->allocate(size); }

 private:
  std::unique_ptr<File> file_;
  Gate& gate_;
  std::atomic<bool> ahead_{false};
};

class GatedDirectory final : public Directory {
 public:
  GatedDirectory(std::unique_ptr<Directory> directory, Gate& gate)
      : directory_(std::move(directory)), gate_(gate) {}
  const std::string& path() const override { return directory_->path(); }
  Result<std::unique_ptr<File>> open(const std::string& name, OpenMode mode) override {
    auto file = directory_->open(name, mode);
    if (!file.ok()) return file;
    return std::unique_ptr<File>(std::make_unique<GatedFile>(std::move(*file), gate_));
  }
  Result<std::vector<std::string>> list() override { return directory_->list(); }
  Status rename(const std::string& from, const std::string& to) override {
    return directory_->rename(from, to);
  }
  Status remove(const std::string& name) override { return directory_->remove(name); }
  Status sync() override { return directory_->sync(); }
  std::uint64_t identity() override { return directory_->identity(); }
  Result<std::unique_ptr<DirectoryLock>> lock(const std::string& name) override {
    return directory_->lock(name);
  }
  bool is_locked(const std::string& name) override { return directory_->is_locked(name); }
  std::string volatile_reason() override { return {}; }

 private:
  std::unique_ptr<Directory> directory_;
  Gate& gate_;
};

SpoolOptions small_loads() {
  SpoolOptions options;
  options.log.segment_size = 1U << 20;
  options.groups = std::vector<GroupDeclaration>{{"g", {"t"}}};
  options.allow_volatile = true;
  options.worth_a_write = 1'000;
  return options;
}

// Checks what a dispatcher relies on: one call at a time, each behind the one before.
class OrderListener final : public CommitListener {
 public:
  void on_committed(Committed committed) override {
    if (inside_.exchange(true)) torn_ = true;
    if (last_ != 0 && committed.first != last_ + 1) torn_ = true;
    last_ = committed.last;
    for (const auto& run : committed.runs) messages_ += run.count;
    inside_ = false;
  }
  void on_failed(const Error&) override { ++failures_; }
  bool torn() const { return torn_; }
  std::uint64_t messages() const { return messages_; }
  int failures() const { return failures_; }

 private:
  std::atomic<bool> inside_{false};
  std::atomic<bool> torn_{false};
  std::atomic<std::uint64_t> messages_{0};
  std::atomic<int> failures_{0};
  Lsn last_ = 0;
};

// A spool with a large message on its way: written, and waiting for its sync.
class OneOnItsWay {
 public:
  OneOnItsWay() {
    auto posix = open_posix_directory(folder_.path() + "/spool", true);
    directory_ = std::make_unique<GatedDirectory>(std::move(*posix), gate_);
    auto opened = Spool::open(*directory_, clock_, small_loads(), Log());
    REQUIRE(opened.ok());
    spool_ = std::move(*opened);
    spool_->start(listener_);
    REQUIRE(spool_->publish_and_wait({"t", "first", none_}).ok());
    gate_.shut();
    publish("a", 2'000);
    REQUIRE(gate_.await(1, 1));
  }
  ~OneOnItsWay() {
    for (int i = 1; i < 1'000; ++i) gate_.let(i);
    spool_->stop();
  }
  void publish(const std::string& name, std::size_t size) {
    spool_->publish_draft(Draft{"t", std::string(size, 'x'), {}},
                          [this, name](const Result<Receipt>& receipt) {
                            const std::lock_guard lock(mutex_);
                            said_ += name;
                            if (!receipt.ok()) {
                              said_ += receipt.error().code == ErrorCode::kUnknown ? "?" : "!";
                            }
                            changed_.notify_all();
                          });
  }
  // What was answered, in order, once it is so long.
  std::string said(std::size_t length) {
    std::unique_lock lock(mutex_);
    changed_.wait_for(lock, std::chrono::seconds(20), [&] { return said_.size() >= length; });
    return said_;
  }
  std::string said_by_now() {
    std::this_thread::sleep_for(std::chrono::milliseconds(30));
    return said(0);
  }
  Gate& gate() { return gate_; }
  Spool& spool() { return *spool_; }
  const OrderListener& listener() const { return listener_; }

 private:
  TemporaryFolder folder_;
  Gate gate_;
  VirtualClock clock_;  // no idle time passes: no marker
  OrderListener listener_;
  const PublishOptions none_;
  std::unique_ptr<GatedDirectory> directory_;
  std::unique_ptr<Spool> spool_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::string said_;
};

// And another, with a sync of its own.
class TwoOnTheirWay : public OneOnItsWay {
 public:
  TwoOnTheirWay() {
    publish("b", 2'000);
    REQUIRE(gate().await(2, 2));
  }
};

const Error kBroken{ErrorCode::kIo, "broken", "disk", 5};

}  // namespace

TEST_CASE("what is written while another is synced is answered after it") {
  TwoOnTheirWay two;
  two.publish("c", 10);  // not worth a write now
  two.gate().let(2);
  CHECK(two.said_by_now().empty());
  CHECK(two.gate().seen() == std::pair(2, 2));
  CHECK(two.spool().durable_lsn() < two.spool().segments().next_lsn() - 1);
  two.gate().let(1);
  CHECK(two.said(2) == "ab");
  two.gate().let(3);
  CHECK(two.said(3) == "abc");
  CHECK(!two.listener().torn());
  CHECK(two.listener().messages() == 4);
}

TEST_CASE("what is written while a sync is under way that fails does not count (S5)") {
  TwoOnTheirWay two;
  two.publish("c", 10);
  two.gate().let(2);
  two.gate().let(1, kBroken);
  CHECK(two.said(6) == "a?b?c!");
  CHECK(two.listener().messages() == 1);
  CHECK(two.listener().failures() == 1);
  two.publish("d", 10);
  CHECK(two.said(8) == "a?b?c!d!");
}

TEST_CASE("a sync that fails takes back nothing that was synced before it") {
  TwoOnTheirWay two;
  two.gate().let(2, kBroken);
  CHECK(two.said_by_now().empty());
  two.gate().let(1);
  CHECK(two.said(3) == "ab?");
  CHECK(two.listener().messages() == 2);
  CHECK(two.listener().failures() == 1);
}

TEST_CASE("a write that fails beside a sync may have spoilt what shares its page") {
  OneOnItsWay one;
  one.gate().break_writes();
  one.publish("b", 2'000);
  REQUIRE(one.gate().await(2, 1));
  CHECK(one.said_by_now().empty());
  one.gate().let(1);
  CHECK(one.said(4) == "a?b?");
  CHECK(one.listener().failures() == 1);
}

TEST_CASE("a spool that stops waits for all that is on its way") {
  TwoOnTheirWay two;
  two.publish("c", 2'000);
  auto stopped = std::async(std::launch::async, [&] { two.spool().stop(); });
  CHECK(stopped.wait_for(std::chrono::milliseconds(30)) == std::future_status::timeout);
  for (int i = 1; i < 100; ++i) two.gate().let(i);
  stopped.get();
  CHECK(two.said(3) == "abc");
}

TEST_CASE(
    "many publishers of all sizes: every receipt once, in order, and all of it is there again") {
  const TemporaryFolder folder;
  const std::uint64_t seed = Catch::rngSeed();
  INFO("seed " << seed);
  auto directory = open_posix_directory(folder.path() + "/spool", true);
  REQUIRE(directory.ok());
  SystemClock clock;
  SpoolOptions options = small_loads();
  options.log.preallocate = 4U << 20;
  options.write_records = 8;
  options.sync_records = 24;
  options.worth_a_write = 2U << 10;
  constexpr std::size_t kThreads = 4;
  constexpr std::size_t kEach = 1'500;
  std::array<std::vector<Sequence>, kThreads> receipts;
  OrderListener listener;
  {
    auto spool = Spool::open(**directory, clock, options, Log());
    REQUIRE(spool.ok());
    (*spool)->start(listener);
    std::vector<std::thread> threads;
    for (std::size_t thread = 0; thread < kThreads; ++thread) {
      threads.emplace_back([&, thread] {
        std::mt19937_64 random(seed + thread);
        auto& mine = receipts[thread];
        const PublishOptions none;
        for (std::size_t i = 0; i < kEach; ++i) {
          const std::string body(random() % (random() % 10 == 0 ? 9'000 : 500), 'x');
          if (random() % 20 == 0) {
            const auto receipt = (*spool)->publish_and_wait({"t", body, none});
            mine.push_back(receipt.ok() ? receipt->sequence : 0);
          } else {
            (*spool)->publish_view({"t", body, none}, [&mine](const Result<Receipt>& receipt) {
              mine.push_back(receipt.ok() ? receipt->sequence : 0);
            });
          }
          if (random() % 200 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
        }
        // Receipts are given by committers; the last one of this thread comes last.
        (void)(*spool)->publish_and_wait({"t", "end", none});
      });
    }
    for (auto& thread : threads) thread.join();
    (*spool)->stop();
  }
  CHECK(!listener.torn());
  CHECK(listener.failures() == 0);
  CHECK(listener.messages() == kThreads * (kEach + 1));
  std::set<Sequence> all;
  for (const auto& mine : receipts) {
    CHECK(mine.size() == kEach);
    CHECK(std::is_sorted(mine.begin(), mine.end()));
    CHECK(std::count(mine.begin(), mine.end(), Sequence{0}) == 0);
    all.insert(mine.begin(), mine.end());
  }
  CHECK(all.size() == kThreads * kEach);
  auto again = Spool::open(**directory, clock, options, Log());
  REQUIRE(again.ok());
  LogReader reader((*again)->segments());
  std::size_t found = 0;
  REQUIRE(reader
              .read(1, (*again)->segments().next_lsn(),
                    [&](const Record& record) {
                      found += all.count(record.header.lsn);
                      return true;
                    })
              .ok());
  CHECK(found == all.size());
}
