// What sdk.cpp and its plugin share.
#pragma once

#include "dray/fields.hpp"

namespace bench {

struct Order {
  std::string id, email, note;
  DRAY_FIELDS(id, email, note)
};

inline std::uint64_t weight(const Order& order) {
  return order.note.size() + order.email.size();
}

}  // namespace bench
