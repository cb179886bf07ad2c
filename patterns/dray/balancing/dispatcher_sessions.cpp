// DispatcherCore: sessions: HELLO, what they hold, how they end, and the gate after a restart.
#include <algorithm>

#include "dray/balancing/dispatcher_state.hpp"

namespace dray::balancing {

using spool::RecordType;
using spool::Submission;

void DispatcherCore::on_hello(const std::string& peer, const Hello& hello, Now now) {
  const auto group_id = find_group(hello.group);
  if (!group_id) {
    actions_.sends.push_back(
        {peer, encode(Refused{"unknown-group", "this spool has no group '" + hello.group + "'"})});
    return;
  }
  // A connection has one session: another is begun by one that left the first.
  if (auto* before = session_of_peer(peer); before != nullptr && before->id != hello.session) {
    end_session(*before, "another session on its connection", false, now);
  }
  const auto known = sessions_.find(hello.session);
  if (known == sessions_.end() && sessions_.size() >= options_.sessions_max) {
    actions_.sends.push_back({peer, encode(Refused{"too-many-sessions", "try again later"})});
    return;
  }
  const bool fresh = known == sessions_.end();
  auto& slot = sessions_[hello.session];
  if (fresh) {
    slot = std::make_unique<Session>();
    slot->id = hello.session;
    slot->group = *group_id;
    slot->unconfirmed_max = options_.unconfirmed_max;
    groups_[*group_id]->sessions.push_back(slot.get());
  }
  Session& session = *slot;
  const bool same_connection = session.peer == peer;
  // What an old connection brought may be read after what came by the next one.
  if (!fresh && !same_connection && hello.count <= session.hellos) {
    actions_.sends.push_back(
        {peer, encode(Refused{"unknown-session", "a later HELLO of this session came"})});
    return;
  }
  session.hellos = hello.count;
  peers_.erase(session.peer);
  peers_.erase(session.gone_peer);
  session.gone_peer.clear();
  session.peer = peer;
  peers_[peer] = &session;
  session.worker = hello.worker;
  session.retry = hello.retry;
  session.window_messages = std::min(hello.window_messages, options_.window_messages_max);
  session.window_bytes = std::min(hello.window_bytes, options_.window_bytes_max);
  session.heard_at = session.pinged_at = now.steady;
  session.broken_at.reset();
  session.closed = false;
  session.told_waiting = 0;
  note_due(session);
  if (!fresh) {
    reconcile(session, hello.held, same_connection, now);
    note_room(session);
    if (session.recorded) welcome(session);
    return;
  }
  adopt(session, hello.held, now);
  if (recorded_.count(session.id) != 0) {  // the log knows it from an earlier epoch
    session.recorded = true;
    note_room(session);
    return welcome(session);
  }
  if (planted(Fault::kSessionNotRecorded)) {
    session.recorded = true;
    note_room(session);
    return welcome(session);
  }
  Ticket ticket;
  ticket.kind = Ticket::Kind::kSession;
  ticket.session = session.id;
  Submission submission;
  submission.entries.push_back(log_entry(
      RecordType::kSession, to_bytes(spool::SessionRecord{Binary{std::string(session.id.view())},
                                                          session.group, session.worker})));
  submission.ticket = open_ticket(std::move(ticket));
  actions_.submissions.push_back(std::move(submission));
}

void DispatcherCore::welcome(Session& session) {
  send(session, encode(Welcome{options_.spool, options_.epoch,
                               static_cast<std::uint32_t>(options_.lease.count()),
                               static_cast<std::uint32_t>(options_.reconnect_grace.count())}));
  // The others were told when it began to wait.
  const auto waiting = waiting_in(*groups_[session.group]);
  if (!session.has_room() && waiting > 0) tell_waiting(session, waiting);
}

// A session that this epoch does not know yet says what it holds (P5). Behind the gate its word
// is taken, if the log grants it no later delivery to anyone; else it is told to forget.
void DispatcherCore::adopt(Session& session, const std::vector<TokenRange>& held, Now) {
  Group& group = *groups_[session.group];
  const bool expected = expected_.erase(session.id) != 0;
  const auto forget = [&](const TokenRange& range, const SequenceRun& run) {
    confirm(session, range.epoch, range.number, run);
    if (session.confirm_parts >= kFrameSequencesMax) flush_confirm(session);
  };
  if (!group.gated || !expected || planted(Fault::kHeldNotBelieved)) {  // however many it names
    for (const auto& range : held) {
      for (const auto& run : range.sequences) forget(range, run);
    }
    return;
  }
  for (const auto& range : held) {
    for (const auto sequence : range.sequences.list()) {
      const auto* history = group.state->history(sequence);
      const bool later_grant =
          history != nullptr &&
          (history->dead() || history->number_epoch() > static_cast<std::uint32_t>(range.epoch) ||
           history->number() > range.number ||
           (history->ended() && history->number() == range.number));
      const bool believed = sequence < options_.boundary && !later_grant &&
                            !group.state->is_settled(sequence) &&
                            !session.grants.contains(sequence);
      // Only who is believed takes it from another.
      if (!believed || held_elsewhere(group, session, sequence, range)) {
        forget(range, {sequence, 1});
        continue;
      }
      Grant grant;
      grant.epoch = range.epoch;
      grant.number = range.number;
      if (history != nullptr) {
        grant.attempts = history->attempts();
        grant.losses = static_cast<std::uint16_t>(history->losses());
      }
      // With an entry at hand neither the old lane nor the waiting queue takes it.
      group.state->delivered(sequence, range.number, static_cast<std::uint32_t>(range.epoch));
      group.state->take(sequence);
      session.grants.add(sequence, 1, grant);
      ++session.outstanding;
      if (!group.limits.ordered || planted(Fault::kKeysForgotten)) continue;
      group.adopted.insert(sequence);
      group.to_learn.push_back(sequence);
    }
  }
}

// Both may say that they hold it: the delivery record of the later grant was lost in the crash. The
// later grant counts; its elder is told to forget.
bool DispatcherCore::held_elsewhere(Group& group, const Session& session, Sequence sequence,
                                    const TokenRange& range) {
  for (auto* other : group.sessions) {
    if (other == &session) continue;
    auto* run = other->grants.find(sequence);
    if (run == nullptr) continue;
    const Grant theirs = run->common;
    const bool later =
        std::pair(range.epoch, range.number) > std::pair(theirs.epoch, theirs.number);
    if (!later || run->is_marked(sequence)) return true;
    other->answered(*run, sequence);
    confirm(*other, theirs.epoch, theirs.number, sequence);
    other->grants.erase(sequence);
    note_room(*other);
  }
  return false;
}

// A session of this epoch reconnected: what it does not hold never reached it. Unless it only
// repeats itself: then it may be on its way.
void DispatcherCore::reconcile(Session& session, const std::vector<TokenRange>& held,
                               bool same_connection, Now now) {
  SequenceRuns holds;
  for (const auto& range : held) {
    for (const auto& run : range.sequences) {
      Sequence next = run.first;
      const auto stale = [&](Sequence from, Sequence until) {
        if (from < until) confirm(session, range.epoch, range.number, {from, until - from});
      };
      session.grants.for_parts(
          run, [&](Session::Grants::Run& grants, Sequence from, Sequence until) {
            stale(next, from);
            next = until;
            const Grant& grant = grants.common;
            if (grant.epoch != range.epoch || grant.number != range.number)
              return stale(from, until);
            Session::Grants::for_here(grants, from, until,
                                      [&](const SequenceRun& part) { holds.add(part); });
            Session::Grants::for_missing(grants, from, until, [&](const SequenceRun& part) {
              stale(part.first, part.end());
            });
          });
      stale(next, run.end());
    }
  }
  if (same_connection || planted(Fault::kHeldNotReconciled)) return;
  holds.sort();
  for (const auto sequence : session.grants.all_unmarked().list()) {
    if (!holds.contains(sequence)) take_back(session, sequence, now);
  }
}

// A grant that is not answered ends without an attempt.
void DispatcherCore::take_back(Session& session, Sequence sequence, Now now) {
  auto& run = *session.grants.find(sequence);
  const Grant grant = run.common;
  session.answered(run, sequence);
  session.grants.erase(sequence);
  undo_untold(session, sequence, now);
  give_back(*groups_[session.group], sequence, grant, now);
}

void DispatcherCore::on_unsent(const Send& send, Now now) {
  Session* session = session_of_peer(send.peer);
  if (session == nullptr) return;
  if (!session->peer.empty()) {
    // The next frames to it come back too: they must still find the session.
    session->gone_peer = std::exchange(session->peer, {});
    session->broken_at = now.steady;
    note_due(*session);
  }
  const auto frame = decode_frame(send.frame, send.records);
  if (planted(Fault::kUnsentCounts)) return;
  const auto* deliver = frame.ok() ? std::get_if<Deliver>(&*frame) : nullptr;
  if (deliver == nullptr) return;
  // P4: it never arrived, so it is no attempt, and others can have it now.
  SequenceRuns unsent;
  for (const auto& sent : deliver->records.runs) {
    session->grants.for_parts(
        {sent.first, sent.count}, [&](Session::Grants::Run& grants, Sequence from, Sequence until) {
          const Grant& grant = grants.common;
          if (grant.epoch != deliver->epoch || grant.number != deliver->number) return;
          Session::Grants::for_unmarked(grants, from, until,
                                        [&](const SequenceRun& part) { unsent.add(part); });
        });
  }
  for (const auto sequence : unsent.list()) take_back(*session, sequence, now);
}

void DispatcherCore::on_stuck(const Send& send, Now now) {
  on_unsent(send, now);
  peers_.erase(send.peer);
}

void DispatcherCore::end_session(Session& session, const std::string& reason, bool lost, Now now) {
  Group& group = *groups_[session.group];
  session.grants.for_runs([&](const Session::Grants::Run& run) {
    const KeyHash key = run.common.key;  // then it is alone
    if (key == 0) return;
    group.keys_left[run.first()] = key;
    if (lost && run.marked() == 0 && planted(Fault::kLostFreesKey)) {
      release_key(group, run.first(), key);
    }
  });
  if (lost) {
    lose_grants(session, reason, now);
  } else {
    for (const auto sequence : session.grants.all_unmarked().list()) {
      auto& run = *session.grants.find(sequence);
      session.answered(run, sequence);
      give_back(group, sequence, run.common, now);
    }
  }
  for (const auto& begun : session.untold) undo_step(begun, now);
  Submission submission;
  submission.entries.push_back(
      log_entry(RecordType::kSessionEnd,
                to_bytes(spool::SessionEndRecord{Binary{std::string(session.id.view())}, reason})));
  submission.lazy = true;
  actions_.submissions.push_back(std::move(submission));
  recorded_.erase(session.id);
  peers_.erase(session.peer);
  peers_.erase(session.gone_peer);
  auto& list = group.sessions;
  list.erase(std::remove(list.begin(), list.end(), &session), list.end());
  for (auto* each : {&group.asking, &group.fresh, &group.roomy, &group.delivering, &confirming_}) {
    std::erase(*each, &session);
  }
  sessions_.erase(session.id);  // `session` is gone from here on
}

// P4: a message that was alone with the worker when it died counts an attempt; those that were in
// company are suspects and come back one at a time.
void DispatcherCore::lose_grants(Session& session, const std::string& reason, Now now) {
  Group& group = *groups_[session.group];
  const bool alone = session.outstanding == 1;
  if (planted(Fault::kLostNotReturned)) return;
  const auto lost =
      planted(Fault::kSettlingLost) ? session.grants.all_here() : session.grants.all_unmarked();
  for (const auto sequence : lost.list()) {
    const Grant grant = session.grants.find(sequence)->common;
    if (alone) {
      fail_attempt(session, group, grant, sequence, "lost", reason, std::nullopt, now);
    } else {
      write_retry(group, session, grant, sequence, grant.attempts, grant.losses + 1U,
                  to_ms(now.utc), true, reason + ", in company", now);
    }
  }
}

void DispatcherCore::open_gates(Now now) {
  const bool over = now.steady - std::max(started_, listening_since_) >= options_.lease;
  for (const auto& group : groups_) {
    if (!group->gated) continue;
    const bool waiting = std::any_of(expected_.begin(), expected_.end(), [&](const Uuid& id) {
      return recorded_.at(id).group == group->state->id();
    });
    if (waiting && !over) continue;
    group->gated = false;
    for (; !group->waiting_old.empty(); group->waiting_old.pop()) {
      group->waiting.push(group->waiting_old.top());
    }
    for (auto each = expected_.begin(); each != expected_.end();) {
      if (recorded_.at(*each).group != group->state->id()) {
        ++each;
        continue;
      }
      Submission submission;
      submission.entries.push_back(
          log_entry(RecordType::kSessionEnd,
                    to_bytes(spool::SessionEndRecord{Binary{std::string(each->view())},
                                                     "silent after a restart"})));
      submission.lazy = true;
      actions_.submissions.push_back(std::move(submission));
      recorded_.erase(*each);
      each = expected_.erase(each);
    }
  }
}

void DispatcherCore::expel(const Uuid& session, Now now) {
  const auto found = sessions_.find(session);
  if (found != sessions_.end()) end_session(*found->second, "expelled", false, now);
}

}  // namespace dray::balancing
