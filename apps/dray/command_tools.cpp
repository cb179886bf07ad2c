#include "dray/command_tools.hpp"

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <iostream>

#include "dray/clock.hpp"
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
  if (std::filesystem::is_directory(choice.target)) {
    if (!choice.spool.empty()) {
      return Error{ErrorCode::kInvalid, "--spool chooses one of a config; this is a directory",
                   choice.target, 0};
    }
    return std::vector{choice.target};
  }
  std::error_code ignored;
  if (!std::filesystem::exists(choice.target, ignored)) {
    return Error{ErrorCode::kInvalid,
                 "is not there; give a config file, or the directory of a spool", choice.target, 0};
  }
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

// For a terminal: what would steer it is shown, not done. That is C0, DEL, and C1 in UTF-8
// (ECMA-48; U+0080 to U+009F are C2 80 to C2 9F).
std::string text_of(const json& value) {
  if (!value.is_string()) return value.dump(-1, ' ', false, json::error_handler_t::replace);
  constexpr const char* kDigits = "0123456789abcdef";
  const auto& text = value.get_ref<const std::string&>();
  std::string out;
  const auto escape = [&](unsigned char byte) {
    out += std::string("\\x") + kDigits[byte >> 4] + kDigits[byte & 15];
  };
  for (std::size_t i = 0; i < text.size(); ++i) {
    const auto byte = static_cast<unsigned char>(text[i]);
    const unsigned char next =
        i + 1 < text.size() ? static_cast<unsigned char>(text[i + 1]) : std::uint8_t{0};
    if (byte == '\n') {
      out += "\\n";
    } else if (byte == '\t') {
      out += "\\t";
    } else if (byte < 0x20 || byte == 0x7F) {
      escape(byte);
    } else if (byte == 0xC2 && next >= 0x80 && next <= 0x9F) {
      escape(byte);
      escape(next);
      ++i;
    } else {
      out += text[i];
    }
  }
  return out;
}

namespace {

// Characters of UTF-8 text.
std::size_t width_of(const std::string& text) {
  return static_cast<std::size_t>(std::count_if(text.begin(), text.end(), [](char c) {
    return (static_cast<unsigned char>(c) & 0xC0) != 0x80;
  }));
}

// Also with a unit behind it.
bool is_number(const std::string& text) {
  return text.empty() || ((text.front() == '-' || (text.front() >= '0' && text.front() <= '9')) &&
                          text.find(' ') == std::string::npos);
}

}  // namespace

std::string clipped(const std::string& text, std::size_t width) {
  if (width_of(text) <= width) return text;
  std::string out;
  std::size_t taken = 0;
  for (const char c : text) {
    const bool begins = (static_cast<unsigned char>(c) & 0xC0) != 0x80;
    if (begins && ++taken == width) break;
    out += c;
  }
  return out + "\u2026";
}

std::string age_of(const json& object, const char* member) {
  const auto found = object.find(member);
  const auto time = found == object.end() || !found->is_string()
                        ? std::nullopt
                        : parse_utc(found->get<std::string>());
  if (!time) return "-";
  const auto seconds = std::max<std::int64_t>((SystemClock().utc() - *time).count() / 1'000, 0);
  const auto text = [](std::int64_t count, const char* unit) {
    return std::to_string(count) + unit;
  };
  constexpr std::int64_t kMinute = 60, kHour = 60 * kMinute, kDay = 24 * kHour;
  if (seconds < 2 * kMinute) return text(seconds, "s");
  if (seconds < 2 * kHour) return text(seconds / kMinute, "m");
  if (seconds < 2 * kDay) return text(seconds / kHour, "h");
  return text(seconds / kDay, "d");
}

std::string table_text(const std::vector<std::vector<std::string>>& rows) {
  std::vector<std::size_t> widths;
  std::vector<bool> numbers;
  for (std::size_t row = 0; row < rows.size(); ++row) {
    widths.resize(std::max(widths.size(), rows[row].size()));
    numbers.resize(widths.size(), true);
    for (std::size_t i = 0; i < rows[row].size(); ++i) {
      widths[i] = std::max(widths[i], width_of(rows[row][i]));
      if (row > 0) numbers[i] = numbers[i] && is_number(rows[row][i]);
    }
  }
  std::string text;
  for (const auto& row : rows) {
    std::string line;
    for (std::size_t i = 0; i < row.size(); ++i) {
      const std::string fill(widths[i] - width_of(row[i]), ' ');
      line += "  " + (numbers[i] ? fill + row[i] : row[i] + fill);
    }
    line.erase(line.find_last_not_of(' ') + 1);
    text += line + "\n";
  }
  return text;
}

void print_table(const std::vector<std::vector<std::string>>& rows) {
  std::fputs(table_text(rows).c_str(), stdout);
}

}  // namespace dray::app
