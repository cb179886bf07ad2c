// What a spool's log says of its messages. MessageLife is all of one: when it was accepted, to whom
// it was delivered, how each delivery ended, and how each group settled it.
//
// Threading: values. What went with its segment is not there.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "dray/message.hpp"

namespace dray {

struct LifeEvent {
  std::int64_t at_ms = 0;  // UTC
  // "delivered", "retry", "dead", "done", "expired", "dropped", "damaged", "another chance",
  // "replayed", "step NAME began", "step NAME done", "step NAME took no effect"
  std::string what;
  std::string worker;          // its session, where its name is not in the log any more
  std::string reason;          // of a retry or a death
  std::uint32_t number = 0;    // of the delivery
  std::uint32_t attempts = 0;  // counted, with this one
  // From the delivery to this answer, with what it waited at the worker.
  std::optional<std::int64_t> took_ms;
};

// A step (Delivery::once) of an open message.
struct StepLife {
  std::string step;
  bool done = false;  // else it began, and whether it took effect is not known
  std::string value;  // MessagePack
  std::int64_t at_ms = 0;
};

struct GroupLife {
  std::string group;
  // "in flight", "waiting", "dead", "settled", or "not of this group"
  std::string state;
  std::string why;  // of one that waits: why, and what to do about it
  std::vector<StepLife> steps;
  std::vector<LifeEvent> events;
};

// A message as the log has it. Times are Unix milliseconds, UTC.
struct StoredMessage {
  Sequence sequence = 0;
  std::string id, topic, key, dedup;
  Priority priority = Priority::kNormal;
  std::int64_t published_at_ms = 0;
  std::optional<std::int64_t> deliver_at_ms, expires_at_ms;
  std::vector<std::pair<std::string, std::string>> headers;
  std::string body;  // MessagePack
};

struct MessageLife : StoredMessage {
  bool durable = false;  // on disk; else it survives a crash of the process only
  std::vector<GroupLife> groups;
};

// One that a group has neither settled nor given up as dead.
struct PendingMessage : StoredMessage {
  std::string state;  // "in flight" or "waiting"
  std::string why;    // it is not done yet
  std::uint32_t attempts = 0;
};

struct PendingPage {
  std::vector<PendingMessage> messages;  // ascending
  Sequence next = 0;                     // `after` of the next page
  bool more = false;                     // there may be one
};

struct AcceptedPage {
  std::vector<StoredMessage> messages;  // ascending
  Sequence next = 0;                    // `from` of the next page
  bool more = false;                    // it has something already
  bool gap = false;  // positions from `from` on are not in the log any more, or cannot be read
};

}  // namespace dray
