// Spool and workers with CURVE keys.
#include <fstream>

#include "dray/balancing/protocol.hpp"
#include "dray/transport/authenticator.hpp"
#include "support/ping.hpp"

using namespace dray;
using namespace dray::test;

namespace {

struct Parties {
  TemporaryFolder folder;
  transport::CurveKeys spool = transport::make_curve_keys();
  transport::CurveKeys one = transport::make_curve_keys();
  transport::CurveKeys two = transport::make_curve_keys();

  void allow(const std::vector<transport::CurveKeys>& keys) {
    std::string text = "[worker]\n";
    for (std::size_t i = 0; i < keys.size(); ++i) {
      text += "w" + std::to_string(i) + " = \"" + keys[i].public_key + "\"\n";
    }
    // As a file should be replaced: whole.
    std::ofstream(folder / "allow.new") << text;
    std::filesystem::rename(folder / "allow.new", folder / "allow");
  }
  SpoolerOptions options(const std::string& bind = "tcp://0.0.0.0:*") {
    auto options = options_in(folder);
    options.bind = bind;
    options.keys = SpoolerKeys{spool.public_key, spool.secret_key, folder / "allow"};
    return options;
  }
  // On this machine, wherever it is bound.
  static std::string endpoint_of(Spooler& spooler) {
    const auto endpoint = spooler.status()->endpoint;
    return "tcp://127.0.0.1" + endpoint.substr(endpoint.rfind(':'));
  }
  WorkerSettings settings(const transport::CurveKeys& own, const std::string& endpoint) const {
    WorkerSettings settings;
    settings.keys =
        WorkerSettings::Keys{own.public_key, own.secret_key, {{endpoint, spool.public_key}}};
    return settings;
  }
};

}  // namespace

TEST_CASE("a spool beyond this machine serves the keys that it allows, and no others") {
  Parties all;
  auto plain = all.options();
  plain.keys.reset();
  CHECK(Spooler::open(plain).error().code == ErrorCode::kInvalid);
  auto missing = all.options();
  CHECK(Spooler::open(missing).error().code == ErrorCode::kNotFound);  // no allow list

  all.allow({all.one});
  auto spooler = open_spooler(all.options());
  const auto endpoint = Parties::endpoint_of(*spooler);
  Seen good, bad, unprotected;
  auto stranger = start_worker("email", endpoint, bad, all.settings(all.two, endpoint));
  auto naked = start_worker("email", endpoint, unprotected);
  auto worker = start_worker("email", endpoint, good, all.settings(all.one, endpoint));
  for (std::uint64_t i = 0; i < 100; ++i) REQUIRE(spooler->publish("ping", Ping{i, ""}).ok());
  wait_for(*spooler, "email", settled);
  CHECK(good.count() == 100);
  CHECK(bad.count() == 0);
  CHECK(unprotected.count() == 0);
  CHECK(spooler->status()->workers.size() == 1);
}

TEST_CASE("a key that is given works without a restart; one that is taken back is out at once") {
  Parties all;
  all.allow({all.one});
  auto options = all.options();
  options.lease = std::chrono::seconds(30);  // not that
  auto spooler = open_spooler(options);
  const auto endpoint = Parties::endpoint_of(*spooler);
  Seen first, second;
  auto one = start_worker("email", endpoint, first, all.settings(all.one, endpoint));
  auto two = start_worker("email", endpoint, second, all.settings(all.two, endpoint));
  REQUIRE(spooler->publish("ping", Ping{1, ""}).ok());
  wait_for(*spooler, "email", settled);
  CHECK(first.count() == 1);
  const auto first_session = spooler->status()->workers.front().session;
  all.allow({all.two});
  // The session of the first ends, and the second comes.
  wait_for(*spooler, "email", [&](auto&) {
    const auto workers = spooler->status()->workers;
    return workers.size() == 1 && workers.front().session != first_session;
  });
  for (std::uint64_t i = 2; i < 52; ++i) REQUIRE(spooler->publish("ping", Ping{i, ""}).ok());
  wait_for(*spooler, "email", settled);
  CHECK(first.count() == 1);
  CHECK(second.count() == 50);
}

TEST_CASE("no key speaks for another's session") {
  Parties all;
  all.allow({all.one, all.two});
  auto spooler = open_spooler(all.options("tcp://127.0.0.1:*"));
  const auto endpoint = Parties::endpoint_of(*spooler);
  Seen seen;
  auto worker = start_worker("email", endpoint, seen, all.settings(all.one, endpoint));
  wait_for(*spooler, "email", [](auto& s) { return s.workers == 1; });
  const auto session = Uuid::from_text(spooler->status()->workers.front().session);
  REQUIRE(session.has_value());

  transport::Context context;
  transport::SocketOptions options;
  options.curve_client = {all.two.public_key, all.two.secret_key, all.spool.public_key};
  transport::DealerSocket thief(context, options);
  REQUIRE(thief.connect(endpoint).ok());
  balancing::Hello hello;
  hello.session = *session;
  hello.group = "email";
  const auto deadline = std::chrono::steady_clock::now() + 20s;
  while (thief.send(balancing::encode(hello)) != transport::Sent::kSent) {
    REQUIRE(std::chrono::steady_clock::now() < deadline);
    std::this_thread::yield();
  }
  std::optional<transport::Frame> answer;
  while (!(answer = thief.receive())) {
    REQUIRE(std::chrono::steady_clock::now() < deadline);
    std::this_thread::yield();
  }
  const auto frame = balancing::decode_frame(answer->bytes);
  REQUIRE(frame.ok());
  const auto* refused = std::get_if<balancing::Refused>(&*frame);
  REQUIRE(refused != nullptr);
  CHECK(refused->code == "not-allowed");
  REQUIRE(spooler->publish("ping", Ping{1, ""}).ok());
  wait_for(*spooler, "email", settled);
  CHECK(seen.count() == 1);
}

TEST_CASE("a worker that is started with its keys before the spool has them comes in later") {
  Parties all;
  all.allow({all.one});
  auto options = all.options("tcp://127.0.0.1:*");
  options.keys.reset();
  auto spooler = open_spooler(options);
  const auto endpoint = Parties::endpoint_of(*spooler);
  Seen seen;
  auto worker = start_worker("email", endpoint, seen, all.settings(all.one, endpoint));
  REQUIRE(spooler->publish("ping", Ping{1, ""}).ok());
  const auto until = std::chrono::steady_clock::now() + 300ms;
  while (std::chrono::steady_clock::now() < until) CHECK(spooler->status()->workers.empty());
  spooler.reset();
  options = all.options(endpoint);
  spooler = open_spooler(options);
  wait_for(*spooler, "email", settled);
  CHECK(seen.count() == 1);
}

TEST_CASE("keys that are none are refused, and an IPv6 address can be served") {
  Parties all;
  all.allow({});
  auto options = all.options();
  options.keys->secret_key = "short";
  CHECK(Spooler::open(options).error().code == ErrorCode::kInvalid);
  auto six = all.options("tcp://[::1]:*");
  const auto opened = Spooler::open(six);
  if (!opened.ok()) WARN("no IPv6 here: " << opened.error().text());
  if (opened.ok()) CHECK((*opened)->status()->endpoint.starts_with("tcp://[::1]:"));
}
