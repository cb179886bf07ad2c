// A handler that does what handlers must not do, as its message says.
#include <chrono>
#include <cstdlib>
#include <dray/handler.hpp>
#include <thread>
#include <vector>

struct Wish {
  std::string wish;
  DRAY_FIELDS(wish)
};

struct Huge {
  dray::Binary bytes;
  DRAY_FIELDS(bytes)
};

class Misuse final : public dray::Handler<Wish> {
 public:
  dray::Outcome handle(const Wish& wish, dray::Delivery&) override {
    if (wish.wish == "block") {
      for (;;) std::this_thread::sleep_for(std::chrono::hours(1));
    }
    if (wish.wish == "abort") std::abort();
    if (wish.wish == "throw") throw std::runtime_error("thrown on purpose");
    if (wish.wish == "throw an int") throw 7;
    if (wish.wish == "leak") {
      leaked_.emplace_back(4U << 20, 'x');
      return dray::done();
    }
    if (wish.wish == "huge") return dray::done().publish("t", Huge{{std::string(100U << 20, 'x')}});
    if (wish.wish == "nowhere") return dray::done().publish("nobody.takes.it", wish);
    return dray::done();
  }

 private:
  std::vector<std::string> leaked_;
};

// Publishes what no spool takes, and says what came of it.
class Publishes final : public dray::Source {
 public:
  explicit Publishes(const dray::Settings&, const dray::Log& log) : log_(log) {}
  void run(dray::Publisher& publisher, std::stop_token stop) override {
    const auto huge = publisher.publish("t", Huge{{std::string(100U << 20, 'x')}});
    log_.warning("huge: " + (huge.ok() ? "accepted" : huge.error().text()));
    const auto nowhere = publisher.publish("nobody.takes.it", Wish{});
    log_.warning("nowhere: " + (nowhere.ok() ? "accepted" : nowhere.error().text()));
    while (!stop.stop_requested()) std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }

 private:
  dray::Log log_;
};

DRAY_PLUGIN(dray::handler<Misuse>("misuse"), dray::source<Publishes>("publishes"))
