// Steps: parts of a handling that are to take effect once (Delivery::once), and where their
// beginning and end are recorded: in the spool that the message came from.
//
//   begin --recorded--> the function runs --done(value)--> recorded: never runs again
//     ^                        |
//     +-----not done-----------+  (StepNotDone: it certainly had no effect)
//
// A step that began and whose end was never recorded may have taken effect, or not: nobody can
// know. What is done about it then is the caller's choice (IfUnknown).
//
// Threading: a journal belongs to one handling. Failure: as each says.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>

#include "dray/export.hpp"

namespace dray {

inline constexpr std::size_t kStepNameBytesMax = 128;
inline constexpr std::size_t kStepValueBytesMax = 4'096;  // as MessagePack
inline constexpr std::size_t kStepsMax = 32;              // of one message for one group

// What is done about a step that began in an earlier delivery, and whose end is not recorded.
enum class IfUnknown : std::uint8_t {
  kAgain,  // it runs again: it may take effect twice
  kAsk,    // the message becomes a dead letter that says so; `dray dead decide` settles it
};

// Thrown by the function of a step: it took no effect, for certain. It may begin anew.
class DRAY_API StepNotDone : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
  ~StepNotDone() override;
};

// Out of once(): the step may not run now, or its end cannot be recorded. The lease is lost, the
// handling is asked to stop, the spool is full. Let it pass: the attempt fails.
class DRAY_API StepRefused : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
  ~StepRefused() override;
};

// The same for want of room in the spool: nobody's fault. Let it pass: the message comes again
// after a while, and no attempt is counted.
class DRAY_API StepBusy : public StepRefused {
 public:
  using StepRefused::StepRefused;
  ~StepBusy() override;
};

// Out of once(): see IfUnknown::kAsk. Let it pass; what the handler returns instead does not count,
// unless it is done().
class DRAY_API StepUndecided : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
  ~StepUndecided() override;
};

// As on the wire and in the log.
enum class StepCall : std::uint8_t { kBegin = 0, kDone = 1, kNotDone = 2 };
enum class StepAnswer : std::uint8_t {
  kRecorded = 0,  // of a beginning: the function may run
  kDoneBefore = 1,
  kUnknown = 2,  // it began in an earlier handling; it may run, and need not be begun again
  kRefused = 3,
  kBusy = 4,  // no room now
};

class DRAY_API StepJournal {
 public:
  struct Reply {
    StepAnswer answer = StepAnswer::kRefused;
    std::string value;  // kDoneBefore: what was recorded; kRefused, kBusy: why
  };
  virtual ~StepJournal() = default;
  // Returns when it is durable, or refused. Never throws.
  virtual Reply call(StepCall what, std::string_view step, std::string_view value) = 0;
};

// Why `step` is no name of a step; empty if it is one.
DRAY_API std::string step_name_fault(std::string_view step);

}  // namespace dray
