#include "dray/pipeline.hpp"
#include "dray/request_reply.hpp"
#include "support/temporary_folder.hpp"

using namespace dray;
using namespace std::chrono_literals;

namespace {
struct Number {
  std::int64_t value = 0;
  DRAY_FIELDS(value)
};
}  // namespace

TEST_CASE("push/pull: what finds no peer is dropped and counted, what finds one arrives") {
  test::TemporaryFolder folder;
  const std::string endpoint = "ipc://" + (folder / "p");
  Push<Number> push(endpoint);
  CHECK(!push.push({1}));
  CHECK(push.dropped() == 1);
  Pull<Number> pull(endpoint);
  PipelineOptions patient;
  patient.wait = 5s;
  Push<Number> waiting(endpoint, patient);
  for (std::int64_t i = 0; i < 100; ++i) REQUIRE(waiting.push({i}));
  for (std::int64_t i = 0; i < 100; ++i) CHECK(pull.pull(5s)->value == i);
  CHECK(!pull.pull(1ms));
}

TEST_CASE("push/pull: an endpoint that cannot be is an error that names it") {
  CHECK_THROWS_WITH(Push<Number>("nonsense"), Catch::Contains("nonsense"));
  CHECK_THROWS_WITH(Pull<Number>("tcp://0.0.0.0:1"), Catch::Contains("leaves this machine"));
  CHECK_THROWS_WITH(Pull<Number>("ipc://" + std::string(120, 'x')), Catch::Contains("107"));
}

TEST_CASE("request/reply: answers, errors of the service, and silence each end a call") {
  test::TemporaryFolder folder;
  const std::string endpoint = "ipc://" + (folder / "r");
  Client<Number, Number> client(endpoint);
  const auto nobody = client.call({1}, 50ms);
  REQUIRE(!nobody.ok());
  CHECK(nobody.error().code == ErrorCode::kTimeout);
  {
    const Service<Number, Number> service(endpoint, [](const Number& in) -> Result<Number> {
      if (in.value < 0) return Error{ErrorCode::kNotFound, "negative", "", 0};
      if (in.value == 0) throw std::runtime_error("zero");
      return Number{in.value * 2};
    });
    CHECK(client.call({21}, 5s)->value == 42);
    CHECK(client.call({-1}, 5s).error().code == ErrorCode::kNotFound);
    CHECK(client.call({0}, 5s).error().text() == "zero");
    std::vector<std::future<Result<Number>>> answers;
    for (std::int64_t i = 1; i <= 100; ++i) {
      auto promise = std::make_shared<std::promise<Result<Number>>>();
      answers.push_back(promise->get_future());
      client.call_async({i}, 5s, [promise](Result<Number> n) { promise->set_value(std::move(n)); });
    }
    for (std::int64_t i = 1; i <= 100; ++i) {
      CHECK(answers[static_cast<std::size_t>(i - 1)].get()->value == 2 * i);
    }
  }
  CHECK(client.call({1}, 50ms).error().code == ErrorCode::kTimeout);
  const Service<Number, Number> again(endpoint,
                                      [](const Number& in) -> Result<Number> { return in; });
  CHECK(client.call({5}, 5s)->value == 5);  // the same client, after the service's restart
}
