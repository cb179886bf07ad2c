#include "dray/plugin/draft_codec.hpp"

#include <cstddef>

namespace dray::plugin_glue {
namespace {

std::int64_t to_ms(const std::optional<UtcTime>& time) {
  return time ? time->time_since_epoch().count() : 0;
}

std::optional<UtcTime> from_ms(std::int64_t ms) {
  if (ms == 0) return std::nullopt;
  return UtcTime(Milliseconds(ms));
}

}  // namespace

dray_draft to_abi(const Draft& draft, const std::string& encoded_headers) {
  dray_draft abi{};
  abi.size = sizeof(abi);
  abi.priority = static_cast<std::uint32_t>(draft.options.priority);
  abi.topic = span(draft.topic);
  abi.key = span(draft.options.key);
  abi.body = span(draft.body);
  abi.headers = span(encoded_headers);
  abi.dedup = span(draft.options.dedup);
  abi.deliver_at_ms = to_ms(draft.options.deliver_at);
  abi.expires_at_ms = to_ms(draft.options.expires_at);
  if (const auto durability = draft.options.durability) {
    abi.durability = *durability == Durability::kDisk ? 2 : 1;
  }
  return abi;
}

Result<Draft> from_abi(const dray_draft& abi) {
  // Of version 1.0.
  constexpr std::size_t kDraftSize = offsetof(dray_draft, reserved) + sizeof(std::uint32_t);
  if (abi.size < kDraftSize || abi.priority > 2 || abi.durability > 2) {
    return Error{ErrorCode::kInvalid, "malformed draft from a plugin", "", 0};
  }
  Draft draft;
  draft.topic = view(abi.topic);
  draft.body = view(abi.body);
  draft.options.key = view(abi.key);
  draft.options.dedup = view(abi.dedup);
  draft.options.priority = static_cast<Priority>(abi.priority);
  draft.options.deliver_at = from_ms(abi.deliver_at_ms);
  draft.options.expires_at = from_ms(abi.expires_at_ms);
  if (abi.durability != 0) {
    draft.options.durability = abi.durability == 2 ? Durability::kDisk : Durability::kOs;
  }
  auto headers = parse_headers(view(abi.headers));
  if (!headers.ok()) return headers.error();
  draft.options.headers = std::move(*headers);
  return draft;
}

dray_stop StopOffer::abi() {
  return dray_stop{this,
                   [](void* self) -> std::int32_t {
                     return static_cast<StopOffer*>(self)->token_.stop_requested() ? 1 : 0;
                   },
                   [](void* self, void (*callback)(void*), void* user) {
                     auto* offer = static_cast<StopOffer*>(self);
                     offer->callback_.emplace(offer->token_, Call{callback, user});
                   },
                   [](void* self) { static_cast<StopOffer*>(self)->callback_.reset(); }};
}

StopSubscription::StopSubscription(dray_stop stop, std::stop_source& source) : stop_(stop) {
  stop_.subscribe(
      stop_.context, [](void* user) { static_cast<std::stop_source*>(user)->request_stop(); },
      &source);
}

StopSubscription::~StopSubscription() {
  stop_.unsubscribe(stop_.context);
}

}  // namespace dray::plugin_glue
