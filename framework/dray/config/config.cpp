#include "dray/config/config.hpp"

#include <toml++/toml.h>
#include <algorithm>
#include <charconv>
#include <filesystem>
#include <fstream>
#include <set>
#include <sstream>

#include "dray/spool/record_payload.hpp"
#include "dray/text.hpp"
#include "dray/transport/curve.hpp"
#include "dray/transport/resolver.hpp"
#include "dray/transport/socket.hpp"

namespace dray::config {

std::string Fault::text() const {
  std::string out = file;
  if (line != 0) out += ":" + std::to_string(line) + ":" + std::to_string(column);
  return out + ": " + message;
}

const AppConfig* Config::find_app(const std::string& name) const {
  const auto found = std::find_if(apps.begin(), apps.end(),
                                  [&](const AppConfig& app) { return app.name == name; });
  return found == apps.end() ? nullptr : &*found;
}

namespace {

class Faults {
 public:
  Faults(std::string file, std::vector<Fault>& out) : file_(std::move(file)), out_(out) {}
  void add(const toml::source_region& where, std::string message) {
    out_.push_back({file_, where.begin.line, where.begin.column, std::move(message)});
  }
  void add(const toml::node& node, std::string message) { add(node.source(), std::move(message)); }
  bool empty() const { return out_.empty(); }

 private:
  std::string file_;
  std::vector<Fault>& out_;
};

// Reads the keys of one table; what nobody asked for is a fault.
class TableReader {
 public:
  TableReader(const toml::table& table, std::string name, Faults& faults)
      : table_(table), name_(std::move(name)), faults_(faults) {}

  const toml::table& table() const { return table_; }
  const std::string& name() const { return name_; }

  const toml::node* find(const char* key) {
    known_.insert(key);
    return table_.get(key);
  }

  std::optional<std::string> text(const char* key) {
    const auto* node = find(key);
    if (node == nullptr) return std::nullopt;
    return text_of(*node, key);
  }

  std::optional<std::string> text_of(const toml::node& node, const std::string& key) {
    const auto raw = node.value_exact<std::string>();
    if (!raw) {
      faults_.add(node, "'" + key + "' must be text");
      return std::nullopt;
    }
    auto expanded = expand_environment(*raw);
    if (!expanded.ok()) {
      faults_.add(node, "'" + key + "': " + expanded.error().message);
      return std::nullopt;
    }
    return std::move(*expanded);
  }

  std::string required_text(const char* key) {
    const auto value = text(key);
    if (table_.get(key) == nullptr) {
      faults_.add(table_, name_ + " needs '" + key + "'");
    }
    return value.value_or("");
  }

  std::vector<std::string> texts(const char* key) {
    std::vector<std::string> values;
    const auto* node = find(key);
    if (node == nullptr) return values;
    if (const auto* list = node->as_array()) {
      for (const auto& each : *list) {
        if (auto value = text_of(each, key)) values.push_back(*value);
      }
    } else {
      faults_.add(*node, std::string("'") + key + "' must be a list of texts, like [\"a\"]");
    }
    return values;
  }

  void duration(const char* key, Milliseconds& out, Milliseconds least = Milliseconds(0)) {
    const auto* node = find(key);
    if (node == nullptr) return;
    if (node->is_number()) {
      faults_.add(*node, std::string("'") + key + "' has no unit; write it like \"30s\"");
      return;
    }
    const auto value = text_of(*node, key);
    if (!value) return;
    auto parsed = parse_duration(*value);
    if (!parsed.ok())
      return faults_.add(*node, "'" + std::string(key) + "': " + parsed.error().message);
    if (*parsed < least) {
      return faults_.add(*node,
                         "'" + std::string(key) + "' must be at least " + duration_text(least));
    }
    out = *parsed;
  }

  void size(const char* key, std::uint64_t& out, std::uint64_t least) {
    const auto* node = find(key);
    if (node == nullptr) return;
    if (node->is_number()) {
      faults_.add(*node, std::string("'") + key + "' has no unit; write it like \"2GiB\"");
      return;
    }
    const auto value = text_of(*node, key);
    if (!value) return;
    auto parsed = parse_size(*value);
    if (!parsed.ok())
      return faults_.add(*node, "'" + std::string(key) + "': " + parsed.error().message);
    if (*parsed < least) {
      return faults_.add(*node, "'" + std::string(key) + "' must be at least " + size_text(least));
    }
    out = *parsed;
  }

  void duration(const char* key, std::optional<Milliseconds>& out) {
    if (find(key) == nullptr) return;
    duration(key, out.emplace());
  }
  void integer(const char* key, std::optional<std::uint32_t>& out, std::uint32_t least,
               std::uint32_t most) {
    if (find(key) == nullptr) return;
    integer(key, out.emplace(), least, most);
  }

  void integer(const char* key, std::uint32_t& out, std::uint32_t least, std::uint32_t most) {
    const auto* node = find(key);
    if (node == nullptr) return;
    const auto value = node->value_exact<std::int64_t>();
    if (!value || *value < least || *value > most) {
      return faults_.add(*node, std::string("'") + key + "' must be an integer from " +
                                    std::to_string(least) + " to " + std::to_string(most));
    }
    out = static_cast<std::uint32_t>(*value);
  }

  const toml::table* subtable(const char* key) {
    const auto* node = find(key);
    if (node == nullptr) return nullptr;
    if (const auto* found = node->as_table()) return found;
    faults_.add(*node, std::string("'") + key + "' must be a table");
    return nullptr;
  }

  // Call when all keys were asked for.
  void finish() {
    for (const auto& [key, node] : table_) {
      const std::string name(key.str());
      if (known_.count(name) != 0) continue;
      std::string message = "unknown key '" + name + "' in " + name_;
      const std::string near = nearest_word(name, {known_.begin(), known_.end()});
      if (!near.empty()) message += "; did you mean '" + near + "'?";
      if (const auto place = place_of(name); near.empty() && !place.empty()) {
        message += "; it belongs in " + place;
      }
      faults_.add(key.source(), std::move(message));
    }
  }

 private:
  // Where a key is known that was given elsewhere.
  static std::string place_of(const std::string& key) {
    static const std::map<std::string, std::string> kPlaces{{"directory", "[spool.NAME]"},
                                                            {"bind", "[spool.NAME]"},
                                                            {"durability", "[spool.NAME]"},
                                                            {"max_size", "[spool.NAME]"},
                                                            {"preallocate", "[spool.NAME]"},
                                                            {"held_max", "[spool.NAME]"},
                                                            {"dedup", "[spool.NAME]"},
                                                            {"retain", "[spool.NAME]"},
                                                            {"lease", "[spool.NAME]"},
                                                            {"reconnect_grace", "[spool.NAME]"},
                                                            {"ordered", "a group"},
                                                            {"concurrency", "a group"},
                                                            {"rate", "a group"},
                                                            {"burst", "a group"},
                                                            {"plugin", "[app.NAME]"},
                                                            {"handler", "[app.NAME]"},
                                                            {"source", "[app.NAME]"},
                                                            {"publish", "[app.NAME]"},
                                                            {"publish_to", "[app.NAME]"},
                                                            {"consume", "[app.NAME]"},
                                                            {"threads", "[app.NAME]"},
                                                            {"window", "[app.NAME]"},
                                                            {"timeout", "[app.NAME]"},
                                                            {"drain", "[app.NAME]"},
                                                            {"max_memory", "[app.NAME]"},
                                                            {"settings", "[app.NAME]"},
                                                            {"max_attempts", "[app.NAME] retry"}};
    const auto found = kPlaces.find(key);
    return found == kPlaces.end() ? "" : found->second;
  }

  const toml::table& table_;
  std::string name_;
  Faults& faults_;
  std::set<std::string> known_;
};

void check_name(const toml::node& node, const std::string& what, const std::string& name,
                Faults& faults) {
  if (auto fault = name_fault(name)) faults.add(node, what + " '" + name + "': " + *fault);
}

void check_endpoint(const toml::node& node, const std::string& endpoint, bool is_bind, bool secured,
                    Faults& faults) {
  const auto fault = is_bind ? transport::endpoint_fault(endpoint, secured)
                             : transport::connect_fault(endpoint, secured);
  if (fault) {
    faults.add(node, "endpoint '" + endpoint + "': " + *fault);
  }
}

// Key files are found beside the config.
std::string beside(const std::string& file, const std::string& path) {
  const std::filesystem::path given(path);
  if (given.is_absolute()) return path;
  return (std::filesystem::path(file).parent_path() / given).lexically_normal().string();
}

// Into keys of a spool or of an app.
template <typename Keys>
void read_secret(TableReader& reader, const toml::table& table, const std::string& file, Keys& keys,
                 Faults& faults) {
  const std::string path = reader.required_text("secret");
  if (path.empty()) return;
  auto own = transport::read_curve_secret(beside(file, path));
  if (!own.ok()) return faults.add(*table.get("secret"), "'secret': " + own.error().text());
  keys.public_key = own->public_key;
  keys.secret_key = own->secret_key;
}

std::optional<SpoolKeysConfig> read_spool_keys(const toml::table& table, const std::string& name,
                                               const std::string& file, Faults& faults) {
  TableReader reader(table, name + ".keys", faults);
  SpoolKeysConfig keys;
  read_secret(reader, table, file, keys, faults);
  if (const auto allow = reader.text("allow")) {
    keys.allow_file = beside(file, *allow);
    const auto allowed = transport::read_allow_list(keys.allow_file);
    if (!allowed.ok()) faults.add(*table.get("allow"), "'allow': " + allowed.error().text());
  }
  reader.finish();
  return keys;
}

// `server` is one file for all endpoints, or a table of endpoint and file.
std::optional<AppKeysConfig> read_app_keys(const toml::table& table, const std::string& name,
                                           const std::vector<std::string>& endpoints,
                                           const std::string& file, Faults& faults) {
  TableReader reader(table, name + ".keys", faults);
  AppKeysConfig keys;
  read_secret(reader, table, file, keys, faults);
  const auto read_server = [&](const toml::node& node, const std::string& endpoint) {
    const auto path = reader.text_of(node, "server");
    if (!path) return;
    const auto key = transport::read_curve_public(beside(file, *path));
    if (key.ok()) {
      keys.servers[endpoint] = *key;
    } else {
      faults.add(node, "'server': " + key.error().text());
    }
  };
  const auto* server = reader.find("server");
  if (server == nullptr) {
    faults.add(table, name + ".keys needs 'server': the .public file of the spool it takes from");
  } else if (const auto* each = server->as_table()) {
    for (const auto& [endpoint, node] : *each) {
      const std::string given(endpoint.str());
      if (std::find(endpoints.begin(), endpoints.end(), given) == endpoints.end()) {
        faults.add(node, "'" + given + "' is no endpoint that this app takes from");
      }
      read_server(node, given);
    }
  } else {
    for (const auto& endpoint : endpoints) read_server(*server, endpoint);
  }
  reader.finish();
  return keys;
}

// "100/s", "30/m" or "5/h"; deliveries a second. Nothing: it is no rate.
std::optional<double> parse_rate(const std::string& text) {
  const auto slash = text.find('/');
  if (slash == std::string::npos) return std::nullopt;
  double count = 0;
  const auto* end = text.data() + slash;
  const auto [stop, failed] = std::from_chars(text.data(), end, count);
  if (failed != std::errc() || stop != end || !(count > 0) || count > 1e9) return std::nullopt;
  const std::string unit = text.substr(slash + 1);
  if (unit == "s") return count;
  if (unit == "m") return count / 60;
  if (unit == "h") return count / 3600;
  return std::nullopt;
}

void read_limits(TableReader& reader, const toml::table& table, GroupConfig& group,
                 Faults& faults) {
  if (const auto* ordered = reader.find("ordered")) {
    const auto value = ordered->value_exact<bool>();
    if (!value) faults.add(*ordered, "'ordered' must be true or false");
    group.ordered = value.value_or(true);
  }
  reader.integer("concurrency", group.concurrency, 1, 1'000'000);
  if (const auto* rate = reader.find("rate")) {
    const auto text = rate->value_exact<std::string>();
    const auto value = text ? parse_rate(*text) : std::nullopt;
    if (!value) {
      faults.add(*rate, "'rate' must be text like \"100/s\", \"30/m\" or \"5/h\"");
    }
    group.rate_per_second = value.value_or(0);
    // A tenth of a second's worth, unless it says otherwise.
    group.burst = static_cast<std::uint32_t>(std::max(1.0, group.rate_per_second / 10));
  }
  reader.integer("burst", group.burst, 1, 1'000'000);
  if (table.contains("burst") && !table.contains("rate")) {
    faults.add(*table.get("burst"), "'burst' goes with 'rate'");
  }
}

SpoolConfig read_spool(const std::string& name, const toml::table& table, const std::string& file,
                       Faults& faults) {
  TableReader reader(table, "spool." + name, faults);
  SpoolConfig spool;
  spool.name = name;
  check_name(table, "spool", name, faults);
  spool.directory = reader.required_text("directory");
  spool.bind = reader.text("bind").value_or("");
  if (const auto* keys = reader.subtable("keys")) {
    spool.keys = read_spool_keys(*keys, "spool." + name, file, faults);
  }
  if (!spool.bind.empty()) {
    check_endpoint(*table.get("bind"), spool.bind, true, spool.keys.has_value(), faults);
  }
  if (const auto durability = reader.text("durability")) {
    if (*durability == "os") {
      spool.durability = Durability::kOs;
    } else if (*durability != "disk") {
      faults.add(*table.get("durability"),
                 "'durability' must be \"disk\" (survives power loss) or \"os\" (survives a crash "
                 "of the program)");
    }
  }
  reader.size("max_size", spool.max_size, 256ULL << 20);
  reader.size("preallocate", spool.preallocate, 0);
  if (spool.preallocate > spool.max_size) {
    faults.add(*table.get("preallocate"), "'preallocate' is more than 'max_size'");
  }
  reader.integer("held_max", spool.held_max, 1'000, 100'000'000);
  if (const auto* dedup = reader.subtable("dedup")) {
    TableReader dedup_reader(*dedup, "spool." + name + ".dedup", faults);
    dedup_reader.duration("age", spool.dedup_age, Milliseconds(1'000));
    dedup_reader.integer("count", spool.dedup_count, 1, 100'000'000);
    dedup_reader.finish();
  }
  if (const auto* retain = reader.subtable("retain")) {
    TableReader retain_reader(*retain, "spool." + name + ".retain", faults);
    retain_reader.duration("age", spool.retain_age, Milliseconds(1'000));
    retain_reader.size("max_size", spool.retain_size, 1ULL << 20);
    spool.retain_topics = retain_reader.texts("topics");
    for (const auto& topic : spool.retain_topics) check_name(*retain, "topic", topic, faults);
    if (spool.retain_age.count() == 0) faults.add(*retain, "'retain' needs an 'age'");
    retain_reader.finish();
  }
  reader.duration("lease", spool.lease, Milliseconds(100));
  reader.duration("reconnect_grace", spool.reconnect_grace);
  if (const auto* groups = reader.subtable("group")) {
    for (const auto& [key, node] : *groups) {
      const auto* group_table = node.as_table();
      if (group_table == nullptr) {
        faults.add(node, "a group is a table: [spool." + name + ".group.NAME]");
        continue;
      }
      GroupConfig group;
      group.name = key.str();
      check_name(node, "group", group.name, faults);
      TableReader group_reader(*group_table, "spool." + name + ".group." + group.name, faults);
      group.topics = group_reader.texts("topics");
      if (group.topics.empty()) faults.add(node, "group '" + group.name + "' needs topics");
      for (const auto& topic : group.topics) check_name(node, "topic", topic, faults);
      read_limits(group_reader, *group_table, group, faults);
      group_reader.finish();
      spool.groups.push_back(std::move(group));
    }
  }
  reader.finish();
  return spool;
}

void read_retry(const toml::table& table, const std::string& name, HandlerPolicy& policy,
                Faults& faults) {
  TableReader reader(table, name + ".retry", faults);
  reader.integer("max_attempts", policy.max_attempts, 1, 1'000'000);
  reader.duration("initial", policy.retry_initial);
  reader.duration("max", policy.retry_max);
  for (const auto& time : {policy.retry_initial, policy.retry_max}) {
    if (time && time->count() > UINT32_MAX) faults.add(table, "a retry waits for 49 days at most");
  }
  if (const auto* jitter = reader.find("jitter")) {
    const auto value = jitter->value<double>();
    if (!value || *value < 0 || *value > 1) {
      faults.add(*jitter, "'jitter' must be a number from 0 to 1");
    } else {
      policy.retry_jitter = *value;
    }
  }
  if (policy.retry_max && policy.retry_initial && *policy.retry_max < *policy.retry_initial)
    faults.add(table, "'max' is smaller than 'initial'");
  reader.finish();
}

Settings read_settings(const toml::table& table, const std::string& name, Faults& faults) {
  std::map<std::string, Settings::Scalar> values;
  TableReader reader(table, name + ".settings", faults);
  for (const auto& [key, node] : table) {
    const std::string each(key.str());
    if (const auto flag = node.value_exact<bool>()) {
      values[each] = *flag;
    } else if (const auto whole = node.value_exact<std::int64_t>()) {
      values[each] = *whole;
    } else if (const auto real = node.value_exact<double>()) {
      values[each] = *real;
    } else if (node.is_string()) {
      if (const auto text = reader.text_of(node, each)) values[each] = *text;
    } else {
      faults.add(node, "setting '" + each + "' must be text, a number or true/false");
    }
  }
  return Settings(std::move(values));
}

// An app takes from spools of its own file with their keys, if it has no `own` ones.
void add_spool_keys(const SpoolConfig& spool, const toml::table& table, const std::string& name,
                    bool own, std::optional<AppKeysConfig>& keys, Faults& faults) {
  if (!spool.keys) return;
  if (!keys) keys = AppKeysConfig{spool.keys->public_key, spool.keys->secret_key, {}};
  if (!own && keys->public_key != spool.keys->public_key) {
    faults.add(table,
               name + " takes from spools with different keys, so it needs 'keys' of its own");
  }
  keys->servers[local_endpoint(spool.bind)] = spool.keys->public_key;
}

std::optional<ConsumeConfig> read_consume(const toml::table& table, const std::string& name,
                                          const std::map<std::string, SpoolConfig>& spools,
                                          const toml::table* keys_table,
                                          const std::optional<std::string>& publish_to,
                                          const std::string& file,
                                          std::optional<AppKeysConfig>& keys, Faults& faults) {
  TableReader reader(table, name + ".consume", faults);
  ConsumeConfig consume;
  consume.group = reader.required_text("group");
  const auto from = reader.texts("from");
  if (from.empty())
    faults.add(table, name + ".consume needs 'from': a list of spools or endpoints");
  std::vector<std::string> endpoints;
  for (const auto& each : from) {
    if (each.find("://") != std::string::npos) endpoints.push_back(each);
  }
  if (publish_to && publish_to->find("://") != std::string::npos) endpoints.push_back(*publish_to);
  if (keys_table != nullptr) keys = read_app_keys(*keys_table, name, endpoints, file, faults);
  for (const auto& each : from) {
    if (each.find("://") != std::string::npos) {
      check_endpoint(table, each, false, keys && keys->servers.count(each) != 0, faults);
      consume.endpoints.push_back(each);
      continue;
    }
    const auto spool = spools.find(each);
    if (spool == spools.end()) {
      std::vector<std::string> names;
      for (const auto& [known, ignored] : spools) names.push_back(known);
      const std::string near = nearest_word(each, names);
      faults.add(table, "no spool '" + each + "' in this file" +
                            (near.empty() ? "; name one, or give an endpoint like \"ipc://path\""
                                          : "; did you mean '" + near + "'?"));
      continue;
    }
    const auto& groups = spool->second.groups;
    const bool known = std::any_of(groups.begin(), groups.end(), [&](const GroupConfig& group) {
      return group.name == consume.group;
    });
    if (!known) {
      faults.add(table, "spool '" + each + "' has no group '" + consume.group + "'; add [spool." +
                            each + ".group." + consume.group + "]");
    }
    if (spool->second.bind.empty()) {
      faults.add(table, "spool '" + each + "' has no 'bind', so nothing can consume from it");
    }
    add_spool_keys(spool->second, table, name, keys_table != nullptr, keys, faults);
    consume.endpoints.push_back(local_endpoint(spool->second.bind));
  }
  reader.finish();
  return consume;
}

// `app.publish_to` is a spool of this file, or an endpoint; it becomes an endpoint.
void read_publish_to(const toml::table& table, const std::map<std::string, SpoolConfig>& spools,
                     const toml::table* keys_table, const std::string& file, AppConfig& app,
                     Faults& faults) {
  const std::string path = "app." + app.name;
  const auto& node = *table.get("publish_to");
  if (app.publish) {
    faults.add(node, path + " has 'publish' and 'publish_to'; an app publishes to one spool");
  }
  if (!app.source) {
    faults.add(node, path + " publishes, so it needs 'source'");
  }
  if (app.publish_to->find("://") != std::string::npos) {
    if (keys_table != nullptr && !app.keys) {
      app.keys = read_app_keys(*keys_table, path, {*app.publish_to}, file, faults);
    }
    check_endpoint(node, *app.publish_to, false,
                   app.keys && app.keys->servers.count(*app.publish_to) != 0, faults);
    return;
  }
  const auto spool = spools.find(*app.publish_to);
  if (spool == spools.end()) {
    return faults.add(node, "no spool '" + *app.publish_to +
                                "' in this file; name one, or give an endpoint like "
                                "\"tcp://orders.example.org:7000\"");
  }
  if (spool->second.bind.empty()) {
    faults.add(node,
               "spool '" + *app.publish_to + "' has no 'bind', so only its owner can publish");
  }
  if (keys_table != nullptr && !app.keys) {
    app.keys = read_app_keys(*keys_table, path, {}, file, faults);
  }
  add_spool_keys(spool->second, table, path, keys_table != nullptr, app.keys, faults);
  app.publish_to = local_endpoint(spool->second.bind);
}

AppConfig read_app(const std::string& name, const toml::table& table,
                   const std::map<std::string, SpoolConfig>& spools, const std::string& file,
                   Faults& faults) {
  const std::string path = "app." + name;
  TableReader reader(table, path, faults);
  AppConfig app;
  app.name = name;
  check_name(table, "app", name, faults);
  app.plugin = reader.required_text("plugin");
  app.handler = reader.text("handler");
  app.source = reader.text("source");
  app.publish = reader.text("publish");
  app.publish_to = reader.text("publish_to");
  const auto* keys = reader.subtable("keys");
  if (const auto* consume = reader.subtable("consume")) {
    app.consume =
        read_consume(*consume, path, spools, keys, app.publish_to, file, app.keys, faults);
  } else if (keys != nullptr && !app.publish_to) {
    faults.add(*keys, path +
                          " has 'keys', but takes from nowhere and publishes to no other's "
                          "spool; a spool has keys of its own");
  }
  if (app.publish_to) read_publish_to(table, spools, keys, file, app, faults);
  reader.integer("threads", app.policy.threads, 1, 1024);
  reader.integer("window", app.window, 1, 100'000);
  reader.duration("timeout", app.policy.timeout);
  reader.duration("drain", app.drain);
  reader.size("max_memory", app.max_memory, 32ULL << 20);
  if (const auto* retry = reader.subtable("retry")) read_retry(*retry, path, app.policy, faults);
  if (const auto* settings = reader.subtable("settings")) {
    app.settings = read_settings(*settings, path, faults);
  }
  reader.finish();
  if (!app.handler && !app.source) faults.add(table, path + " needs 'handler' or 'source'");
  if (app.handler && !app.consume) {
    faults.add(table,
               path + " has a handler, so it needs 'consume': { group = ..., from = [...] }");
  }
  if (!app.handler && app.consume) faults.add(table, path + " consumes, so it needs 'handler'");
  for (const char* key : {"threads", "window", "timeout", "retry"}) {
    const auto* node = table.get(key);
    if (node == nullptr || app.handler) continue;
    faults.add(*node, path + " has no handler, so '" + key + "' does nothing; take it out");
  }
  if (app.publish && spools.count(*app.publish) == 0) {
    faults.add(*table.get("publish"), "no spool '" + *app.publish + "' in this file");
  }
  return app;
}

void check_owners(const Config& config, const toml::table& root, Faults& faults) {
  std::map<std::string, std::string> owners;
  for (const auto& app : config.apps) {
    if (!app.publish) continue;
    const auto [owner, fresh] = owners.emplace(*app.publish, app.name);
    if (fresh) continue;
    faults.add(*root["app"][app.name].node(), "spool '" + *app.publish + "' is owned by app '" +
                                                  owner->second +
                                                  "' already; a spool has one owner");
  }
  for (const auto& [name, spool] : config.spools) {
    if (owners.count(name) != 0) continue;
    faults.add(*root["spool"][name].node(), "no app publishes to spool '" + name +
                                                "'; give one of them publish = \"" + name + "\"");
  }
}

// Two spools in one folder, or at one address, would be each other's end.
void check_places(const Config& config, const toml::table& root, Faults& faults) {
  std::map<std::string, std::string> taken;  // place -> spool
  for (const auto& [name, spool] : config.spools) {
    std::error_code ignored;
    const auto folder = std::filesystem::weakly_canonical(spool.directory, ignored).string();
    for (const auto& [what, place] :
         {std::pair<std::string, std::string>("directory", folder), {"bind", spool.bind}}) {
      if (place.empty()) continue;
      const auto [other, fresh] = taken.emplace(what + ' ' + place, name);
      if (fresh) continue;
      faults.add(*root["spool"][name].node(),
                 "spool." + name + " has the same '" + what + "' as spool." + other->second);
    }
    if (spool.groups.size() > spool::kGroupsMax) {
      faults.add(*root["spool"][name].node(),
                 "spool." + name + " has " + std::to_string(spool.groups.size()) +
                     " groups; the limit is " + std::to_string(spool::kGroupsMax));
    }
  }
}

}  // namespace

std::string local_endpoint(std::string bind) {
  for (const char* any : {"tcp://0.0.0.0:", "tcp://*:", "tcp://[::]:"}) {
    if (bind.starts_with(any)) bind.replace(0, std::string_view(any).size(), "tcp://127.0.0.1:");
  }
  return bind;
}

Loaded parse_config(const std::string& text, const std::string& file) {
  Loaded loaded;
  loaded.config.file = file;
  Faults faults(file, loaded.faults);
  toml::table root;
  try {
    root = toml::parse(text, file);
  } catch (const toml::parse_error& error) {
    faults.add(error.source(), std::string(error.description()));
    return loaded;
  }
  TableReader reader(root, "this file", faults);
  for (const auto& folder : reader.texts("plugin_path")) {
    const std::filesystem::path path(folder);
    const auto base = std::filesystem::path(file).parent_path();
    loaded.config.plugin_path.push_back(
        (path.is_absolute() ? path : base / path).lexically_normal().string());
  }
  if (const auto* spools = reader.subtable("spool")) {
    for (const auto& [key, node] : *spools) {
      const std::string name(key.str());
      if (const auto* table = node.as_table()) {
        loaded.config.spools[name] = read_spool(name, *table, file, faults);
      } else {
        faults.add(node, "a spool is a table: [spool.NAME]");
      }
    }
  }
  if (const auto* apps = reader.subtable("app")) {
    std::vector<std::pair<std::uint32_t, AppConfig>> in_order;
    for (const auto& [key, node] : *apps) {
      const std::string name(key.str());
      if (const auto* table = node.as_table()) {
        in_order.emplace_back(node.source().begin.line,
                              read_app(name, *table, loaded.config.spools, file, faults));
      } else {
        faults.add(node, "an app is a table: [app.NAME]");
      }
    }
    std::sort(in_order.begin(), in_order.end(),
              [](const auto& a, const auto& b) { return a.first < b.first; });
    for (auto& [line, app] : in_order) loaded.config.apps.push_back(std::move(app));
  }
  reader.finish();
  if (loaded.config.apps.empty() && faults.empty()) {
    faults.add(root, "this file has no app; add [app.NAME]");
  }
  check_owners(loaded.config, root, faults);
  check_places(loaded.config, root, faults);
  std::sort(loaded.faults.begin(), loaded.faults.end(), [](const Fault& a, const Fault& b) {
    return std::pair(a.line, a.column) < std::pair(b.line, b.column);
  });
  return loaded;
}

Loaded load_config(const std::string& file) {
  if (std::error_code ignored; std::filesystem::is_directory(file, ignored)) {
    Loaded loaded;
    loaded.faults.push_back({file, 0, 0, "is a directory; give the path of a config file"});
    return loaded;
  }
  std::ifstream in(file);
  std::ostringstream text;
  text << in.rdbuf();
  if (!in) {
    Loaded loaded;
    loaded.faults.push_back({file, 0, 0, "cannot be read; give the path of a config file"});
    return loaded;
  }
  return parse_config(text.str(), file);
}

}  // namespace dray::config
