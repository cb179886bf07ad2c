#include "dray/transport/socket.hpp"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <thread>
#include <zmq.hpp>

#include "dray/thread_traits.hpp"
#include "dray/transport/context_impl.hpp"
#include "dray/uuid.hpp"

namespace dray::transport {

Context::Context() {
  // ZeroMQ's own threads begin with the first socket, and take after the thread that makes it.
  std::thread([this] {
    take_slice(Slice::kShort);
    impl_ = std::make_unique<Impl>();
    const zmq::socket_t first(impl_->context, zmq::socket_type::pair);
  }).join();
}
Context::~Context() = default;

struct Socket::Impl {
  Impl(zmq::context_t& context_in, int type) : context(context_in), socket(context_in, type) {}

  zmq::context_t& context;
  zmq::socket_t socket;
  std::optional<zmq::socket_t> monitor;
  bool is_router = false;
  bool secured = false;
  // There may be something that its descriptor does not tell of (any more).
  bool may_have_frames = true;
  bool may_have_links = true;
  int handshakes_failed = 0;  // of connections whose end is yet to be told
};

namespace {

constexpr int kZapEnforceDomain = 93;

// What ZeroMQ's own thread lets go once it is sent.
struct Kept {
  std::shared_ptr<const void> owner;
  std::atomic<bool> handed_over{false};  // ZeroMQ's queue says so too, but not to ThreadSanitizer

  static void release(void*, void* self) {
    auto* kept = static_cast<Kept*>(self);
    (void)kept->handed_over.load(std::memory_order_acquire);
    delete kept;
  }
};
constexpr std::size_t kIpcPathMax = 107;  // sun_path less its final zero

bool starts_with(const std::string& text, std::string_view prefix) {
  return text.compare(0, prefix.size(), prefix) == 0;
}

// False: there is none.
bool receive_part(zmq::socket_t& socket, zmq::message_t& part) {
  for (;;) {
    try {
      return socket.recv(part, zmq::recv_flags::dontwait).has_value();
    } catch (const zmq::error_t& error) {
      if (error.num() != EINTR) throw;
    }
  }
}

Error endpoint_error(const char* operation, const std::string& endpoint, int number) {
  Error error = io_error(operation, endpoint, number);
  if (number == EADDRINUSE) {
    error.code = ErrorCode::kConflict;
    error.message = "address in use; stop the program that has it, or choose another";
  } else if (number == EINVAL || number == EPROTONOSUPPORT) {
    error.code = ErrorCode::kInvalid;
    error.message =
        "not a ZeroMQ endpoint; write it like \"ipc://path\" or "
        "\"tcp://127.0.0.1:5555\"";
  }
  return error;
}

// ZeroMQ takes a path away from whoever is bound to it; those who connected stay with the old one,
// new ones find the new one, and nobody is told.
bool somebody_answers(const std::string& endpoint) {
  constexpr int kBindTries = 20;
  constexpr auto kBindPause = std::chrono::milliseconds(10);
  constexpr std::string_view kIpc = "ipc://";
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (!endpoint.starts_with(kIpc)) return false;
  const std::string path = endpoint.substr(kIpc.size());
  if (path.empty() || path.front() == '@' || path.size() >= sizeof(address.sun_path)) return false;
  path.copy(address.sun_path, path.size());
  // This process's own last socket may be closing.
  for (int i = 0; i < kBindTries; ++i) {
    const int descriptor = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (descriptor < 0) return false;
    // NOLINTNEXTLINE(cppcoreguidelines-pro-type-cstyle-cast): POSIX's sockaddr
    const auto* generic = reinterpret_cast<const sockaddr*>(&address);
    // EAGAIN: somebody listens, and many wait.
    const bool answered = ::connect(descriptor, generic, sizeof(address)) == 0 || errno == EAGAIN;
    ::close(descriptor);
    if (!answered) return false;
    std::this_thread::sleep_for(kBindPause);
  }
  return true;
}

}  // namespace

std::optional<std::string> endpoint_fault(const std::string& endpoint, bool secured) {
  if (starts_with(endpoint, "inproc://")) return std::nullopt;
  if (starts_with(endpoint, "ipc://")) {
    const std::size_t size = endpoint.size() - 6;
    if (size == 0) return "the path of an ipc endpoint is missing";
    if (size > kIpcPathMax) {
      return "the path has " + std::to_string(size) + " bytes; a Unix socket takes " +
             std::to_string(kIpcPathMax) + "; choose a shorter one";
    }
    return std::nullopt;
  }
  if (starts_with(endpoint, "tcp://")) {
    if (secured) return std::nullopt;
    const std::string address = endpoint.substr(6);
    for (const auto* local : {"127.", "localhost:", "[::1]:"}) {
      if (starts_with(address, local)) return std::nullopt;
    }
    return "it leaves this machine, which needs CURVE keys: make them with `dray keygen` and name "
           "them with 'keys'; or use ipc://, or tcp:// with 127.0.0.1 or [::1]";
  }
  return "write it like \"ipc://path\" or \"tcp://127.0.0.1:5555\"";
}

Socket::Socket(Context& context, int type, const SocketOptions& options)
    : impl_(std::make_unique<Impl>(context.impl().context, type)) {
  auto& socket = impl_->socket;
  // A worker's BYE is the last thing it sends: half a second lets it leave.
  socket.set(zmq::sockopt::linger, type == ZMQ_DEALER ? 500 : 0);
  socket.set(zmq::sockopt::sndhwm, options.send_frames_max);
  socket.set(zmq::sockopt::rcvhwm, options.receive_frames_max);
  socket.set(zmq::sockopt::maxmsgsize, options.frame_bytes_max);
  socket.set(zmq::sockopt::ipv6, true);
  socket.set(zmq::sockopt::tcp_keepalive, 1);
  socket.set(zmq::sockopt::tcp_keepalive_idle, 30);
  socket.set(zmq::sockopt::tcp_keepalive_intvl, 5);
  socket.set(zmq::sockopt::tcp_keepalive_cnt, 3);
  socket.set(zmq::sockopt::connect_timeout, 5'000);
  socket.set(zmq::sockopt::handshake_ivl, 5'000);
  socket.set(zmq::sockopt::reconnect_ivl, 50);
  socket.set(zmq::sockopt::reconnect_ivl_max, 1'000);
  if (options.curve_server) {
    // P9: before it has shown a key, a stranger may send what it likes, up to a frame's limit, and
    // ZeroMQ keeps it for so long.
    socket.set(zmq::sockopt::handshake_ivl, 2'000);
    socket.set(zmq::sockopt::curve_server, true);
    socket.set(zmq::sockopt::curve_secretkey, options.curve_server->secret_key);
    socket.set(zmq::sockopt::zap_domain, "dray");
    // Without it a context that has no ZAP handler lets everybody in. In zmq.h among the drafts.
    const int enforce = 1;
    if (zmq_setsockopt(socket.handle(), kZapEnforceDomain, &enforce, sizeof(enforce)) != 0) {
      throw zmq::error_t();
    }
  }
  if (options.curve_client) {
    socket.set(zmq::sockopt::curve_serverkey, options.curve_client->server_key);
    socket.set(zmq::sockopt::curve_publickey, options.curve_client->public_key);
    socket.set(zmq::sockopt::curve_secretkey, options.curve_client->secret_key);
  }
  impl_->secured = options.curve_server || options.curve_client;
  if (type == ZMQ_PUSH || type == ZMQ_DEALER) socket.set(zmq::sockopt::immediate, true);
  if (type == ZMQ_ROUTER) {
    socket.set(zmq::sockopt::router_mandatory, true);
    impl_->is_router = true;
  }
}

Socket::~Socket() {
  if (impl_->monitor) zmq_socket_monitor(impl_->socket.handle(), nullptr, 0);
}

void Socket::set_linger(Milliseconds linger) {
  impl_->socket.set(zmq::sockopt::linger, static_cast<int>(linger.count()));
}

Status Socket::bind(const std::string& endpoint) {
  if (auto fault = endpoint_fault(endpoint, impl_->secured)) {
    return Error{ErrorCode::kInvalid, *fault, endpoint, 0};
  }
  if (somebody_answers(endpoint)) {
    return Error{ErrorCode::kBusy, "another process answers there; is this app running already?",
                 endpoint, 0};
  }
  impl_->may_have_frames = true;
  try {
    impl_->socket.bind(endpoint);
  } catch (const zmq::error_t& error) {
    return endpoint_error("bind", endpoint, error.num());
  }
  return {};
}

Status Socket::connect(const std::string& endpoint) {
  if (auto fault = endpoint_fault(endpoint, impl_->secured)) {
    return Error{ErrorCode::kInvalid, *fault, endpoint, 0};
  }
  impl_->may_have_frames = true;
  try {
    impl_->socket.connect(endpoint);
  } catch (const zmq::error_t& error) {
    return endpoint_error("connect", endpoint, error.num());
  }
  return {};
}

std::string Socket::bound_endpoint() const {
  std::string endpoint = impl_->socket.get(zmq::sockopt::last_endpoint);
  // An IPv4 address in the form that a socket for both versions has for it.
  constexpr std::string_view kMapped = "[::ffff:";
  const auto mapped = endpoint.find(kMapped);
  const auto close = endpoint.find(']');
  if (mapped == std::string::npos || close == std::string::npos) return endpoint;
  return endpoint.erase(close, 1).erase(mapped, kMapped.size());
}

Status Socket::watch_links() {
  if (impl_->monitor) return {};  // a second bind: the old name may not be free again yet
  // A name of its own: they are global to the context, and that of a socket which was closed is
  // free only later.
  const std::string name = "inproc://dray-monitor-" + uuid_v4().text();
  const int events = ZMQ_EVENT_HANDSHAKE_SUCCEEDED | ZMQ_EVENT_DISCONNECTED |
                     ZMQ_EVENT_HANDSHAKE_FAILED_AUTH | ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL |
                     ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL;
  if (zmq_socket_monitor(impl_->socket.handle(), name.c_str(), events) != 0) {
    return io_error("socket monitor", name, zmq_errno());
  }
  impl_->monitor.emplace(impl_->context, zmq::socket_type::pair);
  impl_->monitor->set(zmq::sockopt::linger, 0);
  // Without a limit: ZeroMQ's own thread would wait for us to read, and closing for it.
  impl_->monitor->set(zmq::sockopt::rcvhwm, 0);
  impl_->monitor->connect(name);
  // Until a first look finds nothing, ZeroMQ does not signal what comes.
  zmq::message_t none;
  (void)receive_part(*impl_->monitor, none);
  return {};
}

bool Socket::has_frames() const {
  return impl_->may_have_frames;
}

bool Socket::has_links() const {
  return impl_->monitor && impl_->may_have_links;
}

std::vector<Link> Socket::take_links() {
  std::vector<Link> links;
  impl_->may_have_links = false;  // when all are taken
  while (impl_->monitor) {
    zmq::message_t event;
    if (!receive_part(*impl_->monitor, event)) break;
    std::uint16_t number = 0;
    if (event.size() >= sizeof(number)) std::memcpy(&number, event.data(), sizeof(number));
    while (event.more()) {
      if (!receive_part(*impl_->monitor, event)) break;
    }
    switch (number) {
      // Of each such connection it is said once that it failed, and then that it ended.
      case ZMQ_EVENT_DISCONNECTED:
        if (impl_->handshakes_failed > 0) {
          --impl_->handshakes_failed;
          links.push_back(Link::kNeverMade);
        } else {
          links.push_back(Link::kDisconnected);
        }
        break;
      case ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL:
        ++impl_->handshakes_failed;
        break;
      case ZMQ_EVENT_HANDSHAKE_FAILED_AUTH:
        ++impl_->handshakes_failed;
        links.push_back(Link::kTurnedAway);
        break;
      case ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL:
        ++impl_->handshakes_failed;
        links.push_back(Link::kMismatch);
        break;
      default:
        links.push_back(Link::kConnected);
    }
  }
  return links;
}

namespace {

Sent send_body(Socket::Impl& impl, std::string_view body, zmq::send_flags flags) {
  impl.may_have_frames = true;
  for (;;) {
    try {
      const auto sent = impl.socket.send(zmq::const_buffer(body.data(), body.size()),
                                         flags | zmq::send_flags::dontwait);
      return sent ? Sent::kSent : Sent::kFull;
    } catch (const zmq::error_t& error) {
      if (error.num() == EINTR) continue;
      if (error.num() == EHOSTUNREACH) return Sent::kUnreachable;
      throw;  // ETERM, ENOTSOCK: the owner closed the context under us
    }
  }
}

// Reads one message of `least` to `most` frames; drops messages of any other shape.
std::optional<std::vector<zmq::message_t>> receive_frames(Socket::Impl& impl, std::size_t least,
                                                          std::size_t most) {
  for (;;) {
    std::vector<zmq::message_t> frames;
    std::size_t seen = 0;
    bool more = true;
    while (more) {
      zmq::message_t frame;
      if (!receive_part(impl.socket, frame)) {
        impl.may_have_frames = false;
        return std::nullopt;
      }
      more = frame.more();
      ++seen;
      if (seen <= most) frames.push_back(std::move(frame));
    }
    if (seen >= least && seen <= most) return frames;
  }
}

Frame frame_of(zmq::message_t message) {
  auto owner = std::make_shared<zmq::message_t>(std::move(message));
  const std::string_view bytes(static_cast<const char*>(owner->data()), owner->size());
  return Frame{std::move(owner), bytes};
}

}  // namespace

PushSocket::PushSocket(Context& context, const SocketOptions& options)
    : Socket(context, ZMQ_PUSH, options) {}
Sent PushSocket::send(std::string_view body) {
  return send_body(*impl_, body, zmq::send_flags::none);
}

PullSocket::PullSocket(Context& context, const SocketOptions& options)
    : Socket(context, ZMQ_PULL, options) {}
std::optional<PullSocket::Received> PullSocket::receive_from() {
  auto frames = receive_frames(*impl_, 1, 1);
  if (!frames) return std::nullopt;
  std::string user;
  if (impl_->secured) {
    const char* id = zmq_msg_gets(frames->front().handle(), "User-Id");
    if (id != nullptr) user = id;
  }
  return Received{frame_of(std::move(frames->front())), std::move(user)};
}

RouterSocket::RouterSocket(Context& context, const SocketOptions& options)
    : Socket(context, ZMQ_ROUTER, options) {}
Sent RouterSocket::send(std::string_view peer, std::string_view body) {
  const Sent first = send_body(*impl_, peer, zmq::send_flags::sndmore);
  if (first != Sent::kSent) return first;
  return send_body(*impl_, body, zmq::send_flags::none);
}
Sent RouterSocket::send(std::string_view peer, std::string_view body, std::string_view second,
                        const std::shared_ptr<const void>& owner) {
  const Sent first = send_body(*impl_, peer, zmq::send_flags::sndmore);
  if (first != Sent::kSent) return first;
  const Sent head = send_body(*impl_, body, zmq::send_flags::sndmore);
  if (head != Sent::kSent) return head;
  auto* kept = new Kept{owner};
  // ZeroMQ takes a mutable pointer, and changes nothing.
  zmq::message_t message(const_cast<char*>(second.data()), second.size(),  // NOLINT
                         &Kept::release, kept);
  kept->handed_over.store(true, std::memory_order_release);
  for (;;) {
    try {
      const auto sent = impl_->socket.send(message, zmq::send_flags::dontwait);
      return sent ? Sent::kSent : Sent::kFull;
    } catch (const zmq::error_t& error) {
      if (error.num() == EINTR) continue;
      if (error.num() == EHOSTUNREACH) return Sent::kUnreachable;
      throw;
    }
  }
}
std::optional<RouterSocket::Received> RouterSocket::receive() {
  auto frames = receive_frames(*impl_, 2, 2);
  if (!frames) return std::nullopt;
  std::string user;
  if (impl_->secured) {
    // Of the second frame: the first, the routing id, may have none.
    const char* id = zmq_msg_gets(frames->at(1).handle(), "User-Id");
    if (id != nullptr) user = id;
  }
  return Received{frames->at(0).to_string(), frame_of(std::move(frames->at(1))), std::move(user)};
}

DealerSocket::DealerSocket(Context& context, const SocketOptions& options)
    : Socket(context, ZMQ_DEALER, options) {}
Sent DealerSocket::send(std::string_view body) {
  return send_body(*impl_, body, zmq::send_flags::none);
}
std::optional<Frame> DealerSocket::receive() {
  auto frames = receive_frames(*impl_, 1, 1);
  if (!frames) return std::nullopt;
  return frame_of(std::move(frames->front()));
}
std::optional<DealerSocket::Pair> DealerSocket::receive_pair() {
  auto frames = receive_frames(*impl_, 1, 2);
  if (!frames) return std::nullopt;
  Pair pair{frame_of(std::move(frames->front())), {}};
  if (frames->size() > 1) pair.second = frame_of(std::move(frames->back()));
  return pair;
}

WakeUp::WakeUp() : fd_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
  DRAY_ASSERT(fd_ >= 0);
}
WakeUp::~WakeUp() {
  close(fd_);
}

void WakeUp::wake() {
  const std::uint64_t one = 1;
  // A full counter is still a wake-up.
  [[maybe_unused]] const auto ignored = write(fd_, &one, sizeof(one));
}

void WakeUp::clear() {
  std::uint64_t count = 0;
  [[maybe_unused]] const auto ignored = read(fd_, &count, sizeof(count));
}

namespace {

// Whether it is so now. If not, its descriptor tells when that changes.
bool check_events(zmq::socket_t& socket, int wanted) {
  try {
    return (socket.get(zmq::sockopt::events) & wanted) != 0;
  } catch (const zmq::error_t& error) {
    if (error.num() != EINTR) throw;
    return true;  // it was not looked
  }
}

}  // namespace

void Poller::wait(std::chrono::nanoseconds timeout) {
  std::array<pollfd, 16> few;
  std::vector<pollfd> many;
  pollfd* items = few.data();
  const std::size_t most = 2 * (sockets_.size() + senders_.size()) + wake_ups_.size();
  if (most > few.size()) {
    many.resize(most);
    items = many.data();
  }
  std::size_t count = 0;
  bool ready = false;
  const auto add = [&](zmq::socket_t& socket) {
    items[count++] = {socket.get(zmq::sockopt::fd), POLLIN, 0};
  };
  const auto add_links = [&](Socket::Impl& impl) {
    if (!impl.monitor) return;
    impl.may_have_links = impl.may_have_links && check_events(*impl.monitor, ZMQ_POLLIN);
    ready = ready || impl.may_have_links;
    add(*impl.monitor);
  };
  // A link changes before anything is received by it: looked at later, it is not missed.
  for (auto* each : sockets_) {
    auto& impl = each->impl();
    impl.may_have_frames = impl.may_have_frames && check_events(impl.socket, ZMQ_POLLIN);
    ready = ready || impl.may_have_frames;
    add(impl.socket);
    add_links(impl);
  }
  for (auto* each : senders_) {
    auto& impl = each->impl();
    // What has something to receive would not tell again after this look.
    const bool now = check_events(impl.socket, ZMQ_POLLOUT | ZMQ_POLLIN);
    impl.may_have_frames = impl.may_have_frames || now;
    ready = ready || now;
    add(impl.socket);
    add_links(impl);
  }
  for (auto* each : wake_ups_) items[count++] = {each->fd(), POLLIN, 0};
  timespec limit{};
  if (!ready && timeout.count() > 0) {
    limit.tv_sec = static_cast<time_t>(timeout.count() / 1'000'000'000);
    limit.tv_nsec = static_cast<long>(timeout.count() % 1'000'000'000);
  }
  const bool for_ever = !ready && timeout.count() < 0;
  if (ppoll(items, count, for_ever ? nullptr : &limit, nullptr) <= 0) return;
  count = 0;
  const auto came = [&] { return items[count++].revents != 0; };
  for (const auto* list : {&sockets_, &senders_}) {
    for (auto* each : *list) {
      auto& impl = each->impl();
      if (came()) impl.may_have_frames = true;
      if (impl.monitor && came()) impl.may_have_links = true;
    }
  }
  for (auto* each : wake_ups_) {
    if (came()) each->clear();
  }
}

}  // namespace dray::transport
