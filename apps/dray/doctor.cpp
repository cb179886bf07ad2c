#include "dray/doctor.hpp"

#include <fcntl.h>
#include <netdb.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/statvfs.h>
#include <sys/timex.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <iostream>

#include "dray/command_tools.hpp"
#include "dray/disk/posix_directory.hpp"
#include "dray/node.hpp"
#include "dray/spool/inspection.hpp"
#include "dray/text.hpp"

namespace dray::app {
namespace {

using nlohmann::json;

constexpr std::uint64_t kSegmentBytes = 64ULL << 20;
constexpr std::uint64_t kSpareFiles = 512;  // beside segments: connections, plugins
constexpr double kNearlyFull = 0.8;
constexpr auto kSlowSync = std::chrono::milliseconds(10);
constexpr auto kStall = std::chrono::seconds(1);
constexpr auto kLongWait = std::chrono::minutes(5);
constexpr auto kConnectPatience = std::chrono::seconds(2);

enum class Level { kOk, kWarning, kFault };

struct Finding {
  Level level;
  std::string subject, what, advice;
};

// Collects what is found about one subject after the other.
class Findings {
 public:
  void about(std::string subject) { subject_ = std::move(subject); }
  void ok(std::string what) { list_.push_back({Level::kOk, subject_, std::move(what), ""}); }
  void warn(std::string what, std::string advice) {
    list_.push_back({Level::kWarning, subject_, std::move(what), std::move(advice)});
  }
  void fault(std::string what, std::string advice) {
    list_.push_back({Level::kFault, subject_, std::move(what), std::move(advice)});
  }
  const std::vector<Finding>& list() const { return list_; }
  std::size_t count(Level level) const {
    return static_cast<std::size_t>(std::count_if(
        list_.begin(), list_.end(), [&](const Finding& each) { return each.level == level; }));
  }

 private:
  std::string subject_;
  std::vector<Finding> list_;
};

// The owner's view of a spool: from the config, or, given only its folder, from its status.
struct Patient {
  std::string name, directory;
  const config::SpoolConfig* config = nullptr;
  std::string target;  // what commands call it
};

std::string count_text(std::uint64_t count, const char* one, const char* several) {
  return std::to_string(count) + " " + (count == 1 ? one : several);
}

void look_at_machine(Findings& findings, std::uint64_t segments) {
  findings.about("machine");
  timex clock{};
  if (const int state = adjtimex(&clock); state < 0 || (clock.status & STA_UNSYNC) != 0) {
    findings.warn("the clock is not known to be synchronised",
                  "delays, expiry and retries go by it: run chrony or systemd-timesyncd");
  } else {
    findings.ok("the clock is synchronised");
  }
  rlimit files{};
  getrlimit(RLIMIT_NOFILE, &files);
  const std::uint64_t wanted = segments + kSpareFiles;
  if (files.rlim_max != RLIM_INFINITY && files.rlim_max < wanted) {
    findings.fault("a process may have " + std::to_string(files.rlim_max) +
                       " files open; the largest spool may need " + std::to_string(wanted),
                   "raise the limit: LimitNOFILE= of systemd, or /etc/security/limits.conf");
  } else {
    findings.ok("a process may have enough files open");
  }
}

// The times that a write of 4 KiB and its sync take in that folder, ascending, as in a spool that
// writes over blocks that it has.
Result<std::vector<std::chrono::microseconds>> sync_times(const std::string& folder) {
  constexpr int kRounds = 32;
  const int file = open(folder.c_str(), O_TMPFILE | O_WRONLY | O_CLOEXEC, 0600);
  if (file < 0) return Error{ErrorCode::kIo, std::strerror(errno), folder, 0};
  const std::string block(4096, 'd');
  std::vector<std::chrono::microseconds> times;
  bool failed = false;
  for (int i = 0; i <= kRounds && !failed; ++i) {
    const auto began = std::chrono::steady_clock::now();
    failed = pwrite(file, block.data(), block.size(), 0) != static_cast<ssize_t>(block.size()) ||
             fdatasync(file) != 0;
    if (i == 0) continue;  // it allocates
    times.push_back(std::chrono::duration_cast<std::chrono::microseconds>(
        std::chrono::steady_clock::now() - began));
  }
  const int error = errno;
  close(file);
  if (failed) return Error{ErrorCode::kIo, std::strerror(error), folder, 0};
  std::sort(times.begin(), times.end());
  return times;
}

std::string time_text(std::chrono::microseconds time) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.2f ms", static_cast<double>(time.count()) / 1'000);
  return text;
}

void look_at_disk(Findings& findings, const Patient& patient, bool durable) {
  const auto folder = patient.directory;
  if (access(folder.c_str(), W_OK | X_OK) != 0) {
    findings.fault("this user may not write in " + folder,
                   "run as the user that runs its app, or change the owner of the folder");
    return;
  }
  if (auto opened = open_posix_directory(folder, false); opened.ok()) {
    const auto reason = (*opened)->volatile_reason();
    if (!reason.empty() && durable) {
      findings.fault("the folder lies on " + reason + ", which loses what was synced",
                     "move 'directory' to a local disk, or set durability = \"os\"");
    }
  }
  const auto times = sync_times(folder);
  if (!times.ok()) {
    findings.warn("how long a sync takes cannot be measured: " + times.error().message, "");
  } else {
    const auto typical = (*times)[times->size() / 2];
    const auto worst = times->back();
    const std::string what = "a write and its sync take " + time_text(typical) + ", at worst " +
                             time_text(worst) + " of " + std::to_string(times->size());
    if (durable && (typical > kSlowSync || worst > kStall)) {
      findings.warn(what,
                    "no durable receipt is faster than that: a faster disk, or one that is "
                    "less busy");
    } else {
      findings.ok(what);
    }
  }
  struct statvfs space {};
  if (patient.config == nullptr || statvfs(folder.c_str(), &space) != 0) return;
  const std::uint64_t free = space.f_bavail * space.f_frsize;
  std::uint64_t used = 0;
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator(folder, ignored)) {
    if (entry.is_regular_file(ignored)) used += entry.file_size(ignored);
  }
  const std::uint64_t missing = patient.config->max_size - std::min(patient.config->max_size, used);
  if (free < missing) {
    findings.warn(
        "the disk has " + size_text(free) + " free, and the spool may grow by " +
            size_text(missing) + " (max_size = " + size_text(patient.config->max_size) + ")",
        "free some, or lower max_size: then it refuses in time, not when the disk is full");
  } else {
    findings.ok(size_text(free) + " free on its disk");
  }
}

void look_at_group(Findings& findings, const Patient& patient, const json& group,
                   const std::string& consumer) {
  const std::string name = text_of(group["name"]);
  const std::string command = " " + patient.target + " " + name;
  const auto pending = group["pending"].get<std::uint64_t>();
  const auto dead = group["dead"].get<std::uint64_t>();
  const bool paused = group["paused"].get<bool>();
  const auto workers = group["workers"].get<std::uint64_t>();
  const std::string waits = count_text(pending, "message waits", "messages wait");
  if (dead > 0) {
    findings.warn("group " + name + " has " + count_text(dead, "dead letter", "dead letters"),
                  "dray dead list" + command + " --signatures");
  }
  if (!group["attached"].get<bool>()) {
    findings.warn("group " + name + " is not in the config any more; it keeps " +
                      count_text(pending, "message", "messages"),
                  "dray group drop" + command + " forgets it");
    return;
  }
  if (paused) {
    findings.warn("group " + name + " is paused; " + waits, "dray resume" + command);
    return;
  }
  if (workers == 0 && pending > 0) {
    findings.fault("nobody works for group " + name + "; " + waits,
                   consumer.empty() ? "start the app that consumes it"
                                    : "start app." + consumer + ", or look at its log");
    return;
  }
  if (workers == 0) {
    findings.warn("nobody works for group " + name + " at the moment",
                  consumer.empty() ? "start the app that consumes it"
                                   : "start app." + consumer + ", or look at its log");
    return;
  }
  const auto oldest = group.contains("oldest_at") ? parse_utc(text_of(group["oldest_at"]))
                                                  : std::optional<UtcTime>();
  if (oldest && SystemClock().utc() - *oldest > kLongWait) {
    findings.warn(
        "group " + name + " is behind: the oldest of " +
            count_text(pending, "message", "messages") + " waits for " + age_of(group, "oldest_at"),
        "dray peek" + command + " says why; more threads or workers help if all are busy");
    return;
  }
  findings.ok("group " + name + ": " + count_text(workers, "worker", "workers") + ", " +
              std::to_string(pending) + " pending");
}

// The config of today against what its owner serves.
void look_for_changes(Findings& findings, const config::SpoolConfig& spool, const json& status) {
  bool changed = status["max_size_bytes"] != spool.max_size ||
                 status["durability"] != std::string(durability_name(spool.durability));
  for (const auto& group : spool.groups) {
    const auto& groups = status["groups"];
    changed = changed || std::none_of(groups.begin(), groups.end(), [&](const json& each) {
                auto topics = each["topics"].get<std::vector<std::string>>();
                auto wanted = group.topics;
                std::sort(topics.begin(), topics.end());
                std::sort(wanted.begin(), wanted.end());
                return each["name"] == group.name && topics == wanted;
              });
  }
  if (changed) {
    findings.warn("the config was changed since the app that serves it was started",
                  "restart that app");
  }
}

void look_at_served(Findings& findings, const Patient& patient, const json& status,
                    const config::Config* config) {
  const auto size = status["size_bytes"].get<double>();
  const auto max = std::max(status["max_size_bytes"].get<double>(), 1.0);
  const std::string full =
      "it has " + size_text(status["size_bytes"].get<std::uint64_t>()) +
      " of max_size = " + size_text(status["max_size_bytes"].get<std::uint64_t>());
  if (size >= max) {
    findings.fault(full + ": it refuses new messages", "let workers catch up, or raise max_size");
  } else if (size >= kNearlyFull * max) {
    findings.warn(full, "it will refuse new messages: let workers catch up, or raise max_size");
  } else {
    findings.ok("served; " + full);
  }
  std::uint64_t held = 0;
  for (const auto& group : status["groups"]) held += group["held"].get<std::uint64_t>();
  const auto held_max = status["held_max"].get<std::uint64_t>();
  if (static_cast<double>(held) >= kNearlyFull * static_cast<double>(held_max)) {
    findings.warn(std::to_string(held) + " dead, delayed and retrying messages of held_max = " +
                      std::to_string(held_max),
                  "at the limit nothing new is delivered: settle dead letters, or raise held_max");
  }
  if (status["damaged_ranges"] != 0) {
    findings.fault(
        text_of(status["damaged_ranges"]) + " ranges of acknowledged records cannot be read",
        "dray spool verify " + patient.directory);
  }
  if (status["expiry_paused"].get<bool>()) {
    findings.warn("the wall clock jumped: nothing expires until it is steady",
                  "dray confirm-clock " + patient.target + " if it is right now");
  }
  if (patient.config != nullptr) look_for_changes(findings, *patient.config, status);
  for (const auto& worker : status["workers"]) {
    if (worker["connected"].get<bool>()) continue;
    findings.warn("the connection of worker " + text_of(worker["worker"]) + " is lost; it holds " +
                      count_text(worker["outstanding"].get<std::uint64_t>(), "message", "messages"),
                  "what it holds comes back when its lease ends");
  }
  for (const auto& group : status["groups"]) {
    std::string consumer;
    for (const auto& app : config == nullptr ? std::vector<config::AppConfig>() : config->apps) {
      const auto& consume = app.consume;
      if (consume && consume->group == group["name"] && patient.config != nullptr &&
          std::count(consume->endpoints.begin(), consume->endpoints.end(),
                     config::local_endpoint(patient.config->bind))) {
        consumer = app.name;
      }
    }
    look_at_group(findings, patient, group, consumer);
  }
}

void look_at_files(Findings& findings, const Patient& patient,
                   const Result<spool::SpoolFindings>& files, bool served) {
  if (!files.ok()) {
    if (files.error().code == ErrorCode::kNotFound && patient.config != nullptr) {
      return findings.ok("nothing was published yet");
    }
    return findings.fault(files.error().text(), "give a config file, or the directory of a spool");
  }
  for (const auto& each : files->unreadable) {
    findings.fault(each, "run as the user that runs its app; else the disk fails");
  }
  for (const auto& each : files->faults) {
    findings.fault(each, "dray spool verify " + patient.directory);
  }
  for (const auto& range : files->missing) {
    findings.fault(
        spool::segment_name(range.segment) + " is missing",
        "if there is a copy, stop its app and put it back; dray spool verify " + patient.directory);
  }
  if (!files->quarantined.empty()) {
    findings.warn(
        count_text(files->quarantined.size(), "damaged file is", "damaged files are") +
            " kept aside",
        "look at them if something is missing, then remove " + patient.directory + "/*.quarantine");
  }
  if (served || !files->best) return;
  std::uint64_t pending = 0;
  for (const auto& group : files->best->groups) pending += group.counts.pending;
  if (pending > 0) {
    findings.fault("at its last checkpoint " + count_text(pending, "message", "messages") +
                       " waited, and nobody serves it",
                   "start its app, or dray run --spool " + patient.directory);
  } else {
    findings.warn("nobody serves it", "start its app");
  }
}

void look_at_spool_of(Findings& findings, const Patient& patient, const config::Config* config) {
  findings.about("spool " + patient.name);
  std::error_code ignored;
  if (!std::filesystem::is_directory(patient.directory, ignored)) {
    findings.warn(patient.directory + " is not there yet", "the app that owns it makes it");
    return;
  }
  auto directory = open_posix_directory(patient.directory, false);
  if (!directory.ok()) return findings.fault(directory.error().text(), "");
  const auto files = spool::look_at_spool(**directory, false, nullptr);
  const auto status = AdminClient(patient.directory, AdminClient::kShortPatience).get("/v0/status");
  const bool served = status.ok() || status.error().code == ErrorCode::kTimeout;
  const bool durable = patient.config != nullptr ? patient.config->durability == Durability::kDisk
                                                 : status.ok() && (*status)["durability"] == "disk";
  look_at_disk(findings, patient, durable);
  look_at_files(findings, patient, files, served || (files.ok() && files->served));
  if (status.ok()) return look_at_served(findings, patient, *status, config);
  if (served) {
    findings.fault(status.error().message, "look at its log, and at dmesg for its disk");
  } else if (files.ok() && files->served) {
    findings.fault("a process holds it and does not answer", "is it starting, or another program?");
  }
}

// Whether somebody listens there; nothing for an endpoint that cannot be tried from here.
std::optional<bool> answers(const std::string& endpoint) {
  const auto try_to_connect = [](int domain, const sockaddr* address, socklen_t size) {
    const int socket_fd = socket(domain, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (socket_fd < 0) return false;
    bool there = connect(socket_fd, address, size) == 0;
    if (!there && errno == EINPROGRESS) {
      pollfd polled{socket_fd, POLLOUT, 0};
      const auto patience = std::chrono::milliseconds(kConnectPatience).count();
      int error = 1;
      socklen_t error_size = sizeof(error);
      there = poll(&polled, 1, static_cast<int>(patience)) == 1 &&
              getsockopt(socket_fd, SOL_SOCKET, SO_ERROR, &error, &error_size) == 0 && error == 0;
    }
    close(socket_fd);
    return there;
  };
  if (endpoint.rfind("ipc://", 0) == 0) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    const std::string path = endpoint.substr(6);
    if (path.empty() || path.front() == '@' || path.size() >= sizeof(address.sun_path)) return {};
    std::memcpy(address.sun_path, path.data(), path.size());
    return try_to_connect(AF_UNIX, reinterpret_cast<const sockaddr*>(&address), sizeof(address));
  }
  const auto colon = endpoint.rfind(':');
  if (endpoint.rfind("tcp://", 0) != 0 || colon <= 6) return {};
  std::string host = endpoint.substr(6, colon - 6);
  if (host.front() == '[' && host.back() == ']') host = host.substr(1, host.size() - 2);
  addrinfo wanted{};
  wanted.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  if (getaddrinfo(host.c_str(), endpoint.substr(colon + 1).c_str(), &wanted, &found) != 0) {
    return false;
  }
  bool there = false;
  for (const auto* each = found; each != nullptr && !there; each = each->ai_next) {
    there = try_to_connect(each->ai_family, each->ai_addr, each->ai_addrlen);
  }
  freeaddrinfo(found);
  return there;
}

// Spools elsewhere; those of this config are looked at as spools.
void look_at_endpoints(Findings& findings, const config::Config& config) {
  for (const auto& app : config.apps) {
    findings.about("app " + app.name);
    std::vector<std::string> endpoints;
    if (app.consume) endpoints = app.consume->endpoints;
    if (app.publish_to) endpoints.push_back(*app.publish_to);
    for (const auto& endpoint : endpoints) {
      const bool here = std::any_of(
          config.spools.begin(), config.spools.end(),
          [&](const auto& each) { return config::local_endpoint(each.second.bind) == endpoint; });
      if (here) continue;
      const auto there = answers(endpoint);
      if (!there) continue;
      if (*there) {
        findings.ok(endpoint + " answers");
      } else {
        findings.fault("nobody answers at " + endpoint,
                       "is the app that serves that spool running, its 'bind' this endpoint, and "
                       "the way there open?");
      }
    }
  }
}

int print(const Findings& findings, bool as_json) {
  static constexpr const char* kNames[] = {"ok", "warning", "fault"};
  static constexpr const char* kHeads[] = {"ok   ", "WARN ", "FAULT"};
  const auto faults = findings.count(Level::kFault);
  const auto warnings = findings.count(Level::kWarning);
  if (as_json) {
    json list = json::array();
    for (const auto& each : findings.list()) {
      list.push_back({{"level", kNames[static_cast<std::size_t>(each.level)]},
                      {"subject", each.subject},
                      {"what", each.what},
                      {"advice", each.advice}});
    }
    std::cout << json{{"findings", list}, {"faults", faults}, {"warnings", warnings}}.dump(2)
              << "\n";
    return faults == 0 ? 0 : kExitFailed;
  }
  for (const auto& each : findings.list()) {
    std::printf("%s  %s: %s\n", kHeads[static_cast<std::size_t>(each.level)],
                text_of(each.subject).c_str(), text_of(each.what).c_str());
    if (!each.advice.empty()) std::printf("         %s\n", text_of(each.advice).c_str());
  }
  if (faults + warnings == 0) {
    std::printf("all well\n");
  } else {
    std::printf("%s, %s\n", count_text(faults, "fault", "faults").c_str(),
                count_text(warnings, "warning", "warnings").c_str());
  }
  return faults == 0 ? 0 : kExitFailed;
}

}  // namespace

int doctor_command(const SpoolChoice& choice, bool as_json) {
  Findings findings;
  std::error_code ignored;
  if (!std::filesystem::exists(choice.target, ignored) || !choice.spool.empty()) {
    if (const auto found = directories(choice); !found.ok()) return fail(found.error());
  }
  if (std::filesystem::is_directory(choice.target)) {
    look_at_machine(findings, 0);
    look_at_spool_of(findings, {choice.target, choice.target, nullptr, choice.target}, nullptr);
    return print(findings, as_json);
  }
  const auto loaded = load_checked(choice.target);
  const auto& config = loaded.config;
  std::uint64_t segments = 0;
  for (const auto& [name, spool] : config.spools) {
    segments = std::max(segments, spool.max_size / kSegmentBytes);
  }
  look_at_machine(findings, segments);
  findings.about("config");
  for (const auto& fault : loaded.faults) findings.fault(fault.text(), "");
  if (loaded.faults.empty()) {
    findings.ok(config.file + ": " + count_text(config.apps.size(), "app", "apps") + ", " +
                count_text(config.spools.size(), "spool", "spools"));
  }
  for (const auto& [name, spool] : config.spools) {
    if (spool.directory.empty() || (!choice.spool.empty() && choice.spool != name)) continue;
    const std::string target =
        choice.target + (config.spools.size() > 1 ? " --spool " + name : std::string());
    look_at_spool_of(findings, {name, spool.directory, &spool, target}, &config);
  }
  look_at_endpoints(findings, config);
  return print(findings, as_json);
}

}  // namespace dray::app
