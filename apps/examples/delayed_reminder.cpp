// A reminder for later: it lies on the disk until it is due, also over restarts. One that would
// come too late expires instead.
#include <future>

#include "example.hpp"

struct Reminder {
  std::string text;
  DRAY_FIELDS(text)
};

int main() {
  const example::Folder folder;
  const auto spooler = example::must(dray::Spooler::open({.directory = folder.spool(),
                                                          .bind = folder.endpoint(),
                                                          .groups = {{"people", {"reminder"}}}}));
  const auto now = dray::SystemClock().utc();
  using std::chrono::milliseconds;
  example::must(spooler->publish("reminder", Reminder{"in a moment"},
                                 {.deliver_at = now + milliseconds(200)}));
  example::must(
      spooler->publish("reminder", Reminder{"too late"}, {.expires_at = now - milliseconds(1)}));
  std::promise<std::string> reminded;
  const auto worker = example::must(dray::Worker::start(
      {.group = "people", .endpoints = {folder.endpoint()}},
      dray::handle_with<Reminder>([&](const Reminder& reminder, dray::Delivery&) {
        reminded.set_value(reminder.text);
        return dray::done();
      })));
  std::printf("%s\n", reminded.get_future().get().c_str());
  const bool clean = worker->drain(std::chrono::seconds(5));
  const auto status = example::must(spooler->status());
  std::printf("expired: %d\n", static_cast<int>(status.groups.front().expired));
  return clean ? 0 : 1;
}
