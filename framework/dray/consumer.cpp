#include "dray/consumer.hpp"

#include <algorithm>
#include <exception>

#include "dray/trace.hpp"

namespace dray {
namespace {

constexpr auto kBusyWait = std::chrono::seconds(1);  // until the spool may have room again

class DirectConsumer final : public Consumer {
 public:
  DirectConsumer(std::unique_ptr<RawHandler> handler, Log log)
      : handler_(std::move(handler)), log_(std::move(log)) {}

  Outcome consume(const ConsumerJob& job, const std::stop_token& stop) override {
    return handle_job(*handler_, job, stop, log_);
  }

 private:
  std::unique_ptr<RawHandler> handler_;
  Log log_;
};

bool has_header(const Headers& headers, std::string_view name) {
  return std::any_of(headers.begin(), headers.end(),
                     [name](const auto& each) { return each.first == name; });
}

// A follow-up that carries no trace of its own gets that of its message.
void pass_trace_on(Outcome& outcome, const Delivery& delivery) {
  const auto text = delivery.header(kTraceParent);
  const auto trace = text ? parse_traceparent(*text) : std::nullopt;
  if (!trace) return;
  const auto state = delivery.header(kTraceState);
  for (auto& draft : outcome.follow_ups()) {
    auto& headers = draft.options.headers;
    const auto has_room = [&headers] { return headers.size() < MessageLimits{}.headers_max; };
    if (has_header(headers, kTraceParent) || !has_room()) continue;
    headers.emplace_back(kTraceParent, traceparent_text(child_of(*trace)));
    if (state && !has_header(headers, kTraceState) && has_room()) {
      headers.emplace_back(kTraceState, *state);
    }
  }
}

Outcome call(RawHandler& handler, std::string_view body, Delivery& delivery) {
  try {
    return handler.handle_body(body, delivery);
  } catch (const StepUndecided& undecided) {
    return reject(undecided.what());
  } catch (const StepBusy& busy) {
    return snooze(kBusyWait, busy.what());
  } catch (const std::exception& exception) {
    try {
      return handler.on_exception(exception);
    } catch (const std::exception& second) {
      return retry(std::string("exception: ") + second.what());
    }
  }
}

}  // namespace

std::optional<std::string> Delivery::header(std::string_view name) const {
  if (envelope_.headers.empty()) return std::nullopt;
  auto all = headers();
  if (!all.ok()) return std::nullopt;
  for (auto& [key, value] : *all) {
    if (key == name) return std::move(value);
  }
  return std::nullopt;
}

const Log& Delivery::log() const {
  if (own_log_) return *own_log_;
  own_log_ = log_.with({{"message", id().text()},
                        {"group", std::string(group_)},
                        {"attempt", std::to_string(attempt_)}});
  const auto text = header(kTraceParent);
  const auto trace = text ? parse_traceparent(*text) : std::nullopt;
  if (trace) own_log_ = own_log_->with({{"trace", trace->trace_id}});
  return *own_log_;
}

Outcome handle_job(RawHandler& handler, const ConsumerJob& job, const std::stop_token& stop,
                   const Log& log) {
  EnvelopeView envelope;
  if (!read_envelope(job.envelope, envelope)) {
    return reject("envelope: " + parse_envelope(job.envelope).error().text());
  }
  Delivery delivery(envelope, job.group, job.sequence, job.attempt, stop, log, job.journal);
  try {
    auto outcome = call(handler, envelope.body, delivery);
    if (!delivery.undecided().empty() && outcome.kind() != Outcome::Kind::kDone) {
      return reject(delivery.undecided());
    }
    if (!outcome.follow_ups().empty() && !envelope.headers.empty()) {
      pass_trace_on(outcome, delivery);
    }
    return outcome;
  } catch (...) {
    return retry("exception that is no std::exception");
  }
}

std::unique_ptr<Consumer> consumer_of(std::unique_ptr<RawHandler> handler, Log log) {
  return std::make_unique<DirectConsumer>(std::move(handler), std::move(log));
}

}  // namespace dray
