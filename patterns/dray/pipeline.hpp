// Push and Pull: one-way messages from many to one (or one to many), not durable.
//
//   dray::Push<Progress> progress("ipc:///run/shop/progress");   progress.push({...});
//   dray::Pull<Progress> pull("ipc:///run/shop/progress");       auto value = pull.pull(1s);
//
// Guarantees: none beyond ZeroMQ's. What finds no peer or no room is dropped and counted, or
// waited for, as the options say. For what must not be lost, use a spool.
// By default Pull binds and Push connects.
//
// Threading: one object, one thread. Failure: constructors throw EndpointError; a message of
// another type is counted as malformed and skipped. Ownership: an object owns its socket, and its
// ZeroMQ context unless one is given.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>

#include "dray/clock.hpp"
#include "dray/export.hpp"
#include "dray/fields.hpp"

namespace dray {

namespace transport {
class Context;
}

class DRAY_API EndpointError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

struct PipelineOptions {
  bool bind = false;        // Push: bind instead of connect; Pull: connect instead of bind
  Milliseconds wait{0};     // Push: at most so long for room; 0: drop at once
  int frames_max = 10'000;  // waiting per peer
  transport::Context* context = nullptr;  // shared; nothing: one of its own
};

class DRAY_API BytesPush {
 public:
  BytesPush(const std::string& endpoint, const PipelineOptions& options);
  ~BytesPush();
  // False: dropped.
  bool push_bytes(const std::string& bytes);
  std::uint64_t pushed() const { return pushed_; }
  std::uint64_t dropped() const { return dropped_; }

 private:
  struct State;
  std::unique_ptr<State> state_;
  std::uint64_t pushed_ = 0;
  std::uint64_t dropped_ = 0;
};

class DRAY_API BytesPull {
 public:
  BytesPull(const std::string& endpoint, const PipelineOptions& options);
  ~BytesPull();
  // Nothing if none came within `timeout`.
  std::optional<std::string> pull_bytes(Milliseconds timeout);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

template <typename T>
class Push {
 public:
  explicit Push(const std::string& endpoint, const PipelineOptions& options = {})
      : bytes_(endpoint, options) {}
  bool push(const T& value) { return bytes_.push_bytes(to_bytes(value)); }
  std::uint64_t pushed() const { return bytes_.pushed(); }
  std::uint64_t dropped() const { return bytes_.dropped(); }

 private:
  BytesPush bytes_;
};

template <typename T>
class Pull {
 public:
  explicit Pull(const std::string& endpoint, const PipelineOptions& options = {})
      : bytes_(endpoint, options) {}
  // Nothing if none came within `timeout`, or if what came is no T (malformed() counts those).
  std::optional<T> pull(Milliseconds timeout) {
    auto bytes = bytes_.pull_bytes(timeout);
    if (!bytes) return std::nullopt;
    auto value = from_bytes<T>(*bytes);
    if (value.ok()) return std::move(*value);
    ++malformed_;
    return std::nullopt;
  }
  std::uint64_t malformed() const { return malformed_; }

 private:
  BytesPull bytes_;
  std::uint64_t malformed_ = 0;
};

}  // namespace dray
