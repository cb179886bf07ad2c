// Request and reply without durability: a typed call with a time-out; errors come back typed.
#include <dray/request_reply.hpp>

#include "example.hpp"

struct Quote {
  std::string product;
  DRAY_FIELDS(product)
};
struct Price {
  std::int64_t cents = 0;
  DRAY_FIELDS(cents)
};

int main() {
  const example::Folder folder;
  const dray::Service<Quote, Price> service(
      folder.endpoint(), [](const Quote& quote) -> dray::Result<Price> {
        if (quote.product == "rope") return Price{1250};
        return dray::Error{dray::ErrorCode::kNotFound, "no such product: " + quote.product, "", 0};
      });
  dray::Client<Quote, Price> client(folder.endpoint());
  const auto rope = client.call({"rope"}, std::chrono::seconds(5));
  const auto moon = client.call({"moon"}, std::chrono::seconds(5));
  if (!rope.ok() || moon.ok()) return 1;
  std::printf("rope: %d cents\nmoon: %s\n", static_cast<int>(rope->cents),
              moon.error().message.c_str());
  return 0;
}
