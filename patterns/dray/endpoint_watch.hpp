// EndpointWatch: keeps the addresses behind a worker's endpoints up to date: names are resolved
// again and again, so that dispatchers come, go and move without a restart of their workers.
//
// Threading: a thread of its own, because resolving may block for seconds; addresses() from any
// thread. start and stop from the owner's; stop does not wait for a resolver that blocks. Failure:
// a name that does not resolve keeps the addresses that it had, and is tried again soon; it is
// logged once until it resolves again. Ownership: `changed` may be called once more while stop()
// returns: it must keep alive what it needs.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "dray/clock.hpp"
#include "dray/log.hpp"
#include "dray/transport/resolver.hpp"

namespace dray {

struct EndpointWatchOptions {
  std::vector<std::string> endpoints;
  transport::Resolve resolve = transport::resolve_endpoint;
  std::set<std::string> secured = {};  // by CURVE: their addresses may lie beyond this machine
  Milliseconds every{30'000};
  Milliseconds again_after_failure{2'000};
  Log log = {};
};

class EndpointWatch {
 public:
  // `changed` is called on the watch's thread when addresses() became others.
  EndpointWatch(EndpointWatchOptions options, std::function<void()> changed);
  ~EndpointWatch();
  EndpointWatch(const EndpointWatch&) = delete;
  EndpointWatch& operator=(const EndpointWatch&) = delete;

  // Resolves once here, so that addresses() is complete; then, if there are names, on and on.
  void start();
  // Idempotent.
  void stop();

  // All addresses of all endpoints, and the endpoint that each came from (the first, if several).
  std::map<std::string, std::string> addresses() const;

 private:
  struct State;
  // True if all resolved.
  static bool resolve_all(State& state);
  static void run(const std::shared_ptr<State>& state);

  std::shared_ptr<State> state_;  // the thread's too
};

}  // namespace dray
