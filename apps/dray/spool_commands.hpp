// dray spool inspect | verify | repair | adopt: a spool looked at from outside.
//
// Threading: main thread. Return the exit code: 0 well, 1 something is damaged or it failed, 2
// wrong use.
#pragma once

#include <string>

namespace dray::app {

int spool_inspect_command(const std::string& directory, bool json);
int spool_verify_command(const std::string& directory, bool json);
int spool_repair_command(const std::string& directory, bool json);
int spool_adopt_command(const std::string& directory, bool json);

}  // namespace dray::app
