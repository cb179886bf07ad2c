#include "shop/order/order_view.hpp"

namespace shop {

OrderView::OrderView(const std::string& path)
    : database_(path,
                "CREATE TABLE IF NOT EXISTS orders ("
                "  order_id TEXT PRIMARY KEY,"
                "  placed_at TEXT, customer TEXT, email TEXT, total INTEGER, currency TEXT,"
                "  mail_id TEXT, invoice_number TEXT)") {}

void OrderView::placed(const OrderPlaced& order, const std::string& at) {
  database_
      .prepare(
          "INSERT INTO orders (order_id, placed_at, customer, email, total, currency)"
          " VALUES (?, ?, ?, ?, ?, ?)"
          " ON CONFLICT (order_id) DO UPDATE SET placed_at = excluded.placed_at,"
          " customer = excluded.customer, email = excluded.email, total = excluded.total,"
          " currency = excluded.currency")
      .bind(1, order.order_id)
      .bind(2, at)
      .bind(3, order.customer)
      .bind(4, order.email)
      .bind(5, order.total())
      .bind(6, order.currency)
      .step();
}

void OrderView::mail_sent(const MailSent& mail) {
  database_
      .prepare(
          "INSERT INTO orders (order_id, mail_id) VALUES (?, ?)"
          " ON CONFLICT (order_id) DO UPDATE SET mail_id = excluded.mail_id")
      .bind(1, mail.order_id)
      .bind(2, mail.mail_id)
      .step();
}

void OrderView::invoice_made(const InvoiceMade& invoice) {
  database_
      .prepare(
          "INSERT INTO orders (order_id, invoice_number) VALUES (?, ?)"
          " ON CONFLICT (order_id) DO UPDATE SET invoice_number = excluded.invoice_number")
      .bind(1, invoice.order_id)
      .bind(2, invoice.number)
      .step();
}

std::optional<OrderState> OrderView::find(const std::string& order_id) {
  auto query = database_.prepare(
      "SELECT placed_at, customer, email, total, currency, mail_id, invoice_number"
      " FROM orders WHERE order_id = ?");
  if (!query.bind(1, order_id).step()) return std::nullopt;
  OrderState state;
  state.order_id = order_id;
  state.placed_at = query.text(0);
  state.customer = query.text(1);
  state.email = query.text(2);
  state.total = query.number(3);
  state.currency = query.text(4);
  state.mail_id = query.text(5);
  state.invoice_number = query.text(6);
  return state;
}

}  // namespace shop
