// Config: what `dray run FILE` reads. TOML, with every fault found in one pass.
//
// Text values may hold ${NAME} and ${NAME:-default} from the environment. Durations and sizes
// carry units. A relative plugin_path is relative to the config file, all other paths to the
// working directory.
//
// Threading: values; load_config from one thread. Failure: all faults at once, each with
// file:line:column and what to do.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "dray/handler_policy.hpp"
#include "dray/publisher.hpp"
#include "dray/settings.hpp"

namespace dray::config {

struct Fault {
  std::string file;
  std::uint32_t line = 0;
  std::uint32_t column = 0;
  std::string message;

  // "shop.toml:12:3: unknown key 'plugn'; did you mean 'plugin'?"
  std::string text() const;
};

// CURVE keys, read from their files.
struct SpoolKeysConfig {
  std::string public_key, secret_key;
  std::string allow_file;  // empty: only the apps of this file
};
struct AppKeysConfig {
  std::string public_key, secret_key;
  std::map<std::string, std::string> servers;  // endpoint -> its public key
};

struct GroupConfig {
  std::string name;
  std::vector<std::string> topics;
  bool ordered = true;            // keys are obeyed
  std::uint32_t concurrency = 0;  // unanswered deliveries at a time; 0: no limit
  double rate_per_second = 0;     // deliveries; 0: no limit
  std::uint32_t burst = 1;        // of them at once, after a quiet time
};

struct SpoolConfig {
  std::string name;
  std::string directory;
  std::string bind;  // empty: nothing outside this process consumes
  Durability durability = Durability::kDisk;
  std::uint64_t max_size = 8ULL << 30;
  std::uint64_t preallocate = 0;       // disk that is made ready ahead of its use
  std::uint32_t held_max = 1'000'000;  // dead, delayed and retrying messages
  Milliseconds dedup_age{86'400'000};
  std::uint32_t dedup_count = 1'000'000;
  // Settled messages stay for so long, but not more of them than this; 0: no limit.
  Milliseconds retain_age{0};
  std::uint64_t retain_size = 0;
  std::vector<std::string> retain_topics;  // may be published without a group
  Milliseconds lease{10'000};
  Milliseconds reconnect_grace{2'000};
  std::optional<SpoolKeysConfig> keys;
  std::vector<GroupConfig> groups;
};

struct ConsumeConfig {
  std::string group;
  std::vector<std::string> endpoints;  // spool names are resolved already
};

struct AppConfig {
  std::string name;
  std::string plugin;
  std::optional<std::string> handler;
  std::optional<std::string> source;
  std::optional<std::string> publish;  // a spool of this file, owned and served by this app
  // The endpoint of a spool that another app, here or elsewhere, serves; not with `publish`.
  std::optional<std::string> publish_to;
  std::optional<ConsumeConfig> consume;
  std::optional<AppKeysConfig> keys;
  std::uint32_t window = 8'192;
  Milliseconds drain{10'000};    // deadline of a graceful stop
  std::uint64_t max_memory = 0;  // bytes in memory from which on it is started again; 0: no limit
  HandlerPolicy policy;          // what this file says of it
  Settings settings;
};

struct Config {
  std::string file;
  std::vector<std::string> plugin_path;
  std::map<std::string, SpoolConfig> spools;
  std::vector<AppConfig> apps;  // in the order of the file

  const AppConfig* find_app(const std::string& name) const;
};

struct Loaded {
  Config config;
  std::vector<Fault> faults;  // empty: the config is good
};

// Where an app of this machine finds what is bound to all its addresses.
std::string local_endpoint(std::string bind);

Loaded load_config(const std::string& file);
// The same from text; `file` is for messages.
Loaded parse_config(const std::string& text, const std::string& file);

}  // namespace dray::config
