// Fuzz target: what a peer may send. Frames are decoded and handed to the cores of dispatcher and
// worker, and to those of remote publishing.
//
// Input: any number of (2 bytes length, then a frame); a leading bit of the length chooses the
// peer. What follows a DELIVER is its second frame.
#include <cstdlib>
#include <memory>

#include "dray/balancing/deposit_core.hpp"
#include "dray/balancing/deposit_desk.hpp"
#include "dray/balancing/dispatcher_core.hpp"
#include "dray/balancing/worker_core.hpp"

using namespace dray;
using namespace dray::balancing;

namespace {

class Dispatching {
 public:
  Dispatching() {
    std::vector<std::unique_ptr<spool::GroupState>> groups;
    groups.push_back(std::make_unique<spool::GroupState>(spool::GroupId{0}, "email"));
    groups.back()->declare(1, {"t"}, spool::GroupStanding::kAttached);
    DispatcherOptions options;
    options.epoch = 2;
    options.boundary = 2;
    core_ = std::make_unique<DispatcherCore>(
        options, std::move(groups), std::vector<spool::RecordedSession>{},
        [](std::string_view topic) -> std::optional<spool::GroupMask> {
          if (topic != "t") return std::nullopt;
          return spool::GroupMask{1};
        },
        now());
    Draft draft{"t", "\x80", {}};
    draft.options.key = "k";
    for (int i = 0; i < 4; ++i) publish(encode_envelope(draft, Uuid{}, clock_.utc()));
  }

  void take(const std::string& peer, const ProtocolFrame& frame) {
    core_->on_frame(peer, frame, now());
    clock_.advance(std::chrono::milliseconds(40));
    core_->tick(now());
    perform();
  }

 private:
  Now now() const { return {clock_.steady(), clock_.utc()}; }

  static std::shared_ptr<const spool::Records> record_of(Sequence sequence,
                                                         std::string_view envelope) {
    auto records = std::make_shared<spool::Records>();
    records->add_loose(sequence, envelope);
    return records;
  }

  void publish(const std::string& envelope) {
    spool::Committed committed;
    committed.first = committed.last = next_++;
    committed.records = record_of(committed.first, envelope);
    committed.runs.push_back({committed.first, 1, 0, 1, Priority::kNormal, true});
    core_->on_committed(committed, now());
    perform();
  }

  void perform() {
    for (int turn = 0; turn < 100; ++turn) {
      auto actions = core_->take_actions(now());
      if (actions.empty()) break;
      for (const auto& submission : actions.submissions) {
        spool::Committed committed;
        committed.first = next_;
        next_ += submission.entries.size();
        committed.last = next_ - 1;
        if (submission.ticket != 0) {
          committed.tickets.emplace_back(submission.ticket, committed.first);
        }
        core_->on_committed(committed, now());
      }
      for (const auto& each : actions.key_reads) core_->on_key(each.group, each.sequence, 0, now());
      for (const auto& each : actions.fetches) {
        core_->on_fetched(each.group, each.sequence,
                          spool::StoredRun{each.sequence, 1, 0, record_of(each.sequence, "x")});
      }
      for (const auto& each : actions.refills) {
        spool::BacklogSlice slice;
        slice.next = each.request.before;
        core_->on_refilled(each, std::move(slice));
      }
    }
    if (!core_->group_state(0).counts().balanced()) std::abort();  // P2
  }

  VirtualClock clock_;
  std::unique_ptr<DispatcherCore> core_;
  Sequence next_ = 2;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  std::string_view input(reinterpret_cast<const char*>(data), size);
  Dispatching dispatching;
  VirtualClock clock;
  WorkerOptions options;
  options.group = "email";
  options.make_session_id = [] { return Uuid{}; };
  WorkerCore worker(options, 2, clock.steady());
  worker.on_connected(0, clock.steady());
  DepositOptions deposits;
  deposits.window_messages = 5;
  deposits.sessions_max = 3;
  DepositDesk desk(deposits);
  DepositCore publisher(*Uuid::from_text("00000000-0000-4000-8000-000000000001"), "p",
                        std::chrono::seconds(1));
  publisher.on_connected(clock.steady());
  const auto next = [&input] {
    if (input.size() <= 2) return std::string();
    const auto head = static_cast<unsigned char>(input[0]);
    const std::size_t length = std::min<std::size_t>(
        input.size() - 2, (head & 0x3FU) * 256U + static_cast<unsigned char>(input[1]));
    std::string bytes(input.substr(2, length));
    input.remove_prefix(2 + length);
    return bytes;
  };
  while (input.size() > 2) {
    const auto head = static_cast<unsigned char>(input[0]);
    const std::string bytes = next();
    constexpr char kDeliver = 18;
    const bool has_second = bytes.size() > 3 && bytes[3] == kDeliver;
    const auto records = std::make_shared<std::string>(has_second ? next() : "");
    auto frame = decode_frame(bytes, *records);
    if (!frame.ok()) continue;
    dispatching.take((head & 0x80U) != 0 ? "a" : "b", *frame);
    desk.on_frame((head & 0x80U) != 0 ? "a" : "b", *frame, clock.steady());
    desk.tick(clock.steady());
    for (const auto& wanted : desk.take_actions(clock.steady()).publish) {
      desk.on_receipt(wanted, Receipt{Uuid{}, 1, Durability::kDisk, false});
    }
    publisher.publish(
        "x", std::nullopt, [](const Result<Receipt>&) {}, clock.steady());
    publisher.on_frame(*frame, clock.steady());
    publisher.tick(clock.steady());
    for (auto& answer : publisher.take_actions(clock.steady()).answers) {
      answer.done(std::move(answer.receipt));
    }
    worker.on_frame((head & 0x40U) != 0 ? 1 : 0, std::move(*frame), records, clock.steady());
    clock.advance(std::chrono::milliseconds(40));
    worker.tick(clock.steady());
    for (const auto& jobs : worker.take_actions(clock.steady()).start) {
      for (std::uint32_t i = 0; i < jobs.count; ++i) (void)parse_envelope(jobs.envelope(i));
      worker.on_done({jobs.first, jobs.count}, std::chrono::microseconds(5));
    }
    (void)worker.take_actions(clock.steady());
  }
  return 0;
}
