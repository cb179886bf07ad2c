#include "dray/transport/resolver.hpp"

#include <algorithm>
#include <catch2/catch.hpp>

using namespace dray;
using namespace dray::transport;

TEST_CASE("an endpoint's name is what has to be resolved, addresses have none") {
  CHECK(endpoint_name("tcp://orders.internal:7000") == "orders.internal");
  CHECK(endpoint_name("tcp://localhost:7000") == "localhost");
  CHECK(!endpoint_name("tcp://127.0.0.1:7000"));
  CHECK(!endpoint_name("tcp://[::1]:7000"));
  CHECK(!endpoint_name("ipc://orders.internal:7000"));
  CHECK(!endpoint_name("tcp://orders.internal"));
}

TEST_CASE("what cannot be connected to is said without resolving anything") {
  CHECK(!connect_fault("tcp://orders.internal:7000"));
  CHECK(!connect_fault("tcp://127.0.0.1:7000"));
  CHECK(!connect_fault("ipc://x"));
  for (const auto* bad : {"tcp://orders.internal", "tcp://orders.internal:", "tcp://:7000",
                          "tcp://a:0", "tcp://a:70000", "tcp://a:7x", "http://a:1", "tcp://a:*"}) {
    INFO(bad);
    CHECK(connect_fault(bad));
  }
  CHECK(connect_fault("tcp://10.1.2.3:7000")->find("leaves this machine") != std::string::npos);
}

TEST_CASE("a name resolves to endpoints with addresses, an address to itself") {
  const auto local = resolve_endpoint("tcp://localhost:7000");
  REQUIRE(local.ok());
  CHECK(std::find(local->begin(), local->end(), "tcp://127.0.0.1:7000") != local->end());
  CHECK(std::is_sorted(local->begin(), local->end()));
  CHECK(*resolve_endpoint("tcp://127.0.0.1:1") == std::vector<std::string>{"tcp://127.0.0.1:1"});
  CHECK(*resolve_endpoint("ipc://x") == std::vector<std::string>{"ipc://x"});
  const auto none = resolve_endpoint("tcp://no-such-host.invalid:7000");
  REQUIRE(!none.ok());
  CHECK(none.error().code == ErrorCode::kNotFound);
  CHECK(none.error().text().find("no-such-host.invalid") != std::string::npos);
}
