// A durable queue inside a program of your own: no launcher, no plugins. What was published before
// a "crash" is handled after it.
#include <future>

#include "example.hpp"

struct Greeting {
  std::string to;
  DRAY_FIELDS(to)
};

int main() {
  const example::Folder folder;
  const dray::SpoolerOptions options{.directory = folder.spool(),
                                     .bind = folder.endpoint(),
                                     .groups = {{"greeters", {"greeting"}}}};
  {
    const auto before = example::must(dray::Spooler::open(options));
    const auto receipt = example::must(before->publish("greeting", Greeting{"world"}));
    std::printf("on disk: message %s\n", receipt.id.text().c_str());
  }
  const auto after = example::must(dray::Spooler::open(options));
  std::promise<std::string> greeted;
  const auto worker = example::must(dray::Worker::start(
      {.group = "greeters", .endpoints = {folder.endpoint()}},
      dray::handle_with<Greeting>([&](const Greeting& greeting, dray::Delivery&) {
        greeted.set_value("hello " + greeting.to);
        return dray::done();
      })));
  std::printf("%s\n", greeted.get_future().get().c_str());
  return worker->drain(std::chrono::seconds(5)) ? 0 : 1;
}
