// Push and pull without durability: a stream from many to one; what finds no room in time is
// dropped and counted.
#include <dray/pipeline.hpp>

#include "example.hpp"

struct Reading {
  int sensor = 0;
  double value = 0;
  DRAY_FIELDS(sensor, value)
};

int main() {
  const example::Folder folder;
  dray::Pull<Reading> sink(folder.endpoint());
  dray::Push<Reading> one(folder.endpoint(), {.wait = std::chrono::seconds(5)});
  dray::Push<Reading> other(folder.endpoint(), {.wait = std::chrono::seconds(5)});
  for (int i = 0; i < 100; ++i) {
    if (!one.push({1, 0.5 * i}) || !other.push({2, 2.0 * i})) return 1;
  }
  double sum = 0;
  for (int i = 0; i < 200; ++i) {
    const auto reading = sink.pull(std::chrono::seconds(5));
    if (!reading) return 1;
    sum += reading->value;
  }
  std::printf("200 readings, sum %.0f, dropped %d\n", sum,
              static_cast<int>(one.counters().dropped + other.counters().dropped));
  return 0;
}
