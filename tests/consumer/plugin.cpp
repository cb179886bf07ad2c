// The smallest plugin: one handler.
#include <dray/handler.hpp>

struct Greeting {
  std::string to;
  DRAY_FIELDS(to)
};

class Greeter final : public dray::Handler<Greeting> {
 public:
  dray::Outcome handle(const Greeting& greeting, dray::Delivery& delivery) override {
    delivery.log().info("hello " + greeting.to);
    return dray::done();
  }
};

DRAY_PLUGIN(dray::handler<Greeter>("greeter"))
