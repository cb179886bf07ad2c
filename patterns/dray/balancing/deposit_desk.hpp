// DepositDesk: the dispatcher's side of remote publishing (patterns/PROTOCOL.md, "Publishers").
// Pure: frames, receipts and the time in; frames and drafts to publish out.
//
// One session:
//
//   PUBLISHER --> open --DEPOSIT, in order--> outstanding --receipt of the commit--> RECEIPTS
//                  |
//                  +--BYE, silent for a lease, a gap, too much, another of its id--> over
//
// Frames of a connection that is gone may be read after those of the next one: a PUBLISHER counts
// only if none that was said later has come.
//
// A deposit is published under a dedup id made of its publisher and its number, unless it has one
// of its own: what is deposited again after a broken connection or a restart gets the receipt of
// the first time. So this keeps nothing that must survive.
//
// Promises: P1 (receipts come after the commit), P9 (sessions and what is outstanding are bounded).
// Threading: one thread. Failure: bad frames change nothing but their own session.
#pragma once

#include <map>
#include <string>
#include <unordered_map>
#include <vector>

#include "dray/balancing/protocol.hpp"
#include "dray/publisher.hpp"

namespace dray::balancing {

struct DepositOptions {
  Uuid spool;
  std::uint64_t epoch = 0;
  Milliseconds lease{10'000};
  Milliseconds memory{0};  // of the spool's dedup ids
  std::uint32_t window_messages = 2'000;
  std::uint64_t window_bytes = 8U << 20;
  std::size_t sessions_max = 1'024;
  std::uint64_t bytes_max = 64U << 20;  // of envelopes without a receipt, over all sessions
};

class DepositDesk {
 public:
  struct Send {
    std::string peer;
    std::string frame;
  };
  // Publish it, and answer with on_receipt().
  struct Wanted {
    Uuid publisher;
    std::uint64_t session = 0;
    std::uint64_t number = 0;
    std::size_t bytes = 0;
    Draft draft;
  };
  struct Actions {
    std::vector<Send> sends;
    std::vector<Wanted> publish;  // in this order
  };

  explicit DepositDesk(const DepositOptions& options) : options_(options) {}

  // Whether this frame of this peer is for the desk.
  bool takes(const std::string& peer, const ProtocolFrame& frame) const;
  void on_frame(const std::string& peer, const ProtocolFrame& frame, SteadyTime now);
  // `wanted` without its draft.
  void on_receipt(const Wanted& wanted, const Result<Receipt>& receipt);
  // For so long the spool knows a dedup id now.
  void set_memory(Milliseconds memory) { options_.memory = memory; }
  // Nothing can be sent to this peer any more.
  void on_unsent(const std::string& peer);
  // As if it had said BYE; it is told why.
  void expel(const Uuid& publisher, const std::string& reason);
  bool knows(const Uuid& publisher) const { return sessions_.count(publisher) != 0; }
  void tick(SteadyTime now);
  SteadyTime next_deadline(SteadyTime now) const;
  Actions take_actions(SteadyTime now);
  std::size_t sessions() const { return sessions_.size(); }

 private:
  struct Session {
    Uuid publisher;
    std::uint64_t id = 0;
    std::string peer;
    std::uint64_t hellos = 0;
    std::uint64_t next = 1;    // number of the deposit that must come
    std::uint64_t lowest = 1;  // without a receipt, as the publisher knows
    std::uint32_t outstanding = 0;
    std::uint64_t outstanding_bytes = 0;
    SteadyTime heard_at{};
    SteadyTime said_at{};
    Receipts receipts;  // to be sent
  };

  void on_hello(const std::string& peer, const PublisherHello& hello, SteadyTime now);
  void on_deposit(Session& session, const Deposit& deposit);
  void refuse(const std::string& peer, const char* code, const std::string& reason);
  void end(const Uuid& publisher);

  DepositOptions options_;
  std::map<Uuid, Session> sessions_;
  std::unordered_map<std::string, Uuid> peers_;
  std::uint64_t last_session_ = 0;
  std::uint64_t bytes_ = 0;  // Wanted and not answered
  Actions actions_;
};

}  // namespace dray::balancing
