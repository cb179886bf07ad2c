// What a DispatcherCore keeps of grants, sessions, lanes and groups. For its own source files only.
#pragma once

#include <algorithm>
#include <array>

#include "dray/balancing/dispatcher_core.hpp"
#include "dray/balancing/planted_fault.hpp"
#include "dray/balancing/run_table.hpp"

namespace dray::balancing {

inline constexpr std::int64_t kClockJumpMs = 60'000;
// A wall clock that has not jumped for so long is believed again.
inline constexpr auto kClockSteady = std::chrono::minutes(5);
// What a message that is read again is thought to take before any was.
inline constexpr std::size_t kFetchBytes = 1U << 20;

inline std::int64_t to_ms(UtcTime time) {
  return time.time_since_epoch().count();
}

inline spool::LogEntry log_entry(spool::RecordType type, std::string payload) {
  return {type, 0, std::move(payload), 0};
}

// What is known of deliveries to one session that are neighbours. Marked: answered; the record is
// on its way to the disk.
struct DispatcherCore::Grant {
  std::uint64_t epoch = 0;
  std::uint32_t number = 1;
  std::uint32_t attempts = 0;  // counted before this delivery
  std::uint16_t losses = 0;
  bool suspect = false;
  Priority priority = Priority::kNormal;
  std::uint32_t bytes = 0;  // of each one's record; of several, as if they were equal
  KeyHash key = 0;          // whose turn it has; then it is alone

  bool operator==(const Grant&) const = default;
  void skip(std::uint64_t) {}
  bool goes_on(const Grant& next, std::uint64_t) const { return key == 0 && *this == next; }
};

// What is to be delivered with one frame, or a few.
struct DispatcherCore::Delivery {
  spool::StoredRun run;
  std::uint32_t number = 1;
  std::uint32_t attempt = 1;
};

struct DispatcherCore::Session {
  using Grants = RunTable<Grant>;

  Uuid id;
  std::string peer;       // empty while disconnected
  std::string gone_peer;  // what it was before that
  std::uint64_t hellos = 0;
  std::string worker;
  spool::GroupId group = 0;
  RetryPolicy retry;
  std::uint32_t window_messages = 1;
  std::uint64_t window_bytes = 1;
  std::size_t unconfirmed_max = 1;
  bool closed = false;      // it gave something back: nothing before it says WINDOW
  bool asks = false;        // in Group::asking
  bool fresh = false;       // in Group::fresh
  bool roomy = false;       // in Group::roomy
  bool confirming = false;  // in confirming_
  std::uint64_t told_waiting = 0;
  bool recorded = false;
  SteadyTime heard_at{};
  SteadyTime pinged_at{};
  std::optional<SteadyTime> broken_at;
  Grants grants;
  std::uint64_t outstanding = 0;  // grants that are not answered
  std::uint64_t outstanding_bytes = 0;
  bool exclusive = false;  // holds a suspect, alone
  bool reserved = false;   // gets nothing until it is empty, for a suspect
  std::vector<Delivery> deliver;
  std::size_t deliver_messages = 0;
  std::size_t deliver_bytes = 0;
  Tokens confirm;
  std::size_t confirm_parts = 0;          // put into it
  std::vector<spool::StepRecord> untold;  // begun while it was not connected

  bool can_receive() const {
    return recorded && !peer.empty() && !broken_at && !closed && !exclusive && !reserved;
  }
  bool has_room() const {
    return outstanding < window_messages &&
           (outstanding == 0 || outstanding_bytes < window_bytes) &&
           grants.size() < unconfirmed_max;
  }
  // How many messages of so many bytes each it has room for. REQUIRES: has_room().
  std::uint32_t room_for(std::uint64_t bytes_each) const {
    const std::uint64_t left = window_bytes - std::min(window_bytes, outstanding_bytes);
    const std::uint64_t by_bytes = left / std::max<std::uint64_t>(1, bytes_each) + 1;
    return static_cast<std::uint32_t>(std::min<std::uint64_t>(
        {window_messages - outstanding, by_bytes, unconfirmed_max - grants.size()}));
  }
  // Those of [first, end) that were not yet: credit returns.
  void answered(Grants::Run& run, Sequence first, Sequence end) {
    const auto count = grants.mark(run, first, end);
    if (count == 0 || planted(Fault::kWindowLeak)) return;
    outstanding -= count;
    outstanding_bytes -= std::uint64_t{count} * run.common.bytes;
    if (run.common.suspect) exclusive = false;
  }
  void answered(Grants::Run& run, Sequence sequence) { answered(run, sequence, sequence + 1); }
};

struct DispatcherCore::LaneState {
  Lane which = Lane::kLive;
  Priority priority = Priority::kNormal;
  std::deque<spool::StoredRun> ready;
  std::size_t messages = 0;  // in ready
  std::size_t bytes = 0;     // of their records
  Sequence cursor = 0;       // next sequence that is not in memory
  std::uint64_t passed = 0;  // messages of the group below cursor; of the live normal lane only
  bool caught_up = false;    // nothing is left to read
  bool reading = false;      // a Refill is under way
  std::vector<spool::DamagedPart> gaps;  // see spool::BacklogSlice
  bool held_back = false;                // stopped at the limit of held messages
  bool looked = false;                   // in this turn, if it does not account

  // For what lies in the log: the others only look for theirs.
  bool accounts() const { return priority == Priority::kNormal; }
  void push(spool::StoredRun run) {
    messages += run.count;
    bytes += run.bytes();
    ready.push_back(std::move(run));
  }
  // At most `wanted` of the first run. REQUIRES: one is ready.
  spool::StoredRun pop(std::uint32_t wanted) {
    spool::StoredRun front;
    if (wanted < ready.front().count) {
      front = ready.front().split(wanted);
    } else {
      front = std::move(ready.front());
      ready.pop_front();
    }
    messages -= front.count;
    bytes -= front.bytes();
    return front;
  }
};

// Messages that are due, in memory, each read by itself.
class DispatcherCore::DueQueue {
 public:
  bool empty() const { return runs_.empty(); }
  std::size_t size() const { return runs_.size(); }
  std::size_t bytes() const { return bytes_; }
  void push(spool::StoredRun run) {
    bytes_ += run.bytes();
    runs_.push_back(std::move(run));
  }
  // REQUIRES: it is not empty.
  spool::StoredRun pop() {
    auto front = std::move(runs_.front());
    runs_.pop_front();
    bytes_ -= front.bytes();
    return front;
  }
  void take_out(Sequence sequence) {
    std::erase_if(runs_, [&](const auto& each) {
      if (each.first != sequence) return false;
      bytes_ -= each.bytes();
      return true;
    });
  }

 private:
  std::deque<spool::StoredRun> runs_;
  std::size_t bytes_ = 0;
};

// Messages, and the session that answered; nil: none did.
struct DispatcherCore::Answered {
  Uuid session;
  SequenceRun run;
};

struct DispatcherCore::LateMessage {
  Sequence behind = 0;
  Sequence sequence = 0;
  KeyHash key = 0;
};

struct DispatcherCore::Group {
  std::unique_ptr<spool::GroupState> state;
  std::uint64_t accepted_before = 0;                     // by this group before this epoch
  std::array<LaneState, spool::kPriorities> old_lanes;   // index: Priority
  std::array<LaneState, spool::kPriorities> live_lanes;  // the same
  bool gated = false;
  GroupLimits limits;
  std::optional<TokenBucket> bucket;
  std::uint64_t allowed = UINT64_MAX;  // deliveries, by the limits, as of this dispatch
  std::uint64_t turns = 0;             // grants out of lanes, for the shares of priorities
  // Keys.
  KeyLines lines;
  std::deque<Sequence> to_learn;  // messages with a history whose keys are not known yet
  std::size_t learning = 0;       // asked for
  // They get in line once all below `behind` has: messages that were due for the first time, and
  // after a restart those that were in line. Ascending by `behind`.
  std::deque<LateMessage> late;
  std::set<Sequence> adopted;  // after the restart a session said that it holds them
  // Of messages in line whose grant went with its session, or that expired.
  std::unordered_map<Sequence, KeyHash> keys_left;
  // Due time and sequence. What is no longer true is noticed when its time comes: see move_due().
  using Waiting = std::pair<std::int64_t, Sequence>;
  using WaitingQueue = std::priority_queue<Waiting, std::deque<Waiting>, std::greater<>>;
  WaitingQueue waiting;
  WaitingQueue waiting_old;  // the same, behind the restart gate
  DueQueue again;
  DueQueue suspects;
  std::size_t fetching = 0;
  std::size_t fetch_bytes = kFetchBytes;  // what the next one is expected to take
  std::uint64_t not_ready = 0;  // granted, or waiting for their time; as of the last dispatch
  std::vector<Session*> sessions;
  std::vector<Session*> asking;  // have room, and may believe that something waits
  // Of many sessions: those that have room are all in roomy; those that spoke of it last are in
  // fresh too, the last at the end. Who has none any more is taken out when it is met.
  std::vector<Session*> fresh;
  std::vector<Session*> roomy;
  bool any_reserved = false;
  std::vector<Session*> delivering;  // with deliveries to be flushed
  std::uint64_t told_for = 0;        // so many waited when sessions were last told
  std::size_t announced_to = 0;      // where in sessions the next announcement begins
  // Answered since the last flush.
  std::vector<Answered> done;
  SequenceRuns expired;

  // The lanes that account for what lies in the log.
  LaneState& old_lane() { return lane(Lane::kOld, Priority::kNormal); }
  LaneState& live_lane() { return lane(Lane::kLive, Priority::kNormal); }
  LaneState& lane(Lane which, Priority priority) {
    return (which == Lane::kOld ? old_lanes : live_lanes)[static_cast<std::size_t>(priority)];
  }
  bool all_read() const {
    const auto caught_up = [](const LaneState& lane) { return lane.caught_up; };
    return std::all_of(live_lanes.begin(), live_lanes.end(), caught_up) &&
           (gated || std::all_of(old_lanes.begin(), old_lanes.end(), caught_up));
  }
  std::size_t ready_count() const {
    std::size_t count = again.size();
    for (const auto& each : live_lanes) count += each.messages;
    if (gated) return count;
    for (const auto& each : old_lanes) count += each.messages;
    return count;
  }
};

// What a submission means once it is durable.
struct DispatcherCore::Ticket {
  enum class Kind {
    kSession,
    kSettled,
    kRetry,
    kDead,
    kRevive,
    kEdited,
    kReplay,
    kDamage,
    kCopy,
    kGroup,
    kStep,
  };
  Kind kind = Kind::kSettled;
  spool::GroupId group = 0;
  Uuid session;
  spool::Settlement settlement = spool::Settlement::kDone;
  std::vector<Answered> sequences;
  spool::RetryRecord retry;
  spool::DeadRecord dead;
  spool::StepRecord step;
  spool::DamagedPart damage;
  spool::GroupRecord declared;
  std::vector<std::pair<spool::GroupId, spool::Lsn>> copied;  // group, newest record in the copy
  bool report = false;
};

}  // namespace dray::balancing
