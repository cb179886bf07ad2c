#include "dray/publisher.hpp"

#include <future>

namespace dray {

std::string_view durability_name(Durability durability) {
  return durability == Durability::kDisk ? "disk" : "os";
}

Result<Receipt> Publisher::publish_and_wait(Draft draft) {
  std::promise<Result<Receipt>> promise;
  auto future = promise.get_future();
  publish_draft(std::move(draft),
                [&promise](Result<Receipt> receipt) { promise.set_value(std::move(receipt)); });
  return future.get();
}

}  // namespace dray
