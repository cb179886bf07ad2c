// Authenticator: decides which CURVE keys may connect (P9); a ZAP handler (RFC 27).
//
// The allow list is read again whenever the file has changed, so that a key is given or taken
// without a restart. A list that cannot be read any more leaves the last good one in force, and is
// logged. A message carries its sender's key as its user (RouterSocket::Received::user).
//
// Threading: a thread of its own for the ZAP socket; allows() from any thread.
// Failure: start fails if the list cannot be read, or if the context has a handler already.
// Ownership: the Context outlives it. Start it before a socket with CurveServer is bound.
#pragma once

#include <memory>
#include <string>

#include "dray/log.hpp"
#include "dray/transport/curve.hpp"
#include "dray/transport/socket.hpp"

namespace dray::transport {

class Authenticator {
 public:
  // `own_key` is always allowed: the apps beside a spool. An empty `allow_file` allows no other.
  static Result<std::unique_ptr<Authenticator>> start(Context& context, std::string allow_file,
                                                      std::string own_key, Log log);
  ~Authenticator();
  Authenticator(const Authenticator&) = delete;
  Authenticator& operator=(const Authenticator&) = delete;

  // Whether this key may be a worker, or a publisher, now.
  bool allows(const std::string& key, Role role);
  // Looks whether the list has changed; how often it did.
  std::uint64_t version();

 private:
  struct State;
  explicit Authenticator(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

// Connects with a key made for this purpose and tells whether that was turned away, as it must be.
// Takes at most two seconds. kConflict: it was let in; kTimeout: no answer.
Status check_strangers_are_refused(const std::string& endpoint, const std::string& server_key);

}  // namespace dray::transport
