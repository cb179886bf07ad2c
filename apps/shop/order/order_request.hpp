// Reads and checks what a visitor sends. Pure.
//
// Threading: pure functions. Failure: an error names the field and what is expected.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "dray/result.hpp"
#include "shop/messages.hpp"

namespace shop {

struct Product {
  std::string id;
  std::string name;
  std::string description;
  std::int64_t unit_price = 0;  // minor units, net
};

inline constexpr const char* kCurrency = "EUR";
inline constexpr std::int64_t kTaxPermille = 190;

const std::vector<Product>& catalogue();

// The order in a request body, without its id:
//   {"customer": {"name": "...", "email": "..."}, "lines": [{"product": "...", "quantity": 1}]}
dray::Result<OrderPlaced> parse_order(std::string_view body);

// The id of the order that belongs to this Idempotency-Key: the same key gives the same id. An
// empty key gives a new one. 80 bits as "XXXX-XXXX-XXXX-XXXX" in Crockford's base 32.
std::string order_id_for(const std::string& idempotency_key);

// Nothing, or what is wrong with it: 1 to 200 printable ASCII characters.
std::string idempotency_key_fault(std::string_view key);

}  // namespace shop
