#include "dray/admin_server.hpp"

#include <charconv>

#include "dray/spool_json.hpp"

namespace dray::app {
namespace {

using nlohmann::json;

constexpr std::size_t kDeadListMax = 1'000;
constexpr int kJsonDepthMax = 16;

http::Response json_response(unsigned status, const json& body) {
  return {status, "application/json",
          body.dump(-1, ' ', false, json::error_handler_t::replace) + "\n"};
}

unsigned http_status(ErrorCode code) {
  switch (code) {
    case ErrorCode::kNotFound:
      return 404;
    case ErrorCode::kConflict:
      return 409;
    case ErrorCode::kInvalid:
    case ErrorCode::kUnroutable:
      return 422;
    case ErrorCode::kFull:
    case ErrorCode::kBusy:
    case ErrorCode::kClosed:
      return 503;
    case ErrorCode::kTimeout:
      return 504;
    default:
      return 500;
  }
}

http::Response error_response(const Error& error) {
  return http::problem(http_status(error.code), error_code_name(error.code), error.text());
}

http::Response bad_request(const std::string& detail) {
  return http::problem(400, "Bad Request", detail);
}

std::uint64_t number_of(const http::Request& request, const char* name, std::uint64_t otherwise) {
  const auto found = request.query.find(name);
  if (found == request.query.end()) return otherwise;
  std::uint64_t value = otherwise;
  std::from_chars(found->second.data(), found->second.data() + found->second.size(), value);
  return value;
}

http::Response list_dead(Spooler& spooler, const http::Request& request) {
  const auto group = request.query.find("group");
  if (group == request.query.end()) return bad_request("name a group: ?group=NAME");
  const auto limit = std::min<std::uint64_t>(number_of(request, "limit", 100), kDeadListMax);
  const auto letters = spooler.dead_letters(group->second, number_of(request, "after", 0), limit);
  if (!letters.ok()) return error_response(letters.error());
  json list = json::array();
  for (const auto& letter : *letters) list.push_back(to_json(letter));
  return json_response(200, {{"dead", list}});
}

http::Response change_dead(Spooler& spooler, const json& body, bool retry) {
  if (!body.contains("group") || !body["group"].is_string()) {
    return bad_request("\"group\" must be text");
  }
  std::vector<Sequence> sequences;
  if (body.contains("sequences")) {
    for (const auto& each : body["sequences"]) {
      if (!each.is_number_unsigned()) return bad_request("\"sequences\" must be positive integers");
      sequences.push_back(each.get<Sequence>());
    }
  }
  if (sequences.empty() && body.value("all", false) != true) {
    return bad_request("give \"sequences\", or \"all\": true");
  }
  const auto group = body["group"].get<std::string>();
  const auto changed = retry ? spooler.retry_dead(group, std::move(sequences))
                             : spooler.drop_dead(group, std::move(sequences));
  if (!changed.ok()) return error_response(changed.error());
  return json_response(200, {{"changed", *changed}});
}

void publish(Spooler& spooler, const json& body, const http::Responder& responder) {
  if (!body.contains("topic") || !body["topic"].is_string() || !body.contains("body")) {
    return responder.reply(bad_request("\"topic\" (text) and \"body\" are needed"));
  }
  Draft draft;
  draft.topic = body["topic"].get<std::string>();
  const auto bytes = json::to_msgpack(body["body"]);
  draft.body.assign(bytes.begin(), bytes.end());
  draft.options.key = body.value("key", "");
  draft.options.dedup = body.value("dedup", "");
  spooler.publish_draft(std::move(draft), [responder](const Result<Receipt>& receipt) {
    if (!receipt.ok()) return responder.reply(error_response(receipt.error()));
    responder.reply(json_response(200, {{"id", receipt->id.text()},
                                        {"sequence", receipt->sequence},
                                        {"durability", durability_name(receipt->durability)},
                                        {"duplicate", receipt->duplicate}}));
  });
}

void route(Spooler& spooler, const http::Request& request, const http::Responder& responder) {
  const bool get = request.method == "GET";
  if (get && (request.path == "/v0/status" || request.path == "/metrics")) {
    const auto status = spooler.status();
    if (!status.ok()) return responder.reply(error_response(status.error()));
    if (request.path == "/metrics") {
      return responder.reply({200, "text/plain; version=0.0.4", to_prometheus(*status)});
    }
    return responder.reply(json_response(200, to_json(*status)));
  }
  if (get && request.path == "/v0/dead") return responder.reply(list_dead(spooler, request));
  if (!get) {
    bool deep = false;
    const auto body = json::parse(
        request.body,
        [&deep](int depth, json::parse_event_t, json&) {
          deep = deep || depth > kJsonDepthMax;
          return !deep;
        },
        false);
    if (deep) return responder.reply(bad_request("the body is nested deeper than 16 levels"));
    if (!body.is_object()) return responder.reply(bad_request("the body must be a JSON object"));
    try {
      if (request.path == "/v0/publish") return publish(spooler, body, responder);
      if (request.path == "/v0/dead/retry") {
        return responder.reply(change_dead(spooler, body, true));
      }
      if (request.path == "/v0/dead/drop") {
        return responder.reply(change_dead(spooler, body, false));
      }
    } catch (const json::exception& exception) {
      return responder.reply(bad_request(exception.what()));
    }
  }
  responder.reply(http::problem(404, "Not Found", request.method + " " + request.path));
}

}  // namespace

Result<std::unique_ptr<http::Server>> start_admin_server(Spooler& spooler,
                                                         const std::string& directory, Log log) {
  http::Limits limits;
  limits.body_bytes_max = 32U << 20;
  limits.connections_max = 64;
  return http::Server::start(
      "unix:" + directory + "/" + kAdminSocketName, limits,
      [&spooler](const http::Request& request, const http::Responder& responder) {
        route(spooler, request, responder);
      },
      std::move(log));
}

}  // namespace dray::app
