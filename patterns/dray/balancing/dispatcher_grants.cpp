// DispatcherCore: who gets what, and the frames and records of it.
#include <algorithm>

#include "dray/balancing/dispatcher_state.hpp"

namespace dray::balancing {

using spool::RecordType;
using spool::Submission;

namespace {

constexpr std::size_t kFrameMessagesMax = 1'024;
constexpr std::size_t kFrameBytesMax = 1U << 20;
constexpr std::size_t kGrantChunkMax = 128;
constexpr std::size_t kSettlementSequencesMax = 65'536;

}  // namespace

DispatcherCore::Session* DispatcherCore::least_loaded(Group& group, Now, std::size_t& with_room) {
  Session* best = nullptr;
  double best_load = 0;
  with_room = 0;
  for (auto* session : group.sessions) {
    if (!session->can_receive() || !session->has_room()) continue;
    ++with_room;
    const double load =
        static_cast<double>(session->outstanding) / static_cast<double>(session->window_messages);
    if (best == nullptr || load < best_load) {
      best = session;
      best_load = load;
    }
  }
  return best;
}

void DispatcherCore::expire(Group& group, Sequence sequence) {
  group.expired.push_back(sequence);
}

void DispatcherCore::grant(Group& group, Session& session, const ReadyMessage& message, Now) {
  const auto* history = group.state->history(message.sequence);
  Grant grant;
  grant.epoch = options_.epoch;
  grant.bytes = static_cast<std::uint32_t>(message.envelope.size());
  if (history != nullptr) {
    grant.number = history->number() + (planted(Fault::kNumberStands) ? 0 : 1);
    grant.attempts = history->attempts();
    grant.losses = static_cast<std::uint16_t>(history->losses());
    grant.suspect = history->suspect();
  }
  session.deliver.push_back({message.sequence, grant.number, grant.attempts + 1, message.envelope});
  session.deliver_owners.push_back(message.owner);
  session.deliver_bytes += message.envelope.size();
  ++session.outstanding;
  session.outstanding_bytes += grant.bytes;
  if (grant.suspect) session.exclusive = true;
  session.grants.insert_or_assign(message.sequence, grant);
  if (session.deliver.size() >= kFrameMessagesMax || session.deliver_bytes >= kFrameBytesMax) {
    flush_deliveries(session);
  }
}

// Grants the first of what is ready: due again, then old, then new. False if nothing is.
bool DispatcherCore::grant_front(Group& group, Session& session, Now now) {
  LaneState* lane = nullptr;
  std::deque<ReadyMessage>* queue = &group.again;
  if (queue->empty()) {
    if (held_full()) return false;
    lane = !group.gated && !group.old_lane.ready.empty() ? &group.old_lane : &group.live_lane;
    queue = &lane->ready;
  }
  if (queue->empty()) return false;
  ReadyMessage message = std::move(queue->front());
  queue->pop_front();
  if (lane != nullptr) lane->bytes -= message.envelope.size();
  if (lane == nullptr && group.state->is_settled(message.sequence)) return true;  // dropped since
  if (is_expired(message, now)) {
    expire(group, message.sequence);
  } else {
    grant(group, session, message, now);
  }
  return true;
}

void DispatcherCore::grant_suspects(Group& group, Now now) {
  while (!group.suspects.empty()) {
    Session* idle = nullptr;
    Session* least = nullptr;
    bool reserved = false;
    for (auto* session : group.sessions) {
      if (!session->recorded || session->peer.empty() || session->broken_at || session->exclusive ||
          session->window_messages == 0) {
        continue;
      }
      reserved = reserved || session->reserved;
      if (session->outstanding == 0 || planted(Fault::kSuspectsInCompany)) idle = session;
      if (least == nullptr || session->outstanding < least->outstanding) least = session;
    }
    if (idle == nullptr) {
      if (!reserved && least != nullptr) least->reserved = true;
      return;
    }
    idle->reserved = false;
    const ReadyMessage message = std::move(group.suspects.front());
    group.suspects.pop_front();
    if (group.state->is_settled(message.sequence)) continue;  // dropped since
    if (is_expired(message, now)) {
      expire(group, message.sequence);
    } else {
      grant(group, *idle, message, now);
    }
  }
  for (auto* session : group.sessions) session->reserved = false;
}

void DispatcherCore::dispatch(Group& group, Now now) {
  grant_suspects(group, now);
  for (;;) {
    // P8: at the limit only what is held already goes out.
    const std::size_t ready = held_full() ? group.again.size() : group.ready_count();
    if (ready == 0) break;
    std::size_t with_room = 0;
    Session* session = least_loaded(group, now, with_room);
    if (session == nullptr) break;
    // Shrinks as the backlog does, so that the last few are spread over all.
    const std::size_t chunk = std::clamp<std::size_t>(ready / (2 * with_room), 1, kGrantChunkMax);
    for (std::size_t i = 0; i < chunk && session->has_room(); ++i) {
      if (!grant_front(group, *session, now)) break;
    }
  }
  for (auto* session : group.sessions) flush_deliveries(*session);
}

void DispatcherCore::flush_deliveries(Session& session) {
  if (session.deliver.empty()) return;
  // Delivery records ride in the next commit. A crash before that is covered by the session's own
  // word in HELLO: see adopt().
  std::map<std::uint32_t, std::vector<Sequence>> by_number;
  for (const auto& delivered : session.deliver) {
    by_number[delivered.number].push_back(delivered.sequence);
  }
  Submission submission;
  submission.lazy = true;
  for (auto& [number, sequences] : by_number) {
    std::sort(sequences.begin(), sequences.end());
    submission.entries.push_back(log_entry(
        RecordType::kDelivery,
        spool::encode(spool::DeliveryRecord{session.group, session.id, number, sequences})));
  }
  actions_.submissions.push_back(std::move(submission));
  send(session, encode(Deliver{options_.epoch, std::move(session.deliver)}));
  session.deliver.clear();
  session.deliver_owners.clear();
  session.deliver_bytes = 0;
}

void DispatcherCore::flush_settlements() {
  const auto settle_piece = [&](Group& group, spool::Settlement settlement,
                                std::vector<std::pair<Uuid, Sequence>> answered) {
    std::vector<Sequence> sequences;
    sequences.reserve(answered.size());
    for (const auto& [session, sequence] : answered) sequences.push_back(sequence);
    std::sort(sequences.begin(), sequences.end());
    Submission submission;
    submission.entries.push_back(log_entry(
        RecordType::kSettlement, spool::encode(spool::SettlementRecord{
                                     group.state->id(), settlement, std::move(sequences)})));
    submission.lazy = true;
    Ticket ticket;
    ticket.group = group.state->id();
    ticket.settlement = settlement;
    ticket.sequences = std::move(answered);
    submission.ticket = open_ticket(std::move(ticket));
    actions_.submissions.push_back(std::move(submission));
  };
  const auto settle = [&](Group& group, spool::Settlement settlement,
                          std::vector<std::pair<Uuid, Sequence>> answered) {
    while (answered.size() > kSettlementSequencesMax) {
      const auto rest = answered.end() - static_cast<std::ptrdiff_t>(kSettlementSequencesMax);
      settle_piece(group, settlement, {rest, answered.end()});
      answered.erase(rest, answered.end());
    }
    settle_piece(group, settlement, std::move(answered));
  };
  for (const auto& group : groups_) {
    if (!group->done.empty()) settle(*group, spool::Settlement::kDone, std::move(group->done));
    group->done.clear();
    if (group->expired.empty()) continue;
    std::vector<std::pair<Uuid, Sequence>> expired;
    for (const auto sequence : group->expired) expired.emplace_back(Uuid{}, sequence);
    group->expired.clear();
    settle(*group, spool::Settlement::kExpired, std::move(expired));
  }
}

void DispatcherCore::flush_confirms() {
  for (const auto& [id, session] : sessions_) {
    if (session->confirm.empty() || session->peer.empty()) continue;
    Confirm confirm;
    for (auto& [token, sequences] : session->confirm) {
      std::sort(sequences.begin(), sequences.end());
      sequences.erase(std::unique(sequences.begin(), sequences.end()), sequences.end());
      confirm.tokens.push_back({token.first, token.second, std::move(sequences)});
    }
    session->confirm.clear();
    send(*session, encode(confirm));
  }
}

}  // namespace dray::balancing
