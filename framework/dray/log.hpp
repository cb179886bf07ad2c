// Log: lines for operators, as logfmt: time level app message key=value ...
//
// Threading: any thread. Failure: a line that cannot be written is dropped, never an error to the
// caller. Ownership: a Log is a cheap handle on a shared sink; copies share it.
#pragma once

#include <functional>
#include <initializer_list>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

#include "dray/export.hpp"

namespace dray {

enum class LogLevel { kDebug = 0, kInfo = 1, kWarning = 2, kError = 3 };

class DRAY_API Log {
 public:
  using Field = std::pair<std::string_view, std::string>;
  using Fields = std::initializer_list<Field>;
  using Sink = std::function<void(LogLevel, std::string_view line)>;

  // Writes nowhere.
  Log() = default;
  // Every line of `least` or above goes to `sink`, which must be safe to call from any thread.
  explicit Log(Sink sink, LogLevel least = LogLevel::kInfo);

  void debug(std::string_view message, Fields fields = {}) const;
  void info(std::string_view message, Fields fields = {}) const;
  void warning(std::string_view message, Fields fields = {}) const;
  void error(std::string_view message, Fields fields = {}) const;
  void write(LogLevel level, std::string_view message, Fields fields = {}) const;
  // A line whose fields are already rendered, as it comes over the plugin border.
  void write_line(LogLevel level, std::string_view line) const;

  // The same sink, with fields on every line.
  Log with(Fields fields) const;

 private:
  struct Shared;
  std::shared_ptr<const Shared> shared_;
  std::string suffix_;
};

// Accepts "debug", "info", "warning", "error"; kInfo for others.
DRAY_API LogLevel log_level_of(std::string_view name);

}  // namespace dray
