#include "dray/log.hpp"

#include <algorithm>
#include <cctype>

namespace dray {
namespace {

bool needs_quotes(std::string_view value) {
  return value.empty() || std::any_of(value.begin(), value.end(), [](char c) {
           return c == ' ' || c == '"' || c == '=' || std::iscntrl(static_cast<unsigned char>(c));
         });
}

// Control characters are escaped, so that a message cannot forge a line.
void append_escaped(std::string& out, std::string_view value, bool quotes) {
  constexpr char kHex[] = "0123456789abcdef";
  for (const char c : value) {
    if (c == '\n') {
      out += "\\n";
    } else if (std::iscntrl(static_cast<unsigned char>(c))) {
      out += "\\x";
      out += kHex[static_cast<unsigned char>(c) >> 4];
      out += kHex[static_cast<unsigned char>(c) & 15];
    } else {
      if (quotes && (c == '"' || c == '\\')) out += '\\';
      out += c;
    }
  }
}

void append_fields(std::string& out, Log::Fields fields) {
  for (const auto& [key, value] : fields) {
    out += ' ';
    out += key;
    out += '=';
    const bool quotes = needs_quotes(value);
    if (quotes) out += '"';
    append_escaped(out, value, quotes);
    if (quotes) out += '"';
  }
}

}  // namespace

struct Log::Shared {
  Sink sink;
  LogLevel least;
};

Log::Log(Sink sink, LogLevel least)
    : shared_(std::make_shared<Shared>(Shared{std::move(sink), least})) {}

void Log::write(LogLevel level, std::string_view message, Fields fields) const {
  if (!shared_ || level < shared_->least) return;
  std::string line;
  append_escaped(line, message, false);
  line += suffix_;
  append_fields(line, fields);
  shared_->sink(level, line);
}

void Log::write_line(LogLevel level, std::string_view line) const {
  if (!shared_ || level < shared_->least) return;
  std::string safe;
  append_escaped(safe, line, false);
  shared_->sink(level, safe + suffix_);
}

void Log::debug(std::string_view message, Fields fields) const {
  write(LogLevel::kDebug, message, fields);
}
void Log::info(std::string_view message, Fields fields) const {
  write(LogLevel::kInfo, message, fields);
}
void Log::warning(std::string_view message, Fields fields) const {
  write(LogLevel::kWarning, message, fields);
}
void Log::error(std::string_view message, Fields fields) const {
  write(LogLevel::kError, message, fields);
}

Log Log::with(Fields fields) const {
  Log copy = *this;
  append_fields(copy.suffix_, fields);
  return copy;
}

LogLevel log_level_of(std::string_view name) {
  if (name == "debug") return LogLevel::kDebug;
  if (name == "warning") return LogLevel::kWarning;
  if (name == "error") return LogLevel::kError;
  return LogLevel::kInfo;
}

}  // namespace dray
