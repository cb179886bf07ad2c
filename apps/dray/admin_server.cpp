#include "dray/admin_server.hpp"

#include <map>
#include <optional>
#include <set>

#include "dray/queue_admin.hpp"
#include "dray/spool_json.hpp"

namespace dray::app {
namespace {

using nlohmann::json;

constexpr int kJsonDepthMax = 16;

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
  const std::string priority = body.value("priority", "normal");
  if (priority == "high") {
    draft.options.priority = Priority::kHigh;
  } else if (priority == "low") {
    draft.options.priority = Priority::kLow;
  } else if (priority != "normal") {
    return responder.reply(bad_request("\"priority\" must be high, normal or low"));
  }
  for (const auto* name : {"delay_ms", "expires_ms"}) {
    if (body.contains(name) && !body[name].is_number_unsigned()) {
      return responder.reply(bad_request(std::string("\"") + name + "\" must be a whole number"));
    }
  }
  const auto delay_ms = body.value("delay_ms", std::int64_t{0});
  const auto expires_ms = body.value("expires_ms", std::int64_t{0});
  if (body.contains("expires_ms") && expires_ms == 0) {
    return responder.reply(bad_request("\"expires_ms\" must be more than 0"));
  }
  const UtcTime now = SystemClock().utc();
  if (delay_ms < 0 || expires_ms < 0 || delay_ms > kTimeMsMax || expires_ms > kTimeMsMax) {
    return responder.reply(bad_request("\"delay_ms\" and \"expires_ms\" must not be negative"));
  }
  if (delay_ms > 0) draft.options.deliver_at = now + Milliseconds(delay_ms);
  if (expires_ms > 0) draft.options.expires_at = now + Milliseconds(expires_ms);
  spooler.publish_draft(std::move(draft), [responder](const Result<Receipt>& receipt) {
    if (!receipt.ok()) return responder.reply(error_response(receipt.error()));
    responder.reply(json_response(200, {{"id", receipt->id.text()},
                                        {"sequence", receipt->sequence},
                                        {"durability", durability_name(receipt->durability)},
                                        {"duplicate", receipt->duplicate}}));
  });
}

// A member that this request does not have: a slip of the pen must not pass for a choice.
std::optional<std::string> unknown_member(const std::string& path, const json& body) {
  using Names = std::set<std::string>;
  static const Names kChange{"group", "sequences", "all", "topic", "cause", "signature", "dry_run"};
  static const std::map<std::string, Names> kKnown{
      {"/v0/publish", {"topic", "body", "key", "dedup", "priority", "delay_ms", "expires_ms"}},
      {"/v0/dead/retry", kChange},
      {"/v0/dead/drop", kChange},
      {"/v0/dead/edit", {"group", "sequence", "body"}},
      {"/v0/dead/decide", {"group", "sequence", "step", "done", "value"}},
      {"/v0/group/pause", {"group"}},
      {"/v0/group/resume", {"group"}},
      {"/v0/group/drop", {"group"}},
      {"/v0/replay", {"group", "since_ms", "from", "before", "where", "dry_run"}},
      {"/v0/clock/confirm", {}}};
  const auto known = kKnown.find(path);
  if (known == kKnown.end()) return std::nullopt;
  for (const auto& [name, value] : body.items()) {
    if (known->second.count(name) == 0) return name;
  }
  return std::nullopt;
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
  if (get) {
    try {
      if (auto answer = queue_get(spooler, request)) return responder.reply(std::move(*answer));
    } catch (const std::exception& exception) {
      return responder.reply(bad_request(exception.what()));
    }
  }
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
    if (const auto unknown = unknown_member(request.path, body)) {
      return responder.reply(bad_request("unknown member \"" + *unknown + "\""));
    }
    try {
      if (request.path == "/v0/publish") return publish(spooler, body, responder);
      if (auto answer = queue_post(spooler, request.path, body)) {
        return responder.reply(std::move(*answer));
      }
    } catch (const std::exception& exception) {
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
