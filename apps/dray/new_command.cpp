#include "dray/new_command.hpp"

#include <cctype>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <set>
#include <utility>
#include <vector>

#include "dray/command_tools.hpp"
#include "dray/node.hpp"

namespace dray::app {
namespace {

// In all of these: @name@ as given, @id@ as a C++ name, @Class@ in camel case, @version@ of Dray.

constexpr const char* kCMake = R"(cmake_minimum_required(VERSION 3.25)
project(@id@ LANGUAGES CXX)
set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
find_package(dray @version@ REQUIRED COMPONENTS plugin testing)

dray_add_plugin(@id@ plugin.cpp)  # makes lib@id@.so

include(CTest)
add_executable(@id@_test test.cpp)
target_link_libraries(@id@_test PRIVATE dray::testing)
add_test(NAME @id@ COMMAND @id@_test)
)";

constexpr const char* kHandler = R"(// What @name@ does with each message.
#pragma once

#include <dray/handler.hpp>

// A message of topic @name@.task. Fields may be added; one that is missing is an error, unless it is
// a std::optional.
struct Task {
  std::string text;
  DRAY_FIELDS(text)
};

// One object per handler thread.
class @Class@ final : public dray::Handler<Task> {
 public:
  explicit @Class@(const dray::Settings& settings) : word_(settings.text("word", "hello")) {}

  dray::Outcome handle(const Task& task, dray::Delivery& delivery) override {
    if (task.text.empty()) return dray::reject("nothing to do");  // a dead letter, at once
    delivery.log().info(word_ + " " + task.text);
    return dray::done().publish("@name@.done", task);  // or retry("why"), snooze(1min)
  }

 private:
  std::string word_;
};
)";

constexpr const char* kHandlerPlugin = R"(#include "handler.hpp"

DRAY_PLUGIN(dray::handler<@Class@, dray::LogHandling>("@name@"))
)";

constexpr const char* kHandlerTest =
    R"(// Runs the handler against a real queue, in this process and on a virtual clock.
#include <dray/testing.hpp>
#include <iostream>

#include "handler.hpp"

int main() {
  dray::testing::Harness queue;
  queue.handle<@Class@>("@name@", {"@name@.task"});
  queue.observe({"@name@.done"});
  for (const char* text : {"one", "", "two"}) {
    if (const auto receipt = queue.publish("@name@.task", Task{text}); !receipt.ok()) {
      std::cerr << receipt.error().text() << "\n";
      return 1;
    }
  }
  queue.crash_next("@name@", dray::testing::CrashPoint::kAfterHandler);
  if (!queue.settle()) std::cerr << "something still waits\n";
  const auto counts = queue.counts("@name@");
  const bool good = counts == dray::testing::Counts{.done = 2, .dead = 1} &&
                    queue.dead("@name@").at(0).reason == "nothing to do" &&
                    queue.published<Task>("@name@.done").size() == 2;
  if (!good) std::cerr << "not as expected: " << counts << "\n";
  return good ? 0 : 1;
}
)";

// The beginning of both configs.
constexpr const char* kSpoolConfig = R"(# dray run @name@.toml
plugin_path = ["build"]

[spool.@id@]
directory = "${DRAY_DATA:-./var}/@name@"
bind      = "ipc://${DRAY_DATA:-./var}/@name@/dray.sock"
)";

constexpr const char* kHandlerConfig =
    R"(retain    = { age = "1d", topics = ["@name@.done"] }   # nobody takes these yet
  [spool.@id@.group.@name@]
  topics = ["@name@.task"]

[app.@id@]
plugin   = "@id@"
handler  = "@name@"
publish  = "@id@"                # serves the spool too
consume  = { group = "@name@", from = ["@id@"] }
threads  = 2
timeout  = "30s"
retry    = { max_attempts = 8, initial = "1s", max = "10m" }
settings = { word = "good day," }
)";

constexpr const char* kSource = R"(// Where the messages of @name@ come from.
#pragma once

#include <dray/handler.hpp>
#include <thread>

// A message of topic @name@.tick.
struct Tick {
  std::uint64_t number = 0;
  DRAY_FIELDS(number)
};

class @Class@ final : public dray::Source {
 public:
  explicit @Class@(const dray::Settings& settings)
      : every_(settings.duration("every", std::chrono::seconds(1))) {}

  // Has a thread of its own; returns when stop is requested.
  void run(dray::Publisher& publisher, std::stop_token stop) override {
    for (std::uint64_t number = 1; !stop.stop_requested(); ++number) {
      const auto receipt = publisher.publish("@name@.tick", Tick{number});  // it is on the disk
      if (!receipt.ok()) throw std::runtime_error(receipt.error().text());
      std::this_thread::sleep_for(every_);
    }
  }

 private:
  dray::Milliseconds every_;
};
)";

constexpr const char* kSourcePlugin = R"(#include "source.hpp"

DRAY_PLUGIN(dray::source<@Class@>("@name@"))
)";

constexpr const char* kSourceTest =
    R"(// Runs the source for a moment and looks at what it published.
#include <dray/testing.hpp>
#include <iostream>

#include "source.hpp"

int main() {
  dray::testing::Harness queue;
  queue.observe({"@name@.tick"});
  @Class@ source(dray::Settings({{"every", std::string("1ms")}}));
  {
    std::jthread running([&](std::stop_token stop) { source.run(queue, stop); });
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
  const auto ticks = queue.published<Tick>("@name@.tick");
  const bool good = !ticks.empty() && ticks.front().number == 1;
  if (!good) std::cerr << "not as expected: " << ticks.size() << " ticks\n";
  return good ? 0 : 1;
}
)";

constexpr const char* kSourceConfig =
    R"(retain    = { age = "1d", topics = ["@name@.tick"] }   # nobody takes these yet; or give a group:
#  [spool.@id@.group.NAME]
#  topics = ["@name@.tick"]

[app.@id@]
plugin   = "@id@"
source   = "@name@"
publish  = "@id@"
settings = { every = "1s" }
)";

constexpr const char* kReadme = R"(# @name@

    cmake -B build && cmake --build build      # lib@id@.so
    ctest --test-dir build                     # test.cpp
    dray check @name@.toml
    dray run @name@.toml
@try@)";

std::string replaced(std::string text, const std::string& from, const std::string& to) {
  for (auto at = text.find(from); at != std::string::npos; at = text.find(from, at + to.size())) {
    text.replace(at, from.size(), to);
  }
  return text;
}

std::string camel_case(const std::string& name) {
  std::string out;
  bool upper = true;
  for (const char each : name) {
    if (each == '-' || each == '_') {
      upper = true;
      continue;
    }
    out += upper ? static_cast<char>(std::toupper(static_cast<unsigned char>(each))) : each;
    upper = false;
  }
  return out;
}

bool is_good(const std::string& name) {
  constexpr std::size_t kLongest = 64;
  const auto known = [](unsigned char each) {
    return std::isalnum(each) != 0 || each == '-' || each == '_';
  };
  if (name.empty() || name.size() > kLongest) return false;
  if (std::isalpha(static_cast<unsigned char>(name.front())) == 0) return false;
  for (const char each : name) {
    if (!known(static_cast<unsigned char>(each))) return false;
  }
  // Types of the project, macros and types of C, targets of CMake, and the library of Dray.
  static const std::set<std::string> kTaken{
      "Task",          "Tick",    "NULL",           "EOF",     "FILE",       "all",
      "clean",         "help",    "test",           "install", "preinstall", "edit_cache",
      "rebuild_cache", "package", "package_source", "dray"};
  return kTaken.count(name) == 0 && kTaken.count(replaced(name, "-", "_")) == 0 &&
         kTaken.count(camel_case(name)) == 0;
}

}  // namespace

int new_command(NewKind kind, const std::string& name, const std::string& folder) {
  if (!is_good(name)) {
    return fail({ErrorCode::kInvalid,
                 "'" + name +
                     "' cannot be the name of a project: letters, digits, '-' and '_', "
                     "beginning with a letter, at most 64; and none that CMake or C has taken",
                 "", 0});
  }
  const bool handler = kind == NewKind::kHandler;
  const std::string publish = "    dray publish @name@.toml @name@.task '{\"text\": \"world\"}'\n";
  const std::vector<std::pair<std::string, std::string>> files{
      {"CMakeLists.txt", kCMake},
      {handler ? "handler.hpp" : "source.hpp", handler ? kHandler : kSource},
      {"plugin.cpp", handler ? kHandlerPlugin : kSourcePlugin},
      {"test.cpp", handler ? kHandlerTest : kSourceTest},
      {name + ".toml", std::string(kSpoolConfig) + (handler ? kHandlerConfig : kSourceConfig)},
      {"README.md", replaced(kReadme, "@try@", handler ? publish : "")}};
  const auto place = std::filesystem::path(folder) / name;
  std::error_code error;
  if (!std::filesystem::create_directories(place, error)) {
    return fail({error ? ErrorCode::kIo : ErrorCode::kConflict,
                 error ? "cannot be made" : "is there already; choose another name, or --dir",
                 place.string(), error.value()});
  }
  const std::string id = replaced(name, "-", "_");
  for (const auto& [file, text] : files) {
    std::ofstream out(place / file);
    out << replaced(
        replaced(replaced(replaced(text, "@name@", name), "@id@", id), "@Class@", camel_case(name)),
        "@version@", DRAY_VERSION);
    if (!out.flush()) return fail(io_error("write", (place / file).string(), errno));
  }
  std::cout << place.string() << " is made. Next:\n\n  cd " << place.string()
            << "\n  cmake -B build && cmake --build build && ctest --test-dir build\n  dray run "
            << name << ".toml\n";
  return 0;
}

}  // namespace dray::app
