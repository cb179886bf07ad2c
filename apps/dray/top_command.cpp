#include <poll.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <iostream>
#include <map>

#include "dray/command_tools.hpp"
#include "dray/look_commands.hpp"
#include "dray/text.hpp"

namespace dray::app {
namespace {

using nlohmann::json;
using SteadyTime = std::chrono::steady_clock::time_point;

volatile sig_atomic_t stop_asked = 0;

// A terminal of its own while it lives: the other screen, keys without Enter. Without a terminal
// nothing of it.
class Screen {
 public:
  explicit Screen(bool wanted)
      : is_terminal_(wanted && isatty(STDOUT_FILENO) != 0 && isatty(STDIN_FILENO) != 0) {
    struct sigaction action {};
    action.sa_handler = [](int) { stop_asked = 1; };
    for (const int signal : {SIGINT, SIGTERM, SIGHUP}) sigaction(signal, &action, nullptr);
    if (!is_terminal_ || tcgetattr(STDIN_FILENO, &before_) != 0) return;
    termios keys = before_;
    keys.c_lflag &= ~static_cast<tcflag_t>(ICANON | ECHO);
    tcsetattr(STDIN_FILENO, TCSANOW, &keys);
    std::printf("\033[?1049h\033[?25l");
  }
  ~Screen() {
    if (!is_terminal_) return;
    std::printf("\033[?25h\033[?1049l");
    std::fflush(stdout);
    tcsetattr(STDIN_FILENO, TCSANOW, &before_);
  }
  Screen(const Screen&) = delete;
  Screen& operator=(const Screen&) = delete;

  bool is_terminal() const { return is_terminal_; }
  // On a terminal: instead of the page before, and no more than fits.
  void show(const std::string& page, const std::string& last_line) const {
    winsize size{};
    if (!is_terminal_ || ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) != 0 || size.ws_row < 2) {
      std::fputs(page.c_str(), stdout);
      return;
    }
    std::printf("\033[H\033[J");
    std::size_t begin = 0;
    for (int row = 0; row + 2 < size.ws_row && begin < page.size(); ++row) {
      const auto end = page.find('\n', begin);
      std::printf("%s\n", clipped(page.substr(begin, end - begin), size.ws_col).c_str());
      begin = end + 1;
    }
    std::printf("%s%s", begin < page.size() ? "... " : "\n", last_line.c_str());
  }
  // False: 'q', or a signal, asks to end.
  bool wait(std::chrono::milliseconds interval) const {
    std::fflush(stdout);
    const auto until = std::chrono::steady_clock::now() + interval;
    while (stop_asked == 0) {
      const auto left =
          std::chrono::ceil<std::chrono::milliseconds>(until - std::chrono::steady_clock::now());
      if (left.count() <= 0) return true;
      pollfd keyboard{is_terminal_ ? STDIN_FILENO : -1, POLLIN, 0};
      if (poll(&keyboard, 1, static_cast<int>(left.count())) <= 0) continue;
      char key = 0;
      if (read(STDIN_FILENO, &key, 1) != 1 || key == 'q') return false;
    }
    return false;
  }

 private:
  bool is_terminal_;
  termios before_{};
};

struct Look {
  SteadyTime at;
  std::vector<std::pair<std::string, Result<json>>> spools;  // by directory
};

Look look_at(const std::vector<std::string>& directories) {
  Look look{std::chrono::steady_clock::now(), {}};
  for (const auto& directory : directories) {
    look.spools.emplace_back(directory,
                             AdminClient(directory, AdminClient::kShortPatience).get("/v0/status"));
  }
  return look;
}

// Adds what happened between two looks to the status: per second, by group.
void add_rates(json& status, const json* before, double seconds) {
  for (auto& group : status["groups"]) {
    const json* old = nullptr;
    if (before != nullptr) {
      for (const auto& each : (*before)["groups"]) {
        if (each["name"] == group["name"]) old = &each;
      }
    }
    const auto rate = [&](const char* member) {
      if (old == nullptr || seconds <= 0) return 0.0;
      return std::max(group[member].get<double>() - (*old)[member].get<double>(), 0.0) / seconds;
    };
    group["accepted_per_second"] = rate("accepted");
    group["done_per_second"] = rate("done");
    group["dead_per_second"] = rate("dead");
  }
}

std::string rate_text(double rate) {
  char text[32];
  std::snprintf(text, sizeof(text), rate > 0 && rate < 9.95 ? "%.1f" : "%.0f", rate);
  return text;
}

// How long until nothing waits, if all goes on as now.
std::string clears_in(const json& group) {
  const double pending = group["pending"].get<double>() - group["delayed"].get<double>();
  const double faster =
      group["done_per_second"].get<double>() - group["accepted_per_second"].get<double>();
  if (pending <= 0) return "-";
  if (faster <= 0) return "never";
  const double seconds = pending / faster;
  if (seconds > 48 * 3600) return "days";
  const auto rounded = std::chrono::seconds(static_cast<std::int64_t>(seconds) + 1);
  return rounded < std::chrono::minutes(2)
             ? std::to_string(rounded.count()) + "s"
             : std::to_string(std::chrono::duration_cast<std::chrono::minutes>(rounded).count()) +
                   "m";
}

std::string bar(double share) {
  constexpr int kWidth = 20;
  const int full =
      static_cast<int>(std::clamp(std::lround(share * kWidth), 0L, static_cast<long>(kWidth)));
  return "[" + std::string(static_cast<std::size_t>(full), '#') +
         std::string(static_cast<std::size_t>(kWidth - full), '.') + "]";
}

std::string page_of(const json& status) {
  const double size = status["size_bytes"].get<double>();
  const double max = std::max(status["max_size_bytes"].get<double>(), 1.0);
  std::string page = text_of(status["directory"]) + "  " + text_of(status["durability"]) +
                     "  epoch " + text_of(status["epoch"]) + "  " + bar(size / max) + " " +
                     rate_text(size / max * 100) + " % of " +
                     size_text(status["max_size_bytes"].get<std::uint64_t>()) + "\n";
  if (status["expiry_paused"].get<bool>()) {
    page += "  the wall clock jumped: nothing expires until it is steady (dray confirm-clock)\n";
  }
  if (status["damaged_ranges"] != 0) {
    page += "  " + text_of(status["damaged_ranges"]) +
            " ranges of records are damaged (dray spool verify)\n";
  }
  std::vector<std::vector<std::string>> rows{{"group", "in/s", "done/s", "pending", "oldest",
                                              "clears in", "in flight", "delayed", "dead",
                                              "workers", ""}};
  for (const auto& group : status["groups"]) {
    std::string note;
    if (!group["attached"].get<bool>()) note = "not in the config";
    if (group["paused"].get<bool>()) note = "paused";
    if (group["waiting_for_sessions"].get<bool>()) note = "waits for workers of before the restart";
    if (note.empty() && group["workers"] == 0 && group["pending"] != 0) note = "no worker";
    rows.push_back({text_of(group["name"]), rate_text(group["accepted_per_second"].get<double>()),
                    rate_text(group["done_per_second"].get<double>()), text_of(group["pending"]),
                    age_of(group, "oldest_at"), clears_in(group), text_of(group["in_flight"]),
                    text_of(group["delayed"]), text_of(group["dead"]), text_of(group["workers"]),
                    note});
  }
  page += table_text(rows);
  if (status["workers"].empty()) return page;
  std::vector<std::vector<std::string>> workers{{"worker", "group", "holds", "window", ""}};
  for (const auto& worker : status["workers"]) {
    workers.push_back({text_of(worker["worker"]), text_of(worker["group"]),
                       text_of(worker["outstanding"]), text_of(worker["window"]),
                       worker["connected"].get<bool>() ? "" : "its connection is lost"});
  }
  return page + table_text(workers);
}

}  // namespace

int top_command(const SpoolChoice& choice, const TopWish& wish, bool as_json) {
  const auto interval = parse_duration(wish.interval);
  if (!interval.ok()) return fail(interval.error());
  if (*interval < std::chrono::milliseconds(100) || *interval > std::chrono::hours(24)) {
    return fail(Error{ErrorCode::kInvalid, "--interval is from 100ms to 24h", "", 0});
  }
  const auto found = directories(choice);
  if (!found.ok()) return fail(found.error());
  auto before = look_at(*found);
  // Nothing to look at: better said than shown again and again.
  if (found->size() == 1 && !before.spools.front().second.ok()) {
    return fail(before.spools.front().second.error());
  }
  const Screen screen(!as_json);
  const std::uint64_t count = wish.count == 0 && !screen.is_terminal() && !as_json ? 1 : wish.count;
  for (std::uint64_t shown = 0; screen.wait(*interval);) {
    auto now = look_at(*found);
    const std::chrono::duration<double> passed = now.at - before.at;
    json line = json::array();
    std::string page;
    for (std::size_t i = 0; i < now.spools.size(); ++i) {
      auto& [directory, status] = now.spools[i];
      const auto& old = before.spools[i].second;
      if (!status.ok()) {
        line.push_back({{"directory", directory}, {"error", status.error().text()}});
        page += status.error().text() + "\n";
        continue;
      }
      json rated = *status;
      add_rates(rated, old.ok() ? &*old : nullptr, passed.count());
      page += page_of(rated);
      line.push_back(std::move(rated));
    }
    if (as_json) {
      std::cout << json{{"spools", line}}.dump() << std::endl;
    } else {
      screen.show(page, "every " + wish.interval + "; q ends");
    }
    before = std::move(now);
    if (++shown == count || !std::cout.good()) break;
  }
  return 0;
}

}  // namespace dray::app
