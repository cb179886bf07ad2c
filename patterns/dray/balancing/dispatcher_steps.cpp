// DispatcherCore: steps (Delivery::once): what begins and ends is recorded, and then answered.
//
// One step of one message:
//
//   (none) --BEGIN--> begun by run R --DONE(value)--> done
//     ^                   |
//     +----NOT DONE by R--+
//
// BEGIN by R again: recorded (its answer was lost). By another run: unknown.
#include <algorithm>

#include "dray/balancing/dispatcher_state.hpp"

namespace dray::balancing {

using spool::Submission;

namespace {

constexpr std::size_t kStepBytesMax = 64U << 20;  // of all journals of a spool
constexpr const char* kTooManySteps = "a message has at most 32 steps";
static_assert(kStepsMax == 32);

spool::StepRecord record_of(spool::GroupId group, const Step& step, std::int64_t at_ms) {
  return {group, step.sequence, step.what, step.run, step.step, Binary{step.value}, at_ms};
}

}  // namespace

bool DispatcherCore::holds(const Session& session, Sequence sequence) const {
  const auto* run = session.grants.find(sequence);
  return run != nullptr && !run->is_marked(sequence);
}

bool DispatcherCore::has_step_room(const Group& group, const Step& step) const {
  const auto* journal = group.state->steps().find(step.sequence);
  return journal == nullptr || journal->size() < kStepsMax;
}

// Why no step may begin now; empty if one may.
std::string DispatcherCore::step_fault() const {
  return room_ ? journal_fault() : "the spool is full";
}

// Why no more may be remembered of steps; empty if more may.
std::string DispatcherCore::journal_fault() const {
  std::size_t bytes = 0;
  for (const auto& each : groups_) bytes += each->state->steps().bytes();
  if (bytes < kStepBytesMax) return "";
  return "the steps of open messages take as much memory as they may (64 MiB)";
}

void DispatcherCore::on_step(Session& session, const Step& step, Now now) {
  Group& group = *groups_[session.group];
  const auto answer = [&](StepAnswer what, const std::string& value) {
    send(session, encode(Stepped{step.sequence, step.run, step.what, step.step, what, value}));
  };
  const auto* run = session.grants.find(step.sequence);
  const bool granted = holds(session, step.sequence) && run->common.epoch == step.epoch &&
                       run->common.number == step.number;
  const bool forgotten = step.sequence < options_.boundary && planted(Fault::kStepForgotten);
  const auto* known = forgotten ? nullptr : group.state->steps().find(step.sequence, step.step);
  if (known != nullptr && undoing_.count({session.group, step.sequence, known->run}) != 0) {
    known = nullptr;  // the record that says so is on its way
  }
  const bool own = known != nullptr && (known->run == step.run || planted(Fault::kStepOfAnother));
  // Who began a step may say how it ended, whoever has the message now.
  if (!granted && !(own && step.what != StepCall::kBegin)) {
    return answer(StepAnswer::kRefused, "this delivery was lost: the message is another's");
  }
  if (known != nullptr && known->done) {
    if (step.what == StepCall::kBegin) return answer(StepAnswer::kDoneBefore, known->value);
    return answer(StepAnswer::kRecorded, "");
  }
  if (step.what == StepCall::kBegin) {
    if (own) {
      std::erase_if(session.untold, [&](const spool::StepRecord& each) {
        return each.sequence == step.sequence && each.run == step.run;
      });
    }
    if (known != nullptr) return answer(own ? StepAnswer::kRecorded : StepAnswer::kUnknown, "");
    if (!has_step_room(group, step)) return answer(StepAnswer::kRefused, kTooManySteps);
    if (const auto fault = step_fault(); !fault.empty()) return answer(StepAnswer::kBusy, fault);
    if (planted(Fault::kStepBeforeCommit)) answer(StepAnswer::kRecorded, "");
  } else if (step.what == StepCall::kDone && known == nullptr) {
    // What another run began is known no more, or nobody began it: that takes as much as a
    // beginning, but it took effect, and a full spool is no reason to forget it.
    if (!has_step_room(group, step)) return answer(StepAnswer::kRefused, kTooManySteps);
    if (const auto fault = journal_fault(); !fault.empty()) {
      return answer(StepAnswer::kRefused, fault);
    }
  } else if (step.what == StepCall::kNotDone && !own) {
    const std::tuple key{session.group, step.sequence, step.run};
    if (stepping_.count(key) != 0) {  // it is not durable yet, and given up already
      given_up_.insert(key);
      return;
    }
    // An earlier handling began it too, and of that nothing is known.
    return answer(StepAnswer::kRecorded, "");
  }
  // Repeated after a reconnect: answered with the commit.
  if (!stepping_.insert({session.group, step.sequence, step.run}).second) return;
  Ticket ticket;
  ticket.kind = Ticket::Kind::kStep;
  ticket.group = session.group;
  ticket.session = session.id;
  ticket.step = record_of(session.group, step, to_ms(now.utc));
  Submission submission;
  submission.entries.push_back(log_entry(spool::RecordType::kStep, to_bytes(ticket.step)));
  submission.ticket = open_ticket(std::move(ticket));
  actions_.submissions.push_back(std::move(submission));
}

void DispatcherCore::on_step_recorded(const Ticket& ticket, Now now) {
  const auto& record = ticket.step;
  Group& group = *groups_[ticket.group];
  group.state->step(record);
  stepping_.erase({ticket.group, record.sequence, record.run});
  undoing_.erase({ticket.group, record.sequence, record.run});
  const bool given_up = given_up_.erase({ticket.group, record.sequence, record.run}) != 0;
  if (ticket.session.is_nil()) {  // nobody waits: a person decided, or it is undone
    for (const auto& [session, run] : ticket.sequences) {
      if (group.state->revive(run.first)) schedule(group, run.first, 0);
    }
    return;
  }
  const auto found = sessions_.find(ticket.session);
  const bool held = found != sessions_.end() && holds(*found->second, record.sequence);
  // The delivery was lost meanwhile, and its worker was never told to go on: nothing ran.
  const bool begins = record.what == StepCall::kBegin;
  if (begins && (!held || given_up)) return undo_step(record, now);
  if (begins && found->second->peer.empty()) found->second->untold.push_back(record);
  if (found == sessions_.end()) return;
  send(*found->second, encode(Stepped{record.sequence, record.run, record.what, record.step,
                                      StepAnswer::kRecorded, ""}));
}

// Of what the handling that ended was never told: nothing ran.
void DispatcherCore::undo_untold(Session& session, Sequence sequence, Now now) {
  if (session.untold.empty()) return;
  std::erase_if(session.untold, [&](const spool::StepRecord& each) {
    if (each.sequence != sequence) return false;
    undo_step(each, now);
    return true;
  });
}

// Its worker never heard of this beginning, and never will: it did not happen.
void DispatcherCore::undo_step(const spool::StepRecord& begun, Now now) {
  if (planted(Fault::kStepNotUndone)) return;
  undoing_.insert({begun.group, begun.sequence, begun.run});
  Ticket ticket;
  ticket.kind = Ticket::Kind::kStep;
  ticket.group = begun.group;
  ticket.step = begun;
  ticket.step.what = StepCall::kNotDone;
  ticket.step.at_ms = to_ms(now.utc);
  Submission submission;
  submission.entries.push_back(log_entry(spool::RecordType::kStep, to_bytes(ticket.step)));
  submission.ticket = open_ticket(std::move(ticket));
  actions_.submissions.push_back(std::move(submission));
}

Result<std::uint64_t> DispatcherCore::decide(spool::GroupId group_id, Sequence dead,
                                             const std::string& step,
                                             const std::optional<std::string>& value, Now now) {
  Group& group = *groups_[group_id];
  const auto* history = group.state->history(dead);
  const auto* known = group.state->steps().find(dead, step);
  if (history == nullptr || !history->dead() || known == nullptr || known->done) {
    std::string open;
    if (const auto* steps = group.state->steps().find(dead)) {
      for (const auto& each : *steps) {
        if (!each.done) open += (open.empty() ? "" : ", ") + each.name;
      }
    }
    return Error{ErrorCode::kNotFound,
                 "message " + std::to_string(dead) + " is no dead letter of group '" +
                     group.state->name() + "' with an undecided step '" + step + "'" +
                     (open.empty() ? "" : "; undecided: " + open),
                 "", 0};
  }
  Ticket ticket;
  ticket.kind = Ticket::Kind::kStep;
  ticket.group = group_id;
  ticket.report = true;
  ticket.step = {group_id,      dead, value ? StepCall::kDone : StepCall::kNotDone,
                 known->run,    step, Binary{value.value_or("")},
                 to_ms(now.utc)};
  Submission submission;
  submission.entries.push_back(log_entry(spool::RecordType::kStep, to_bytes(ticket.step)));
  const auto& steps = *group.state->steps().find(dead);
  const bool last = std::all_of(steps.begin(), steps.end(), [&](const spool::StepState& each) {
    return each.done || each.name == step;
  });
  if (last) {  // S6: decided and pending again, or neither
    submission.entries.front().flags = spool::kContinues;
    submission.entries.push_back(log_entry(spool::RecordType::kRevive,
                                           spool::encode(spool::ReviveRecord{group_id, {dead}})));
    ticket.sequences.push_back({Uuid{}, {dead, 1}});
  }
  submission.ticket = open_ticket(std::move(ticket));
  const auto number = submission.ticket;
  actions_.submissions.push_back(std::move(submission));
  return number;
}

}  // namespace dray::balancing
