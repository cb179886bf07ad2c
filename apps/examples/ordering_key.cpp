// Messages with the same key are handled one at a time and in order, however many threads there
// are; others pass them. The first change of account A fails once: what follows it waits.
#include <latch>
#include <mutex>

#include "example.hpp"

struct AccountChanged {
  std::string account;
  int change = 0;
  DRAY_FIELDS(account, change)
};

int main() {
  const example::Folder folder;
  const auto spooler = example::must(dray::Spooler::open({.directory = folder.spool(),
                                                          .bind = folder.endpoint(),
                                                          .groups = {{"books", {"account"}}}}));
  std::latch all(6);
  std::mutex mutex;
  const auto worker = example::must(dray::Worker::start(
      {.group = "books", .endpoints = {folder.endpoint()}, .threads = 4},
      dray::handle_with<AccountChanged>([&](const AccountChanged& each, dray::Delivery& delivery) {
        if (each.account == "A" && each.change == 1 && delivery.attempt() == 1) {
          return dray::retry("the ledger is locked", std::chrono::milliseconds(20));
        }
        const std::lock_guard lock(mutex);
        std::printf("%s %d\n", each.account.c_str(), each.change);
        all.count_down();
        return dray::done();
      })));
  for (int change = 1; change <= 3; ++change) {
    for (const std::string account : {"A", "B"}) {
      example::must(spooler->publish("account", AccountChanged{account, change}, {.key = account}));
    }
  }
  all.wait();
  return worker->drain(std::chrono::seconds(5)) ? 0 : 1;
}
