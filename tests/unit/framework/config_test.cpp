#include "dray/config/config.hpp"

#include <fstream>

#include "dray/text.hpp"
#include "dray/transport/curve.hpp"
#include "support/temporary_folder.hpp"

using namespace dray;
using namespace std::chrono_literals;

namespace {

const char* const kGood = R"(
[spool.orders]
directory = "${DRAY_TEST_UNSET:-./var}/orders"
bind = "ipc://./var/s"
max_size = "2GiB"
held_max = 5000
dedup = { age = "2h", count = 7 }
retain = { age = "7d", max_size = "1GiB", topics = ["audit"] }
  [spool.orders.group.email]
  topics = ["order.placed"]
[app.order]
plugin = "order"
source = "front"
publish = "orders"
settings = { listen = "127.0.0.1:1", deep = 3, on = true }
[app.email]
plugin = "email"
handler = "send"
consume = { group = "email", from = ["orders"] }
threads = 4
timeout = "1.5s"
retry = { max_attempts = 3, initial = "10ms", max = "1m", jitter = 0 }
)";

std::string faults_of(std::string text, const std::string& from, const std::string& to) {
  const auto at = text.find(from);
  REQUIRE(at != std::string::npos);
  text.replace(at, from.size(), to);
  std::string all;
  for (const auto& fault : config::parse_config(text, "shop.toml").faults)
    all += fault.text() + "\n";
  return all;
}

}  // namespace

TEST_CASE("a good config is read whole") {
  const auto loaded = config::parse_config(kGood, "shop.toml");
  for (const auto& fault : loaded.faults) UNSCOPED_INFO(fault.text());
  REQUIRE(loaded.faults.empty());
  CHECK(loaded.config.spools.at("orders").directory == "./var/orders");
  const auto& orders = loaded.config.spools.at("orders");
  CHECK(orders.max_size == 2ULL << 30);
  CHECK(orders.held_max == 5000);
  CHECK(orders.dedup_age == std::chrono::hours(2));
  CHECK(orders.dedup_count == 7);
  CHECK(orders.retain_age == std::chrono::hours(7 * 24));
  CHECK(orders.retain_size == 1ULL << 30);
  CHECK(orders.retain_topics == std::vector<std::string>{"audit"});
  const auto* email = loaded.config.find_app("email");
  REQUIRE(email != nullptr);
  CHECK(email->consume->endpoints == std::vector<std::string>{"ipc://./var/s"});
  CHECK(email->policy.timeout == 1500ms);
  CHECK(email->policy.retry_max == 1min);
  CHECK(loaded.config.find_app("order")->settings.integer("deep", 0) == 3);
}

TEST_CASE("faults say file, line, column and what to do") {
  CHECK(faults_of(kGood, "publish =", "publsh =") ==
        "shop.toml:2:1: no app publishes to spool 'orders'; give one of them publish = \"orders\"\n"
        "shop.toml:14:1: unknown key 'publsh' in app.order; did you mean 'publish'?\n");
  CHECK(faults_of(kGood, "timeout", "lease")
            .find("unknown key 'lease' in app.email; it belongs in [spool.NAME]") !=
        std::string::npos);
  CHECK(faults_of(kGood, "\"1.5s\"", "30") ==
        "shop.toml:21:11: 'timeout' has no unit; write it like \"30s\"\n");
  CHECK(faults_of(kGood, "\"2GiB\"", "\"2 potatoes\"").find("unknown unit ' potatoes'") !=
        std::string::npos);
  CHECK(faults_of(kGood, "from = [\"orders\"]", "from = [\"order\"]")
            .find("did you mean 'orders'?") != std::string::npos);
  CHECK(faults_of(kGood, "ipc://./var/s", "tcp://0.0.0.0:5555").find("leaves this machine") !=
        std::string::npos);
  CHECK(faults_of(kGood, "${DRAY_TEST_UNSET:-./var}", "${DRAY_TEST_UNSET}")
            .find("environment variable DRAY_TEST_UNSET is not set") != std::string::npos);
  CHECK(faults_of(kGood, "[app.order]", "[app.order").find("shop.toml:11:") == 0);
  CHECK(faults_of(kGood, "group = \"email\"", "group = \"mail\"").find("has no group 'mail'") !=
        std::string::npos);
}

TEST_CASE("a name may stand for what is consumed from, but nothing binds to one") {
  const std::string from = "from = [\"tcp://orders.internal:7000\", \"orders\"]";
  std::string text = kGood;
  const auto at = text.find("from = [\"orders\"]");
  REQUIRE(at != std::string::npos);
  text.replace(at, 17, from);
  const auto loaded = config::parse_config(text, "shop.toml");
  CHECK(loaded.faults.empty());
  CHECK(loaded.config.find_app("email")->consume->endpoints.front() ==
        "tcp://orders.internal:7000");
  CHECK(
      faults_of(kGood, "ipc://./var/s", "tcp://orders.internal:7000").find("leaves this machine") !=
      std::string::npos);
  CHECK(faults_of(kGood, "from = [\"orders\"]", "from = [\"tcp://orders.internal\"]")
            .find("tcp://host:5555") != std::string::npos);
}

TEST_CASE("no more room is made ready than a spool may use") {
  const std::string line = "max_size = \"2GiB\"";
  std::string text = kGood;
  text.replace(text.find(line), line.size(), line + "\npreallocate = \"256MiB\"");
  const auto loaded = config::parse_config(text, "shop.toml");
  CHECK(loaded.faults.empty());
  CHECK(loaded.config.spools.at("orders").preallocate == 256ULL << 20);
  CHECK(faults_of(text, "\"256MiB\"", "\"3GiB\"").find("'preallocate' is more than 'max_size'") !=
        std::string::npos);
}

TEST_CASE("keys open a spool to other machines") {
  test::TemporaryFolder folder;
  for (const char* name : {"orders", "mail"}) {
    REQUIRE(transport::write_curve_keys(folder.path(), name, transport::make_curve_keys()).ok());
  }
  const auto orders_key = *transport::read_curve_public(folder / "orders.public");
  const auto mail_key = *transport::read_curve_public(folder / "mail.public");
  std::ofstream(folder / "allow.toml") << "[worker]\nmail = \"" << mail_key << "\"\n";
  const auto parse = [&](const std::string& text) {
    return config::parse_config(text, folder / "shop.toml");
  };
  const std::string spool = R"(
[spool.orders]
directory = "o"
bind = "tcp://0.0.0.0:7000"
keys = { secret = "orders.secret", allow = "allow.toml" }
  [spool.orders.group.email]
  topics = ["t"]
[app.order]
plugin = "p"
source = "s"
publish = "orders"
)";
  const std::string remote = R"(
[app.email]
plugin = "p"
handler = "h"
consume = { group = "email", from = ["tcp://orders.internal:7000"] }
keys = { secret = "mail.secret", server = "orders.public" }
)";
  const std::string local = R"(
[app.view]
plugin = "p"
handler = "h"
consume = { group = "email", from = ["orders"] }
)";
  const auto loaded = parse(spool + remote + local);
  for (const auto& fault : loaded.faults) UNSCOPED_INFO(fault.text());
  REQUIRE(loaded.faults.empty());
  CHECK(loaded.config.spools.at("orders").keys->public_key == orders_key);
  CHECK(loaded.config.spools.at("orders").keys->allow_file == folder / "allow.toml");
  const auto& email = *loaded.config.find_app("email");
  CHECK(email.keys->public_key == mail_key);
  CHECK(email.keys->servers.at("tcp://orders.internal:7000") == orders_key);
  const auto& view = *loaded.config.find_app("view");  // beside the spool: its keys
  CHECK(view.consume->endpoints.front() == "tcp://127.0.0.1:7000");
  CHECK(view.keys->public_key == orders_key);
  CHECK(view.keys->servers.at("tcp://127.0.0.1:7000") == orders_key);

  const auto fault = [&](const std::string& from, const std::string& to) {
    std::string text = spool + remote;
    text.replace(text.find(from), from.size(), to);
    std::string all;
    for (const auto& each : parse(text).faults) all += each.text() + "\n";
    return all;
  };
  CHECK(fault("\"orders.secret\"", "\"none.secret\"").find("dray keygen") != std::string::npos);
  CHECK(fault("allow = \"allow.toml\"", "allow = \"none\"").find("shop.toml:5:") !=
        std::string::npos);
  CHECK(fault("secret = \"mail.secret\", ", "").find("needs 'secret'") != std::string::npos);
  CHECK(fault(", server = \"orders.public\"", "").find("needs 'server'") != std::string::npos);
  CHECK(fault("server = \"orders.public\"", "server = { \"tcp://x:1\" = \"orders.public\" }")
            .find("no endpoint that this app takes from") != std::string::npos);
  CHECK(fault("keys = { secret = \"orders.secret\", allow = \"allow.toml\" }", "")
            .find("needs CURVE keys") != std::string::npos);

  // Who only publishes reads its keys too.
  const std::string till = R"(
[app.till]
plugin = "p"
source = "s"
publish_to = "orders"
keys = { secret = "mail.secret", server = "orders.public" }
)";
  const auto publishes = parse(spool + till);
  for (const auto& each : publishes.faults) UNSCOPED_INFO(each.text());
  REQUIRE(publishes.faults.empty());
  CHECK(publishes.config.find_app("till")->keys->public_key == mail_key);
  CHECK(publishes.config.find_app("till")->keys->servers.at("tcp://127.0.0.1:7000") == orders_key);
  std::string wrong = spool + till + "threads = 4\n";
  wrong.replace(wrong.find("mail.secret"), 11, "none.secret");
  std::string said;
  for (const auto& each : parse(wrong).faults) said += each.text() + "\n";
  CHECK(said.find("dray keygen") != std::string::npos);
  CHECK(said.find("app.till has no handler, so 'threads' does nothing") != std::string::npos);
}

TEST_CASE("all faults are found in one pass") {
  const auto loaded = config::parse_config(
      "[spool.a]\nbind = 3\n[app.x]\nthreads = 0\nbad = 1\n[app.y]\nplugin = \"p\"\n", "f");
  CHECK(loaded.faults.size() >= 6);
}

TEST_CASE("durations and sizes need units and know their limits") {
  CHECK(*parse_duration("250ms") == 250ms);
  CHECK(*parse_duration("7d") == 168h);
  for (const auto* bad : {"", "30", "-1s", "1y", "1e99d", "s", "nan s"}) {
    INFO(bad);
    CHECK(!parse_duration(bad).ok());
  }
  CHECK(*parse_size("64KiB") == 65536);
  CHECK(!parse_size("64").ok());
  CHECK(duration_text(90s) == "90s");
  CHECK(duration_text(1500ms) == "1.5s");
}

TEST_CASE("a group's limits are read, and wrong ones named") {
  const auto with = [](const std::string& line) {
    std::string text = kGood;
    const std::string topics = "  topics = [\"order.placed\"]\n";
    text.replace(text.find(topics), topics.size(), topics + line + "\n");
    return config::parse_config(text, "t.toml");
  };
  const auto good = with("ordered = false\nconcurrency = 4\nrate = \"90/m\"\nburst = 7");
  REQUIRE(good.faults.empty());
  const auto& group = good.config.spools.at("orders").groups.front();
  CHECK_FALSE(group.ordered);
  CHECK(group.concurrency == 4);
  CHECK(group.rate_per_second == Approx(1.5));
  CHECK(group.burst == 7);
  CHECK(with("rate = \"1000/s\"").config.spools.at("orders").groups.front().burst == 100);
  for (const auto* wrong : {"rate = 5", "rate = \"5\"", "rate = \"0/s\"", "rate = \"5/day\"",
                            "rate = \"x/s\"", "concurrency = 0", "burst = 3", "ordered = 1"}) {
    INFO(wrong);
    CHECK(with(wrong).faults.size() == 1);
  }
}
