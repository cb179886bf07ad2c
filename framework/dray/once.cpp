// Delivery::once: the parts that do not depend on the type of the value.
#include <algorithm>

#include "dray/handler.hpp"

namespace dray {

StepNotDone::~StepNotDone() = default;
StepRefused::~StepRefused() = default;
StepBusy::~StepBusy() = default;
StepUndecided::~StepUndecided() = default;

std::string step_name_fault(std::string_view step) {
  if (step.empty() || step.size() > kStepNameBytesMax) {
    return "the name of a step has 1 to " + std::to_string(kStepNameBytesMax) + " bytes";
  }
  return "";
}

StepJournal::Reply Delivery::call_journal(StepCall what, std::string_view step,
                                          std::string_view value) {
  if (journal_ == nullptr) {
    throw StepRefused("this launcher keeps no journal of steps; run a newer one");
  }
  auto reply = journal_->call(what, step, value);
  if (reply.answer == StepAnswer::kBusy) {
    throw StepBusy("step '" + std::string(step) + "': " + reply.value);
  }
  if (reply.answer == StepAnswer::kRefused) {
    throw StepRefused("step '" + std::string(step) + "': " + reply.value);
  }
  return reply;
}

std::optional<std::string> Delivery::begin_step(std::string_view step, IfUnknown if_unknown) {
  if (const auto fault = step_name_fault(step); !fault.empty()) throw std::invalid_argument(fault);
  if (in_step_) throw std::logic_error("a step runs already: steps are not nested");
  StepJournal::Reply reply;
  const bool begun = std::find(open_steps_.begin(), open_steps_.end(), step) != open_steps_.end();
  if (begun) {
    reply.answer = StepAnswer::kUnknown;  // it failed before in this very handling
  } else {
    reply = call_journal(StepCall::kBegin, step, {});
  }
  if (reply.answer == StepAnswer::kDoneBefore) return std::move(reply.value);
  if (reply.answer == StepAnswer::kUnknown && if_unknown == IfUnknown::kAsk) {
    undecided_ = std::string(kNeedsDecision) + ": step '" + std::string(step) +
                 "' began before, and whether it took effect is not known";
    throw StepUndecided(undecided_);
  }
  if (!begun) open_steps_.emplace_back(step);
  in_step_ = true;
  return std::nullopt;
}

void Delivery::end_step(std::string_view step, std::string_view value) {
  in_step_ = false;
  if (value.size() > kStepValueBytesMax) {
    throw std::length_error("the value of step '" + std::string(step) + "' has " +
                            std::to_string(value.size()) + " bytes; at most " +
                            std::to_string(kStepValueBytesMax) + " can be kept");
  }
  (void)call_journal(StepCall::kDone, step, value);
  std::erase(open_steps_, step);
}

void Delivery::withdraw_step(std::string_view step) {
  in_step_ = false;
  (void)call_journal(StepCall::kNotDone, step, {});
  std::erase(open_steps_, step);
}

void Delivery::no_such_value(std::string_view step, const Error& error) {
  throw std::runtime_error("the recorded value of step '" + std::string(step) +
                           "' is of another type: " + error.text());
}

}  // namespace dray
