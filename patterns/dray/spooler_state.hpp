// What a Spooler is made of. For its own source files only.
#pragma once

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
};

inline Error spooler_stopped() {
  return Error{ErrorCode::kClosed, "the spool is stopped", "", 0};
}

}  // namespace dray
