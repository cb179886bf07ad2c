// Client and Service: typed request and reply on DEALER and ROUTER, not durable.
//
//   dray::Service<Question, Answer> service("ipc://...", [](const Question& q) ->
//   dray::Result<Answer> {...}); dray::Client<Question, Answer> client("ipc://...");   auto answer
//   = client.call({...}, 2s);
//
// Guarantees: a call ends with the service's answer, the service's error, or kTimeout; never
// later than its time-out. A call is sent at most once; repeating is the caller's decision.
//
// Threading: Client: any thread, many calls at once. Service: the function runs on the service's
// own thread, one request after the other.
// Failure: constructors throw EndpointError. Errors of the function travel with code and message.
// Ownership: each owns its thread, socket and context; destructors end them (open calls get
// kClosed).
#pragma once

#include <functional>
#include <future>
#include <memory>
#include <string>

#include "dray/export.hpp"
#include "dray/fields.hpp"
#include "dray/pipeline.hpp"

namespace dray {

using BytesCallback = std::function<void(Result<std::string>)>;

class DRAY_API BytesClient {
 public:
  explicit BytesClient(const std::string& endpoint);
  ~BytesClient();
  // `done` is called once, on the client's thread; it must not block.
  void call_bytes(const std::string& request, Milliseconds timeout, BytesCallback done);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

class DRAY_API BytesService {
 public:
  using Function = std::function<Result<std::string>(std::string_view request)>;
  BytesService(const std::string& endpoint, Function function);
  ~BytesService();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

template <typename Request, typename Reply>
class Client {
 public:
  explicit Client(const std::string& endpoint) : client_(endpoint) {}

  void call_async(const Request& request, Milliseconds timeout,
                  std::function<void(Result<Reply>)> done) {
    client_.call_bytes(
        to_bytes(request), timeout, [done = std::move(done)](const Result<std::string>& bytes) {
          done(bytes.ok() ? from_bytes<Reply>(*bytes) : Result<Reply>(bytes.error()));
        });
  }
  Result<Reply> call(const Request& request, Milliseconds timeout) {
    std::promise<Result<Reply>> promise;
    auto answer = promise.get_future();
    call_async(request, timeout,
               [&promise](Result<Reply> reply) { promise.set_value(std::move(reply)); });
    return answer.get();
  }

 private:
  BytesClient client_;
};

template <typename Request, typename Reply>
class Service {
 public:
  Service(const std::string& endpoint, std::function<Result<Reply>(const Request&)> function)
      : service_(endpoint,
                 [function = std::move(function)](std::string_view bytes) -> Result<std::string> {
                   auto request = from_bytes<Request>(bytes);
                   if (!request.ok()) return request.error();
                   auto reply = function(*request);
                   if (!reply.ok()) return reply.error();
                   return to_bytes(*reply);
                 }) {}

 private:
  BytesService service_;
};

}  // namespace dray
