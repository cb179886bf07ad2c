// Talks to the admin interface of a spool that some process serves. By libcurl.
//
// Threading: one call at a time. Failure: kNotFound if no process serves the spool; the server's
// own words for its errors.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "dray/result.hpp"

namespace dray::app {

class AdminClient {
 public:
  explicit AdminClient(std::string directory) : directory_(std::move(directory)) {}

  Result<nlohmann::json> get(const std::string& path) const;
  Result<nlohmann::json> post(const std::string& path, const nlohmann::json& body) const;

  static std::string escape(const std::string& text);

 private:
  Result<nlohmann::json> call(const std::string& path, const std::string* body) const;
  std::string directory_;
};

}  // namespace dray::app
