// Embeds a spooler and a worker in a program of one's own, without launcher and plugins.
#include <cstdio>
#include <dray/spooler.hpp>
#include <dray/worker.hpp>
#include <future>

struct Greeting {
  std::string to;
  DRAY_FIELDS(to)
};

class Greeter final : public dray::Handler<Greeting> {
 public:
  explicit Greeter(std::promise<std::string>& greeted) : greeted_(greeted) {}
  dray::Outcome handle(const Greeting& greeting, dray::Delivery&) override {
    greeted_.set_value("hello " + greeting.to);
    return dray::done();
  }

 private:
  std::promise<std::string>& greeted_;
};

int main(int, char** argv) {
  const std::string folder = argv[1];
  const std::string endpoint = "ipc://" + folder + "/s";
  auto spooler = dray::Spooler::open(
      {.directory = folder + "/spool", .bind = endpoint, .groups = {{"greeters", {"greeting"}}}});
  if (!spooler.ok()) return std::puts(spooler.error().text().c_str()), 1;
  std::promise<std::string> greeted;
  auto worker = dray::Worker::start({.group = "greeters", .endpoints = {endpoint}},
                                    [&]() -> dray::Result<std::unique_ptr<dray::Consumer>> {
                                      return dray::consumer_of(std::make_unique<Greeter>(greeted),
                                                               dray::Log());
                                    });
  if (!worker.ok()) return std::puts(worker.error().text().c_str()), 1;
  const auto receipt = (*spooler)->publish("greeting", Greeting{"world"});
  if (!receipt.ok()) return std::puts(receipt.error().text().c_str()), 1;
  std::puts(greeted.get_future().get().c_str());
  return (*worker)->drain(std::chrono::seconds(5)) ? 0 : 1;
}
