#include "dray/result.hpp"

#include <cstdio>
#include <cstdlib>
#include <system_error>

namespace dray {

std::string_view error_code_name(ErrorCode code) {
  switch (code) {
    case ErrorCode::kInvalid:
      return "invalid";
    case ErrorCode::kNotFound:
      return "not_found";
    case ErrorCode::kConflict:
      return "conflict";
    case ErrorCode::kUnroutable:
      return "unroutable";
    case ErrorCode::kFull:
      return "full";
    case ErrorCode::kUnknown:
      return "unknown";
    case ErrorCode::kIo:
      return "io";
    case ErrorCode::kCorrupt:
      return "corrupt";
    case ErrorCode::kUnsupported:
      return "unsupported";
    case ErrorCode::kBusy:
      return "busy";
    case ErrorCode::kTimeout:
      return "timeout";
    case ErrorCode::kClosed:
      return "closed";
  }
  return "invalid";
}

ErrorCode error_code_of(std::string_view name) {
  for (int code = 0; code <= static_cast<int>(ErrorCode::kClosed); ++code) {
    if (error_code_name(static_cast<ErrorCode>(code)) == name) return static_cast<ErrorCode>(code);
  }
  return ErrorCode::kInvalid;
}

std::string Error::text() const {
  std::string line;
  if (!path.empty()) line += path + ": ";
  line += message;
  if (system_error != 0) line += " (" + std::generic_category().message(system_error) + ")";
  return line;
}

Error io_error(std::string_view operation, std::string path, int system_error) {
  return Error{ErrorCode::kIo, std::string(operation) + " failed", std::move(path), system_error};
}

void assertion_failed(const char* expression, const char* file, int line) {
  std::fprintf(stderr, "%s:%d: assertion failed: %s\n", file, line, expression);
  std::abort();
}

}  // namespace dray
