// The shop's handlers as they are shipped, behind the plugin border, with the test kit.
#include <catch2/catch.hpp>
#include <filesystem>
#include <fstream>
#include <set>
#include <sstream>

#include "dray/testing.hpp"
#include "shop/messages.hpp"
#include "support/temporary_folder.hpp"

using namespace dray;
using namespace shop;
using testing::Counts;
using testing::CrashPoint;
using testing::Harness;

namespace {

const std::string kPlugins = DRAY_PLUGINS "/";

Settings settings(std::map<std::string, Settings::Scalar> values) {
  return Settings(std::move(values));
}

OrderPlaced order(const std::string& id) {
  OrderPlaced out;
  out.order_id = id;
  out.customer = "Ada";
  out.email = "ada@example.org";
  out.currency = "EUR";
  out.tax_permille = 190;
  out.lines = {{"rope", "Rope", 2, 2450}};
  return out;
}

std::vector<std::string> files_in(const std::string& folder, const std::string& suffix = "") {
  std::vector<std::string> out;
  for (const auto& each : std::filesystem::directory_iterator(folder)) {
    if (each.path().string().ends_with(suffix)) out.push_back(each.path().string());
  }
  return out;
}

std::string message_id_of(const std::string& file) {
  std::ifstream in(file);
  for (std::string line; std::getline(in, line);) {
    if (line.starts_with("Message-Id: ") || line.starts_with("Message-ID: ")) return line;
  }
  return "none";
}

}  // namespace

TEST_CASE("a mailer that dies around its sending: once, or as the config chooses") {
  struct Row {
    CrashPoint point;
    const char* if_unknown;
    std::size_t mails;
    bool asks;
  };
  const auto row = GENERATE(
      Row{CrashPoint::kAfterHandler, "again", 1, false},
      Row{CrashPoint::kStepDone, "again", 1, false}, Row{CrashPoint::kStepRan, "again", 2, false},
      Row{CrashPoint::kStepRan, "ask", 1, true}, Row{CrashPoint::kStepBegun, "ask", 0, true});
  CAPTURE(static_cast<int>(row.point), row.if_unknown);
  dray::test::TemporaryFolder folder;
  Harness queue;
  queue.plugin("email", {kOrderPlaced}, kPlugins + "libemail.so", "send-confirmation",
               settings({{"deliver", "maildir:" + folder.path() + "/mail"},
                         {"if_unknown", std::string(row.if_unknown)}}));
  queue.observe({kMailSent});
  queue.crash_next("email", row.point);
  REQUIRE(queue.publish(kOrderPlaced, order("1")).ok());
  CHECK(queue.settle());
  CHECK(queue.counts("email") == (row.asks ? Counts{.dead = 1} : Counts{.done = 1}));
  const auto mails = files_in(folder.path() + "/mail/new");
  CHECK(mails.size() == row.mails);
  std::set<std::string> ids;  // a mail that was sent twice is recognised as one
  for (const auto& file : mails) ids.insert(message_id_of(file));
  CHECK(ids.size() == std::min<std::size_t>(row.mails, 1));
  CHECK(ids.count("none") == 0);
  CHECK(queue.published<MailSent>(kMailSent).size() == (row.asks ? 0 : 1));
}

TEST_CASE("invoices have one number per order and no gap, wherever the worker or the disk fails") {
  const auto point =
      GENERATE(CrashPoint::kBeforeHandler, CrashPoint::kAfterHandler, CrashPoint::kAfterResult);
  dray::test::TemporaryFolder folder;
  Harness queue;
  queue.plugin("invoice", {kOrderPlaced}, kPlugins + "libinvoice.so", "make-invoice",
               settings({{"folder", folder.path()}}));
  queue.observe({kInvoiceMade});
  for (int i = 0; i < 3; ++i) {
    REQUIRE(queue.publish(kOrderPlaced, order(std::to_string(i))).ok());
    queue.crash_next("invoice", point);
    queue.run();
    queue.cut_power();
  }
  CHECK(queue.settle());
  CHECK(queue.counts("invoice") == Counts{.done = 3});
  std::set<std::string> numbers;
  for (const auto& each : queue.published<InvoiceMade>(kInvoiceMade)) numbers.insert(each.number);
  CHECK(numbers.size() == 3);
  CHECK(files_in(folder.path(), ".pdf").size() == 3);
  CHECK(numbers.begin()->substr(numbers.begin()->size() - 1) == "1");
  CHECK(numbers.rbegin()->substr(numbers.rbegin()->size() - 1) == "3");
}

TEST_CASE("the order view takes orders and the follow-ups of the others, also twice") {
  dray::test::TemporaryFolder folder;
  Harness queue;
  queue.plugin("view", {kOrderPlaced, kMailSent, kInvoiceMade}, kPlugins + "liborder.so",
               "order-view", settings({{"database", folder.path() + "/orders.sqlite"}}));
  queue.plugin("email", {kOrderPlaced}, kPlugins + "libemail.so", "send-confirmation",
               settings({{"deliver", "maildir:" + folder.path() + "/mail"}}));
  queue.crash_next("view", CrashPoint::kAfterHandler);
  REQUIRE(queue.publish(kOrderPlaced, order("1")).ok());
  CHECK(queue.settle());
  CHECK(queue.counts("view") == Counts{.done = 2});
  CHECK(queue.counts("email") == Counts{.done = 1});
}

TEST_CASE("a setting that the handler does not know is said") {
  Harness queue;
  CHECK_THROWS_WITH(queue.plugin("invoice", {kOrderPlaced}, kPlugins + "libinvoice.so",
                                 "make-invoice", settings({{"foldr", std::string("x")}})),
                    Catch::Contains("'folder'"));
  CHECK_THROWS_WITH(queue.plugin("x", {kOrderPlaced}, kPlugins + "libinvoice.so", "nothing"),
                    Catch::Contains("it has make-invoice"));
}
