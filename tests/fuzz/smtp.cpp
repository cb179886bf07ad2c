// Fuzz target: what a mail server answers: the real transport, with a server on loopback that says
// the input, a line for each thing it is told.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <mutex>
#include <thread>

#include "shop/email/mail_transport.hpp"

namespace {

class FakeServer {
 public:
  FakeServer() : listener_(socket(AF_INET, SOCK_STREAM, 0)) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t length = sizeof(address);
    if (bind(listener_, reinterpret_cast<sockaddr*>(&address), length) != 0 ||
        listen(listener_, 8) != 0 ||
        getsockname(listener_, reinterpret_cast<sockaddr*>(&address), &length) != 0) {
      std::abort();
    }
    port_ = ntohs(address.sin_port);
    std::thread([this] { serve(); }).detach();
  }
  int port() const { return port_; }
  void say(std::string text) {
    const std::lock_guard lock(mutex_);
    text_ = std::move(text);
  }

 private:
  void serve() {
    for (;;) {
      const int fd = accept(listener_, nullptr, nullptr);
      if (fd < 0) continue;
      std::string text;
      {
        const std::lock_guard lock(mutex_);
        text = text_;
      }
      answer(fd, text);
      close(fd);
    }
  }
  static void answer(int fd, const std::string& text) {
    char told[4096];
    for (std::size_t at = 0; at < text.size();) {
      const auto end = text.find('\n', at);
      const std::size_t length = (end == std::string::npos ? text.size() : end + 1) - at;
      if (send(fd, text.data() + at, length, MSG_NOSIGNAL) < 0) return;
      at += length;
      pollfd polled{fd, POLLIN, 0};
      if (poll(&polled, 1, 2) == 1 && recv(fd, told, sizeof(told), 0) <= 0) return;
    }
  }

  int listener_;
  int port_ = 0;
  std::mutex mutex_;
  std::string text_;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static auto* server = new FakeServer;
  static const auto transport =
      shop::make_mail_transport("smtp://127.0.0.1:" + std::to_string(server->port()), {}, false);
  if (size > 4096) return 0;
  server->say(std::string(reinterpret_cast<const char*>(data), size));
  shop::Mail mail;
  mail.from = {"Shop", "shop@example.org"};
  mail.to = {"Jane", "jane@example.org"};
  const auto outcome = transport->send(mail, "Subject: x\r\n\r\nbody\r\n");
  using Kind = shop::MailOutcome::Kind;
  if (outcome.kind != Kind::kSent && outcome.reason.empty()) std::abort();
  return 0;
}
