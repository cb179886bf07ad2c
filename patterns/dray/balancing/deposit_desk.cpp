#include "dray/balancing/deposit_desk.hpp"

#include <algorithm>

namespace dray::balancing {
namespace {

constexpr std::size_t kReasonBytesMax = 1'024;

Result<Draft> draft_of_deposit(const DepositItem& item) {
  const auto envelope = parse_envelope(item.envelope);
  auto draft = envelope.ok() ? draft_of(*envelope) : Result<Draft>(envelope.error());
  if (!draft.ok()) {
    return Error{ErrorCode::kInvalid, "no envelope: " + draft.error().text(), "", 0};
  }
  draft->options.durability = item.durability;
  return draft;
}

}  // namespace

bool DepositDesk::takes(const std::string& peer, const ProtocolFrame& frame) const {
  return std::holds_alternative<PublisherHello>(frame) || std::holds_alternative<Deposit>(frame) ||
         peers_.count(peer) != 0;
}

void DepositDesk::refuse(const std::string& peer, const char* code, const std::string& reason) {
  actions_.sends.push_back({peer, encode(Refused{code, reason})});
}

void DepositDesk::end(const Uuid& publisher) {
  const auto found = sessions_.find(publisher);
  if (found == sessions_.end()) return;
  peers_.erase(found->second.peer);
  sessions_.erase(found);
}

void DepositDesk::on_frame(const std::string& peer, const ProtocolFrame& frame, SteadyTime now) {
  if (const auto* hello = std::get_if<PublisherHello>(&frame)) return on_hello(peer, *hello, now);
  const auto known = peers_.find(peer);
  if (known == peers_.end()) return refuse(peer, "unknown-session", "say PUBLISHER first");
  Session& session = sessions_.at(known->second);
  session.heard_at = now;
  if (const auto* deposit = std::get_if<Deposit>(&frame)) return on_deposit(session, *deposit);
  if (std::holds_alternative<Bye>(frame)) return end(Uuid(session.publisher));
  if (std::holds_alternative<Heartbeat>(frame)) return;
  refuse(peer, "bad-frame", "this peer is a publisher");
}

void DepositDesk::on_hello(const std::string& peer, const PublisherHello& hello, SteadyTime now) {
  if (const auto other = peers_.find(peer);
      other != peers_.end() && other->second != hello.publisher) {
    end(Uuid(other->second));  // this peer speaks for another id now
  }
  const auto before = sessions_.find(hello.publisher);
  if (before == sessions_.end() && sessions_.size() >= options_.sessions_max) {
    return refuse(peer, "too-many-sessions", "too many publishers; try again later");
  }
  if (before != sessions_.end()) {
    if (before->second.peer != peer) {
      if (hello.count <= before->second.hellos) {
        return refuse(peer, "unknown-session", "a later session of this publisher is here");
      }
      refuse(before->second.peer, "fenced", "another session of this publisher has begun");
    }
    end(hello.publisher);
  }
  Session& session = sessions_[hello.publisher];
  session.publisher = hello.publisher;
  session.id = ++last_session_;
  session.peer = peer;
  session.hellos = hello.count;
  session.next = session.lowest = hello.next;
  session.heard_at = session.said_at = now;
  peers_[peer] = hello.publisher;
  actions_.sends.push_back(
      {peer, encode(PublisherWelcome{options_.spool, options_.epoch,
                                     static_cast<std::uint32_t>(options_.lease.count()),
                                     options_.window_messages, options_.window_bytes,
                                     static_cast<std::uint64_t>(options_.memory.count())})});
}

void DepositDesk::on_deposit(Session& session, const Deposit& deposit) {
  const auto break_off = [&](const char* code, const std::string& reason) {
    refuse(session.peer, code, reason);
    end(Uuid(session.publisher));
  };
  if (deposit.first != session.next) {
    return break_off("gap", "deposit " + std::to_string(session.next) + " was expected, not " +
                                std::to_string(deposit.first) + "; say PUBLISHER again");
  }
  session.lowest = std::max(session.lowest, deposit.lowest);
  for (const auto& item : deposit.items) {
    const bool fits = session.next - session.lowest < options_.window_messages &&
                      (session.outstanding == 0 ||
                       session.outstanding_bytes + item.envelope.size() <= options_.window_bytes);
    if (!fits) return break_off("window", "more was deposited than the window allows");
    if (item.envelope.empty()) {  // it had its receipt before
      ++session.next;
      continue;
    }
    auto draft = draft_of_deposit(item);
    if (!draft.ok()) {  // no publisher has such a one: answering each would be to its taste
      return break_off("bad-frame", "deposit " + std::to_string(session.next) +
                                        " cannot be read: " + draft.error().text());
    }
    if (bytes_ > 0 && bytes_ + item.envelope.size() > options_.bytes_max) {
      return break_off("busy", "the spool is behind with what publishers deposit; go on later");
    }
    Wanted wanted{session.publisher, session.id, session.next++, item.envelope.size(), {}};
    ++session.outstanding;
    session.outstanding_bytes += wanted.bytes;
    bytes_ += wanted.bytes;
    if (draft->options.dedup.empty()) {
      draft->options.dedup = session.publisher.text() + '/' + std::to_string(wanted.number);
    }
    wanted.draft = std::move(*draft);
    actions_.publish.push_back(std::move(wanted));
  }
}

void DepositDesk::on_receipt(const Wanted& wanted, const Result<Receipt>& receipt) {
  bytes_ -= wanted.bytes;
  const auto found = sessions_.find(wanted.publisher);
  if (found == sessions_.end() || found->second.id != wanted.session) return;
  Session& session = found->second;
  --session.outstanding;
  session.outstanding_bytes -= wanted.bytes;
  DepositReceipt out;
  out.number = wanted.number;
  if (receipt.ok()) {
    out.id = receipt->id;
    out.sequence = receipt->sequence;
    out.durability = receipt->durability;
    out.duplicate = receipt->duplicate;
  } else {
    out.code = error_code_name(receipt.error().code);
    out.reason = receipt.error().text().substr(0, kReasonBytesMax);
  }
  session.receipts.items.push_back(std::move(out));
}

void DepositDesk::on_unsent(const std::string& peer) {
  if (const auto known = peers_.find(peer); known != peers_.end()) end(Uuid(known->second));
}

void DepositDesk::expel(const Uuid& publisher, const std::string& reason) {
  const auto found = sessions_.find(publisher);
  if (found == sessions_.end()) return;
  refuse(found->second.peer, "not-allowed", reason);
  end(publisher);
}

void DepositDesk::tick(SteadyTime now) {
  for (auto each = sessions_.begin(); each != sessions_.end();) {
    auto& session = (each++)->second;
    if (now - session.heard_at >= options_.lease) {
      end(Uuid(session.publisher));
    } else if (now - session.said_at >= options_.lease / 4) {
      session.said_at = now;
      actions_.sends.push_back({session.peer, encode(Heartbeat{})});
    }
  }
}

SteadyTime DepositDesk::next_deadline(SteadyTime now) const {
  SteadyTime next = now + options_.lease;
  for (const auto& [id, session] : sessions_) {
    next =
        std::min({next, session.heard_at + options_.lease, session.said_at + options_.lease / 4});
  }
  return next;
}

DepositDesk::Actions DepositDesk::take_actions(SteadyTime now) {
  for (auto& [id, session] : sessions_) {
    if (session.receipts.items.empty()) continue;
    session.said_at = now;
    actions_.sends.push_back({session.peer, encode(session.receipts)});
    session.receipts.items.clear();
  }
  return std::exchange(actions_, {});
}

}  // namespace dray::balancing
