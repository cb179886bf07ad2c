// Push and Pull: one-way messages, from many to one or from one to many, not durable.
//
//   dray::Push<Progress> progress("ipc:///run/shop/progress");   progress.push({...});
//   dray::Pull<Progress> pull("ipc:///run/shop/progress");       auto value = pull.pull(1s);
//
// By default Pull binds and Push connects: many push to one. The other way round (options.bind),
// or with several endpoints, the messages of a Push are spread over all Pulls that have room.
// Messages that are pushed while others are being sent share a frame with them; a message alone is
// sent at once.
//
// Guarantees: none beyond the connection's. What waits here while there is no peer, or none with
// room, is bounded; beyond that a message is dropped and counted, or waited for, as the options
// say. A key that is taken back is refused by a Pull at its next frame; a Push that binds serves
// it until it disconnects. What was handed to a connection that breaks is lost, and nobody knows.
// The messages of one Push reach one Pull in order. For what must not be lost, use a spool.
//
// Threading: Push: any thread; it has a thread of its own. Pull: one thread. Failure: constructors
// throw EndpointError; a message of another type is counted as malformed and skipped. Ownership: an
// object owns its thread, socket, and ZeroMQ context, unless one is given (inproc needs one).
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "dray/clock.hpp"
#include "dray/endpoint_keys.hpp"
#include "dray/export.hpp"
#include "dray/fields.hpp"
#include "dray/log.hpp"

namespace dray {

namespace transport {
class Context;
}

class DRAY_API EndpointError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

struct PipelineOptions {
  bool bind = false;     // Push: bind instead of connect; Pull: connect instead of bind
  Milliseconds wait{0};  // Push: at most so long for room; 0: drop at once
  std::size_t messages_max = 10'000;      // Push: so many wait for a peer with room
  std::size_t bytes_max = 64U << 20;      // the same in bytes of bodies; one message may exceed it
  Milliseconds linger{200};               // Push: at the end, for what still waits
  std::optional<EndpointKeys> keys = {};  // nothing: in plain, on this machine
  Log log = {};
  transport::Context* context = nullptr;  // shared; nothing: one of its own
};

struct PushCounters {
  std::uint64_t pushed = 0;   // taken
  std::uint64_t sent = 0;     // handed to a connection
  std::uint64_t frames = 0;   // they went in so many
  std::uint64_t dropped = 0;  // not taken for want of room, or left at the end
  std::uint64_t waiting = 0;
  std::uint32_t peers = 0;  // connected now
};

struct PullCounters {
  std::uint64_t pulled = 0;
  std::uint64_t malformed = 0;  // frames, and messages of another type
  std::uint32_t peers = 0;      // as of the last pull()
};

class DRAY_API BytesPush {
 public:
  BytesPush(const std::vector<std::string>& endpoints, const PipelineOptions& options);
  ~BytesPush();
  BytesPush(const BytesPush&) = delete;
  BytesPush& operator=(const BytesPush&) = delete;

  // False: dropped.
  bool push_bytes(std::string_view body);
  // Sends what waits, for at most so long; what is left is dropped. False if something was. Later
  // pushes are dropped. Idempotent.
  bool stop(Milliseconds deadline);
  PushCounters counters() const;
  std::string bound_endpoint() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

class DRAY_API BytesPull {
 public:
  BytesPull(const std::vector<std::string>& endpoints, const PipelineOptions& options);
  ~BytesPull();
  BytesPull(const BytesPull&) = delete;
  BytesPull& operator=(const BytesPull&) = delete;

  // Nothing if none came within `timeout`. Valid until the next call.
  std::optional<std::string_view> pull_bytes(Milliseconds timeout);
  void note_malformed();
  PullCounters counters() const;
  std::string bound_endpoint() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

template <typename T>
class Push {
 public:
  explicit Push(const std::string& endpoint, const PipelineOptions& options = {})
      : bytes_({endpoint}, options) {}
  explicit Push(const std::vector<std::string>& endpoints, const PipelineOptions& options = {})
      : bytes_(endpoints, options) {}
  bool push(const T& value) { return bytes_.push_bytes(to_bytes(value)); }
  bool stop(Milliseconds deadline) { return bytes_.stop(deadline); }
  PushCounters counters() const { return bytes_.counters(); }
  std::string bound_endpoint() const { return bytes_.bound_endpoint(); }

 private:
  BytesPush bytes_;
};

template <typename T>
class Pull {
 public:
  explicit Pull(const std::string& endpoint, const PipelineOptions& options = {})
      : bytes_({endpoint}, options) {}
  explicit Pull(const std::vector<std::string>& endpoints, const PipelineOptions& options = {})
      : bytes_(endpoints, options) {}
  // Nothing if none came within `timeout`.
  std::optional<T> pull(Milliseconds timeout) {
    const SystemClock clock;
    const auto begun = clock.steady();
    for (auto left = timeout; left.count() >= 0;) {
      const auto bytes = bytes_.pull_bytes(left);
      if (!bytes) return std::nullopt;
      auto value = from_bytes<T>(*bytes);
      if (value.ok()) return std::move(*value);
      bytes_.note_malformed();
      left = timeout - std::chrono::floor<Milliseconds>(clock.steady() - begun) - Milliseconds(1);
    }
    return std::nullopt;
  }
  PullCounters counters() const { return bytes_.counters(); }
  std::string bound_endpoint() const { return bytes_.bound_endpoint(); }

 private:
  BytesPull bytes_;
};

}  // namespace dray
