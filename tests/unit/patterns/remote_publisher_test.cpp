// RemotePublisher over real sockets, to a spooler that stops and comes back.
#include "dray/remote_publisher.hpp"

#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <catch2/catch.hpp>
#include <filesystem>
#include <fstream>
#include <future>
#include <thread>

#include "dray/spooler.hpp"
#include "dray/transport/curve.hpp"
#include "support/ping.hpp"
#include "support/temporary_folder.hpp"

using namespace dray;
using namespace std::chrono_literals;
using test::Ping;

namespace {

// Of these tests: a spooler, and publishers of it.
struct Remote {
  Remote() { start(); }
  void start(std::uint64_t max_size = 64U << 20) {
    SpoolerOptions options;
    options.directory = folder / "spool";
    options.bind = endpoint();
    options.max_size = max_size;
    options.lease = 1s;
    options.groups = {{"g", {"t"}}};
    options.keys = keys;
    auto opened = Spooler::open(options);
    REQUIRE(opened.ok());
    spooler = std::move(*opened);
  }
  std::string endpoint() const { return "ipc://" + (folder / "s"); }
  std::unique_ptr<RemotePublisher> connect(RemotePublisherSettings settings = {}) {
    settings.endpoint = endpoint();
    auto remote = RemotePublisher::connect(settings);
    REQUIRE(remote.ok());
    return std::move(*remote);
  }
  std::uint64_t accepted() { return spooler->status()->groups.at(0).accepted; }

  test::TemporaryFolder folder;
  std::optional<SpoolerKeys> keys;
  std::unique_ptr<Spooler> spooler;
};

}  // namespace

TEST_CASE("a remote publish has the spool's own receipt, and its errors") {
  Remote world;
  auto remote = world.connect();
  const auto receipt = remote->publish("t", Ping{1, "x"});
  REQUIRE(receipt.ok());
  CHECK(receipt->sequence > 0);
  CHECK(receipt->durability == Durability::kDisk);
  CHECK(!receipt->id.is_nil());
  CHECK(remote->publish("t", Ping{1, "x"}, {.durability = Durability::kOs})->durability ==
        Durability::kOs);
  CHECK(remote->publish("nobody", Ping{1, "x"}).error().code == ErrorCode::kUnroutable);
  CHECK(remote->publish("no topic", Ping{1, "x"}).error().code == ErrorCode::kInvalid);
  const auto first = remote->publish("t", Ping{7, "x"}, {.dedup = "mine"});
  const auto again = remote->publish("t", Ping{7, "x"}, {.dedup = "mine"});
  REQUIRE(again.ok());
  CHECK(again->duplicate);
  CHECK(again->sequence == first->sequence);
  CHECK(remote->publish("t", Ping{8, "x"}, {.dedup = "mine"}).error().code == ErrorCode::kConflict);
  CHECK(world.accepted() == 3);
  CHECK(remote->stop(5s));
  CHECK(remote->publish("t", Ping{1, "x"}).error().code == ErrorCode::kClosed);
}

TEST_CASE("messages published through restarts of the spool are accepted once each, in order") {
  constexpr std::uint64_t kMessages = 20'000;
  Remote world;
  auto remote = world.connect({.timeout = 60s});
  std::atomic<std::uint64_t> good{0};
  std::atomic<std::uint64_t> bad{0};
  std::atomic<bool> ascending{true};
  Sequence last = 0;  // callbacks run on one thread
  std::thread publisher([&] {
    for (std::uint64_t i = 0; i < kMessages; ++i) {
      remote->publish_async("t", Ping{i, "x"}, {}, [&](const Result<Receipt>& receipt) {
        if (!receipt.ok()) {
          ++bad;
          return;
        }
        ascending = ascending && receipt->sequence > last;
        last = receipt->sequence;
        ++good;
      });
      if (i % 1'000 == 999) std::this_thread::sleep_for(20ms);
    }
  });
  for (int i = 0; i < 3; ++i) {
    std::this_thread::sleep_for(100ms);
    world.spooler->stop();
    world.spooler.reset();
    std::this_thread::sleep_for(50ms);
    world.start();
  }
  publisher.join();
  CHECK(remote->stop(60s));
  CHECK(good == kMessages);
  CHECK(bad == 0);
  CHECK(ascending);
  CHECK(world.accepted() == kMessages);
}

TEST_CASE("a remote publisher can wait for ever") {
  Remote world;
  world.spooler->stop();
  world.spooler.reset();
  auto remote = world.connect({.timeout = Milliseconds::max()});
  std::promise<bool> accepted;
  remote->publish_async("t", Ping{1, "x"}, {},
                        [&](const Result<Receipt>& receipt) { accepted.set_value(receipt.ok()); });
  auto answer = accepted.get_future();
  CHECK(answer.wait_for(300ms) == std::future_status::timeout);
  world.start();
  CHECK(answer.get());
  CHECK(remote->stop(Milliseconds::max()));
}

TEST_CASE("while the spool is away messages wait, are bounded, and time out unsent") {
  Remote world;
  world.spooler.reset();
  auto remote = world.connect({.timeout = 300ms, .pending_max = 2});
  std::promise<Result<Receipt>> first;
  remote->publish_async("t", Ping{1, "x"}, {},
                        [&](Result<Receipt> receipt) { first.set_value(std::move(receipt)); });
  remote->publish_async("t", Ping{2, "x"}, {}, {});
  CHECK(remote->publish("t", Ping{3, "x"}).error().code == ErrorCode::kFull);
  CHECK(first.get_future().get().error().code == ErrorCode::kTimeout);
  CHECK(!remote->connected());
  world.start();
  CHECK(remote->publish("t", Ping{4, "x"}, {}).ok());
  CHECK(world.accepted() == 1);
}

TEST_CASE("with CURVE only keys of the role may publish, and one that is taken back is out") {
  const auto own = transport::make_curve_keys();
  const auto mine = transport::make_curve_keys();
  test::TemporaryFolder lists;
  const auto allow = [&](const std::string& text) {
    std::ofstream(lists / "new") << text;
    std::filesystem::rename(lists / "new", lists / "allowed.toml");
  };
  allow("[worker]\nme = \"" + mine.public_key + "\"\n");
  Remote world;
  world.spooler.reset();
  world.keys = SpoolerKeys{own.public_key, own.secret_key, lists / "allowed.toml"};
  world.start();
  RemotePublisherSettings settings{.timeout = 1s};
  settings.keys = {mine.public_key, mine.secret_key, own.public_key};
  auto remote = world.connect(settings);
  CHECK(remote->publish("t", Ping{1, "x"}).error().code == ErrorCode::kTimeout);  // only a worker
  allow("[publisher]\nme = \"" + mine.public_key + "\"\n");
  bool in = false;
  for (int i = 0; i < 10 && !in; ++i) in = remote->publish("t", Ping{2, "x"}).ok();
  CHECK(in);
  allow("[worker]\nme = \"" + mine.public_key + "\"\n");
  bool out = false;
  for (int i = 0; i < 20 && !out; ++i) {
    std::this_thread::sleep_for(100ms);
    out = !remote->publish("t", Ping{3, "x"}).ok();
  }
  CHECK(out);
}

TEST_CASE("with CURVE a remote publisher comes back after something else had answered its port") {
  const auto own = transport::make_curve_keys();
  const auto mine = transport::make_curve_keys();
  test::TemporaryFolder lists;
  std::ofstream(lists / "allowed.toml") << "[publisher]\nme = \"" + mine.public_key + "\"\n";
  // A web server where the spool should be: it answers in its own words, and hangs up.
  const int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof(address);
  auto* generic = reinterpret_cast<sockaddr*>(&address);
  const int yes = 1;
  REQUIRE(setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes)) == 0);
  REQUIRE(bind(listener, generic, size) == 0);
  REQUIRE(listen(listener, 8) == 0);
  REQUIRE(getsockname(listener, generic, &size) == 0);
  RemotePublisherSettings settings{.timeout = 30s};
  settings.endpoint = "tcp://127.0.0.1:" + std::to_string(ntohs(address.sin_port));
  settings.keys = {mine.public_key, mine.secret_key, own.public_key};
  auto remote = RemotePublisher::connect(settings);
  REQUIRE(remote.ok());
  const int answered = accept(listener, nullptr, nullptr);
  REQUIRE(answered >= 0);
  const std::string_view refusal = "HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n";
  REQUIRE(write(answered, refusal.data(), refusal.size()) == static_cast<ssize_t>(refusal.size()));
  // Until it hangs up itself: then it has read the words.
  std::array<char, 512> words{};
  while (read(answered, words.data(), words.size()) > 0) {
  }
  close(answered);
  close(listener);
  test::TemporaryFolder folder;
  SpoolerOptions options;
  options.directory = folder / "spool";
  options.bind = settings.endpoint;
  options.groups = {{"g", {"t"}}};
  options.keys = SpoolerKeys{own.public_key, own.secret_key, lists / "allowed.toml"};
  const auto spooler = Spooler::open(options);
  REQUIRE(spooler.ok());
  CHECK((*remote)->publish("t", Ping{1, "x"}).ok());
}

TEST_CASE("a remote publisher that cannot be is said at once") {
  CHECK(RemotePublisher::connect({.endpoint = "tcp://192.0.2.1:7000"}).error().code ==
        ErrorCode::kInvalid);
  CHECK(!RemotePublisher::connect({.endpoint = "nonsense"}).ok());
  RemotePublisherSettings settings{.endpoint = "ipc:///tmp/x"};
  settings.keys = {"a", "b", "c"};
  CHECK(!RemotePublisher::connect(settings).ok());
}
