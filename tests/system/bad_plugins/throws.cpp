// A plugin whose handler cannot be made, and whose library throws on demand while loading.
#include <cstdlib>
#include <stdexcept>

#include "dray/handler.hpp"

namespace {

class Throws final : public dray::RawHandler {
 public:
  Throws() { throw std::runtime_error("no licence found"); }
  dray::Outcome handle_body(std::string_view, dray::Delivery&) override { return dray::done(); }
};

// Fails each attempt, dies on "die", sleeps past its time-out on "hang".
class Fails final : public dray::RawHandler {
 public:
  dray::Outcome handle_body(std::string_view body, dray::Delivery&) override {
    if (body.find("die") != std::string_view::npos) std::abort();
    if (body.find("reject") != std::string_view::npos) return dray::reject("as asked");
    throw std::runtime_error("as asked");
  }
};

[[maybe_unused]] const int kLoaded = [] {
  if (std::getenv("DRAY_TEST_THROW_ON_LOAD") != nullptr) throw std::runtime_error("on load");
  return 1;
}();

}  // namespace

DRAY_PLUGIN(dray::handler<Throws>("throws"), dray::handler<Fails>("fails"))
