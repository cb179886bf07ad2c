#include "dray/spool_json.hpp"

#include <prometheus/metric_family.h>
#include <prometheus/text_serializer.h>

#include "dray/codec.hpp"

namespace dray::app {

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
                      {"workers", group.workers}});
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
  // A body that cannot be decoded may be just why the letter is dead.
  // Document refuses deep nesting, on which the JSON library would recurse without end.
  nlohmann::json body = nullptr;
  if (Document::parse(letter.body).ok()) {
    body = nlohmann::json::from_msgpack(letter.body, true, false);
    if (body.is_discarded()) body = nullptr;
  }
  return {{"sequence", letter.sequence}, {"id", letter.id},
          {"topic", letter.topic},       {"key", letter.key},
          {"cause", letter.cause},       {"reason", letter.reason},
          {"worker", letter.worker},     {"died_at", letter.died_at},
          {"attempts", letter.attempts}, {"body", body},
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
