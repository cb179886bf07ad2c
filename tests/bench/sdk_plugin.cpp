#include "bench/sdk_message.hpp"
#include "dray/handler.hpp"

namespace {

class Weigh final : public dray::Handler<bench::Order> {
 public:
  dray::Outcome handle(const bench::Order& order, dray::Delivery&) override {
    sum_ += bench::weight(order);
    return dray::done();
  }

 private:
  std::uint64_t sum_ = 0;
};

class Pass final : public dray::Middleware {
 public:
  dray::Outcome around(dray::Delivery&, const dray::Next& next) override { return next(); }
};

}  // namespace

DRAY_PLUGIN(dray::handler<Weigh>("plain"), dray::handler<Weigh, Pass, Pass, Pass>("wrapped"))
