// RemotePublisher: publishes to a spool that another process, here or on another machine, serves.
//
//   auto remote = dray::RemotePublisher::connect({.endpoint = "ipc:///run/orders/s"});
//   auto receipt = (*remote)->publish("order.placed", order);  // it is on that spool's disk
//
// The interface is that of the spool's own publisher, and so are the receipts: they come after the
// commit there. While the spool is away messages wait here, in memory: what has no receipt is not
// durable. After a broken connection or a restart of the spool what had no receipt is sent again
// and recognised, so that it is accepted once (as long as the spool remembers dedup ids:
// `dedup.age`).
//
// Promises: P1 for receipts; messages are accepted in the order of publishing, receipts may come in
// any order. P9.
//
// Threading: any thread. Callbacks run on the publisher's own thread, or for what is refused here
// on the calling one, before publish() returns: they must be short, and must not wait for receipts,
// nor stop or destroy the publisher. stop(), connect(): one thread.
//
// Failure: as Publisher, and kTimeout (not sent within `timeout`), kUnknown (sent, and no receipt
// came: it may have been accepted), kFull (too much waits here, or that spool is full), kConflict
// (another session of the same id began). connect() fails for an endpoint that cannot be; a spool
// that is away is waited for.
//
// Ownership: owns its thread and socket; stop() or the destructor end them.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "dray/export.hpp"
#include "dray/log.hpp"
#include "dray/publisher.hpp"

namespace dray {

struct RemotePublisherSettings {
  std::string endpoint = {};       // "ipc://path", "tcp://host:7000"
  std::string name = "publisher";  // for people; at most 256 bytes
  // CURVE: this publisher's keys, and the public key of the spool. Without them the endpoint must
  // be on this machine.
  struct Keys {
    std::string public_key, secret_key, server_key;
  };
  std::optional<Keys> keys = {};
  Milliseconds timeout{30'000};       // of one message, from publish to receipt
  std::size_t pending_max = 100'000;  // messages without a receipt
  std::size_t pending_bytes_max = 64U << 20;
  MessageLimits limits = {};
  Log log = {};
};

class DRAY_API RemotePublisher final : public Publisher {
 public:
  static Result<std::unique_ptr<RemotePublisher>> connect(RemotePublisherSettings settings);
  ~RemotePublisher() override;

  void publish_draft(Draft draft, ReceiptCallback done) override;

  // Whether a spool answers at this moment.
  bool connected() const;
  // Takes nothing any more and waits until all has a receipt, at most `deadline`; what is left is
  // answered kUnknown, or kClosed if it was not sent. True if nothing was left. Idempotent.
  bool stop(Milliseconds deadline);

 private:
  struct State;
  explicit RemotePublisher(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace dray
