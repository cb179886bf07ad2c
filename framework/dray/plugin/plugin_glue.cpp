// The plugin's side of the border: turns C++ handlers and sources into C tables.
#include <algorithm>
#include <cstddef>
#include <cstring>
#include <exception>

#include "dray/consumer.hpp"
#include "dray/plugin/draft_codec.hpp"

namespace dray::plugin_glue {
namespace {

Log log_of(const dray_host* host) {
  dray_host copy{};  // an older launcher's is shorter
  std::memcpy(&copy, host, std::min<std::size_t>(host->size, sizeof(copy)));
  return Log(
      [copy](LogLevel level, std::string_view line) {
        copy.log(copy.context, static_cast<std::int32_t>(level), span(line));
      },
      LogLevel::kDebug);
}

void fail(const dray_error_sink* error, const std::string& message) {
  error->fail(error->context, span(message));
}

struct HostedHandler {
  std::unique_ptr<RawHandler> handler;
  Log log;
  std::stop_source stop;  // reused until requested: an allocation per message saved
};

struct HostedSource {
  std::unique_ptr<Source> source;
};

template <typename Hosted, typename Make>
void* create(const dray_host* host, dray_bytes settings_bytes, const dray_error_sink* error,
             Make make_hosted) {
  try {
    auto settings = Settings::decode(view(settings_bytes));
    if (!settings.ok()) {
      fail(error, DRAY_SETTING_FAULT "s: " + settings.error().text());
      return nullptr;
    }
    std::unique_ptr<Hosted> hosted = make_hosted(*settings, log_of(host));
    if (const auto left = settings->unread(); !left.empty()) {
      fail(error, DRAY_SETTING_FAULT "s: unknown setting '" + left.front() + "'");
      return nullptr;
    }
    return hosted.release();
  } catch (const SettingsError& fault) {
    const std::string text = fault.what();
    fail(error, text.starts_with(DRAY_SETTING_FAULT) ? text : DRAY_SETTING_FAULT "s: " + text);
  } catch (const std::exception& exception) {
    const std::string text = exception.what();  // it must not pass for a fault of the settings
    fail(error, text.starts_with(DRAY_SETTING_FAULT) ? "exception: " + text : text);
  } catch (...) {
    fail(error, "an exception that is no std::exception");
  }
  return nullptr;
}

void settle(const dray_outcome_sink* sink, const Outcome& outcome) {
  for (const auto& draft : outcome.follow_ups()) {
    const std::string headers = encode_headers(draft.options.headers);
    const dray_draft abi = to_abi(draft, headers);
    sink->follow_up(sink->context, &abi);
  }
  sink->settle(sink->context, static_cast<std::int32_t>(outcome.kind()), span(outcome.reason()),
               outcome.delay() ? outcome.delay()->count() : -1);
}

// The host's journal of steps.
class BorderJournal final : public StepJournal {
 public:
  // REQUIRES: kept_by(delivery).
  explicit BorderJournal(const dray_delivery& delivery) : delivery_(delivery) {}
  // A launcher of ABI 1.0 has none.
  static bool kept_by(const dray_delivery& delivery) {
    constexpr std::size_t kNeeded = offsetof(dray_delivery, step) + sizeof(delivery.step);
    return delivery.size >= kNeeded && delivery.step != nullptr;
  }

  Reply call(StepCall what, std::string_view step, std::string_view value) override {
    Reply reply;
    const dray_step_sink sink{
        &reply, [](void* context, std::int32_t answer, dray_bytes given) {
          auto& out = *static_cast<Reply*>(context);
          const bool known = answer >= DRAY_STEP_RECORDED && answer <= DRAY_STEP_BUSY;
          out.answer = known ? static_cast<StepAnswer>(answer) : StepAnswer::kRefused;
          out.value = view(given);
        }};
    delivery_.step(delivery_.journal, static_cast<std::int32_t>(what), span(step), span(value),
                   &sink);
    return reply;
  }

 private:
  const dray_delivery& delivery_;
};

Outcome run_handler(HostedHandler& hosted, const dray_delivery& abi) {
  if (hosted.stop.stop_requested()) hosted.stop = std::stop_source();
  const StopSubscription subscription(abi.stop, hosted.stop);
  std::optional<BorderJournal> journal;
  if (BorderJournal::kept_by(abi)) journal.emplace(abi);
  return handle_job(*hosted.handler,
                    {view(abi.envelope), view(abi.group), abi.sequence, abi.attempt,
                     journal ? &*journal : nullptr},
                    hosted.stop.get_token(), hosted.log);
}

dray_policy policy_abi(const HandlerPolicy& policy) {
  dray_policy abi{};
  abi.size = sizeof(abi);
  // A 0 that was said is none that can be; the launcher refuses it.
  const auto count = [](const std::optional<std::uint32_t>& said) -> std::uint32_t {
    return !said ? 0 : *said == 0 ? UINT32_MAX : *said;
  };
  const auto time = [](const std::optional<Milliseconds>& said) -> std::int64_t {
    return !said ? 0 : said->count() == 0 ? -1 : said->count();
  };
  abi.threads = count(policy.threads);
  abi.max_attempts = count(policy.max_attempts);
  abi.has_retry_jitter = policy.retry_jitter ? 1 : 0;
  abi.retry_jitter = policy.retry_jitter.value_or(0);
  abi.timeout_ms = time(policy.timeout);
  abi.retry_initial_ms = time(policy.retry_initial);
  abi.retry_max_ms = time(policy.retry_max);
  return abi;
}

void handle(void* self, const dray_delivery* delivery, const dray_outcome_sink* sink) {
  settle(sink, run_handler(*static_cast<HostedHandler*>(self), *delivery));
}

// The host's publisher as a dray::Publisher.
class BorderPublisher final : public Publisher {
 public:
  explicit BorderPublisher(const dray_publisher& publisher) : publisher_(publisher) {}

  void publish_draft(Draft draft, ReceiptCallback done) override {
    const std::string headers = encode_headers(draft.options.headers);
    const dray_draft abi = to_abi(draft, headers);
    auto* user = new ReceiptCallback(std::move(done));  // deleted by on_receipt
    publisher_.publish(publisher_.context, &abi, &on_receipt, user);
  }

 private:
  static void on_receipt(void* user, const dray_receipt* receipt) {
    const std::unique_ptr<ReceiptCallback> done(static_cast<ReceiptCallback*>(user));
    (*done)(to_result(*receipt));
  }

  static Result<Receipt> to_result(const dray_receipt& abi) {
    if (abi.error.data != nullptr) {
      return Error{error_code_of(view(abi.code)), std::string(view(abi.error)), "", 0};
    }
    Receipt receipt;
    receipt.id = Uuid::from_bytes(view(abi.message_id)).value_or(Uuid{});
    receipt.sequence = abi.sequence;
    receipt.durability = abi.durability == 1 ? Durability::kDisk : Durability::kOs;
    receipt.duplicate = abi.duplicate != 0;
    return receipt;
  }

  dray_publisher publisher_;
};

void run_source(void* self, const dray_publisher* publisher, dray_stop stop,
                const dray_error_sink* error) {
  try {
    BorderPublisher border(*publisher);
    std::stop_source source;
    const StopSubscription subscription(stop, source);
    static_cast<HostedSource*>(self)->source->run(border, source.get_token());
  } catch (const std::exception& exception) {
    fail(error, exception.what());
  } catch (...) {
    fail(error, "an exception that is no std::exception");
  }
}

}  // namespace

void* create_handler(const dray_host* host, dray_bytes settings, const dray_error_sink* error,
                     std::unique_ptr<RawHandler> (*make)(const Settings&, const Log&)) {
  return create<HostedHandler>(host, settings, error, [&](const Settings& values, const Log& log) {
    return std::make_unique<HostedHandler>(HostedHandler{make(values, log), log, {}});
  });
}

void* create_source(const dray_host* host, dray_bytes settings, const dray_error_sink* error,
                    std::unique_ptr<Source> (*make)(const Settings&, const Log&)) {
  return create<HostedSource>(host, settings, error, [&](const Settings& values, const Log& log) {
    return std::make_unique<HostedSource>(HostedSource{make(values, log)});
  });
}

const dray_plugin* Plugin::table() {
  if (table_.size != 0) return &table_;
  policies_.reserve(handlers_.size());  // the table points into it
  for (const auto& registration : handlers_) {
    policies_.push_back(policy_abi(registration.policy));
    handler_table_.push_back(
        dray_handler{span(registration.name), &policies_.back(), registration.create, &handle,
                     [](void* self) { delete static_cast<HostedHandler*>(self); }});
  }
  for (const auto& registration : sources_) {
    source_table_.push_back(
        dray_source{span(registration.name), registration.create, &run_source,
                    [](void* self) { delete static_cast<HostedSource*>(self); }});
  }
  table_ = dray_plugin{sizeof(dray_plugin),   DRAY_PLUGIN_ABI_MAJOR, DRAY_PLUGIN_ABI_MINOR,
                       handler_table_.data(), handler_table_.size(), source_table_.data(),
                       source_table_.size()};
  return &table_;
}

}  // namespace dray::plugin_glue
