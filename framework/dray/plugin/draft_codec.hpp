// Drafts and stop requests as they cross the plugin border, both ways.
//
// Internal. Threading: pure functions; StopSubscription belongs to the thread that made it.
// Ownership: a dray_draft points into the Draft and the headers string it was made from.
#pragma once

#include <optional>
#include <stop_token>
#include <string>

#include "dray/message.hpp"
#include "dray/plugin_abi.h"

namespace dray::plugin_glue {

inline std::string_view view(dray_bytes bytes) {
  return bytes.data == nullptr ? std::string_view{} : std::string_view(bytes.data, bytes.size);
}
inline dray_bytes span(std::string_view bytes) {
  return {bytes.data(), bytes.size()};
}

dray_draft to_abi(const Draft& draft, const std::string& encoded_headers);
// kInvalid if the struct is too short or a value is out of range.
Result<Draft> from_abi(const dray_draft& draft);

// Host side: offers a std::stop_token as a dray_stop.
class StopOffer {
 public:
  explicit StopOffer(std::stop_token token) : token_(std::move(token)) {}
  StopOffer(const StopOffer&) = delete;
  StopOffer& operator=(const StopOffer&) = delete;
  dray_stop abi();

 private:
  struct Call {
    void (*callback)(void*);
    void* user;
    void operator()() const { callback(user); }
  };
  std::stop_token token_;
  std::optional<std::stop_callback<Call>> callback_;
};

// Plugin side: turns a dray_stop into a std::stop_token for as long as this object lives.
class StopSubscription {
 public:
  StopSubscription(dray_stop stop, std::stop_source& source);
  ~StopSubscription();
  StopSubscription(const StopSubscription&) = delete;
  StopSubscription& operator=(const StopSubscription&) = delete;

 private:
  dray_stop stop_;
};

}  // namespace dray::plugin_glue
