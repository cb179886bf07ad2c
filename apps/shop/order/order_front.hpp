// OrderFront: the shop's HTTP side. POST /orders writes the spool and nothing else.
//
//   GET  /                          the page
//   GET  /catalogue                 products as JSON
//   POST /orders                    202 after the commit; Idempotency-Key: the same order again
//   GET  /orders/{id}               state as JSON, from the order view
//   GET  /orders/{id}/events        server-sent events
//   GET  /orders/{id}/invoice.pdf   from the invoice app, by request/reply
//
// Threading: requests run on the server's thread; receipts on the committer's, replies from the
// invoice app on the client's.
// Failure: 4xx problems name the field; 503 with Retry-After when the spool is full or the answer
// is unknown (the client repeats with its Idempotency-Key).
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>

#include "dray/handler.hpp"
#include "dray/request_reply.hpp"
#include "http/server.hpp"
#include "shop/order/event_hub.hpp"
#include "shop/order/order_view.hpp"

namespace shop {

class OrderFront final : public dray::Source {
 public:
  OrderFront(const dray::Settings& settings, const dray::Log& log);
  void run(dray::Publisher& publisher, std::stop_token stop) override;

 private:
  // Orders accepted by this process that the view may not show yet; bounded, oldest out first.
  class Recent {
   public:
    void add(const OrderState& state);
    std::optional<OrderState> find(const std::string& order_id) const;

   private:
    static constexpr std::size_t kMax = 10'000;
    mutable std::mutex mutex_;
    std::unordered_map<std::string, OrderState> states_;
    std::deque<std::string> order_;
  };
  // Receipts that are on their way to a client.
  class Pending {
   public:
    // False once closed.
    bool begin();
    void end();
    // Lets no more begin, and waits for those that did.
    void close();

   private:
    std::mutex mutex_;
    std::condition_variable none_;
    std::size_t count_ = 0;
    bool closed_ = false;
  };

  void route(dray::Publisher& publisher, const dray::http::Request& request,
             const dray::http::Responder& responder);
  void place(dray::Publisher& publisher, const dray::http::Request& request,
             const dray::http::Responder& responder);
  void show(const std::string& order_id, const dray::http::Responder& responder);
  void send_invoice(const std::string& order_id, const dray::http::Responder& responder);
  std::optional<OrderState> find(OrderView& view, const std::string& order_id) const;

  // First, so destroyed last: a receipt's callback holds a connection until the spool has stopped.
  std::unique_ptr<dray::http::Server> server_;
  std::string listen_;
  std::string database_;
  std::string progress_;
  std::string invoices_;
  dray::Log log_;
  Recent recent_;
  Pending pending_;
  std::unique_ptr<OrderView> view_;      // server's thread
  std::unique_ptr<OrderView> hub_view_;  // hub's thread
  std::unique_ptr<dray::Client<InvoiceRequest, InvoiceFile>> invoice_client_;
  std::unique_ptr<EventHub> hub_;
};

}  // namespace shop
