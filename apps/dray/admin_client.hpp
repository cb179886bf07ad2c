// Talks to the admin interface of a spool that some process serves. By libcurl.
//
// Threading: one call at a time. Failure: kNotFound if no process serves the spool, kTimeout if
// that process does not answer; the server's own words for its errors.
#pragma once

#include <chrono>
#include <nlohmann/json.hpp>
#include <string>

#include "dray/result.hpp"

namespace dray::app {

class AdminClient {
 public:
  // Long for what may read much; what only looks at the state is answered at once.
  static constexpr std::chrono::seconds kPatience{300};
  static constexpr std::chrono::seconds kShortPatience{10};

  explicit AdminClient(std::string directory, std::chrono::seconds patience = kPatience)
      : directory_(std::move(directory)), patience_(patience) {}

  Result<nlohmann::json> get(const std::string& path) const;
  Result<nlohmann::json> post(const std::string& path, const nlohmann::json& body) const;

  static std::string escape(const std::string& text);

 private:
  Result<nlohmann::json> call(const std::string& path, const std::string* body) const;
  std::string directory_;
  std::chrono::seconds patience_;
};

}  // namespace dray::app
