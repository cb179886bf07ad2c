// DispatcherBench: plays spool, network and clock for one DispatcherCore.
//
// Threading: one thread. Failure: Catch2 failures.
#pragma once

#include <algorithm>
#include <catch2/catch.hpp>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "dray/balancing/dispatcher_core.hpp"
#include "support/records.hpp"

namespace dray::test {

using namespace dray::balancing;
using namespace std::chrono_literals;

// With one group "g" of topic "t".
class DispatcherBench {
 public:
  explicit DispatcherBench(std::vector<spool::RecordedSession> recorded = {}, Sequence boundary = 2,
                           std::unique_ptr<spool::GroupState> state = nullptr,
                           std::uint64_t held_max = 1'000'000,
                           const std::function<void(DispatcherOptions&)>& tweak = {}) {
    if (!state) {
      state = std::make_unique<spool::GroupState>(spool::GroupId{0}, "g");
      state->declare(1, {"t"}, spool::GroupStanding::kAttached);
    }
    std::vector<std::unique_ptr<spool::GroupState>> groups;
    groups.push_back(std::move(state));
    DispatcherOptions options;
    options.epoch = 5;
    options.boundary = boundary;
    options.held_max = held_max;
    options.confirm_within = Milliseconds(0);
    if (tweak) tweak(options);
    next_ = boundary;
    core = std::make_unique<DispatcherCore>(
        options, std::move(groups), recorded,
        [](std::string_view topic) -> std::optional<spool::GroupMask> {
          if (topic != "t") return std::nullopt;
          return spool::GroupMask{1};
        },
        now());
  }

  Now now() const { return {clock.steady(), clock.utc()}; }

  Sequence publish(std::optional<UtcTime> expires_at = std::nullopt,
                   std::optional<UtcTime> deliver_at = std::nullopt) {
    const auto ms = [](const std::optional<UtcTime>& time) {
      return time ? time->time_since_epoch().count() : 0;
    };
    const Sequence sequence = next_++;
    spool::Committed committed;
    committed.first = committed.last = sequence;
    stored[sequence] = records_of({sequence}, "envelope " + std::to_string(sequence));
    committed.records = stored[sequence];
    committed.runs.push_back(
        {sequence, 1, 0, 1, Priority::kNormal, false, ms(deliver_at), ms(expires_at)});
    core->on_committed(committed, now());
    settle_down();
    return sequence;
  }

  // With an ordering key, of which the bench knows what the log would say.
  Sequence publish_keyed(const std::string& key) {
    const Sequence sequence = next_++;
    Draft draft;
    draft.topic = "t";
    draft.options.key = key;
    stored[sequence] = records_of({sequence}, encode_envelope(draft, Uuid{}, clock.utc()));
    keys[sequence] = spool::key_hash(key);
    spool::Committed committed;
    committed.first = committed.last = sequence;
    committed.records = stored[sequence];
    committed.runs.push_back({sequence, 1, 0, 1, Priority::kNormal, true});
    core->on_committed(committed, now());
    settle_down();
    return sequence;
  }

  // So many in one commit: neighbours.
  Sequence publish_run(std::uint32_t count) {
    const Sequence first = next_;
    std::vector<Sequence> sequences;
    for (std::uint32_t i = 0; i < count; ++i) sequences.push_back(next_++);
    for (const auto sequence : sequences) stored[sequence] = records_of({sequence}, "run");
    spool::Committed committed;
    committed.first = first;
    committed.last = next_ - 1;
    committed.records = records_of(sequences, "run");
    committed.runs.push_back({first, count, 0, 1});
    core->on_committed(committed, now());
    settle_down();
    return first;
  }

  std::uint64_t hellos = 0;

  void hello(const std::string& peer, const Uuid& session, std::uint32_t window = 10,
             std::vector<TokenRange> held = {}) {
    Hello hello;
    hello.count = ++hellos;
    hello.session = session;
    hello.group = "g";
    hello.window_messages = window;
    hello.window_bytes = 1 << 20;
    hello.retry.max_attempts = 3;
    hello.retry.jitter = 0;
    hello.held = std::move(held);
    core->on_frame(peer, hello, now());
    settle_down();
  }

  void answer(const std::string& peer, Sequence sequence, ResultKind kind, std::uint32_t number = 1,
              std::uint64_t epoch = 5) {
    ResultFrame frame;
    frame.items.push_back({kind, {epoch, number, {sequence}}, "because", -1, {}});
    core->on_frame(peer, frame, now());
    settle_down();
  }

  void answer_run(const std::string& peer, Sequence first, std::uint64_t count,
                  std::uint32_t number = 1) {
    ResultFrame frame;
    frame.items.push_back({ResultKind::kDone, {5, number, {}}, "", -1, {}});
    frame.items.back().tokens.sequences.add(first, count);
    core->on_frame(peer, frame, now());
    settle_down();
  }

  void window(const std::string& peer, std::uint32_t messages) {
    core->on_frame(peer, Window{messages, 1 << 20}, now());
    settle_down();
  }

  // As a dispatcher that lives: it looks at the clock at least four times a lease.
  void advance(std::chrono::nanoseconds by) {
    constexpr std::chrono::nanoseconds kMost = 2s;
    do {
      const auto step = std::min(by, kMost);
      clock.advance(step);
      core->tick(now());
      settle_down();
      by -= step;
    } while (by.count() > 0);
  }
  // As one whose process is stopped meanwhile.
  void sleep(std::chrono::nanoseconds by) {
    clock.advance(by);
    core->tick(now());
    settle_down();
  }

  // Carries out all actions, commits at once, until nothing is left to do.
  void settle_down() {
    for (auto actions = core->take_actions(now()); !actions.empty();
         actions = core->take_actions(now())) {
      for (auto& send : actions.sends) {
        auto frame = decode_frame(send.frame, send.records);
        REQUIRE(frame.ok());
        if (const auto* deliver = std::get_if<Deliver>(&*frame)) {
          last_waiting[send.peer] = deliver->waiting;
          ++delivers;
          for (const auto& run : deliver->records.runs) {
            for (std::uint32_t i = 0; i < run.count; ++i) {
              delivered[send.peer].push_back({run.first + i, deliver->number, deliver->attempt});
            }
          }
        } else if (const auto* confirm = std::get_if<Confirm>(&*frame)) {
          for (const auto& range : confirm->tokens) {
            for (const auto sequence : range.sequences.list()) {
              confirmed[send.peer].push_back(sequence);
            }
          }
        } else if (std::holds_alternative<Heartbeat>(*frame)) {
          ++heartbeats;
        } else if (const auto* backlog = std::get_if<Backlog>(&*frame)) {
          told[send.peer].push_back(backlog->waiting);
        } else if (const auto* busy = std::get_if<Busy>(&*frame)) {
          for (const auto& range : busy->tokens) {
            for (const auto sequence : range.sequences.list()) {
              put_off[send.peer].push_back(sequence);
            }
          }
        } else if (const auto* refused = std::get_if<Refused>(&*frame)) {
          refusals.push_back(refused->code);
        }
      }
      for (auto& submission : actions.submissions) {
        if (commits) {
          commit(submission);
        } else {
          uncommitted.push_back(submission);
        }
      }
      for (const auto& refill : actions.refills) {
        const auto& state = core->group_state(refill.group);
        spool::BacklogSlice slice;
        slice.next = refill.request.before;
        if (!refill.request.accounts) {  // all are of normal priority here
          core->on_refilled(refill, std::move(slice));
          continue;
        }
        Sequence skip_from = refill.request.from;
        for (auto each = stored.lower_bound(refill.request.from);
             each != stored.end() && each->first < refill.request.before; ++each) {
          if (each->first >= refill.request.known) ++slice.passed;
          if (skip_from < each->first) slice.skips.emplace_back(skip_from, each->first - 1);
          skip_from = each->first + 1;
          if (!state.is_plain(each->first)) continue;
          slice.runs.push_back(stored_run(each->first));
        }
        if (skip_from < slice.next) slice.skips.emplace_back(skip_from, slice.next - 1);
        core->on_refilled(refill, std::move(slice));
      }
      for (const auto& each : actions.key_reads) {
        core->on_key(each.group, each.sequence, key_of(each.sequence), now());
      }
      for (const auto& fetch : actions.fetches) {
        core->on_fetched(fetch.group, fetch.sequence, stored_run(fetch.sequence));
        fetched_bytes += stored.at(fetch.sequence)->bytes();
      }
      CHECK(core->group_state(0).counts().balanced());  // P2
    }
  }

  // What was not committed while `commits` was false.
  void commit_all() {
    commits = true;
    for (const auto& submission : std::exchange(uncommitted, {})) commit(submission);
    settle_down();
  }

  const spool::GroupCounts& counts() const { return core->group_state(0).counts(); }

  VirtualClock clock;
  std::unique_ptr<DispatcherCore> core;
  std::map<std::string, std::vector<std::uint64_t>> told;
  std::map<std::string, std::vector<Sequence>> put_off;  // by BUSY
  std::map<std::string, std::uint64_t> last_waiting;
  int heartbeats = 0;
  std::size_t fetched_bytes = 0;
  struct Delivery {
    Sequence sequence = 0;
    std::uint32_t number = 0;
    std::uint32_t attempt = 0;
  };
  int delivers = 0;  // frames
  std::map<std::string, std::vector<Delivery>> delivered;
  std::map<std::string, std::vector<Sequence>> confirmed;
  std::vector<std::string> refusals;
  std::map<Sequence, std::shared_ptr<const spool::Records>> stored;
  std::map<Sequence, spool::KeyHash> keys;
  std::vector<spool::RecordType> records;
  bool commits = true;
  std::vector<spool::Submission> uncommitted;

  void commit_now(const spool::Submission& submission) { commit(submission); }

 private:
  spool::KeyHash key_of(Sequence sequence) const {
    const auto found = keys.find(sequence);
    return found == keys.end() ? 0 : found->second;
  }
  spool::StoredRun stored_run(Sequence sequence) const {
    spool::StoredRun run{sequence, 1, 0, stored.at(sequence)};
    run.key = key_of(sequence);
    return run;
  }
  void commit(const spool::Submission& submission) {
    spool::Committed committed;
    committed.first = next_;
    for (const auto& entry : submission.entries) {
      records.push_back(entry.type);
      ++next_;
    }
    committed.last = next_ - 1;
    if (submission.ticket != 0) committed.tickets.emplace_back(submission.ticket, committed.first);
    core->on_committed(committed, now());
  }
  Sequence next_ = 1;
};

inline const Uuid kOne = *Uuid::from_text("00000000-0000-4000-8000-000000000001");
inline const Uuid kTwo = *Uuid::from_text("00000000-0000-4000-8000-000000000002");

}  // namespace dray::test
