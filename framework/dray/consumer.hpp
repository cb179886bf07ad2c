// Consumer: what a handler thread calls, whether the handler is behind the plugin border or in
// this program.
//
// Threading: one consumer object per handler thread. Failure: never throws; a fault is an Outcome.
#pragma once

#include <functional>
#include <memory>
#include <stop_token>
#include <string_view>

#include "dray/handler.hpp"

namespace dray {

// One delivery as it reached this process.
struct ConsumerJob {
  std::string_view envelope;
  std::string_view group;
  Sequence sequence = 0;
  std::uint32_t attempt = 1;
};

class Consumer {
 public:
  virtual ~Consumer() = default;
  virtual Outcome consume(const ConsumerJob& job, const std::stop_token& stop) = 0;
};

// Makes the consumer of the next handler thread.
using ConsumerFactory = std::function<Result<std::unique_ptr<Consumer>>()>;

// A handler of this program, without the border: for embedding, tests and benchmarks.
std::unique_ptr<Consumer> consumer_of(std::unique_ptr<RawHandler> handler, Log log);

}  // namespace dray
