// Result: a value or an error that says what happened, where, and what to do.
//
// Operating errors (disk, network, wrong input) travel as values; programmer errors hit
// DRAY_ASSERT, which is on in every build, and abort.
//
// Threading: plain values. Ownership: owns what it holds.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <variant>

#include "dray/export.hpp"

namespace dray {

enum class ErrorCode {
  kInvalid,      // the caller's input is wrong; repeating it cannot help
  kNotFound,     // the named thing does not exist
  kConflict,     // exists already with other content
  kUnroutable,   // no group takes this topic
  kFull,         // a limit is reached; settle or raise it, then repeat
  kUnknown,      // may or may not have happened (a write failed); repeat with the same dedup id
  kIo,           // the operating system refused; system_error says why
  kCorrupt,      // bytes fail their check
  kUnsupported,  // another version or another platform
  kBusy,         // held by someone else at the moment
  kTimeout,      // no answer within the time given
  kClosed,       // stopped or stopping
};

// Stable lower-case name of a code, for logs and JSON.
DRAY_API std::string_view error_code_name(ErrorCode code);
// The code of a name, kInvalid for a name that is none.
DRAY_API ErrorCode error_code_of(std::string_view name);

struct DRAY_API Error {
  ErrorCode code = ErrorCode::kInvalid;
  std::string message;   // what happened and what to do next
  std::string path;      // file, endpoint or key it is about; may be empty
  int system_error = 0;  // errno, 0 if none

  // One line: "path: message (errno text)".
  std::string text() const;
};

// An error of kIo with the current errno.
DRAY_API Error io_error(std::string_view operation, std::string path, int system_error);

[[noreturn]] DRAY_API void assertion_failed(const char* expression, const char* file, int line);

#define DRAY_ASSERT(expression) \
  ((expression) ? static_cast<void>(0) : ::dray::assertion_failed(#expression, __FILE__, __LINE__))

template <typename T>
class [[nodiscard]] Result {
 public:
  Result(T value)
      : value_(std::in_place_index<0>, std::move(value)) {}  // NOLINT: implicit by design
  Result(Error error) : value_(std::in_place_index<1>, std::move(error)) {}  // NOLINT: as above

  bool ok() const { return value_.index() == 0; }
  explicit operator bool() const { return ok(); }

  // REQUIRES: ok().
  T& value() & {
    DRAY_ASSERT(ok());
    return *std::get_if<0>(&value_);
  }
  const T& value() const& {
    DRAY_ASSERT(ok());
    return *std::get_if<0>(&value_);
  }
  T&& value() && {
    DRAY_ASSERT(ok());
    return std::move(*std::get_if<0>(&value_));
  }
  T& operator*() & { return value(); }
  const T& operator*() const& { return value(); }
  T&& operator*() && { return std::move(*this).value(); }
  T* operator->() { return &value(); }
  const T* operator->() const { return &value(); }

  // REQUIRES: !ok().
  const Error& error() const {
    DRAY_ASSERT(!ok());
    return *std::get_if<1>(&value_);
  }

 private:
  std::variant<T, Error> value_;
};

template <>
class [[nodiscard]] Result<void> {
 public:
  Result() = default;
  Result(Error error) : error_(std::move(error)), ok_(false) {}  // NOLINT: implicit by design

  bool ok() const { return ok_; }
  explicit operator bool() const { return ok_; }
  const Error& error() const {
    DRAY_ASSERT(!ok_);
    return error_;
  }

 private:
  Error error_;
  bool ok_ = true;
};

using Status = Result<void>;

// Returns the error of `expression` from the calling function.
#define DRAY_TRY(expression)                                                            \
  do {                                                                                  \
    if (auto dray_status = (expression); !dray_status.ok()) return dray_status.error(); \
  } while (false)

}  // namespace dray
