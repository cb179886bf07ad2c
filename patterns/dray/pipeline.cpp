#include "dray/pipeline.hpp"

#include "dray/transport/socket.hpp"

namespace dray {
namespace {

transport::SocketOptions socket_options(const PipelineOptions& options) {
  transport::SocketOptions out;
  out.send_frames_max = options.frames_max;
  out.receive_frames_max = options.frames_max;
  return out;
}

void attach(transport::Socket& socket, const std::string& endpoint, bool bind) {
  const auto attached = bind ? socket.bind(endpoint) : socket.connect(endpoint);
  if (!attached.ok()) throw EndpointError(attached.error().text());
}

// A context of its own, or a shared one.
struct ContextHolder {
  std::unique_ptr<transport::Context> own;
  transport::Context& context;
  explicit ContextHolder(transport::Context* shared)
      : own(shared != nullptr ? nullptr : std::make_unique<transport::Context>()),
        context(shared != nullptr ? *shared : *own) {}
};

}  // namespace

struct BytesPush::State {
  ContextHolder holder;
  transport::PushSocket socket;
  Milliseconds wait;
  SystemClock clock;
  explicit State(const PipelineOptions& options)
      : holder(options.context),
        socket(holder.context, socket_options(options)),
        wait(options.wait) {}
};

BytesPush::BytesPush(const std::string& endpoint, const PipelineOptions& options)
    : state_(std::make_unique<State>(options)) {
  attach(state_->socket, endpoint, options.bind);
}
BytesPush::~BytesPush() = default;

bool BytesPush::push_bytes(const std::string& bytes) {
  const auto deadline = state_->clock.steady() + state_->wait;
  for (;;) {
    if (state_->socket.send(bytes) == transport::Sent::kSent) {
      ++pushed_;
      return true;
    }
    const auto left = deadline - state_->clock.steady();
    if (left.count() <= 0) {
      ++dropped_;
      return false;
    }
    // Room is not announced to a poller that waits for input: look again every millisecond.
    transport::Poller poller;
    poller.wait(1);
  }
}

struct BytesPull::State {
  ContextHolder holder;
  transport::PullSocket socket;
  explicit State(const PipelineOptions& options)
      : holder(options.context), socket(holder.context, socket_options(options)) {}
};

BytesPull::BytesPull(const std::string& endpoint, const PipelineOptions& options)
    : state_(std::make_unique<State>(options)) {
  attach(state_->socket, endpoint, !options.bind);
}
BytesPull::~BytesPull() = default;

std::optional<std::string> BytesPull::pull_bytes(Milliseconds timeout) {
  auto frame = state_->socket.receive();
  if (!frame) {
    transport::Poller poller;
    poller.add(state_->socket);
    poller.wait(static_cast<int>(timeout.count()));
    frame = state_->socket.receive();
  }
  if (!frame) return std::nullopt;
  return std::string(frame->bytes);
}

}  // namespace dray
