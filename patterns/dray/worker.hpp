// Worker: takes messages of one group from any number of dispatchers and runs handlers.
//
//   auto worker = dray::Worker::start({.group = "email", .endpoints = {"ipc://..."}},
//                                     [] { return dray::consumer_of(...); });
//
// Promises: P3 to P5 as balancing/worker_core.hpp says.
// Threading: one thread owns the sockets; `threads` handler threads, each with a consumer of its
// own; one more resolves names, if there are any. start, drain, stop from one thread; start
// resolves once, and may block for as long as the resolver does. Failure: start returns the first
// consumer's error, or that of an endpoint that cannot be; a name that does not resolve yet is
// tried again. A handler that outlives its time-out and a grace period is written off: its attempt
// fails and another thread takes its place; when half of the first threads are written off,
// on_exhausted is called once, and the process should drain and exit. Ownership: owns its threads
// and sockets. A written-off thread is left running: only the end of the process ends it; the
// Worker's shared parts stay alive for it.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "dray/consumer.hpp"
#include "dray/export.hpp"
#include "dray/log.hpp"

namespace dray {

struct WorkerRetryPolicy {
  std::uint32_t max_attempts = 8;
  Milliseconds initial{1'000};
  Milliseconds max{600'000};
  double jitter = 0.2;
};

struct WorkerSettings {
  std::string name = "worker";
  std::string group;
  // "ipc://path", "tcp://127.0.0.1:7000"; a name stands for all addresses that it resolves to, now
  // and later.
  std::vector<std::string> endpoints;
  Milliseconds resolve_every{30'000};
  // CURVE keys of this worker, and the public keys of the endpoints above that use CURVE: those may
  // lie beyond this machine. The others are connected to in plain.
  struct Keys {
    std::string public_key, secret_key;
    std::map<std::string, std::string> servers;
  };
  std::optional<Keys> keys = {};
  // For tests: what resolves them, instead of the system.
  std::function<Result<std::vector<std::string>>(const std::string& endpoint)> resolve = {};
  std::uint32_t threads = 1;
  std::uint32_t window_max = 8'192;   // at most 1,000,000
  std::uint32_t window_fixed = 0;     // 0: sized by itself; for measuring what that costs
  Milliseconds timeout{30'000};       // of one handling; 0: none
  Milliseconds timeout_grace{5'000};  // from the stop request to being written off
  WorkerRetryPolicy retry = {};
  std::function<void()> on_exhausted = {};
  Log log = {};
};

struct WorkerCounters {
  std::uint64_t handled = 0;  // outcomes of any kind
  std::uint64_t done = 0;
  std::uint64_t failed = 0;  // retry, reject
  std::uint64_t written_off = 0;
  std::uint32_t welcomed = 0;     // dispatchers that accepted this worker
  std::uint32_t dispatchers = 0;  // addresses that it connects to
};

class DRAY_API Worker {
 public:
  static Result<std::unique_ptr<Worker>> start(WorkerSettings settings, ConsumerFactory factory);
  ~Worker();

  // No new work; what did not start goes back; waits until all is answered and confirmed, at most
  // `deadline`. At the deadline handlers are asked to stop. True if nothing was left.
  bool drain(Milliseconds deadline);
  // Ends without waiting for handlers longer than for their current message to return.
  void stop();
  WorkerCounters counters() const;

 private:
  struct State;
  explicit Worker(std::shared_ptr<State> state);
  std::shared_ptr<State> state_;
};

}  // namespace dray
