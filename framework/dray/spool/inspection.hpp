// Looking at a spool from outside: what `dray spool inspect`, `verify` and `repair` do.
//
// inspect and verify only read, take no lock, and may run beside the process that serves the
// spool: what it frees or writes meanwhile is not damage.
//
// Threading: one thread. Failure: what cannot be read is a finding, not an error; errors are for
// folders that are no spools.
// Ownership: the Directory outlives the calls.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "dray/spool/checkpoint.hpp"
#include "dray/spool/segment_log.hpp"

namespace dray::spool {

struct CheckpointFinding {
  std::string file;
  bool good = false;
  std::uint64_t number = 0;
  Lsn lsn = 0;
  UtcTime at{};
};

struct SegmentFinding {
  std::string file;
  std::uint64_t number = 0;
  std::string status;  // "good", "damaged", "free", "current", "gone" (freed meanwhile)
  SegmentHeader header;
  Lsn last_lsn = 0;
  std::uint64_t records = 0;
  std::uint64_t messages = 0;
  std::uint64_t bytes = 0;         // that hold records
  std::uint64_t torn_bytes = 0;    // an unacknowledged tail; harmless
  bool header_rebuilt = false;     // from a checkpoint
  bool header_unreadable = false;  // and no checkpoint knows it
  std::vector<DamagedRange> damaged;
};

struct SpoolFindings {
  std::string directory;
  Uuid spool_id;
  bool served = false;  // a process holds its lock
  bool newer = false;   // some of it was made by a newer version of Dray
  // Files that cannot be read just now, or not by this user: that says nothing about what is in
  // them.
  std::vector<std::string> unreadable;
  std::vector<CheckpointFinding> checkpoints;
  std::optional<Checkpoint> best;  // what the newest good checkpoint says
  std::vector<SegmentFinding> segments;
  std::vector<DamagedRange> missing;     // segments that a checkpoint needs and that are not there
  std::vector<std::string> quarantined;  // files kept aside
  std::vector<std::string> foreign;      // files that a spool does not make
  std::vector<std::string> in_the_way;   // named like a segment, and none: no start with them
  std::vector<std::string> faults;       // anything else that is wrong
  std::uint64_t lost_by_repair = 0;      // positions under the records that repair wrote

  // Every acknowledged record can be read, and both checkpoints are good.
  bool good() const;
};

// Called now and then with the share that is done, 0 to 1.
using Progress = std::function<void(double share)>;

// kNotFound if this is no spool. `read_records`: look at every record; else at headers only.
Result<SpoolFindings> look_at_spool(Directory& directory, bool read_records,
                                    const Progress& progress);

struct RepairReport {
  std::vector<std::string> done;  // what was changed, in words
  SpoolFindings before;
};

// Whether there is any segment or checkpoint.
bool holds_spool(Directory& directory);

// Writes a filler over every damaged range, so that what is lost is said once and for all; the
// damaged file is kept (kept_name()). kBusy while the spool is served, kConflict with a file that
// must be moved away first.
Result<RepairReport> repair_spool(Directory& directory, const Progress& progress);

}  // namespace dray::spool
