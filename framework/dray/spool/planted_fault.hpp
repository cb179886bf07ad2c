// Planted faults: the test of the tests. A build of the spool with DRAY_PLANTED_FAULTS can leave
// out one safeguard at a time, and the simulation must notice (tests/simulation). In every other
// build planted() is constant false and costs nothing.
//
// Threading: set before anything runs.
#pragma once

namespace dray::spool {

enum class Fault {
  kNone,
  kNoCommitSync,          // S1: receipts before the sync
  kNoHeaderSync,          // S4: a segment used before its header is on the disk
  kNoSegmentNameSync,     // S4: a segment used before its name is on the disk
  kNoSealSync,            // S3: a segment sealed before its last records are on the disk
  kNoTailRewrite,         // S7: the page cache believed after a crash
  kNoRecordCrc,           // S2: payloads not checked
  kNoRecordHeaderCrc,     // S2: records' headers not checked
  kDamageIsTornTail,      // S3: the durable_lsn rule ignored
  kTornTailIsDamage,      // S3: every invalid tail called damage
  kNoLatch,               // S5: going on after a failed write
  kLaterSyncCounts,       // S5: receipts for what was written beside a sync that failed
  kUnitsTorn,             // S6: part of a unit counts
  kNoCheckpointSync,      // S8: a checkpoint named before it is on the disk
  kNoCheckpointNameSync,  // S8: segments freed before the checkpoint's name is on the disk
  kNoCheckpointCrc,       // S8: a damaged checkpoint believed
  kCheckpointAhead,       // S8: a checkpoint of records that are not durable
  kOneCheckpointFrees,    // S9: one covering checkpoint frees a segment
  kFreedWithOpen,         // S9: a segment freed though a message in it is open
  kFreedBeforeCopy,       // S9: a segment freed before its copies are committed
  kAttemptsForgotten,     // P4: retries not replayed
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

}  // namespace dray::spool
