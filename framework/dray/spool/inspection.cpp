#include "dray/spool/inspection.hpp"

#include <algorithm>

#include "dray/spool/log_reader.hpp"

namespace dray::spool {
namespace {

constexpr std::size_t kCopyPiece = 1U << 20;
constexpr std::size_t kReadBlock = 4096;

bool is_known_name(const std::string& name) {
  return name == "lock" || name == "checkpoint.tmp" || CheckpointStore::is_checkpoint_name(name) ||
         SpareSegments::is_spare_name(name) || segment_number(name).has_value() ||
         name.ends_with(".quarantine") || name.ends_with(".sock");
}

Result<std::string> read_file(Directory& directory, const std::string& name) {
  auto file = directory.open(name, OpenMode::kRead);
  if (!file.ok()) return file.error();
  auto size = (*file)->size();
  if (!size.ok()) return size.error();
  std::string bytes(static_cast<std::size_t>(*size), '\0');
  auto got = (*file)->read_at(0, bytes.data(), bytes.size());
  if (!got.ok()) return got.error();
  bytes.resize(*got);
  return bytes;
}

void look_at_checkpoints(Directory& directory, SpoolFindings& findings) {
  for (const char* name : {"checkpoint.a", "checkpoint.b"}) {
    const auto bytes = read_file(directory, name);
    if (!bytes.ok() && bytes.error().code == ErrorCode::kNotFound) continue;
    CheckpointFinding finding;
    finding.file = name;
    auto decoded = bytes.ok() ? decode_checkpoint(*bytes) : CheckpointResult{};
    if (decoded.checkpoint) {
      finding.good = true;
      finding.number = decoded.checkpoint->number;
      finding.lsn = decoded.checkpoint->lsn;
      finding.at = UtcTime(Milliseconds(decoded.checkpoint->at_ms));
      if (!findings.best || findings.best->number < finding.number) {
        findings.best = std::move(decoded.checkpoint);
      }
    } else if (decoded.fault == CheckpointFault::kNewerVersion) {
      findings.newer = true;
      findings.faults.push_back(std::string(name) + ": made by a newer version of Dray");
    } else if (!bytes.ok()) {
      findings.unreadable.push_back(bytes.error().text());
    } else {
      findings.faults.push_back(std::string(name) + ": fails its check");
    }
    findings.checkpoints.push_back(std::move(finding));
  }
}

const SegmentEntry* entry_of(const SpoolFindings& findings, std::uint64_t number) {
  if (!findings.best) return nullptr;
  for (const auto& entry : findings.best->segments) {
    if (entry.number == number) return &entry;
  }
  return nullptr;
}

// Opens one segment; nothing if it is gone or no segment of this spool.
std::shared_ptr<Segment> open_segment(Directory& directory, SegmentFinding& finding,
                                      SpoolFindings& findings) {
  auto file = directory.open(finding.file, OpenMode::kRead);
  if (!file.ok()) {
    const bool gone = file.error().code == ErrorCode::kNotFound;
    finding.status = gone ? "gone" : "unreadable";
    if (!gone) findings.unreadable.push_back(file.error().text());
    return nullptr;
  }
  auto segment = std::make_shared<Segment>();
  segment->file = std::move(*file);
  std::string bytes(kSegmentHeaderSize, '\0');
  const auto got = segment->file->read_at(0, bytes.data(), bytes.size());
  if (got.ok()) bytes.resize(*got);
  const auto decoded = decode_segment_header(bytes);
  const auto* entry = entry_of(findings, finding.number);
  segment->header = decoded.header;
  if (decoded.fault == HeaderFault::kNewerVersion) {
    finding.status = "damaged";
    findings.newer = true;
    findings.faults.push_back(finding.file + ": made by a newer version of Dray");
    return nullptr;
  }
  if (decoded.fault != HeaderFault::kNone || decoded.header.number != finding.number) {
    if (entry == nullptr) {
      const bool blank = bytes.find_first_not_of('\0') == std::string::npos;
      const bool foreign = got.ok() && decoded.fault == HeaderFault::kForeign && !blank;
      if (findings.best && finding.number < findings.best->position.segment) {  // S9: not needed
        finding.status = "free";
        if (foreign) findings.foreign.push_back(finding.file);
        return nullptr;
      }
      finding.status = "damaged";
      finding.header_unreadable = !got.ok();
      if (foreign) findings.in_the_way.push_back(finding.file);
      findings.faults.push_back(finding.file +
                                (!got.ok() ? ": its header cannot be read"
                                 : foreign ? ": not a Dray segment; move it out of the spool"
                                           : ": its header is damaged"));
      return nullptr;
    }
    segment->header.spool_id = *Uuid::from_bytes(findings.best->spool.bytes);
    segment->header.number = finding.number;
    segment->header.epoch = entry->epoch;
    segment->header.epoch_random = entry->epoch_random;
    segment->header.first_lsn = entry->first_lsn;
    finding.header_rebuilt = true;
    findings.faults.push_back(finding.file + ": its header is damaged; the checkpoint knows it");
  }
  segment->seed = segment_seed(segment->header);
  finding.header = segment->header;
  if (findings.spool_id.is_nil()) findings.spool_id = segment->header.spool_id;
  return segment;
}

// Reads all records of a segment. `limit`: lsn at which the next segment begins, 0 for the last.
Status read_segment(const std::shared_ptr<Segment>& segment, Lsn limit, SegmentFinding& finding,
                    SpoolFindings& findings, const std::function<void(std::uint64_t)>& read) {
  const auto size = segment->file->size();
  if (!size.ok()) return size.error();
  const std::uint64_t end = *size;
  const bool last = limit == 0;
  SegmentCursor cursor(segment);
  Lsn next = segment->header.first_lsn;
  std::uint64_t valid_end = kSegmentHeaderSize;
  const auto damaged = [&](std::uint64_t offset, Lsn first, Lsn until) {
    finding.damaged.push_back({finding.number, offset, first, until, "records fail their check"});
    finding.status = "damaged";
  };
  std::uint64_t offset = kSegmentHeaderSize;
  std::uint64_t suspect_at = 0;  // behind the last good record, where something is invalid
  Lsn claimed = 0;               // highest durable_lsn that a record behind that says
  while (offset < end && (last || next < limit)) {
    auto record = cursor.read(offset, end);
    if (!record.ok()) return record.error();
    const bool fits = record->has_value() && (*record)->header.lsn >= next &&
                      (last || (*record)->header.lsn < limit);
    if (!fits) {
      if (suspect_at == 0) suspect_at = offset;
      auto found = cursor.find(offset + kRecordAlignment, end);
      if (!found.ok()) return found.error();
      read(*found - offset);
      offset = *found;
      continue;
    }
    const auto header = (*record)->header;
    if (header.lsn > next) {
      claimed = std::max(claimed, header.durable_lsn);
      // S3: in the last segment only a record that says so turns a torn tail into damage.
      if (last && claimed < next) {
        offset += record_size(header.payload_size);
        continue;
      }
      if (header.type == RecordType::kLost) {
        findings.lost_by_repair += header.lsn - next + 1;
      } else {
        damaged(suspect_at == 0 ? valid_end : suspect_at, next, header.lsn - 1);
      }
    } else if (header.type == RecordType::kLost) {
      ++findings.lost_by_repair;
    }
    suspect_at = 0;
    next = header.lsn + 1;
    ++finding.records;
    finding.messages += header.type == RecordType::kMessage ? 1U : 0U;
    const auto step = record_size(header.payload_size);
    offset += step;
    valid_end = offset;
    read(step);
  }
  finding.last_lsn = next - 1;
  finding.bytes = valid_end;
  if (!last && next < limit) damaged(valid_end, next, limit - 1);
  const auto* entry = entry_of(findings, finding.number);
  const Lsn known = entry != nullptr ? entry->last_lsn : 0;
  if (last && next <= known) damaged(valid_end, next, known);
  return {};
}

// The segment was freed, and its file used again, while it was read.
bool was_recycled(const Segment& segment, Directory& directory, const std::string& name) {
  auto again = directory.open(name, OpenMode::kRead);
  if (!again.ok()) return true;
  std::string bytes(kSegmentHeaderSize, '\0');
  const auto got = segment.file->read_at(0, bytes.data(), bytes.size());
  const auto decoded = decode_segment_header(bytes);
  return got.ok() && decoded.fault == HeaderFault::kNone &&
         decoded.header.number != segment.header.number;
}

std::string fresh_text(const DamagedRange& range) {
  return "lsn " + std::to_string(range.first) + " to " + std::to_string(range.last);
}

// What of a file can be read; zeros for the rest.
Result<std::string> read_what_can_be(Directory& directory, const std::string& name) {
  if (auto bytes = read_file(directory, name); bytes.ok()) return bytes;
  auto file = directory.open(name, OpenMode::kRead);
  if (!file.ok()) return file.error();
  auto size = (*file)->size();
  if (!size.ok()) return size.error();
  std::string content(static_cast<std::size_t>(*size), '\0');
  for (std::size_t at = 0; at < content.size(); at += kReadBlock) {
    (void)(*file)->read_at(at, content.data() + at, std::min(kReadBlock, content.size() - at));
  }
  return content;
}

Status write_file(Directory& directory, const std::string& name, const std::string& data) {
  (void)directory.remove(name);
  auto file = directory.open(name, OpenMode::kCreateNew);
  if (!file.ok()) return file.error();
  for (std::size_t at = 0; at < data.size(); at += kCopyPiece) {
    DRAY_TRY((*file)->write_at(at, std::string_view(data).substr(at, kCopyPiece)));
  }
  return (*file)->sync_data();
}

// Nobody knows what it held: the next start sets aside what can be read of it, and reports it.
Status give_up_header(Directory& directory, const SegmentFinding& finding, RepairReport& report) {
  const auto content = read_what_can_be(directory, finding.file);
  if (!content.ok()) return content.error();
  const std::string kept = kept_name(directory, finding.file + ".unreadable");
  DRAY_TRY(write_file(directory, finding.file + ".repaired", *content));
  DRAY_TRY(directory.rename(finding.file, kept));
  DRAY_TRY(directory.rename(finding.file + ".repaired", finding.file));
  DRAY_TRY(directory.sync());
  report.done.push_back(finding.file +
                        ": its header cannot be read and no checkpoint knows it; its records are "
                        "given up, the file is kept as " +
                        kept);
  return {};
}

// The same bytes with a filler over every damaged part, in a new file under the same name.
Status rewrite_segment(Directory& directory, const SegmentFinding& finding, RepairReport& report) {
  auto read = read_what_can_be(directory, finding.file);
  if (!read.ok()) return read.error();
  std::string& content = *read;
  const std::string kept = kept_name(directory, finding.file);
  DRAY_TRY(write_file(directory, kept, content));
  if (finding.header_rebuilt)
    content.replace(0, kSegmentHeaderSize, encode_segment_header(finding.header));
  const std::uint32_t seed = segment_seed(finding.header);
  for (const auto& range : finding.damaged) {
    // The filler ends where the next good record begins, or where the good ones end.
    std::size_t end = static_cast<std::size_t>(range.offset) + kRecordAlignment;
    const auto good = [&](std::size_t at) {
      const auto header = decode_record_header(std::string_view(content).substr(at), seed, at);
      return header && header->lsn > range.last &&
             at + kRecordHeaderSize + header->payload_size <= content.size() &&
             payload_passes(*header, std::string_view(content).substr(at + kRecordHeaderSize,
                                                                      header->payload_size));
    };
    while (end + kRecordHeaderSize <= content.size() && !good(end)) end += kRecordAlignment;
    const bool at_end = end + kRecordHeaderSize > content.size();
    if (at_end) end = static_cast<std::size_t>(range.offset) + kRecordHeaderSize;
    const std::size_t payload = end - static_cast<std::size_t>(range.offset) - kRecordHeaderSize;
    if (payload > kPayloadSizeMax) {
      return Error{ErrorCode::kUnsupported, "more than 16 MiB in one piece is damaged",
                   directory.path() + "/" + finding.file, 0};
    }
    RecordHeader header;
    header.type = RecordType::kLost;
    header.payload_size = static_cast<std::uint32_t>(payload);
    header.lsn = range.last;
    header.durable_lsn = range.last;
    std::string filler;
    append_record(filler, seed, range.offset, header, std::string(payload, '\0'));
    if (content.size() < range.offset + filler.size()) content.resize(range.offset + filler.size());
    content.replace(static_cast<std::size_t>(range.offset), filler.size(), filler);
    report.done.push_back(finding.file + ": " + fresh_text(range) +
                          " cannot be read and are given up; the damaged file is kept as " + kept);
  }
  DRAY_TRY(write_file(directory, finding.file + ".repaired", content));
  DRAY_TRY(directory.rename(finding.file + ".repaired", finding.file));
  return directory.sync();
}

}  // namespace

bool SpoolFindings::good() const {
  const bool checkpoints_good = std::all_of(checkpoints.begin(), checkpoints.end(),
                                            [](const auto& each) { return each.good; });
  const bool segments_good = std::none_of(
      segments.begin(), segments.end(), [](const auto& each) { return each.status == "damaged"; });
  return checkpoints_good && segments_good && missing.empty() && faults.empty() &&
         unreadable.empty();
}

Result<SpoolFindings> look_at_spool(Directory& directory, bool read_records,
                                    const Progress& progress) {
  SpoolFindings findings;
  findings.directory = directory.path();
  auto names = directory.list();
  if (!names.ok()) return names.error();
  for (const auto& name : *names) {
    if (auto number = segment_number(name)) {
      SegmentFinding finding;
      finding.file = name;
      finding.number = *number;
      findings.segments.push_back(std::move(finding));
    }
    if (name.ends_with(".quarantine")) findings.quarantined.push_back(name);
    if (!is_known_name(name)) findings.foreign.push_back(name);
  }
  look_at_checkpoints(directory, findings);
  if (findings.segments.empty() && findings.checkpoints.empty()) {
    return Error{ErrorCode::kNotFound, "no spool is here: no segments and no checkpoints",
                 directory.path(), 0};
  }
  if (findings.best) findings.spool_id = *Uuid::from_bytes(findings.best->spool.bytes);
  findings.served = directory.is_locked("lock");
  std::vector<std::shared_ptr<Segment>> opened;
  std::uint64_t bytes_all = 0;
  for (auto& finding : findings.segments) {
    opened.push_back(open_segment(directory, finding, findings));
    if (opened.back() == nullptr) continue;
    if (auto size = opened.back()->file->size(); size.ok()) bytes_all += *size;
  }
  std::uint64_t bytes_read = 0;
  const auto read = [&](std::uint64_t bytes) {
    const std::uint64_t before = bytes_read / kCopyPiece;
    bytes_read += bytes;
    if (progress && bytes_read / kCopyPiece != before) {
      progress(static_cast<double>(bytes_read) /
               static_cast<double>(std::max<std::uint64_t>(1, bytes_all)));
    }
  };
  for (std::size_t i = 0; i < opened.size(); ++i) {
    auto& finding = findings.segments[i];
    if (opened[i] == nullptr) continue;
    Lsn limit = 0;
    for (std::size_t k = i + 1; k < opened.size() && limit == 0; ++k) {
      if (opened[k] != nullptr) limit = findings.segments[k].header.first_lsn;
    }
    const auto* entry = entry_of(findings, finding.number);
    const bool older = findings.best && finding.number < findings.best->position.segment;
    if (older && entry == nullptr) {  // S9: nothing in it counts
      finding.status = "free";
      continue;
    }
    // What lies between this one's last record and the next segment was freed with its segment.
    if (older) limit = std::min(limit == 0 ? entry->last_lsn + 1 : limit, entry->last_lsn + 1);
    finding.status = limit == 0 ? "current" : "good";
    if (!read_records) {
      finding.last_lsn = entry != nullptr ? entry->last_lsn : 0;
      finding.bytes = entry != nullptr ? entry->end : 0;
      continue;
    }
    DRAY_TRY(read_segment(opened[i], limit, finding, findings, read));
    if (finding.status == "damaged" && was_recycled(*opened[i], directory, finding.file)) {
      finding.status = "gone";
      finding.damaged.clear();
    }
  }
  if (findings.best) {
    for (const auto& entry : findings.best->segments) {
      const bool there = std::any_of(findings.segments.begin(), findings.segments.end(),
                                     [&](const auto& each) { return each.number == entry.number; });
      if (there || entry.first_lsn > entry.last_lsn) continue;
      // Freed since, if a newer checkpoint does without it.
      SpoolFindings now;
      look_at_checkpoints(directory, now);
      if (now.best && now.best->number > findings.best->number &&
          entry_of(now, entry.number) == nullptr) {
        continue;
      }
      findings.missing.push_back(
          {entry.number, 0, entry.first_lsn, entry.last_lsn, "the segment is missing"});
    }
  }
  return findings;
}

bool holds_spool(Directory& directory) {
  const auto names = directory.list();
  return names.ok() && std::any_of(names->begin(), names->end(), [](const std::string& name) {
           return segment_number(name).has_value() || CheckpointStore::is_checkpoint_name(name);
         });
}

Result<RepairReport> repair_spool(Directory& directory, const Progress& progress) {
  // Before the lock: it would leave its file in a folder that is none.
  if (!holds_spool(directory)) {
    return Error{ErrorCode::kNotFound, "no spool is here: no segments and no checkpoints",
                 directory.path(), 0};
  }
  auto lock = directory.lock("lock");
  if (!lock.ok()) return lock.error();
  auto findings = [&] { return look_at_spool(directory, true, progress); }();
  if (!findings.ok()) return findings.error();
  if (findings->newer) {
    return Error{ErrorCode::kUnsupported,
                 "some of it was made by a newer version of Dray; run that one's `dray spool "
                 "repair`. Nothing was changed",
                 directory.path(), 0};
  }
  if (!findings->unreadable.empty()) {
    return Error{ErrorCode::kIo,
                 findings->unreadable.front() +
                     "; try again, as the user who serves it. Nothing was changed",
                 "", 0};
  }
  if (!findings->in_the_way.empty()) {
    return Error{ErrorCode::kConflict,
                 findings->in_the_way.front() +
                     " is not a Dray segment; move it out of the spool. Nothing was changed",
                 directory.path(), 0};
  }
  RepairReport report;
  report.before = *findings;
  for (const auto& finding : findings->segments) {
    if (finding.header_unreadable) DRAY_TRY(give_up_header(directory, finding, report));
    if (finding.damaged.empty() && !finding.header_rebuilt) continue;
    if (finding.header_rebuilt) {
      report.done.push_back(finding.file + ": its header was written anew from the checkpoint");
    }
    DRAY_TRY(rewrite_segment(directory, finding, report));
  }
  for (const auto& checkpoint : findings->checkpoints) {
    if (checkpoint.good) continue;
    const std::string kept = kept_name(directory, checkpoint.file);
    DRAY_TRY(directory.rename(checkpoint.file, kept));
    DRAY_TRY(directory.sync());
    report.done.push_back(checkpoint.file + ": fails its check; kept as " + kept +
                          ", the next start writes a new one");
  }
  return report;
}

}  // namespace dray::spool
