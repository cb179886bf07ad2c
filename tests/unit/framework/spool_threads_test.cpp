// The spool with its threads, on a real file: who commits, and that all is committed.
#include <atomic>
#include <catch2/catch.hpp>
#include <condition_variable>
#include <mutex>
#include <set>
#include <thread>

#include "dray/disk/posix_directory.hpp"
#include "dray/spool/log_reader.hpp"
#include "dray/spool/spool.hpp"
#include "support/temporary_folder.hpp"

using namespace dray;
using namespace dray::spool;

namespace {

// Checks that commits come one after the other, without a gap.
class Watcher final : public CommitListener {
 public:
  void on_committed(Committed committed) override {
    const bool alone = !inside_.exchange(true);
    const std::lock_guard lock(mutex_);
    in_order_ = in_order_ && alone && (last_ == 0 || committed.first == last_ + 1);
    last_ = committed.last;
    for (const auto& run : committed.runs) messages_ += run.count;
    committers_.insert(std::this_thread::get_id());
    ++commits_;
    markers_ += committed.runs.empty() ? 1U : 0U;
    inside_ = false;
    changed_.notify_all();
  }
  void on_failed(const Error& error) override { FAIL(error.text()); }

  template <typename What>
  bool wait_until(const What& what) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, std::chrono::seconds(20), [&] { return what(*this); });
  }
  std::uint64_t messages_ = 0, commits_ = 0, markers_ = 0;
  bool in_order_ = true;
  std::set<std::thread::id> committers_;

 private:
  std::atomic<bool> inside_{false};
  std::mutex mutex_;
  std::condition_variable changed_;
  Lsn last_ = 0;
};

struct LiveSpool {
  LiveSpool() : directory(std::move(*open_posix_directory(folder.path(), true))) {
    SpoolOptions options;
    options.log.segment_size = 1U << 20;
    options.groups = std::vector<GroupDeclaration>{{"g", {"t"}}};
    spool = std::move(*Spool::open(*directory, clock, options, Log()));
    spool->start(listener);
  }
  ~LiveSpool() { spool->stop(); }

  test::TemporaryFolder folder;
  std::unique_ptr<Directory> directory;
  SystemClock clock;
  Watcher listener;
  std::unique_ptr<Spool> spool;
};

const PublishOptions kNoOptions;

}  // namespace

TEST_CASE("whoever waits for a receipt commits by itself, and a marker follows all the same") {
  LiveSpool bench;
  for (int i = 0; i < 20; ++i) {
    const auto receipt = bench.spool->publish_and_wait({"t", "\xc0", kNoOptions});
    REQUIRE(receipt.ok());
    CHECK(receipt->durability == Durability::kDisk);
  }
  CHECK(bench.listener.committers_.count(std::this_thread::get_id()) == 1);
  CHECK(bench.listener.wait_until([](const Watcher& each) { return each.markers_ > 0; }));
  const auto refused = bench.spool->publish_and_wait({"nowhere", "\xc0", kNoOptions});
  CHECK((!refused.ok() && refused.error().code == ErrorCode::kUnroutable));
}

TEST_CASE("many who wait, and many who do not, are all committed, one commit after the other") {
  LiveSpool bench;
  constexpr std::uint64_t kEach = 300;
  std::atomic<std::uint64_t> receipts{0};
  std::atomic<bool> all_ok{true};
  std::vector<std::thread> threads;
  for (int i = 0; i < 6; ++i) {
    threads.emplace_back([&, waits = i < 3] {
      for (std::uint64_t k = 0; k < kEach; ++k) {
        if (waits) {
          if (!bench.spool->publish_and_wait({"t", "\xc0", kNoOptions}).ok()) all_ok = false;
          ++receipts;
          continue;
        }
        bench.spool->publish_view({"t", "\xc0", kNoOptions}, [&](const Result<Receipt>& receipt) {
          if (!receipt.ok()) all_ok = false;
          ++receipts;
        });
        if (k % 16 == 0) {
          Submission lazy;  // rides with some commit, or alone after 5 ms
          lazy.entries.push_back({RecordType::kMarker, 0, "", 0});
          lazy.lazy = true;
          bench.spool->submit(lazy);
        }
      }
    });
  }
  for (auto& thread : threads) thread.join();
  CHECK(bench.listener.wait_until([](const Watcher& each) { return each.messages_ == 6 * kEach; }));
  bench.spool->stop();
  CHECK(receipts == 6 * kEach);
  CHECK(all_ok);
  CHECK(bench.listener.in_order_);
}

TEST_CASE("a stop beside those who wait: each gets a receipt or is told that it is closed") {
  for (int round = 0; round < 20; ++round) {
    LiveSpool bench;
    std::atomic<std::uint64_t> accepted{0};
    std::atomic<bool> only_closed{true};
    std::vector<std::thread> threads;
    for (int i = 0; i < 3; ++i) {
      threads.emplace_back([&] {
        for (;;) {
          const auto receipt = bench.spool->publish_and_wait({"t", "\xc0", kNoOptions});
          if (receipt.ok()) {
            ++accepted;
            continue;
          }
          if (receipt.error().code != ErrorCode::kClosed) only_closed = false;
          return;
        }
      });
    }
    CHECK(bench.listener.wait_until([](const Watcher& each) { return each.commits_ > 5; }));
    bench.spool->stop();
    for (auto& thread : threads) thread.join();
    CHECK(only_closed);
    CHECK(bench.listener.messages_ == accepted);
    CHECK(bench.listener.in_order_);
  }
}
