#include "dray/spool_commands.hpp"

#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <iostream>
#include <nlohmann/json.hpp>

#include "dray/disk/posix_directory.hpp"
#include "dray/node.hpp"
#include "dray/spool/inspection.hpp"
#include "dray/spooler.hpp"
#include "dray/text.hpp"

namespace dray::app {
namespace {

using nlohmann::json;

int fail_spool(const Error& error) {
  std::cerr << "dray: " << error.text() << "\n";
  return error.code == ErrorCode::kNotFound ? kExitWrong : kExitFailed;
}

// A bar on a terminal, for anything that takes longer than a second.
spool::Progress progress_bar() {
  if (isatty(STDERR_FILENO) == 0) return nullptr;
  const auto started = std::chrono::steady_clock::now();
  return [started](double share) {
    if (std::chrono::steady_clock::now() - started < std::chrono::seconds(1)) return;
    constexpr int kWidth = 40;
    const int full = static_cast<int>(share * kWidth);
    std::fprintf(stderr, "\r[%s%s] %3.0f %%",
                 std::string(static_cast<std::size_t>(full), '#').c_str(),
                 std::string(static_cast<std::size_t>(kWidth - full), '.').c_str(), share * 100);
    if (share >= 1) std::fputc('\n', stderr);
  };
}

json to_json(const spool::DamagedRange& range) {
  return {{"segment", range.segment},
          {"offset", range.offset},
          {"first", range.first},
          {"last", range.last},
          {"what", range.what}};
}

json to_json(const spool::SpoolFindings& findings) {
  json out{{"directory", findings.directory},
           {"spool_id", findings.spool_id.text()},
           {"served", findings.served},
           {"good", findings.good()},
           {"lost_by_repair", findings.lost_by_repair},
           {"quarantined", findings.quarantined},
           {"foreign", findings.foreign},
           {"faults", findings.faults},
           {"unreadable", findings.unreadable},
           {"checkpoints", json::array()},
           {"segments", json::array()},
           {"missing", json::array()},
           {"groups", json::array()}};
  for (const auto& each : findings.checkpoints) {
    out["checkpoints"].push_back({{"file", each.file},
                                  {"good", each.good},
                                  {"number", each.number},
                                  {"lsn", each.lsn},
                                  {"at", utc_text(each.at)}});
  }
  for (const auto& each : findings.segments) {
    json segment{{"file", each.file},
                 {"status", each.status},
                 {"first", each.header.first_lsn},
                 {"last", each.last_lsn},
                 {"records", each.records},
                 {"messages", each.messages},
                 {"bytes", each.bytes},
                 {"epoch", each.header.epoch},
                 {"made", utc_text(each.header.created_at)},
                 {"damaged", json::array()}};
    for (const auto& range : each.damaged) segment["damaged"].push_back(to_json(range));
    out["segments"].push_back(std::move(segment));
  }
  for (const auto& range : findings.missing) out["missing"].push_back(to_json(range));
  if (findings.best) {
    for (const auto& group : findings.best->groups) {
      out["groups"].push_back({{"name", group.name},
                               {"topics", group.eras.back().topics},
                               {"standing", static_cast<int>(group.eras.back().standing)},
                               {"accepted", group.counts.accepted},
                               {"pending", group.counts.pending},
                               {"done", group.counts.done},
                               {"dead", group.counts.dead},
                               {"expired", group.counts.expired},
                               {"dropped", group.counts.dropped},
                               {"damaged", group.counts.damaged}});
    }
  }
  return out;
}

void print_damage(const spool::SpoolFindings& findings) {
  const auto line = [](const spool::DamagedRange& range) {
    std::printf(
        "  %s at byte %llu: records %llu to %llu: %s\n", spool::segment_name(range.segment).c_str(),
        static_cast<unsigned long long>(range.offset), static_cast<unsigned long long>(range.first),
        static_cast<unsigned long long>(range.last), range.what.c_str());
  };
  for (const auto& segment : findings.segments) {
    for (const auto& range : segment.damaged) line(range);
  }
  for (const auto& range : findings.missing) line(range);
  for (const auto& each : findings.unreadable) std::printf("  %s\n", each.c_str());
  for (const auto& fault : findings.faults) std::printf("  %s\n", fault.c_str());
}

void print_findings(const spool::SpoolFindings& findings) {
  std::printf("spool %s in %s%s\n", findings.spool_id.text().c_str(), findings.directory.c_str(),
              findings.served ? ", served at the moment" : "");
  for (const auto& each : findings.checkpoints) {
    std::printf("  %-28s %s, up to record %llu, %s\n", each.file.c_str(),
                each.good ? "good" : "BAD", static_cast<unsigned long long>(each.lsn),
                each.good ? utc_text(each.at).c_str() : "-");
  }
  for (const auto& each : findings.segments) {
    const std::string records =
        each.last_lsn < each.header.first_lsn  // no checkpoint says it, and none was read
            ? "records from " + std::to_string(each.header.first_lsn) + " on"
            : "records " + std::to_string(each.header.first_lsn) + " to " +
                  std::to_string(each.last_lsn) + ", " + size_text(each.bytes);
    std::printf("  %-28s %-8s %s, epoch %llu, made %s\n", each.file.c_str(), each.status.c_str(),
                records.c_str(), static_cast<unsigned long long>(each.header.epoch),
                utc_text(each.header.created_at).c_str());
  }
  if (findings.best) {
    std::printf("  as of the newest checkpoint:\n");
    for (const auto& group : findings.best->groups) {
      std::printf(
          "  group %-22s pending %llu, done %llu, dead %llu, expired %llu, dropped %llu, "
          "damaged %llu\n",
          group.name.c_str(), static_cast<unsigned long long>(group.counts.pending),
          static_cast<unsigned long long>(group.counts.done),
          static_cast<unsigned long long>(group.counts.dead),
          static_cast<unsigned long long>(group.counts.expired),
          static_cast<unsigned long long>(group.counts.dropped),
          static_cast<unsigned long long>(group.counts.damaged));
    }
  }
  for (const auto& name : findings.quarantined) std::printf("  %-28s kept aside\n", name.c_str());
  for (const auto& name : findings.foreign) {
    std::printf("  %-28s not a file of a spool\n", name.c_str());
  }
}

Result<spool::SpoolFindings> look(const std::string& folder, bool read_records) {
  auto directory = open_posix_directory(folder, false);
  if (!directory.ok()) return directory.error();
  return spool::look_at_spool(**directory, read_records, read_records ? progress_bar() : nullptr);
}

}  // namespace

int spool_inspect_command(const std::string& directory, bool as_json) {
  const auto findings = look(directory, false);
  if (!findings.ok()) return fail_spool(findings.error());
  if (as_json) {
    std::cout << to_json(*findings).dump(2) << "\n";
  } else {
    print_findings(*findings);
  }
  return 0;
}

int spool_verify_command(const std::string& directory, bool as_json) {
  const auto findings = look(directory, true);
  if (!findings.ok()) return fail_spool(findings.error());
  if (as_json) {
    std::cout << to_json(*findings).dump(2) << "\n";
    return findings->good() ? 0 : kExitFailed;
  }
  std::uint64_t records = 0;
  for (const auto& segment : findings->segments) records += segment.records;
  std::printf("%llu records in %zu segments of spool %s\n",
              static_cast<unsigned long long>(records), findings->segments.size(),
              findings->spool_id.text().c_str());
  if (findings->good()) {
    std::printf("all good\n");
    return 0;
  }
  std::printf(findings->unreadable.empty() ? "damaged:\n" : "damaged, or not to be read:\n");
  print_damage(*findings);
  if (!findings->in_the_way.empty()) {
    std::printf("it cannot be served with what is not Dray's in it\n");
    return kExitFailed;
  }
  if (findings->newer || !findings->unreadable.empty()) {
    std::printf("this says nothing of what could not be looked at\n");
    return kExitFailed;
  }
  std::printf(
      "the rest can be served; `dray spool repair %s` (with the spool stopped) gives up what "
      "is lost and keeps the damaged files aside\n",
      directory.c_str());
  return kExitFailed;
}

int spool_repair_command(const std::string& folder, bool as_json) {
  auto directory = open_posix_directory(folder, false);
  if (!directory.ok()) return fail_spool(directory.error());
  const auto report = spool::repair_spool(**directory, progress_bar());
  if (!report.ok()) return fail_spool(report.error());
  if (as_json) {
    std::cout << json{{"done", report->done}, {"before", to_json(report->before)}}.dump(2) << "\n";
    return 0;
  }
  for (const auto& line : report->done) std::printf("%s\n", line.c_str());
  for (const auto& range : report->before.missing) {
    std::printf("%s is missing: records %llu to %llu; if there is a copy, put it back\n",
                spool::segment_name(range.segment).c_str(),
                static_cast<unsigned long long>(range.first),
                static_cast<unsigned long long>(range.last));
  }
  std::printf(report->done.empty() ? "nothing to repair\n"
                                   : "repaired; the groups count what is lost as damaged when the "
                                     "spool is served again\n");
  return 0;
}

int spool_adopt_command(const std::string& folder, bool as_json) {
  auto directory = open_posix_directory(folder, false);
  if (!directory.ok()) return fail_spool(directory.error());
  const auto findings = spool::look_at_spool(**directory, false, nullptr);
  if (!findings.ok()) return fail_spool(findings.error());
  const auto adopted = Spooler::adopt(folder);
  if (!adopted.ok()) return fail_spool(adopted.error());
  if (as_json) {
    std::cout << json{{"spool_id", findings->spool_id.text()}, {"directory", folder}}.dump(2)
              << "\n";
  } else {
    std::printf(
        "spool %s belongs to this folder and this machine now; make sure that nothing serves "
        "the original any more\n",
        findings->spool_id.text().c_str());
  }
  return 0;
}

}  // namespace dray::app
