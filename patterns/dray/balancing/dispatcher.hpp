// Dispatcher: the shell around DispatcherCore. Owns the ROUTER socket of a spool; decides nothing.
//
// Threading: one thread of its own owns the socket, the core and the log reader. bind, start, stop
// from the owner's thread; call() from any thread but its own.
// Failure: on_failure is called once, on the dispatcher's thread, when the spool is poisoned (P7);
// nothing is dispatched after it.
// Ownership: Context, Clock and Spool outlive it. Stop the spool first: its last commits are then
// still taken.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "dray/balancing/deposit_desk.hpp"
#include "dray/balancing/dispatcher_core.hpp"
#include "dray/transport/authenticator.hpp"

namespace dray::balancing {

// CURVE: workers need a key that the authenticator allows, and a session stays with the key that it
// began with.
struct DispatcherSecurity {
  transport::CurveServer server;
  transport::Authenticator* authenticator = nullptr;  // outlives the dispatcher
};

class Dispatcher final : public spool::CommitListener {
 public:
  Dispatcher(transport::Context& context, const Clock& clock, spool::Spool& spool,
             const DispatcherOptions& options, std::function<void(const Error&)> on_failure,
             Log log, std::optional<DispatcherSecurity> security = std::nullopt);
  ~Dispatcher() override;

  // May be called more than once. An ipc endpoint's file is made with mode 0600.
  Status bind(const std::string& endpoint);
  std::string bound_endpoint() const;
  void start();
  void stop();

  void on_committed(spool::Committed committed) override;
  void on_failed(const Error& error) override;

  // After stop(): the state as of the last commit; lsn 0 if there is none.
  spool::Snapshot last_snapshot();

  // What a call on the dispatcher's thread may use.
  struct Desk {
    DispatcherCore& core;
    spool::LogReader& reader;
    // Calls `done` when the ticket is durable.
    std::function<void(std::uint64_t ticket, std::function<void()> done)> when_finished;
  };
  // Runs `work` on the dispatcher's thread and waits for it. False if it is not running.
  bool call(const std::function<void(Desk&)>& work);

 private:
  struct State;
  void run();
  bool read_inbox();
  void read_frames();
  // Nothing, or why this frame is refused.
  std::optional<Refused> intrusion(const transport::RouterSocket::Received& received,
                                   const ProtocolFrame& frame);
  void perform();
  void refill(const DispatcherCore::Refill& refill);
  void fetch(const DispatcherCore::Fetch& fetch);
  void read_key(const DispatcherCore::Fetch& wanted);
  std::optional<Refused> false_publisher(const transport::RouterSocket::Received& received,
                                         const ProtocolFrame& frame);
  void serve_publishers();
  void expel_key(const std::string& key);
  void expel_disallowed();
  void upkeep();
  void report_lost(Sequence sequence);
  void poison(const std::string& what, const Error& error);
  void send(DispatcherCore::Send send);
  void retry_deferred();

  std::unique_ptr<State> state_;
};

}  // namespace dray::balancing
