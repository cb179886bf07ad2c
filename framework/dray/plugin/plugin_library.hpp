// PluginLibrary: a loaded plugin file, and its handlers and sources as the launcher uses them.
//
// Threading: load from one thread; consumers and sources as their interfaces say.
// Failure: a file that is missing, is no plugin, or has another ABI major is an error that names
// the file and both versions. A plugin that crashes takes this process with it: that is why each
// app is a process of its own.
// Ownership: libraries are never unloaded (dlclose with live threads or atexit handlers is a
// crash); the tables stay valid for the life of the process.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "dray/consumer.hpp"

namespace dray {

// A source behind the border.
class HostedSource {
 public:
  virtual ~HostedSource() = default;
  // Returns when the source does; an error if it threw.
  virtual Status run(Publisher& publisher, std::stop_token stop) = 0;
};

class PluginLibrary {
 public:
  // `name` is a path with a '/', or a name: file lib<name>.so in one of `folders`, tried in order.
  static Result<PluginLibrary> load(const std::string& name,
                                    const std::vector<std::string>& folders);

  const std::string& path() const { return path_; }
  std::vector<std::string> handler_names() const;
  std::vector<std::string> source_names() const;

  // What the handler's author thinks best. kNotFound with the names there are.
  Result<HandlerPolicy> policy_of(const std::string& handler) const;

  // Error kNotFound with the names there are; kInvalid with the plugin's own words if the object
  // refuses its settings.
  Result<std::unique_ptr<Consumer>> create_handler(const std::string& name,
                                                   const Settings& settings, const Log& log) const;
  Result<std::unique_ptr<HostedSource>> create_source(const std::string& name,
                                                      const Settings& settings,
                                                      const Log& log) const;

 private:
  PluginLibrary(std::string path, const dray_plugin* table)
      : path_(std::move(path)), table_(table) {}

  std::string path_;
  const dray_plugin* table_;
};

}  // namespace dray
