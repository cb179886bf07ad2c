// The ZeroMQ context inside a Context; for this room alone.
#pragma once

#include <algorithm>
#include <zmq.hpp>

#include "dray/transport/socket.hpp"

namespace dray::transport {

struct Context::Impl {
  // A worker has three sockets for each address that it serves (its own, and the two ends of its
  // monitor); each costs the context some bytes whether it is there or not.
  static constexpr int kSocketsMax = 16'384;

  Impl() {
    context.set(zmq::ctxopt::max_sockets,
                std::min(kSocketsMax, context.get(zmq::ctxopt::socket_limit)));
  }
  zmq::context_t context{1};
};

}  // namespace dray::transport
