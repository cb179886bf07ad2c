#include "dray/transport/socket.hpp"

#include <arpa/inet.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <catch2/catch.hpp>
#include <chrono>
#include <memory>
#include <thread>
#include <vector>

using namespace dray;
using namespace dray::transport;
using namespace std::chrono_literals;

namespace {

// A router and a dealer that have met.
struct Pair {
  Pair() {
    REQUIRE(router.watch_links().ok());
    REQUIRE(router.bind("tcp://127.0.0.1:*").ok());
    REQUIRE(dealer.watch_links().ok());
    REQUIRE(dealer.connect(router.bound_endpoint()).ok());
    poller.add(router);
    while (dealer.send("hello") != Sent::kSent) std::this_thread::sleep_for(1ms);
    while (!hello) {
      poller.wait(5s);
      hello = router.receive();
    }
    while (router.receive()) {
    }
    (void)router.take_links();
  }
  // How long it waited.
  std::chrono::nanoseconds wait(std::chrono::nanoseconds most) {
    const auto begun = std::chrono::steady_clock::now();
    poller.wait(most);
    return std::chrono::steady_clock::now() - begun;
  }

  Context context;
  RouterSocket router{context, {}};
  DealerSocket dealer{context, {}};
  Poller poller;
  std::optional<RouterSocket::Received> hello;
};

// Whether it waits as long as it may.
bool waits_in_vain(Poller& poller) {
  const auto begun = std::chrono::steady_clock::now();
  poller.wait(20ms);
  return std::chrono::steady_clock::now() - begun >= 20ms;
}

// Long enough for what was sent to arrive, and for ZeroMQ to look for it when it sends.
constexpr auto kArrives = 50ms;
constexpr auto kLong = 20s;
constexpr auto kAtOnce = 5s;  // on a busy machine

}  // namespace

TEST_CASE("a socket can be watched where another was closed a moment ago") {
  Context context;
  for (int i = 0; i < 50; ++i) {
    DealerSocket socket(context, {});
    CHECK(socket.watch_links().ok());
  }
}

TEST_CASE("a bound endpoint is said as it can be connected to") {
  Context context;
  RouterSocket socket(context, {});
  REQUIRE(socket.bind("tcp://127.0.0.1:*").ok());
  CHECK(socket.bound_endpoint().starts_with("tcp://127.0.0.1:"));
  CHECK(!endpoint_fault(socket.bound_endpoint()));
  DealerSocket dealer(context, {});
  CHECK(dealer.connect(socket.bound_endpoint()).ok());
}

TEST_CASE("a second frame is kept until it is sent, and let go if it cannot be") {
  Context context;
  SocketOptions narrow;
  narrow.send_frames_max = narrow.receive_frames_max = 2;
  RouterSocket router(context, narrow);
  REQUIRE(router.bind("inproc://keeping").ok());
  DealerSocket dealer(context, narrow);
  REQUIRE(dealer.connect("inproc://keeping").ok());
  REQUIRE(dealer.send("hello") == Sent::kSent);
  const auto hello = router.receive();
  REQUIRE(hello.has_value());
  const auto bytes = std::make_shared<const std::string>(100'000, 'x');
  CHECK(router.send("nobody", "head", *bytes, bytes) == Sent::kUnreachable);
  CHECK(bytes.use_count() == 1);
  int sent = 0;
  while (router.send(hello->peer, std::to_string(sent), *bytes, bytes) == Sent::kSent) ++sent;
  REQUIRE(sent > 0);
  CHECK(bytes.use_count() > 1);
  for (int i = 0; i < sent; ++i) {
    const auto pair = dealer.receive_pair();
    REQUIRE(pair.has_value());
    CHECK(pair->first.bytes == std::to_string(i));
    CHECK(pair->second.bytes == *bytes);
  }
  CHECK(bytes.use_count() == 1);
}

TEST_CASE("who takes one frame gets no message of two") {
  Context context;
  RouterSocket router(context, {});
  REQUIRE(router.bind("inproc://single").ok());
  DealerSocket dealer(context, {});
  REQUIRE(dealer.connect("inproc://single").ok());
  REQUIRE(dealer.send("hello") == Sent::kSent);
  const auto hello = router.receive();
  REQUIRE(hello.has_value());
  const auto bytes = std::make_shared<const std::string>("two");
  REQUIRE(router.send(hello->peer, "one", *bytes, bytes) == Sent::kSent);
  REQUIRE(router.send(hello->peer, "alone") == Sent::kSent);
  const auto frame = dealer.receive();
  REQUIRE(frame.has_value());
  CHECK(frame->bytes == "alone");
}

TEST_CASE("a poller waits for what comes, and says what there is") {
  Pair pair;
  CHECK(pair.wait(20ms) >= 20ms);
  CHECK(!pair.router.has_frames());
  CHECK(!pair.router.has_links());
  REQUIRE(pair.dealer.send("one") == Sent::kSent);
  CHECK(pair.wait(kLong) < kAtOnce);
  CHECK(pair.router.has_frames());
  REQUIRE(pair.router.receive().has_value());
  CHECK(pair.router.has_frames());  // as far as is known
  CHECK(!pair.router.receive().has_value());
  CHECK(!pair.router.has_frames());
  CHECK(pair.wait(20ms) >= 20ms);
}

TEST_CASE("a poller does not wait for what was left, or what a send came upon") {
  Pair pair;
  SECTION("left") {
    REQUIRE(pair.dealer.send("one") == Sent::kSent);
    REQUIRE(pair.dealer.send("two") == Sent::kSent);
    std::this_thread::sleep_for(kArrives);
    CHECK(pair.wait(kLong) < kAtOnce);
    REQUIRE(pair.router.receive().has_value());
    CHECK(pair.wait(kLong) < kAtOnce);
    CHECK(pair.router.receive().has_value());
  }
  SECTION("a send came upon it") {
    CHECK(pair.wait(1ms) >= 1ms);
    REQUIRE(pair.dealer.send("one") == Sent::kSent);
    std::this_thread::sleep_for(kArrives);
    // It takes the news off the descriptor.
    REQUIRE(pair.router.send(pair.hello->peer, "answer") == Sent::kSent);
    CHECK(pair.wait(kLong) < kAtOnce);
    CHECK(pair.router.has_frames());
    CHECK(pair.router.receive().has_value());
  }
  SECTION("and only once") {
    REQUIRE(pair.router.send(pair.hello->peer, "answer") == Sent::kSent);
    CHECK(pair.wait(20ms) >= 20ms);
    CHECK(!pair.router.has_frames());
  }
}

TEST_CASE("a poller sees links that are made and broken") {
  Pair pair;
  CHECK(pair.wait(1ms) >= 1ms);
  std::optional<DealerSocket> other(std::in_place, pair.context, SocketOptions{});
  REQUIRE(other->connect(pair.router.bound_endpoint()).ok());
  const auto next = [&] {
    const auto until = std::chrono::steady_clock::now() + kLong;
    while (!pair.router.has_links() && std::chrono::steady_clock::now() < until) {
      pair.poller.wait(kLong);
      while (pair.router.receive()) {
      }
    }
    return pair.router.take_links();
  };
  CHECK(next() == std::vector{Link::kConnected});
  CHECK(!pair.router.has_links());
  other.reset();
  CHECK(next() == std::vector{Link::kDisconnected});
}

TEST_CASE("a poller is woken, and clears what woke it") {
  WakeUp first;
  WakeUp second;
  Poller poller;
  poller.add(first);
  poller.add(second);
  CHECK(waits_in_vain(poller));
  second.wake();
  second.wake();
  poller.wait(-1ns);
  CHECK(waits_in_vain(poller));
  std::thread other([&] {
    std::this_thread::sleep_for(20ms);
    first.wake();
  });
  poller.wait(-1ns);
  other.join();
  CHECK(waits_in_vain(poller));
}

TEST_CASE("a poller waits until a socket can be sent to") {
  Context context;
  SocketOptions narrow;
  narrow.send_frames_max = narrow.receive_frames_max = 2;
  PushSocket push(context, narrow);
  REQUIRE(push.bind("inproc://narrow").ok());
  Poller poller;
  poller.add_for_sending(push);
  CHECK(waits_in_vain(poller));  // nobody is there
  PullSocket pull(context, narrow);
  REQUIRE(pull.connect("inproc://narrow").ok());
  CHECK(!waits_in_vain(poller));
  while (push.send("x") == Sent::kSent) {
  }
  poller.wait({});  // what came with the connection
  CHECK(waits_in_vain(poller));
  while (pull.receive_from()) {
  }
  CHECK(!waits_in_vain(poller));
  CHECK(push.send("x") == Sent::kSent);
}

TEST_CASE("one context has room for the watched sockets of many addresses") {
  rlimit files{};
  REQUIRE(getrlimit(RLIMIT_NOFILE, &files) == 0);
  files.rlim_cur = files.rlim_max;
  REQUIRE(setrlimit(RLIMIT_NOFILE, &files) == 0);
  Context context;
  std::vector<std::unique_ptr<DealerSocket>> dealers;
  for (int i = 0; i < 400; ++i) {
    dealers.push_back(std::make_unique<DealerSocket>(context, SocketOptions{}));
    REQUIRE(dealers.back()->watch_links().ok());
  }
}

TEST_CASE("who connects and goes without a handshake was no connection") {
  Pair pair;
  const std::string endpoint = pair.router.bound_endpoint();
  const auto port = static_cast<std::uint16_t>(std::stoi(endpoint.substr(endpoint.rfind(':') + 1)));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  const int stranger = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  REQUIRE(connect(stranger, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0);
  close(stranger);
  std::vector<Link> links;
  while (links.empty()) {
    pair.poller.wait(5s);
    links = pair.router.take_links();
  }
  CHECK(links == std::vector<Link>{Link::kNeverMade});
}
