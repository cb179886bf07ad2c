#include "dray/plugin/plugin_library.hpp"

#include <dlfcn.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <filesystem>

#include "dray/plugin/draft_codec.hpp"
#include "dray/text.hpp"

namespace dray {
namespace {

using plugin_glue::span;
using plugin_glue::view;

// What version 1.0 has of them; fields that came later are there if `size` covers them.
constexpr std::size_t kPluginSize = offsetof(dray_plugin, source_count) + sizeof(std::size_t);
constexpr std::size_t kPolicySize = offsetof(dray_policy, retry_max_ms) + sizeof(std::int64_t);

// The host struct that a plugin object keeps; lives as long as the object that holds it.
struct Host {
  Log log;
  dray_host abi{};

  explicit Host(Log log_in) : log(std::move(log_in)) {
    abi = dray_host{sizeof(dray_host), DRAY_PLUGIN_ABI_MAJOR, DRAY_PLUGIN_ABI_MINOR, this,
                    [](void* self, std::int32_t level, dray_bytes line) {
                      const auto bounded = level < 0 ? 0 : (level > 3 ? 3 : level);
                      static_cast<Host*>(self)->log.write_line(static_cast<LogLevel>(bounded),
                                                               view(line));
                    }};
  }
};

struct FailureText {
  std::string text;
  dray_error_sink sink() {
    return {this, [](void* self, dray_bytes message) {
              static_cast<FailureText*>(self)->text = view(message);
            }};
  }
};

class PluginConsumer final : public Consumer {
 public:
  PluginConsumer(const dray_handler& handler, std::unique_ptr<Host> host, void* self)
      : handler_(handler), host_(std::move(host)), self_(self) {}
  ~PluginConsumer() override { handler_.destroy(self_); }
  PluginConsumer(const PluginConsumer&) = delete;
  PluginConsumer& operator=(const PluginConsumer&) = delete;

  Outcome consume(const ConsumerJob& job, const std::stop_token& stop) override {
    Collected collected;
    const dray_outcome_sink sink{&collected, &Collected::settle, &Collected::follow_up};
    plugin_glue::StopOffer offer(stop);
    dray_delivery delivery{};
    delivery.size = sizeof(delivery);
    delivery.attempt = job.attempt;
    delivery.sequence = job.sequence;
    delivery.envelope = span(job.envelope);
    delivery.group = span(job.group);
    delivery.stop = offer.abi();
    delivery.journal = job.journal;
    if (job.journal != nullptr) delivery.step = &call_journal;
    handler_.handle(self_, &delivery, &sink);
    if (!collected.settled) return retry("the plugin returned without an outcome");
    if (!collected.fault.empty()) return retry(collected.fault);
    return Outcome::make(collected.kind, std::move(collected.reason), collected.delay,
                         std::move(collected.follow_ups));
  }

 private:
  static void call_journal(void* journal, std::int32_t what, dray_bytes name, dray_bytes value,
                           const dray_step_sink* sink) {
    StepJournal::Reply reply;
    if (what < DRAY_STEP_BEGIN || what > DRAY_STEP_NOT_DONE) {
      reply.value = "there is no such call of a journal";
    } else if (const auto fault = step_name_fault(view(name)); !fault.empty()) {
      reply.value = fault;
    } else if (value.size > kStepValueBytesMax) {
      reply.value = "the value of a step has at most 4,096 bytes";
    } else {
      reply = static_cast<StepJournal*>(journal)->call(static_cast<StepCall>(what), view(name),
                                                       view(value));
    }
    sink->answer(sink->context, static_cast<std::int32_t>(reply.answer), span(reply.value));
  }

  struct Collected {
    bool settled = false;
    Outcome::Kind kind = Outcome::Kind::kDone;
    std::string reason;
    std::string fault;
    std::optional<Milliseconds> delay;
    std::vector<Draft> follow_ups;

    static void settle(void* context, std::int32_t outcome, dray_bytes reason,
                       std::int64_t delay_ms) {
      auto& self = *static_cast<Collected*>(context);
      self.settled = true;
      if (outcome < DRAY_DONE || outcome > DRAY_REJECT) {
        self.fault = "the plugin gave an outcome that does not exist";
        return;
      }
      self.kind = static_cast<Outcome::Kind>(outcome);
      self.reason = view(reason);
      if (delay_ms >= 0) self.delay = Milliseconds(delay_ms);
    }
    static void follow_up(void* context, const dray_draft* draft) {
      auto& self = *static_cast<Collected*>(context);
      auto parsed = plugin_glue::from_abi(*draft);
      if (!parsed.ok()) {
        self.fault = parsed.error().text();
        return;
      }
      self.follow_ups.push_back(std::move(*parsed));
    }
  };

  const dray_handler& handler_;
  std::unique_ptr<Host> host_;
  void* self_;
};

void publish_over_border(void* context, const dray_draft* abi,
                         void (*done)(void*, const dray_receipt*), void* user) {
  const auto answer = [done, user](const Result<Receipt>& result) {
    dray_receipt receipt{};
    receipt.size = sizeof(receipt);
    std::string error;
    std::string_view code;
    if (result.ok()) {
      receipt.durability = result->durability == Durability::kDisk ? 1 : 0;
      receipt.duplicate = result->duplicate ? 1 : 0;
      receipt.sequence = result->sequence;
      receipt.message_id = span(result->id.view());
    } else {
      error = result.error().text();
      code = error_code_name(result.error().code);
      receipt.error = span(error);
      receipt.code = span(code);
    }
    done(user, &receipt);
  };
  auto draft = plugin_glue::from_abi(*abi);
  if (!draft.ok()) return answer(draft.error());
  static_cast<Publisher*>(context)->publish_draft(std::move(*draft), answer);
}

class PluginSource final : public HostedSource {
 public:
  PluginSource(const dray_source& source, std::unique_ptr<Host> host, void* self)
      : source_(source), host_(std::move(host)), self_(self) {}
  ~PluginSource() override { source_.destroy(self_); }
  PluginSource(const PluginSource&) = delete;
  PluginSource& operator=(const PluginSource&) = delete;

  Status run(Publisher& publisher, std::stop_token stop) override {
    const dray_publisher abi{&publisher, &publish_over_border};
    plugin_glue::StopOffer offer(std::move(stop));
    FailureText failure;
    const dray_error_sink sink = failure.sink();
    source_.run(self_, &abi, offer.abi(), &sink);
    if (failure.text.empty()) return {};
    return Error{ErrorCode::kInvalid, failure.text, "", 0};
  }

 private:
  const dray_source& source_;
  std::unique_ptr<Host> host_;
  void* self_;
};

// A static initialiser that throws cannot be caught: the loader's frames end the process. Then at
// least it says which plugin it was, and exits as for any plugin that cannot be used.
class LoadGuard {
 public:
  explicit LoadGuard(const std::string& path) : before_(std::set_terminate(&end)) {
    loading_ = &path;
  }
  ~LoadGuard() {
    std::set_terminate(before_);
    loading_ = nullptr;
  }
  LoadGuard(const LoadGuard&) = delete;
  LoadGuard& operator=(const LoadGuard&) = delete;

 private:
  [[noreturn]] static void end() {
    std::string why = "an exception that is no std::exception";
    try {
      if (const auto current = std::current_exception()) std::rethrow_exception(current);
    } catch (const std::exception& exception) {
      why = exception.what();
    } catch (...) {
    }
    std::fprintf(stderr, "%s: threw while loading: %s\n",
                 loading_ != nullptr ? loading_->c_str() : "a plugin", why.c_str());
    std::_Exit(2);
  }
  inline static thread_local const std::string* loading_ = nullptr;
  std::terminate_handler before_;
};

template <typename Entry>
std::vector<std::string> names_of(const Entry* entries, std::size_t count) {
  std::vector<std::string> names;
  for (std::size_t i = 0; i < count; ++i) names.emplace_back(view(entries[i].name));
  return names;
}

template <typename Entry>
Result<const Entry*> find_entry(const Entry* entries, std::size_t count, const std::string& name,
                                const char* kind, const std::string& path) {
  for (std::size_t i = 0; i < count; ++i) {
    if (view(entries[i].name) == name) return &entries[i];
  }
  std::string known;
  for (const auto& each : names_of(entries, count)) known += (known.empty() ? "" : ", ") + each;
  return Error{ErrorCode::kNotFound,
               std::string("this plugin has no ") + kind + " '" + name + "'; it has " +
                   (known.empty() ? "none" : known),
               path, 0};
}

template <typename Object, typename Entry>
Result<std::unique_ptr<Object>> create_object(const Entry& entry, const Settings& settings,
                                              const Log& log, const std::string& path) {
  auto host = std::make_unique<Host>(log);
  FailureText failure;
  const dray_error_sink sink = failure.sink();
  const std::string encoded = settings.encode();
  void* self = entry.create(&host->abi, span(encoded), &sink);
  if (self == nullptr) {
    // Anything but a wrong setting may be well the next time: a folder that is away, a database.
    const bool wrong = failure.text.starts_with(DRAY_SETTING_FAULT);
    return Error{wrong ? ErrorCode::kInvalid : ErrorCode::kBusy,
                 "'" + std::string(view(entry.name)) + "' could not be made: " +
                     (failure.text.empty() ? "it gave no reason" : failure.text),
                 path, 0};
  }
  if constexpr (std::is_same_v<Entry, dray_handler>) {
    return std::unique_ptr<Object>(std::make_unique<PluginConsumer>(entry, std::move(host), self));
  } else {
    return std::unique_ptr<Object>(std::make_unique<PluginSource>(entry, std::move(host), self));
  }
}

}  // namespace

Result<PluginLibrary> PluginLibrary::load(const std::string& name,
                                          const std::vector<std::string>& folders) {
  std::string path;
  if (name.find('/') != std::string::npos) {
    path = name;
  } else {
    std::string tried;
    for (const auto& folder : folders) {
      const std::string candidate =
          (std::filesystem::path(folder) / ("lib" + name + ".so")).lexically_normal().string();
      if (access(candidate.c_str(), R_OK) == 0) {
        path = candidate;
        break;
      }
      tried += (tried.empty() ? "" : ", ") + candidate;
    }
    if (path.empty()) {
      return Error{ErrorCode::kNotFound, "plugin '" + name + "' not found; tried " + tried, "", 0};
    }
  }
  struct stat status {};
  if (stat(path.c_str(), &status) == 0 && (status.st_mode & S_IWOTH) != 0) {
    return Error{ErrorCode::kInvalid,
                 "anybody may write this plugin, so it is not loaded; chmod o-w it", path, 0};
  }
  void* library = nullptr;
  {
    const LoadGuard guard(path);
    library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  }
  if (library == nullptr) {
    const char* why = dlerror();
    return Error{ErrorCode::kNotFound,
                 std::string("plugin cannot be loaded: ") + (why != nullptr ? why : "unknown"),
                 path, 0};
  }
  const auto entry =
      reinterpret_cast<dray_plugin_entry_function>(dlsym(library, DRAY_PLUGIN_ENTRY));
  if (entry == nullptr) {
    return Error{ErrorCode::kUnsupported,
                 "no Dray plugin of ABI major " + std::to_string(DRAY_PLUGIN_ABI_MAJOR) +
                     ": it does not export " DRAY_PLUGIN_ENTRY
                     "; rebuild it with this version's headers and DRAY_PLUGIN(...)",
                 path, 0};
  }
  const dray_plugin* table = nullptr;
  try {
    table = entry();
  } catch (const std::exception& exception) {
    return Error{ErrorCode::kInvalid, std::string("threw while loading: ") + exception.what(), path,
                 0};
  } catch (...) {
    return Error{ErrorCode::kInvalid, "threw while loading", path, 0};
  }
  if (table == nullptr || table->size < kPluginSize || table->abi_major != DRAY_PLUGIN_ABI_MAJOR) {
    return Error{
        ErrorCode::kUnsupported,
        "built for plugin ABI " +
            (table == nullptr ? std::string("unknown") : std::to_string(table->abi_major)) +
            ", this launcher has " + std::to_string(DRAY_PLUGIN_ABI_MAJOR) + "; rebuild the plugin",
        path, 0};
  }
  return PluginLibrary(path, table);
}

std::vector<std::string> PluginLibrary::handler_names() const {
  return names_of(table_->handlers, table_->handler_count);
}

std::vector<std::string> PluginLibrary::source_names() const {
  return names_of(table_->sources, table_->source_count);
}

Result<HandlerPolicy> PluginLibrary::policy_of(const std::string& handler) const {
  auto entry = find_entry(table_->handlers, table_->handler_count, handler, "handler", path_);
  if (!entry.ok()) return entry.error();
  HandlerPolicy policy;
  const auto* abi = (*entry)->policy;
  if (abi == nullptr) return policy;
  if (abi->size < kPolicySize) {
    return Error{ErrorCode::kInvalid, "the policy of '" + handler + "' is cut short", path_, 0};
  }
  constexpr std::int64_t kRetryMax = UINT32_MAX;  // as in HELLO
  const auto is_retry = [](std::int64_t time) { return time >= -1 && time <= kRetryMax; };
  const bool bounded =
      abi->threads <= 1024 && abi->max_attempts <= 1'000'000 && abi->timeout_ms >= -1 &&
      abi->timeout_ms <= kTimeoutMax.count() && is_retry(abi->retry_initial_ms) &&
      is_retry(abi->retry_max_ms) &&
      (abi->has_retry_jitter == 0 || (abi->retry_jitter >= 0 && abi->retry_jitter <= 1));
  if (!bounded) {
    return Error{ErrorCode::kInvalid,
                 "the policy of '" + handler + "' is out of bounds: see dray_policy", path_, 0};
  }
  if (abi->threads != 0) policy.threads = abi->threads;
  if (abi->max_attempts != 0) policy.max_attempts = abi->max_attempts;
  const auto said = [](std::int64_t time) -> std::optional<Milliseconds> {
    if (time == 0) return std::nullopt;
    return Milliseconds(std::max<std::int64_t>(0, time));
  };
  policy.timeout = said(abi->timeout_ms);
  policy.retry_initial = said(abi->retry_initial_ms);
  policy.retry_max = said(abi->retry_max_ms);
  if (abi->has_retry_jitter != 0) policy.retry_jitter = abi->retry_jitter;
  return policy;
}

Result<std::unique_ptr<Consumer>> PluginLibrary::create_handler(const std::string& name,
                                                                const Settings& settings,
                                                                const Log& log) const {
  auto entry = find_entry(table_->handlers, table_->handler_count, name, "handler", path_);
  if (!entry.ok()) return entry.error();
  return create_object<Consumer>(**entry, settings, log, path_);
}

Result<std::unique_ptr<HostedSource>> PluginLibrary::create_source(const std::string& name,
                                                                   const Settings& settings,
                                                                   const Log& log) const {
  auto entry = find_entry(table_->sources, table_->source_count, name, "source", path_);
  if (!entry.ok()) return entry.error();
  return create_object<HostedSource>(**entry, settings, log, path_);
}

}  // namespace dray
