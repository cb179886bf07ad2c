#include "dray/publisher.hpp"

#include <future>

namespace dray {

std::string_view durability_name(Durability durability) {
  return durability == Durability::kDisk ? "disk" : "os";
}

void Publisher::publish_view(const DraftView& draft, ReceiptCallback done) {
  publish_draft({std::string(draft.topic), std::string(draft.body), draft.options},
                std::move(done));
}

Result<Receipt> Publisher::publish_and_wait(const DraftView& draft) {
  std::promise<Result<Receipt>> promise;
  auto future = promise.get_future();
  publish_view(draft,
               [&promise](Result<Receipt> receipt) { promise.set_value(std::move(receipt)); });
  return future.get();
}

}  // namespace dray
