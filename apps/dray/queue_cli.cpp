#include "dray/queue_cli.hpp"

namespace dray::app {

void add_spool_choice(CLI::App& command, SpoolChoice& choice) {
  command.add_option("target", choice.target, "config file, or directory of a spool")->required();
  command.add_option("--spool", choice.spool, "which spool of the config");
}

CLI::Validator at_least_one() {
  return CLI::Validator(
      [](const std::string& text) {
        const bool digits =
            !text.empty() && text.find_first_not_of("0123456789") == std::string::npos;
        return digits && text.find_first_not_of('0') != std::string::npos
                   ? std::string()
                   : "'" + text + "' is not a whole number from 1 on";
      },
      "");
}

namespace {

void add_dead_commands(CLI::App& cli, QueueArguments& given, SpoolChoice& choice, bool& json,
                       int& code) {
  auto* dead = cli.add_subcommand("dead",
                                  "Example: dray dead list shop.toml email\n\n"
                                  "Dead letters: look at them, give them another chance, edit "
                                  "or drop them.");
  dead->require_subcommand(1);
  const auto add = [&, dead](const char* name, const char* help) {
    auto* command = dead->add_subcommand(name, help);
    add_spool_choice(*command, choice);
    command->add_option("group", given.dead.group, "group")->required();
    return command;
  };
  const auto add_filter = [&](CLI::App& command) {
    command.add_option("--topic", given.dead.topic, "only of this topic");
    command.add_option("--cause", given.dead.cause, "only: rejected, attempts, lost, unroutable");
    command.add_option("--signature", given.dead.signature,
                       "only with this error, as `dead list --signatures` shows it");
  };
  auto* list = add("list", "Example: dray dead list shop.toml email --cause rejected");
  add_filter(*list);
  list->add_option("--limit", given.limit, "at most so many (default 100, at most 1000)")
      ->check(CLI::Range(1, 1000));
  list->add_option("--after", given.after, "only those behind this sequence");
  list->add_flag("--signatures", given.signatures, "count them by error instead");
  list->add_flag("--json", json, "for programs; with body and history");
  list->callback([&] {
    code = dead_list_command(choice, given.dead, given.after, given.limit, given.signatures, json);
  });
  auto* show = add("show", "Example: dray dead show shop.toml email 17");
  show->add_option("sequence", given.sequence, "which one")->required()->check(at_least_one());
  show->add_flag("--json", json, "for programs");
  show->callback([&] { code = dead_show_command(choice, given.dead.group, given.sequence, json); });
  for (const char* action : {"retry", "drop"}) {
    auto* command = add(action, action == std::string("retry")
                                    ? "Example: dray dead retry shop.toml email 17 18"
                                    : "Example: dray dead drop shop.toml email --all");
    command->add_option("sequences", given.dead.sequences, "which ones, as `dead list` shows them");
    add_filter(*command);
    command->add_flag("--all", given.dead.all, "all of the group");
    command->add_flag("--dry-run", given.dry_run, "only say how many");
    command->add_flag("--json", json, "for programs");
    command->callback([&, action] {
      code = dead_change_command(choice, given.dead, action, given.dry_run, json);
    });
  }
  auto* edit = add("edit",
                   "Example: dray dead edit shop.toml email 17 '{\"email\": \"a@b.org\"}'\n\n"
                   "Another body, for this group, and another chance.");
  edit->add_option("sequence", given.sequence, "which one")->required()->check(at_least_one());
  edit->add_option("body", given.body, "the whole new body, as JSON")->required();
  edit->add_flag("--json", json, "for programs");
  edit->callback([&] {
    code = dead_edit_command(choice, given.dead.group, given.sequence, given.body, json);
  });
  auto* decide = add(
      "decide",
      "Example: dray dead decide shop.toml email 17 send --done\n\n"
      "Say whether a step took effect whose end is not known. When no other step is undecided,\n"
      "the message is pending again.");
  decide->add_option("sequence", given.sequence, "which one")->required()->check(at_least_one());
  decide->add_option("step", given.step, "as `dray dead show` names it")->required();
  auto* value = decide->add_option(
      "--done", given.value, "it took effect; with the value (JSON) that it returned, if any");
  value->expected(0, 1)->default_str("null");
  auto* not_done =
      decide->add_flag("--not-done", given.not_done, "it took no effect: run it again");
  value->excludes(not_done);
  decide->add_flag("--json", json, "for programs");
  decide->callback([&, value, not_done] {
    if (value->count() + not_done->count() == 0) {
      throw CLI::ValidationError("dead decide", "say --done or --not-done");
    }
    code = dead_decide_command(choice, given.dead.group, given.sequence, given.step,
                               given.not_done ? "" : given.value, json);
  });
}

}  // namespace

void add_queue_commands(CLI::App& cli, QueueArguments& given, SpoolChoice& choice, bool& json,
                        int& code) {
  add_dead_commands(cli, given, choice, json, code);
  const auto add_for_group = [&](CLI::App& parent, const char* name, const char* help) {
    auto* command = parent.add_subcommand(name, help);
    add_spool_choice(*command, choice);
    command->add_option("group", given.dead.group, "group")->required();
    command->add_flag("--json", json, "for programs");
    return command;
  };
  add_for_group(cli, "pause",
                "Example: dray pause shop.toml email\n\n"
                "Deliver nothing to a group until dray resume; also after a restart.")
      ->callback([&] { code = group_command(choice, given.dead.group, "pause", json); });
  add_for_group(cli, "resume",
                "Example: dray resume shop.toml email\n\n"
                "Let a paused group go on.")
      ->callback([&] { code = group_command(choice, given.dead.group, "resume", json); });
  auto* drain = add_for_group(cli, "drain",
                              "Example: dray drain shop.toml email\n\n"
                              "Pause a group and wait until its workers hold nothing of it.");
  drain->add_option("--timeout", given.timeout, "wait so long (default 1m)");
  drain->callback([&] { code = drain_command(choice, given.dead.group, given.timeout, json); });
  auto* groups = cli.add_subcommand("group",
                                    "Example: dray group list shop.toml\n\n"
                                    "The groups of a spool.");
  groups->require_subcommand(1);
  auto* list = groups->add_subcommand("list", "Example: dray group list shop.toml");
  add_spool_choice(*list, choice);
  list->add_flag("--json", json, "for programs");
  list->callback([&] { code = group_list_command(choice, json); });
  add_for_group(*groups, "drop",
                "Example: dray group drop shop.toml old-group\n\n"
                "Forget a group that is not in the config any more, with all that is pending.")
      ->callback([&] { code = group_command(choice, given.dead.group, "drop", json); });
  auto* replay = cli.add_subcommand("replay",
                                    "Example: dray replay shop.toml --group email --since 2h\n\n"
                                    "Give settled messages that the spool retains to a group once "
                                    "more.");
  add_spool_choice(*replay, choice);
  replay->add_option("--group", given.replay.group, "to whom")->required();
  replay->add_option("--since", given.replay.since,
                     "published since: an age like 2h, or a time like 2026-11-26T07:00:00Z");
  replay->add_option("--where", given.replay.where,
                     "only with this in the body, like order_id=17 or customer.city=Paris");
  replay->add_flag("--dry-run", given.replay.dry_run, "only say how many");
  replay->add_flag("--json", json, "for programs");
  replay->callback([&] { code = replay_command(choice, given.replay, json); });
  auto* show = cli.add_subcommand("show",
                                  "Example: dray show shop.toml 17\n\n"
                                  "The whole life of a message and, if it waits, why.");
  add_spool_choice(*show, choice);
  show->add_option("message", given.id, "its id, or its sequence")->required();
  show->add_flag("--json", json, "for programs");
  show->callback([&] { code = show_command(choice, given.id, json); });
  auto* confirm = cli.add_subcommand("confirm-clock",
                                     "Example: dray confirm-clock shop.toml\n\n"
                                     "The wall clock is right although it jumped: let messages "
                                     "expire again at once.");
  add_spool_choice(*confirm, choice);
  confirm->callback([&] { code = confirm_clock_command(choice); });
}

}  // namespace dray::app
