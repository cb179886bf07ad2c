// What the commands share: whom they speak to, and how they print.
//
// Threading: main thread.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "dray/admin_client.hpp"
#include "dray/commands.hpp"
#include "dray/result.hpp"

namespace dray::app {

// Says the error; the exit code.
int fail(const Error& error);
// The directories of the spools that are meant.
Result<std::vector<std::string>> directories(const SpoolChoice& choice);
// kInvalid if several are meant.
Result<AdminClient> one_spool(const SpoolChoice& choice);
// The exit code, or that of output that could not be written. Last in main.
int finish_output(int code);
// Discarded if it is none, or nested deeper than anything sane.
nlohmann::json parse_json(const std::string& text);
// For a terminal: control characters are escaped.
std::string text_of(const nlohmann::json& value);
// What one line has room for: at most so many characters, the last of them an ellipsis.
std::string clipped(const std::string& text, std::size_t width);
// How long ago the time of that member is, coarsely: "12s", "3m", "5h", "2d"; "-" without one.
std::string age_of(const nlohmann::json& object, const char* member);
// Columns as wide as their widest cell; what has digits only under its head to the right.
std::string table_text(const std::vector<std::vector<std::string>>& rows);
void print_table(const std::vector<std::vector<std::string>>& rows);

}  // namespace dray::app
