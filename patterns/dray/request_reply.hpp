// Client and Service: typed request and reply, not durable.
//
//   dray::Service<Question, Answer> service("ipc:///run/shop/desk",
//                                           [](const Question& q) -> dray::Result<Answer> {...});
//   dray::Client<Question, Answer> client("ipc:///run/shop/desk");
//   auto answer = client.call({...}, 2s);
//
// A client of several services gives each call to the one with the fewest open calls of its own.
//
// Guarantees: a call ends once, by the service's answer, the service's error, or kTimeout; not
// later than its time-out. It is sent at most once, unless it says that it may be repeated. When
// its service's connection breaks it ends at once with kUnknown (the service may have run it), or,
// if it may be repeated, goes to another. What was not sent yet waits for a service. A service
// skips what was cancelled, and what can be answered too late only.
//
// Threading: Client: any thread, many calls at once; callbacks of call_async() run on the client's
// own thread. Service: the function runs on `threads` threads of the service.
// Failure: constructors throw EndpointError. Errors of the function travel with code and message;
// kFull when too many calls are open, here or there; kClosed for what is open when either ends, or
// is cancelled; kInvalid for a request or a reply of more than 64 MiB. Over inproc a service that
// ends is not noticed. Ownership: each owns its threads, sockets, and context unless one is given.
#pragma once

#include <functional>
#include <future>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "dray/endpoint_keys.hpp"
#include "dray/export.hpp"
#include "dray/fields.hpp"
#include "dray/pipeline.hpp"

namespace dray {

struct CallOptions {
  // From any duration: client.call(question, 2s).
  template <typename Rep, typename Period>
  CallOptions(std::chrono::duration<Rep, Period> timeout_in, bool may_repeat_in = false)
      : timeout(std::chrono::duration_cast<Milliseconds>(timeout_in)), may_repeat(may_repeat_in) {}

  Milliseconds timeout;
  bool may_repeat;  // the service may run it twice: it is sent again when a connection breaks
};

struct ClientOptions {
  std::size_t open_max = 10'000;          // calls at a time
  std::optional<EndpointKeys> keys = {};  // nothing: in plain, on this machine
  Log log = {};
  transport::Context* context = nullptr;  // shared; nothing: one of its own
};

struct ClientCounters {
  std::uint64_t calls = 0;
  std::uint64_t answered = 0;  // by the service, errors of its own included
  std::uint64_t timed_out = 0;
  std::uint64_t lost = 0;      // ended with their connection
  std::uint64_t repeated = 0;  // sent once more
  std::uint64_t open = 0;
  std::uint32_t peers = 0;  // services that are connected, as of the last call
  // Of answered calls, from call to answer; within 10 %.
  std::chrono::microseconds round_trip_p50{0}, round_trip_p99{0};
};

using BytesCallback = std::function<void(Result<std::string>)>;
// Names an open call, for cancel().
using CallId = std::uint64_t;

class DRAY_API BytesClient {
 public:
  BytesClient(const std::vector<std::string>& endpoints, const ClientOptions& options);
  ~BytesClient();
  BytesClient(const BytesClient&) = delete;
  BytesClient& operator=(const BytesClient&) = delete;

  Result<std::string> call_bytes(std::string_view request, const CallOptions& options);
  // `done` is called once; it must not block for long.
  CallId call_bytes(std::string_view request, const CallOptions& options,
                    const BytesCallback& done);
  // Ends it with kClosed, unless it has ended. A service that has not begun it will not.
  void cancel(CallId call);
  ClientCounters counters() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

struct ServiceOptions {
  std::uint32_t threads = 1;
  std::size_t waiting_max = 10'000;           // requests that wait for a thread; more get kFull
  std::size_t waiting_bytes_max = 64U << 20;  // the same in bytes; one may exceed it
  Milliseconds linger{200};                   // at the end, for what waits
  std::optional<EndpointKeys> keys = {};      // nothing: in plain, on this machine
  Log log = {};
  transport::Context* context = nullptr;
};

struct ServiceCounters {
  std::uint64_t requests = 0;
  std::uint64_t answered = 0;   // errors of the function included
  std::uint64_t failed = 0;     // of those: errors
  std::uint64_t skipped = 0;    // cancelled, or too late
  std::uint64_t refused = 0;    // for want of room, or of the right key
  std::uint64_t malformed = 0;  // frames
  std::uint64_t dropped = 0;    // answers that their client took too slowly
  std::uint64_t waiting = 0;
  std::uint32_t peers = 0;
};

class DRAY_API BytesService {
 public:
  using Function = std::function<Result<std::string>(std::string_view request)>;
  BytesService(const std::vector<std::string>& endpoints, Function function,
               const ServiceOptions& options);
  ~BytesService();
  BytesService(const BytesService&) = delete;
  BytesService& operator=(const BytesService&) = delete;

  // Takes no more, and answers what waits, for at most so long; the rest gets kClosed. Idempotent.
  void stop(Milliseconds deadline);
  ServiceCounters counters() const;
  std::string bound_endpoint() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

template <typename Request, typename Reply>
class Client {
 public:
  explicit Client(const std::string& endpoint, const ClientOptions& options = {})
      : client_({endpoint}, options) {}
  explicit Client(const std::vector<std::string>& endpoints, const ClientOptions& options = {})
      : client_(endpoints, options) {}

  Result<Reply> call(const Request& request, const CallOptions& options) {
    const auto bytes = client_.call_bytes(to_bytes(request), options);
    return bytes.ok() ? from_bytes<Reply>(*bytes) : Result<Reply>(bytes.error());
  }
  CallId call_async(const Request& request, const CallOptions& options,
                    std::function<void(Result<Reply>)> done) {
    return client_.call_bytes(
        to_bytes(request), options, [done = std::move(done)](const Result<std::string>& bytes) {
          done(bytes.ok() ? from_bytes<Reply>(*bytes) : Result<Reply>(bytes.error()));
        });
  }
  void cancel(CallId call) { client_.cancel(call); }
  ClientCounters counters() const { return client_.counters(); }

 private:
  BytesClient client_;
};

template <typename Request, typename Reply>
class Service {
 public:
  using Function = std::function<Result<Reply>(const Request&)>;
  Service(const std::string& endpoint, Function function, const ServiceOptions& options = {})
      : Service(std::vector<std::string>{endpoint}, std::move(function), options) {}
  Service(const std::vector<std::string>& endpoints, Function function,
          const ServiceOptions& options = {})
      : service_(
            endpoints,
            [function = std::move(function)](std::string_view bytes) -> Result<std::string> {
              auto request = from_bytes<Request>(bytes);
              if (!request.ok()) return request.error();
              auto reply = function(*request);
              if (!reply.ok()) return reply.error();
              return to_bytes(*reply);
            },
            options) {}
  void stop(Milliseconds deadline) { service_.stop(deadline); }
  ServiceCounters counters() const { return service_.counters(); }
  std::string bound_endpoint() const { return service_.bound_endpoint(); }

 private:
  BytesService service_;
};

}  // namespace dray
