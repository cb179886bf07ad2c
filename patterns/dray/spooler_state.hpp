// What a Spooler is made of. For its own source files only.
#pragma once

#include <map>

#include "dray/balancing/dispatcher.hpp"
#include "dray/spooler.hpp"

namespace dray {

struct Spooler::State {
  SpoolerOptions options;
  SystemClock clock;
  transport::Context context;
  std::unique_ptr<Directory> directory;
  std::unique_ptr<spool::Spool> spool;
  std::unique_ptr<transport::Authenticator> authenticator;
  std::unique_ptr<balancing::Dispatcher> dispatcher;
  std::string endpoint;  // with the port that was chosen for "tcp://127.0.0.1:*"
  bool stopped = false;

  // Of the dispatcher's thread: what was found, and when it may be looked for again.
  struct Oldest {
    std::optional<std::int64_t> ms;
    SteadyTime again{};
  };
  std::map<spool::GroupId, Oldest> oldest;
  // See SpoolGroupStatus::oldest_ms. Whoever asks all the time takes 2 % of the thread's.
  std::optional<std::int64_t> oldest_of(balancing::Dispatcher::Desk& desk, spool::GroupId group);
};

inline Error spooler_stopped() {
  return Error{ErrorCode::kClosed, "the spool is stopped", "", 0};
}

inline Error no_group(const std::string& group) {
  return Error{ErrorCode::kNotFound, "this spool has no group '" + group + "'", "", 0};
}

// One past what the log has now.
Sequence end_of(const spool::SegmentLog& log);
// Where a search for what was published at `since` begins.
Sequence first_since(const spool::SegmentLog& log, UtcTime since);
std::vector<StepLife> steps_of(const spool::GroupState& state, Sequence sequence);

}  // namespace dray
