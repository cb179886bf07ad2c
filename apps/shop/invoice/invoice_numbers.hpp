// Invoice numbers: without a gap, one per order, for ever. In SQLite.
//
// The number is taken in the transaction that records the order, so a crash takes none, and a
// second delivery of an order finds its first number.
//
// Threading: one object, one thread; many objects on one file. Failure: DatabaseError.
#pragma once

#include <optional>
#include <string>

#include "shop/database.hpp"

namespace shop {

class InvoiceNumbers {
 public:
  explicit InvoiceNumbers(const std::string& path);
  // The order's number; the next free one if it has none yet. Nothing if the number belongs to
  // another message with that order id: an invoice that was issued is never changed.
  std::optional<std::int64_t> number_of(const std::string& order_id, const std::string& message_id);
  std::optional<std::int64_t> find(const std::string& order_id);

 private:
  Database database_;
};

// 17 -> "INV-000017"
std::string invoice_number_text(std::int64_t number);

}  // namespace shop
