// One message, two groups: each gets it once and settles it for itself.
#include <latch>

#include "example.hpp"

struct OrderPlaced {
  std::string order_id;
  DRAY_FIELDS(order_id)
};

int main() {
  const example::Folder folder;
  const auto spooler = example::must(dray::Spooler::open(
      {.directory = folder.spool(),
       .bind = folder.endpoint(),
       .groups = {{"email", {"order.placed"}}, {"invoice", {"order.placed"}}}}));
  std::latch both(2);
  const auto start = [&](const std::string& group) {
    return example::must(dray::Worker::start(
        {.group = group, .endpoints = {folder.endpoint()}},
        dray::handle_with<OrderPlaced>([&, group](const OrderPlaced& order, dray::Delivery&) {
          std::printf("%s takes order %s\n", group.c_str(), order.order_id.c_str());
          both.count_down();
          return dray::done();
        })));
  };
  const auto email = start("email");
  const auto invoice = start("invoice");
  example::must(spooler->publish("order.placed", OrderPlaced{"A-1"}));
  both.wait();
  const bool clean = email->drain(std::chrono::seconds(5));
  return invoice->drain(std::chrono::seconds(5)) && clean ? 0 : 1;
}
