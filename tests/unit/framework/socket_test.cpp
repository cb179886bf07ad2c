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
