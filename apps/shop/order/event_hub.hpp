// EventHub: tells open pages what becomes of their order.
//
// What is sent comes from the order view (durable); progress messages only say when to look, and
// the hub looks once a second anyway, because they may be lost.
//
// Threading: subscribe from any thread; one thread of its own reads progress and the view.
// Failure: a database error is logged and tried again a second later. Ownership: owns its thread,
// its Pull and its view; streams are shared with the server.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "dray/log.hpp"
#include "dray/pipeline.hpp"
#include "http/server.hpp"
#include "shop/messages.hpp"

namespace shop {

class EventHub {
 public:
  // The JSON of an order's state as the page reads it; empty if it is not known. Called on the
  // hub's thread only.
  using Look = std::function<std::string(const std::string& order_id)>;

  EventHub(const std::string& progress_endpoint, Look look, dray::Log log);
  ~EventHub();
  EventHub(const EventHub&) = delete;
  EventHub& operator=(const EventHub&) = delete;

  void subscribe(const std::string& order_id, std::shared_ptr<dray::http::EventStream> stream);

 private:
  struct Subscription {
    std::shared_ptr<dray::http::EventStream> stream;
    std::string last;  // state sent last
  };
  void run();
  void on_progress(const Progress& progress);
  void send_states(const std::string* only);

  Look look_;
  dray::Log log_;
  dray::Pull<Progress> pull_;  // used by the thread

  std::mutex mutex_;
  std::multimap<std::string, Subscription> subscriptions_;  // guarded by mutex_
  bool stopping_ = false;                                   // guarded by mutex_
  std::thread thread_;
};

}  // namespace shop
