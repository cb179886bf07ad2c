// Spool: the durable store of one producer. Publishing ends here; dispatching begins here.
//
//   publish_draft() --> framed into a chunk --> committer threads: one chunk, one write, one sync
//                                          --> CommitListener (dispatcher), receipts
//   submit() (dispatcher's records) --^
//   checkpoint() (dispatcher's state) --> committer: makes it durable up to there
//                                          --> upkeep thread: writes it, frees segments
//
// What arrives during one sync goes with the next; there is no waiting on purpose. What came while
// a large chunk was written, if it is a large one too, is written before they are synced together;
// and of two committer threads one writes while the other waits for the disk to sync what is
// before. Listener and receipts hear of them in order. Lazy submissions (settlements) wait up to 5
// ms or 256 entries for a commit to ride on. Whoever waits for a receipt while nothing is being
// committed commits by itself: nobody has to wake.
//
// Promises: P1 (a receipt comes after the sync it claims), P6 (recovery), P7 (a failed write or
// sync poisons the spool; no room refuses new messages and goes on settling).
// Threading: publish_draft, submit and checkpoint from any thread; a publish may wait for room in
// the queue, so never from a receipt callback. open, start, stop from the owner's thread.
// Failure: receipts carry kFull, kUnroutable, kInvalid, kConflict, kUnknown (in a batch whose
// write or sync failed), kClosed. After a failure on_failed() is called once; the process is
// expected to exit and to recover.
// Ownership: Directory, Clock and CommitListener outlive the spool.
#pragma once

#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <thread>
#include <unordered_map>
#include <vector>

#include "dray/log.hpp"
#include "dray/publisher.hpp"
#include "dray/spool/reclaim.hpp"
#include "dray/spool/routes.hpp"
#include "dray/spool/spool_state.hpp"

namespace dray::spool {

struct GroupDeclaration {
  std::string name;
  std::vector<std::string> topics;
};

struct SpoolOptions {
  Durability durability = Durability::kDisk;
  std::uint64_t max_size = 8ULL << 30;  // bytes of segments; settling has a reserve beyond
  std::uint64_t held_max = 1'000'000;   // dead, delayed and retrying messages, over all groups
  MessageLimits limits;
  DedupOptions dedup;
  LogOptions log;
  RetainOptions retain;
  std::vector<std::string> retained_topics;  // may be published without a group
  // The owner's config decides the groups; nothing: serve those that the log has.
  std::optional<std::vector<GroupDeclaration>> groups;
  bool allow_volatile = false;  // accept `disk` durability on tmpfs or NFS
  // What is written at once takes messages until it has so many records, or so many bytes.
  std::size_t write_records = 1024;
  std::size_t write_bytes = 512U << 10;
  // So many bytes are worth a write of their own: while a sync is under way, or before one that has
  // fewer records than this, and fewer bytes.
  std::size_t worth_a_write = 128U << 10;
  std::size_t sync_records = 2048;
  std::size_t sync_bytes = 1U << 20;
};

// Messages that are now as durable as their receipts say: neighbours in the log, of one kind.
struct AcceptedRun {
  Sequence first = 0;
  std::uint32_t count = 1;
  std::uint32_t index = 0;  // of the first, in Committed::records
  GroupMask groups = 0;
  Priority priority = Priority::kNormal;
  bool has_key = false;
  // Then it is one message.
  std::int64_t deliver_at_ms = 0;
  std::int64_t expires_at_ms = 0;
};

// One record that the dispatcher wants in the log.
struct LogEntry {
  RecordType type = RecordType::kMarker;
  std::uint8_t flags = 0;
  std::string payload;
  // For kMessage (follow-ups) only.
  GroupMask groups = 0;
};

// Entries that stay neighbours in the log. A ticket other than 0 is reported when committed.
struct Submission {
  std::vector<LogEntry> entries;
  std::uint64_t ticket = 0;
  bool lazy = false;
};

struct Committed {
  Lsn first = 0;  // all records of this commit: [first, last]
  Lsn last = 0;
  LogPosition position;                                // behind the last one
  std::vector<AcceptedRun> runs;                       // ascending
  std::shared_ptr<const Records> records;              // nothing without runs
  std::vector<std::pair<std::uint64_t, Lsn>> tickets;  // ticket, lsn of its first entry
  bool checkpoint_due = false;                         // enough was written since the last one
  Lsn evidence = 0;  // up to here its records say that all is durable (S3), or further

  // Calls `visit(sequence, run, envelope)` for each message.
  template <typename Visit>
  void for_each_message(const Visit& visit) const {
    for (const auto& run : runs) {
      for (std::uint32_t i = 0; i < run.count; ++i) {
        visit(run.first + i, run, records->payload(run.index + i));
      }
    }
  }
};

// What the owner of the state says at a checkpoint: all of it as of `lsn`, the last record of a
// Committed that it has applied.
struct Snapshot {
  Lsn lsn = 0;
  LogPosition position;
  std::vector<GroupSnapshot> groups;
  std::vector<SessionRecord> sessions;
  std::set<std::uint64_t> dead;  // segments that nothing needs (plan_reclaim)
};

// Called by whoever commits, one at a time: a committer thread, or one in publish_and_wait()
// (on_failed also on the upkeep thread). Must only hand over.
class CommitListener {
 public:
  virtual ~CommitListener() = default;
  virtual void on_committed(Committed committed) = 0;
  virtual void on_failed(const Error& error) = 0;
};

class Spool final : public Publisher {
 public:
  // Recovers. kBusy if another process has it, kConflict for a copy, kUnsupported, kCorrupt or kIo
  // as recovery finds.
  static Result<std::unique_ptr<Spool>> open(Directory& directory, const Clock& clock,
                                             SpoolOptions options, Log log);
  ~Spool() override;

  // Starts the committer threads and the upkeep thread. REQUIRES: once.
  void start(CommitListener& listener);
  // Commits what is queued, writes a marker and joins; later publishes get kClosed. Idempotent.
  void stop();
  // After stop(): writes a last checkpoint, so that the next open has nothing to replay.
  void checkpoint_at_stop(const Snapshot& snapshot);
  // The upkeep thread alone, beside commit_pending(). stop() ends it.
  void start_upkeep(CommitListener& listener);
  // Without start(): what the threads would do, on this one. For simulations.
  void commit_pending(CommitListener& listener);
  void idle(CommitListener& listener);    // the idle time is over: writes a marker
  void upkeep(CommitListener& listener);  // one round

  void publish_draft(Draft draft, ReceiptCallback done) override;
  void publish_view(const DraftView& draft, ReceiptCallback done) override;
  Result<Receipt> publish_and_wait(const DraftView& draft) override;
  // The same for one who must not wait: it may fill the queue a quarter further than others may.
  // REQUIRES: takes_at_once().
  void publish_at_once(const DraftView& draft, ReceiptCallback done);
  bool takes_at_once() const;
  // For so long a dedup id is known now.
  Milliseconds dedup_reach() const;
  void submit(const Submission& submission);
  // Ignored while another is on its way.
  void checkpoint(Snapshot snapshot);
  bool checkpoint_under_way() const { return checkpoint_under_way_; }
  // Room for follow-ups and for steps that begin: they may take the reserve that settling has
  // beyond what is published, but not the last of it (P7).
  bool takes_follow_ups() const;
  // The state's owner holds as many messages with a history as it may.
  void set_held_full(bool full) { held_full_ = full; }

  // Groups that take `topic` now: none of one that is only retained; nothing: it is refused.
  std::optional<GroupMask> route(std::string_view topic) const;

  const Uuid& id() const { return id_; }
  std::uint64_t epoch() const { return epoch_; }
  Durability durability() const { return options_.durability; }
  const SpoolOptions& options() const { return options_; }
  // First lsn of this epoch: what is below was there before the start.
  Lsn boundary() const { return boundary_; }
  const ScanReport& scan_report() const { return scan_; }
  // The latest wall-clock time that the log names, in Unix milliseconds; 0 for a new spool.
  std::int64_t last_utc_ms() const { return last_utc_ms_; }
  // Names of groups that the log has and the config does not.
  const std::vector<std::string>& detached_groups() const { return detached_; }
  // To be taken once, by the dispatcher.
  std::vector<std::unique_ptr<GroupState>> take_groups() { return std::move(groups_); }
  const std::vector<RecordedSession>& recorded_sessions() const { return sessions_; }
  // Any thread: what is on the disk up to here.
  Lsn durable_lsn() const { return durable_lsn_; }
  const SegmentLog& segments() const { return *segments_; }
  std::uint64_t size_bytes() const { return segments_->bytes_total(); }
  std::uint64_t max_size() const { return options_.max_size; }

 private:
  struct Dedup {
    std::string id;
    std::uint64_t hash = 0;
    std::int64_t published_at_ms = 0;
  };
  // One message, and who waits for its receipt.
  struct Publish {
    std::uint32_t record = 0;  // its index in the chunk
    Uuid id;
    ReceiptCallback done;
    std::unique_ptr<Dedup> dedup;
  };
  // One submission's records in the chunk.
  struct Submitted {
    std::uint32_t record = 0;
    std::uint32_t count = 1;
    std::uint64_t ticket = 0;
  };
  // What goes into one write: it takes messages until it has write_records or write_bytes, and
  // submissions, whole, until it has twice that.
  struct Chunk {
    explicit Chunk(std::shared_ptr<Buffers> buffers) : batch(std::move(buffers)) {}
    Batch batch;
    std::vector<Publish> publishes;    // ascending
    std::vector<Submitted> submitted;  // the same
    bool sync = false;
    std::size_t bytes = 0;   // of queue_bytes_
    std::size_t urgent = 0;  // publishes, and submissions that are not lazy
    std::size_t lazy_entries = 0;
    std::size_t items() const { return publishes.size() + submitted.size(); }
    void clear();
  };
  // A chunk that is written, and durable after a sync.
  struct Written {
    std::unique_ptr<Chunk> chunk;
    SegmentLog::Ahead ahead;
    Committed committed;
  };
  // What is on its way with one sync. Who has it may write until it is released or ended.
  struct Commit {
    bool begun = false;
    std::uint64_t turn = 0;
    std::unique_ptr<Chunk> chunk;  // the last one, if it could not be written ahead
    std::vector<Written> written;
    std::size_t records = 0;  // taken from the queue
    std::size_t bytes = 0;
    bool released = false;  // others may write
    bool tried = false;     // something of the chunk may have been written
    bool wrote = false;
  };
  struct PendingDedup {
    std::uint64_t hash = 0;
    std::vector<ReceiptCallback> waiters;
  };

  static constexpr std::size_t kLazyEntriesMax = 256;  // without a commit

  Spool(Directory& directory, const Clock& clock, SpoolOptions options, Log log);

  // spool_open.cpp
  Status recover();
  Status replay(SpoolState& state);
  void report_recovery() const;
  Result<std::vector<GroupRecord>> changed_groups(SpoolState& state);
  Status declare(SpoolState& state, const GroupRecord& record);
  std::string opening() const;
  OwnerRecord owner() const;
  void follow_owner(const OwnerRecord& owner);

  // spool.cpp
  enum class Caller { kMustNotWait, kMayWait, kCommits };
  void put(const DraftView& draft, ReceiptCallback done, Caller caller);
  Error refusal(const DraftView& draft) const;
  std::optional<GroupMask> admit(const DraftView& draft) const;
  bool has_room_for(const DraftView& draft) const;
  bool wants_room() const;
  bool admit_dedup(const DraftView& draft, UtcTime now, ReceiptCallback& done,
                   std::unique_ptr<Dedup>& dedup);
  bool answer_refused_repeat(const DraftView& draft, UtcTime now, ReceiptCallback& done);
  bool answer_repeat(std::unique_lock<std::mutex>& lock, const std::string& name,
                     std::uint64_t hash, std::int64_t now_ms, ReceiptCallback& done);
  void answer(const Publish& publish, Result<Receipt> result);
  void answer_dedup(const Dedup& dedup, const Result<Receipt>& result);
  bool wants_committer(bool first, const Chunk& chunk, std::size_t added) const;
  Chunk& open_chunk(bool for_message);
  bool takes_more(std::unique_lock<std::mutex>& lock, bool may_wait);

  // spool_commit.cpp
  void run(CommitListener& listener);
  bool may_commit_here() const;
  void commit_here(Commit commit) noexcept;
  bool wait_for_work(std::unique_lock<std::mutex>& lock);
  bool may_overlap() const;
  bool is_worth_a_write() const;
  Commit begin_commit();
  void take_chunk(Commit& commit);
  void commit(Commit& commit, CommitListener& listener);
  void write_ahead(Commit& commit);
  bool take_more_or_release(Commit& commit);
  void await_turn(const Commit& commit);
  void finish_ahead(Commit& commit, CommitListener& listener, const Status& synced);
  void commit_or_answer(Commit& commit, CommitListener& listener);
  void end_commit(Commit commit);
  bool write_ahead(Commit& commit, Written& written);
  bool commit_or_answer(Chunk& chunk, bool tried, CommitListener& listener);
  Status sync(const Commit& commit);
  Error beside_failure() const;
  void fail_unknown(const Chunk& chunk, const Error& error, CommitListener& listener);
  Status write(Chunk& chunk);
  void note_written(const Chunk& chunk, std::size_t from, std::size_t until);
  Committed describe(const Chunk& chunk, Lsn first, Lsn evidence) const;
  void answer_all(const Chunk& chunk, Durability durability);
  bool refuse_for_room(Chunk& chunk);
  void fail_publishes(const Chunk& chunk, const Error& error);
  void write_marker(CommitListener& listener);
  void count_accepted(GroupMask groups, std::uint64_t messages);
  void note_declared(std::string_view payload);
  void fail(const Error& error, CommitListener& listener);

  // spool_upkeep.cpp
  void pass_checkpoint_on(CommitListener& listener);
  void run_upkeep(CommitListener& listener);
  bool checkpoint_is_due() const;
  bool ensure_reserves();
  void write_checkpoint(const Snapshot& snapshot, CommitListener& listener);
  void refresh_room();

  // Immutable after open.
  Directory& directory_;
  const Clock& clock_;
  SpoolOptions options_;  // only recover() changes it
  Log log_;
  std::unique_ptr<DirectoryLock> lock_;
  Uuid id_;
  std::uint64_t epoch_ = 0;
  Lsn boundary_ = 1;
  std::int64_t last_utc_ms_ = 0;
  ScanReport scan_;
  std::vector<std::string> detached_;
  std::vector<RecordedSession> sessions_;
  Routes routes_;
  std::vector<std::unique_ptr<GroupState>> groups_;
  const std::shared_ptr<Buffers> buffers_ = std::make_shared<Buffers>();

  CommitListener* listener_ = nullptr;  // since start()

  // Owned by whoever commits: see committing_.
  std::unique_ptr<SegmentLog> segments_;
  std::array<std::uint64_t, kGroupsMax> accepted_{};
  std::vector<GroupRecord> declared_;       // index: GroupId
  std::uint64_t checkpointed_at_ = 0;       // SegmentLog::bytes_appended() of the last one
  std::uint64_t checkpointed_segment_ = 0;  // the current one then

  // Owned by the upkeep thread.
  CheckpointStore checkpoints_;
  std::uint64_t checkpoint_number_ = 0;
  std::set<std::uint64_t> dead_before_;  // left out of the last checkpoint of this run
  SteadyTime room_tried_at_{};

  // Any thread.
  std::atomic<bool> disk_full_{false};
  std::atomic<bool> held_full_{false};
  std::atomic<bool> failed_{false};
  // Before it is the turn of the commit to which that happened (failed_): a write failed, a sync
  // did.
  std::atomic<bool> write_failed_{false};
  std::atomic<bool> sync_failed_{false};
  std::atomic<bool> checkpoint_under_way_{false};
  std::atomic<std::uint64_t> checkpoint_bytes_{0};
  std::atomic<Lsn> durable_lsn_{0};

  // Guarded by dedup_mutex_.
  mutable std::mutex dedup_mutex_;
  DedupWindow dedup_;
  std::unordered_map<std::string, PendingDedup> dedup_pending_;

  // Guarded by mutex_.
  mutable std::mutex mutex_;
  std::condition_variable work_;
  std::condition_variable turn_;
  std::condition_variable room_;
  std::deque<std::unique_ptr<Chunk>> queue_;
  std::vector<std::unique_ptr<Chunk>> chunks_free_;
  std::size_t queue_items_ = 0;
  std::size_t queue_bytes_ = 0;
  std::size_t queue_urgent_ = 0;  // items that are not lazy
  std::size_t queue_lazy_entries_ = 0;
  std::uint64_t expected_end_ = 0;  // of the file, once what the committer took last is written
  SteadyTime lazy_since_{};
  bool committing_ = false;              // somebody may write
  std::uint64_t begun_ = 0;              // commits
  std::atomic<std::uint64_t> ended_{0};  // the same; it is the turn of that number
  unsigned syncing_ = 0;                 // commits that are released and not ended
  bool turn_wanted_ = false;             // somebody waits for it
  bool marker_due_ = false;              // something was committed since the last one
  bool marker_timed_ = false;  // the committer thread waits for no longer than until it is due
  SteadyTime committed_at_{};
  std::optional<Snapshot> snapshot_;  // for the committer
  bool closing_ = false;

  // Guarded by upkeep_mutex_.
  std::mutex upkeep_mutex_;
  std::condition_variable upkeep_work_;
  std::optional<Snapshot> durable_snapshot_;  // for the upkeep thread
  bool upkeep_closing_ = false;

  std::vector<std::thread> committers_;
  std::thread upkeep_;
};

}  // namespace dray::spool
