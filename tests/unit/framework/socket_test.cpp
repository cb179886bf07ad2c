#include "dray/transport/socket.hpp"

#include <catch2/catch.hpp>

using namespace dray;
using namespace dray::transport;

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

TEST_CASE("a long body is taken if it is sent, and stays whole with who could not send it") {
  Context context;
  SocketOptions narrow;
  narrow.send_frames_max = narrow.receive_frames_max = 1;
  RouterSocket router(context, narrow);
  REQUIRE(router.bind("inproc://taking").ok());
  DealerSocket dealer(context, narrow);
  REQUIRE(dealer.connect("inproc://taking").ok());
  REQUIRE(dealer.send("hello") == Sent::kSent);
  const auto hello = router.receive();
  REQUIRE(hello.has_value());
  std::string nobody(100'000, 'n');
  CHECK(router.send_taking("nobody", nobody) == Sent::kUnreachable);
  CHECK(nobody == std::string(100'000, 'n'));
  int sent = 0;
  for (;; ++sent) {
    std::string body(100'000, static_cast<char>('a' + sent));
    const auto how = router.send_taking(hello->peer, body);
    if (how == Sent::kSent) continue;
    CHECK(how == Sent::kFull);
    CHECK(body == std::string(100'000, static_cast<char>('a' + sent)));
    break;
  }
  REQUIRE(sent > 0);
  for (int i = 0; i < sent; ++i) {
    const auto frame = dealer.receive();
    REQUIRE(frame.has_value());
    CHECK(frame->bytes == std::string(100'000, static_cast<char>('a' + i)));
  }
}
