// The commands that look at messages and at what goes on: peek, tail, top. All speak to the process
// that serves the spool; none changes anything.
//
// Threading: main thread. Each returns the exit code and prints to standard output (results) and
// standard error (faults).
#pragma once

#include <cstdint>
#include <string>

#include "dray/commands.hpp"
#include "dray/result.hpp"

namespace dray::app {

// What a group has neither settled nor given up, oldest first.
int peek_command(const SpoolChoice& choice, const std::string& group, std::uint64_t after,
                 std::uint64_t limit, bool json);

struct TailWish {
  std::string topic;        // empty: any
  std::string since;        // "2h", or "2026-11-26T07:00:00Z"; empty: from now on
  std::uint64_t count = 0;  // ends after so many; 0: never
  bool follow = true;       // else it ends with what is there
};
// What is published, as it is published. A spool that is not served meanwhile is waited for.
int tail_command(const SpoolChoice& choice, const TailWish& wish, bool json);

struct TopWish {
  std::string interval = "1s";
  std::uint64_t count = 0;  // ends after so many looks; 0: never on a terminal, else one
};
// Rates, backlogs and workers of the spools, again and again.
int top_command(const SpoolChoice& choice, const TopWish& wish, bool json);

// "2h" ago, or "2026-11-26T07:00:00Z", in Unix milliseconds; kInvalid says how to write it.
Result<std::int64_t> since_ms_of(const std::string& text);

}  // namespace dray::app
