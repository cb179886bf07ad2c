#include "dray/balancing/deposit_core.hpp"

#include <algorithm>
#include <utility>

namespace dray::balancing {
namespace {

constexpr std::size_t kItemsPerFrameMax = 512;
constexpr std::size_t kBytesPerFrameMax = 512U << 10;
constexpr auto kHelloEvery = Milliseconds(1'000);
constexpr auto kForgetMargin = Milliseconds(1'000);  // before the spool forgets

Error unknown(const std::string& why) {
  return {ErrorCode::kUnknown,
          why + "; it may have been accepted: publish it again with a dedup id of your own", "", 0};
}

}  // namespace

void DepositCore::publish(std::string envelope, std::optional<Durability> durability,
                          ReceiptCallback done, SteadyTime now) {
  Message message{std::move(envelope), durability, std::move(done), now, {}};
  pending_bytes_ += message.envelope.size();
  if (fenced_) {
    ++open_;
    return answer(
        message, Error{ErrorCode::kConflict, "another session of this publisher has begun", "", 0});
  }
  waiting_.push_back(std::move(message));
}

void DepositCore::answer(Message& message, Result<Receipt> receipt) {
  if (!message.done) return;
  --open_;
  pending_bytes_ -= message.envelope.size();
  actions_.answers.push_back({std::exchange(message.done, nullptr), std::move(receipt)});
}

// Its envelope stays until the session's receipt came, or the next session begins: numbers go on
// without a gap.
void DepositCore::forget_answered() {
  while (!sent_.empty() && !sent_.front().done && sent_.front().envelope.empty()) {
    sent_.pop_front();
    ++first_number_;
    if (sent_now_ > 0) --sent_now_;
  }
}

void DepositCore::on_connected(SteadyTime now) {
  connected_ = true;
  heard_at_ = now;
  say_hello(now);
}

void DepositCore::on_disconnected() {
  connected_ = welcomed_ = false;
  sent_now_ = outstanding_ = 0;
  outstanding_bytes_ = 0;
}

void DepositCore::say_hello(SteadyTime now) {
  if (fenced_) return;
  welcomed_ = false;
  sent_now_ = outstanding_ = 0;
  outstanding_bytes_ = 0;
  // What was given up needs no answer any more; what lies behind keeps its number.
  while (!sent_.empty() && !sent_.front().done) {
    sent_.pop_front();
    ++first_number_;
  }
  hello_at_ = said_at_ = now;
  actions_.frames.push_back(encode(PublisherHello{publisher_, name_, first_number_, ++hellos_}));
}

void DepositCore::on_frame(const ProtocolFrame& frame, SteadyTime now) {
  heard_at_ = now;
  if (const auto* welcome = std::get_if<PublisherWelcome>(&frame)) return on_welcome(*welcome, now);
  if (const auto* refused = std::get_if<Refused>(&frame)) return on_refused(*refused, now);
  const auto* receipts = std::get_if<Receipts>(&frame);
  if (receipts != nullptr && welcomed_) on_receipts(*receipts);
}

void DepositCore::on_welcome(const PublisherWelcome& welcome, SteadyTime now) {
  if (fenced_ || !connected_) return;
  welcome_ = welcome;
  welcome_.window_messages = std::max(1U, welcome.window_messages);
  const bool other_spool = spool_ && *spool_ != welcome.spool;
  const auto memory = Milliseconds(
      static_cast<std::int64_t>(std::min<std::uint64_t>(welcome.memory_ms, INT64_MAX / 2'000'000)));
  bool given_up = false;
  for (auto& message : sent_) {
    if (!message.done) continue;
    if (other_spool) {
      answer(message, unknown("another spool answers here now"));
      given_up = true;
    } else if (now - message.first_sent + kForgetMargin >= memory) {
      answer(message, unknown("the spool was away for longer than it remembers"));
      given_up = true;
    }
  }
  if (other_spool) {
    actions_.problems.push_back("another spool answers at this endpoint");
    // Not to be sent there. Their numbers are not used again: this spool, or the one before, may
    // know them.
    given_up = given_up || !sent_.empty();
    first_number_ += sent_.size();
    sent_.clear();
  }
  spool_ = welcome.spool;
  if (given_up) return say_hello(now);  // from another number on
  welcomed_ = true;
}

void DepositCore::on_receipts(const Receipts& receipts) {
  for (const auto& item : receipts.items) {
    if (item.number < first_number_ || item.number - first_number_ >= sent_now_) continue;
    auto& message = sent_[static_cast<std::size_t>(item.number - first_number_)];
    if (message.envelope.empty()) continue;  // had one
    --outstanding_;
    outstanding_bytes_ -= message.envelope.size();
    if (item.code.empty()) {
      answer(message, Receipt{item.id, item.sequence, item.durability, item.duplicate});
    } else {
      answer(message, Error{error_code_of(item.code), item.reason, "", 0});
    }
    message.envelope.clear();
  }
  forget_answered();
}

void DepositCore::on_refused(const Refused& refused, SteadyTime now) {
  if (refused.code == "fenced") {
    fenced_ = true;
    welcomed_ = false;
    actions_.problems.push_back("fenced: " + refused.reason);
    const Error error{ErrorCode::kConflict, refused.reason, "", 0};
    open_ += waiting_.size();
    for (auto& message : sent_) answer(message, unknown(refused.reason));
    for (auto& message : waiting_) answer(message, error);
    sent_.clear();
    waiting_.clear();
    return;
  }
  welcomed_ = false;
  if (refused.code != "unknown-session") actions_.problems.push_back("refused: " + refused.reason);
  if (now - hello_at_ >= kHelloEvery) say_hello(now);  // else tick() does
}

void DepositCore::tick(SteadyTime now) {
  for (auto& message : sent_) {
    if (now - message.handed_in < timeout_) break;  // in the order of their coming
    answer(message, unknown("no receipt came within the time-out"));
  }
  while (!waiting_.empty() && now - waiting_.front().handed_in >= timeout_) {
    ++open_;
    answer(waiting_.front(), Error{ErrorCode::kTimeout,
                                   "no spool took it within the time-out; it was not sent", "", 0});
    waiting_.pop_front();
  }
  if (!connected_ || fenced_) return;
  const auto lease = Milliseconds(welcome_.lease_ms == 0 ? 10'000 : welcome_.lease_ms);
  if (now - heard_at_ >= lease) {
    actions_.reconnect = true;
    heard_at_ = now;
    return;
  }
  if (!welcomed_ && now - hello_at_ >= kHelloEvery) return say_hello(now);
  if (welcomed_ && now - said_at_ >= lease / 4) {
    said_at_ = now;
    actions_.frames.push_back(encode(Heartbeat{}));
  }
}

SteadyTime DepositCore::next_deadline(SteadyTime now) const {
  SteadyTime next = now + Milliseconds(250);
  if (!waiting_.empty()) next = std::min(next, waiting_.front().handed_in + timeout_);
  return next;
}

void DepositCore::flush(SteadyTime now) {
  while (welcomed_) {
    Deposit deposit;
    deposit.first = first_number_ + sent_now_;
    deposit.lowest = first_number_;
    std::size_t bytes = 0;
    while (deposit.items.size() < kItemsPerFrameMax && bytes < kBytesPerFrameMax) {
      const bool again = sent_now_ < sent_.size();
      if (!again && waiting_.empty()) break;
      const auto& next = again ? sent_[sent_now_] : waiting_.front();
      const bool fits =
          sent_now_ < welcome_.window_messages &&
          (outstanding_ == 0 || outstanding_bytes_ + next.envelope.size() <= welcome_.window_bytes);
      if (!fits) break;
      if (!again) {
        sent_.push_back(std::move(waiting_.front()));
        waiting_.pop_front();
        sent_.back().first_sent = now;
        ++open_;
      }
      auto& message = sent_[sent_now_++];
      if (!message.done) message.envelope.clear();  // answered before: only its number goes
      if (!message.envelope.empty()) ++outstanding_;
      outstanding_bytes_ += message.envelope.size();
      bytes += message.envelope.size();
      deposit.items.push_back({message.durability, message.envelope});
    }
    if (deposit.items.empty()) return;
    said_at_ = now;
    actions_.frames.push_back(encode(deposit));
  }
}

DepositCore::Actions DepositCore::take_actions(SteadyTime now) {
  flush(now);
  return std::exchange(actions_, {});
}

void DepositCore::close() {
  open_ += waiting_.size();
  for (auto& message : sent_) answer(message, unknown("the publisher was stopped"));
  for (auto& message : waiting_) {
    answer(message, Error{ErrorCode::kClosed, "the publisher was stopped; it was not sent", "", 0});
  }
  sent_.clear();
  waiting_.clear();
  sent_now_ = 0;
}

void DepositCore::leave() {
  if (connected_) actions_.frames.push_back(encode(Bye{}));
  welcomed_ = false;
}

}  // namespace dray::balancing
