// Fuzz target: what a visitor sends to the HTTP server: the real one, over a Unix socket, with the
// shop's own reading of orders behind it.
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "http/server.hpp"
#include "shop/order/order_request.hpp"

using namespace dray;

namespace {

struct Served {
  Served() {
    char folder[] = "/tmp/dray-fuzz-XXXXXX";
    if (mkdtemp(folder) == nullptr) std::abort();
    path = std::string(folder) + "/s";
    auto started = http::Server::start(
        "unix:" + path, {},
        [](const http::Request& request, const http::Responder& responder) {
          (void)shop::idempotency_key_fault(request.path);
          const auto order = shop::parse_order(request.body);
          responder.reply(order.ok() ? http::Response{202, "text/plain", order->customer}
                                     : http::problem(422, "Unprocessable", order.error().text()));
        },
        Log());
    if (!started.ok()) std::abort();
    server = std::move(*started);
  }
  std::string path;
  std::unique_ptr<http::Server> server;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static Served served;
  const int fd = socket(AF_UNIX, SOCK_STREAM, 0);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::strncpy(address.sun_path, served.path.c_str(), sizeof(address.sun_path) - 1);
  // libFuzzer's own timer interrupts calls, and a backlog may be full for a moment.
  while (connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) {
    if (errno != EINTR && errno != EAGAIN) std::abort();
  }
  (void)send(fd, data, size, MSG_NOSIGNAL);
  shutdown(fd, SHUT_WR);
  char answer[4096];
  std::string all;
  for (;;) {
    pollfd polled{fd, POLLIN, 0};
    const int ready = poll(&polled, 1, 5'000);
    if (ready < 0 && errno == EINTR) continue;
    if (ready != 1) std::abort();  // it neither answers nor closes
    const auto got = recv(fd, answer, sizeof(answer), 0);
    if (got <= 0) break;
    all.append(answer, static_cast<std::size_t>(got));
  }
  close(fd);
  if (!all.empty() && all.rfind("HTTP/1.", 0) != 0) std::abort();
  return 0;
}
