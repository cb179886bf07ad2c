// Node: one app of the config in this process: its spool, its worker, its source.
//
//   starting --all made--> running --SIGTERM, SIGINT, source ended, failure--> draining --> exit
//
// Threading: runs on the main thread, which takes the signals; parts have their own threads.
// Failure: exit codes 0 (asked to stop), 1 (failed while running; worth a restart), 2 (the config
// or a plugin is wrong; a restart cannot help).
#pragma once

#include <string>
#include <vector>

#include "dray/config/config.hpp"
#include "dray/log.hpp"
#include "dray/plugin/plugin_library.hpp"

namespace dray::app {

inline constexpr int kExitFailed = 1;
inline constexpr int kExitWrong = 2;

// Blocks the signals that take_signals() reads; call before any thread is started.
void block_signals();

int run_app(const config::Config& config, const config::AppConfig& app, const Log& log);

// Serves a spool alone, with the groups it has, until asked to stop.
struct RunSpool {
  std::string directory;
  std::string bind;    // empty: ipc://DIRECTORY/dray.sock
  std::string secret;  // a .secret file: with CURVE; empty: without
  std::string allow;   // its allow list
};
int run_spool(const RunSpool& wanted, const Log& log);

// What the config says of the app's handler, and else its author. REQUIRES: app.handler.
Result<HandlerPolicy> effective_policy(const config::AppConfig& app, const PluginLibrary& plugin);

// Folders searched for plugins: those of the config, then that of this program, then
// that of installed plugins.
std::vector<std::string> plugin_folders(const config::Config& config);

}  // namespace dray::app
