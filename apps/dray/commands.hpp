// The commands that look at a config or speak to a served spool.
//
// Threading: main thread. Each returns the exit code and prints to standard output (results) and
// standard error (faults).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "dray/config/config.hpp"

namespace dray::app {

// A spool named on the command line: its directory, or a config file and the spool's name (not
// needed if the file has one spool).
struct SpoolChoice {
  std::string target;
  std::string spool;
};

// A config with all its faults, also those of its plugins.
config::Loaded load_checked(const std::string& file);
int check_command(const std::string& file);
int run_command(const std::string& file, const std::vector<std::string>& apps);
int status_command(const SpoolChoice& choice, bool json);
struct PublishWish {
  std::string topic, body, key, dedup;
  std::string priority = "normal";
  std::string delay, expires;  // like "10m", from now
};
int publish_command(const SpoolChoice& choice, const PublishWish& wish);
int keygen_command(const std::string& folder, const std::string& name);

}  // namespace dray::app
