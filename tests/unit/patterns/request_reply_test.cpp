#include "dray/request_reply.hpp"

#include <atomic>
#include <catch2/catch.hpp>
#include <condition_variable>
#include <filesystem>
#include <fstream>
#include <mutex>
#include <set>
#include <thread>

#include "dray/call_frames.hpp"
#include "dray/transport/curve.hpp"
#include "dray/transport/socket.hpp"
#include "support/temporary_folder.hpp"

using namespace dray;
using namespace std::chrono_literals;

namespace {

struct Figure {
  std::int64_t value = 0;
  DRAY_FIELDS(value)
};
using FigureClient = Client<Figure, Figure>;
using FigureService = Service<Figure, Figure>;

Result<Figure> twice(const Figure& in) {
  return Figure{in.value * 2};
}

// A gate that functions wait at.
class Gate {
 public:
  void open() {
    const std::lock_guard lock(mutex_);
    open_ = true;
    changed_.notify_all();
  }
  void wait() {
    std::unique_lock lock(mutex_);
    ++waiting_;
    changed_.notify_all();
    changed_.wait(lock, [&] { return open_; });
  }
  void until_somebody_waits(int count = 1) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return waiting_ >= count; });
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool open_ = false;
  int waiting_ = 0;
};

}  // namespace

TEST_CASE(
    "request/reply: a service that dies ends its calls at once, those that may go elsewhere") {
  test::TemporaryFolder folder;
  const std::string a = "ipc://" + (folder / "a");
  const std::string b = "ipc://" + (folder / "b");
  Gate gate;
  // Dies in the middle of a call: a raw socket that takes the request and closes.
  transport::Context context;
  auto dying = std::make_unique<transport::RouterSocket>(context, transport::SocketOptions{});
  REQUIRE(dying->bind(a).ok());
  FigureClient client(std::vector<std::string>{a, b});
  std::promise<Result<Figure>> first;
  std::promise<Result<Figure>> second;
  const auto begun = std::chrono::steady_clock::now();
  client.call_async({1}, 60s, [&](Result<Figure> n) { first.set_value(std::move(n)); });
  client.call_async({2}, CallOptions(60s, true),
                    [&](Result<Figure> n) { second.set_value(std::move(n)); });
  for (int taken = 0; taken < 2;) {
    if (dying->receive()) ++taken;
  }
  dying.reset();
  const auto lost = first.get_future().get();
  REQUIRE(!lost.ok());
  CHECK(lost.error().code == ErrorCode::kUnknown);
  const FigureService other(b, twice);
  CHECK(second.get_future().get()->value == 4);
  CHECK(std::chrono::steady_clock::now() - begun < 30s);
  CHECK(client.counters().lost == 1);
  CHECK(client.counters().repeated == 1);
  CHECK(client.call({5}, 5s)->value == 10);
}

TEST_CASE("request/reply: calls go to the service with the fewest open ones") {
  test::TemporaryFolder folder;
  const std::vector<std::string> endpoints{"ipc://" + (folder / "a"), "ipc://" + (folder / "b")};
  Gate gate;
  std::atomic<int> slow_calls{0};
  std::atomic<int> fast_calls{0};
  const FigureService slow(endpoints[0], [&](const Figure& in) -> Result<Figure> {
    ++slow_calls;
    if (in.value == -1) gate.wait();
    return in;
  });
  const FigureService fast(endpoints[1], [&](const Figure& in) -> Result<Figure> {
    ++fast_calls;
    return in;
  });
  FigureClient client(endpoints);
  while (client.counters().peers < 2) (void)client.call({0}, 10s);
  const int before = slow_calls + fast_calls;
  std::atomic<int> answered{0};
  client.call_async({-1}, 60s, [&](const Result<Figure>&) { ++answered; });
  client.call_async({-1}, 60s, [&](const Result<Figure>&) { ++answered; });
  gate.until_somebody_waits();
  while (answered < 1) std::this_thread::yield();  // one went to each
  // A call that waits elsewhere delays none of these.
  const auto begun = std::chrono::steady_clock::now();
  for (std::int64_t i = 0; i < 50; ++i) REQUIRE(client.call({i}, 10s)->value == i);
  CHECK(std::chrono::steady_clock::now() - begun < 5s);
  CHECK(slow_calls <= before + 2);
  CHECK(fast_calls >= 50);
  gate.open();
  while (answered < 2) std::this_thread::yield();
  CHECK(client.counters().open == 0);
  CHECK(client.counters().round_trip_p50.count() > 0);
  CHECK(client.counters().round_trip_p99 >= client.counters().round_trip_p50);
}

TEST_CASE("request/reply: what is cancelled, or too late, is not run") {
  test::TemporaryFolder folder;
  const std::string endpoint = "ipc://" + (folder / "s");
  Gate gate;
  std::atomic<int> runs{0};
  ServiceOptions two;
  two.threads = 2;  // both are held, and the service goes on reading
  FigureService service(
      endpoint,
      [&](const Figure& in) -> Result<Figure> {
        ++runs;
        if (in.value == 0) gate.wait();
        return in;
      },
      two);
  FigureClient client(endpoint);
  std::atomic<int> held{2};
  for (int i = 0; i < 2; ++i) {
    client.call_async({0}, 60s, [&](const Result<Figure>&) { --held; });
  }
  gate.until_somebody_waits(2);
  std::promise<Result<Figure>> cancelled;
  const auto id =
      client.call_async({1}, 60s, [&](Result<Figure> n) { cancelled.set_value(std::move(n)); });
  CHECK(client.call({2}, 50ms).error().code == ErrorCode::kTimeout);
  client.cancel(id);
  CHECK(cancelled.get_future().get().error().code == ErrorCode::kClosed);
  client.cancel(id);  // it has ended
  client.cancel(12345);
  while (service.counters().skipped < 2) std::this_thread::yield();
  gate.open();
  CHECK(client.call({3}, 10s)->value == 3);
  while (held > 0) std::this_thread::yield();
  CHECK(runs == 3);
  CHECK(client.counters().timed_out == 1);
}

TEST_CASE("request/reply: more than may wait is refused, on either side") {
  test::TemporaryFolder folder;
  const std::string endpoint = "ipc://" + (folder / "s");
  Gate gate;
  ServiceOptions options;
  options.waiting_max = 2;
  options.threads = 2;
  FigureService service(
      endpoint,
      [&](const Figure& in) -> Result<Figure> {
        gate.wait();
        return in;
      },
      options);
  ClientOptions few;
  few.open_max = 6;
  FigureClient client(endpoint, few);
  std::atomic<int> full{0};
  std::atomic<int> answered{0};
  const auto count = [&](const Result<Figure>& n) {
    ++(n.ok() ? answered : full);
    if (!n.ok()) CHECK(n.error().code == ErrorCode::kFull);
  };
  client.call_async({0}, 60s, count);
  client.call_async({1}, 60s, count);
  gate.until_somebody_waits(2);
  for (std::int64_t i = 2; i < 6; ++i) client.call_async({i}, 60s, count);
  while (full < 2) std::this_thread::yield();  // two run, two wait
  client.call_async({6}, 60s, count);
  client.call_async({7}, 60s, count);
  client.call_async({8}, 60s, count);  // the seventh that is open
  gate.open();
  while (answered + full < 9) std::this_thread::yield();
  CHECK(full >= 3);
  CHECK(client.call({9}, 5s)->value == 9);
  CHECK(service.counters().requests == service.counters().answered + service.counters().refused);
}

TEST_CASE("request/reply: many threads and callbacks at once, and a callback that calls") {
  test::TemporaryFolder folder;
  const std::string endpoint = "ipc://" + (folder / "s");
  ServiceOptions options;
  options.threads = 2;
  const FigureService service(endpoint, twice, options);
  FigureClient client(endpoint);
  std::atomic<int> right{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (std::int64_t i = 0; i < 200; ++i) {
        const auto answer = client.call({1'000 * t + i}, 20s);
        if (answer.ok() && answer->value == 2 * (1'000 * t + i)) ++right;
      }
    });
  }
  for (std::int64_t i = 0; i < 200; ++i) {
    client.call_async({i}, 20s, [&, i](const Result<Figure>& n) {
      if (n.ok() && n->value == 2 * i) ++right;
      const auto inner = client.call({i}, 20s);
      if (inner.ok()) ++right;
    });
  }
  for (auto& thread : threads) thread.join();
  while (client.counters().open > 0 || right < 4 * 200 + 2 * 200) std::this_thread::yield();
  CHECK(client.counters().answered == 1'200);
}

TEST_CASE(
    "request/reply: a service that stops answers what waits, and a client that ends its calls") {
  test::TemporaryFolder folder;
  const std::string endpoint = "ipc://" + (folder / "s");
  std::vector<Result<Figure>> answers;
  std::mutex mutex;
  const auto note = [&](Result<Figure> n) {
    const std::lock_guard lock(mutex);
    answers.push_back(std::move(n));
  };
  Gate gate;
  auto service = std::make_unique<FigureService>(endpoint, [&](const Figure& in) -> Result<Figure> {
    if (in.value == 0) gate.wait();
    return in;
  });
  auto client = std::make_unique<FigureClient>(endpoint);
  for (std::int64_t i = 0; i < 3; ++i) client->call_async({i}, 60s, note);
  gate.until_somebody_waits();
  std::thread stop([&] { service->stop(5s); });
  gate.open();
  stop.join();
  service.reset();
  client.reset();
  CHECK(answers.size() == 3);
  for (const auto& answer : answers)
    CHECK((answer.ok() || answer.error().code != ErrorCode::kTimeout));
}

TEST_CASE("request/reply: frames that are none, and services that are none, harm nobody") {
  test::TemporaryFolder folder;
  const std::string endpoint = "ipc://" + (folder / "s");
  FigureService service(endpoint, twice);
  transport::Context context;
  transport::DealerSocket raw(context, {});
  REQUIRE(raw.connect(endpoint).ok());
  const std::vector<std::string> bad{"",
                                     "x",
                                     std::string("DC\0", 3),
                                     std::string("DC\0\x90", 4),
                                     std::string("DC\0\x92\x07\x01", 6),
                                     std::string("DC\1\x92\x01\x01", 6),
                                     std::string("DC\0\x94\x00\x01\x05\xa1x", 9)};
  for (const auto& frame : bad) {
    while (raw.send(frame) != transport::Sent::kSent) std::this_thread::yield();
  }
  FigureClient client(endpoint);
  CHECK(client.call({2}, 5s)->value == 4);
  while (service.counters().malformed < bad.size()) std::this_thread::yield();
  CHECK(!plain::decode_call("nonsense"));
  // A service that answers nonsense is one that does not answer.
  const std::string other = "ipc://" + (folder / "o");
  transport::RouterSocket liar(context, {});
  REQUIRE(liar.bind(other).ok());
  std::thread lies([&] {
    for (;;) {
      const auto received = liar.receive();
      if (!received) continue;
      (void)liar.send(received->peer, "DC?");
      (void)liar.send(received->peer, plain::encode_reply(999, "not asked"));
      return;
    }
  });
  FigureClient deceived(other);
  CHECK(deceived.call({1}, 200ms).error().code == ErrorCode::kTimeout);
  lies.join();
  CHECK_THROWS_AS(FigureClient(std::vector<std::string>{}), EndpointError);
}

TEST_CASE("request/reply: over inproc and tcp, and with CURVE for those who are allowed") {
  transport::Context context;
  {
    ServiceOptions serves;
    serves.context = &context;
    ClientOptions calls;
    calls.context = &context;
    const FigureService service("inproc://twice", twice, serves);
    FigureClient client("inproc://twice", calls);
    CHECK(client.call({4}, 5s)->value == 8);
  }
  test::TemporaryFolder folder;
  const auto own = transport::make_curve_keys();
  const auto friends = transport::make_curve_keys();
  const auto strangers = transport::make_curve_keys();
  std::ofstream(folder / "allow.toml") << "[peer]\nfriend = \"" << friends.public_key << "\"\n";
  ServiceOptions secured;
  secured.keys = EndpointKeys{own.public_key, own.secret_key, "", folder / "allow.toml"};
  const FigureService service("tcp://0.0.0.0:*", twice, secured);
  const auto bound = service.bound_endpoint();
  const std::string endpoint = "tcp://127.0.0.1:" + bound.substr(bound.rfind(':') + 1);
  const auto options_of = [&](const transport::CurveKeys& keys) {
    ClientOptions options;
    options.keys = EndpointKeys{keys.public_key, keys.secret_key, own.public_key, ""};
    return options;
  };
  FigureClient welcome(endpoint, options_of(friends));
  CHECK(welcome.call({4}, 10s)->value == 8);
  FigureClient stranger(endpoint, options_of(strangers));
  CHECK(stranger.call({4}, 300ms).error().code == ErrorCode::kTimeout);
  FigureClient plain(endpoint);
  CHECK(plain.call({4}, 300ms).error().code == ErrorCode::kTimeout);
}

TEST_CASE("request/reply: a client that was idle while its service restarted calls the new one") {
  test::TemporaryFolder folder;
  const std::string endpoint = "ipc://" + (folder / "s");
  auto service = std::make_unique<FigureService>(endpoint, twice);
  FigureClient client(endpoint);
  CHECK(client.call({1}, 10s)->value == 2);
  for (int i = 0; i < 3; ++i) {
    service.reset();
    service = std::make_unique<FigureService>(endpoint, twice);
    // It connects again by itself, and nobody looks.
    while (service->counters().peers < 1) std::this_thread::yield();
    const auto answer = client.call({4}, 10s);
    REQUIRE(answer.ok());
    CHECK(answer->value == 8);
  }
  CHECK(client.counters().lost == 0);
}

TEST_CASE("request/reply: a client whose key is let in while its call waits gets its answer") {
  test::TemporaryFolder folder;
  const auto own = transport::make_curve_keys();
  const auto late = transport::make_curve_keys();
  std::ofstream(folder / "allow.toml") << "[peer]\n";
  ServiceOptions secured;
  secured.keys = EndpointKeys{own.public_key, own.secret_key, "", folder / "allow.toml"};
  const FigureService service("tcp://127.0.0.1:*", twice, secured);
  ClientOptions options;
  options.keys = EndpointKeys{late.public_key, late.secret_key, own.public_key, ""};
  FigureClient client(service.bound_endpoint(), options);
  CHECK(client.call({1}, 300ms).error().code == ErrorCode::kTimeout);
  std::promise<Result<Figure>> answer;
  client.call_async({4}, 60s, [&](Result<Figure> n) { answer.set_value(std::move(n)); });
  std::ofstream(folder / "allow.new") << "[peer]\nlate = \"" << late.public_key << "\"\n";
  std::filesystem::rename(folder / "allow.new", folder / "allow.toml");
  auto future = answer.get_future();
  REQUIRE(future.wait_for(30s) == std::future_status::ready);
  CHECK(future.get()->value == 8);
}

TEST_CASE("request/reply: what is too large is refused in words, and the connection stays") {
  test::TemporaryFolder folder;
  const std::string endpoint = "ipc://" + (folder / "s");
  const Service<std::string, std::string> service(
      endpoint, [](const std::string& text) -> Result<std::string> {
        return std::string(text == "much" ? 65U << 20 : 1, 'x');
      });
  Client<std::string, std::string> client(endpoint);
  const auto request = client.call(std::string(65U << 20, 'x'), 10s);
  REQUIRE(!request.ok());
  CHECK(request.error().code == ErrorCode::kInvalid);
  const auto reply = client.call("much", 30s);
  REQUIRE(!reply.ok());
  CHECK(reply.error().code == ErrorCode::kInvalid);
  CHECK(client.call("little", 10s).ok());
  CHECK(client.call("for ever", Milliseconds::max()).ok());
}

TEST_CASE("request/reply: a client that ends answers every callback, also those that call again") {
  test::TemporaryFolder folder;
  std::atomic<int> ended{0};
  for (int i = 0; i < 20; ++i) {
    auto client = std::make_unique<FigureClient>("ipc://" + (folder / "nobody"));
    auto* raw = client.get();
    const auto id = client->call_async({1}, 60s, [&](const Result<Figure>&) { ++ended; });
    client->call_async({2}, 60s, [&, raw](const Result<Figure>&) {
      ++ended;
      raw->call_async({3}, 60s, [&](const Result<Figure>& n) {
        CHECK(n.error().code == ErrorCode::kClosed);
        ++ended;
      });
      CHECK(raw->call({4}, 60s).error().code == ErrorCode::kClosed);
    });
    client->cancel(id);
    client.reset();
  }
  CHECK(ended == 60);
}

TEST_CASE("request/reply: what a callback holds may use the client as it goes") {
  test::TemporaryFolder folder;
  const std::string endpoint = "ipc://" + (folder / "s");
  const FigureService service(endpoint, twice);
  FigureClient client(endpoint);
  struct Holder {
    explicit Holder(FigureClient& client_in) : client(client_in) {}
    ~Holder() { (void)client.counters(); }
    FigureClient& client;
  };
  std::promise<void> done;
  client.call_async({1}, 10s,
                    [&done, held = std::make_shared<Holder>(client)](const Result<Figure>&) {
                      done.set_value();
                    });
  done.get_future().get();
  CHECK(client.call({2}, 10s)->value == 4);
}

TEST_CASE("request/reply: a service that has stopped takes no calls from those that go on") {
  test::TemporaryFolder folder;
  const std::vector<std::string> endpoints{"ipc://" + (folder / "a"), "ipc://" + (folder / "b")};
  FigureService stopped(endpoints[0], twice);
  const FigureService other(endpoints[1], twice);
  FigureClient client(endpoints);
  while (client.counters().peers < 2) (void)client.call({0}, 10s);
  stopped.stop(1s);
  stopped.stop(1s);
  for (std::int64_t i = 0; i < 20; ++i) {
    const auto answer = client.call({i}, CallOptions(10s, true));
    REQUIRE(answer.ok());
  }
}

TEST_CASE("request/reply: every answer arrives, however slowly its client takes them") {
  test::TemporaryFolder folder;
  const std::string endpoint = "ipc://" + (folder / "s");
  ServiceOptions options;
  options.threads = GENERATE(1U, 2U);
  Service<std::string, std::string> service(
      endpoint, [](const std::string& text) -> Result<std::string> { return text; }, options);
  transport::Context context;
  transport::DealerSocket slow(context, {});
  REQUIRE(slow.connect(endpoint).ok());
  constexpr std::uint64_t kCalls = 3'000;
  const std::string body(4'000, 'x');
  for (std::uint64_t id = 1; id <= kCalls; ++id) {
    const auto frame = plain::encode_request(id, Milliseconds(60'000), body);
    while (slow.send(frame) != transport::Sent::kSent) std::this_thread::yield();
  }
  while (service.counters().answered < kCalls) std::this_thread::yield();
  std::set<std::uint64_t> answered;
  const auto give_up = std::chrono::steady_clock::now() + 30s;
  while (answered.size() < kCalls) {
    REQUIRE(std::chrono::steady_clock::now() < give_up);
    const auto frame = slow.receive();
    if (!frame) continue;
    const auto answer = plain::decode_call(frame->bytes);
    REQUIRE(answer.has_value());
    CHECK(answered.insert(answer->id).second);
  }
  CHECK(service.counters().dropped == 0);
}

TEST_CASE("request/reply: a client that reads nothing costs the others neither answers nor time") {
  test::TemporaryFolder folder;
  const std::string endpoint = "ipc://" + (folder / "s");
  ServiceOptions options;
  options.waiting_bytes_max = 4U << 20;
  Service<std::string, std::string> service(
      endpoint, [](const std::string& text) -> Result<std::string> { return text; }, options);
  transport::Context context;
  transport::DealerSocket mute(context, {});
  REQUIRE(mute.connect(endpoint).ok());
  const std::string body(4'000, 'x');
  const auto give_up = std::chrono::steady_clock::now() + 30s;
  for (std::uint64_t id = 1; service.counters().dropped == 0; ++id) {
    REQUIRE(std::chrono::steady_clock::now() < give_up);
    (void)mute.send(plain::encode_request(id, Milliseconds(60'000), body));
  }
  Client<std::string, std::string> other(endpoint);
  const auto begun = std::chrono::steady_clock::now();
  for (int i = 0; i < 100; ++i) REQUIRE(other.call("hello", 10s).ok());
  CHECK(std::chrono::steady_clock::now() - begun < 5s);
}

TEST_CASE("request/reply: a service that is silent gets hardly a call while another answers") {
  test::TemporaryFolder folder;
  transport::Context context;
  transport::RouterSocket silent(context, {});
  REQUIRE(silent.bind("ipc://" + (folder / "silent")).ok());
  const FigureService service("ipc://" + (folder / "s"), twice);
  FigureClient client(
      std::vector<std::string>{"ipc://" + (folder / "silent"), "ipc://" + (folder / "s")});
  while (client.counters().peers < 2) (void)client.call({1}, 100ms);
  int timed_out = 0;
  for (std::int64_t i = 0; i < 20; ++i) timed_out += client.call({i}, 100ms).ok() ? 0 : 1;
  CHECK(timed_out <= 1);
}

TEST_CASE("request/reply: a service with one thread ends in time, and runs nothing cancelled") {
  test::TemporaryFolder folder;
  const std::string endpoint = "ipc://" + (folder / "s");
  std::atomic<int> run{0};
  auto service = std::make_unique<FigureService>(endpoint, [&](const Figure& in) -> Result<Figure> {
    ++run;
    std::this_thread::sleep_for(20ms);
    return in;
  });
  FigureClient client(endpoint);
  CHECK(client.call({0}, 10s).ok());
  std::vector<CallId> calls;
  for (std::int64_t i = 0; i < 60; ++i) {
    calls.push_back(client.call_async({i}, 60s, [](const Result<Figure>&) {}));
  }
  while (run < 3) std::this_thread::yield();
  for (const auto call : calls) client.cancel(call);
  CHECK(client.call({0}, 10s).ok());
  CHECK(run < 20);
  for (std::int64_t i = 0; i < 200; ++i) client.call_async({i}, 60s, [](const Result<Figure>&) {});
  const int before = run;
  while (run < before + 2) std::this_thread::yield();
  const auto begun = std::chrono::steady_clock::now();
  service->stop(100ms);
  CHECK(std::chrono::steady_clock::now() - begun < 1s);  // all would take 4 s
}

TEST_CASE("request/reply: a client ends although a callback of it waits for a call") {
  test::TemporaryFolder folder;
  const std::string endpoint = "ipc://" + (folder / "s");
  Gate gate;
  FigureService service(endpoint, [&](const Figure& in) -> Result<Figure> {
    if (in.value == 2) gate.wait();
    return in;
  });
  auto client = std::make_unique<FigureClient>(endpoint);
  std::optional<Result<Figure>> nested;
  client->call_async({1}, 60s, [&, raw = client.get()](const Result<Figure>&) {
    nested = raw->call({2}, Milliseconds::max());
  });
  gate.until_somebody_waits();
  client.reset();
  REQUIRE(nested.has_value());
  CHECK(nested->error().code == ErrorCode::kClosed);
  gate.open();
}

TEST_CASE("request/reply: an idle client hears of its connections") {
  test::TemporaryFolder folder;
  const std::string endpoint = "ipc://" + (folder / "s");
  const FigureClient client(endpoint);
  const FigureService service(endpoint, twice);
  const auto deadline = std::chrono::steady_clock::now() + 30s;
  while (client.counters().peers == 0) {
    REQUIRE(std::chrono::steady_clock::now() < deadline);
    std::this_thread::sleep_for(10ms);
  }
}
