#include "dray/supervisor.hpp"

#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <optional>

#include "dray/node.hpp"

namespace dray::app {
namespace {

constexpr const char* kSupervisorVariable = "DRAY_SUPERVISOR";
constexpr auto kBackOffFirst = Milliseconds(500);
constexpr auto kBackOffMax = Milliseconds(30'000);
constexpr auto kStableAfter = std::chrono::seconds(5);
constexpr auto kAskedTwiceAfter = Milliseconds(1'000);
constexpr auto kKillAfterDrain = Milliseconds(3'000);

struct Child {
  const config::AppConfig* app = nullptr;
  pid_t pid = 0;  // 0: not running
  SteadyTime started{};
  SteadyTime start_at{};
  Milliseconds back_off = kBackOffFirst;
  bool ran = false;  // well, for a while
  std::optional<SteadyTime> kill_at;
};

class Supervisor {
 public:
  Supervisor(const config::Config& config, const std::vector<const config::AppConfig*>& apps,
             const Log& log)
      : config_(config), log_(log) {
    for (const auto* app : apps) {
      Child child;
      child.app = app;
      children_.push_back(child);
    }
  }

  int run() {
    sigset_t signals;
    sigemptyset(&signals);
    for (const int number : {SIGTERM, SIGINT, SIGCHLD}) sigaddset(&signals, number);
    const int signal_fd = signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK);
    DRAY_ASSERT(signal_fd >= 0);
    while (!finished()) {
      start_due();
      kill_late();
      pollfd polled{signal_fd, POLLIN, 0};
      (void)poll(&polled, 1, wait_ms());
      signalfd_siginfo info{};
      while (read(signal_fd, &info, sizeof(info)) == static_cast<ssize_t>(sizeof(info))) {
        if (info.ssi_signo != SIGCHLD) stop(0);
      }
      reap();
    }
    close(signal_fd);
    return exit_code_;
  }

 private:
  bool finished() const {
    return stopping_ && std::all_of(children_.begin(), children_.end(),
                                    [](const Child& child) { return child.pid == 0; });
  }

  int wait_ms() const {
    const auto now = clock_.steady();
    auto next = now + std::chrono::seconds(60);
    for (const auto& child : children_) {
      if (child.pid == 0 && !stopping_) next = std::min(next, child.start_at);
      if (child.kill_at) next = std::min(next, *child.kill_at);
    }
    return static_cast<int>(
        std::max<std::int64_t>(0, std::chrono::ceil<Milliseconds>(next - now).count()));
  }

  void start_due() {
    if (stopping_) return;
    for (auto& child : children_) {
      if (child.pid == 0 && child.start_at <= clock_.steady()) start(child);
    }
  }

  void start(Child& child) {
    const pid_t supervisor = getpid();
    const pid_t pid = fork();  // safe: no thread, no ZeroMQ context in this process
    if (pid < 0) {
      log_.error("cannot start an app: fork failed", {{"app", child.app->name}});
      child.start_at = clock_.steady() + kBackOffMax;
      return;
    }
    if (pid == 0) {
      // Ctrl-C reaches only the supervisor, which stops workers before the spools they answer to.
      setpgid(0, 0);
      setenv(kSupervisorVariable, std::to_string(supervisor).c_str(), 1);
      execl("/proc/self/exe", "dray", "run", config_.file.c_str(), "--app", child.app->name.c_str(),
            static_cast<char*>(nullptr));
      _exit(127);
    }
    child.pid = pid;
    child.started = clock_.steady();
    log_.info("started", {{"app", child.app->name}, {"pid", std::to_string(pid)}});
  }

  void reap() {
    for (;;) {
      int status = 0;
      const pid_t pid = waitpid(-1, &status, WNOHANG);
      if (pid <= 0) return;
      const auto child = std::find_if(children_.begin(), children_.end(),
                                      [&](const Child& each) { return each.pid == pid; });
      if (child != children_.end()) ended(*child, status);
    }
  }

  void ended(Child& child, int status) {
    child.pid = 0;
    child.kill_at.reset();
    const std::string how = WIFSIGNALED(status) ? "signal " + std::to_string(WTERMSIG(status))
                                                : "exit " + std::to_string(WEXITSTATUS(status));
    if (stopping_) {
      log_.info("stopped", {{"app", child.app->name}, {"how", how}});
      return stop_owners();
    }
    const auto now = clock_.steady();
    const bool was_stable = now - child.started >= kStableAfter;
    child.ran = child.ran || was_stable;
    if (WIFEXITED(status) && WEXITSTATUS(status) == kExitWrong) {
      if (!child.ran) {
        log_.error("an app cannot run as configured: stopping all", {{"app", child.app->name}});
        return stop(kExitWrong);
      }
      // The config was good before: the others need not suffer from what became of it.
      log_.error("an app cannot run as configured any more; the others go on",
                 {{"app", child.app->name}});
    }
    if (was_stable) child.back_off = kBackOffFirst;
    child.start_at = now + child.back_off;
    log_.warning("ended unasked; it starts again",
                 {{"app", child.app->name},
                  {"how", how},
                  {"in", std::to_string(child.back_off.count()) + "ms"}});
    child.back_off = std::min(child.back_off * 2, kBackOffMax);
  }

  void stop(int exit_code) {
    if (stopping_) {  // asked again: now, unless one wish came as two signals
      if (clock_.steady() - stop_asked_ < kAskedTwiceAfter) return;
      for (const auto& child : children_) {
        if (child.pid != 0) kill(child.pid, SIGKILL);
      }
      return;
    }
    stopping_ = true;
    stop_asked_ = clock_.steady();
    exit_code_ = exit_code;
    for (auto& child : children_) {
      if (!child.app->publish) terminate(child);
    }
    stop_owners();
  }

  // Owners of spools end last, so that the workers' last answers find them.
  void stop_owners() {
    const bool workers_left =
        std::any_of(children_.begin(), children_.end(),
                    [](const Child& child) { return child.pid != 0 && !child.app->publish; });
    if (workers_left) return;
    for (auto& child : children_) {
      if (child.app->publish) terminate(child);
    }
  }

  void terminate(Child& child) {
    if (child.pid == 0 || child.kill_at) return;
    kill(child.pid, SIGTERM);
    child.kill_at = clock_.steady() + child.app->drain + kKillAfterDrain;
  }

  void kill_late() {
    for (auto& child : children_) {
      if (child.pid == 0 || !child.kill_at || *child.kill_at > clock_.steady()) continue;
      log_.error("did not stop by its deadline: killed", {{"app", child.app->name}});
      kill(child.pid, SIGKILL);
      child.kill_at = clock_.steady() + kKillAfterDrain;
    }
  }

  const config::Config& config_;
  const Log log_;
  SystemClock clock_;
  std::vector<Child> children_;
  bool stopping_ = false;
  SteadyTime stop_asked_{};
  int exit_code_ = 0;
};

}  // namespace

int supervise(const config::Config& config, const std::vector<const config::AppConfig*>& apps,
              const Log& log) {
  return Supervisor(config, apps, log).run();
}

void die_with_supervisor() {
  const char* found = std::getenv(kSupervisorVariable);
  if (found == nullptr) return;
  const std::string supervisor = found;
  unsetenv(kSupervisorVariable);  // what the app starts itself is nobody's child here
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  // It may have died before prctl.
  if (std::to_string(getppid()) != supervisor) _exit(kExitFailed);
}

}  // namespace dray::app
