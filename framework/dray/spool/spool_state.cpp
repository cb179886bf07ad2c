#include "dray/spool/spool_state.hpp"

#include <algorithm>

#include "dray/spool/planted_fault.hpp"

namespace dray::spool {

std::uint8_t message_flags(Priority priority, bool has_options, bool has_key) {
  return static_cast<std::uint8_t>(
      static_cast<std::uint8_t>(has_key ? Priority::kNormal : priority) |
      (has_options ? kHasOptions : 0) | (has_key ? kHasKey : 0));
}

GroupState* SpoolState::find_group(std::string_view name) {
  for (const auto& each : groups_) {
    if (each->name() == name && each->standing() != GroupStanding::kDropped) return each.get();
  }
  return nullptr;
}

Result<GroupState*> SpoolState::group(GroupId id) {
  if (id < groups_.size()) return groups_[id].get();
  return Error{ErrorCode::kCorrupt,
               "record names group " + std::to_string(id) + ", which the log never declared", "",
               0};
}

Status SpoolState::restore(const Checkpoint& checkpoint) {
  DRAY_ASSERT(groups_.empty() && epoch_ == 0);
  const Error fault{ErrorCode::kCorrupt, "the checkpoint's content makes no sense", "", 0};
  epoch_ = checkpoint.epoch;
  owner_ = checkpoint.owner;
  groups_known_at_ = checkpoint.lsn;
  for (const auto& snapshot : checkpoint.groups) {
    if (snapshot.id != groups_.size() || snapshot.id >= kGroupsMax) return fault;
    auto state = GroupState::restore(snapshot);
    if (!state.ok()) return state.error();
    groups_.push_back(std::make_unique<GroupState>(std::move(*state)));
  }
  for (const auto& session : checkpoint.sessions) {
    const auto id = Uuid::from_bytes(session.session.bytes);
    if (!id) return fault;
    sessions_[*id] = RecordedSession{*id, session.group, session.worker};
  }
  return dedup_.restore(checkpoint.dedup.bytes) ? Status() : Status(fault);
}

void SpoolState::drop_unit() {
  if (planted(Fault::kUnitsTorn)) {
    for (const auto& [header, payload] : held_) (void)apply_now(header, payload);
  }
  held_.clear();
}

Status SpoolState::apply(const Record& record) {
  // What a segment begins with may stand between the records of a unit.
  if (record.header.type == RecordType::kOpening) return apply_now(record.header, record.payload);
  const auto type = record.header.type;
  if (type == RecordType::kEpoch) drop_unit();
  if ((record.header.flags & kContinues) != 0) {
    held_.emplace_back(record.header, std::string(record.payload));
    return {};
  }
  if (!held_.empty()) {
    const auto held = std::exchange(held_, {});
    for (const auto& [header, payload] : held) DRAY_TRY(apply_now(header, payload));
  }
  return apply_now(record.header, record.payload);
}

namespace {

// Decodes a payload that is a struct with DRAY_FIELDS and hands it to `then`.
template <typename T, typename Then>
Status with(std::string_view payload, Then then) {
  auto decoded = from_bytes<T>(payload);
  if (!decoded.ok()) {
    Error error = decoded.error();
    error.code = ErrorCode::kCorrupt;
    return error;
  }
  return then(*decoded);
}

}  // namespace

Status SpoolState::declare(Lsn lsn, const GroupRecord& record) {
  if (record.id > groups_.size() || record.id >= kGroupsMax) {
    return Error{ErrorCode::kCorrupt, "group ids are not in order", "", 0};
  }
  if (record.id == groups_.size()) {
    groups_.push_back(std::make_unique<GroupState>(record.id, record.name));
  }
  routed_topic_.clear();
  auto& known = *groups_[record.id];
  if (known.declared() && known.standing() == GroupStanding::kDropped) return {};  // for good
  const bool same =
      known.declared() && known.topics() == record.topics && known.standing() == record.standing;
  if (!same) known.declare(lsn, record.topics, record.standing);  // else the opening said so
  known.set_paused(record.paused);
  return {};
}

void SpoolState::raise_accepted(const std::vector<std::uint64_t>& accepted) {
  const auto count = std::min(accepted.size(), groups_.size());
  for (std::size_t i = 0; i < count; ++i) groups_[i]->raise_accepted(accepted[i]);
}

// Repeats what the log already said, unless that is lost.
Status SpoolState::apply_opening(Lsn lsn, std::string_view payload) {
  return with<OpeningRecord>(payload, [&](const OpeningRecord& opening) -> Status {
    epoch_ = std::max(epoch_, opening.epoch);
    if (opening.owner) owner_ = opening.owner;
    // One without groups may be of a program that did not know what the damage before it took.
    if (opening.groups.empty()) return {};
    groups_known_at_ = lsn;
    const auto orphans = std::exchange(orphans_, {});
    const Lsn lost_from = std::exchange(lost_from_, 0);
    for (const auto& record : opening.groups) {
      const bool fresh = record.id >= groups_.size();
      const auto accepted =
          record.id < opening.accepted.size() ? opening.accepted[record.id] : std::uint64_t{0};
      // What declared it is lost, or went with the segments that were before.
      const bool lost = fresh && accepted > 0 && lost_from != 0;
      const Lsn from = lost ? lost_from : lsn;
      DRAY_TRY(declare(from, record));
      if (!fresh || accepted == 0) continue;
      // So many as there are positions since may be open, be they here or lost; no more are.
      auto& group = *groups_[record.id];
      std::uint64_t open = std::min(accepted, lsn - from);
      group.begin_in_the_middle(from, accepted - open);
      for (auto orphan = orphans.rbegin(); lost && orphan != orphans.rend() && open > 0; ++orphan) {
        if (!group.takes(orphan->second, orphan->first)) continue;
        group.accept();
        --open;
      }
    }
    raise_accepted(opening.accepted);
    return {};
  });
}

Status SpoolState::apply_copy(Lsn lsn, std::string_view payload) {
  return with<CopyRecord>(payload, [&](const CopyRecord& copy) -> Status {
    for (const auto& history : copy.histories) {
      auto state = group(history.group);
      if (!state.ok()) return state.error();
      if (history.replayed) (void)(*state)->replay(copy.sequence, lsn);
      (*state)->copied(copy.sequence, lsn, history.record_lsn);
      (*state)->copied_from_before(copy.sequence, lsn,
                                   history.attempts.empty() ? nullptr : history.attempts.data());
    }
    return {};
  });
}

Status SpoolState::apply_now(const RecordHeader& header, std::string_view payload) {
  const Lsn lsn = header.lsn;
  // Hands the group of a decoded record to `then`.
  const auto in_group = [&](GroupId id, auto then) -> Status {
    auto state = group(id);
    if (!state.ok() && lost_from_ != 0) return {};  // its declaration is among what is lost
    if (!state.ok()) return state.error();
    then(**state);
    return {};
  };
  switch (header.type) {
    case RecordType::kMessage:
      return apply_message(header, payload);
    case RecordType::kMarker:
      if (payload.empty()) return {};
      return with<MarkerRecord>(payload, [&](const MarkerRecord& marker) -> Status {
        raise_accepted(marker.accepted);
        return {};
      });
    case RecordType::kOpening:
      return apply_opening(lsn, payload);
    case RecordType::kEpoch:
      return with<EpochRecord>(payload, [&](const EpochRecord& epoch) -> Status {
        epoch_ = epoch.counter;
        return {};
      });
    case RecordType::kGroup:
      return with<GroupRecord>(payload,
                               [&](const GroupRecord& record) { return declare(lsn, record); });
    case RecordType::kSession:
      return with<SessionRecord>(payload, [&](const SessionRecord& session) -> Status {
        const auto id = Uuid::from_bytes(session.session.bytes);
        if (!id) return Error{ErrorCode::kCorrupt, "a session id is not 16 bytes", "", 0};
        sessions_[*id] = RecordedSession{*id, session.group, session.worker};
        return {};
      });
    case RecordType::kSessionEnd:
      return with<SessionEndRecord>(payload, [&](const SessionEndRecord& ended) -> Status {
        if (const auto id = Uuid::from_bytes(ended.session.bytes)) sessions_.erase(*id);
        return {};
      });
    case RecordType::kDelivery: {
      auto delivery = decode_delivery(payload);
      if (!delivery.ok()) return delivery.error();
      return in_group(delivery->group, [&](GroupState& state) {
        for (const auto sequence : delivery->sequences.list()) {
          state.delivered(sequence, delivery->number, static_cast<std::uint32_t>(epoch_));
        }
      });
    }
    case RecordType::kSettlement: {
      auto settled = decode_settlement(payload);
      if (!settled.ok()) return settled.error();
      return in_group(settled->group, [&](GroupState& state) {
        for (const auto& run : settled->sequences) state.settle(run, settled->settlement);
      });
    }
    case RecordType::kRetry:
      return with<RetryRecord>(payload, [&](const RetryRecord& retry) {
        return in_group(retry.group, [&](GroupState& state) { state.retry(retry, lsn); });
      });
    case RecordType::kDead:
      return with<DeadRecord>(payload, [&](const DeadRecord& dead) {
        return in_group(dead.group, [&](GroupState& state) { state.dead(dead, lsn); });
      });
    case RecordType::kRevive: {
      auto revived = decode_revive(payload);
      if (!revived.ok()) return revived.error();
      return in_group(revived->group, [&](GroupState& state) {
        for (const auto sequence : revived->sequences.list()) state.revive(sequence);
      });
    }
    case RecordType::kCopy:
      return apply_copy(lsn, payload);
    case RecordType::kStep:
      return with<StepRecord>(payload, [&](const StepRecord& step) -> Status {
        if (step.what > StepCall::kNotDone) {
          return Error{ErrorCode::kCorrupt, "a step is said to be what no step is", "", 0};
        }
        return in_group(step.group, [&](GroupState& state) { state.step(step); });
      });
    case RecordType::kDamage:
      return with<DamageRecord>(payload, [&](const DamageRecord& damage) {
        return in_group(damage.group, [&](GroupState& state) {
          state.damage({damage.first, damage.last, damage.count});
        });
      });
    case RecordType::kLost:
      return {};
  }
  return Error{ErrorCode::kUnsupported,
               "record type " + std::to_string(static_cast<int>(header.type)) +
                   " is not known; run a newer dray",
               "", 0};
}

Status SpoolState::apply_message(const RecordHeader& header, std::string_view payload) {
  auto topic = envelope_topic(payload);
  const bool look_inside = topic.empty() || (header.flags & kHasOptions) != 0;
  if (look_inside) {
    auto envelope = parse_envelope(payload);
    if (!envelope.ok()) return envelope.error();
    topic = envelope->topic;
    // A follow-up counts once by its settlement; its id was not looked at when it was accepted.
    if (!envelope->dedup.empty() && (header.flags & kContinues) == 0) {
      dedup_.add(envelope->dedup, {envelope->id, header.lsn, dedup_hash(topic, envelope->body),
                                   envelope->published_at.time_since_epoch().count()});
    }
  }
  if (routed_topic_ != topic) {
    routed_topic_ = topic;
    routed_.clear();
    for (const auto& each : groups_) {
      if (each->takes(topic, header.lsn)) routed_.push_back(each.get());
    }
  }
  for (auto* each : routed_) each->accept();
  if (lost_from_ != 0) orphans_.emplace_back(header.lsn, topic);
  return {};
}

}  // namespace dray::spool
