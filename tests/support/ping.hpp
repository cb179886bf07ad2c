// Ping: a message, a handler that notes what it saw, and spooler and worker around them with real
// threads, sockets and files.
//
// Threading: as each says. Failure: Catch2 failures.
#pragma once

#include <catch2/catch.hpp>
#include <condition_variable>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "dray/spooler.hpp"
#include "dray/worker.hpp"
#include "support/temporary_folder.hpp"

namespace dray::test {

using namespace std::chrono_literals;

struct Ping {
  std::uint64_t number = 0;
  std::string text;
  DRAY_FIELDS(number, text)
};

// Counts what it saw, and runs `what` for each message.
struct Seen {
  std::mutex mutex;
  std::map<std::uint64_t, int> times;
  std::condition_variable changed;
  std::function<Outcome(const Ping&, Delivery&)> what;

  std::size_t count() { return snapshot().size(); }
  std::map<std::uint64_t, int> snapshot() {
    const std::lock_guard lock(mutex);
    return times;
  }
};

class SeenHandler final : public Handler<Ping> {
 public:
  explicit SeenHandler(Seen& seen) : seen_(seen) {}
  Outcome handle(const Ping& ping, Delivery& delivery) override {
    {
      const std::lock_guard lock(seen_.mutex);
      ++seen_.times[ping.number];
      seen_.changed.notify_all();
    }
    return seen_.what ? seen_.what(ping, delivery) : done();
  }

 private:
  Seen& seen_;
};

inline std::unique_ptr<Worker> start_worker(const std::string& group, const std::string& endpoint,
                                            Seen& seen, WorkerSettings settings = {}) {
  settings.group = group;
  settings.endpoints = {endpoint};
  settings.retry.initial = 10ms;
  settings.retry.max = 20ms;
  auto worker = Worker::start(settings, [&seen]() -> Result<std::unique_ptr<Consumer>> {
    return consumer_of(std::make_unique<SeenHandler>(seen), Log());
  });
  REQUIRE(worker.ok());
  return std::move(*worker);
}

inline SpoolerOptions options_in(const TemporaryFolder& folder,
                                 std::vector<SpoolerGroup> groups = {{"email", {"ping"}}}) {
  SpoolerOptions options;
  options.directory = folder / "spool";
  options.bind = "ipc://" + (folder / "s");
  options.groups = std::move(groups);
  options.lease = 2s;
  options.reconnect_grace = 200ms;
  return options;
}

inline std::unique_ptr<Spooler> open_spooler(const SpoolerOptions& options) {
  auto spooler = Spooler::open(options);
  INFO((spooler.ok() ? std::string() : spooler.error().text()));
  REQUIRE(spooler.ok());
  return std::move(*spooler);
}

// Polls the status until `ready` says yes; the bound is there to fail, not to pace.
inline SpoolGroupStatus wait_for(Spooler& spooler, const std::string& group,
                                 const std::function<bool(const SpoolGroupStatus&)>& ready) {
  const auto deadline = std::chrono::steady_clock::now() + 20s;
  for (;;) {
    auto status = spooler.status();
    REQUIRE(status.ok());
    for (const auto& each : status->groups) {
      CHECK(each.accepted == each.pending + each.done + each.dead + each.expired + each.dropped +
                                 each.damaged);  // P2
      if (each.name != group) continue;
      if (ready(each)) return each;
      INFO("accepted " << each.accepted << " pending " << each.pending << " done " << each.done
                       << " dead " << each.dead << " in flight " << each.in_flight << " workers "
                       << each.workers);
      REQUIRE(std::chrono::steady_clock::now() < deadline);
    }
    std::this_thread::yield();
  }
}

inline bool settled(const SpoolGroupStatus& status) {
  return status.pending == 0;
}

}  // namespace dray::test
