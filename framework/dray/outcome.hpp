// Outcome: how a delivery ends, as its handler says.
//
// Threading: values.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "dray/clock.hpp"
#include "dray/fields.hpp"
#include "dray/message.hpp"
#include "dray/result.hpp"

namespace dray {

// How a delivery ends. Made by done(), retry(), snooze(), reject().
class [[nodiscard]] Outcome {
 public:
  enum class Kind { kDone = 0, kRetry = 1, kSnooze = 2, kReject = 3 };

  // A message to the spool of origin, in the commit of this settlement: either both are durable
  // or none. At most 64. REQUIRES: kind() == kDone.
  template <typename T>
  Outcome publish(std::string topic, const T& body, PublishOptions options = {}) && {
    DRAY_ASSERT(kind_ == Kind::kDone);
    follow_ups_.push_back(Draft{std::move(topic), to_bytes(body), std::move(options)});
    return std::move(*this);
  }

  // For hosts that carry an outcome from elsewhere.
  static Outcome make(Kind kind, std::string reason, std::optional<Milliseconds> delay,
                      std::vector<Draft> follow_ups) {
    Outcome outcome(kind, std::move(reason), delay);
    outcome.follow_ups_ = std::move(follow_ups);
    return outcome;
  }

  Kind kind() const { return kind_; }
  const std::string& reason() const { return reason_; }
  // Snooze: how long. Retry: the handler's wish, or nothing for the policy's back-off.
  std::optional<Milliseconds> delay() const { return delay_; }
  const std::vector<Draft>& follow_ups() const { return follow_ups_; }
  // For middleware that adds to them. They are published with done() only; with anything else the
  // reason says that they were not.
  std::vector<Draft>& follow_ups() { return follow_ups_; }

 private:
  friend Outcome done();
  friend Outcome retry(std::string reason, std::optional<Milliseconds> after);
  friend Outcome snooze(Milliseconds delay, std::string reason);
  friend Outcome reject(std::string reason);
  Outcome(Kind kind, std::string reason, std::optional<Milliseconds> delay)
      : kind_(kind), reason_(std::move(reason)), delay_(delay) {}

  Kind kind_;
  std::string reason_;
  std::optional<Milliseconds> delay_;
  std::vector<Draft> follow_ups_;
};

// Handled: settled for this group.
inline Outcome done() {
  return {Outcome::Kind::kDone, "", std::nullopt};
}
// A failed attempt: again after `after`, or by the policy's back-off.
inline Outcome retry(std::string reason, std::optional<Milliseconds> after = std::nullopt) {
  return {Outcome::Kind::kRetry, std::move(reason), after};
}
// Not now, and no fault: again after `delay`, without counting an attempt. At most 30 days here and
// for a retry; more counts as that.
inline Outcome snooze(Milliseconds delay, std::string reason = "") {
  return {Outcome::Kind::kSnooze, std::move(reason), delay};
}
// Will never work: a dead letter at once.
inline Outcome reject(std::string reason) {
  return {Outcome::Kind::kReject, std::move(reason), std::nullopt};
}

// "done", "retry", "snooze", "reject"
inline std::string_view outcome_name(Outcome::Kind kind) {
  constexpr std::string_view kNames[] = {"done", "retry", "snooze", "reject"};
  return kNames[static_cast<std::size_t>(kind)];
}

}  // namespace dray
