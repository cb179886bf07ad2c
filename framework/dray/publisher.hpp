// Publisher: where a program hands in messages.
//
// Threading: all functions may be called from any thread. Callbacks run on a committer thread of
// the spool, or on a thread that is inside publish() and commits for others too, one at a time:
// they must be short, must not block or throw, and must take no lock that is held while publish()
// is called. For what is refused (invalid, unroutable, full, closed) or known by its dedup id they
// run on the calling thread, before publish() returns.
// Failure: a receipt or an error, always exactly one, also when the spool stops. kUnknown means
// that the message may be on disk; publishing again with the same dedup id is safe.
// Ownership: the publisher outlives every call; what is passed is copied.
#pragma once

#include <functional>
#include <future>
#include <memory>
#include <string>
#include <string_view>

#include "dray/export.hpp"
#include "dray/fields.hpp"
#include "dray/message.hpp"
#include "dray/result.hpp"

namespace dray {

struct Receipt {
  Uuid id;
  Sequence sequence = 0;
  Durability durability = Durability::kOs;
  bool duplicate = false;  // the dedup id was known: this is the receipt of the first publish
};

using ReceiptCallback = std::function<void(Result<Receipt>)>;

class DRAY_API Publisher {
 public:
  virtual ~Publisher() = default;

  // The body is MessagePack. The callback is called exactly once.
  virtual void publish_draft(Draft draft, ReceiptCallback done) = 0;
  // The same; what it points to is read before this returns, and not taken.
  virtual void publish_view(const DraftView& draft, ReceiptCallback done);

  template <typename T>
  void publish_async(std::string_view topic, const T& body, const PublishOptions& options,
                     ReceiptCallback done) {  // NOLINT: it is moved
    publish_view({topic, to_bytes(body), options}, std::move(done));
  }

  // The same with a future. It may be let go; letting it go does not wait.
  template <typename T>
  std::future<Result<Receipt>> publish_future(std::string_view topic, const T& body,
                                              const PublishOptions& options = {}) {
    auto promise = std::make_shared<std::promise<Result<Receipt>>>();
    auto future = promise->get_future();
    publish_async(topic, body, options, [promise = std::move(promise)](Result<Receipt> receipt) {
      promise->set_value(std::move(receipt));
    });
    return future;
  }

  // Waits for the commit.
  template <typename T>
  Result<Receipt> publish(std::string_view topic, const T& body,
                          const PublishOptions& options = {}) {
    return publish_and_wait({topic, to_bytes(body), options});
  }

  // The same for a body that is MessagePack already.
  virtual Result<Receipt> publish_and_wait(const DraftView& draft);
};

}  // namespace dray
