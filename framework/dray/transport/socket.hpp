// Sockets: ZeroMQ push, pull, router and dealer with every option set on purpose.
//
// No ZeroMQ type leaves this room. Every socket has: LINGER 0, on a DEALER 500 ms (drain before
// closing), explicit high-water marks, MAXMSGSIZE, IPV6, TCP keep-alive, HANDSHAKE_IVL; ROUTER has
// ROUTER_MANDATORY and ROUTER_HANDOVER stays off (ids are automatic); PUSH and DEALER have
// IMMEDIATE. Messages have one frame, plus the routing id on a ROUTER; what a DEALER receives may
// have a second one. Others are dropped.
//
// Threading: a socket belongs to the thread that uses it; it may be made on another one first.
// Failure: bind and connect return errors that name the endpoint. Sends never block: kFull and
// kUnreachable come back to the caller, who keeps the message.
// Ownership: the Context outlives its sockets; one Context per process is enough.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "dray/clock.hpp"
#include "dray/result.hpp"

namespace dray::transport {

class Context {
 public:
  Context();
  ~Context();
  Context(const Context&) = delete;
  Context& operator=(const Context&) = delete;

  struct Impl;
  Impl& impl() { return *impl_; }

 private:
  std::unique_ptr<Impl> impl_;
};

// A received frame; copies share the bytes.
struct Frame {
  std::shared_ptr<const void> owner;
  std::string_view bytes;
};

// Security by CURVE: with it, and only with it, an endpoint may lie beyond this machine (P9).
struct CurveServer {
  std::string secret_key;  // Z85; who may connect, the context's Authenticator decides
};
struct CurveClient {
  std::string public_key, secret_key;  // its own
  std::string server_key;              // the server's public key
};

enum class Sent { kSent, kFull, kUnreachable };

struct SocketOptions {
  int send_frames_max = 10'000;     // SNDHWM, per peer
  int receive_frames_max = 10'000;  // RCVHWM, per peer
  std::int64_t frame_bytes_max = 64LL << 20;
  std::optional<CurveServer> curve_server = std::nullopt;
  std::optional<CurveClient> curve_client = std::nullopt;
};

// What the socket monitor tells. After kTurnedAway (the other side's Authenticator does not allow
// this key) and kMismatch (only one side uses CURVE, or the server has another key) ZeroMQ never
// tries again: make a new socket when that may have changed. kNeverMade: a connection ended that
// never was one, for its handshake was not finished.
enum class Link { kConnected, kDisconnected, kTurnedAway, kMismatch, kNeverMade };

class Socket {
 public:
  virtual ~Socket();
  Socket(const Socket&) = delete;
  Socket& operator=(const Socket&) = delete;

  // kInvalid for a bad endpoint; kConflict for an address in use; P9: kInvalid for an endpoint
  // beyond this machine without CURVE.
  Status bind(const std::string& endpoint);
  Status connect(const std::string& endpoint);
  // The endpoint bound last, with the port that "tcp://127.0.0.1:*" chose.
  std::string bound_endpoint() const;

  // What is not sent yet has so long to leave after the socket is closed.
  void set_linger(Milliseconds linger);

  // Starts watching connections. Call before bind or connect.
  Status watch_links();
  // Connections made or broken since the last call, oldest first.
  std::vector<Link> take_links();

  // False: there was nothing to receive, and none to take, when it was last tried or a Poller last
  // looked. Whoever polls need not try.
  bool has_frames() const;
  bool has_links() const;

  struct Impl;
  Impl& impl() { return *impl_; }

 protected:
  Socket(Context& context, int type, const SocketOptions& options);
  std::unique_ptr<Impl> impl_;
};

class PushSocket final : public Socket {
 public:
  PushSocket(Context& context, const SocketOptions& options);
  Sent send(std::string_view body);
};

class PullSocket final : public Socket {
 public:
  PullSocket(Context& context, const SocketOptions& options);
  struct Received {
    Frame frame;
    std::string user;  // with CurveServer: the sender's public key
  };
  // Nothing if none is waiting.
  std::optional<Received> receive_from();
};

class RouterSocket final : public Socket {
 public:
  RouterSocket(Context& context, const SocketOptions& options);
  Sent send(std::string_view peer, std::string_view body);
  // With a second frame, which is kept by `owner` and not copied.
  Sent send(std::string_view peer, std::string_view body, std::string_view second,
            const std::shared_ptr<const void>& owner);
  struct Received {
    std::string peer;
    Frame frame;
    std::string user;  // with CurveServer: the sender's public key
  };
  std::optional<Received> receive();
};

class DealerSocket final : public Socket {
 public:
  DealerSocket(Context& context, const SocketOptions& options);
  Sent send(std::string_view body);
  std::optional<Frame> receive();
  struct Pair {
    Frame first;
    Frame second;  // without bytes if there was none
  };
  // A message may have a second frame.
  std::optional<Pair> receive_pair();
};

// Wakes a thread that polls; any thread may call wake().
class WakeUp {
 public:
  WakeUp();
  ~WakeUp();
  WakeUp(const WakeUp&) = delete;
  WakeUp& operator=(const WakeUp&) = delete;
  void wake();
  // What a Poller does when it sees it.
  void clear();
  int fd() const { return fd_; }

 private:
  int fd_;
};

// Waits until a socket can be read, a link changed or somebody woke it, and says of its sockets
// which that is (has_frames(), has_links()). One system call, and two for each socket that was sent
// to, or not read until nothing was there, since the last one: the descriptors of ZeroMQ's sockets
// tell of changes only (zmq_getsockopt(3), ZMQ_FD), and a send may use up what they tell.
class Poller {
 public:
  void add(Socket& socket) { sockets_.push_back(&socket); }
  // Until it can be sent to, or a link changed.
  void add_for_sending(Socket& socket) { senders_.push_back(&socket); }
  // It is cleared when it was seen.
  void add(WakeUp& wake_up) { wake_ups_.push_back(&wake_up); }
  // At most so long; less than 0: for ever. It may return early and for nothing.
  void wait(std::chrono::nanoseconds timeout);

 private:
  std::vector<Socket*> sockets_;
  std::vector<Socket*> senders_;
  std::vector<WakeUp*> wake_ups_;
};

// P9: nothing if the endpoint stays on this machine (inproc, ipc, tcp to a loopback address) or is
// `secured` by CURVE, else why not.
std::optional<std::string> endpoint_fault(const std::string& endpoint, bool secured = false);

}  // namespace dray::transport
