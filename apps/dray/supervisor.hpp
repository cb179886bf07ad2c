// Supervisor: one child process per app; restarts them with back-off; stops them in order.
//
//   waiting --start--> running --exit 0 or 1, signal--> waiting (back-off doubles, reset after 5 s
//   up)
//                         |--exit 2: the config is wrong--> all stop, exit 2
//   SIGTERM: apps that own no spool drain first, then the owners; SIGKILL after their deadline.
//
// Threading: the main thread only; holds no ZeroMQ context. Children die with it (PDEATHSIG).
#pragma once

#include <string>
#include <vector>

#include "dray/config/config.hpp"
#include "dray/log.hpp"

namespace dray::app {

// Runs these apps until asked to stop. Returns the exit code.
int supervise(const config::Config& config, const std::vector<const config::AppConfig*>& apps,
              const Log& log);

// In a child: dies with the supervisor that started it. Call first in main.
void die_with_supervisor();

}  // namespace dray::app
