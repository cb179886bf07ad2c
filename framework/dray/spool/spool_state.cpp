#include "dray/spool/spool_state.hpp"

#include <functional>

namespace dray::spool {

const DedupWindow::Known* DedupWindow::find(const std::string& id, std::int64_t now_ms) const {
  const auto found = known_.find(id);
  const bool known = found != known_.end() && found->second.at_ms + age_max_.count() > now_ms;
  return known ? &found->second : nullptr;
}

void DedupWindow::add(const std::string& id, const Known& known) {
  if (!known_.insert_or_assign(id, known).second) return;
  order_.push_back(id);
  while (order_.size() > count_max_) {
    known_.erase(order_.front());
    order_.pop_front();
  }
}

void DedupWindow::trim(std::int64_t now_ms) {
  while (!order_.empty()) {
    const auto oldest = known_.find(order_.front());
    if (oldest != known_.end() && oldest->second.at_ms + age_max_.count() > now_ms) return;
    if (oldest != known_.end()) known_.erase(oldest);
    order_.pop_front();
  }
}

std::uint64_t dedup_hash(std::string_view topic, std::string_view body) {
  const std::hash<std::string_view> hash;
  return hash(body) * 1099511628211ULL ^ hash(topic);
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

void SpoolState::skip(Lsn first, Lsn last) {
  if (first > last) return;
  for (const auto& each : groups_) each->skip(first, last);
}

Status SpoolState::apply(const Record& record) {
  if ((record.header.flags & kContinues) != 0) {
    held_.emplace_back(record.header, std::string(record.payload));
    return {};
  }
  if (!held_.empty()) {
    // The unit counts only if its records are neighbours of one run of the program.
    const bool whole =
        held_.back().first.lsn + 1 == record.header.lsn && record.header.type != RecordType::kEpoch;
    auto held = std::move(held_);
    held_.clear();
    for (const auto& [header, payload] : held) {
      if (whole) {
        DRAY_TRY(apply_now(header, payload));
      } else {
        skip_in_all(header.lsn);
      }
    }
  }
  return apply_now(record.header, record.payload);
}

void SpoolState::finish() {
  for (const auto& [header, payload] : held_) skip_in_all(header.lsn);
  held_.clear();
}

Status SpoolState::apply_now(const RecordHeader& header, std::string_view payload) {
  const Lsn lsn = header.lsn;
  if (header.type == RecordType::kMessage) return apply_message(lsn, payload);
  skip_in_all(lsn);
  switch (header.type) {
    case RecordType::kEpoch: {
      auto epoch = from_bytes<EpochRecord>(payload);
      if (!epoch.ok()) return epoch.error();
      epoch_ = epoch->counter;
      return {};
    }
    case RecordType::kGroup: {
      auto declared = from_bytes<GroupRecord>(payload);
      if (!declared.ok()) return declared.error();
      if (declared->id > groups_.size() || declared->id >= kGroupsMax) {
        return Error{ErrorCode::kCorrupt, "group ids are not in order", "", 0};
      }
      if (declared->id == groups_.size()) {
        groups_.push_back(std::make_unique<GroupState>(declared->id, declared->name));
        groups_.back()->skip(1, lsn);
      }
      groups_[declared->id]->declare(lsn, declared->topics, declared->standing);
      return {};
    }
    case RecordType::kSession: {
      auto session = from_bytes<SessionRecord>(payload);
      if (!session.ok()) return session.error();
      const auto id = Uuid::from_bytes(session->session.bytes);
      if (!id) return Error{ErrorCode::kCorrupt, "a session id is not 16 bytes", "", 0};
      sessions_[*id] = RecordedSession{*id, session->group, session->worker};
      return {};
    }
    case RecordType::kSessionEnd: {
      auto ended = from_bytes<SessionEndRecord>(payload);
      if (!ended.ok()) return ended.error();
      if (const auto id = Uuid::from_bytes(ended->session.bytes)) sessions_.erase(*id);
      return {};
    }
    case RecordType::kDelivery: {
      auto delivery = decode_delivery(payload);
      if (!delivery.ok()) return delivery.error();
      auto state = group(delivery->group);
      if (!state.ok()) return state.error();
      for (const auto sequence : delivery->sequences) {
        (*state)->delivered(sequence, delivery->number, static_cast<std::uint32_t>(epoch_));
      }
      return {};
    }
    case RecordType::kSettlement: {
      auto settled = decode_settlement(payload);
      if (!settled.ok()) return settled.error();
      auto state = group(settled->group);
      if (!state.ok()) return state.error();
      for (const auto sequence : settled->sequences)
        (*state)->settle(sequence, settled->settlement);
      return {};
    }
    case RecordType::kRetry: {
      auto retry = from_bytes<RetryRecord>(payload);
      if (!retry.ok()) return retry.error();
      auto state = group(retry->group);
      if (!state.ok()) return state.error();
      (*state)->retry(*retry, lsn);
      return {};
    }
    case RecordType::kDead: {
      auto dead = from_bytes<DeadRecord>(payload);
      if (!dead.ok()) return dead.error();
      auto state = group(dead->group);
      if (!state.ok()) return state.error();
      (*state)->dead(*dead, lsn);
      return {};
    }
    case RecordType::kRevive: {
      auto revived = decode_revive(payload);
      if (!revived.ok()) return revived.error();
      auto state = group(revived->group);
      if (!state.ok()) return state.error();
      for (const auto sequence : revived->sequences) (*state)->revive(sequence);
      return {};
    }
    case RecordType::kMarker:
    case RecordType::kMessage:
      return {};
  }
  return Error{ErrorCode::kUnsupported,
               "record type " + std::to_string(static_cast<int>(header.type)) +
                   " is not known; run a newer dray",
               "", 0};
}

Status SpoolState::apply_message(Lsn lsn, std::string_view payload) {
  auto envelope = parse_envelope(payload);
  if (!envelope.ok()) return envelope.error();
  for (const auto& each : groups_) {
    if (each->takes(envelope->topic, lsn)) {
      each->accept();
    } else {
      each->skip(lsn, lsn);
    }
  }
  if (!envelope->dedup.empty()) {
    dedup_.add(std::string(envelope->dedup),
               {envelope->id, lsn, dedup_hash(envelope->topic, envelope->body),
                envelope->published_at.time_since_epoch().count()});
  }
  return {};
}

}  // namespace dray::spool
