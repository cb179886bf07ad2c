// The invoice app: makes an invoice for each order (handler), and hands invoices out (source).
#include <filesystem>
#include <fstream>
#include <future>
#include <sstream>

#include "dray/handler.hpp"
#include "dray/pipeline.hpp"
#include "dray/request_reply.hpp"
#include "shop/durable_file.hpp"
#include "shop/invoice/invoice_numbers.hpp"
#include "shop/invoice/invoice_pdf.hpp"

namespace {

using namespace shop;

// Where both halves find numbers and files.
struct Archive {
  explicit Archive(const dray::Settings& settings) : folder(settings.text("folder")) {
    std::filesystem::create_directories(folder);
  }
  std::string folder;

  std::string database() const { return folder + "/numbers.sqlite"; }
  static std::string file_name(const std::string& number) { return number + ".pdf"; }
};

class MakeInvoice final : public dray::Handler<OrderPlaced> {
 public:
  explicit MakeInvoice(const dray::Settings& settings)
      : archive_(settings), numbers_(archive_.database()) {
    seller_.name = settings.text("seller_name", seller_.name);
    seller_.address = settings.text("seller_address", seller_.address);
    seller_.tax_id = settings.text("seller_tax_id", seller_.tax_id);
    (void)settings.text("listen", "");  // read by the desk
    const std::string progress = settings.text("progress", "");
    if (!progress.empty()) progress_.emplace(progress);
  }

  dray::Outcome handle(const OrderPlaced& order, dray::Delivery& delivery) override {
    if (progress_) progress_->push({order.order_id, "invoice-attempt"});
    const auto taken = numbers_.number_of(order.order_id, delivery.id().text());
    if (!taken) {
      return dray::reject("order " + order.order_id +
                          " has its invoice already, for another message: was an "
                          "Idempotency-Key used again for another order?");
    }
    const std::string number = invoice_number_text(*taken);
    const std::string date = dray::utc_text(delivery.published_at()).substr(0, 10);
    const std::string name = Archive::file_name(number);
    write_durably(archive_.folder, "." + name + ".tmp", name,
                  render_invoice(order, number, date, seller_));
    return dray::done().publish(kInvoiceMade, InvoiceMade{order.order_id, number});
  }

 private:
  Archive archive_;
  InvoiceNumbers numbers_;
  Seller seller_;
  std::optional<dray::Push<Progress>> progress_;
};

class InvoiceDesk final : public dray::Source {
 public:
  explicit InvoiceDesk(const dray::Settings& settings)
      : archive_(settings), listen_(settings.text("listen")), numbers_(archive_.database()) {
    for (const auto* key : {"seller_name", "seller_address", "seller_tax_id", "progress"}) {
      (void)settings.text(key, "");  // read by the handler
    }
  }

  void run(dray::Publisher&, std::stop_token stop) override {
    const dray::Service<InvoiceRequest, InvoiceFile> service(
        listen_, [this](const InvoiceRequest& request) { return answer(request); });
    std::promise<void> stopped;
    const std::stop_callback on_stop(stop, [&stopped] { stopped.set_value(); });
    stopped.get_future().wait();
  }

 private:
  dray::Result<InvoiceFile> answer(const InvoiceRequest& request) {
    const dray::Error none{dray::ErrorCode::kNotFound, "this order has no invoice yet", "", 0};
    const auto number = numbers_.find(request.order_id);
    if (!number) return none;
    InvoiceFile file;
    file.number = invoice_number_text(*number);
    std::ifstream in(archive_.folder + "/" + Archive::file_name(file.number), std::ios::binary);
    if (!in) return none;  // numbered, and still being drawn
    std::ostringstream bytes;
    bytes << in.rdbuf();
    file.pdf.bytes = std::move(bytes).str();
    return file;
  }

  Archive archive_;
  std::string listen_;
  InvoiceNumbers numbers_;  // used on the service's thread only
};

}  // namespace

DRAY_PLUGIN(dray::handler<MakeInvoice>("make-invoice"), dray::source<InvoiceDesk>("invoice-desk"))
