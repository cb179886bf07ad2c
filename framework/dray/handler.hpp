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
// body that does not fit the message type is rejected at once, with the field's name. A
// SettingsError out of a constructor says that the config is wrong (exit 2); after another
// exception the app is started again. Ownership: the plugin border owns the objects; a Delivery is
// valid during handle() only.
#pragma once

#include <chrono>
#include <memory>
#include <optional>
#include <stop_token>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "dray/export.hpp"
#include "dray/fields.hpp"
#include "dray/handler_policy.hpp"
#include "dray/log.hpp"
#include "dray/message.hpp"
#include "dray/middleware.hpp"
#include "dray/outcome.hpp"
#include "dray/plugin_abi.h"
#include "dray/publisher.hpp"
#include "dray/settings.hpp"
#include "dray/step_journal.hpp"

namespace dray {

// One grant of one message, as a handler sees it.
class DRAY_API Delivery {
 public:
  // The envelope, the token and the log outlive it.
  Delivery(const EnvelopeView& envelope, std::string_view group, Sequence sequence,
           std::uint32_t attempt, const std::stop_token& stop, const Log& log,
           StepJournal* journal = nullptr)
      : envelope_(envelope),
        group_(group),
        sequence_(sequence),
        attempt_(attempt),
        stop_(stop),
        log_(log),
        journal_(journal) {}

  Delivery(const EnvelopeView& envelope, std::string_view group, Sequence sequence,
           std::uint32_t attempt, const std::stop_token& stop, Log&& log,
           StepJournal* journal = nullptr) = delete;
  Delivery(const EnvelopeView& envelope, std::string_view group, Sequence sequence,
           std::uint32_t attempt, std::stop_token&& stop, const Log& log,
           StepJournal* journal = nullptr) = delete;

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
  // The first header of this name; nothing if there is none.
  std::optional<std::string> header(std::string_view name) const;
  // Requested on time-out and when the process drains by its deadline.
  const std::stop_token& stop_token() const { return stop_; }
  // Lines carry message, group and attempt, and the trace if there is one. For the handler's
  // own thread; others are given a copy.
  const Log& log() const;

  // Runs `function` as a step of this message for this group: that it begins is durable before it
  // runs, its value before this returns. In a later delivery a step that ended is not run; its
  // value is returned. `function` returns void or what a field of a message may be, at most 4 KiB
  // of it; at most 32 steps of a message, each with a name of its own. All is forgotten when the
  // message is settled; a dead letter keeps it.
  //
  // An exception out of `function` leaves the step unknown, but for StepNotDone; also for the rest
  // of this handling. Throws those, and StepRefused, StepUndecided (see there), std::length_error
  // for a value that is too long, std::logic_error inside another step, and std::runtime_error for
  // a recorded value of another type. Costs two commits of the spool, synced.
  template <typename Function>
  auto once(std::string_view step, IfUnknown if_unknown, Function&& function)
      -> std::invoke_result_t<Function&> {
    using Made = std::invoke_result_t<Function&>;
    if (const auto known = begin_step(step, if_unknown)) {
      if constexpr (std::is_void_v<Made>) {
        return;
      } else {
        auto value = from_bytes<Made>(*known);
        if (!value.ok()) no_such_value(step, value.error());
        return std::move(*value);
      }
    }
    try {
      if constexpr (std::is_void_v<Made>) {
        function();
        end_step(step, "\xc0");  // nil
      } else {
        Made value = function();
        end_step(step, to_bytes(value));
        return value;
      }
    } catch (const StepNotDone&) {
      withdraw_step(step);
      throw;
    } catch (...) {
      in_step_ = false;
      throw;
    }
  }
  // For hosts: why a person must decide; empty if nobody must.
  const std::string& undecided() const { return undecided_; }
  // What the reason of such a dead letter begins with.
  static constexpr std::string_view kNeedsDecision = "needs a decision";

 private:
  std::optional<std::string> begin_step(std::string_view step, IfUnknown if_unknown);
  void end_step(std::string_view step, std::string_view value);
  void withdraw_step(std::string_view step);
  [[noreturn]] static void no_such_value(std::string_view step, const Error& error);
  StepJournal::Reply call_journal(StepCall what, std::string_view step, std::string_view value);

  const EnvelopeView& envelope_;
  std::string_view group_;
  Sequence sequence_;
  std::uint32_t attempt_;
  const std::stop_token& stop_;
  const Log& log_;
  StepJournal* journal_;
  std::string undecided_;
  std::vector<std::string> open_steps_;  // begun in this handling; their ends are not recorded
  bool in_step_ = false;
  mutable std::optional<Log> own_log_;  // made when it is first asked for
};

// Base of all handlers; bodies as bytes. Most users want Handler<T>.
class DRAY_API RawHandler {
 public:
  virtual ~RawHandler() = default;
  virtual Outcome handle_body(std::string_view body, Delivery& delivery) = 0;
  // What an exception out of handle() means. By default a failed attempt.
  virtual Outcome on_exception(const std::exception& exception) {
    return retry(std::string("exception: ") + exception.what());
  }
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
  HandlerPolicy policy;
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

// A handler with its middleware.
template <typename H, typename... Around>
class Wrapped final : public RawHandler {
 public:
  Wrapped(const Settings& settings, const Log& log) : handler_(make<RawHandler, H>(settings, log)) {
    (around_.push_back(make<Middleware, Around>(settings, log)), ...);
  }
  Outcome handle_body(std::string_view body, Delivery& delivery) override {
    return Next(around_, *handler_, body, delivery)();
  }
  Outcome on_exception(const std::exception& exception) override {
    return handler_->on_exception(exception);
  }

 private:
  std::unique_ptr<RawHandler> handler_;
  std::vector<std::unique_ptr<Middleware>> around_;
};

template <typename H, typename... Around>
std::unique_ptr<RawHandler> make_handler(const Settings& settings, const Log& log) {
  if constexpr (sizeof...(Around) == 0) {
    return make<RawHandler, H>(settings, log);
  } else {
    return std::make_unique<Wrapped<H, Around...>>(settings, log);
  }
}

template <typename H, typename... Around>
void* create_handler_of(const dray_host* host, dray_bytes settings, const dray_error_sink* error) {
  return create_handler(host, settings, error, &make_handler<H, Around...>);
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
  std::vector<dray_policy> policies_;
  std::vector<dray_handler> handler_table_;
  std::vector<dray_source> source_table_;
  dray_plugin table_{};
};

}  // namespace plugin_glue

// The name that config says. T is constructed with (const Settings&, const Log&),
// (const Settings&) or nothing; so is its middleware.
template <typename T, typename... Around>
HandlerRegistration handler(std::string name, const HandlerPolicy& policy = {}) {
  return {std::move(name), policy, &plugin_glue::create_handler_of<T, Around...>};
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
