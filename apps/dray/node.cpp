#include "dray/node.hpp"

#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <functional>
#include <future>
#include <mutex>
#include <thread>

#include "dray/admin_server.hpp"
#include "dray/disk/posix_directory.hpp"
#include "dray/plugin/plugin_library.hpp"
#include "dray/process_usage.hpp"
#include "dray/remote_publisher.hpp"
#include "dray/spool/inspection.hpp"
#include "dray/spooler.hpp"
#include "dray/text.hpp"
#include "dray/thread_traits.hpp"
#include "dray/transport/curve.hpp"
#include "dray/worker.hpp"

namespace dray::app {
namespace {

// Why the node ends; the first reason counts.
class Ending {
 public:
  Ending() : fd_(eventfd(0, EFD_CLOEXEC)) { DRAY_ASSERT(fd_ >= 0); }
  ~Ending() { close(fd_); }
  Ending(const Ending&) = delete;
  Ending& operator=(const Ending&) = delete;

  // Any thread.
  void request(int exit_code) {
    int none = -1;
    exit_code_.compare_exchange_strong(none, exit_code);
    const std::uint64_t one = 1;
    [[maybe_unused]] const auto ignored = write(fd_, &one, sizeof(one));
  }

  // Waits for request() or a signal. `over`, asked once a second, ends it too.
  int wait(const std::function<bool()>& over = nullptr) {
    sigset_t signals;
    sigemptyset(&signals);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGINT);
    const int signal_fd = signalfd(-1, &signals, SFD_CLOEXEC);
    DRAY_ASSERT(signal_fd >= 0);
    pollfd polled[] = {{fd_, POLLIN, 0}, {signal_fd, POLLIN, 0}};
    while (poll(polled, 2, over ? 1'000 : -1) <= 0) {
      if (over && over()) request(kExitFailed);
    }
    close(signal_fd);
    const int requested = exit_code_;
    return requested < 0 ? 0 : requested;
  }

 private:
  int fd_;
  std::atomic<int> exit_code_{-1};
};

// For apps that own no spool.
class NoPublisher final : public Publisher {
 public:
  void publish_draft(Draft, ReceiptCallback done) override {
    done(Error{ErrorCode::kUnroutable,
               "this app publishes nowhere; give it publish = \"SPOOL\" or publish_to = "
               "\"ENDPOINT\" in the config",
               "", 0});
  }
};

// A part that does not end by the deadline must not keep the process: everything is durable.
void exit_by(Milliseconds deadline, const Log& log) {
  std::thread([deadline, log] {
    std::this_thread::sleep_for(deadline);
    log.error("the stop took longer than its deadline: exiting now");
    _exit(kExitFailed);
  }).detach();
}

struct Parts {
  std::unique_ptr<http::Server> admin;
  std::unique_ptr<Spooler> spooler;
  std::unique_ptr<RemotePublisher> remote;
  std::unique_ptr<Worker> worker;
  std::unique_ptr<HostedSource> source;
  NoPublisher nowhere;
  std::stop_source source_stop;
  std::thread source_thread;
  std::promise<void> source_ended;
};

int exit_code_of(const Error& error) {
  const bool wrong = error.code == ErrorCode::kInvalid || error.code == ErrorCode::kNotFound ||
                     error.code == ErrorCode::kUnsupported || error.code == ErrorCode::kConflict;
  return wrong ? kExitWrong : kExitFailed;
}

SpoolerOptions spooler_options(const config::SpoolConfig& spool, Ending& ending, const Log& log) {
  SpoolerOptions options;
  options.directory = spool.directory;
  options.bind = spool.bind;
  options.durability = spool.durability;
  options.max_size = spool.max_size;
  options.preallocate = spool.preallocate;
  options.held_max = spool.held_max;
  options.dedup_age = spool.dedup_age;
  options.dedup_count = spool.dedup_count;
  options.retain_age = spool.retain_age;
  options.retain_size = spool.retain_size;
  options.retain_topics = spool.retain_topics;
  options.lease = spool.lease;
  options.reconnect_grace = spool.reconnect_grace;
  if (const auto& keys = spool.keys) {
    options.keys = SpoolerKeys{keys->public_key, keys->secret_key, keys->allow_file};
  }
  for (const auto& group : spool.groups) {
    SpoolerGroup wanted{group.name, group.topics, {}};
    wanted.limits.ordered = group.ordered;
    wanted.limits.concurrency = group.concurrency;
    if (group.rate_per_second > 0) wanted.limits.rate = {group.rate_per_second, group.burst};
    options.groups.push_back(std::move(wanted));
  }
  options.log = log;
  // P7: the restart recovers.
  options.on_failure = [&ending](const Error&) { ending.request(kExitFailed); };
  return options;
}

// For people: host, app and process.
std::string node_name(const config::AppConfig& app) {
  char host[256] = "localhost";
  (void)gethostname(host, sizeof(host) - 1);
  return (std::string(host) + "/" + app.name + "/" + std::to_string(getpid())).substr(0, 256);
}

WorkerSettings worker_settings(const config::AppConfig& app, const HandlerPolicy& policy,
                               Ending& ending, const Log& log) {
  WorkerSettings settings;
  settings.name = node_name(app);
  settings.group = app.consume->group;
  settings.endpoints = app.consume->endpoints;
  if (const auto& keys = app.keys) {
    settings.keys = WorkerSettings::Keys{keys->public_key, keys->secret_key, keys->servers};
  }
  settings.threads = policy.threads.value_or(settings.threads);
  settings.window_max = app.window;
  settings.timeout = policy.timeout.value_or(settings.timeout);
  auto& retry = settings.retry;
  retry = {policy.max_attempts.value_or(retry.max_attempts),
           policy.retry_initial.value_or(retry.initial), policy.retry_max.value_or(retry.max),
           policy.retry_jitter.value_or(retry.jitter)};
  settings.on_exhausted = [&ending] { ending.request(kExitFailed); };
  settings.log = log;
  return settings;
}

RemotePublisherSettings remote_settings(const config::AppConfig& app, const Log& log) {
  RemotePublisherSettings settings;
  settings.endpoint = *app.publish_to;
  settings.name = node_name(app);
  if (app.keys) {
    const auto server = app.keys->servers.find(*app.publish_to);
    if (server != app.keys->servers.end()) {
      settings.keys =
          RemotePublisherSettings::Keys{app.keys->public_key, app.keys->secret_key, server->second};
    }
  }
  settings.log = log;
  return settings;
}

Status start_parts(const config::Config& config, const config::AppConfig& app,
                   const PluginLibrary& plugin, Parts& parts, Ending& ending, const Log& log) {
  if (app.publish) {
    const auto& spool = config.spools.at(*app.publish);
    auto opened = Spooler::open(spooler_options(spool, ending, log));
    if (!opened.ok()) return opened.error();
    parts.spooler = std::move(*opened);
    auto admin = start_admin_server(*parts.spooler, spool.directory, log);
    if (!admin.ok()) return admin.error();
    parts.admin = std::move(*admin);
  }
  if (app.publish_to) {
    auto remote = RemotePublisher::connect(remote_settings(app, log));
    if (!remote.ok()) return remote.error();
    parts.remote = std::move(*remote);
  }
  if (app.source) {
    auto source = plugin.create_source(*app.source, app.settings, log);
    if (!source.ok()) return source.error();
    parts.source = std::move(*source);
  }
  if (app.handler) {
    const auto policy = effective_policy(app, plugin);
    if (!policy.ok()) return policy.error();
    auto worker = Worker::start(worker_settings(app, *policy, ending, log), [&plugin, &app, log] {
      return plugin.create_handler(*app.handler, app.settings, log);
    });
    if (!worker.ok()) return worker.error();
    parts.worker = std::move(*worker);
  }
  if (!parts.source) return {};
  Publisher& publisher = parts.spooler  ? static_cast<Publisher&>(*parts.spooler)
                         : parts.remote ? static_cast<Publisher&>(*parts.remote)
                                        : parts.nowhere;
  parts.source_thread = std::thread([&parts, &publisher, &ending, log] {
    name_thread("dray-source");
    const auto ended = parts.source->run(publisher, parts.source_stop.get_token());
    if (!ended.ok()) log.error("the source failed: " + ended.error().text());
    parts.source_ended.set_value();
    // Worth a restart: a port that is still taken, a database that is busy.
    ending.request(ended.ok() ? 0 : kExitFailed);
  });
  return {};
}

// All of it within `drain`: what one part does not use is left for the next.
void stop_parts(Parts& parts, Milliseconds drain) {
  const auto deadline = std::chrono::steady_clock::now() + drain;
  const auto left = [deadline] {
    return std::max(Milliseconds(0), std::chrono::duration_cast<Milliseconds>(
                                         deadline - std::chrono::steady_clock::now()));
  };
  parts.source_stop.request_stop();
  std::thread closer;
  if (parts.remote) {
    // A source may wait for receipts of a spool that is away: those end in time, too.
    closer = std::thread([&] {
      if (parts.source_thread.joinable()) parts.source_ended.get_future().wait_for(left() / 2);
      (void)parts.remote->stop(left() / 2);
    });
  }
  if (parts.worker) {
    (void)parts.worker->drain(left());
    parts.worker->stop();
  }
  if (parts.source_thread.joinable()) parts.source_thread.join();
  if (closer.joinable()) closer.join();
  // The admin server's memory outlives the spool: a receipt's callback may hold a connection.
  if (parts.admin) parts.admin->stop();
  if (parts.spooler) parts.spooler->stop();
  parts.admin.reset();
}

// Why this folder is not to be served alone; nothing: it is a spool, and this user's.
std::optional<std::string> serve_fault(const std::string& path) {
  struct stat info {};
  if (stat(path.c_str(), &info) != 0 || !S_ISDIR(info.st_mode)) {
    return "no such folder; give the directory of a spool";
  }
  auto directory = open_posix_directory(path, false);
  if (!directory.ok()) return directory.error().text();
  if (!spool::holds_spool(**directory)) {
    return "no spool is here: no segments and no checkpoints; give the directory of a spool";
  }
  if (info.st_uid != geteuid()) {
    return "it belongs to another user (uid " + std::to_string(info.st_uid) +
           "), who could not open what this one writes; run it as that user";
  }
  return std::nullopt;
}

}  // namespace

void block_signals() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  sigaddset(&signals, SIGCHLD);
  sigprocmask(SIG_BLOCK, &signals, nullptr);
  signal(SIGPIPE, SIG_IGN);
}

std::vector<std::string> plugin_folders(const config::Config& config) {
  auto folders = config.plugin_path;
  std::error_code failed;
  const auto self = std::filesystem::read_symlink("/proc/self/exe", failed);
  if (failed) return folders;
  folders.push_back(self.parent_path().string());
  folders.push_back((self.parent_path() / DRAY_PLUGIN_FOLDER).lexically_normal().string());
  return folders;
}

Result<HandlerPolicy> effective_policy(const config::AppConfig& app, const PluginLibrary& plugin) {
  auto of_handler = plugin.policy_of(*app.handler);
  if (!of_handler.ok()) return of_handler.error();
  const HandlerPolicy policy = app.policy.over(*of_handler);
  const WorkerRetryPolicy otherwise;
  const auto initial = policy.retry_initial.value_or(otherwise.initial);
  const auto max = policy.retry_max.value_or(otherwise.max);
  if (max < initial) {
    return Error{ErrorCode::kInvalid,
                 "its handler's retry waits from " + duration_text(initial) + " to at most " +
                     duration_text(max) + "; set both 'initial' and 'max' of 'retry'",
                 "app." + app.name, 0};
  }
  return policy;
}

int run_app(const config::Config& config, const config::AppConfig& app, const Log& log) {
  auto plugin = PluginLibrary::load(app.plugin, plugin_folders(config));
  if (!plugin.ok()) {
    log.error(plugin.error().text());
    return kExitWrong;
  }
  Ending ending;
  Parts parts;
  const auto started = start_parts(config, app, *plugin, parts, ending, log);
  int code = 0;
  if (started.ok()) {
    log.info("app is running",
             {{"app", app.name}, {"pid", std::to_string(getpid())}, {"plugin", plugin->path()}});
    const auto over = [&] {
      const auto bytes = rss_bytes();
      if (bytes <= app.max_memory) return false;
      log.warning("the app takes more memory than max_memory: it stops, to be started again",
                  {{"app", app.name},
                   {"bytes", std::to_string(bytes)},
                   {"max_memory", std::to_string(app.max_memory)}});
      return true;
    };
    code = ending.wait(app.max_memory != 0 ? std::function<bool()>(over) : nullptr);
  } else {
    log.error(started.error().text());
    code = exit_code_of(started.error());
  }
  exit_by(app.drain + Milliseconds(2'000), log);
  stop_parts(parts, app.drain);
  log.info("app has stopped", {{"app", app.name}});
  return code;
}

int run_spool(const RunSpool& wanted, const Log& log) {
  const std::string& directory = wanted.directory;
  Ending ending;
  SpoolerOptions options;
  options.directory = directory;
  options.bind = wanted.bind.empty() ? "ipc://" + directory + "/dray.sock" : wanted.bind;
  if (!wanted.secret.empty()) {
    const auto keys = transport::read_curve_secret(wanted.secret);
    if (!keys.ok()) {
      log.error(keys.error().text());
      return kExitWrong;
    }
    options.keys = SpoolerKeys{keys->public_key, keys->secret_key, wanted.allow};
  }
  options.keep_groups = true;
  options.log = log;
  options.on_failure = [&ending](const Error&) { ending.request(kExitFailed); };
  if (const auto fault = serve_fault(directory)) {
    log.error(directory + ": " + *fault);
    return kExitWrong;
  }
  auto spooler = Spooler::open(options);
  if (!spooler.ok()) {
    log.error(spooler.error().text());
    return exit_code_of(spooler.error());
  }
  auto admin = start_admin_server(**spooler, directory, log);
  if (!admin.ok()) {
    log.error(admin.error().text());
    return exit_code_of(admin.error());
  }
  log.info("serving the spool alone", {{"directory", directory}, {"endpoint", options.bind}});
  const int code = ending.wait();
  (*admin)->stop();
  (*spooler)->stop();
  return code;
}

}  // namespace dray::app
