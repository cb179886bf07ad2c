// Server: HTTP/1.1 with limits and time-outs, for pages, JSON and server-sent events. By
// Boost.Beast; no Boost type leaves this room.
//
// Threading: one thread of its own runs all connections and the handler; Responder and EventStream
// may be used from any thread, also long after the handler returned.
// Failure: requests that break a limit are answered with a 4xx problem (RFC 9457) or closed; a
// handler never sees them. A Responder that is dropped unused answers 500.
// Ownership: the server owns its connections; stop() closes them.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "dray/clock.hpp"
#include "dray/log.hpp"
#include "dray/result.hpp"

namespace dray::http {

struct Request {
  std::string method;
  std::string path;                            // decoded, without the query
  std::map<std::string, std::string> query;    // decoded
  std::map<std::string, std::string> headers;  // names in lower case
  std::string body;
};

struct Response {
  unsigned status = 200;
  std::string content_type = "application/json";
  std::string body;
  std::vector<std::pair<std::string, std::string>> headers = {};
};

// RFC 9457: application/problem+json with title, status and detail.
Response problem(unsigned status, std::string_view title, std::string_view detail);

// Server-sent events (WHATWG HTML, section 9.2).
class EventStream {
 public:
  virtual ~EventStream() = default;
  // False once the client is gone or too slow (64 KiB unsent).
  virtual bool send(std::string_view event, std::string_view data) = 0;
  virtual bool open() const = 0;
  virtual void close() = 0;
};

class Responder {
 public:
  struct Target {
    virtual ~Target() = default;
    virtual void reply(Response response) = 0;
    virtual std::shared_ptr<EventStream> stream() = 0;
  };
  explicit Responder(std::shared_ptr<Target> target) : target_(std::move(target)) {}

  // Once, either of them.
  void reply(Response response) const { target_->reply(std::move(response)); }
  std::shared_ptr<EventStream> stream() const { return target_->stream(); }

 private:
  std::shared_ptr<Target> target_;
};

using Handler = std::function<void(Request request, Responder responder)>;

struct Limits {
  std::uint32_t header_bytes_max = 16U << 10;
  std::uint64_t body_bytes_max = 1U << 20;
  std::size_t connections_max = 4'096;
  Milliseconds read_timeout{10'000};  // of one request, from its first byte or from idle
  Milliseconds write_timeout{30'000};
};

class Server {
 public:
  // "127.0.0.1:8080", "[::1]:0" or "unix:PATH" (made with mode 0600). P9: kInvalid for an address
  // beyond loopback; kConflict, with the port, for one in use.
  static Result<std::unique_ptr<Server>> start(const std::string& listen, const Limits& limits,
                                               Handler handler, Log log);
  virtual ~Server() = default;
  // As listened on, with the port that 0 chose.
  virtual std::string address() const = 0;
  virtual void stop() = 0;
};

}  // namespace dray::http
