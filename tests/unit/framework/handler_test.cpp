// The handler SDK: traces, middleware, exceptions, log fields.
#include "dray/handler.hpp"

#include <catch2/catch.hpp>

#include "dray/consumer.hpp"
#include "dray/trace.hpp"

using namespace dray;

namespace {

constexpr const char* kTrace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

struct Note {
  std::string text;
  DRAY_FIELDS(text)
};

std::vector<std::string> events;
std::vector<std::string> lines;
const Log kLog([](LogLevel, std::string_view line) { lines.emplace_back(line); }, LogLevel::kDebug);

class Writer final : public Handler<Note> {
 public:
  Outcome handle(const Note& note, Delivery& delivery) override {
    events.push_back("handler");
    if (note.text == "throw") throw std::runtime_error("boom");
    if (note.text == "throw a number") throw 7;
    if (note.text == "log") delivery.log().info("written");
    if (note.text == "fail") return retry("disk");
    return done()
        .publish("note.written", note)
        .publish("note.other", note, {.headers = {{"traceparent", "mine"}}});
  }
  Outcome on_exception(const std::exception& exception) override {
    return reject(std::string("mine: ") + exception.what());
  }
};

class Outer final : public Middleware {
 public:
  explicit Outer(const Settings& settings) : name_(settings.text("name", "outer")) {}
  Outcome around(Delivery&, const Next& next) override {
    events.push_back(name_ + " before");
    auto outcome = next();
    events.push_back(name_ + " after");
    return outcome;
  }

 private:
  std::string name_;
};

class Guard final : public Middleware {
 public:
  Outcome around(Delivery& delivery, const Next& next) override {
    events.push_back("guard");
    if (delivery.key() == "forbidden") return reject("forbidden");
    return next();
  }
};

template <typename H, typename... Around>
Outcome run(const std::string& text, PublishOptions options = {}, const Settings& settings = {}) {
  events.clear();
  lines.clear();
  Draft draft{"note", to_bytes(Note{text}), std::move(options)};
  const auto envelope = encode_envelope(draft, uuid_v4(), UtcTime(Milliseconds(1)));
  auto handler = plugin_glue::make_handler<H, Around...>(settings, kLog);
  return handle_job(*handler, {envelope, "notes", 7, 2}, {}, kLog);
}

}  // namespace

TEST_CASE("traceparent is read by the rules of W3C Trace Context") {
  const auto trace = parse_traceparent(kTrace);
  REQUIRE(trace);
  CHECK(trace->trace_id == "4bf92f3577b34da6a3ce929d0e0e4736");
  CHECK(trace->parent_id == "00f067aa0ba902b7");
  CHECK(trace->flags == "01");
  CHECK(traceparent_text(*trace) == kTrace);
  const auto child = child_of(*trace);
  CHECK(child.trace_id == trace->trace_id);
  CHECK(child.parent_id != trace->parent_id);
  CHECK(parse_traceparent(traceparent_text(child)));
  std::string later = kTrace;
  later.replace(0, 2, "cc");
  CHECK(parse_traceparent(later));
  CHECK(parse_traceparent(later + "-more"));
  for (const std::string& bad :
       {std::string(), std::string(kTrace).substr(1), std::string(kTrace) + "-more",
        "ff" + std::string(kTrace).substr(2), later + "x",
        std::string("00-00000000000000000000000000000000-00f067aa0ba902b7-01"),
        std::string("00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01"),
        std::string("00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01"),
        std::string("00_4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")}) {
    INFO(bad);
    CHECK(!parse_traceparent(bad));
  }
}

TEST_CASE("follow-ups carry the trace of their message, unless they have their own") {
  auto outcome =
      run<Writer>("x", {.headers = {{"traceparent", kTrace}, {"tracestate", "vendor=1"}}});
  REQUIRE(outcome.follow_ups().size() == 2);
  const auto& headers = outcome.follow_ups()[0].options.headers;
  REQUIRE(headers.size() == 2);
  CHECK(headers[0].first == "traceparent");
  CHECK(headers[0].second.substr(3, 32) == std::string(kTrace).substr(3, 32));
  CHECK(headers[0].second != kTrace);
  CHECK(headers[1] == std::pair<std::string, std::string>("tracestate", "vendor=1"));
  CHECK(outcome.follow_ups()[1].options.headers.size() == 1);
  CHECK(run<Writer>("x").follow_ups()[0].options.headers.empty());
  CHECK(run<Writer>("x", {.headers = {{"traceparent", "nonsense"}}})
            .follow_ups()[0]
            .options.headers.empty());
}

TEST_CASE("what a handler logs says message, group, attempt and trace") {
  (void)run<Writer>("log", {.headers = {{"traceparent", kTrace}}});
  REQUIRE(lines.size() == 1);
  CHECK(lines[0].find("written message=") == 0);
  CHECK(lines[0].find("group=notes attempt=2 trace=4bf92f3577b34da6a3ce929d0e0e4736") !=
        std::string::npos);
}

TEST_CASE("middleware goes around the handler, the first one outermost, and may answer itself") {
  CHECK(run<Writer, Outer, Guard>("x").kind() == Outcome::Kind::kDone);
  CHECK(events == std::vector<std::string>{"outer before", "guard", "handler", "outer after"});
  const auto refused = run<Writer, Outer, Guard>("x", {.key = "forbidden"},
                                                 Settings({{"name", std::string("audit")}}));
  CHECK(refused.reason() == "forbidden");
  CHECK(events == std::vector<std::string>{"audit before", "guard", "audit after"});
}

TEST_CASE("an exception ends as the handler says, through middleware too") {
  CHECK(run<Writer>("throw").kind() == Outcome::Kind::kReject);
  CHECK(run<Writer, Outer>("throw").reason() == "mine: boom");
  CHECK(run<Writer>("throw a number").kind() == Outcome::Kind::kRetry);
}

TEST_CASE("LogHandling says what came of each handling, and how long it took") {
  (void)run<Writer, LogHandling>("fail");
  REQUIRE(lines.size() == 1);
  CHECK(lines[0].find("topic=note outcome=retry reason=disk took_ms=") != std::string::npos);
  (void)run<Writer, LogHandling>("throw");
  REQUIRE(lines.size() == 1);
  CHECK(lines[0].find("topic=note reason=boom") != std::string::npos);
}
