#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include "dray/standard_error_log.hpp"

namespace dray {

// Synchronous on purpose: what a process said before it died is what the operator needs most, and
// an asynchronous queue would lose just those lines.
Log standard_error_log(const std::string& name, LogLevel least) {
  auto logger =
      std::make_shared<spdlog::logger>(name, std::make_shared<spdlog::sinks::stderr_sink_mt>());
  logger->set_pattern("%Y-%m-%dT%H:%M:%S.%eZ %-7l %n: %v", spdlog::pattern_time_type::utc);
  logger->set_level(spdlog::level::debug);
  logger->flush_on(spdlog::level::debug);
  return Log(
      [logger](LogLevel level, std::string_view line) {
        constexpr spdlog::level::level_enum kLevels[] = {spdlog::level::debug, spdlog::level::info,
                                                         spdlog::level::warn, spdlog::level::err};
        logger->log(kLevels[static_cast<std::size_t>(level)], "{}", line);
      },
      least);
}

}  // namespace dray
