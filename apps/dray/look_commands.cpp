#include "dray/look_commands.hpp"

#include <cstdio>
#include <iostream>
#include <thread>

#include "dray/clock.hpp"
#include "dray/command_tools.hpp"
#include "dray/text.hpp"

namespace dray::app {
namespace {

using nlohmann::json;

constexpr std::uint64_t kPageMax = 500;
constexpr std::size_t kBodyWidth = 60;
constexpr auto kAskEvery = std::chrono::milliseconds(200);
constexpr auto kServedAgain = std::chrono::seconds(1);

std::string line_of(const json& message) {
  std::string line = text_of(message["published_at"]) + "  " + text_of(message["sequence"]) + "  " +
                     text_of(message["topic"]);
  if (message.contains("key")) line += "  key=" + text_of(message["key"]);
  if (message["priority"] != "normal") line += "  " + text_of(message["priority"]);
  if (message.contains("deliver_at")) line += "  due=" + text_of(message["deliver_at"]);
  return line + "  " + text_of(json(message["body"].dump()));
}

}  // namespace

Result<std::int64_t> since_ms_of(const std::string& text) {
  if (const auto age = parse_duration(text); age.ok()) {
    return (SystemClock().utc() - *age).time_since_epoch().count();
  }
  if (const auto time = parse_utc(text)) return time->time_since_epoch().count();
  return Error{
      ErrorCode::kInvalid,
      "--since wants an age like 2h, or a time like 2026-11-26T07:00:00Z, not '" + text + "'", "",
      0};
}

int peek_command(const SpoolChoice& choice, const std::string& group, std::uint64_t after,
                 std::uint64_t limit, bool as_json) {
  const auto client = one_spool(choice);
  if (!client.ok()) return fail(client.error());
  json messages = json::array();
  bool more = true;
  while (more && messages.size() < limit) {
    const auto page = client->get(
        "/v0/pending?group=" + AdminClient::escape(group) + "&after=" + std::to_string(after) +
        "&limit=" + std::to_string(std::min(kPageMax, limit - messages.size())));
    if (!page.ok()) return fail(page.error());
    for (const auto& each : (*page)["messages"]) messages.push_back(each);
    after = (*page)["next"].get<std::uint64_t>();
    more = (*page)["more"].get<bool>();
  }
  if (as_json) {
    std::cout << json{{"messages", messages}, {"next", after}, {"more", more}}.dump(2) << "\n";
    return 0;
  }
  if (messages.empty()) {
    std::printf("nothing waits\n");
    return 0;
  }
  std::vector<std::vector<std::string>> rows{
      {"sequence", "published", "topic", "key", "attempts", "state", "why", "body"}};
  for (const auto& each : messages) {
    rows.push_back({text_of(each["sequence"]), text_of(each["published_at"]),
                    text_of(each["topic"]), each.contains("key") ? text_of(each["key"]) : "",
                    text_of(each["attempts"]), text_of(each["state"]), text_of(each["why"]),
                    clipped(text_of(json(each["body"].dump())), kBodyWidth)});
  }
  print_table(rows);
  if (more)
    std::printf("  there may be more: --after %llu\n", static_cast<unsigned long long>(after));
  return 0;
}

int tail_command(const SpoolChoice& choice, const TailWish& wish, bool as_json) {
  std::int64_t since_ms = wish.follow ? 0 : 1;  // 0: from now on
  if (!wish.since.empty()) {
    const auto since = since_ms_of(wish.since);
    if (!since.ok()) return fail(since.error());
    since_ms = std::max<std::int64_t>(*since, 1);
  }
  const auto client = one_spool(choice);
  if (!client.ok()) return fail(client.error());
  const std::string filter =
      "&since_ms=" + std::to_string(since_ms) +
      (wish.topic.empty() ? "" : "&topic=" + AdminClient::escape(wish.topic));
  std::uint64_t from = 0;
  std::uint64_t shown = 0;
  bool reached = false;  // it was served once
  bool said = false;
  for (;;) {
    const std::uint64_t limit = wish.count == 0 ? kPageMax : std::min(kPageMax, wish.count - shown);
    const auto page = client->get("/v0/accepted?from=" + std::to_string(from) +
                                  "&limit=" + std::to_string(limit) + filter);
    if (!page.ok()) {
      const auto code = page.error().code;
      const bool passes = code == ErrorCode::kNotFound || code == ErrorCode::kTimeout ||
                          code == ErrorCode::kClosed || code == ErrorCode::kIo;
      if (!reached || !wish.follow || !passes) return fail(page.error());
      if (!std::exchange(said, true)) {
        std::cerr << "dray: " << page.error().text() << "; waiting until it is served again\n";
      }
      std::this_thread::sleep_for(kServedAgain);
      continue;
    }
    reached = true;
    said = false;
    if ((*page)["gap"].get<bool>()) {
      std::cerr << "dray: some messages are not in the log any more: they were settled, and freed, "
                   "before they could be shown (see 'retain'), or cannot be read\n";
    }
    for (const auto& each : (*page)["messages"]) {
      std::cout << (as_json ? each.dump() : line_of(each)) << "\n";
      ++shown;
    }
    std::cout.flush();
    if (!std::cout.good()) return 0;  // finish_output() says so
    from = (*page)["next"].get<std::uint64_t>();
    if (wish.count != 0 && shown >= wish.count) return 0;
    if ((*page)["more"].get<bool>()) continue;
    if (!wish.follow) return 0;
    std::this_thread::sleep_for(kAskEvery);
  }
}

}  // namespace dray::app
