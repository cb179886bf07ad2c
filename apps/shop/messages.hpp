// What the shop's apps say to each other.
//
// Money is in minor units (cents) of `currency`; prices are net, tax in permille of net.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "dray/fields.hpp"

namespace shop {

inline constexpr const char* kOrderPlaced = "order.placed";
inline constexpr const char* kMailSent = "mail.sent";
inline constexpr const char* kInvoiceMade = "invoice.made";

struct OrderLine {
  std::string product;
  std::string name;
  std::int64_t quantity = 0;
  std::int64_t unit_price = 0;
  DRAY_FIELDS(product, name, quantity, unit_price)
};

// Topic order.placed
struct OrderPlaced {
  std::string order_id;
  std::string customer;
  std::string email;
  std::string currency;
  std::int64_t tax_permille = 0;
  std::vector<OrderLine> lines;
  DRAY_FIELDS(order_id, customer, email, currency, tax_permille, lines)

  std::int64_t net() const {
    std::int64_t sum = 0;
    for (const auto& line : lines) sum += line.quantity * line.unit_price;
    return sum;
  }
  // Rounded half up, once, over the whole order.
  std::int64_t tax() const { return (net() * tax_permille + 500) / 1000; }
  std::int64_t total() const { return net() + tax(); }
};

// Topic mail.sent
struct MailSent {
  std::string order_id;
  std::string mail_id;  // the Message-ID
  DRAY_FIELDS(order_id, mail_id)
};

// Topic invoice.made
struct InvoiceMade {
  std::string order_id;
  std::string number;
  DRAY_FIELDS(order_id, number)
};

// Push/pull: what happens just now; lossy by design.
struct Progress {
  std::string order_id;
  std::string what;  // "mail-attempt", "invoice-attempt", "changed"
  DRAY_FIELDS(order_id, what)
};

// Request/reply: the order app asks the invoice app.
struct InvoiceRequest {
  std::string order_id;
  DRAY_FIELDS(order_id)
};
struct InvoiceFile {
  std::string number;
  dray::Binary pdf;
  DRAY_FIELDS(number, pdf)
};

// "12.50 EUR"
inline std::string money_text(std::int64_t minor, const std::string& currency) {
  const std::string cents = std::to_string(minor % 100);
  return std::to_string(minor / 100) + "." + (cents.size() < 2 ? "0" : "") + cents + " " + currency;
}

}  // namespace shop
