#include "dray/transport/curve.hpp"

#include <fcntl.h>

#include <sys/stat.h>

#include <chrono>
#include <fstream>
#include <thread>

#include "catch2/catch.hpp"
#include "dray/transport/authenticator.hpp"
#include "support/temporary_folder.hpp"

using namespace dray;
using namespace dray::transport;

namespace {

void write(const std::string& path, const std::string& text, mode_t mode = 0600) {
  std::ofstream(path) << text;
  REQUIRE(chmod(path.c_str(), mode) == 0);
}

std::string entry(const std::string& name, const CurveKeys& keys) {
  return "\"" + name + "\" = \"" + keys.public_key + "\"\n";
}

SocketOptions client_of(const CurveKeys& own, const CurveKeys& server) {
  SocketOptions options;
  options.curve_client = CurveClient{own.public_key, own.secret_key, server.public_key};
  return options;
}

SocketOptions server_with(const CurveKeys& own) {
  SocketOptions options;
  options.curve_server = CurveServer{own.secret_key};
  return options;
}

// What the router gets within `wait`.
std::optional<RouterSocket::Received> receive(RouterSocket& router,
                                              std::chrono::milliseconds wait) {
  const auto until = std::chrono::steady_clock::now() + wait;
  while (std::chrono::steady_clock::now() < until) {
    if (auto received = router.receive()) return received;
    Poller poller;
    poller.add(router);
    poller.wait(std::chrono::milliseconds(20));
  }
  return std::nullopt;
}

// Sends as soon as there is a connection; false if there is none in time.
bool send(DealerSocket& dealer, std::chrono::milliseconds wait) {
  const auto until = std::chrono::steady_clock::now() + wait;
  while (std::chrono::steady_clock::now() < until) {
    if (dealer.send("hello") == Sent::kSent) return true;
    std::this_thread::yield();
  }
  return false;
}

constexpr auto kLong = std::chrono::milliseconds(20'000);
constexpr auto kShort = std::chrono::milliseconds(400);

}  // namespace

TEST_CASE("key files are written once, read back, and refused when others may read them") {
  test::TemporaryFolder folder;
  const auto keys = make_curve_keys();
  REQUIRE(is_curve_key(keys.public_key));
  REQUIRE(write_curve_keys(folder / "keys", "orders", keys).ok());
  const std::string secret = folder / "keys/orders.secret";
  struct stat info {};
  REQUIRE(stat(secret.c_str(), &info) == 0);
  CHECK((info.st_mode & 0777) == 0600);
  CHECK(read_curve_secret(secret)->secret_key == keys.secret_key);
  CHECK(*read_curve_public(folder / "keys/orders.public") == keys.public_key);
  CHECK(write_curve_keys(folder / "keys", "orders", make_curve_keys()).error().code ==
        ErrorCode::kConflict);
  CHECK(*read_curve_public(folder / "keys/orders.public") == keys.public_key);
  for (const mode_t mode : {0640U, 0604U, 0620U}) {
    REQUIRE(chmod(secret.c_str(), mode) == 0);
    CHECK(read_curve_secret(secret).error().text().find("chmod 600") != std::string::npos);
  }
}

TEST_CASE("a key file that is wrong says what and where") {
  test::TemporaryFolder folder;
  const auto fault = [&](const std::string& text) {
    write(folder / "k", text);
    const auto read = read_curve_secret(folder / "k");
    REQUIRE(!read.ok());
    return read.error().text();
  };
  const auto one = make_curve_keys();
  const auto two = make_curve_keys();
  CHECK(fault("public = \"x\"").find("'public' is no key") != std::string::npos);
  CHECK(fault("").find("no 'public' key") != std::string::npos);
  CHECK(fault("\n\nthis is no key").find("k:3") != std::string::npos);
  CHECK(fault("public = \"" + one.public_key + "\"\nsecret = \"" + two.secret_key + "\"")
            .find("do not belong together") != std::string::npos);
  CHECK(read_curve_secret(folder / "none").error().text().find("dray keygen") != std::string::npos);
}

TEST_CASE("an allow list that is wrong says what and where") {
  test::TemporaryFolder folder;
  const auto keys = make_curve_keys();
  write(folder / "a", "[worker]\n" + entry("mail 1", keys), 0644);
  CHECK(read_allow_list(folder / "a")->at(keys.public_key).name == "mail 1");
  const auto fault = [&](const std::string& text) {
    write(folder / "a", text);
    const auto read = read_allow_list(folder / "a");
    REQUIRE(!read.ok());
    return read.error().text();
  };
  CHECK(fault("[worker]\na = \"short\"\n").find("a:2") != std::string::npos);
  CHECK(fault("[wroker]\n").find("'wroker' is no role") != std::string::npos);
  CHECK(fault("[worker]\n" + entry("a", keys) + entry("b", keys)).find("already, as 'a'") !=
        std::string::npos);
  CHECK(fault("[worker\n").find("a:1") != std::string::npos);
}

TEST_CASE("only keys that are allowed get in, and their messages carry them") {
  test::TemporaryFolder folder;
  const auto server = make_curve_keys();
  const auto friendly = make_curve_keys();
  const auto stranger = make_curve_keys();
  write(folder / "allow", "[worker]\n" + entry("a", friendly));
  Context context;
  auto authenticator = Authenticator::start(context, folder / "allow", server.public_key, Log());
  REQUIRE(authenticator.ok());
  RouterSocket router(context, server_with(server));
  REQUIRE(router.bind("tcp://127.0.0.1:*").ok());
  const auto endpoint = router.bound_endpoint();
  CHECK(check_strangers_are_refused(endpoint, server.public_key).ok());

  Context other;
  DealerSocket good(other, client_of(friendly, server));
  REQUIRE(good.connect(endpoint).ok());
  REQUIRE(send(good, kLong));
  const auto received = receive(router, kLong);
  REQUIRE(received.has_value());
  CHECK(received->user == friendly.public_key);

  DealerSocket own(other, client_of(server, server));
  REQUIRE(own.connect(endpoint).ok());
  REQUIRE(send(own, kLong));
  CHECK(receive(router, kLong)->user == server.public_key);

  DealerSocket bad(other, client_of(stranger, server));
  DealerSocket plain(other, SocketOptions{});
  DealerSocket deceived(other, client_of(friendly, stranger));  // expects another server
  for (auto* each : {&bad, &plain, &deceived}) {
    REQUIRE(each->connect(endpoint).ok());
    (void)send(*each, kShort);
    CHECK(!receive(router, kShort).has_value());
  }

  // Given and taken back without a restart.
  CHECK(!(*authenticator)->allows(stranger.public_key, Role::kWorker));
  write(folder / "allow", "[worker]\n" + entry("b", stranger) + "# friendly is gone\n");
  CHECK((*authenticator)->allows(stranger.public_key, Role::kWorker));
  CHECK(!(*authenticator)->allows(friendly.public_key, Role::kWorker));
  DealerSocket again(other, client_of(stranger, server));  // `bad` was turned away for good
  REQUIRE(again.connect(endpoint).ok());
  REQUIRE(send(again, kLong));
  CHECK(receive(router, kLong)->user == stranger.public_key);
  // A list that is broken changes nothing.
  write(folder / "allow", "[worker]\nbroken");
  CHECK((*authenticator)->allows(stranger.public_key, Role::kWorker));
  CHECK(!(*authenticator)->allows(friendly.public_key, Role::kWorker));
}

TEST_CASE("an allow list that could not be read is read again when that has changed") {
  test::TemporaryFolder folder;
  const auto server = make_curve_keys();
  const auto first = make_curve_keys();
  const auto second = make_curve_keys();
  const std::string path = folder / "allow";
  const auto list_of = [](const std::string& key) { return "[worker]\none = \"" + key + "\"\n"; };
  std::ofstream(path) << list_of(first.public_key);
  Context context;
  auto authenticator = Authenticator::start(context, path, server.public_key, Log());
  REQUIRE(authenticator.ok());
  CHECK((*authenticator)->allows(first.public_key, Role::kWorker));
  struct stat before {};
  std::string wrong = list_of(second.public_key);
  wrong[0] = '?';
  std::ofstream(path) << wrong;
  REQUIRE(stat(path.c_str(), &before) == 0);
  CHECK((*authenticator)->allows(first.public_key, Role::kWorker));  // the last good one
  // Mended without a trace in size and time of its change.
  std::ofstream(path) << list_of(second.public_key);
  const timespec times[2] = {before.st_atim, before.st_mtim};
  REQUIRE(utimensat(AT_FDCWD, path.c_str(), times, 0) == 0);
  const auto deadline = std::chrono::steady_clock::now() + 20s;
  while ((*authenticator)->allows(first.public_key, Role::kWorker)) {
    REQUIRE(std::chrono::steady_clock::now() < deadline);
    std::this_thread::sleep_for(10ms);
  }
  CHECK((*authenticator)->allows(second.public_key, Role::kWorker));
}

TEST_CASE("without an authenticator nobody gets in, and the self-test knows when somebody does") {
  const auto server = make_curve_keys();
  Context context;
  RouterSocket router(context, server_with(server));
  REQUIRE(router.bind("tcp://127.0.0.1:*").ok());
  Context other;
  DealerSocket dealer(other, client_of(make_curve_keys(), server));
  REQUIRE(dealer.connect(router.bound_endpoint()).ok());
  (void)send(dealer, kShort);
  CHECK(!receive(router, kShort).has_value());

  // A server that asks nobody for leave.
  RouterSocket open(context, SocketOptions{});
  REQUIRE(open.bind("tcp://127.0.0.1:*").ok());
  CHECK(check_strangers_are_refused("tcp://127.0.0.1:1", server.public_key).error().code ==
        ErrorCode::kTimeout);
}

TEST_CASE("CURVE, and only CURVE, lets an endpoint leave this machine") {
  CHECK(endpoint_fault("tcp://0.0.0.0:7000")->find("dray keygen") != std::string::npos);
  CHECK(!endpoint_fault("tcp://0.0.0.0:7000", true));
  CHECK(endpoint_fault("http://0.0.0.0:7000", true));
  const auto server = make_curve_keys();
  Context context;
  RouterSocket plain(context, SocketOptions{});
  CHECK(plain.bind("tcp://0.0.0.0:*").error().code == ErrorCode::kInvalid);
  RouterSocket secured(context, server_with(server));
  CHECK(secured.bind("tcp://0.0.0.0:*").ok());
}
