#include "dray/commands.hpp"

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <iostream>

#include "dray/command_tools.hpp"
#include "dray/config/config.hpp"
#include "dray/node.hpp"
#include "dray/plugin/plugin_library.hpp"
#include "dray/standard_error_log.hpp"
#include "dray/supervisor.hpp"
#include "dray/text.hpp"
#include "dray/transport/curve.hpp"

namespace dray::app {
namespace {

using nlohmann::json;

int report(const std::vector<config::Fault>& faults) {
  for (const auto& fault : faults) std::cerr << fault.text() << "\n";
  if (!faults.empty()) {
    std::cerr << faults.size() << (faults.size() == 1 ? " fault\n" : " faults\n");
  }
  return faults.empty() ? 0 : kExitWrong;
}

// Plugin files and the names in them, as part of the config.
void check_plugins(const config::Config& config, std::vector<config::Fault>& faults) {
  for (const auto& app : config.apps) {
    const auto plugin = PluginLibrary::load(app.plugin, plugin_folders(config));
    const auto add = [&](const std::string& message) {
      faults.push_back({config.file, 0, 0, "app." + app.name + ": " + message});
    };
    if (!plugin.ok()) {
      add(plugin.error().text());
      continue;
    }
    const auto missing = [&](const char* kind, const std::optional<std::string>& name,
                             const std::vector<std::string>& names) {
      if (!name || std::find(names.begin(), names.end(), *name) != names.end()) return;
      std::string known;
      for (const auto& each : names) known += (known.empty() ? "" : ", ") + each;
      add("plugin '" + app.plugin + "' has no " + kind + " '" + *name + "'; it has " +
          (known.empty() ? "none" : known));
    };
    missing("handler", app.handler, plugin->handler_names());
    missing("source", app.source, plugin->source_names());
    if (!app.handler) continue;
    const auto policy = effective_policy(app, *plugin);
    if (!policy.ok() && policy.error().code == ErrorCode::kInvalid) {
      faults.push_back({config.file, 0, 0, policy.error().text()});
    }
  }
}

void print_status(const json& status) {
  std::printf("%s  (%s, epoch %s, %s of %s)\n", text_of(status["directory"]).c_str(),
              text_of(status["durability"]).c_str(), text_of(status["epoch"]).c_str(),
              size_text(status["size_bytes"]).c_str(), size_text(status["max_size_bytes"]).c_str());
  std::vector<std::vector<std::string>> rows{{"group", "accepted", "pending", "done", "dead",
                                              "expired", "dropped", "damaged", "in flight",
                                              "delayed", "oldest", "workers"}};
  for (const auto& group : status["groups"]) {
    std::vector<std::string> row;
    for (const auto* key : {"name", "accepted", "pending", "done", "dead", "expired", "dropped",
                            "damaged", "in_flight", "delayed"}) {
      row.push_back(text_of(group[key]));
    }
    row.push_back(age_of(group, "oldest_at"));
    row.push_back(text_of(group["workers"]));
    if (!group["attached"].get<bool>()) row.emplace_back("(not in the config)");
    if (group["paused"].get<bool>()) row.emplace_back("(paused: dray resume)");
    if (group["waiting_for_sessions"].get<bool>()) {
      row.emplace_back("(after a restart: older messages wait for workers to say what they hold)");
    }
    rows.push_back(std::move(row));
  }
  print_table(rows);
  if (status["damaged_ranges"] != 0) {
    std::printf("  %s ranges of acknowledged records are damaged: see the log of the last start\n",
                text_of(status["damaged_ranges"]).c_str());
  }
}

}  // namespace

config::Loaded load_checked(const std::string& file) {
  auto loaded = config::load_config(file);
  check_plugins(loaded.config, loaded.faults);
  return loaded;
}

int check_command(const std::string& file) {
  const auto loaded = load_checked(file);
  if (const int code = report(loaded.faults); code != 0) return code;
  const auto count = [](std::size_t number, const char* what) {
    return std::to_string(number) + " " + what + (number == 1 ? "" : "s");
  };
  std::printf("%s: good: %s, %s (settings are their plugins' to check, when these start)\n",
              file.c_str(), count(loaded.config.apps.size(), "app").c_str(),
              count(loaded.config.spools.size(), "spool").c_str());
  return 0;
}

int run_command(const std::string& file, const std::vector<std::string>& names) {
  auto loaded = config::load_config(file);
  std::vector<const config::AppConfig*> apps;
  for (const auto& name : names) {
    const auto* app = loaded.config.find_app(name);
    if (app == nullptr && loaded.faults.empty()) {
      std::vector<std::string> known;
      for (const auto& each : loaded.config.apps) known.push_back(each.name);
      const std::string near = nearest_word(name, known);
      loaded.faults.push_back(
          {file, 0, 0,
           "no app '" + name + "'" + (near.empty() ? "" : "; did you mean '" + near + "'?")});
    }
    apps.push_back(app);
  }
  if (const int code = report(loaded.faults); code != 0) return code;
  const auto* level = std::getenv("DRAY_LOG");
  const auto least = log_level_of(level == nullptr ? "info" : level);
  block_signals();
  if (apps.size() == 1) {
    return run_app(loaded.config, *apps.front(), standard_error_log(names.front(), least));
  }
  std::vector<config::Fault> faults;
  check_plugins(loaded.config, faults);
  if (const int code = report(faults); code != 0) return code;
  if (apps.empty()) {
    for (const auto& app : loaded.config.apps) apps.push_back(&app);
  }
  return supervise(loaded.config, apps, standard_error_log("dray", least));
}

int status_command(const SpoolChoice& choice, bool as_json) {
  const auto found = directories(choice);
  if (!found.ok()) return fail(found.error());
  json all = json::array();
  for (const auto& directory : *found) {
    auto status = AdminClient(directory, AdminClient::kShortPatience).get("/v0/status");
    if (!status.ok()) return fail(status.error());
    if (!as_json) print_status(*status);
    all.push_back(std::move(*status));
  }
  if (as_json) std::cout << json{{"spools", all}}.dump(2) << "\n";
  return 0;
}

int publish_command(const SpoolChoice& choice, const PublishWish& wish) {
  const auto client = one_spool(choice);
  if (!client.ok()) return fail(client.error());
  const auto parsed = parse_json(wish.body);
  if (parsed.is_discarded()) {
    return fail(Error{ErrorCode::kInvalid,
                      "the body is no JSON, or nested too deep; write it like '{\"id\": 1}'", "",
                      0});
  }
  json request{{"topic", wish.topic}, {"body", parsed}, {"priority", wish.priority}};
  if (!wish.key.empty()) request["key"] = wish.key;
  if (!wish.dedup.empty()) request["dedup"] = wish.dedup;
  for (const auto& [name, text] :
       {std::pair("delay_ms", wish.delay), {"expires_ms", wish.expires}}) {
    if (text.empty()) continue;
    const auto duration = parse_duration(text);
    if (!duration.ok()) return fail(duration.error());
    request[name] = duration->count();
  }
  const auto receipt = client->post("/v0/publish", request);
  if (!receipt.ok()) return fail(receipt.error());
  std::cout << receipt->dump() << "\n";
  return 0;
}

int keygen_command(const std::string& folder, const std::string& name) {
  if (const auto fault = name_fault(name)) {
    return fail(Error{ErrorCode::kInvalid, "name '" + name + "': " + *fault, "", 0});
  }
  const auto keys = transport::make_curve_keys();
  if (const auto written = transport::write_curve_keys(folder, name, keys); !written.ok()) {
    return fail(written.error());
  }
  std::cout
      << folder << "/" << name << ".secret  keep it on this machine, mode 0600\n"
      << folder << "/" << name << ".public  give it to those who connect to it\n\n"
      << "In the allow list of a spool, to let it work for it (or [publisher], to publish to it):"
         "\n[worker]\n\""
      << name << "\" = \"" << keys.public_key << "\"\n";
  return 0;
}

}  // namespace dray::app
