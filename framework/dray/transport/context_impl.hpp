// The ZeroMQ context inside a Context; for this room alone.
#pragma once

#include <zmq.hpp>

#include "dray/transport/socket.hpp"

namespace dray::transport {

struct Context::Impl {
  zmq::context_t context{1};
};

}  // namespace dray::transport
