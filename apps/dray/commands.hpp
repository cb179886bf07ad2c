// The commands that look at a config or speak to a served spool.
//
// Threading: main thread. Each returns the exit code and prints to standard output (results) and
// standard error (faults).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace dray::app {

// A spool named on the command line: its directory, or a config file and the spool's name (not
// needed if the file has one spool).
struct SpoolChoice {
  std::string target;
  std::string spool;
};

int check_command(const std::string& file);
int run_command(const std::string& file, const std::vector<std::string>& apps);
int status_command(const SpoolChoice& choice, bool json);
int publish_command(const SpoolChoice& choice, const std::string& topic, const std::string& body,
                    const std::string& key, const std::string& dedup);
int dead_list_command(const SpoolChoice& choice, const std::string& group, std::uint64_t limit,
                      bool json);
// `action`: "retry" or "drop".
int dead_change_command(const SpoolChoice& choice, const std::string& group,
                        const std::string& action, const std::vector<std::uint64_t>& sequences,
                        bool all);

int keygen_command(const std::string& folder, const std::string& name);

}  // namespace dray::app
