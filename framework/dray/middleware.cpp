#include "dray/middleware.hpp"

#include <chrono>
#include <string>

#include "dray/handler.hpp"

namespace dray {

Outcome Next::operator()() const {
  if (rest_.empty()) return handler_.handle_body(body_, delivery_);
  return rest_.front()->around(delivery_, Next(rest_.subspan(1), handler_, body_, delivery_));
}

Outcome LogHandling::around(Delivery& delivery, const Next& next) {
  const auto begun = std::chrono::steady_clock::now();
  const auto took = [begun] {
    const std::chrono::duration<double, std::milli> passed =
        std::chrono::steady_clock::now() - begun;
    return std::to_string(passed.count());
  };
  try {
    auto outcome = next();
    const bool failed =
        outcome.kind() == Outcome::Kind::kRetry || outcome.kind() == Outcome::Kind::kReject;
    delivery.log().write(failed ? LogLevel::kWarning : LogLevel::kInfo, "handled",
                         {{"topic", std::string(delivery.topic())},
                          {"outcome", std::string(outcome_name(outcome.kind()))},
                          {"reason", outcome.reason()},
                          {"took_ms", took()}});
    return outcome;
  } catch (const std::exception& exception) {
    delivery.log().warning("threw", {{"topic", std::string(delivery.topic())},
                                     {"reason", exception.what()},
                                     {"took_ms", took()}});
    throw;
  }
}

}  // namespace dray
