// DepositCore: the remote publisher's side (patterns/PROTOCOL.md, "Publishers"). Pure: messages,
// frames and the time in; frames and receipts out.
//
// One message:
//
//   waiting --room in the window--> sent --RECEIPTS--> answered
//      |                             |  +--broken connection: sent again, in order, under its
//      number |                             +--no answer within `timeout`, or the spool has
//      forgotten what it |                                would repeat--> kUnknown
//      +--not sent within `timeout`--> kTimeout
//
// Promises: P1 (a receipt is the spool's own). Each message is answered exactly once.
// Threading: one thread. Failure: see above; kConflict for all once another session of its id
// began.
#pragma once

#include <deque>
#include <optional>
#include <string>
#include <vector>

#include "dray/balancing/protocol.hpp"
#include "dray/publisher.hpp"

namespace dray::balancing {

class DepositCore {
 public:
  struct Answer {
    ReceiptCallback done;
    Result<Receipt> receipt;
  };
  struct Actions {
    std::vector<std::string> frames;  // to the dispatcher
    std::vector<Answer> answers;
    bool reconnect = false;             // this connection is worth nothing any more
    std::vector<std::string> problems;  // for the log
  };

  DepositCore(const Uuid& publisher, std::string name, Milliseconds timeout)
      : publisher_(publisher), name_(std::move(name)), timeout_(std::min(timeout, kTimeoutMax)) {}

  void publish(std::string envelope, std::optional<Durability> durability, ReceiptCallback done,
               SteadyTime now);
  void on_connected(SteadyTime now);
  void on_disconnected();
  void on_frame(const ProtocolFrame& frame, SteadyTime now);
  void tick(SteadyTime now);
  Actions take_actions(SteadyTime now);
  // Answers all that is left: kClosed, or kUnknown if it was sent.
  void close();
  // BYE, once nothing is left.
  void leave();

  std::size_t pending() const { return waiting_.size() + open_; }
  std::size_t pending_bytes() const { return pending_bytes_; }
  bool welcomed() const { return welcomed_; }
  bool fenced() const { return fenced_; }
  SteadyTime next_deadline(SteadyTime now) const;

 private:
  struct Message {
    std::string envelope;
    std::optional<Durability> durability;
    ReceiptCallback done;  // empty: answered already
    SteadyTime handed_in{};
    SteadyTime first_sent{};
  };

  void say_hello(SteadyTime now);
  void on_welcome(const PublisherWelcome& welcome, SteadyTime now);
  void on_receipts(const Receipts& receipts);
  void on_refused(const Refused& refused, SteadyTime now);
  void answer(Message& message, Result<Receipt> receipt);
  void forget_answered();
  void flush(SteadyTime now);

  const Uuid publisher_;
  const std::string name_;
  const Milliseconds timeout_;
  std::deque<Message> sent_;     // numbered from first_number_ on
  std::deque<Message> waiting_;  // not sent yet
  std::uint64_t first_number_ = 1;
  std::size_t sent_now_ = 0;     // of sent_, from its front: sent by this session
  std::size_t outstanding_ = 0;  // of those, without a receipt
  std::uint64_t hellos_ = 0;     // PUBLISHER frames said
  std::uint64_t outstanding_bytes_ = 0;
  std::size_t open_ = 0;  // of sent_, not answered
  std::size_t pending_bytes_ = 0;
  std::optional<Uuid> spool_;  // where what was sent went
  PublisherWelcome welcome_;
  bool connected_ = false;
  bool welcomed_ = false;
  bool fenced_ = false;
  SteadyTime heard_at_{};
  SteadyTime said_at_{};
  SteadyTime hello_at_{};
  Actions actions_;
};

}  // namespace dray::balancing
