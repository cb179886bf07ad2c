// Spool::open: recovery, and what the owner's config says of the groups.
#include <algorithm>

#include "dray/spool/spool.hpp"

namespace dray::spool {

Result<std::unique_ptr<Spool>> Spool::open(Directory& directory, const Clock& clock,
                                           SpoolOptions options, Log log) {
  std::unique_ptr<Spool> spool(new Spool(directory, clock, std::move(options), std::move(log)));
  DRAY_TRY(spool->recover());
  return spool;
}

Status Spool::replay(SpoolState& state) {
  DRAY_TRY(checkpoints_.load());
  checkpoint_bytes_ = checkpoints_.bytes_max();
  const auto checkpoint = checkpoints_.take_best();
  if (checkpoint) {
    DRAY_TRY(state.restore(*checkpoint));
    checkpoint_number_ = checkpoint->number;
    last_utc_ms_ = checkpoint->at_ms;
  }
  scan_.checkpoints_lost = !checkpoint && !checkpoints_.damaged().empty();
  for (const auto& name : checkpoints_.damaged()) {
    scan_.notes.push_back(name + ": fails its check" +
                          (checkpoint ? "; the other one serves"
                                      : "; the log is read from its "
                                        "beginning, what was done "
                                        "before may be done again"));
  }
  auto opened = SegmentLog::open(directory_, clock_, options_.log, checkpoint,
                                 {[&](const Record& record) { return state.apply(record); },
                                  [&](Lsn first, bool inside) { return state.gap(first, inside); }},
                                 scan_);
  report_recovery();
  if (!opened.ok()) return opened.error();
  state.finish();
  segments_ = std::move(*opened);
  for (const auto& segment : segments_->segments()) {
    last_utc_ms_ = std::max(last_utc_ms_, segment.created_at.time_since_epoch().count());
  }
  return {};
}

void Spool::report_recovery() const {
  for (const auto& range : scan_.damaged) {
    log_.error("acknowledged records are damaged; the rest is served",
               {{"segment", segment_name(range.segment)},
                {"offset", std::to_string(range.offset)},
                {"first", std::to_string(range.first)},
                {"last", std::to_string(range.last)},
                {"what", range.what}});
  }
  for (const auto& note : scan_.notes) log_.warning(note);
  if (scan_.torn_bytes > 0) {
    log_.info("cut an unacknowledged tail", {{"bytes", std::to_string(scan_.torn_bytes)}});
  }
}

Status Spool::recover() {
  auto held = directory_.lock("lock");
  if (!held.ok()) return held.error();
  lock_ = std::move(*held);
  SpoolState state(options_.dedup);
  DRAY_TRY(replay(state));
  if (!options_.groups && state.owner()) follow_owner(*state.owner());
  if (options_.durability == Durability::kDisk && !options_.allow_volatile) {
    if (const auto reason = directory_.volatile_reason(); !reason.empty()) {
      return Error{ErrorCode::kUnsupported,
                   "this folder is on " + reason +
                       ", which keeps no promise of durability \"disk\"; choose another folder, or "
                       "set durability = \"os\"",
                   directory_.path(), 0};
    }
  }
  boundary_ = segments_->next_lsn();
  epoch_ = state.epoch() + 1;
  for (const auto& group : state.groups()) {
    accepted_[group->id()] = group->published();
    declared_.push_back(
        {group->id(), group->name(), group->topics(), group->standing(), group->paused()});
  }
  auto changes = changed_groups(state);
  if (!changes.ok()) return changes.error();
  // They are in the opening too: one damaged record must not take a group with its backlog.
  for (const auto& record : *changes) {
    if (record.id == declared_.size()) declared_.push_back(record);
    declared_[record.id] = record;
  }
  const std::uint64_t random = random_u64();
  id_ = segments_->spool_id().is_nil() ? uuid_v4() : segments_->spool_id();
  DRAY_TRY(segments_->start(id_, epoch_, random, [this] { return opening(); }));
  const EpochRecord epoch{epoch_, random, clock_.utc().time_since_epoch().count()};
  const auto written = segments_->write_record(RecordType::kEpoch, to_bytes(epoch));
  if (!written.ok()) return written.error();
  for (const auto& record : *changes) DRAY_TRY(declare(state, record));
  DRAY_TRY(segments_->sync());
  durable_lsn_ = segments_->durable_lsn();
  disk_full_ = !ensure_reserves();
  // Records that open() wrote are nobody's messages.
  for (const auto& group : state.groups()) {
    if (group->standing() == GroupStanding::kDropped) continue;
    group->skip(boundary_, segments_->next_lsn() - 1);
  }
  for (const auto& [id, session] : state.sessions()) sessions_.push_back(session);
  for (const auto& group : state.groups()) {
    if (group->standing() != GroupStanding::kAttached) continue;
    for (const auto& topic : group->topics()) routes_.add(topic, GroupMask{1} << group->id());
  }
  for (const auto& topic : options_.retained_topics) routes_.add(topic, 0);
  groups_ = std::move(state.groups());
  dedup_ = std::move(state.dedup());
  dedup_.trim(clock_.utc().time_since_epoch().count());
  return {};
}

OwnerRecord Spool::owner() const {
  return {static_cast<std::uint8_t>(options_.durability),
          options_.max_size,
          options_.held_max,
          options_.retain.age.count(),
          options_.retain.bytes,
          options_.retained_topics};
}

// Served without the owner's config.
void Spool::follow_owner(const OwnerRecord& owner) {
  options_.durability = owner.durability == static_cast<std::uint8_t>(Durability::kOs)
                            ? Durability::kOs
                            : Durability::kDisk;
  options_.max_size = owner.max_size;
  options_.held_max = owner.held_max;
  options_.retain = {Milliseconds(owner.retain_ms), owner.retain_bytes};
  options_.retained_topics = owner.retain_topics;
}

std::string Spool::opening() const {
  OpeningRecord record;
  record.epoch = epoch_;
  record.groups = declared_;
  record.owner = owner();
  record.accepted.assign(accepted_.begin(),
                         accepted_.begin() + static_cast<std::ptrdiff_t>(declared_.size()));
  return to_bytes(record);
}

Status Spool::declare(SpoolState& state, const GroupRecord& record) {
  auto& groups = state.groups();
  const auto written = segments_->write_record(RecordType::kGroup, to_bytes(record));
  if (!written.ok()) return written.error();
  if (record.id == groups.size()) {
    groups.push_back(std::make_unique<GroupState>(record.id, record.name));
  }
  groups[record.id]->declare(*written, record.topics, record.standing);
  return {};
}

// What the config changes: groups that are new, have other topics, came back, or are gone.
Result<std::vector<GroupRecord>> Spool::changed_groups(SpoolState& state) {
  std::vector<GroupRecord> changes;
  if (!options_.groups) return changes;
  std::size_t next_id = state.groups().size();
  const auto hides_one = [&](const DamagedRange& range) {
    return range.last > state.groups_known_at();
  };
  const bool may_have_lost_one =
      boundary_ > 1 && (std::any_of(scan_.damaged.begin(), scan_.damaged.end(), hides_one) ||
                        std::any_of(scan_.given_up.begin(), scan_.given_up.end(), hides_one));
  for (const auto& wanted : *options_.groups) {
    const GroupState* known = state.find_group(wanted.name);
    if (known != nullptr && known->standing() == GroupStanding::kAttached &&
        known->topics() == wanted.topics) {
      continue;
    }
    if (known == nullptr && may_have_lost_one) {
      return Error{ErrorCode::kCorrupt,
                   "group '" + wanted.name +
                       "' is new to this spool, or its declaration is among the damaged records; "
                       "declared now, it would lose its backlog. If it is new, or to give that "
                       "backlog up: serve the spool once with `dray run --spool`, then start again",
                   directory_.path(), 0};
    }
    if (known == nullptr && next_id == kGroupsMax) {
      return Error{ErrorCode::kFull,
                   "group '" + wanted.name + "' would be number " + std::to_string(kGroupsMax + 1) +
                       " of this spool, the limit is " + std::to_string(kGroupsMax),
                   directory_.path(), 0};
    }
    const auto id = known != nullptr ? known->id() : static_cast<GroupId>(next_id++);
    changes.push_back({id, wanted.name, wanted.topics, GroupStanding::kAttached,
                       known != nullptr && known->paused()});
  }
  for (const auto& group : state.groups()) {
    if (group->standing() == GroupStanding::kDropped) continue;
    const bool wanted = std::any_of(options_.groups->begin(), options_.groups->end(),
                                    [&](const auto& each) { return each.name == group->name(); });
    if (wanted) continue;
    detached_.push_back(group->name());
    log_.warning(
        "group is not in the config any more: it takes nothing new and keeps what is "
        "pending",
        {{"group", group->name()}, {"pending", std::to_string(group->counts().pending)}});
    if (group->standing() == GroupStanding::kAttached) {
      changes.push_back(
          {group->id(), group->name(), group->topics(), GroupStanding::kDetached, group->paused()});
    }
  }
  return changes;
}

}  // namespace dray::spool
