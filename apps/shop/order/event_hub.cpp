#include "shop/order/event_hub.hpp"

#include <nlohmann/json.hpp>

namespace shop {
namespace {

constexpr auto kTurn = std::chrono::milliseconds(100);
constexpr auto kLookEvery = std::chrono::seconds(1);

}  // namespace

EventHub::EventHub(const std::string& progress_endpoint, Look look, dray::Log log)
    : look_(std::move(look)), log_(std::move(log)), pull_(progress_endpoint) {
  thread_ = std::thread([this] { run(); });
}

EventHub::~EventHub() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  thread_.join();
  for (auto& [id, subscription] : subscriptions_) subscription.stream->close();
}

void EventHub::subscribe(const std::string& order_id,
                         std::shared_ptr<dray::http::EventStream> stream) {
  const std::lock_guard lock(mutex_);
  subscriptions_.emplace(order_id, Subscription{std::move(stream), ""});
}

void EventHub::run() {
  const dray::SystemClock clock;
  auto looked = clock.steady() - kLookEvery;
  for (;;) {
    const auto progress = pull_.pull(kTurn);
    {
      const std::lock_guard lock(mutex_);
      if (stopping_) return;
    }
    try {
      if (progress) on_progress(*progress);
      if (clock.steady() - looked < kLookEvery) continue;
      looked = clock.steady();
      send_states(nullptr);
    } catch (const std::exception& failure) {
      log_.warning(std::string("the order view cannot be read: ") + failure.what());
      looked = clock.steady();
    }
  }
}

void EventHub::on_progress(const Progress& progress) {
  if (progress.what == "changed") return send_states(&progress.order_id);
  const std::string data = nlohmann::json{{"what", progress.what}}.dump();
  const std::lock_guard lock(mutex_);
  const auto [first, last] = subscriptions_.equal_range(progress.order_id);
  for (auto each = first; each != last; ++each) each->second.stream->send("progress", data);
}

void EventHub::send_states(const std::string* only) {
  const std::lock_guard lock(mutex_);
  auto each = only == nullptr ? subscriptions_.begin() : subscriptions_.lower_bound(*only);
  const auto last = only == nullptr ? subscriptions_.end() : subscriptions_.upper_bound(*only);
  while (each != last) {
    auto& subscription = each->second;
    if (!subscription.stream->open()) {
      each = subscriptions_.erase(each);
      continue;
    }
    const std::string state = look_(each->first);
    if (!state.empty() && state != subscription.last) {
      subscription.stream->send("state", state);
      subscription.last = state;
    }
    ++each;
  }
}

}  // namespace shop
