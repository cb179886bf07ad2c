// A first handler, as a plugin: `dray run greet.toml`, then
// `dray publish greet.toml greeting '{"to": "world"}'`.
#include <dray/handler.hpp>

struct Greeting {
  std::string to;
  DRAY_FIELDS(to)
};

class Greeter final : public dray::Handler<Greeting> {
 public:
  explicit Greeter(const dray::Settings& settings) : word_(settings.text("word", "hello")) {}
  dray::Outcome handle(const Greeting& greeting, dray::Delivery& delivery) override {
    if (greeting.to.empty()) return dray::reject("nobody to greet");
    delivery.log().info(word_ + " " + greeting.to);
    return dray::done();
  }

 private:
  std::string word_;
};

DRAY_PLUGIN(dray::handler<Greeter>("greeter"))
