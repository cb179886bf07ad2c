// SpoolWorld: a spool on a simulated disk, a reader that plays its dispatcher, and a reference
// model beside them, all from one seed.
//
// Several lives follow each other. A life publishes, settles, retries, kills and revives messages,
// writes checkpoints, frees and copies; the disk may fail at any call; then the power goes, or the
// process is killed, or it stops cleanly, and the next life's recovery is compared with the model:
// P1 (what was acknowledged is there), P2 (counts balance and are right), P3 (what is settled stays
// settled), P4 (attempts), P6 (what rots is reported), S1 to S9.
//
// Threading: one thread. Failure: throws WorldFault with what was wrong.
#pragma once

#include <functional>
#include <map>
#include <optional>
#include <random>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include "dray/spool/backlog.hpp"
#include "dray/spool/spool.hpp"
#include "support/simulated_disk.hpp"

namespace dray::test {

struct WorldFault : std::runtime_error {
  using std::runtime_error::runtime_error;
};

inline void require(bool condition, const std::string& what) {
  if (!condition) throw WorldFault(what);
}

// Where a message stands for a group, as the model sees it.
struct Standing {
  enum class Kind { kOpen, kDead, kSettled };
  Kind kind = Kind::kOpen;
  std::uint32_t attempts = 0;
  bool operator==(const Standing&) const = default;
};

struct ModelMessage {
  std::string body;
  std::string topic;
  std::string dedup;
  bool follow_up = false;
  // Per group: what happened, with the lsn of its record; 0: not known whether it did.
  std::map<std::size_t, std::vector<std::pair<spool::Lsn, Standing>>> standings;
};

struct WorldOptions {
  bool rot = false;  // bits flip between lives: losses are allowed, but not silent ones
  int lives = 5;
  int operations = 45;
};

class SpoolWorld : private spool::CommitListener {
 public:
  SpoolWorld(std::uint64_t seed, const WorldOptions& options);
  ~SpoolWorld() override;
  void run();
  // A fixed script of so many operations, with the power cut after the Nth I/O call. False if the
  // script makes fewer calls.
  bool run_script(int operations, std::uint64_t cut_after_call);

 private:
  struct Group;

  void on_committed(spool::Committed committed) override;
  void on_failed(const Error&) override { poisoned_ = true; }

  bool open();
  void live();
  void operate();
  void break_soon(std::uint64_t calls);
  void publish();
  void settle();
  void settle_with_follow_up();
  void retry_or_die();
  void revive_or_drop();
  void checkpoint();
  void copy_forward(const std::vector<Sequence>& sequences);
  void commit();
  void read_all(std::size_t messages_max);
  void die();
  void rot();

  void check();
  void check_message(Sequence sequence, ModelMessage& message);
  bool is_gone(Sequence sequence, const std::string& body);
  void check_counts();
  std::optional<Standing> observe(Sequence sequence, std::size_t group) const;
  void check_found();
  static std::string body_in(std::string_view envelope);
  bool was_reported(Sequence sequence) const;
  std::optional<Sequence> pick_open(std::size_t group);
  void submit(spool::Submission submission, Sequence sequence, std::size_t group,
              const Standing& after, std::function<void(spool::Lsn)> effect);
  std::uint64_t draw(std::uint64_t below) { return random_() % below; }

  const WorldOptions options_;
  std::mt19937_64 random_;
  SimulatedDisk disk_;
  VirtualClock clock_;
  spool::SpoolOptions spool_options_;
  Durability durability_ = Durability::kDisk;

  // The model.
  std::map<Sequence, ModelMessage> messages_;
  std::map<std::string, std::string> attempted_;  // body -> topic, of those without a receipt
  std::set<std::string> units_;  // bodies of follow-ups that must not exist without settlement
  std::map<std::string, std::pair<Sequence, std::string>> follow_ups_;  // body -> origin, topic
  std::map<std::string, std::pair<Sequence, std::string>> dedups_;      // id -> sequence, body
  std::uint64_t burst_ = 1;  // as many messages, or fewer, are published at once
  spool::Lsn durable_ = 0;   // everything up to here was acknowledged as durable
  spool::Lsn evidence_ = 0;  // a record in the log says that everything up to here was durable
  std::vector<std::pair<spool::Lsn, spool::Lsn>> commits_;  // since the last check
  bool power_cut_ = false;                                  // how the last life ended
  bool rotted_ = false;
  bool opened_since_rot_ = true;
  std::vector<std::pair<spool::Lsn, spool::Lsn>> reported_;

  // This life.
  std::unique_ptr<Directory> directory_;
  std::unique_ptr<spool::Spool> spool_;
  std::unique_ptr<spool::LogReader> reader_;
  std::vector<std::unique_ptr<Group>> groups_;
  std::map<std::uint64_t, std::function<void(spool::Lsn)>> tickets_;
  std::set<std::pair<Sequence, std::size_t>> busy_;  // an operation is under way
  std::uint64_t last_ticket_ = 0;
  spool::Lsn last_ = 0;
  spool::LogPosition position_;
  bool poisoned_ = false;
  bool faulty_ = false;  // the disk was told to fail in this life
  std::string refusal_;
  bool scripted_ = false;
  int serial_ = 0;
};

}  // namespace dray::test
