// queue_node: a producer and a worker for tests that hurt the network between them.
//
//   queue_node producer DIR ENDPOINT LEASE_MS GRACE_MS
//       says "ready", then does what standard input says:
//         publish FIRST COUNT   messages with these numbers; says "receipt N" for each
//         status                says "status DONE PENDING DEAD WORKERS IN_FLIGHT STALE"
//       ends well at the end of its input
//   queue_node worker ENDPOINT THREADS HANDLE_MS
//       says "start N NS" and "end N NS" for each handling, NS of CLOCK_MONOTONIC; drains at
//       SIGTERM
//
// Threading: lines of all threads are whole: one write each.
#include <signal.h>
#include <time.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <sstream>
#include <thread>

#include "dray/spooler.hpp"
#include "dray/standard_error_log.hpp"
#include "dray/worker.hpp"

using namespace dray;

namespace {

struct Numbered {
  std::uint64_t number = 0;
  DRAY_FIELDS(number)
};

void say(const std::string& line) {
  const std::string whole = line + "\n";
  if (write(STDOUT_FILENO, whole.data(), whole.size()) < 0) _exit(4);
}

std::string stamp() {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return std::to_string(now.tv_sec * 1'000'000'000LL + now.tv_nsec);
}

int fail(const Error& error) {
  std::fprintf(stderr, "%s\n", error.text().c_str());
  return 1;
}

class Handle final : public Handler<Numbered> {
 public:
  explicit Handle(Milliseconds takes) : takes_(takes) {}
  Outcome handle(const Numbered& message, Delivery&) override {
    const std::string number = std::to_string(message.number);
    say("start " + number + " " + stamp());
    std::this_thread::sleep_for(takes_);
    say("end " + number + " " + stamp());
    return done();
  }

 private:
  Milliseconds takes_;
};

int produce(char** arguments) {
  SpoolerOptions options;
  options.directory = arguments[0];
  options.bind = arguments[1];
  options.lease = Milliseconds(std::atoi(arguments[2]));
  options.reconnect_grace = Milliseconds(std::atoi(arguments[3]));
  options.groups = {{"g", {"numbered"}}};
  options.on_failure = [](const Error& error) {
    std::fprintf(stderr, "%s\n", error.text().c_str());
    _exit(3);
  };
  auto spooler = Spooler::open(options);
  if (!spooler.ok()) return fail(spooler.error());
  say("ready");
  std::string line;
  while (std::getline(std::cin, line)) {
    std::istringstream words(line);
    std::string command;
    std::uint64_t first = 0;
    std::uint64_t count = 0;
    words >> command >> first >> count;
    for (std::uint64_t number = first; command == "publish" && number < first + count; ++number) {
      (*spooler)->publish_async("numbered", Numbered{number}, {}, [number](const auto& receipt) {
        if (receipt.ok()) say("receipt " + std::to_string(number));
      });
    }
    if (command != "status") continue;
    const auto status = (*spooler)->status();
    if (!status.ok()) return fail(status.error());
    const auto& group = status->groups.front();
    say("status " + std::to_string(group.done) + " " + std::to_string(group.pending) + " " +
        std::to_string(group.dead) + " " + std::to_string(group.workers) + " " +
        std::to_string(group.in_flight) + " " + std::to_string(status->stale_results));
  }
  (*spooler)->stop();
  return 0;
}

int work(char** arguments) {
  const char* wanted = std::getenv("DRAY_LOG");
  const std::string log_level = wanted == nullptr ? "error" : wanted;
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigprocmask(SIG_BLOCK, &signals, nullptr);
  WorkerSettings settings;
  settings.group = "g";
  settings.endpoints = {arguments[0]};
  settings.log = standard_error_log("worker", log_level_of(log_level));
  settings.threads = static_cast<std::uint32_t>(std::atoi(arguments[1]));
  const Milliseconds takes(std::atoi(arguments[2]));
  auto worker = Worker::start(settings, [takes]() -> Result<std::unique_ptr<Consumer>> {
    return consumer_of(std::make_unique<Handle>(takes), Log());
  });
  if (!worker.ok()) return fail(worker.error());
  say("ready");
  int signal = 0;
  sigwait(&signals, &signal);
  const bool in_time = (*worker)->drain(Milliseconds(10'000));
  (*worker)->stop();
  return in_time ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string role = argc > 1 ? argv[1] : "";
  if (role == "producer" && argc == 6) return produce(argv + 2);
  if (role == "worker" && argc == 5) return work(argv + 2);
  std::fprintf(stderr, "see the top of queue_node.cpp\n");
  return 2;
}
