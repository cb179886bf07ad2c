// The commands about queues: groups, dead letters, replay, single messages. All speak to the
// process that serves the spool.
//
// Threading: main thread. Each returns the exit code and prints to standard output (results) and
// standard error (faults).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "dray/commands.hpp"

namespace dray::app {

// Which dead letters.
struct DeadChoice {
  std::string group;
  std::vector<std::uint64_t> sequences;
  bool all = false;
  std::string topic, cause, signature;
};

int dead_list_command(const SpoolChoice& choice, const DeadChoice& dead, std::uint64_t after,
                      std::uint64_t limit, bool signatures, bool json);
int dead_show_command(const SpoolChoice& choice, const std::string& group, std::uint64_t sequence,
                      bool json);
// `action`: "retry" or "drop".
int dead_change_command(const SpoolChoice& choice, const DeadChoice& dead,
                        const std::string& action, bool dry_run, bool json);
int dead_edit_command(const SpoolChoice& choice, const std::string& group, std::uint64_t sequence,
                      const std::string& body, bool json);

// `value`: JSON of what the step returned; empty: it took no effect.
int dead_decide_command(const SpoolChoice& choice, const std::string& group, std::uint64_t sequence,
                        const std::string& step, const std::string& value, bool json);

// `action`: "pause", "resume" or "drop".
int group_command(const SpoolChoice& choice, const std::string& group, const std::string& action,
                  bool json);
int group_list_command(const SpoolChoice& choice, bool json);
// Pauses the group and waits until its workers hold nothing.
int drain_command(const SpoolChoice& choice, const std::string& group, const std::string& timeout,
                  bool json);

struct ReplayWish {
  std::string group;
  std::string since;  // "2h", or "2026-11-26T07:00:00Z"; empty: all that is still there
  std::string where;  // "field=value"
  bool dry_run = false;
};
int replay_command(const SpoolChoice& choice, const ReplayWish& wish, bool json);

int show_command(const SpoolChoice& choice, const std::string& id, bool json);
int confirm_clock_command(const SpoolChoice& choice);

}  // namespace dray::app
