// Handler, Source and DRAY_PLUGIN: what users write.
//
//   class SendConfirmation final : public dray::Handler<OrderPlaced> {
//    public:
//     explicit SendConfirmation(const dray::Settings& settings);
//     dray::Outcome handle(const OrderPlaced& order, dray::Delivery& delivery) override;
//   };
//   DRAY_PLUGIN(dray::handler<SendConfirmation>("send-confirmation"))
//
// Threading: one handler object per handler thread; handle() is never called twice at once on one
// object. A source's run() has a thread of its own.
// Failure: an exception out of handle() is a failed attempt (retry) with its text as the reason; a
// body that does not fit the message type is rejected at once, with the field's name. An
// exception out of a constructor stops the app from starting (exit 2).
// Ownership: the plugin border owns the objects; a Delivery is valid during handle() only.
#pragma once

#include <chrono>
#include <memory>
#include <optional>
#include <stop_token>
#include <string>
#include <utility>
#include <vector>

#include "dray/export.hpp"
#include "dray/fields.hpp"
#include "dray/log.hpp"
#include "dray/message.hpp"
#include "dray/plugin_abi.h"
#include "dray/publisher.hpp"
#include "dray/settings.hpp"

namespace dray {

// How a delivery ends. Made by done(), retry(), snooze(), reject().
class [[nodiscard]] Outcome {
 public:
  enum class Kind { kDone = 0, kRetry = 1, kSnooze = 2, kReject = 3 };

  // A message to the spool of origin, in the commit of this settlement: either both are durable
  // or none. At most 64. REQUIRES: kind() == kDone.
  template <typename T>
  Outcome publish(std::string topic, const T& body, PublishOptions options = {}) && {
    DRAY_ASSERT(kind_ == Kind::kDone);
    follow_ups_.push_back(Draft{std::move(topic), to_bytes(body), std::move(options)});
    return std::move(*this);
  }

  // For hosts that carry an outcome from elsewhere.
  static Outcome make(Kind kind, std::string reason, std::optional<Milliseconds> delay,
                      std::vector<Draft> follow_ups) {
    Outcome outcome(kind, std::move(reason), delay);
    outcome.follow_ups_ = std::move(follow_ups);
    return outcome;
  }

  Kind kind() const { return kind_; }
  const std::string& reason() const { return reason_; }
  // Snooze: how long. Retry: the handler's wish, or nothing for the policy's back-off.
  std::optional<Milliseconds> delay() const { return delay_; }
  const std::vector<Draft>& follow_ups() const { return follow_ups_; }

 private:
  friend Outcome done();
  friend Outcome retry(std::string reason, std::optional<Milliseconds> after);
  friend Outcome snooze(Milliseconds delay, std::string reason);
  friend Outcome reject(std::string reason);
  Outcome(Kind kind, std::string reason, std::optional<Milliseconds> delay)
      : kind_(kind), reason_(std::move(reason)), delay_(delay) {}

  Kind kind_;
  std::string reason_;
  std::optional<Milliseconds> delay_;
  std::vector<Draft> follow_ups_;
};

// Handled: settled for this group.
inline Outcome done() {
  return {Outcome::Kind::kDone, "", std::nullopt};
}
// A failed attempt: again after `after`, or by the policy's back-off.
inline Outcome retry(std::string reason, std::optional<Milliseconds> after = std::nullopt) {
  return {Outcome::Kind::kRetry, std::move(reason), after};
}
// Not now, and no fault: again after `delay`, without counting an attempt.
inline Outcome snooze(Milliseconds delay, std::string reason = "") {
  return {Outcome::Kind::kSnooze, std::move(reason), delay};
}
// Will never work: a dead letter at once.
inline Outcome reject(std::string reason) {
  return {Outcome::Kind::kReject, std::move(reason), std::nullopt};
}

// One grant of one message, as a handler sees it.
class Delivery {
 public:
  Delivery(const EnvelopeView& envelope, std::string_view group, Sequence sequence,
           std::uint32_t attempt, std::stop_token stop, Log log)
      : envelope_(envelope),
        group_(group),
        sequence_(sequence),
        attempt_(attempt),
        stop_(std::move(stop)),
        log_(std::move(log)) {}

  const Uuid& id() const { return envelope_.id; }
  std::string_view topic() const { return envelope_.topic; }
  std::string_view key() const { return envelope_.key; }
  Priority priority() const { return envelope_.priority; }
  std::string_view body() const { return envelope_.body; }
  UtcTime published_at() const { return envelope_.published_at; }
  std::string_view group() const { return group_; }
  Sequence sequence() const { return sequence_; }
  // 1 for the first.
  std::uint32_t attempt() const { return attempt_; }
  Result<Headers> headers() const { return parse_headers(envelope_.headers); }
  // Requested on time-out and when the process drains by its deadline.
  const std::stop_token& stop_token() const { return stop_; }
  // Lines carry message, group and attempt.
  const Log& log() const { return log_; }

 private:
  const EnvelopeView& envelope_;
  std::string_view group_;
  Sequence sequence_;
  std::uint32_t attempt_;
  std::stop_token stop_;
  Log log_;
};

// Base of all handlers; bodies as bytes. Most users want Handler<T>.
class DRAY_API RawHandler {
 public:
  virtual ~RawHandler() = default;
  virtual Outcome handle_body(std::string_view body, Delivery& delivery) = 0;
};

template <typename T>
class Handler : public RawHandler {
 public:
  virtual Outcome handle(const T& message, Delivery& delivery) = 0;

  Outcome handle_body(std::string_view body, Delivery& delivery) final {
    auto message = from_bytes<T>(body);
    if (!message.ok()) return reject("body: " + message.error().text());
    return handle(*message, delivery);
  }
};

class DRAY_API Source {
 public:
  virtual ~Source() = default;
  // Returns when stop is requested.
  virtual void run(Publisher& publisher, std::stop_token stop) = 0;
};

// What DRAY_PLUGIN lists.
struct HandlerRegistration {
  std::string name;
  void* (*create)(const dray_host* host, dray_bytes settings, const dray_error_sink* error);
};
struct SourceRegistration {
  std::string name;
  void* (*create)(const dray_host* host, dray_bytes settings, const dray_error_sink* error);
};

namespace plugin_glue {

template <typename Base, typename T>
std::unique_ptr<Base> make([[maybe_unused]] const Settings& settings,
                           [[maybe_unused]] const Log& log) {
  if constexpr (std::is_constructible_v<T, const Settings&, const Log&>) {
    return std::make_unique<T>(settings, log);
  } else if constexpr (std::is_constructible_v<T, const Settings&>) {
    return std::make_unique<T>(settings);
  } else {
    return std::make_unique<T>();
  }
}

// Exceptions stop here; each returns nullptr after error->fail.
DRAY_API void* create_handler(const dray_host* host, dray_bytes settings,
                              const dray_error_sink* error,
                              std::unique_ptr<RawHandler> (*make)(const Settings&, const Log&));
DRAY_API void* create_source(const dray_host* host, dray_bytes settings,
                             const dray_error_sink* error,
                             std::unique_ptr<Source> (*make)(const Settings&, const Log&));

template <typename T>
void* create_handler_of(const dray_host* host, dray_bytes settings, const dray_error_sink* error) {
  return create_handler(host, settings, error, &make<RawHandler, T>);
}
template <typename T>
void* create_source_of(const dray_host* host, dray_bytes settings, const dray_error_sink* error) {
  return create_source(host, settings, error, &make<Source, T>);
}

// The C tables of a plugin; built once, on first use, by the entry function.
class DRAY_API Plugin {
 public:
  template <typename... Registrations>
  explicit Plugin(Registrations... registrations) {
    (add(std::move(registrations)), ...);
  }
  // Valid for as long as this object.
  const dray_plugin* table();

 private:
  void add(HandlerRegistration registration) { handlers_.push_back(std::move(registration)); }
  void add(SourceRegistration registration) { sources_.push_back(std::move(registration)); }

  std::vector<HandlerRegistration> handlers_;
  std::vector<SourceRegistration> sources_;
  std::vector<dray_handler> handler_table_;
  std::vector<dray_source> source_table_;
  dray_plugin table_{};
};

}  // namespace plugin_glue

// The name that config says. T is constructed with (const Settings&, const Log&),
// (const Settings&) or nothing.
template <typename T>
HandlerRegistration handler(std::string name) {
  return {std::move(name), &plugin_glue::create_handler_of<T>};
}
template <typename T>
SourceRegistration source(std::string name) {
  return {std::move(name), &plugin_glue::create_source_of<T>};
}

}  // namespace dray

// Once per plugin, at namespace scope: DRAY_PLUGIN(dray::handler<A>("a"), dray::source<B>("b"))
#define DRAY_PLUGIN(...)                                                    \
  extern "C" DRAY_PLUGIN_EXPORT const dray_plugin* dray_plugin_entry_v1();  \
  extern "C" DRAY_PLUGIN_EXPORT const dray_plugin* dray_plugin_entry_v1() { \
    static ::dray::plugin_glue::Plugin plugin{__VA_ARGS__};                 \
    return plugin.table();                                                  \
  }
