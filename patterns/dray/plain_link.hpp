// What the plain patterns share: a ZeroMQ context, keys, and sockets that are made anew after their
// key was turned away. For their own source files only.
#pragma once

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "dray/clock.hpp"
#include "dray/pipeline.hpp"
#include "dray/transport/authenticator.hpp"

namespace dray::plain {

// A context of its own, or a shared one; with who may connect.
class Ground {
 public:
  // Throws EndpointError for keys that are none.
  Ground(transport::Context* shared, const std::optional<EndpointKeys>& keys, bool binds,
         const Log& log);
  transport::Context& context() { return *context_; }
  // Sets the keys.
  void secure(transport::SocketOptions& options) const;
  // Whether this key may be a peer, now; without keys: all.
  bool allows(const std::string& user) const {
    return !authenticator_ || authenticator_->allows(user, transport::Role::kPeer);
  }

 private:
  std::unique_ptr<transport::Context> own_;
  transport::Context* context_;
  const std::optional<EndpointKeys> keys_;
  const bool binds_;
  std::unique_ptr<transport::Authenticator> authenticator_;
};

// Throws EndpointError for the first that cannot be.
void attach(transport::Socket& socket, const std::vector<std::string>& endpoints, bool bind);

using dray::deadline_in;

// Follows a socket's connections.
class Links {
 public:
  // Who binds hears of those it turns away, too; its log has them from the Authenticator.
  Links(Log log, bool binds) : log_(std::move(log)), binds_(binds) {}
  void take(transport::Socket& socket, SteadyTime now);
  // Of a socket that connects to one endpoint: ZeroMQ does not try again after a key was turned
  // away, and gives some connections up without a word. Then make the socket anew. It has no
  // connection, so nothing is lost with it.
  bool wants_anew(SteadyTime now);
  std::uint32_t peers() const { return peers_; }
  // How many connections broke so far.
  std::uint64_t breaks() const { return breaks_; }

 private:
  Log log_;
  bool binds_;
  std::uint32_t peers_ = 0;
  std::uint64_t breaks_ = 0;
  std::optional<SteadyTime> anew_at_;
  bool told_ = false;
};

}  // namespace dray::plain
