// Resolver: the addresses behind an endpoint's name.
//
// "tcp://orders.internal:7000" may stand for several dispatchers, and for other ones tomorrow.
// ZeroMQ itself takes the first address only; so names are resolved here and sockets get numbers.
//
// Threading: pure but for the system's resolver, which may block for seconds: not on a thread that
// owns a socket. Failure: kInvalid for what is no endpoint, kNotFound for a name without addresses.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "dray/result.hpp"

namespace dray::transport {

// "orders.internal" of "tcp://orders.internal:7000"; nothing if the endpoint names an address, or
// is no tcp endpoint.
std::optional<std::string> endpoint_name(const std::string& endpoint);

// Why an endpoint cannot be connected to, as far as can be told without resolving its name.
std::optional<std::string> connect_fault(const std::string& endpoint, bool secured = false);

// Endpoints with addresses, ascending, each once; the endpoint itself if it has no name.
Result<std::vector<std::string>> resolve_endpoint(const std::string& endpoint);

using Resolve = std::function<Result<std::vector<std::string>>(const std::string& endpoint)>;

}  // namespace dray::transport
