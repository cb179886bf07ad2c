// Effects that must not happen twice: each is a step. Its beginning is on the disk before it runs,
// its value before once() returns; in a later attempt a step that ended is not run again.
#include <future>

#include "example.hpp"

struct Order {
  std::string id;
  DRAY_FIELDS(id)
};

int main() {
  const example::Folder folder;
  const auto spooler = example::must(dray::Spooler::open(
      {.directory = folder.spool(), .bind = folder.endpoint(), .groups = {{"shop", {"order"}}}}));
  example::must(spooler->publish("order", Order{"A-1"}));
  int charges = 0;
  bool parcel_is_lost = true;
  std::promise<std::string> shipped;
  dray::WorkerSettings settings{.group = "shop", .endpoints = {folder.endpoint()}};
  settings.retry.initial = std::chrono::milliseconds(10);
  const auto worker = example::must(dray::Worker::start(
      settings, dray::handle_with<Order>([&](const Order& order, dray::Delivery& delivery) {
        // If it began and nobody knows how it ended, a person decides: dray dead decide.
        const auto receipt = delivery.once("charge", dray::IfUnknown::kAsk, [&] {
          return "receipt " + std::to_string(++charges) + " for " + order.id;
        });
        // This one may be done twice.
        delivery.once("ship", dray::IfUnknown::kAgain, [&] {
          if (std::exchange(parcel_is_lost, false)) throw std::runtime_error("parcel lost");
        });
        shipped.set_value(receipt);
        return dray::done();
      })));
  std::printf("shipped with %s\n", shipped.get_future().get().c_str());
  std::printf("charged %d time\n", charges);
  return worker->drain(std::chrono::seconds(5)) ? 0 : 1;
}
