// DispatcherCore: decides what is delivered to whom, and what becomes of it. Pure: frames, commits
// and the time in; frames, records and reads out.
//
// One message for one group:
//
//   waiting ----due----> ready --grant()--> granted --on_result()--> settling --commit--> settled
//      ^                   ^                  |  |                      |   (done, expired)
//      |                   +--returned, never-+  |                      +--commit--> dead
//      |                      arrived            +--lose(): alone,      |
//      +--------------------------------------------in company----------+--commit--> waiting
//                                                                          (retry, snooze)
// One session:
//
//   HELLO --> recording --session record durable--> active --BYE, lease over, grace over--> ended
//               (a session that the log knows is active at once)
//
// Each priority of a group is a cursor of its own through the log; the one of normal messages
// accounts for what lies there. Messages with a key (P10) are all normal: they get their key's turn
// as they come to the front, in order (KeyLines), or leave their bytes and stand in line. After a
// restart the keys of messages with a history are read from the log first; until then, and until
// what is older went out, messages with a key wait.
//
// Promises: P2, P3 (a result counts only for the grant it names), P4 (attempts), P5 (after a
// restart nothing older is delivered until every recorded session spoke or one lease passed), P8
// (memory: ready messages are bounded per group, the rest is read back from the log), P10.
//
// Threading: one thread. Failure: bad frames change nothing. Ownership: owns the group states and
// sessions; messages share their bytes with the batch they came in.
#pragma once

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <queue>
#include <random>
#include <set>
#include <string>
#include <tuple>
#include <unordered_map>
#include <vector>

#include "dray/balancing/key_lines.hpp"
#include "dray/balancing/protocol.hpp"
#include "dray/balancing/token_bucket.hpp"
#include "dray/spool/backlog.hpp"
#include "dray/spool/spool.hpp"

namespace dray::balancing {

struct DispatcherOptions {
  Uuid spool;
  std::uint64_t epoch = 0;
  Sequence boundary = 1;  // first sequence of this epoch
  Milliseconds lease{10'000};
  Milliseconds reconnect_grace{2'000};
  std::size_t ready_messages_max = 65'536;  // per group and lane, in memory
  std::size_t ready_bytes_max = 16U << 20;  // the same in bytes
  Milliseconds confirm_within{5};           // what has no delivery to go with
  Milliseconds snooze_age_max = std::chrono::hours(24 * 30);
  std::size_t sessions_max = 4'096;
  // Of one session, whatever window it says: nobody takes a whole backlog away from the others.
  std::uint32_t window_messages_max = 100'000;
  std::uint64_t window_bytes_max = 256U << 20;
  std::size_t unconfirmed_max = kUnconfirmedMax;  // deliveries, at most that
  std::size_t key_reads_max = 512;     // keys read from the log in one turn, after a restart
  std::uint64_t held_max = 1'000'000;  // dead, delayed and retrying messages, over all groups
  spool::RetainOptions retain;
  std::int64_t last_utc_ms = 0;               // the latest time that the log names; 0: none
  std::map<std::string, GroupLimits> limits;  // by group; others have none
  Milliseconds publisher_memory{0};           // for so long the spool knows dedup ids
  std::uint64_t seed = 1;                     // of the jitter
};

// Messages from before this epoch wait behind the restart gate; those of this epoch do not.
enum class Lane : std::uint8_t { kOld, kLive };

struct Now {
  SteadyTime steady{};
  UtcTime utc{};
};

struct SessionStatus {
  Uuid id;
  std::string worker;
  std::string group;
  std::uint64_t outstanding = 0;
  std::uint32_t window = 0;
  bool connected = false;
};

struct GroupStatus {
  std::string name;
  std::vector<std::string> topics;
  bool attached = true;
  spool::GroupCounts counts;
  std::uint64_t in_flight = 0;
  std::uint64_t delayed = 0;  // retrying, snoozed or not yet due
  std::uint64_t held = 0;     // messages with a history: delayed and dead; they cost memory
  std::uint64_t workers = 0;
  bool gated = false;  // waits after a restart for sessions to speak
  bool paused = false;
  GroupLimits limits;
  std::uint64_t in_line = 0;  // messages that have the turn of their key, or wait for it
};

class DispatcherCore {
 public:
  struct Send {
    std::string peer;
    std::string frame;
    // The second frame of a DELIVER, and who keeps its bytes.
    std::string_view records = {};
    std::shared_ptr<const void> owner = nullptr;
  };
  // Read messages of `group` from the log; answer with on_refilled.
  struct Refill {
    spool::GroupId group = 0;
    Lane lane = Lane::kLive;
    spool::BacklogRequest request;  // names the priority
  };
  // Read one message again; answer with on_fetched.
  struct Fetch {
    spool::GroupId group = 0;
    Sequence sequence = 0;
  };
  struct Actions {
    std::vector<Send> sends;
    std::vector<spool::Submission> submissions;
    std::vector<Refill> refills;
    std::vector<Fetch> fetches;
    std::vector<Fetch> key_reads;         // whose keys are to be read: answer with on_key
    std::vector<std::uint64_t> finished;  // tickets of administration that are durable
    bool empty() const {
      return sends.empty() && submissions.empty() && refills.empty() && fetches.empty() &&
             key_reads.empty() && finished.empty();
    }
  };
  // Spool::route.
  using Router = std::function<std::optional<spool::GroupMask>(std::string_view topic)>;

  DispatcherCore(const DispatcherOptions& options,
                 std::vector<std::unique_ptr<spool::GroupState>> groups,
                 const std::vector<spool::RecordedSession>& recorded, Router router, Now now);
  ~DispatcherCore();

  void on_frame(const std::string& peer, const ProtocolFrame& frame, Now now);
  // The frame did not go: the peer is gone. What it would have delivered is free at once.
  void on_unsent(const Send& send, Now now);
  // The same, but the peer is there and takes nothing: if it speaks, it has to say HELLO.
  void on_stuck(const Send& send, Now now);
  // Some connection broke; which one is not known: ask all, and again soon, for the news may come
  // before the socket refuses to send there.
  void on_link_broken(Now now);
  void on_committed(const spool::Committed& committed, Now now);
  void on_refilled(const Refill& refill, spool::BacklogSlice slice);
  // 0: no key, or the message cannot be read.
  void on_key(spool::GroupId group, Sequence sequence, KeyHash key, Now now);
  // Nothing: the record is damaged.
  void on_fetched(spool::GroupId group, Sequence sequence, std::optional<spool::StoredRun> message);
  void tick(Now now);

  // Grants what can be granted and hands over all that is to be done.
  Actions take_actions(Now now);
  // Checkpoints and room. `due`: enough was written since the last checkpoint.
  struct Upkeep {
    std::optional<spool::Snapshot> snapshot;  // to be handed to the spool
    std::vector<Sequence> to_copy;            // read them and answer with on_copied or on_lost
  };
  Upkeep upkeep(const std::vector<spool::SegmentSummary>& segments, bool due, Now now);
  std::vector<const spool::GroupState*> group_states() const;
  void on_copied(const spool::CopyRecord& copy);
  // No group can have this message any more: it cannot be read.
  void on_lost(Sequence sequence);
  // Spool::takes_follow_ups(): without room results with follow-ups are put off, and no step
  // begins.
  void set_room(bool room) { room_ = room; }

  // When tick() must be called again at the latest.
  SteadyTime next_deadline(Now now) const;

  // Administration. 0: no such group. The ticket comes back in Actions::finished.
  std::optional<spool::GroupId> find_group(std::string_view name) const;
  const spool::GroupState& group_state(spool::GroupId group) const;
  std::uint64_t revive(spool::GroupId group, const std::vector<Sequence>& dead);
  std::uint64_t drop(spool::GroupId group, const std::vector<Sequence>& dead);
  // Another body for this group, and another chance. `copy` is what the group has of it now.
  std::uint64_t revive_edited(spool::GroupId group, const spool::CopyRecord& copy);
  // What became of a step of a dead letter whose end is not recorded: it took effect, with this
  // value (MessagePack), or (nothing) it did not. When no other is open, the message is pending
  // again. kNotFound for a step that is not open.
  Result<std::uint64_t> decide(spool::GroupId group, Sequence dead, const std::string& step,
                               const std::optional<std::string>& value, Now now);
  // In words, why a message that is open is not delivered now, and what to do about it.
  std::string why_waiting(spool::GroupId group, Sequence sequence, KeyHash key, Now now) const;
  // A settled message, or one that the group never had, is accepted and delivered once more. One
  // that is open is left as it is.
  std::uint64_t replay(spool::GroupId group, Sequence settled, std::string envelope);
  // While paused nothing is delivered; what is granted already goes on. Survives restarts.
  std::uint64_t set_paused(spool::GroupId group, bool paused);
  // The group takes nothing any more and all that is open in it is dropped; its sessions end.
  std::uint64_t drop_group(spool::GroupId group);
  std::vector<GroupStatus> group_status() const;
  std::vector<SessionStatus> session_status() const;
  // Who holds the message, or has answered and waits for the commit.
  struct Holder {
    Uuid session;
    std::string worker;
    std::uint32_t number = 0;  // of the delivery
    bool settling = false;
  };
  std::optional<Holder> holder_of(spool::GroupId group, Sequence sequence) const;
  std::uint64_t stale_results() const { return stale_results_; }
  // Messages with a history, over all groups; at the limit nothing new is granted.
  std::uint64_t held() const;
  bool held_full() const { return held() >= options_.held_max; }
  // The wall clock jumped: nothing expires until it has been steady for a while, or is confirmed.
  bool expiry_paused(Now now) const { return now.steady < expiry_paused_until_; }
  bool knows(const Uuid& session) const { return sessions_.count(session) != 0; }
  // As if it had said BYE.
  void expel(const Uuid& session, Now now);
  void confirm_clock() { expiry_paused_until_ = {}; }

 private:
  struct Grant;
  struct Delivery;
  struct Answered;
  struct Session;
  struct LaneState;
  class DueQueue;
  struct Group;
  struct Ticket;
  struct LateMessage;

  void on_hello(const std::string& peer, const Hello& hello, Now now);
  void adopt(Session& session, const std::vector<TokenRange>& held, Now now);
  bool held_elsewhere(Group& group, const Session& session, Sequence sequence,
                      const TokenRange& range);
  void reconcile(Session& session, const std::vector<TokenRange>& held, bool same_connection,
                 Now now);
  void welcome(Session& session);
  void on_result(Session& session, const ResultFrame& frame, Now now);
  void apply_done(Session& session, const ResultItem& item, const SequenceRun& run, Now now);
  void apply_result(Session& session, const ResultItem& item, Sequence sequence, Now now);
  void apply_each(Session& session, const ResultItem& item, const SequenceRun& run, Now now);
  void refuse_stale(Session& session, const ResultItem& item, const SequenceRun& run);
  void finish_done(Session& session, Group& group, const Grant& grant, Sequence sequence,
                   const ResultItem& item, Now now);
  void note_done(Group& group, const Uuid& session, const SequenceRun& run);
  void on_step(Session& session, const Step& step, Now now);
  std::string step_fault() const;
  std::string journal_fault() const;
  bool has_step_room(const Group& group, const Step& step) const;
  void undo_untold(Session& session, Sequence sequence, Now now);
  void on_step_recorded(const Ticket& ticket, Now now);
  void undo_step(const spool::StepRecord& begun, Now now);
  bool holds(const Session& session, Sequence sequence) const;
  void fail_attempt(Session& session, Group& group, const Grant& grant, Sequence sequence,
                    const std::string& cause, const std::string& reason,
                    std::optional<Milliseconds> delay, Now now);
  void snooze(Session& session, Group& group, const Grant& grant, Sequence sequence,
              const ResultItem& item, Now now);
  void write_dead(Group& group, Session& session, const Grant& grant, Sequence sequence,
                  std::uint32_t attempts, const std::string& cause, const std::string& reason,
                  Now now);
  void write_retry(Group& group, Session& session, const Grant& grant, Sequence sequence,
                   std::uint32_t attempts, std::uint32_t losses, std::int64_t due_ms, bool suspect,
                   const std::string& reason, Now now);
  void give_back(Group& group, Sequence sequence, const Grant& grant, Now now);
  void end_session(Session& session, const std::string& reason, bool lost, Now now);
  void take_back(Session& session, Sequence sequence, Now now);
  void lose_grants(Session& session, const std::string& reason, Now now);

  void accept(Group& group, const spool::Committed& committed);
  void schedule(Group& group, Sequence sequence, std::int64_t due_ms);
  void move_due(Group& group, Now now);
  void open_gates(Now now);
  bool has_room(const LaneState& lane) const;
  bool takes_due(const Group& group) const;
  void settle_damaged(Group& group, const std::vector<Sequence>& sequences);
  void record_damage(Group& group, const spool::DamagedPart& part);
  bool held_back(const Group& group) const;
  void update_known(Group& group);
  std::vector<spool::SessionRecord> recorded_sessions() const;
  void watch_clock(Now now);
  bool is_expired(const Group& group, const spool::StoredRun& message, Now now) const;
  void request_refills(Group& group);
  void expire(Group& group, const spool::StoredRun& message);
  std::uint32_t grant_front(Group& group, Session& session, std::size_t most, Now now);
  std::uint32_t grant_run(Group& group, Session& session, LaneState& lane, std::size_t most);
  void grant_suspects(Group& group, Now now);
  void dispatch(Group& group, Now now);
  std::uint64_t waiting_in(const Group& group) const;
  std::uint64_t waiting_without_limits(const Group& group) const;
  void announce(Group& group);
  void tell_waiting(Session& session, std::uint64_t waiting);
  void note_room(Session& session);
  Session* least_loaded(Group& group, std::size_t& with_room);
  Session* least_loaded_of_many(Group& group, std::size_t& with_room);
  void look_after_sessions(Now now);
  void ask_links(Now now);
  void note_due(const Session& session);
  SteadyTime silent_at(const Session& session) const;
  SteadyTime gone_at(const Session& session) const;
  void confirm(Session& session, std::uint64_t epoch, std::uint32_t number, const SequenceRun& run);
  void confirm(Session& session, std::uint64_t epoch, std::uint32_t number, Sequence sequence) {
    confirm(session, epoch, number, SequenceRun{sequence, 1});
  }
  void find_keys_of_revived(Group& group, const Ticket& ticket);
  void apply_ticket(Group& group, const Ticket& ticket, Sequence sequence, spool::Lsn first);
  void end_grants(Group& group, const Ticket& ticket);
  void grant(Group& group, Session& session, spool::StoredRun run);
  void record_deliveries(Session& session);
  void flush_deliveries(Session& session);
  void send_deliveries(Session& session, std::vector<spool::StoredRun>& runs, const Deliver& head);
  void settle_answered(Group& group, spool::Settlement settlement, std::vector<Answered> answered);
  void flush_settlements();
  void flush_confirm(Session& session);
  void flush_confirms();
  void ping(Session& session);
  void send(const Session& session, std::string frame);
  void on_ticket(const Ticket& ticket, spool::Lsn first, Now now);
  void on_group_ticket(const Ticket& ticket, spool::Lsn first, Now now);
  void place_lanes(Group& group);
  bool wants_look(const Group& group, const LaneState& lane) const;
  bool looks_on(const Group& group) const;
  void learn_keys(Group& group);
  Sequence position(const Group& group) const;
  void add_late(Group& group, LateMessage late);
  void line_up_late(Group& group, Sequence reached);
  bool keys_known(const Group& group) const;
  bool has_turn(Group& group, const spool::StoredRun& message);
  void release_key(Group& group, Sequence sequence, KeyHash key);
  bool stalls(const Group& group, const LaneState& lane) const;
  LaneState* next_lane(Group& group);
  std::uint64_t allowance(Group& group, Now now) const;
  std::uint64_t submit_group(const Group& group, spool::GroupRecord record);
  void accept_run(Group& group, spool::AcceptedRun run, const spool::Committed& committed,
                  bool share, Sequence& skip_from);
  void accept_into(Group& group, LaneState& lane, const spool::AcceptedRun& run,
                   std::shared_ptr<const spool::Records> records);
  void note_first_open(Group& group);
  std::uint64_t open_ticket(Ticket ticket);
  Milliseconds back_off(const RetryPolicy& policy, std::uint32_t attempts);
  Session* session_of_peer(const std::string& peer);

  const DispatcherOptions options_;
  const Router router_;
  const SteadyTime started_;
  std::vector<std::unique_ptr<Group>> groups_;
  std::map<Uuid, std::unique_ptr<Session>> sessions_;
  std::unordered_map<std::string, Session*> peers_;
  std::vector<Session*> confirming_;  // with something to be confirmed
  SteadyTime sessions_due_at_{};      // nothing is due of any session before
  SteadyTime ticked_at_;
  SteadyTime listening_since_;   // without a pause that is worth speaking of
  SteadyTime confirms_since_{};  // the first of them; while confirming_ is not empty
  SteadyTime heard_now_{};       // as of the last call with a time
  SteadyTime link_broken_at_{};
  std::size_t links_asked_ = SIZE_MAX;  // how often since then; SIZE_MAX: none broke
  std::set<Uuid> expected_;             // recorded sessions that did not speak yet
  std::map<Uuid, spool::RecordedSession> recorded_;
  spool::LogPosition position_;                 // behind the last record that was heard of
  std::size_t damage_pending_ = 0;              // records of damage that are not durable yet
  std::size_t copying_ = 0;                     // copies that are not durable yet
  std::optional<std::int64_t> wall_offset_ms_;  // wall clock minus steady clock
  SteadyTime expiry_paused_until_{};
  Sequence accepted_until_;  // one past the last position of the log that was heard of
  std::unordered_map<std::uint64_t, Ticket> tickets_;
  std::uint64_t last_ticket_ = 0;
  std::uint64_t stale_results_ = 0;
  bool room_ = true;
  // Group, sequence and run of what is on its way to the disk.
  std::set<std::tuple<spool::GroupId, Sequence, std::uint64_t>> stepping_;
  std::set<std::tuple<spool::GroupId, Sequence, std::uint64_t>> undoing_;   // the same
  std::set<std::tuple<spool::GroupId, Sequence, std::uint64_t>> given_up_;  // while it begins
  std::int64_t now_ms_ = 0;  // UTC, as of the last take_actions()
  std::mt19937_64 random_;
  Actions actions_;
};

}  // namespace dray::balancing
