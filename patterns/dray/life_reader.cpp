#include "dray/life_reader.hpp"

#include <algorithm>

namespace dray {
namespace {

constexpr std::size_t kEventsMax = 1'000;  // of a group

const char* settlement_name(spool::Settlement settlement) {
  switch (settlement) {
    case spool::Settlement::kDone:
      return "done";
    case spool::Settlement::kExpired:
      return "expired";
    case spool::Settlement::kDropped:
      return "dropped";
    case spool::Settlement::kDamaged:
      break;
  }
  return "damaged";
}

}  // namespace

void LifeReader::add(spool::GroupId group, LifeEvent event) {
  auto& list = events_[group];
  if (list.size() >= kEventsMax) list.erase(list.begin());
  // The delivery that it answers is the last one; records of settlements name no worker.
  if (event.what != "delivered") {
    const auto delivery = std::find_if(
        list.rbegin(), list.rend(), [](const LifeEvent& each) { return each.what == "delivered"; });
    if (delivery != list.rend() && delivery->at_ms != 0 && event.at_ms >= delivery->at_ms &&
        (event.what == "done" || event.what == "retry" || event.what == "dead")) {
      event.took_ms = event.at_ms - delivery->at_ms;
      if (event.worker.empty()) event.worker = delivery->worker;
    }
  }
  list.push_back(std::move(event));
}

void LifeReader::on_delivery(const spool::DeliveryRecord& delivery) {
  if (!delivery.sequences.contains(sequence_)) return;
  LifeEvent event;
  event.what = "delivered";
  event.at_ms = delivery.at_ms;
  event.number = delivery.number;
  const auto name = workers_.find(std::string(delivery.session.view()));
  event.worker = name != workers_.end() ? name->second : "session " + delivery.session.text();
  add(delivery.group, std::move(event));
}

void LifeReader::on_copy(const spool::CopyRecord& copy) {
  if (copy.sequence != sequence_) return;
  for (const auto& history : copy.histories) {
    if (history.replayed) {
      LifeEvent event;
      event.what = "replayed";
      add(history.group, std::move(event));
    }
    // What the records before it said, if they are gone: newest first there.
    if (!events_[history.group].empty()) continue;
    for (auto each = history.attempts.rbegin(); each != history.attempts.rend(); ++each) {
      LifeEvent event;
      event.at_ms = each->at_ms;
      event.what = each->cause.empty() ? "retry" : "dead";
      event.worker = each->worker;
      event.reason = each->reason;
      event.attempts = each->attempts;
      add(history.group, std::move(event));
    }
  }
}

void LifeReader::take(const spool::Record& record) {
  using spool::RecordType;
  const auto attempt = [&](auto& from, const char* what) {
    if (from.sequence != sequence_) return;
    LifeEvent event;
    event.at_ms = from.at_ms;
    event.what = what;
    event.worker = from.worker;
    event.reason = from.reason;
    event.number = from.number;
    event.attempts = from.attempts;
    add(from.group, std::move(event));
  };
  switch (record.header.type) {
    case RecordType::kSession:
      if (auto session = from_bytes<spool::SessionRecord>(record.payload); session.ok()) {
        workers_[session->session.bytes] = session->worker;
      }
      return;
    case RecordType::kDelivery:
      if (auto delivery = spool::decode_delivery(record.payload); delivery.ok()) {
        on_delivery(*delivery);
      }
      return;
    case RecordType::kRetry:
      if (auto retry = from_bytes<spool::RetryRecord>(record.payload); retry.ok()) {
        attempt(*retry, "retry");
      }
      return;
    case RecordType::kDead:
      if (auto dead = from_bytes<spool::DeadRecord>(record.payload); dead.ok()) {
        attempt(*dead, "dead");
      }
      return;
    case RecordType::kSettlement:
      if (auto settled = spool::decode_settlement(record.payload);
          settled.ok() && settled->sequences.contains(sequence_)) {
        LifeEvent event;
        event.at_ms = settled->at_ms;
        event.what = settlement_name(settled->settlement);
        add(settled->group, std::move(event));
      }
      return;
    case RecordType::kStep:
      if (auto step = from_bytes<spool::StepRecord>(record.payload);
          step.ok() && step->sequence == sequence_) {
        LifeEvent event;
        event.at_ms = step->at_ms;
        event.what = "step " + step->step +
                     (step->what == StepCall::kBegin  ? " began"
                      : step->what == StepCall::kDone ? " done"
                                                      : " took no effect");
        add(step->group, std::move(event));
      }
      return;
    case RecordType::kRevive:
      if (auto revived = spool::decode_revive(record.payload);
          revived.ok() && revived->sequences.contains(sequence_)) {
        LifeEvent event;
        event.what = "another chance";
        add(revived->group, std::move(event));
      }
      return;
    case RecordType::kCopy:
      if (auto copy = from_bytes<spool::CopyRecord>(record.payload); copy.ok()) on_copy(*copy);
      return;
    default:
      return;
  }
}

std::vector<LifeEvent> LifeReader::events(spool::GroupId group) const {
  const auto found = events_.find(group);
  return found == events_.end() ? std::vector<LifeEvent>() : found->second;
}

}  // namespace dray
