// What the admin interface and the commands say about a spool, as JSON and as Prometheus text.
//
// Threading: pure functions.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "dray/spooler.hpp"

namespace dray::app {

nlohmann::json to_json(const SpoolStatus& status);
nlohmann::json to_json(const DeadLetter& letter);
nlohmann::json to_json(const StoredMessage& message);
nlohmann::json to_json(const PendingMessage& message);
nlohmann::json to_json(const MessageLife& life);
// https://prometheus.io/docs/instrumenting/exposition_formats/ by prometheus-cpp.
std::string to_prometheus(const SpoolStatus& status);

}  // namespace dray::app
