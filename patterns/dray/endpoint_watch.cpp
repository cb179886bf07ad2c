#include "dray/endpoint_watch.hpp"

#include <algorithm>
#include <condition_variable>
#include <map>
#include <mutex>
#include <thread>

#include "dray/thread_traits.hpp"
#include "dray/transport/socket.hpp"

namespace dray {

struct EndpointWatch::State {
  State(EndpointWatchOptions options_in, std::function<void()> changed_in)
      : options(std::move(options_in)), changed(std::move(changed_in)) {}

  const EndpointWatchOptions options;
  const std::function<void()> changed;

  // Owned by the watch's thread (by start() before).
  std::map<std::string, std::set<std::string>> found;  // by endpoint
  std::set<std::string> failing;

  // Guarded by mutex.
  std::mutex mutex;
  std::condition_variable ending;
  std::map<std::string, std::string> addresses;
  bool stopping = false;
};

EndpointWatch::EndpointWatch(EndpointWatchOptions options, std::function<void()> changed)
    : state_(std::make_shared<State>(std::move(options), std::move(changed))) {}

EndpointWatch::~EndpointWatch() {
  stop();
}

std::map<std::string, std::string> EndpointWatch::addresses() const {
  const std::lock_guard lock(state_->mutex);
  return state_->addresses;
}

void EndpointWatch::start() {
  (void)resolve_all(*state_);
  const auto& endpoints = state_->options.endpoints;
  const bool names = std::any_of(endpoints.begin(), endpoints.end(), [](const auto& each) {
    return transport::endpoint_name(each).has_value();
  });
  // Not joined: it may be inside the resolver for as long as that likes.
  if (names)
    std::thread([state = state_] {
      name_thread("dray-names");
      run(state);
    }).detach();
}

void EndpointWatch::stop() {
  {
    const std::lock_guard lock(state_->mutex);
    state_->stopping = true;
  }
  state_->ending.notify_all();
}

bool EndpointWatch::resolve_all(State& state) {
  bool all = true;
  for (const auto& endpoint : state.options.endpoints) {
    const auto resolved = state.options.resolve(endpoint);
    if (!resolved.ok()) {
      all = false;
      if (state.failing.insert(endpoint).second) {
        state.options.log.warning(resolved.error().text() + "; trying again every " +
                                  std::to_string(state.options.again_after_failure.count()) +
                                  " ms");
      }
      continue;
    }
    state.failing.erase(endpoint);
    const bool secured = state.options.secured.count(endpoint) != 0;
    std::set<std::string> good;
    for (const auto& address : *resolved) {
      const auto fault = transport::endpoint_fault(address, secured);  // P9
      if (!fault) {
        good.insert(address);
      } else if (state.failing.insert(address).second) {
        state.options.log.error(endpoint + " is " + address + ", which is not used: " + *fault);
      }
    }
    state.found[endpoint] = std::move(good);
  }
  std::map<std::string, std::string> addresses;
  for (const auto& [endpoint, found] : state.found) {
    for (const auto& address : found) addresses.emplace(address, endpoint);
  }
  const std::lock_guard lock(state.mutex);
  state.addresses = std::move(addresses);
  return all;
}

void EndpointWatch::run(const std::shared_ptr<State>& state) {
  auto before = state->addresses;
  bool all = state->failing.empty();
  for (;;) {
    {
      std::unique_lock lock(state->mutex);
      state->ending.wait_for(lock, all ? state->options.every : state->options.again_after_failure,
                             [&] { return state->stopping; });
      if (state->stopping) return;
    }
    all = resolve_all(*state);
    std::map<std::string, std::string> now;
    {
      const std::lock_guard lock(state->mutex);
      if (state->stopping) return;
      now = state->addresses;
    }
    if (now == before) continue;
    for (const auto& [each, endpoint] : now) {
      if (before.count(each) == 0)
        state->options.log.info("a dispatcher's address is new: " + each);
    }
    for (const auto& [each, endpoint] : before) {
      if (now.count(each) == 0) state->options.log.info("a dispatcher's address is gone: " + each);
    }
    before = std::move(now);
    state->changed();
  }
}

}  // namespace dray
