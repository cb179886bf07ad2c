#include "dray/request_reply.hpp"

#include <algorithm>
#include <atomic>
#include <mutex>
#include <thread>
#include <unordered_map>
#include <vector>

#include "dray/transport/socket.hpp"

namespace dray {
namespace {

constexpr int kTickMs = 20;
constexpr std::size_t kOutstandingMax = 10'000;

// Frames: request [id, body]; reply [id, body] or [id, nil, code, message]. MessagePack.
std::string encode_request(std::uint64_t id, const std::string& body) {
  std::string bytes;
  Encoder encoder(bytes);
  encoder.array(2);
  encoder.natural(id);
  encoder.binary(body);
  return bytes;
}

std::string encode_failure(std::uint64_t id, const Error& error) {
  std::string bytes;
  Encoder encoder(bytes);
  encoder.array(4);
  encoder.natural(id);
  encoder.nil();
  encoder.text(error_code_name(error.code));
  encoder.text(error.text());
  return bytes;
}

}  // namespace

struct BytesClient::State {
  struct Call {
    std::string frame;
    SteadyTime deadline;
    BytesCallback done;
    bool sent = false;
  };

  SystemClock clock;
  transport::Context context;
  transport::DealerSocket socket{context, {}};
  transport::WakeUp wake_up;
  std::thread thread;
  std::unordered_map<std::uint64_t, Call> calls;  // owned by the thread

  std::mutex mutex;
  std::vector<std::pair<std::uint64_t, Call>> added;  // guarded by mutex
  std::uint64_t last_id = 0;
  bool stopping = false;

  void run() {
    transport::Poller poller;
    poller.add(socket);
    poller.add(wake_up);
    for (;;) {
      poller.wait(calls.empty() ? 1'000 : kTickMs);
      wake_up.clear();
      {
        const std::lock_guard lock(mutex);
        for (auto& [id, call] : added) calls.emplace(id, std::move(call));
        added.clear();
        if (stopping) break;
      }
      while (auto frame = socket.receive()) on_reply(frame->bytes);
      send_and_expire();
    }
    for (auto& [id, call] : calls) {
      call.done(Error{ErrorCode::kClosed, "the client was closed", "", 0});
    }
  }

  void on_reply(std::string_view bytes) {
    const auto document = Document::parse(bytes);
    if (!document.ok() || document->root().size() < 2) return;
    const Value root = document->root();
    std::uint64_t id = 0;
    if (root.kind() != Value::Kind::kArray || !root.at(0).get(id)) return;
    const auto found = calls.find(id);
    if (found == calls.end()) return;  // it timed out
    const auto done = std::move(found->second.done);
    calls.erase(found);
    std::string_view body;
    std::string_view code;
    std::string_view message;
    if (root.at(1).get_binary(body)) return done(std::string(body));
    if (root.size() < 4 || !root.at(2).get_text(code) || !root.at(3).get_text(message)) {
      return done(Error{ErrorCode::kCorrupt, "not a reply", "", 0});
    }
    done(Error{error_code_of(code), std::string(message), "", 0});
  }

  void send_and_expire() {
    const auto now = clock.steady();
    for (auto each = calls.begin(); each != calls.end();) {
      auto& call = each->second;
      if (!call.sent) call.sent = socket.send(call.frame) == transport::Sent::kSent;
      if (call.deadline > now) {
        ++each;
        continue;
      }
      const auto done = std::move(call.done);
      const bool sent = call.sent;
      each = calls.erase(each);
      done(Error{ErrorCode::kTimeout,
                 sent ? "no answer in time" : "the service could not be reached in time", "", 0});
    }
  }
};

BytesClient::BytesClient(const std::string& endpoint) : state_(std::make_unique<State>()) {
  const auto connected = state_->socket.connect(endpoint);
  if (!connected.ok()) throw EndpointError(connected.error().text());
  state_->thread = std::thread([this] { state_->run(); });
}

BytesClient::~BytesClient() {
  {
    const std::lock_guard lock(state_->mutex);
    state_->stopping = true;
  }
  state_->wake_up.wake();
  state_->thread.join();
}

void BytesClient::call_bytes(const std::string& request, Milliseconds timeout, BytesCallback done) {
  {
    const std::lock_guard lock(state_->mutex);
    if (state_->added.size() < kOutstandingMax) {
      const auto id = ++state_->last_id;
      state_->added.emplace_back(
          id, State::Call{encode_request(id, request), state_->clock.steady() + timeout,
                          std::move(done), false});
      done = nullptr;
    }
  }
  if (done) return done(Error{ErrorCode::kFull, "too many calls are outstanding", "", 0});
  state_->wake_up.wake();
}

struct BytesService::State {
  explicit State(Function function_in) : function(std::move(function_in)) {}
  Function function;
  transport::Context context;
  transport::RouterSocket socket{context, {}};
  transport::WakeUp wake_up;
  std::atomic<bool> stopping{false};
  std::thread thread;

  void run() {
    transport::Poller poller;
    poller.add(socket);
    poller.add(wake_up);
    while (!stopping) {
      poller.wait(1'000);
      wake_up.clear();
      while (auto received = socket.receive()) {
        if (stopping) return;
        answer(*received);
      }
    }
  }

  void answer(const transport::RouterSocket::Received& received) {
    const auto document = Document::parse(received.frame.bytes);
    if (!document.ok()) return;
    const Value root = document->root();
    std::uint64_t id = 0;
    std::string_view body;
    if (root.kind() != Value::Kind::kArray || root.size() < 2 || !root.at(0).get(id) ||
        !root.at(1).get_binary(body)) {
      return;
    }
    Result<std::string> reply = Error{ErrorCode::kUnknown, "the service failed", "", 0};
    try {
      reply = function(body);
    } catch (const std::exception& exception) {
      reply = Error{ErrorCode::kUnknown, exception.what(), "", 0};
    }
    // A client that is gone, or too slow to read, times out.
    (void)socket.send(received.peer,
                      reply.ok() ? encode_request(id, *reply) : encode_failure(id, reply.error()));
  }
};

BytesService::BytesService(const std::string& endpoint, Function function)
    : state_(std::make_unique<State>(std::move(function))) {
  const auto bound = state_->socket.bind(endpoint);
  if (!bound.ok()) throw EndpointError(bound.error().text());
  state_->thread = std::thread([this] { state_->run(); });
}

BytesService::~BytesService() {
  state_->stopping = true;
  state_->wake_up.wake();
  state_->thread.join();
}

}  // namespace dray
