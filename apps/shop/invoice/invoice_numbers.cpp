#include "shop/invoice/invoice_numbers.hpp"

namespace shop {

InvoiceNumbers::InvoiceNumbers(const std::string& path)
    : database_(path,
                "CREATE TABLE IF NOT EXISTS invoices ("
                "  number INTEGER PRIMARY KEY CHECK (number > 0),"
                "  order_id TEXT NOT NULL UNIQUE)") {}

std::optional<std::int64_t> InvoiceNumbers::find(const std::string& order_id) {
  auto query = database_.prepare("SELECT number FROM invoices WHERE order_id = ?");
  if (!query.bind(1, order_id).step()) return std::nullopt;
  return query.number(0);
}

std::int64_t InvoiceNumbers::number_of(const std::string& order_id) {
  if (const auto known = find(order_id)) return *known;
  Transaction transaction(database_);
  if (const auto known = find(order_id)) return *known;  // another thread was first
  auto insert = database_.prepare(
      "INSERT INTO invoices (number, order_id)"
      " SELECT COALESCE(MAX(number), 0) + 1, ? FROM invoices RETURNING number");
  insert.bind(1, order_id).step();
  const std::int64_t number = insert.number(0);
  insert.step();
  transaction.commit();
  return number;
}

std::string invoice_number_text(std::int64_t number) {
  const std::string digits = std::to_string(number);
  return "INV-" + std::string(digits.size() < 6 ? 6 - digits.size() : 0, '0') + digits;
}

}  // namespace shop
