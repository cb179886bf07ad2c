// Consumer: what a handler thread calls, whether the handler is behind the plugin border or in
// this program.
//
// Threading: one consumer object per handler thread. Failure: never throws; a fault is an Outcome.
#pragma once

#include <functional>
#include <memory>
#include <stop_token>
#include <string_view>

#include "dray/export.hpp"
#include "dray/handler.hpp"

namespace dray {

// One delivery as it reached this process.
struct ConsumerJob {
  std::string_view envelope;
  std::string_view group;
  Sequence sequence = 0;
  std::uint32_t attempt = 1;
  StepJournal* journal = nullptr;  // nothing: once() is refused
};

class DRAY_API Consumer {
 public:
  virtual ~Consumer() = default;
  virtual Outcome consume(const ConsumerJob& job, const std::stop_token& stop) = 0;
};

// One handling, as every host does it: an exception becomes an outcome, and follow-ups get the
// trace of their message.
DRAY_API Outcome handle_job(RawHandler& handler, const ConsumerJob& job,
                            const std::stop_token& stop, const Log& log);

// Makes the consumer of the next handler thread.
using ConsumerFactory = std::function<Result<std::unique_ptr<Consumer>>()>;

// A handler of this program, without the border: for embedding, tests and benchmarks.
DRAY_API std::unique_ptr<Consumer> consumer_of(std::unique_ptr<RawHandler> handler, Log log);

// A function as a handler: `Outcome function(const T&, Delivery&)`. All handler threads call the
// same one, so it must bear that.
template <typename T, typename Function>
ConsumerFactory handle_with(Function function, Log log = {}) {
  class FunctionHandler final : public Handler<T> {
   public:
    explicit FunctionHandler(Function wrapped) : function_(std::move(wrapped)) {}
    Outcome handle(const T& message, Delivery& delivery) override {
      return function_(message, delivery);
    }

   private:
    Function function_;
  };
  return [function = std::move(function), log]() -> Result<std::unique_ptr<Consumer>> {
    return consumer_of(std::make_unique<FunctionHandler>(function), log);
  };
}

}  // namespace dray
