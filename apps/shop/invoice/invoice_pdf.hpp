// The invoice as a PDF, in any script that fontconfig has a font for. By Pango and Cairo.
//
// The same order, number and date give the same bytes.
//
// Threading: any thread. Failure: throws std::runtime_error with Cairo's words.
#pragma once

#include <string>

#include "shop/messages.hpp"

namespace shop {

struct Seller {
  std::string name = "The Dray Shop";
  std::string address = "1 Wharf Lane, Port Example";
  std::string tax_id = "XX 123 456 789";
};

// `date`: "2026-11-22". Text in UTF-8.
std::string render_invoice(const OrderPlaced& order, const std::string& number,
                           const std::string& date, const Seller& seller);

}  // namespace shop
