// Planted faults of the balancing cores: see dray/spool/planted_fault.hpp. A build with
// DRAY_PLANTED_FAULTS can leave out one rule of the protocol at a time, and the simulation of the
// cluster must notice (tests/simulation). In every other build planted() is constant false.
//
// Threading: set before anything runs.
#pragma once

namespace dray::balancing {

enum class Fault {
  kNone,
  kAttemptNotCounted,    // P4
  kUnsentCounts,         // P4: what could not be sent is no attempt
  kRetryAnsweredAgain,   // P4: a new delivery shows that the retry was taken
  kSuspectsInCompany,    // P4
  kLostNotReturned,      // P4: what a lost session held comes back
  kStaleResultAccepted,  // P3
  kNumberStands,         // P3: every grant has a number of its own
  kSettlingLost,         // P3: what is being settled does not come back
  kConfirmBeforeCommit,  // P5: a worker forgets only what is durable
  kResultNotRepeated,    // P5
  kHeldNotBelieved,      // P5: after a restart, what a session says that it holds
  kHeldNotReconciled,    // P2: what a session does not hold never arrived
  kGateIgnored,          // P5: after a restart, wait for every recorded session
  kSessionNotRecorded,   // P5: a session is durable before its first delivery
  kLeaseNotRenewed,      // a heartbeat renews the lease
  kWindowLeak,           // credit returns with the result
  kRoomNotSaid,          // who had no room says so when there is some
  kByeCrossed,           // what crosses a BYE is not held
  kKeyIgnored,           // P10: one message of a key at a time
  kRetryFreesKey,        // P10: a retry keeps its key's turn
  kKeysForgotten,        // P10: after a restart, what was granted has its key's turn
  kLiveOvertakes,        // P10: after a restart, what is older goes first
  kLostFreesKey,         // P10: what a lost session held keeps its key's turn
  kDueOvertakes,         // P10: a delayed message is behind what was published before it was due
  kPauseIgnored,         // a paused group gets nothing
  kPauseForgotten,       // a pause survives a restart
  kReplayForgotten,      // what is replayed is delivered
  kConcurrencyIgnored,   // no more unanswered deliveries than the group's limit
  kRateIgnored,          // no more deliveries than the group's rate
  kPriorityIgnored,      // high before normal before low
  kStepBeforeCommit,     // a step's function runs only when its beginning is durable
  kStepForgotten,        // a restart knows the steps of open messages
  kStepOfAnother,        // what another handling began is not one's own
  kStepNotUndone,        // a beginning that its worker never heard of did not happen
};

#ifdef DRAY_PLANTED_FAULTS
extern Fault planted_fault;
inline bool planted(Fault fault) {
  return planted_fault == fault;
}
#else
constexpr bool planted(Fault) {
  return false;
}
#endif

}  // namespace dray::balancing
