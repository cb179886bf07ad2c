#include "dray/command_tools.hpp"

#include <cstdio>
#include <filesystem>
#include <iostream>

#include "dray/config/config.hpp"
#include "dray/node.hpp"

namespace dray::app {

using nlohmann::json;

int fail(const Error& error) {
  std::cerr << "dray: " << error.text() << "\n";
  const bool wrong = error.code == ErrorCode::kInvalid || error.code == ErrorCode::kUnroutable;
  return wrong ? kExitWrong : kExitFailed;
}

Result<std::vector<std::string>> directories(const SpoolChoice& choice) {
  if (std::filesystem::is_directory(choice.target)) return std::vector{choice.target};
  auto loaded = config::load_config(choice.target);
  if (!loaded.faults.empty()) {
    return Error{ErrorCode::kInvalid, loaded.faults.front().text(), "", 0};
  }
  std::vector<std::string> found;
  for (const auto& [name, spool] : loaded.config.spools) {
    if (choice.spool.empty() || choice.spool == name) found.push_back(spool.directory);
  }
  if (found.empty()) {
    return Error{ErrorCode::kInvalid,
                 choice.spool.empty() ? "this config has no spool"
                                      : "this config has no spool '" + choice.spool + "'",
                 choice.target, 0};
  }
  return found;
}

Result<AdminClient> one_spool(const SpoolChoice& choice) {
  auto found = directories(choice);
  if (!found.ok()) return found.error();
  if (found->size() != 1) {
    return Error{ErrorCode::kInvalid, "this config has several spools; choose one with --spool",
                 choice.target, 0};
  }
  return AdminClient(found->front());
}

int finish_output(int code) {
  std::cout.flush();
  const bool lost = !std::cout.good() || std::fflush(stdout) != 0 || std::ferror(stdout) != 0;
  if (!lost || code != 0) return code;
  return fail(Error{ErrorCode::kIo, "the output could not be written", "", 0});
}

json parse_json(const std::string& text) {
  constexpr int kDepthMax = 100;
  bool deep = false;
  auto parsed = json::parse(
      text,
      [&deep](int depth, json::parse_event_t, json&) {
        deep = deep || depth > kDepthMax;
        return !deep;
      },
      false);
  return deep ? json(json::value_t::discarded) : parsed;
}

// For a terminal: what would steer it is shown, not done.
std::string text_of(const json& value) {
  if (!value.is_string()) return value.dump();
  std::string out;
  for (const char c : value.get<std::string>()) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte >= 0x20 && byte != 0x7F) {
      out += c;
      continue;
    }
    constexpr const char* kDigits = "0123456789abcdef";
    out += c == '\n' ? "\\n" : c == '\t' ? "\\t" : "";
    if (c != '\n' && c != '\t') out += std::string("\\x") + kDigits[byte >> 4] + kDigits[byte & 15];
  }
  return out;
}

void print_table(const std::vector<std::vector<std::string>>& rows) {
  std::vector<std::size_t> widths;
  for (const auto& row : rows) {
    widths.resize(std::max(widths.size(), row.size()));
    for (std::size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
  }
  for (const auto& row : rows) {
    for (std::size_t i = 0; i < row.size(); ++i) {
      const int width = static_cast<int>(widths[i]);
      std::printf(i == 0 ? "  %-*s" : "  %*s", width, row[i].c_str());
    }
    std::printf("\n");
  }
}

}  // namespace dray::app
