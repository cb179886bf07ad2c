#include "dray/transport/resolver.hpp"

#include <arpa/inet.h>
#include <netdb.h>

#include <array>
#include <charconv>
#include <memory>
#include <set>

#include "dray/transport/socket.hpp"

namespace dray::transport {
namespace {

constexpr std::string_view kTcp = "tcp://";
constexpr const char* kForm =
    "write it like \"ipc://path\" or \"tcp://host:5555\", the port from 1 to 65535";

struct HostPort {
  std::string host;
  std::string port;
};

std::optional<HostPort> split(const std::string& endpoint) {
  if (!endpoint.starts_with(kTcp)) return std::nullopt;
  const std::string address = endpoint.substr(kTcp.size());
  const auto colon = address.rfind(':');
  if (colon == std::string::npos || colon == 0) return std::nullopt;
  HostPort parts{address.substr(0, colon), address.substr(colon + 1)};
  unsigned port = 0;
  const char* const end = parts.port.data() + parts.port.size();
  const auto [read, fault] = std::from_chars(parts.port.data(), end, port);
  if (fault != std::errc{} || read != end || port == 0 || port > 65'535) return std::nullopt;
  return parts;
}

bool is_numeric(const std::string& host) {
  std::array<unsigned char, sizeof(in6_addr)> ignored{};
  return host.front() == '[' || inet_pton(AF_INET, host.c_str(), ignored.data()) == 1;
}

}  // namespace

std::optional<std::string> endpoint_name(const std::string& endpoint) {
  const auto parts = split(endpoint);
  if (!parts || is_numeric(parts->host)) return std::nullopt;
  return parts->host;
}

std::optional<std::string> connect_fault(const std::string& endpoint, bool secured) {
  if (!endpoint.starts_with(kTcp)) return endpoint_fault(endpoint, secured);
  if (!split(endpoint)) return kForm;
  return endpoint_name(endpoint) ? std::nullopt : endpoint_fault(endpoint, secured);
}

Result<std::vector<std::string>> resolve_endpoint(const std::string& endpoint) {
  if (!endpoint.starts_with(kTcp)) return std::vector<std::string>{endpoint};
  const auto parts = split(endpoint);
  if (!parts) return Error{ErrorCode::kInvalid, kForm, endpoint, 0};
  if (is_numeric(parts->host)) return std::vector<std::string>{endpoint};
  addrinfo hints{};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  const int code = getaddrinfo(parts->host.c_str(), parts->port.c_str(), &hints, &found);
  if (code != 0) {
    return Error{ErrorCode::kNotFound,
                 "the name '" + parts->host + "' cannot be resolved: " + gai_strerror(code),
                 endpoint, 0};
  }
  const std::unique_ptr<addrinfo, decltype(&freeaddrinfo)> owner(found, &freeaddrinfo);
  std::set<std::string> all;
  for (const addrinfo* each = found; each != nullptr; each = each->ai_next) {
    std::array<char, NI_MAXHOST> host{};
    if (getnameinfo(each->ai_addr, each->ai_addrlen, host.data(), host.size(), nullptr, 0,
                    NI_NUMERICHOST) != 0) {
      continue;
    }
    const std::string text = host.data();
    all.insert(std::string(kTcp) + (each->ai_family == AF_INET6 ? "[" + text + "]" : text) + ":" +
               parts->port);
  }
  return std::vector<std::string>(all.begin(), all.end());
}

}  // namespace dray::transport
