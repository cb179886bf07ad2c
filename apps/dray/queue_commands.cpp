#include "dray/queue_commands.hpp"

#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <iostream>
#include <thread>

#include "dray/clock.hpp"
#include "dray/command_tools.hpp"
#include "dray/look_commands.hpp"
#include "dray/text.hpp"

namespace dray::app {
namespace {

using nlohmann::json;

constexpr auto kLookEvery = std::chrono::milliseconds(200);

// A line on a terminal that is written over again and again.
class ProgressLine {
 public:
  ~ProgressLine() {
    if (shown_) std::fprintf(stderr, "\r\033[K");
  }
  void show(const std::string& text) {
    if (isatty(STDERR_FILENO) == 0) return;
    shown_ = true;
    std::fprintf(stderr, "\r\033[K%s", text.c_str());
  }

 private:
  bool shown_ = false;
};

int print_json(const json& answer) {
  std::cout << answer.dump() << "\n";
  return 0;
}

json filter_of(const DeadChoice& dead) {
  json request{{"group", dead.group}};
  if (!dead.topic.empty()) request["topic"] = dead.topic;
  if (!dead.cause.empty()) request["cause"] = dead.cause;
  if (!dead.signature.empty()) request["signature"] = dead.signature;
  return request;
}

// As a query.
std::string query_of(const json& filter) {
  std::string query;
  for (const auto& [name, value] : filter.items()) {
    query += "&" + name + "=" + AdminClient::escape(value.get<std::string>());
  }
  return query;
}

int list_signatures(const AdminClient& client, const std::string& query, bool as_json) {
  const auto answer = client.get("/v0/dead/signatures?" + query);
  if (!answer.ok()) return fail(answer.error());
  if (as_json) {
    std::cout << answer->dump(2) << "\n";
    return 0;
  }
  std::vector<std::vector<std::string>> rows{{"topic", "count", "cause", "signature"}};
  for (const auto& each : (*answer)["signatures"]) {
    rows.push_back({text_of(each["topic"]), text_of(each["count"]), text_of(each["cause"]),
                    text_of(each["signature"])});
  }
  print_table(rows);
  return 0;
}

void print_events(const json& events) {
  for (const auto& event : events) {
    std::string line =
        "    " + event.value("at", std::string(24, ' ')) + "  " + text_of(event["what"]);
    if (event.contains("delivery") && event["what"] == "delivered") {
      line += " (number " + text_of(event["delivery"]) + ")";
    }
    if (event.contains("worker"))
      line += (event["what"] == "delivered" ? " to " : " by ") + text_of(event["worker"]);
    if (event.contains("took_ms")) line += " after " + text_of(event["took_ms"]) + " ms";
    if (event.contains("attempts")) line += ", attempts " + text_of(event["attempts"]);
    if (event.contains("reason")) line += ": " + text_of(event["reason"]);
    std::printf("%s\n", line.c_str());
  }
}

void print_steps(const json& steps, const char* indent) {
  for (const auto& step : steps) {
    std::printf("%sstep       %s: %s since %s\n", indent, text_of(step["step"]).c_str(),
                step["done"].get<bool>() ? ("done, " + text_of(json(step["value"].dump()))).c_str()
                                         : "began, and whether it took effect is not known",
                text_of(step["at"]).c_str());
  }
}

void print_life(const json& life) {
  std::printf("message %s  %s\n", text_of(life["sequence"]).c_str(), text_of(life["id"]).c_str());
  std::printf("  topic      %s\n", text_of(life["topic"]).c_str());
  for (const auto& [name, label] : {std::pair("key", "key"),
                                    {"priority", "priority"},
                                    {"dedup", "dedup id"},
                                    {"deliver_at", "due"},
                                    {"expires_at", "expires"}}) {
    if (life.contains(name)) std::printf("  %-10s %s\n", label, text_of(life[name]).c_str());
  }
  std::printf("  published  %s, %s\n", text_of(life["published_at"]).c_str(),
              life["durable"].get<bool>()
                  ? "on disk"
                  : "not on disk yet: it survives a crash of the program only");
  for (const auto& [name, value] : life["headers"].items()) {
    std::printf("  header     %s: %s\n", text_of(json(name)).c_str(), text_of(value).c_str());
  }
  std::printf("  body       %s\n", text_of(json(life["body"].dump())).c_str());
  if (life["groups"].empty()) std::printf("  no group took it\n");
  for (const auto& group : life["groups"]) {
    std::printf("  group %s: %s\n", text_of(group["group"]).c_str(),
                text_of(group["state"]).c_str());
    if (group.contains("why")) std::printf("    why: %s\n", text_of(group["why"]).c_str());
    print_steps(group["steps"], "    ");
    print_events(group["events"]);
  }
}

}  // namespace

int dead_list_command(const SpoolChoice& choice, const DeadChoice& dead, std::uint64_t after,
                      std::uint64_t limit, bool signatures, bool as_json) {
  const auto client = one_spool(choice);
  if (!client.ok()) return fail(client.error());
  const std::string query = query_of(filter_of(dead));
  if (signatures) return list_signatures(*client, query, as_json);
  const auto answer = client->get("/v0/dead?limit=" + std::to_string(limit) +
                                  "&after=" + std::to_string(after) + query);
  if (!answer.ok()) return fail(answer.error());
  if (as_json) {
    std::cout << answer->dump(2) << "\n";
    return 0;
  }
  std::vector<std::vector<std::string>> rows{
      {"sequence", "topic", "attempts", "died at", "cause", "reason"}};
  for (const auto& letter : (*answer)["dead"]) {
    rows.push_back({text_of(letter["sequence"]), text_of(letter["topic"]),
                    text_of(letter["attempts"]), text_of(letter["died_at"]),
                    text_of(letter["cause"]), text_of(letter["reason"])});
  }
  print_table(rows);
  if ((*answer)["dead"].size() >= limit) {
    std::printf("  there may be more: --after %s\n", text_of((*answer)["next"]).c_str());
  }
  return 0;
}

int dead_show_command(const SpoolChoice& choice, const std::string& group, std::uint64_t sequence,
                      bool as_json) {
  const auto client = one_spool(choice);
  if (!client.ok()) return fail(client.error());
  const auto answer = client->get("/v0/dead?limit=1&after=" + std::to_string(sequence - 1) +
                                  "&group=" + AdminClient::escape(group));
  if (!answer.ok()) return fail(answer.error());
  const auto& list = (*answer)["dead"];
  if (list.empty() || list.front()["sequence"] != sequence) {
    return fail(
        Error{ErrorCode::kNotFound,
              "message " + std::to_string(sequence) + " is no dead letter of group '" + group + "'",
              "", 0});
  }
  const auto& letter = list.front();
  if (as_json) {
    std::cout << letter.dump(2) << "\n";
    return 0;
  }
  for (const auto* name : {"sequence", "id", "topic", "key", "died_at", "cause", "reason",
                           "signature", "attempts", "worker"}) {
    std::printf("  %-10s %s\n", name, text_of(letter[name]).c_str());
  }
  std::printf("  %-10s %s\n", "body", text_of(json(letter["body"].dump())).c_str());
  print_steps(letter["steps"], "  ");
  for (const auto& attempt : letter["history"]) {
    std::printf("    %s  %s, attempts %s: %s\n", text_of(attempt["at"]).c_str(),
                text_of(attempt["worker"]).c_str(), text_of(attempt["attempts"]).c_str(),
                text_of(attempt["reason"]).c_str());
  }
  return 0;
}

int dead_change_command(const SpoolChoice& choice, const DeadChoice& dead,
                        const std::string& action, bool dry_run, bool as_json) {
  const bool filtered = !dead.topic.empty() || !dead.cause.empty() || !dead.signature.empty();
  if (dead.sequences.empty() && !dead.all && !filtered) {
    return fail(Error{ErrorCode::kInvalid,
                      "name sequences, give --topic, --cause or --signature, or --all", "", 0});
  }
  if (static_cast<int>(!dead.sequences.empty()) + static_cast<int>(filtered) +
          static_cast<int>(dead.all) !=
      1) {
    return fail(Error{ErrorCode::kInvalid,
                      "sequences, filters (--topic, --cause, --signature) and --all do not go "
                      "together",
                      "", 0});
  }
  const auto client = one_spool(choice);
  if (!client.ok()) return fail(client.error());
  json request = filter_of(dead);
  if (dead.all) request["all"] = true;
  if (dry_run) request["dry_run"] = true;
  if (!dead.sequences.empty()) request["sequences"] = dead.sequences;
  const auto answer = client->post("/v0/dead/" + action, request);
  if (!answer.ok()) return fail(answer.error());
  if (as_json) return print_json(*answer);
  const char* done = action == "retry" ? "pending again" : "dropped";
  if (dry_run) {
    std::printf("%s would be %s\n", text_of((*answer)["matched"]).c_str(), done);
  } else {
    std::printf("%s %s\n", text_of((*answer)["changed"]).c_str(), done);
  }
  return 0;
}

int dead_edit_command(const SpoolChoice& choice, const std::string& group, std::uint64_t sequence,
                      const std::string& body, bool as_json) {
  const auto parsed = parse_json(body);
  if (parsed.is_discarded()) {
    return fail(Error{ErrorCode::kInvalid,
                      "the body is no JSON, or nested too deep; write it like '{\"id\": 1}'", "",
                      0});
  }
  const auto client = one_spool(choice);
  if (!client.ok()) return fail(client.error());
  const auto answer =
      client->post("/v0/dead/edit", {{"group", group}, {"sequence", sequence}, {"body", parsed}});
  if (!answer.ok()) return fail(answer.error());
  if (as_json) return print_json(*answer);
  std::printf("message %llu has its new body for group %s and is pending again\n",
              static_cast<unsigned long long>(sequence), group.c_str());
  return 0;
}

int dead_decide_command(const SpoolChoice& choice, const std::string& group, std::uint64_t sequence,
                        const std::string& step, const std::string& value, bool as_json) {
  json request{{"group", group}, {"sequence", sequence}, {"step", step}, {"done", !value.empty()}};
  if (!value.empty()) {
    auto parsed = parse_json(value);
    if (parsed.is_discarded()) {
      return fail(Error{ErrorCode::kInvalid,
                        "the value is no JSON; write text with quotes: --done '\"tx-17\"'", "", 0});
    }
    request["value"] = std::move(parsed);
  }
  const auto client = one_spool(choice);
  if (!client.ok()) return fail(client.error());
  const auto answer = client->post("/v0/dead/decide", request);
  if (!answer.ok()) return fail(answer.error());
  if (as_json) return print_json(*answer);
  std::printf("step %s of message %llu %s\n", step.c_str(),
              static_cast<unsigned long long>(sequence),
              value.empty() ? "took no effect: it will run" : "is done: it will not run");
  return 0;
}

int group_command(const SpoolChoice& choice, const std::string& group, const std::string& action,
                  bool as_json) {
  const auto client = one_spool(choice);
  if (!client.ok()) return fail(client.error());
  const auto answer = client->post("/v0/group/" + action, {{"group", group}});
  if (!answer.ok()) return fail(answer.error());
  if (as_json) return print_json(*answer);
  const char* done = action == "pause"    ? "is paused; workers finish what they hold"
                     : action == "resume" ? "goes on"
                                          : "is dropped";
  std::printf("group %s %s\n", group.c_str(), done);
  return 0;
}

int group_list_command(const SpoolChoice& choice, bool as_json) {
  const auto client = one_spool(choice);
  if (!client.ok()) return fail(client.error());
  const auto status = client->get("/v0/status");
  if (!status.ok()) return fail(status.error());
  if (as_json) {
    std::cout << (*status)["groups"].dump(2) << "\n";
    return 0;
  }
  std::vector<std::vector<std::string>> rows{{"group", "pending", "dead", "workers", "topics", ""}};
  for (const auto& group : (*status)["groups"]) {
    std::string topics;
    for (const auto& topic : group["topics"])
      topics += (topics.empty() ? "" : " ") + text_of(topic);
    std::string notes;
    if (!group["attached"].get<bool>()) notes += "not in the config: dray group drop forgets it ";
    if (group["paused"].get<bool>()) notes += "paused ";
    const auto& limits = group["limits"];
    if (!limits["ordered"].get<bool>()) notes += "keys not obeyed ";
    if (limits.contains("concurrency"))
      notes += "concurrency " + text_of(limits["concurrency"]) + " ";
    if (limits.contains("rate_per_second")) {
      notes +=
          "rate " + text_of(limits["rate_per_second"]) + "/s, burst " + text_of(limits["burst"]);
    }
    rows.push_back({text_of(group["name"]), text_of(group["pending"]), text_of(group["dead"]),
                    text_of(group["workers"]), topics, notes});
  }
  print_table(rows);
  return 0;
}

int drain_command(const SpoolChoice& choice, const std::string& group, const std::string& timeout,
                  bool as_json) {
  const auto limit = parse_duration(timeout);
  if (!limit.ok()) return fail(limit.error());
  const auto client = one_spool(choice);
  if (!client.ok()) return fail(client.error());
  if (as_json) {
    const auto paused = client->post("/v0/group/pause", {{"group", group}});
    if (!paused.ok()) return fail(paused.error());
  } else if (const int code = group_command(choice, group, "pause", false); code != 0) {
    return code;
  }
  const auto deadline = std::chrono::steady_clock::now() + *limit;
  ProgressLine progress;
  for (;;) {
    const auto status = client->get("/v0/status");
    if (!status.ok()) return fail(status.error());
    for (const auto& each : (*status)["groups"]) {
      if (each["name"] != group) continue;
      if (each["in_flight"] == 0) {
        if (as_json) return print_json({{"done", true}});
        std::printf("its workers hold nothing any more; dray resume lets it go on\n");
        return 0;
      }
      progress.show("waiting for " + text_of(each["in_flight"]) + " deliveries");
    }
    if (std::chrono::steady_clock::now() >= deadline) {
      return fail(Error{ErrorCode::kTimeout,
                        "workers still hold messages of group '" + group + "' after " + timeout +
                            "; it stays paused",
                        "", 0});
    }
    std::this_thread::sleep_for(kLookEvery);
  }
}

int replay_command(const SpoolChoice& choice, const ReplayWish& wish, bool as_json) {
  std::int64_t since_ms = 0;
  if (!wish.since.empty()) {
    const auto since = since_ms_of(wish.since);
    if (!since.ok()) return fail(since.error());
    since_ms = *since;
  }
  const auto client = one_spool(choice);
  if (!client.ok()) return fail(client.error());
  json request{{"group", wish.group}, {"since_ms", since_ms}, {"dry_run", wish.dry_run}};
  if (!wish.where.empty()) request["where"] = wish.where;
  std::uint64_t matched = 0;
  std::uint64_t replayed = 0;
  std::uint64_t from = 1;
  {
    ProgressLine progress;
    for (;;) {
      request["from"] = from;
      const auto step = client->post("/v0/replay", request);
      if (!step.ok()) {
        if (replayed > 0) std::cerr << replayed << " were replayed before this:\n";
        return fail(step.error());
      }
      matched += (*step)["matched"].get<std::uint64_t>();
      replayed += (*step)["replayed"].get<std::uint64_t>();
      from = (*step)["next"].get<std::uint64_t>();
      const auto end = (*step)["end"].get<std::uint64_t>();
      request["before"] = end;  // what comes meanwhile is not meant
      if (from >= end) break;
      progress.show("replayed " + std::to_string(replayed) + ", " +
                    std::to_string(from * 100 / end) + " % of the log");
    }
  }
  if (as_json) {
    std::cout
        << json{{"matched", matched}, {"replayed", replayed}, {"dry_run", wish.dry_run}}.dump()
        << "\n";
    return 0;
  }
  if (matched == 0) {
    std::printf("nothing matched; settled messages are kept if the spool's config says 'retain'\n");
    return 0;
  }
  std::printf("%llu %s; %llu more matched and are pending or dead already\n",
              static_cast<unsigned long long>(replayed),
              wish.dry_run ? "would be replayed" : "replayed",
              static_cast<unsigned long long>(matched - replayed));
  return 0;
}

int show_command(const SpoolChoice& choice, const std::string& id, bool as_json) {
  const auto client = one_spool(choice);
  if (!client.ok()) return fail(client.error());
  const auto life = client->get("/v0/message?id=" + AdminClient::escape(id));
  if (!life.ok()) return fail(life.error());
  if (as_json) {
    std::cout << life->dump(2) << "\n";
  } else {
    print_life(*life);
  }
  return 0;
}

int confirm_clock_command(const SpoolChoice& choice) {
  const auto client = one_spool(choice);
  if (!client.ok()) return fail(client.error());
  const auto answer = client->post("/v0/clock/confirm", json::object());
  if (!answer.ok()) return fail(answer.error());
  std::printf("the wall clock counts as right; messages expire again\n");
  return 0;
}

}  // namespace dray::app
