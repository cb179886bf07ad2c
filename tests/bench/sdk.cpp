// What the plugin border, the typed API and middleware cost per message, over a plain call of the
// same function with the same decoding. Prints nanoseconds per message, the median of rounds.
//
//   build/release/bin/sdk_bench build/release/bin/libsdk_bench_plugin.so
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <vector>

#include "bench/sdk_message.hpp"
#include "dray/consumer.hpp"
#include "dray/plugin/plugin_library.hpp"

namespace {

using namespace dray;

constexpr int kRounds = 21;
constexpr int kMessages = 50'000;

template <typename Function>
double nanoseconds_each(Function function) {
  const auto begun = std::chrono::steady_clock::now();
  for (int i = 0; i < kMessages; ++i) function();
  const std::chrono::duration<double, std::nano> took = std::chrono::steady_clock::now() - begun;
  return took.count() / kMessages;
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 2) {
    std::fprintf(stderr, "say where the plugin is: sdk_bench PATH/libsdk_bench_plugin.so\n");
    return 2;
  }
  auto library = PluginLibrary::load(arguments[1], {});
  if (!library.ok()) {
    std::fprintf(stderr, "%s\n", library.error().text().c_str());
    return 1;
  }
  auto plain = library->create_handler("plain", Settings(), Log());
  auto wrapped = library->create_handler("wrapped", Settings(), Log());
  if (!plain.ok() || !wrapped.ok()) return 1;
  const Draft draft{
      "t", to_bytes(bench::Order{"order-1", "ada@example.org", std::string(200, 'x')}), {}};
  const auto envelope = encode_envelope(draft, uuid_v4(), UtcTime(Milliseconds(1)));
  const ConsumerJob job{envelope, "g", 7, 1};
  const std::stop_source stop;
  std::uint64_t sum = 0;
  std::vector<double> direct, border, middleware;
  for (int round = 0; round < kRounds; ++round) {
    direct.push_back(nanoseconds_each([&] {
      const auto view = parse_envelope(envelope);
      const auto order = from_bytes<bench::Order>(view->body);
      sum += bench::weight(*order);
    }));
    border.push_back(nanoseconds_each([&] { (void)(*plain)->consume(job, stop.get_token()); }));
    middleware.push_back(
        nanoseconds_each([&] { (void)(*wrapped)->consume(job, stop.get_token()); }));
  }
  std::printf("direct call, with decoding       %7.0f ns\n", median(direct));
  std::printf("API and plugin border            %+7.0f ns\n", median(border) - median(direct));
  std::printf("the same with three middlewares  %+7.0f ns\n", median(middleware) - median(direct));
  return sum == 0 ? 1 : 0;
}
