// The order view: what is known of each order, as a projection of the spool's messages. In SQLite.
//
// Messages may come in any order and more than once; each writes only its own columns.
//
// Threading: one object, one thread; many objects on one file. Failure: DatabaseError.
#pragma once

#include <optional>
#include <string>

#include "shop/database.hpp"
#include "shop/messages.hpp"

namespace shop {

struct OrderState {
  std::string order_id;
  std::string placed_at;  // empty: the order itself was not projected yet
  std::string customer;
  std::string email;
  std::int64_t total = 0;
  std::string currency;
  std::string mail_id;         // empty: waits
  std::string invoice_number;  // empty: waits
};

class OrderView {
 public:
  explicit OrderView(const std::string& path);
  void placed(const OrderPlaced& order, const std::string& at);
  void mail_sent(const MailSent& mail);
  void invoice_made(const InvoiceMade& invoice);
  std::optional<OrderState> find(const std::string& order_id);

 private:
  Database database_;
};

}  // namespace shop
