#include "dray/spool_json.hpp"

#include <prometheus/metric_family.h>
#include <prometheus/text_serializer.h>

#include "dray/clock.hpp"
#include "dray/codec.hpp"

namespace dray::app {

namespace {

nlohmann::json limits_json(const GroupLimits& limits) {
  nlohmann::json out{{"ordered", limits.ordered}};
  if (limits.concurrency != 0) out["concurrency"] = limits.concurrency;
  if (limits.rate) {
    out["rate_per_second"] = limits.rate->per_second;
    out["burst"] = limits.rate->burst;
  }
  return out;
}

// A body that cannot be decoded may be just why the letter is dead. Document refuses deep nesting,
// on which the JSON library would recurse without end.
nlohmann::json body_json(const std::string& body) {
  if (!Document::parse(body).ok()) return nullptr;
  auto value = nlohmann::json::from_msgpack(body, true, false);
  return value.is_discarded() ? nlohmann::json(nullptr) : value;
}

std::string text_of_ms(std::int64_t ms) {
  return utc_text(UtcTime(Milliseconds(ms)));
}

nlohmann::json steps_json(const std::vector<StepLife>& steps) {
  nlohmann::json out = nlohmann::json::array();
  for (const auto& step : steps) {
    out.push_back({{"step", step.step}, {"done", step.done}, {"at", text_of_ms(step.at_ms)}});
    if (step.done) out.back()["value"] = body_json(step.value);
  }
  return out;
}

}  // namespace

nlohmann::json to_json(const StoredMessage& message) {
  static constexpr const char* kPriorityNames[] = {"high", "normal", "low"};
  nlohmann::json headers = nlohmann::json::object();
  for (const auto& [name, value] : message.headers) headers[name] = value;
  nlohmann::json out{{"sequence", message.sequence},
                     {"id", message.id},
                     {"topic", message.topic},
                     {"priority", kPriorityNames[static_cast<std::size_t>(message.priority)]},
                     {"published_at", text_of_ms(message.published_at_ms)},
                     {"headers", headers},
                     {"body", body_json(message.body)}};
  if (!message.key.empty()) out["key"] = message.key;
  if (!message.dedup.empty()) out["dedup"] = message.dedup;
  if (message.deliver_at_ms) out["deliver_at"] = text_of_ms(*message.deliver_at_ms);
  if (message.expires_at_ms) out["expires_at"] = text_of_ms(*message.expires_at_ms);
  return out;
}

nlohmann::json to_json(const PendingMessage& message) {
  auto out = to_json(static_cast<const StoredMessage&>(message));
  out["state"] = message.state;
  out["why"] = message.why;
  out["attempts"] = message.attempts;
  return out;
}

nlohmann::json to_json(const MessageLife& life) {
  nlohmann::json groups = nlohmann::json::array();
  for (const auto& group : life.groups) {
    nlohmann::json events = nlohmann::json::array();
    for (const auto& event : group.events) {
      nlohmann::json each{{"what", event.what}};
      if (event.at_ms != 0) each["at"] = text_of_ms(event.at_ms);
      if (!event.worker.empty()) each["worker"] = event.worker;
      if (!event.reason.empty()) each["reason"] = event.reason;
      if (event.number != 0) each["delivery"] = event.number;
      if (event.attempts != 0) each["attempts"] = event.attempts;
      if (event.took_ms) each["took_ms"] = *event.took_ms;
      events.push_back(std::move(each));
    }
    nlohmann::json out{{"group", group.group}, {"state", group.state}, {"events", events}};
    out["steps"] = steps_json(group.steps);
    if (!group.why.empty()) out["why"] = group.why;
    groups.push_back(std::move(out));
  }
  auto out = to_json(static_cast<const StoredMessage&>(life));
  out["durable"] = life.durable;
  out["groups"] = std::move(groups);
  return out;
}

nlohmann::json to_json(const SpoolStatus& status) {
  nlohmann::json groups = nlohmann::json::array();
  for (const auto& group : status.groups) {
    groups.push_back({{"name", group.name},
                      {"topics", group.topics},
                      {"attached", group.attached},
                      {"waiting_for_sessions", group.gated},
                      {"accepted", group.accepted},
                      {"pending", group.pending},
                      {"done", group.done},
                      {"dead", group.dead},
                      {"expired", group.expired},
                      {"dropped", group.dropped},
                      {"damaged", group.damaged},
                      {"in_flight", group.in_flight},
                      {"delayed", group.delayed},
                      {"held", group.held},
                      {"in_line", group.in_line},
                      {"paused", group.paused},
                      {"limits", limits_json(group.limits)},
                      {"workers", group.workers}});
    if (group.oldest_ms) groups.back()["oldest_at"] = text_of_ms(*group.oldest_ms);
  }
  nlohmann::json workers = nlohmann::json::array();
  for (const auto& worker : status.workers) {
    workers.push_back({{"session", worker.session},
                       {"worker", worker.worker},
                       {"group", worker.group},
                       {"outstanding", worker.outstanding},
                       {"window", worker.window},
                       {"connected", worker.connected}});
  }
  return {{"id", status.id},
          {"directory", status.directory},
          {"endpoint", status.endpoint},
          {"epoch", status.epoch},
          {"durability", durability_name(status.durability)},
          {"size_bytes", status.size_bytes},
          {"max_size_bytes", status.max_size_bytes},
          {"ready_bytes", status.ready_bytes},
          {"stale_results", status.stale_results},
          {"damaged_ranges", status.damaged_ranges},
          {"segments", status.segments},
          {"held_max", status.held_max},
          {"expiry_paused", status.expiry_paused},
          {"detached_groups", status.detached_groups},
          {"groups", groups},
          {"workers", workers}};
}

nlohmann::json to_json(const DeadLetter& letter) {
  nlohmann::json history = nlohmann::json::array();
  for (const auto& attempt : letter.history) {
    history.push_back({{"at", attempt.at},
                       {"worker", attempt.worker},
                       {"reason", attempt.reason},
                       {"attempts", attempt.attempts}});
  }
  return {{"sequence", letter.sequence},
          {"id", letter.id},
          {"topic", letter.topic},
          {"key", letter.key},
          {"cause", letter.cause},
          {"reason", letter.reason},
          {"worker", letter.worker},
          {"died_at", letter.died_at},
          {"attempts", letter.attempts},
          {"body", body_json(letter.body)},
          {"signature", error_signature(letter.reason)},
          {"steps", steps_json(letter.steps)},
          {"history", history}};
}

std::string to_prometheus(const SpoolStatus& status) {
  using prometheus::ClientMetric;
  using prometheus::MetricFamily;
  using prometheus::MetricType;
  std::vector<MetricFamily> families;
  const auto family = [&](const char* name, const char* help) -> MetricFamily& {
    families.push_back(MetricFamily{name, help, MetricType::Gauge, {}});
    return families.back();
  };
  const auto gauge = [&](MetricFamily& into, std::vector<ClientMetric::Label> labels,
                         std::uint64_t value) {
    ClientMetric metric;
    labels.push_back({"directory", status.directory});
    metric.label = std::move(labels);
    metric.gauge.value = static_cast<double>(value);
    into.metric.push_back(std::move(metric));
  };
  auto& messages = family("dray_group_messages", "Messages of a group by state");
  for (const auto& group : status.groups) {
    const std::pair<const char*, std::uint64_t> states[] = {
        {"pending", group.pending}, {"done", group.done},       {"dead", group.dead},
        {"expired", group.expired}, {"dropped", group.dropped}, {"damaged", group.damaged}};
    for (const auto& [state, value] : states) {
      gauge(messages, {{"group", group.name}, {"state", state}}, value);
    }
  }
  auto& in_flight = family("dray_group_in_flight", "Deliveries that workers hold unanswered");
  for (const auto& group : status.groups)
    gauge(in_flight, {{"group", group.name}}, group.in_flight);
  auto& delayed = family("dray_group_delayed", "Messages that are retried, snoozed or not yet due");
  for (const auto& group : status.groups) gauge(delayed, {{"group", group.name}}, group.delayed);
  auto& oldest = family("dray_group_oldest_pending_seconds",
                        "Age of the oldest message that is pending, and not to be delivered later");
  const auto now_ms = SystemClock().utc().time_since_epoch().count();
  for (const auto& group : status.groups) {
    const auto age_ms = group.oldest_ms ? std::max<std::int64_t>(now_ms - *group.oldest_ms, 0) : 0;
    gauge(oldest, {{"group", group.name}}, static_cast<std::uint64_t>(age_ms / 1'000));
  }
  auto& in_line = family("dray_group_in_line", "Messages that have the turn of their key, or wait");
  for (const auto& group : status.groups) gauge(in_line, {{"group", group.name}}, group.in_line);
  auto& paused = family("dray_group_paused", "1 while the group is paused");
  for (const auto& group : status.groups)
    gauge(paused, {{"group", group.name}}, group.paused ? 1 : 0);
  auto& workers = family("dray_group_workers", "Worker sessions");
  for (const auto& group : status.groups) gauge(workers, {{"group", group.name}}, group.workers);
  gauge(family("dray_spool_size_bytes", "Bytes of segments"), {}, status.size_bytes);
  gauge(family("dray_spool_max_size_bytes", "Limit of size_bytes"), {}, status.max_size_bytes);
  gauge(family("dray_spool_damaged_ranges", "Ranges of acknowledged records that are unreadable"),
        {}, status.damaged_ranges);
  gauge(family("dray_stale_results", "Results refused because the delivery was no longer granted"),
        {}, status.stale_results);
  return prometheus::TextSerializer().Serialize(families);
}

}  // namespace dray::app
