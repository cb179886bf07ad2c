// The commands about queues, as the command line says them.
//
// Threading: main thread. Ownership: what is given outlives the parsing.
#pragma once

#include <CLI/CLI.hpp>
#include <string>

#include "dray/queue_commands.hpp"

namespace dray::app {

// Groups, dead letters, replay and single messages.
struct QueueArguments {
  DeadChoice dead;
  ReplayWish replay;
  std::string id, body;
  std::string timeout = "1m";
  std::uint64_t limit = 100, after = 0;
  std::uint64_t sequence = 0;
  std::string step, value;
  bool not_done = false;
  bool signatures = false;
  bool dry_run = false;
};

// Refuses what is not a whole number from 1 on.
CLI::Validator at_least_one();
void add_spool_choice(CLI::App& command, SpoolChoice& choice);
// pause, resume, drain, group, dead, replay, show, confirm-clock
void add_queue_commands(CLI::App& cli, QueueArguments& given, SpoolChoice& choice, bool& json,
                        int& code);

}  // namespace dray::app
