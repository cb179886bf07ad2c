#include "shop/invoice/invoice_numbers.hpp"

namespace shop {

InvoiceNumbers::InvoiceNumbers(const std::string& path)
    : database_(path,
                "CREATE TABLE IF NOT EXISTS invoices ("
                "  number INTEGER PRIMARY KEY CHECK (number > 0),"
                "  order_id TEXT NOT NULL UNIQUE);"
                "CREATE TABLE IF NOT EXISTS issued_for ("
                "  order_id TEXT PRIMARY KEY,"
                "  message_id TEXT NOT NULL)") {}

std::optional<std::int64_t> InvoiceNumbers::find(const std::string& order_id) {
  auto query = database_.prepare("SELECT number FROM invoices WHERE order_id = ?");
  if (!query.bind(1, order_id).step()) return std::nullopt;
  return query.number(0);
}

std::optional<std::int64_t> InvoiceNumbers::number_of(const std::string& order_id,
                                                      const std::string& message_id) {
  Transaction transaction(database_);
  auto owner = database_.prepare("SELECT message_id FROM issued_for WHERE order_id = ?");
  if (owner.bind(1, order_id).step()) {
    if (owner.text(0) != message_id) return std::nullopt;
    return find(order_id);
  }
  auto number = find(order_id);
  if (!number) {
    auto insert = database_.prepare(
        "INSERT INTO invoices (number, order_id)"
        " SELECT COALESCE(MAX(number), 0) + 1, ? FROM invoices RETURNING number");
    insert.bind(1, order_id).step();
    number = insert.number(0);
    insert.step();
  }
  auto issue = database_.prepare("INSERT INTO issued_for (order_id, message_id) VALUES (?, ?)");
  issue.bind(1, order_id).bind(2, message_id).step();
  transaction.commit();
  return number;
}

std::string invoice_number_text(std::int64_t number) {
  const std::string digits = std::to_string(number);
  return "INV-" + std::string(digits.size() < 6 ? 6 - digits.size() : 0, '0') + digits;
}

}  // namespace shop
