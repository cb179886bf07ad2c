// Settings: the free-form `settings = { ... }` of an app, as its plugin reads them.
//
// Every key that the config gives must be read by the plugin: what is left over is reported as an
// error, so that a misspelt key is not silently ignored.
//
// Threading: one thread (handlers are constructed one after the other). Failure: getters throw
// SettingsError, which the plugin border turns into "app cannot start", exit 2.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <stdexcept>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "dray/clock.hpp"
#include "dray/export.hpp"
#include "dray/result.hpp"

namespace dray {

class DRAY_API SettingsError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

class DRAY_API Settings {
 public:
  using Scalar = std::variant<bool, std::int64_t, double, std::string>;

  Settings() = default;
  explicit Settings(std::map<std::string, Scalar> values) : values_(std::move(values)) {}

  // Each getter throws SettingsError if the key is missing or of another kind; with a default, a
  // missing key gives the default.
  std::string text(const std::string& key) const;
  std::string text(const std::string& key, const std::string& otherwise) const;
  std::int64_t integer(const std::string& key, std::int64_t otherwise) const;
  bool boolean(const std::string& key, bool otherwise) const;
  // "30s"
  Milliseconds duration(const std::string& key, Milliseconds otherwise) const;

  // Keys given but never asked for.
  std::vector<std::string> unread() const;

  // MessagePack map, as it crosses the plugin border.
  std::string encode() const;
  static Result<Settings> decode(std::string_view bytes);

 private:
  const Scalar* find(const std::string& key) const;

  std::map<std::string, Scalar> values_;
  mutable std::set<std::string> read_;
};

}  // namespace dray
