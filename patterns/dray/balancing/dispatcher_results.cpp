// DispatcherCore: what becomes of an answer.
#include <algorithm>
#include <cmath>

#include "dray/balancing/dispatcher_state.hpp"

namespace dray::balancing {

using spool::LogEntry;
using spool::RecordType;
using spool::Submission;

namespace {

constexpr std::uint64_t kSettledRunMax = 65'536;  // sequences

}  // namespace

void DispatcherCore::on_result(Session& session, const ResultFrame& frame, Now now) {
  for (const auto& item : frame.items) {
    const bool plain = item.kind == ResultKind::kDone && item.follow_ups.empty() &&
                       !planted(Fault::kStaleResultAccepted) &&
                       !planted(Fault::kConfirmBeforeCommit);
    for (const auto& run : item.tokens.sequences) {
      if (plain) {
        apply_done(session, item, run, now);
        continue;
      }
      apply_each(session, item, run, now);
    }
  }
  note_room(session);
}

// A peer may name a million that it does not have: those are refused as runs.
void DispatcherCore::apply_each(Session& session, const ResultItem& item, const SequenceRun& run,
                                Now now) {
  SequenceRuns granted;
  if (planted(Fault::kStaleResultAccepted)) {
    granted.add(run);
  } else {
    session.grants.for_parts(run, [&](Session::Grants::Run& grants, Sequence from, Sequence until) {
      Session::Grants::for_here(grants, from, until,
                                [&](const SequenceRun& part) { granted.add(part); });
    });
  }
  Sequence next = run.first;
  for (const auto& part : granted) {
    if (next < part.first) refuse_stale(session, item, {next, part.first - next});
    for (Sequence sequence = part.first; sequence < part.end(); ++sequence) {
      apply_result(session, item, sequence, now);
    }
    next = part.end();
  }
  if (next < run.end()) refuse_stale(session, item, {next, run.end() - next});
}

// P3: told to forget, nothing changes.
void DispatcherCore::refuse_stale(Session& session, const ResultItem& item,
                                  const SequenceRun& run) {
  stale_results_ += run.count;
  confirm(session, item.tokens.epoch, item.tokens.number, run);
  // A peer may make up as many as it likes.
  if (session.confirm_parts >= kFrameSequencesMax) flush_confirm(session);
}

// What apply_result() does for each, for many at a time: done, without follow-ups.
void DispatcherCore::apply_done(Session& session, const ResultItem& item, const SequenceRun& run,
                                Now now) {
  using Grants = Session::Grants;
  Group& group = *groups_[session.group];
  Sequence next = run.first;
  session.grants.for_parts(run, [&](Grants::Run& grants, Sequence from, Sequence until) {
    if (next < from) refuse_stale(session, item, {next, from - next});
    next = until;
    const Grant& grant = grants.common;
    if (grant.epoch != item.tokens.epoch || grant.number != item.tokens.number) {
      return refuse_stale(session, item, {from, until - from});
    }
    Grants::for_missing(grants, from, until,
                        [&](const SequenceRun& part) { refuse_stale(session, item, part); });
    // Those that are repeated are confirmed with the commit.
    Grants::for_unmarked(grants, from, until, [&](const SequenceRun& part) {
      note_done(group, session.id, part);
      for (Sequence sequence = part.first; !session.untold.empty() && sequence < part.end();
           ++sequence) {
        undo_untold(session, sequence, now);
      }
    });
    session.answered(grants, from, until);
  });
  if (next < run.end()) refuse_stale(session, item, {next, run.end() - next});
}

void DispatcherCore::note_done(Group& group, const Uuid& session, const SequenceRun& run) {
  if (!group.done.empty()) {
    auto& before = group.done.back();
    if (before.session == session && before.run.end() == run.first &&
        before.run.count + run.count <= kSettledRunMax) {
      before.run.count += run.count;
      return;
    }
  }
  group.done.push_back({session, run});
}

void DispatcherCore::apply_result(Session& session, const ResultItem& item, Sequence sequence,
                                  Now now) {
  Group& group = *groups_[session.group];
  auto* run = session.grants.find(sequence);
  if (run == nullptr && planted(Fault::kStaleResultAccepted)) {
    for (auto* other : group.sessions) {
      auto* theirs = other->grants.find(sequence);
      if (theirs == nullptr || theirs->is_marked(sequence)) continue;
      const Grant grant = theirs->common;
      other->answered(*theirs, sequence);
      return finish_done(*other, group, grant, sequence, item, now);
    }
  }
  const bool same = run != nullptr && run->common.epoch == item.tokens.epoch &&
                    run->common.number == item.tokens.number;
  if (!same) return refuse_stale(session, item, {sequence, 1});
  if (run->is_marked(sequence)) return;  // repeated; the confirmation comes with the commit
  const Grant grant = run->common;
  const bool busy = item.kind == ResultKind::kDone && !item.follow_ups.empty() && !room_;
  if (busy) return send(session, encode(Busy{{{grant.epoch, grant.number, {sequence}}}}));
  session.answered(*run, sequence);
  undo_untold(session, sequence, now);
  switch (item.kind) {
    case ResultKind::kDone:
      if (planted(Fault::kConfirmBeforeCommit)) {
        confirm(session, grant.epoch, grant.number, sequence);
      }
      return finish_done(session, group, grant, sequence, item, now);
    case ResultKind::kRetry: {
      std::optional<Milliseconds> delay;
      if (item.delay_ms >= 0) {
        delay =
            Milliseconds(std::min<std::int64_t>(item.delay_ms, options_.snooze_age_max.count()));
      }
      return fail_attempt(session, group, grant, sequence, "attempts", item.reason, delay, now);
    }
    case ResultKind::kSnooze:
      return snooze(session, group, grant, sequence, item, now);
    case ResultKind::kReject:
      return write_dead(group, session, grant, sequence, grant.attempts + 1, "rejected",
                        item.reason, now);
    case ResultKind::kReturned:
      session.closed = true;
      give_back(group, sequence, grant, now);
      confirm(session, grant.epoch, grant.number, sequence);
      session.grants.erase(sequence);
  }
}

void DispatcherCore::finish_done(Session& session, Group& group, const Grant& grant,
                                 Sequence sequence, const ResultItem& item, Now now) {
  if (item.follow_ups.empty()) return note_done(group, session.id, {sequence, 1});
  Submission submission;
  for (const auto& envelope : item.follow_ups) {
    const auto parsed = parse_envelope(envelope);
    const auto route = parsed.ok() ? router_(parsed->topic) : std::nullopt;
    if (!route) {
      return fail_attempt(session, group, grant, sequence, "unroutable",
                          "unroutable: no group takes the follow-up's topic" +
                              (parsed.ok() ? " '" + std::string(parsed->topic) + "'" : ""),
                          std::nullopt, now);
    }
    LogEntry message = log_entry(RecordType::kMessage, envelope);
    const bool has_options = !parsed->dedup.empty() || parsed->deliver_at || parsed->expires_at;
    message.flags = static_cast<std::uint8_t>(
        spool::message_flags(parsed->priority, has_options, !parsed->key.empty()) |
        spool::kContinues);
    message.groups = *route;
    submission.entries.push_back(std::move(message));
  }
  // S6: the follow-ups and the settlement count together or not at all.
  submission.entries.push_back(
      log_entry(RecordType::kSettlement,
                spool::encode(spool::SettlementRecord{
                    session.group, spool::Settlement::kDone, {sequence}, to_ms(now.utc)})));
  submission.lazy = true;
  Ticket ticket;
  ticket.group = session.group;
  ticket.sequences.push_back({session.id, {sequence, 1}});
  submission.ticket = open_ticket(std::move(ticket));
  actions_.submissions.push_back(std::move(submission));
}

Milliseconds DispatcherCore::back_off(const RetryPolicy& policy, std::uint32_t attempts) {
  const double doubled =
      static_cast<double>(policy.initial.count()) * std::exp2(std::min(attempts - 1, 40U));
  const double bounded = std::min(doubled, static_cast<double>(policy.max.count()));
  std::uniform_real_distribution<double> spread(1 - policy.jitter, 1 + policy.jitter);
  return Milliseconds(std::llround(bounded * spread(random_)));
}

void DispatcherCore::fail_attempt(Session& session, Group& group, const Grant& grant,
                                  Sequence sequence, const std::string& cause,
                                  const std::string& reason, std::optional<Milliseconds> delay,
                                  Now now) {
  const std::uint32_t attempts = grant.attempts + (planted(Fault::kAttemptNotCounted) ? 0 : 1);
  if (attempts >= session.retry.max_attempts) {
    return write_dead(group, session, grant, sequence, attempts, cause, reason, now);
  }
  const auto wait = delay.value_or(back_off(session.retry, attempts));
  write_retry(group, session, grant, sequence, attempts, grant.losses, to_ms(now.utc + wait), false,
              reason, now);
}

void DispatcherCore::snooze(Session& session, Group& group, const Grant& grant, Sequence sequence,
                            const ResultItem& item, Now now) {
  const auto delay =
      Milliseconds(std::clamp<std::int64_t>(item.delay_ms, 0, options_.snooze_age_max.count()));
  write_retry(group, session, grant, sequence, grant.attempts, grant.losses, to_ms(now.utc + delay),
              false, item.reason.empty() ? "snoozed" : "snoozed: " + item.reason, now);
}

void DispatcherCore::write_dead(Group& group, Session& session, const Grant& grant,
                                Sequence sequence, std::uint32_t attempts, const std::string& cause,
                                const std::string& reason, Now now) {
  const auto* history = group.state->history(sequence);
  Ticket ticket;
  ticket.kind = Ticket::Kind::kDead;
  ticket.group = group.state->id();
  ticket.sequences.push_back({session.id, {sequence, 1}});
  ticket.dead = {group.state->id(), sequence,       grant.number,
                 attempts,          cause,          reason,
                 session.worker,    to_ms(now.utc), history != nullptr ? history->record_lsn() : 0};
  Submission submission;
  submission.entries.push_back(log_entry(RecordType::kDead, to_bytes(ticket.dead)));
  submission.lazy = true;
  submission.ticket = open_ticket(std::move(ticket));
  actions_.submissions.push_back(std::move(submission));
}

void DispatcherCore::write_retry(Group& group, Session& session, const Grant& grant,
                                 Sequence sequence, std::uint32_t attempts, std::uint32_t losses,
                                 std::int64_t due_ms, bool suspect, const std::string& reason,
                                 Now now) {
  const auto* history = group.state->history(sequence);
  Ticket ticket;
  ticket.kind = Ticket::Kind::kRetry;
  ticket.group = group.state->id();
  ticket.sequences.push_back({session.id, {sequence, 1}});
  ticket.retry = {group.state->id(),
                  sequence,
                  grant.number,
                  attempts,
                  losses,
                  due_ms,
                  suspect,
                  reason,
                  session.worker,
                  to_ms(now.utc),
                  history != nullptr ? history->record_lsn() : 0};
  Submission submission;
  submission.entries.push_back(log_entry(RecordType::kRetry, to_bytes(ticket.retry)));
  submission.lazy = true;
  submission.ticket = open_ticket(std::move(ticket));
  actions_.submissions.push_back(std::move(submission));
}

// The grant ends without an attempt: returned, or it never arrived.
void DispatcherCore::give_back(Group& group, Sequence sequence, const Grant& grant, Now now) {
  group.state->delivered(sequence, grant.number, static_cast<std::uint32_t>(grant.epoch));
  schedule(group, sequence, to_ms(now.utc));
}

}  // namespace dray::balancing
