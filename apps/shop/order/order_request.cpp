#include "shop/order/order_request.hpp"

#include <algorithm>
#include <boost/uuid/name_generator_sha1.hpp>
#include <boost/uuid/uuid.hpp>
#include <nlohmann/json.hpp>

#include "dray/text.hpp"
#include "dray/uuid.hpp"

namespace shop {
namespace {

using nlohmann::json;

constexpr std::size_t kNameBytesMax = 200;
constexpr std::size_t kEmailBytesMax = 254;  // RFC 5321, section 4.5.3.1.3
constexpr std::size_t kLinesMax = 50;
constexpr std::int64_t kQuantityMax = 1'000;

dray::Error fault(const std::string& path, const std::string& message) {
  return dray::Error{dray::ErrorCode::kInvalid, message, path, 0};
}

dray::Status refuse_unknown(const json& object, const std::string& path,
                            const std::vector<std::string>& known) {
  for (const auto& [key, value] : object.items()) {
    if (std::find(known.begin(), known.end(), key) != known.end()) continue;
    const std::string near = dray::nearest_word(key, known);
    return fault(path.empty() ? key : path + "." + key,
                 "unknown field" + (near.empty() ? "" : "; did you mean '" + near + "'?"));
  }
  return {};
}

bool has_control(std::string_view text) {
  return std::any_of(text.begin(), text.end(),
                     [](char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7F; });
}

dray::Result<std::string> text_field(const json& object, const std::string& key,
                                     const std::string& path, std::size_t bytes_max) {
  const std::string full = path.empty() ? key : path + "." + key;
  if (!object.contains(key)) return fault(full, "missing");
  if (!object[key].is_string()) return fault(full, "must be text");
  auto text = object[key].get<std::string>();
  if (text.empty()) return fault(full, "must not be empty");
  if (text.size() > bytes_max) {
    return fault(full, "must have at most " + std::to_string(bytes_max) + " bytes");
  }
  if (has_control(text)) return fault(full, "must not contain control characters or line breaks");
  return text;
}

// Plain addr-spec: local@domain, printable ASCII, no quoting. What mail servers take without
// SMTPUTF8; whether it exists, only sending shows.
bool is_email(std::string_view text) {
  const auto at = text.find('@');
  if (at == std::string_view::npos || at == 0 || at > 64 ||
      text.find('@', at + 1) != std::string_view::npos) {
    return false;
  }
  const auto domain = text.substr(at + 1);
  if (domain.empty() || domain.front() == '.' || domain.back() == '.' ||
      domain.find("..") != std::string_view::npos) {
    return false;
  }
  return std::all_of(text.begin(), text.end(), [](char c) {
    return c > 0x20 && c < 0x7F &&
           std::string_view("<>()[],;:\\\"").find(c) == std::string_view::npos;
  });
}

dray::Result<OrderLine> parse_line(const json& line, const std::string& path) {
  if (!line.is_object()) return fault(path, "must be an object");
  DRAY_TRY(refuse_unknown(line, path, {"product", "quantity"}));
  const auto id = text_field(line, "product", path, 64);
  if (!id.ok()) return id.error();
  const auto& all = catalogue();
  const auto product =
      std::find_if(all.begin(), all.end(), [&](const Product& each) { return each.id == *id; });
  if (product == all.end()) return fault(path + ".product", "there is no product '" + *id + "'");
  if (!line.contains("quantity")) return fault(path + ".quantity", "missing");
  const auto& quantity = line["quantity"];
  if (!quantity.is_number_integer() || quantity < 1 || quantity > kQuantityMax) {
    return fault(path + ".quantity",
                 "must be an integer from 1 to " + std::to_string(kQuantityMax));
  }
  return OrderLine{product->id, product->name, quantity.get<std::int64_t>(), product->unit_price};
}

}  // namespace

const std::vector<Product>& catalogue() {
  static const std::vector<Product> products{
      {"barrel", "Oak barrel", "For apples, rain, or adventures.", 8'900},
      {"rope", "Hemp rope, 20 m", "Holds what you tie to it.", 2'450},
      {"lantern", "Storm lantern", "Burns on when the lights go out.", 3'990},
      {"crate", "Wooden crate", "Stacks well. Waits patiently.", 1'275},
      {"whistle", "Dockmaster's whistle", "One call, everyone knows.", 690},
      {"cart", "Two-wheeled dray cart", "No middleman between horse and load.", 149'900}};
  return products;
}

dray::Result<OrderPlaced> parse_order(std::string_view body) {
  const auto root = json::parse(body, nullptr, false);
  if (root.is_discarded()) return fault("", "the body is no JSON");
  if (!root.is_object()) return fault("", "the body must be a JSON object");
  DRAY_TRY(refuse_unknown(root, "", {"customer", "lines"}));
  OrderPlaced order;
  order.currency = kCurrency;
  order.tax_permille = kTaxPermille;
  if (!root.contains("customer") || !root["customer"].is_object()) {
    return fault("customer", "must be an object with 'name' and 'email'");
  }
  const auto& customer = root["customer"];
  DRAY_TRY(refuse_unknown(customer, "customer", {"name", "email"}));
  auto name = text_field(customer, "name", "customer", kNameBytesMax);
  if (!name.ok()) return name.error();
  auto email = text_field(customer, "email", "customer", kEmailBytesMax);
  if (!email.ok()) return email.error();
  if (!is_email(*email)) return fault("customer.email", "is no e-mail address");
  order.customer = std::move(*name);
  order.email = std::move(*email);
  if (!root.contains("lines") || !root["lines"].is_array() || root["lines"].empty() ||
      root["lines"].size() > kLinesMax) {
    return fault("lines", "must be a list of 1 to " + std::to_string(kLinesMax) + " lines");
  }
  for (std::size_t i = 0; i < root["lines"].size(); ++i) {
    auto line = parse_line(root["lines"][i], "lines[" + std::to_string(i) + "]");
    if (!line.ok()) return line.error();
    order.lines.push_back(std::move(*line));
  }
  return order;
}

std::string order_id_for(const std::string& idempotency_key) {
  std::array<std::uint8_t, 16> bytes{};
  if (idempotency_key.empty()) {
    dray::random_bytes(bytes);
  } else {
    // RFC 9562, version 5: SHA-1 of a namespace of ours and the key.
    const boost::uuids::uuid space{{0x6b, 0x1f, 0x2a, 0x0e, 0x54, 0x3c, 0x4b, 0x8e, 0x9d, 0x0a,
                                    0x5e, 0x2f, 0x71, 0x33, 0xc4, 0x90}};
    const auto hashed = boost::uuids::name_generator_sha1(space)(idempotency_key);
    std::copy(hashed.begin(), hashed.end(), bytes.begin());
    // Bytes 6 and 8 hold the version; take others for the id.
    std::swap(bytes[6], bytes[12]);
    std::swap(bytes[8], bytes[13]);
  }
  constexpr char kDigits[] = "0123456789ABCDEFGHJKMNPQRSTVWXYZ";
  std::string id;
  unsigned buffer = 0;
  unsigned bits = 0;
  for (std::size_t i = 0; i < 10; ++i) {
    buffer = (buffer << 8) | bytes[i];
    bits += 8;
    while (bits >= 5) {
      bits -= 5;
      if (id.size() == 4 || id.size() == 9 || id.size() == 14) id += '-';
      id += kDigits[(buffer >> bits) & 31];
    }
  }
  return id;
}

std::string idempotency_key_fault(std::string_view key) {
  if (key.empty() || key.size() > 200) return "must have 1 to 200 characters";
  const bool printable =
      std::all_of(key.begin(), key.end(), [](char c) { return c >= 0x20 && c < 0x7F; });
  return printable ? "" : "must be printable ASCII";
}

}  // namespace shop
