#include "dray/look_cli.hpp"

#include "dray/doctor.hpp"
#include "dray/queue_cli.hpp"

namespace dray::app {

void add_look_commands(CLI::App& cli, LookArguments& given, SpoolChoice& choice, bool& json,
                       int& code) {
  auto* top = cli.add_subcommand("top",
                                 "Example: dray top shop.toml\n\n"
                                 "Rates, backlogs and workers, again and again; q ends.");
  add_spool_choice(*top, choice);
  top->add_option("--interval", given.top.interval, "look so often (default 1s)");
  top->add_option("--count", given.top.count,
                  "end after so many looks (default: never; 1 if the output is no terminal)");
  top->add_flag("--json", json, "for programs: one line a look");
  top->callback([&] { code = top_command(choice, given.top, json); });

  auto* tail = cli.add_subcommand("tail",
                                  "Example: dray tail shop.toml --topic order.placed\n\n"
                                  "What is published, as it is published.");
  add_spool_choice(*tail, choice);
  tail->add_option("--topic", given.tail.topic, "only of this topic");
  tail->add_option(
      "--since", given.tail.since,
      "begin then: an age like 2h, or a time like 2026-11-26T07:00:00Z (default: now)");
  tail->add_option("--count", given.tail.count, "end after so many messages")
      ->check(at_least_one());
  tail->add_flag("!--no-follow", given.tail.follow, "all that is there, and end");
  tail->add_flag("--json", json, "for programs: one line a message");
  tail->callback([&] { code = tail_command(choice, given.tail, json); });

  auto* peek = cli.add_subcommand("peek",
                                  "Example: dray peek shop.toml email\n\n"
                                  "What waits in a group, oldest first, and why; it stays there.");
  add_spool_choice(*peek, choice);
  peek->add_option("group", given.group, "group")->required();
  peek->add_option("--limit", given.limit, "at most so many (default 20, at most 100000)")
      ->check(CLI::Range(1, 100'000));
  peek->add_option("--after", given.after, "only those behind this sequence");
  peek->add_flag("--json", json, "for programs; with headers and whole body");
  peek->callback([&] { code = peek_command(choice, given.group, given.after, given.limit, json); });

  auto* doctor = cli.add_subcommand("doctor",
                                    "Example: dray doctor shop.toml\n\n"
                                    "What is wrong, or soon will be, with this machine, a config "
                                    "and its spools,\nand what to do. Exits 1 if anything is "
                                    "wrong, 0 if there are only warnings.");
  add_spool_choice(*doctor, choice);
  doctor->add_flag("--json", json, "for programs");
  doctor->callback([&] { code = doctor_command(choice, json); });
}

}  // namespace dray::app
