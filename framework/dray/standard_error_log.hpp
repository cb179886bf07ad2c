// The log of a process, on standard error. For programs; a plugin has the log that it is given.
//
// Threading: any thread.
#pragma once

#include <string>

#include "dray/export.hpp"
#include "dray/log.hpp"

namespace dray {

// The process's log on standard error, by spdlog; `name` is in every line.
DRAY_API Log standard_error_log(const std::string& name, LogLevel least = LogLevel::kInfo);

}  // namespace dray
