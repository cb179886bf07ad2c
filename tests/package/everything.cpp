// Uses what a program may use of the installed library: each of these must be there to be linked.
#include <dray/consumer.hpp>
#include <dray/pipeline.hpp>
#include <dray/remote_publisher.hpp>
#include <dray/request_reply.hpp>
#include <dray/spooler.hpp>
#include <dray/standard_error_log.hpp>
#include <dray/testing.hpp>
#include <dray/text.hpp>
#include <dray/trace.hpp>
#include <dray/worker.hpp>
#include <unordered_map>

struct Note {
  std::string text;
  DRAY_FIELDS(text)
};

class Keep final : public dray::Handler<Note> {
 public:
  dray::Outcome handle(const Note&, dray::Delivery&) override { return dray::done(); }
};

int main() {
  const dray::SystemClock clock;
  std::unordered_map<dray::Uuid, int, dray::UuidHash> ids;
  ids[dray::uuid_v7(clock.utc())] = 1;
  dray::testing::Harness queue;
  queue.handle<Keep, dray::LogHandling>("g", {"t"});
  dray::Publisher& publisher = queue;
  if (!publisher.publish("t", Note{"x"}).ok() || !queue.settle()) return 1;
  if (dynamic_cast<dray::testing::Harness*>(&publisher) == nullptr) return 2;
  dray::Push<Note> push("inproc://nobody");
  try {
    dray::Service<Note, Note> service("nonsense",
                                      [](const Note& note) -> dray::Result<Note> { return note; });
    return 3;
  } catch (const dray::EndpointError&) {
  }
  try {
    (void)dray::Settings().text("missing");
    return 4;
  } catch (const dray::SettingsError&) {
  }
  if (dray::RemotePublisher::connect({.endpoint = "nonsense"}).ok()) return 5;
  if (dray::Spooler::open({.directory = "/proc/nowhere"}).ok()) return 6;
  if (dray::Worker::start(
          {.group = "g", .endpoints = {"nonsense"}},
          dray::handle_with<Note>([](const Note&, dray::Delivery&) { return dray::done(); }))
          .ok())
    return 7;
  dray::standard_error_log("everything")
      .info("all is there", {{"in", dray::duration_text(dray::Milliseconds(5))}});
  return dray::parse_traceparent("nonsense") ? 8 : 0;
}
