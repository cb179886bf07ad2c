// HandlerPolicy: how the handler of an app is run, as far as somebody said it.
//
// Threading: values. Failure: bounds are checked by who takes them (PluginLibrary, config).
#pragma once

#include <cstdint>
#include <optional>

#include "dray/clock.hpp"

namespace dray {

// What the author of a handler thinks best for it. The app's config overrides each; what neither
// says: 1 thread, 8 attempts, 30 s, back-off from 1 s to 10 min with a jitter of 0.2.
struct HandlerPolicy {
  std::optional<std::uint32_t> threads = {};       // 1 to 1,024
  std::optional<std::uint32_t> max_attempts = {};  // 1 to 1,000,000
  std::optional<Milliseconds> timeout = {};        // of one handling; 0: none
  std::optional<Milliseconds> retry_initial = {};
  std::optional<Milliseconds> retry_max = {};
  std::optional<double> retry_jitter = {};  // 0 to 1

  // What is said here, and else there.
  HandlerPolicy over(const HandlerPolicy& other) const {
    const auto first = [](const auto& here, const auto& there) { return here ? here : there; };
    return {first(threads, other.threads),     first(max_attempts, other.max_attempts),
            first(timeout, other.timeout),     first(retry_initial, other.retry_initial),
            first(retry_max, other.retry_max), first(retry_jitter, other.retry_jitter)};
  }
};

}  // namespace dray
