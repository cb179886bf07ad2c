// The order app: the shop's HTTP side (source), and the order view (handler).
#include <filesystem>

#include "shop/order/order_front.hpp"

namespace {

using namespace shop;

// Takes all of the shop's topics, so it reads bodies by topic.
class ProjectOrders final : public dray::RawHandler {
 public:
  explicit ProjectOrders(const dray::Settings& settings)
      : view_(prepared(settings.text("database"))) {
    const std::string progress = settings.text("progress", "");
    if (!progress.empty()) progress_.emplace(progress);
  }

  dray::Outcome handle_body(std::string_view body, dray::Delivery& delivery) override {
    if (delivery.topic() == kOrderPlaced) {
      return project<OrderPlaced>(body, [&](const OrderPlaced& order) {
        view_.placed(order, dray::utc_text(delivery.published_at()));
      });
    }
    if (delivery.topic() == kMailSent) {
      return project<MailSent>(body, [&](const MailSent& mail) { view_.mail_sent(mail); });
    }
    if (delivery.topic() == kInvoiceMade) {
      return project<InvoiceMade>(body,
                                  [&](const InvoiceMade& invoice) { view_.invoice_made(invoice); });
    }
    return dray::reject("no projection for topic " + std::string(delivery.topic()));
  }

 private:
  static std::string prepared(const std::string& database) {
    const auto folder = std::filesystem::path(database).parent_path();
    if (!folder.empty()) std::filesystem::create_directories(folder);
    return database;
  }

  template <typename T, typename Write>
  dray::Outcome project(std::string_view body, Write write) {
    auto message = dray::from_bytes<T>(body);
    if (!message.ok()) return dray::reject("body: " + message.error().text());
    write(*message);
    if (progress_) progress_->push({message->order_id, "changed"});
    return dray::done();
  }

  OrderView view_;
  std::optional<dray::Push<Progress>> progress_;
};

}  // namespace

DRAY_PLUGIN(dray::source<OrderFront>("order-front"), dray::handler<ProjectOrders>("order-view"))
