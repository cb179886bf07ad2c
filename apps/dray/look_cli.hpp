// peek, tail, top and doctor, as the command line says them.
//
// Threading: main thread. Ownership: what is given outlives the parsing.
#pragma once

#include <CLI/CLI.hpp>
#include <string>

#include "dray/look_commands.hpp"

namespace dray::app {

struct LookArguments {
  std::string group;
  std::uint64_t after = 0;
  std::uint64_t limit = 20;
  TailWish tail;
  TopWish top;
};

void add_look_commands(CLI::App& cli, LookArguments& given, SpoolChoice& choice, bool& json,
                       int& code);

}  // namespace dray::app
