#include "dray/queue_admin.hpp"

#include <algorithm>
#include <charconv>
#include <map>
#include <stdexcept>
#include <tuple>

#include "dray/codec.hpp"
#include "dray/spool_json.hpp"

namespace dray::app {

using nlohmann::json;

namespace {

constexpr std::size_t kDeadListMax = 1'000;
constexpr std::size_t kDeadPage = 100;  // looked at together: bodies may be large

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

std::uint64_t number_of(const http::Request& request, const char* name, std::uint64_t otherwise) {
  const auto found = request.query.find(name);
  if (found == request.query.end()) return otherwise;
  std::uint64_t value = 0;
  const char* end = found->second.data() + found->second.size();
  const auto read = std::from_chars(found->second.data(), end, value);
  if (read.ec != std::errc() || read.ptr != end) {
    throw std::invalid_argument(std::string("\"") + name + "\" must be a whole number, not '" +
                                found->second + "'");
  }
  return value;
}

std::string query_of(const http::Request& request, const char* name) {
  const auto found = request.query.find(name);
  return found == request.query.end() ? "" : found->second;
}

// A whole number that is not negative.
std::int64_t whole_of(const json& body, const char* name, std::int64_t otherwise) {
  const auto found = body.find(name);
  if (found == body.end()) return otherwise;
  if (!found->is_number_unsigned() || found->get<std::uint64_t>() > INT64_MAX) {
    throw std::invalid_argument(std::string("\"") + name + "\" must be a whole number");
  }
  return found->get<std::int64_t>();
}

const json& needed(const json& body, const char* name) {
  const auto found = body.find(name);
  if (found == body.end()) throw std::invalid_argument(std::string("\"") + name + "\" is needed");
  return *found;
}

std::string text_of_needed(const json& body, const char* name) {
  const auto& found = needed(body, name);
  if (!found.is_string()) throw std::invalid_argument(std::string("\"") + name + "\" must be text");
  return found.get<std::string>();
}

std::string group_of(const json& body) {
  return text_of_needed(body, "group");
}

DeadFilter filter_of(const http::Request& request) {
  return {query_of(request, "topic"), query_of(request, "cause"), query_of(request, "signature")};
}

http::Response list_dead(Spooler& spooler, const http::Request& request) {
  const std::string group = query_of(request, "group");
  if (group.empty()) return bad_request("name a group: ?group=NAME");
  const DeadFilter filter = filter_of(request);
  const auto limit = std::min<std::uint64_t>(number_of(request, "limit", 100), kDeadListMax);
  Sequence after = number_of(request, "after", 0);
  json list = json::array();
  for (;;) {
    const std::size_t page =
        filter.empty() ? std::min<std::size_t>(kDeadPage, limit - list.size()) : kDeadPage;
    const auto letters = spooler.dead_letters(group, after, page);
    if (!letters.ok()) return error_response(letters.error());
    for (const auto& letter : *letters) {
      if (list.size() >= limit) break;
      after = letter.sequence;
      if (filter(letter)) list.push_back(to_json(letter));
    }
    if (list.size() >= limit || letters->size() < page) break;
  }
  return json_response(200, {{"dead", list}, {"next", after}});
}

http::Response list_pending(Spooler& spooler, const http::Request& request) {
  const auto page = spooler.pending(query_of(request, "group"), number_of(request, "after", 0),
                                    number_of(request, "limit", 100));
  if (!page.ok()) return error_response(page.error());
  json list = json::array();
  for (const auto& each : page->messages) list.push_back(to_json(each));
  return json_response(200, {{"messages", list}, {"next", page->next}, {"more", page->more}});
}

http::Response list_accepted(Spooler& spooler, const http::Request& request) {
  AcceptedRequest wanted;
  wanted.from = number_of(request, "from", 0);
  wanted.since = UtcTime(Milliseconds(static_cast<std::int64_t>(std::min<std::uint64_t>(
      number_of(request, "since_ms", 0), static_cast<std::uint64_t>(kTimeMsMax)))));
  wanted.topic = query_of(request, "topic");
  wanted.limit = number_of(request, "limit", 100);
  const auto page = spooler.accepted(wanted);
  if (!page.ok()) return error_response(page.error());
  json list = json::array();
  for (const auto& each : page->messages) list.push_back(to_json(each));
  return json_response(
      200, {{"messages", list}, {"next", page->next}, {"more", page->more}, {"gap", page->gap}});
}

// How many dead letters a group has of each kind.
http::Response dead_signatures(Spooler& spooler, const http::Request& request) {
  const std::string group = query_of(request, "group");
  const DeadFilter filter = filter_of(request);
  std::map<std::tuple<std::string, std::string, std::string>, std::uint64_t> counts;
  constexpr std::size_t kSignaturesMax = 1'000;
  std::uint64_t others = 0;
  for (Sequence after = 0;;) {
    const auto letters = spooler.dead_letters(group, after, kDeadPage);
    if (!letters.ok()) return error_response(letters.error());
    for (const auto& letter : *letters) {
      after = letter.sequence;
      if (!filter(letter)) continue;
      const std::tuple kind{letter.topic, letter.cause, error_signature(letter.reason)};
      if (counts.size() >= kSignaturesMax && counts.count(kind) == 0) {
        ++others;
      } else {
        ++counts[kind];
      }
    }
    if (letters->size() < kDeadPage) break;
  }
  json list = json::array();
  for (const auto& [kind, count] : counts) {
    list.push_back({{"topic", std::get<0>(kind)},
                    {"cause", std::get<1>(kind)},
                    {"signature", std::get<2>(kind)},
                    {"count", count}});
  }
  return json_response(200, {{"signatures", list}, {"others", others}});
}

Result<std::vector<Sequence>> matching_dead(Spooler& spooler, const std::string& group,
                                            const DeadFilter& filter) {
  std::vector<Sequence> matching;
  for (Sequence after = 0;;) {
    const auto letters = spooler.dead_letters(group, after, kDeadPage);
    if (!letters.ok()) return letters.error();
    for (const auto& letter : *letters) {
      after = letter.sequence;
      if (filter(letter)) matching.push_back(after);
    }
    if (letters->size() < kDeadPage) return matching;
  }
}

http::Response change_dead(Spooler& spooler, const json& body, bool retry) {
  const std::string group = group_of(body);
  std::vector<Sequence> sequences;
  if (body.contains("sequences")) {
    for (const auto& each : body["sequences"]) {
      if (!each.is_number_unsigned()) return bad_request("\"sequences\" must be positive integers");
      sequences.push_back(each.get<Sequence>());
    }
  }
  const DeadFilter filter{body.value("topic", ""), body.value("cause", ""),
                          body.value("signature", "")};
  const bool all = body.value("all", false);
  if (static_cast<int>(!sequences.empty()) + static_cast<int>(!filter.empty()) +
          static_cast<int>(all) !=
      1) {
    return bad_request(
        "give one of \"sequences\", \"all\": true, or a filter (topic, cause, signature)");
  }
  const bool dry_run = body.value("dry_run", false);
  if (all) {
    const auto status = spooler.status();
    if (!status.ok()) return error_response(status.error());
    std::uint64_t dead = 0;
    for (const auto& each : status->groups) dead += each.name == group ? each.dead : 0;
    if (dry_run) return json_response(200, {{"matched", dead}, {"changed", 0}});
    const auto changed = retry ? spooler.retry_dead(group, {}) : spooler.drop_dead(group, {});
    if (!changed.ok()) return error_response(changed.error());
    return json_response(200, {{"matched", *changed}, {"changed", *changed}});
  }
  if (sequences.empty()) {
    auto matching = matching_dead(spooler, group, filter);
    if (!matching.ok()) return error_response(matching.error());
    sequences = std::move(*matching);
  }
  if (dry_run || sequences.empty()) {
    return json_response(200, {{"matched", sequences.size()}, {"changed", 0}});
  }
  const auto matched = sequences.size();
  const auto changed = retry ? spooler.retry_dead(group, std::move(sequences))
                             : spooler.drop_dead(group, std::move(sequences));
  if (!changed.ok()) return error_response(changed.error());
  return json_response(200, {{"matched", matched}, {"changed", *changed}});
}

http::Response done_or(const Status& status) {
  return status.ok() ? json_response(200, {{"done", true}}) : error_response(status.error());
}

http::Response edit_dead(Spooler& spooler, const json& body) {
  const auto bytes = json::to_msgpack(needed(body, "body"));
  return done_or(spooler.edit_dead(group_of(body),
                                   static_cast<Sequence>(whole_of(body, "sequence", 0)),
                                   std::string(bytes.begin(), bytes.end())));
}

http::Response decide_dead(Spooler& spooler, const json& body) {
  std::optional<std::string> value;
  if (!needed(body, "done").is_boolean()) return bad_request("\"done\" must be true or false");
  if (body["done"].get<bool>()) {
    const auto bytes = json::to_msgpack(body.value("value", json()));
    value.emplace(bytes.begin(), bytes.end());
  }
  return done_or(spooler.decide_dead(group_of(body),
                                     static_cast<Sequence>(whole_of(body, "sequence", 0)),
                                     text_of_needed(body, "step"), value));
}

// "customer.city=Paris": the member of the body at that path has that value, as text or as JSON.
Result<std::function<bool(const EnvelopeView&)>> where_of(const std::string& text) {
  const auto equals = text.find('=');
  if (equals == std::string::npos || equals == 0) {
    return Error{ErrorCode::kInvalid, "write \"where\" like order_id=17 or customer.city=Paris", "",
                 0};
  }
  std::string path = "/" + text.substr(0, equals);
  std::replace(path.begin(), path.end(), '.', '/');
  return std::function<bool(const EnvelopeView&)>(
      [pointer = json::json_pointer(path),
       wanted = text.substr(equals + 1)](const EnvelopeView& envelope) {
        if (!Document::parse(envelope.body).ok()) return false;
        const auto value = json::from_msgpack(envelope.body, true, false);
        if (value.is_discarded() || !value.contains(pointer)) return false;
        const auto& found = value.at(pointer);
        return (found.is_string() ? found.get<std::string>() : found.dump()) == wanted;
      });
}

http::Response replay(Spooler& spooler, const json& body) {
  ReplayRequest request;
  request.group = group_of(body);
  request.since = UtcTime(Milliseconds(std::min(whole_of(body, "since_ms", 0), kTimeMsMax)));
  request.from = static_cast<Sequence>(whole_of(body, "from", 1));
  request.before = static_cast<Sequence>(whole_of(body, "before", 0));
  request.dry_run = body.value("dry_run", false);
  if (body.contains("where")) {
    auto where = where_of(body["where"].get<std::string>());
    if (!where.ok()) return error_response(where.error());
    request.where = std::move(*where);
  }
  const auto step = spooler.replay(request);
  if (!step.ok()) return error_response(step.error());
  return json_response(200, {{"matched", step->matched},
                             {"replayed", step->replayed},
                             {"next", step->next},
                             {"end", step->end}});
}

}  // namespace

http::Response json_response(unsigned status, const json& body) {
  return {status, "application/json",
          body.dump(-1, ' ', false, json::error_handler_t::replace) + "\n"};
}

http::Response error_response(const Error& error) {
  return http::problem(http_status(error.code), error_code_name(error.code), error.text());
}

http::Response bad_request(const std::string& detail) {
  return http::problem(400, "Bad Request", detail);
}

std::optional<http::Response> queue_get(Spooler& spooler, const http::Request& request) {
  if (request.path == "/v0/dead") return list_dead(spooler, request);
  if (request.path == "/v0/dead/signatures") return dead_signatures(spooler, request);
  if (request.path == "/v0/pending") return list_pending(spooler, request);
  if (request.path == "/v0/accepted") return list_accepted(spooler, request);
  if (request.path == "/v0/message") {
    const auto life = spooler.show(query_of(request, "id"));
    return life.ok() ? json_response(200, to_json(*life)) : error_response(life.error());
  }
  return std::nullopt;
}

std::optional<http::Response> queue_post(Spooler& spooler, const std::string& path,
                                         const json& body) {
  if (path == "/v0/dead/retry") return change_dead(spooler, body, true);
  if (path == "/v0/dead/drop") return change_dead(spooler, body, false);
  if (path == "/v0/dead/decide") return decide_dead(spooler, body);
  if (path == "/v0/dead/edit") return edit_dead(spooler, body);
  if (path == "/v0/group/pause") return done_or(spooler.set_paused(group_of(body), true));
  if (path == "/v0/group/resume") return done_or(spooler.set_paused(group_of(body), false));
  if (path == "/v0/group/drop") return done_or(spooler.drop_group(group_of(body)));
  if (path == "/v0/clock/confirm") return done_or(spooler.confirm_clock());
  if (path == "/v0/replay") return replay(spooler, body);
  return std::nullopt;
}

}  // namespace dray::app
