#include "shop/order/order_front.hpp"

#include <filesystem>
#include <future>
#include <nlohmann/json.hpp>

#include "shop/order/order_request.hpp"
#include "shop/order/page.hpp"

namespace shop {
namespace {

// The media type alone counts; its case and its parameters do not.
bool is_json(std::string_view content_type) {
  constexpr std::string_view kJson = "application/json";
  const auto end = content_type.find_first_of("; \t");
  const auto type = content_type.substr(0, end);
  return std::equal(type.begin(), type.end(), kJson.begin(), kJson.end(), [](char a, char b) {
    return std::tolower(static_cast<unsigned char>(a)) == b;
  });
}

using dray::http::problem;
using dray::http::Request;
using dray::http::Responder;
using dray::http::Response;
using nlohmann::json;

constexpr auto kInvoiceTimeout = dray::Milliseconds(5'000);

std::string dump(const json& value) {
  return value.dump(-1, ' ', false, json::error_handler_t::replace);
}

std::string catalogue_json() {
  json list = json::array();
  for (const auto& product : catalogue()) {
    list.push_back({{"id", product.id},
                    {"name", product.name},
                    {"description", product.description},
                    {"unit_price", product.unit_price}});
  }
  return dump({{"currency", kCurrency}, {"tax_permille", kTaxPermille}, {"products", list}});
}

std::string state_json(const OrderState& state) {
  json mail{{"state", state.mail_id.empty() ? "waiting" : "sent"}};
  if (!state.mail_id.empty()) mail["message_id"] = state.mail_id;
  json invoice{{"state", state.invoice_number.empty() ? "waiting" : "ready"}};
  if (!state.invoice_number.empty()) {
    invoice["number"] = state.invoice_number;
    invoice["url"] = "/orders/" + state.order_id + "/invoice.pdf";
  }
  return dump({{"order_id", state.order_id},
               {"placed_at", state.placed_at},
               {"customer", state.customer},
               {"email", state.email},
               {"total", state.total},
               {"currency", state.currency},
               {"mail", mail},
               {"invoice", invoice}});
}

Response later(unsigned status, const std::string& title, const std::string& detail,
               const char* seconds) {
  auto response = problem(status, title, detail);
  response.headers.emplace_back("Retry-After", seconds);
  return response;
}

Response closing() {
  return later(503, "Service Unavailable", "the shop is closing", "1");
}

Response refused(const dray::Error& error) {
  switch (error.code) {
    case dray::ErrorCode::kConflict:
      return problem(422, "Unprocessable Content",
                     "this Idempotency-Key was used for another order");
    case dray::ErrorCode::kFull:
      return later(503, "Service Unavailable", "the shop takes no orders just now", "5");
    default:
      return later(503, "Service Unavailable",
                   "it is not known whether the order was stored; repeat it with the same "
                   "Idempotency-Key",
                   "1");
  }
}

// "/orders/ID/rest" -> ID, rest. An id that cannot be one gives an empty ID.
std::pair<std::string, std::string> split_order_path(const std::string& path) {
  const std::string tail = path.substr(std::string("/orders/").size());
  const auto slash = tail.find('/');
  const std::string id = tail.substr(0, slash);
  const bool good = id.size() == 19 &&
                    id.find_first_not_of("0123456789ABCDEFGHJKMNPQRSTVWXYZ-") == std::string::npos;
  return {good ? id : "", slash == std::string::npos ? "" : tail.substr(slash + 1)};
}

}  // namespace

void OrderFront::Recent::add(const OrderState& state) {
  const std::lock_guard lock(mutex_);
  if (!states_.emplace(state.order_id, state).second) return;
  order_.push_back(state.order_id);
  if (order_.size() <= kMax) return;
  states_.erase(order_.front());
  order_.pop_front();
}

std::optional<OrderState> OrderFront::Recent::find(const std::string& order_id) const {
  const std::lock_guard lock(mutex_);
  const auto found = states_.find(order_id);
  if (found == states_.end()) return std::nullopt;
  return found->second;
}

bool OrderFront::Pending::begin() {
  const std::lock_guard lock(mutex_);
  if (closed_) return false;
  ++count_;
  return true;
}
void OrderFront::Pending::end() {
  const std::lock_guard lock(mutex_);
  if (--count_ == 0) none_.notify_all();
}
void OrderFront::Pending::close() {
  std::unique_lock lock(mutex_);
  closed_ = true;
  none_.wait(lock, [this] { return count_ == 0; });
}

OrderFront::OrderFront(const dray::Settings& settings, const dray::Log& log)
    : listen_(settings.text("listen", "127.0.0.1:8080")),
      database_(settings.text("database")),
      progress_(settings.text("progress")),
      invoices_(settings.text("invoices")),
      log_(log) {}

void OrderFront::run(dray::Publisher& publisher, std::stop_token stop) {
  const auto folder = std::filesystem::path(database_).parent_path();
  if (!folder.empty()) std::filesystem::create_directories(folder);
  view_ = std::make_unique<OrderView>(database_);
  hub_view_ = std::make_unique<OrderView>(database_);
  invoice_client_ = std::make_unique<dray::Client<InvoiceRequest, InvoiceFile>>(invoices_);
  hub_ = std::make_unique<EventHub>(
      progress_,
      [this](const std::string& order_id) {
        const auto state = find(*hub_view_, order_id);
        return state ? state_json(*state) : std::string();
      },
      log_);
  auto started = dray::http::Server::start(
      listen_, dray::http::Limits{},
      [this, &publisher](const Request& request, const Responder& responder) {
        route(publisher, request, responder);
      },
      log_);
  if (!started.ok()) throw std::runtime_error(started.error().text());
  server_ = std::move(*started);
  log_.info("the shop is open", {{"address", "http://" + server_->address() + "/"}});
  std::promise<void> stopped;
  {
    const std::stop_callback on_stop(stop, [&stopped] { stopped.set_value(); });
    stopped.get_future().wait();
  }
  pending_.close();
  server_->stop();  // no request uses the hub and the client from here on
  hub_.reset();
  invoice_client_.reset();
}

void OrderFront::route(dray::Publisher& publisher, const Request& request,
                       const Responder& responder) {
  const bool get = request.method == "GET";
  if (get && request.path == "/") {
    return responder.reply({200,
                            "text/html; charset=utf-8",
                            kPage,
                            {{"Content-Security-Policy",
                              "default-src 'self'; style-src 'unsafe-inline'; script-src "
                              "'unsafe-inline'; img-src data:"}}});
  }
  if (get && request.path == "/catalogue") {
    return responder.reply({200, "application/json", catalogue_json()});
  }
  if (request.path == "/orders") {
    if (request.method == "POST") return place(publisher, request, responder);
    auto response = problem(405, "Method Not Allowed", "POST an order here");
    response.headers.emplace_back("Allow", "POST");
    return responder.reply(std::move(response));
  }
  if (get && request.path.rfind("/orders/", 0) == 0) {
    const auto [id, rest] = split_order_path(request.path);
    if (!id.empty() && rest.empty()) return show(id, responder);
    if (!id.empty() && rest == "events") return hub_->subscribe(id, responder.stream());
    if (!id.empty() && rest == "invoice.pdf") return send_invoice(id, responder);
  }
  responder.reply(problem(404, "Not Found", "there is nothing at " + request.path));
}

void OrderFront::place(dray::Publisher& publisher, const Request& request,
                       const Responder& responder) {
  const auto type = request.headers.find("content-type");
  if (type == request.headers.end() || !is_json(type->second)) {
    return responder.reply(
        problem(415, "Unsupported Media Type", "send the order as application/json"));
  }
  std::string key;
  if (const auto header = request.headers.find("idempotency-key");
      header != request.headers.end()) {
    key = header->second;
    if (const auto fault = idempotency_key_fault(key); !fault.empty()) {
      return responder.reply(problem(400, "Bad Request", "Idempotency-Key: " + fault));
    }
  }
  auto order = parse_order(request.body);
  if (!order.ok()) {
    return responder.reply(problem(422, "Unprocessable Content", order.error().text()));
  }
  order->order_id = order_id_for(key);
  OrderState state;
  state.order_id = order->order_id;
  state.placed_at = dray::utc_text(dray::SystemClock().utc());
  state.customer = order->customer;
  state.email = order->email;
  state.total = order->total();
  state.currency = order->currency;
  dray::PublishOptions options;
  options.dedup = "order/" + order->order_id;
  if (!pending_.begin()) return responder.reply(closing());
  publisher.publish_async(
      kOrderPlaced, *order, options,
      [this, responder, state = std::move(state)](const dray::Result<dray::Receipt>& receipt) {
        if (!receipt.ok()) {
          responder.reply(refused(receipt.error()));
          return pending_.end();
        }
        recent_.add(state);
        Response response{202, "application/json",
                          dump({{"order_id", state.order_id},
                                {"message_id", receipt->id.text()},
                                {"sequence", receipt->sequence},
                                {"durability", dray::durability_name(receipt->durability)},
                                {"duplicate", receipt->duplicate},
                                {"total", state.total},
                                {"currency", state.currency}})};
        response.headers.emplace_back("Location", "/orders/" + state.order_id);
        responder.reply(std::move(response));
        pending_.end();
      });
}

std::optional<OrderState> OrderFront::find(OrderView& view, const std::string& order_id) const {
  auto state = view.find(order_id);
  if (state && !state->placed_at.empty()) return state;
  auto recent = recent_.find(order_id);
  if (recent && state) {
    recent->mail_id = state->mail_id;
    recent->invoice_number = state->invoice_number;
  }
  return recent ? recent : state;
}

void OrderFront::show(const std::string& order_id, const Responder& responder) {
  const auto state = find(*view_, order_id);
  if (!state) return responder.reply(problem(404, "Not Found", "there is no order " + order_id));
  responder.reply({200, "application/json", state_json(*state)});
}

void OrderFront::send_invoice(const std::string& order_id, const Responder& responder) {
  if (!find(*view_, order_id)) {
    return responder.reply(problem(404, "Not Found", "there is no order " + order_id));
  }
  if (!pending_.begin()) return responder.reply(closing());
  invoice_client_->call_async(
      {order_id}, kInvoiceTimeout, [this, responder](const dray::Result<InvoiceFile>& file) {
        if (file.ok()) {
          responder.reply(
              {200,
               "application/pdf",
               file->pdf.bytes,
               {{"Content-Disposition", "inline; filename=\"" + file->number + ".pdf\""}}});
        } else if (file.error().code == dray::ErrorCode::kNotFound) {
          responder.reply(later(404, "Not Found", "the invoice is not ready yet", "2"));
        } else {
          responder.reply(
              later(503, "Service Unavailable", "the invoice app does not answer just now", "2"));
        }
        pending_.end();
      });
}

}  // namespace shop
