// The part of a spool's administration that is about its queues: groups, dead letters, replay, and
// single messages. Bodies and answers are JSON; errors are problems (RFC 9457).
//
// Threading: the admin server's thread. Failure: requests that are wrong get 4xx in words.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>

#include "dray/spooler.hpp"
#include "http/server.hpp"

namespace dray::app {

http::Response json_response(unsigned status, const nlohmann::json& body);
http::Response error_response(const Error& error);
http::Response bad_request(const std::string& detail);

// Nothing: no such path. Both may throw std::exception, saying what is wrong with a member.
std::optional<http::Response> queue_get(Spooler& spooler, const http::Request& request);
std::optional<http::Response> queue_post(Spooler& spooler, const std::string& path,
                                         const nlohmann::json& body);

}  // namespace dray::app
