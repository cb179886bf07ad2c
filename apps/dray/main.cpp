// The dray command: parses the command line, and hands over.
#include <malloc.h>

#include <CLI/CLI.hpp>
#include <cstdlib>

#include "dray/bench.hpp"
#include "dray/command_tools.hpp"
#include "dray/commands.hpp"
#include "dray/look_cli.hpp"
#include "dray/new_command.hpp"
#include "dray/node.hpp"
#include "dray/queue_cli.hpp"
#include "dray/spool_commands.hpp"
#include "dray/standard_error_log.hpp"
#include "dray/supervisor.hpp"
#include "dray/text.hpp"

using namespace dray;
using namespace dray::app;

int main(int argc, char** argv) {
  // Batches come and go: returning their memory to the kernel each time costs page faults.
  mallopt(M_TRIM_THRESHOLD, 64 << 20);
  mallopt(M_MMAP_THRESHOLD, 8 << 20);
  die_with_supervisor();
  CLI::App cli{
      "Example: dray run shop.toml\n\n"
      "Dray is a broker-free durable work queue: apps publish into a spool on their own disk and\n"
      "workers take from it."};
  cli.name("dray");
  cli.set_version_flag("--version", "dray " DRAY_VERSION);
  int code = 0;

  std::string file;
  std::vector<std::string> apps;
  RunSpool spool_alone;
  auto* run = cli.add_subcommand("run",
                                 "Example: dray run shop.toml --app email\n\n"
                                 "Run the apps of a config, each as a process of its own.");
  auto* run_file = run->add_option("file", file, "config file");
  auto* run_apps =
      run->add_option("--app", apps, "only this app (in the foreground); several: only these");
  run_apps->allow_extra_args(false);  // what follows is the file
  auto* run_spool_option = run->add_option("--spool", spool_alone.directory,
                                           "serve this spool alone, without its producer");
  run->add_option("--bind", spool_alone.bind, "endpoint for --spool (default ipc://DIR/dray.sock)")
      ->needs(run_spool_option);
  auto* secret = run->add_option("--secret", spool_alone.secret,
                                 "CURVE keys for --spool, as dray keygen makes them")
                     ->needs(run_spool_option);
  run->add_option("--allow", spool_alone.allow, "allow list of the workers' keys")->needs(secret);
  run_file->excludes(run_spool_option);
  run->callback([&] {
    if (spool_alone.directory.empty() && file.empty()) {
      throw CLI::ValidationError("run", "give a config file, or --spool DIR");
    }
    if (spool_alone.directory.empty()) {
      code = run_command(file, apps);
    } else {
      block_signals();
      const auto* level = std::getenv("DRAY_LOG");
      const auto least = log_level_of(level == nullptr ? "info" : level);
      code = run_spool(spool_alone, standard_error_log("spool", least));
    }
  });

  auto* check = cli.add_subcommand("check",
                                   "Example: dray check shop.toml\n\n"
                                   "Say all faults of a config and of its plugins.");
  check->add_option("file", file, "config file")->required();
  check->callback([&] { code = check_command(file); });

  SpoolChoice choice;
  bool json = false;
  auto* status = cli.add_subcommand("status",
                                    "Example: dray status shop.toml\n\n"
                                    "What is accepted, pending, done and dead, per group.");
  add_spool_choice(*status, choice);
  status->add_flag("--json", json, "for programs");
  status->callback([&] { code = status_command(choice, json); });

  PublishWish wish;
  auto* publish =
      cli.add_subcommand("publish",
                         "Example: dray publish shop.toml order.placed '{\"order_id\": \"1\"}'\n\n"
                         "Publish one message into a spool that is served; prints the receipt.");
  add_spool_choice(*publish, choice);
  publish->add_option("topic", wish.topic, "topic")->required();
  publish->add_option("body", wish.body, "body, as JSON")->required();
  publish->add_option("--key", wish.key, "ordering key");
  publish->add_option("--dedup", wish.dedup, "dedup id: publishing again with it is safe");
  publish->add_option("--priority", wish.priority, "high, normal or low")
      ->check(CLI::IsMember({"high", "normal", "low"}));
  publish->add_option("--delay", wish.delay, "not before so long from now, like 10m");
  publish->add_option("--expires", wish.expires, "not after so long from now");
  publish->callback([&] { code = publish_command(choice, wish); });

  QueueArguments queue;
  add_queue_commands(cli, queue, choice, json, code);
  LookArguments look;
  add_look_commands(cli, look, choice, json, code);

  auto* spool = cli.add_subcommand("spool",
                                   "Example: dray spool verify var/orders\n\n"
                                   "A spool looked at from outside.");
  spool->require_subcommand(1);
  const auto add_spool = [&](const char* name, const char* help, auto command) {
    auto* added = spool->add_subcommand(name, help);
    added->add_option("directory", file, "the spool's directory")->required();
    added->add_flag("--json", json, "for programs");
    added->callback([&, command] { code = command(file, json); });
  };
  add_spool("inspect",
            "Example: dray spool inspect var/orders\n\n"
            "Its segments, checkpoints and groups. May be served meanwhile.",
            spool_inspect_command);
  add_spool("verify",
            "Example: dray spool verify var/orders\n\n"
            "Read every record and name what is damaged. May be served meanwhile. Exits 1 if "
            "anything is.",
            spool_verify_command);
  add_spool("repair",
            "Example: dray spool repair var/orders\n\n"
            "Give up what cannot be read, once and for all; damaged files are kept aside.",
            spool_repair_command);
  add_spool("adopt",
            "Example: dray spool adopt var/orders\n\n"
            "Serve a copied or restored spool here. The original must not be served any more.",
            spool_adopt_command);

  std::string key_name;
  std::string key_folder = "keys";
  auto* keygen = cli.add_subcommand("keygen",
                                    "Example: dray keygen orders\n\n"
                                    "Make CURVE keys: keys/orders.secret (keep it) and "
                                    "keys/orders.public (give it to others).");
  keygen->add_option("name", key_name, "name of the files")->required();
  keygen->add_option("--dir", key_folder, "folder (default: keys)");
  keygen->callback([&] { code = keygen_command(key_folder, key_name); });

  std::string project;
  std::string project_folder = ".";
  auto* make_new = cli.add_subcommand("new",
                                      "Example: dray new handler send-receipt\n\n"
                                      "A project of its own: source, test, config, build.");
  make_new->require_subcommand(1);
  for (const auto& [kind, kind_name] :
       {std::pair{NewKind::kHandler, "handler"}, std::pair{NewKind::kSource, "source"}}) {
    auto* command = make_new->add_subcommand(
        kind_name, std::string("Example: dray new ") + kind_name + " send-receipt");
    command->add_option("name", project, "its name, and that of its folder")->required();
    command->add_option("--dir", project_folder, "where to make it (default: here)");
    command->callback([&, kind = kind] { code = new_command(kind, project, project_folder); });
  }

  BenchOptions measured;
  std::string durability = "disk";
  auto* bench = cli.add_subcommand("bench",
                                   "Example: dray bench end-to-end --messages 1000000\n\n"
                                   "Measure this machine.");
  bench->require_subcommand(1);
  const auto add_bench = [&](const char* name, const char* help, auto measure) {
    auto* command = bench->add_subcommand(name, help);
    command->add_option("--messages", measured.messages, "how many")
        ->check(CLI::Range(1UL, 1UL << 32));
    command->add_option("--size", measured.size, "bytes of a body")
        ->check(CLI::Range(0UL, 16UL << 20));
    command->add_option("--window", measured.window, "receipts outstanding (per thread)")
        ->check(CLI::Range(1UL, 60'000UL));
    command->add_option("--durability", durability, "disk or os")
        ->check(CLI::IsMember({"disk", "os"}));
    command->add_option("--dir", measured.directory, "where to put the spool (default: here)");
    command->add_option("--limits", measured.limits,
                        "the bare program, for the ratio (default: `limits` beside this program)");
    command->add_flag("--growing", measured.growing, "no disk is made ready before the run");
    command->add_flag("--json", measured.json, "for programs");
    command->callback([&, measure] {
      measured.durability = durability == "disk" ? Durability::kDisk : Durability::kOs;
      code = measure(measured);
    });
    return command;
  };
  auto* end_to_end =
      add_bench("end-to-end",
                "Example: dray bench end-to-end --messages 1000000 --size 256 --json\n\n"
                "Published, committed, delivered, handled and settled, by real processes.",
                bench_end_to_end);
  const auto add_handler = [&](CLI::App& command) {
    command.add_option("--threads", measured.threads, "handler threads per worker")
        ->check(CLI::Range(1, 64));
    command.add_option("--sleep-us", measured.sleep_us, "the handler sleeps so many microseconds")
        ->check(CLI::Range(0, 60'000'000));
    command.add_option("--spin-us", measured.spin_us, "the handler works so many microseconds")
        ->check(CLI::Range(0, 60'000'000));
    command
        .add_option("--worker-window", measured.worker_window,
                    "deliveries that a worker takes ahead; 0: sized by itself")
        ->check(CLI::Range(0, 60'000));
  };
  const auto add_flow = [&](CLI::App& command) {
    add_handler(command);
    command.add_option("--groups", measured.groups, "groups")->check(CLI::Range(1, 64));
    command.add_option("--workers", measured.workers, "worker processes per group")
        ->check(CLI::Range(1, 64));
    command.add_option("--transport", measured.transport, "ipc or tcp (over loopback)")
        ->check(CLI::IsMember({"ipc", "tcp"}));
  };
  add_flow(*end_to_end);
  auto* fan_out = add_bench("fan-out",
                            "Example: dray bench fan-out --groups 2\n\n"
                            "End to end to several groups and to one, alternating.",
                            bench_fan_out);
  add_flow(*fan_out);
  fan_out->add_option("--runs", measured.runs, "of each")->check(CLI::Range(1, 100));
  auto* latency = add_bench("latency",
                            "Example: dray bench latency --rate 1000 --seconds 10\n\n"
                            "From publish to the handler, at a given rate.",
                            bench_latency);
  add_flow(*latency);
  latency->remove_option(latency->get_option("--messages"));
  latency->remove_option(latency->get_option("--window"));
  latency->add_option("--rate", measured.rate, "messages a second")
      ->check(CLI::Range(1, 1'000'000));
  latency->add_option("--seconds", measured.seconds, "for so long")->check(CLI::Range(1, 86'400));
  auto* soak = add_bench("soak",
                         "Example: dray bench soak --seconds 1800\n\n"
                         "Load without end: whether speed, memory and descriptors stay.",
                         bench_soak);
  add_flow(*soak);
  soak->remove_option(soak->get_option("--messages"));
  soak->add_option("--seconds", measured.seconds, "for so long")->check(CLI::Range(1, 86'400));
  auto* limits = add_bench("limits",
                           "Example: dray bench limits --size 256\n\n"
                           "What a bare program without Dray code does on this machine.",
                           bench_limits);
  limits->remove_option(limits->get_option("--window"));
  auto* append =
      add_bench("append",
                "Example: dray bench append --batch 1024\n\n"
                "One thread hands in batches, another commits them one by one and settles\n"
                "what it committed before. With --batch 1 each is waited for.",
                bench_append);
  append->add_option("--batch", measured.batch, "messages per commit; 1,024 at most go into one")
      ->check(CLI::Range(1UL, 60'000UL));
  append->add_option("--runs", measured.runs, "each alternates with the bare program")
      ->check(CLI::Range(1, 100));
  append->add_flag("!--no-settle", measured.settle, "only append, do not settle");
  auto* publish_bench = add_bench("publish",
                                  "Example: dray bench publish --threads 4 --window 1000\n\n"
                                  "Published and committed; nobody takes the messages.",
                                  bench_publish);
  publish_bench->add_option("--threads", measured.threads, "publishing threads")
      ->check(CLI::Range(1, 64));
  publish_bench->add_option("--runs", measured.runs, "each alternates with the bare program")
      ->check(CLI::Range(1, 100));
  add_bench("backlog",
            "Example: dray bench backlog --messages 10000000\n\n"
            "A spool with that many waiting: killed, reopened, published to, drained.",
            bench_backlog);
  add_bench("backlog-fill", "a process of backlog", bench_backlog_fill)->group("");
  add_bench("backlog-serve", "a process of backlog", bench_backlog_serve)->group("");
  std::string endpoint;
  auto* worker = bench->add_subcommand("worker", "the worker process of end-to-end")->group("");
  worker->add_option("endpoint", endpoint)->required();
  worker->add_option("group", queue.dead.group)->required();
  add_handler(*worker);
  worker->add_flag("--stamps", measured.stamps);
  worker->callback([&] { code = bench_worker(measured, endpoint, queue.dead.group); });

  cli.require_subcommand(0, 1);
  cli.callback([&] {
    const auto words = cli.remaining();
    if (!words.empty()) {
      std::vector<std::string> known;
      for (const auto* each : cli.get_subcommands(nullptr)) known.push_back(each->get_name());
      const std::string near = nearest_word(words.front(), known);
      throw CLI::ExtrasError("there is no command '" + words.front() + "'" +
                                 (near.empty() ? "" : "; did you mean '" + near + "'?") +
                                 " See dray --help",
                             CLI::ExitCodes::ExtrasError);
    }
    if (cli.get_subcommands().empty()) throw CLI::RequiredError("A command");
  });
  cli.allow_extras();

  try {
    cli.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return cli.exit(error) == 0 ? 0 : kExitWrong;
  } catch (const std::exception& exception) {
    return fail(Error{ErrorCode::kInvalid,
                      std::string("an argument cannot be used: ") + exception.what(), "", 0});
  }
  return finish_output(code);
}
