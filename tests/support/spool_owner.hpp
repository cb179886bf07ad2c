// SpoolOwner: owns a spool's state as a dispatcher would, on the test's own thread: counts what is
// committed, reads the backlog, settles, writes checkpoints.
//
// Threading: one thread. Ownership: the disk and the clock outlive it.
#pragma once

#include <catch2/catch.hpp>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "dray/spool/backlog.hpp"
#include "dray/spool/spool.hpp"
#include "support/simulated_disk.hpp"

namespace dray::test {

class SpoolOwner final : public spool::CommitListener {
 public:
  // REQUIRE it to open, or look at error().
  SpoolOwner(SimulatedDisk& disk, const spool::SpoolOptions& options) {
    directory_ = disk.directory();
    auto opened = spool::Spool::open(*directory_, clock_, options, Log());
    if (!opened.ok()) {
      error_ = opened.error();
      return;
    }
    spool_ = std::move(*opened);
    groups_ = spool_->take_groups();
    last_ = spool_->segments().next_lsn() - 1;
  }

  bool ok() const { return spool_ != nullptr; }
  const Error& error() const { return *error_; }
  spool::Spool& spool() { return *spool_; }
  spool::GroupState& group(std::size_t index) { return *groups_.at(index); }
  std::optional<Error> failure;

  void on_committed(spool::Committed committed) override {
    for (const auto& run : committed.runs) {
      for (std::size_t i = 0; i < groups_.size(); ++i) {
        if ((run.groups >> i & 1) != 0) groups_[i]->accept(run.count);
      }
    }
    last_ = committed.last;
    position_ = committed.position;
  }
  void on_failed(const Error& error) override { failure = error; }

  Result<Receipt> publish(const std::string& topic, const std::string& body,
                          const PublishOptions& options = {}) {
    Result<Receipt> out = Error{ErrorCode::kTimeout, "no receipt", "", 0};
    spool_->publish_draft(Draft{topic, body, options},
                          [&](Result<Receipt> receipt) { out = std::move(receipt); });
    spool_->commit_pending(*this);
    return out;
  }

  void submit(spool::RecordType type, std::string payload) {
    spool::Submission submission;
    submission.entries.push_back({type, 0, std::move(payload), 0});
    spool_->submit(submission);
    spool_->commit_pending(*this);
  }
  void settle(std::size_t group, Sequence sequence) {
    submit(spool::RecordType::kSettlement,
           encode(spool::SettlementRecord{
               static_cast<spool::GroupId>(group), spool::Settlement::kDone, {sequence}}));
    groups_[group]->settle(sequence, spool::Settlement::kDone);
  }

  // Reads all that waits for a group; counts what is lost, as a dispatcher does.
  std::map<Sequence, std::string> read_backlog(std::size_t group) {
    std::map<Sequence, std::string> out;
    auto& state = *groups_[group];
    spool::LogReader reader(spool_->segments());
    spool::BacklogRequest request{std::min(state.first_plain(), state.known()),
                                  last_ + 1,
                                  state.passed(),
                                  state.known(),
                                  1U << 20,
                                  1U << 30};
    auto slice = spool::read_backlog(reader, state, request);
    REQUIRE(slice.ok());
    for (const auto& [first, last] : slice->skips) state.skip(first, last);
    slice->for_each_message(
        [&](Sequence sequence, const spool::StoredRun&, std::string_view envelope) {
          out[sequence] = parse_envelope(envelope)->body;
        });
    for (const auto sequence : slice->lost) state.settle(sequence, spool::Settlement::kDamaged);
    if (slice->next > state.known()) state.pass(slice->next, slice->passed);
    for (const auto& part : slice->damaged) state.damage(part);
    return out;
  }

  // Reads everything, then writes a checkpoint; two of them free what nothing needs.
  spool::ReclaimPlan checkpoint(const spool::RetainOptions& retain = {}) {
    std::vector<const spool::GroupState*> states;
    for (std::size_t i = 0; i < groups_.size(); ++i) {
      (void)read_backlog(i);
      states.push_back(groups_[i].get());
    }
    auto plan =
        spool::plan_reclaim(spool_->segments().segments(), states, retain, clock_.utc(), 64);
    spool::Snapshot snapshot;
    snapshot.lsn = last_;
    snapshot.position = position_;
    for (const auto* state : states) snapshot.groups.push_back(state->snapshot());
    snapshot.dead = plan.dead;
    spool_->checkpoint(std::move(snapshot));
    spool_->commit_pending(*this);
    spool_->upkeep(*this);
    return plan;
  }

  // Copies these messages to the end of the log.
  void copy(const std::vector<Sequence>& sequences) {
    spool::LogReader reader(spool_->segments());
    std::vector<const spool::GroupState*> states;
    for (const auto& each : groups_) states.push_back(each.get());
    for (const auto sequence : sequences) {
      auto copy = spool::make_copy(reader, sequence, states);
      REQUIRE((copy.ok() && copy->has_value()));
      submit(spool::RecordType::kCopy, to_bytes(**copy));
      for (const auto& each : (*copy)->histories) {
        groups_[each.group]->copied(sequence, last_, each.record_lsn);
      }
    }
  }

  VirtualClock& clock() { return clock_; }

 private:
  VirtualClock clock_;
  std::unique_ptr<Directory> directory_;
  std::unique_ptr<spool::Spool> spool_;
  std::vector<std::unique_ptr<spool::GroupState>> groups_;
  std::optional<Error> error_;
  spool::Lsn last_ = 0;
  spool::LogPosition position_;
};

}  // namespace dray::test
