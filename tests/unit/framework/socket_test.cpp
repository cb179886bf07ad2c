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
