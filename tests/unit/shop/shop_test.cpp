#include <fstream>
#include <set>
#include <thread>

#include "shop/email/mail_message.hpp"
#include "shop/email/mail_transport.hpp"
#include "shop/invoice/invoice_numbers.hpp"
#include "shop/order/order_request.hpp"
#include "shop/order/order_view.hpp"
#include "support/temporary_folder.hpp"

using namespace shop;

namespace {

const char* const kGood =
    R"({"customer":{"name":"Jane","email":"jane@example.org"},"lines":[{"product":"rope","quantity":2}]})";

std::string fault_of(std::string body, const std::string& from, const std::string& to) {
  const auto at = body.find(from);
  REQUIRE(at != std::string::npos);
  body.replace(at, from.size(), to);
  const auto order = parse_order(body);
  return order.ok() ? "accepted" : order.error().text();
}

}  // namespace

TEST_CASE("an order is read, priced from the catalogue, and totalled in minor units") {
  const auto order = parse_order(kGood);
  REQUIRE(order.ok());
  CHECK(order->net() == 4900);
  CHECK(order->tax() == 931);
  CHECK(order->total() == 5831);
  CHECK(money_text(5, "EUR") == "0.05 EUR");
}

TEST_CASE("wrong orders are refused by field") {
  CHECK(fault_of(kGood, "{\"customer\"", "{customer") == "the body is no JSON");
  CHECK(fault_of(kGood, kGood, "[]") == "the body must be a JSON object");
  CHECK(fault_of(kGood, "\"rope\"", "\"unicorn\"") ==
        "lines[0].product: there is no product 'unicorn'");
  for (const auto* quantity :
       {"0", "-1", "1000000000", "1.5", "\"2\"", "null", "99999999999999999999"}) {
    INFO(quantity);
    CHECK(fault_of(kGood, "\"quantity\":2", std::string("\"quantity\":") + quantity) ==
          "lines[0].quantity: must be an integer from 1 to 1000");
  }
  CHECK(fault_of(kGood, "Jane", "Ja\\u0007ne").find("control characters") != std::string::npos);
  CHECK(fault_of(kGood, "jane@", "jane\\r\\nBcc: x@").find("control characters") !=
        std::string::npos);
  for (const auto* email :
       {"jane", "@example.org", "a@b@c", "a b@c.d", "a@.d", "a@d..e", "<a@b.c>"}) {
    INFO(email);
    CHECK(fault_of(kGood, "jane@example.org", email) == "customer.email: is no e-mail address");
  }
  CHECK(fault_of(kGood, "Jane", "") == "customer.name: must not be empty");
  CHECK(fault_of(kGood, "Jane", std::string(201, 'x')).find("at most 200") != std::string::npos);
  CHECK(fault_of(kGood, "[{\"product\":\"rope\",\"quantity\":2}]", "[]").find("1 to 50 lines") !=
        std::string::npos);
  CHECK(fault_of(kGood, "\"lines\"", "\"line\"") == "line: unknown field; did you mean 'lines'?");
}

TEST_CASE("the same key is the same order id, another key another, no key a new one") {
  CHECK(order_id_for("a") == order_id_for("a"));
  CHECK(order_id_for("a") != order_id_for("b"));
  CHECK(order_id_for("").size() == 19);
  std::set<std::string> ids;
  for (int i = 0; i < 20'000; ++i) ids.insert(order_id_for("key " + std::to_string(i)));
  for (int i = 0; i < 1'000; ++i) ids.insert(order_id_for(""));
  CHECK(ids.size() == 21'000);
  CHECK(idempotency_key_fault("").size() > 0);
  CHECK(idempotency_key_fault("a\nb").size() > 0);
}

TEST_CASE("invoice numbers have no gap and one per order, also from many threads") {
  dray::test::TemporaryFolder folder;
  const std::string path = folder / "numbers.sqlite";
  { const InvoiceNumbers made(path); }
  std::vector<std::thread> threads;
  std::vector<std::set<std::int64_t>> seen(4);
  for (std::size_t t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      InvoiceNumbers numbers(path);
      for (int i = 0; i < 50; ++i) {  // each order is asked for by two threads
        seen[t].insert(
            *numbers.number_of("order " + std::to_string(t / 2) + "/" + std::to_string(i), "m"));
      }
    });
  }
  for (auto& thread : threads) thread.join();
  CHECK(seen[0] == seen[1]);
  CHECK(seen[2] == seen[3]);
  std::set<std::int64_t> all(seen[0]);
  all.insert(seen[2].begin(), seen[2].end());
  CHECK(all.size() == 100);
  CHECK(*all.rbegin() == 100);
  CHECK(invoice_number_text(17) == "INV-000017");
  InvoiceNumbers again(path);  // what was issued is not changed for another message
  CHECK(again.number_of("order 0/0", "m") == again.find("order 0/0"));
  CHECK(!again.number_of("order 0/0", "another").has_value());
}

TEST_CASE("the order view takes its messages in any order and more than once") {
  dray::test::TemporaryFolder folder;
  OrderView view(folder / "view.sqlite");
  view.mail_sent({"o1", "m1"});
  CHECK(view.find("o1")->placed_at.empty());
  for (int i = 0; i < 2; ++i) {
    auto order = *parse_order(kGood);
    order.order_id = "o1";
    view.placed(order, "2026-11-22T10:00:00.000Z");
    view.invoice_made({"o1", "INV-000001"});
  }
  CHECK(view.find("o1")->mail_id == "m1");
  CHECK(view.find("o1")->total == 5831);
  CHECK(view.find("o1")->invoice_number == "INV-000001");
  CHECK(!view.find("o2"));
}

TEST_CASE("a mail has both parts, encoded headers and CRLF, and no header can be injected") {
  initialise_mail();
  auto order = *parse_order(kGood);
  order.order_id = "O-1";
  order.customer = "Łukasz 山田";
  const auto mail = confirmation_mail(order, {"Shop", "shop@example.org"}, "id@x", 0);
  const auto bytes = render_mail(mail);
  CHECK(bytes.find("Message-Id: <id@x>\r\n") != std::string::npos);
  CHECK(bytes.find("multipart/alternative") != std::string::npos);
  CHECK(bytes.find("=?UTF-8?") != std::string::npos);
  CHECK(bytes.find("Date: Thu, 01 Jan 1970 00:00:00 +0000\r\n") != std::string::npos);
  for (std::size_t at = bytes.find('\n'); at != std::string::npos; at = bytes.find('\n', at + 1)) {
    REQUIRE(bytes[at - 1] == '\r');
  }
  auto injected = mail;
  injected.to.name = "x\r\nBcc: y@z";
  CHECK_THROWS_WITH(render_mail(injected), Catch::Contains("control character"));
}

TEST_CASE("a delivery address that is none is refused in words") {
  CHECK_THROWS_WITH(make_mail_transport("ftp://x", {}, false), Catch::Contains("maildir:PATH"));
  CHECK_THROWS_WITH(make_mail_transport("maildir:", {}, false), Catch::Contains("maildir:PATH"));
}
