// W3C Trace Context (https://www.w3.org/TR/trace-context/): which request a message belongs to.
//
// A message that carries the header `traceparent` hands its trace on: the lines that its handler
// logs name the trace, and its follow-ups carry it with a new parent-id (and `tracestate` as it
// is).
//
// Threading: pure but for the random parent-id.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "dray/export.hpp"

namespace dray {

inline constexpr std::string_view kTraceParent = "traceparent";
inline constexpr std::string_view kTraceState = "tracestate";

// 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01
struct TraceParent {
  std::string trace_id;   // 32 lower-case hexadecimal digits, not all 0
  std::string parent_id;  // 16, not all 0
  std::string flags;      // 2
};

// Nothing if it is none (section 3.2.2); of a later version what version 00 has.
DRAY_API std::optional<TraceParent> parse_traceparent(std::string_view text);
DRAY_API std::string traceparent_text(const TraceParent& trace);
// The same trace, one step further: a new random parent-id.
DRAY_API TraceParent child_of(const TraceParent& trace);

}  // namespace dray
