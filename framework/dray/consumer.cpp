#include "dray/consumer.hpp"

#include <exception>

namespace dray {
namespace {

class DirectConsumer final : public Consumer {
 public:
  DirectConsumer(std::unique_ptr<RawHandler> handler, Log log)
      : handler_(std::move(handler)), log_(std::move(log)) {}

  Outcome consume(const ConsumerJob& job, const std::stop_token& stop) override {
    auto envelope = parse_envelope(job.envelope);
    if (!envelope.ok()) return reject("envelope: " + envelope.error().text());
    Delivery delivery(*envelope, job.group, job.sequence, job.attempt, stop, log_);
    try {
      return handler_->handle_body(envelope->body, delivery);
    } catch (const std::exception& exception) {
      return retry(std::string("exception: ") + exception.what());
    } catch (...) {
      return retry("exception that is no std::exception");
    }
  }

 private:
  std::unique_ptr<RawHandler> handler_;
  Log log_;
};

}  // namespace

std::unique_ptr<Consumer> consumer_of(std::unique_ptr<RawHandler> handler, Log log) {
  return std::make_unique<DirectConsumer>(std::move(handler), std::move(log));
}

}  // namespace dray
