// core_bench: what a message costs in the two cores of balancing, without disk, sockets, threads.
//
//   core_bench [MESSAGES] [BYTES] [IN_COMMIT]
//
// Nanoseconds of CPU per message for each leg of the way, one thread, medians of 5 runs:
//
//   accept    DispatcherCore takes a commit
//   grant     it grants, encodes DELIVER and the delivery record
//   decode    the worker decodes DELIVER
//   job       WorkerCore makes jobs of it
//   outcome   the jobs are done, RESULT is encoded
//   result    the dispatcher decodes it, encodes the settlement
//   settle    the settlement is durable; CONFIRM
//   confirm   the worker decodes it and forgets
#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "dray/balancing/dispatcher_core.hpp"
#include "dray/balancing/worker_core.hpp"
#include "dray/clock.hpp"

namespace {

using namespace dray;
using namespace dray::balancing;

enum Leg : std::size_t {
  kAccept,
  kGrant,
  kDecode,
  kJob,
  kOutcome,
  kResult,
  kSettle,
  kConfirm,
  kLegs
};
constexpr std::array<const char*, kLegs> kNames{"accept",  "grant",  "decode", "job",
                                                "outcome", "result", "settle", "confirm"};
constexpr std::uint32_t kWindow = 8'192;
constexpr std::uint32_t kAtOnce = 128;  // jobs that end together

class Bench {
 public:
  Bench(std::size_t bytes, std::size_t in_commit) : in_commit_(in_commit), core_(make_core()) {
    WorkerOptions options;
    options.group = "g";
    options.window_fixed = kWindow;
    worker_ = std::make_unique<WorkerCore>(options, 1, clock_.steady());
    const Draft draft{"t", std::string(bytes, 'x'), {}};
    for (std::size_t i = 0; i < in_commit; ++i) {
      envelopes_.push_back(encode_envelope(draft, uuid_v4(), clock_.utc()));
    }
    worker_->on_connected(0, clock_.steady());
    exchange();
  }

  std::array<double, kLegs> run(std::size_t messages) {
    spent_ = {};
    const std::size_t commits = messages / in_commit_;
    for (std::size_t i = 0; i < commits; ++i) {
      commit_messages();
      exchange();
    }
    std::array<double, kLegs> out{};
    for (std::size_t leg = 0; leg < kLegs; ++leg) {
      out.at(leg) =
          static_cast<double>(spent_.at(leg).count()) / static_cast<double>(commits * in_commit_);
    }
    return out;
  }

 private:
  std::unique_ptr<DispatcherCore> make_core() {
    auto state = std::make_unique<spool::GroupState>(spool::GroupId{0}, "g");
    state->declare(1, {"t"}, spool::GroupStanding::kAttached);
    std::vector<std::unique_ptr<spool::GroupState>> groups;
    groups.push_back(std::move(state));
    DispatcherOptions options;
    options.epoch = 5;
    options.boundary = next_;
    const auto router = [](std::string_view) -> std::optional<spool::GroupMask> { return 1; };
    return std::make_unique<DispatcherCore>(options, std::move(groups),
                                            std::vector<spool::RecordedSession>{}, router, now());
  }
  Now now() const { return {clock_.steady(), clock_.utc()}; }

  template <typename Work>
  void timed(Leg leg, const Work& work) {
    const auto begun = std::chrono::steady_clock::now();
    work();
    spent_.at(leg) += std::chrono::steady_clock::now() - begun;
  }

  void commit_messages() {
    spool::Committed committed;
    committed.first = next_;
    auto records = std::make_shared<spool::Records>();
    for (const auto& envelope : envelopes_) records->add_loose(next_++, envelope);
    committed.records = std::move(records);
    committed.last = next_ - 1;
    committed.runs.push_back(
        {committed.first, static_cast<std::uint32_t>(envelopes_.size()), 0, 1});
    timed(kAccept, [&] { core_->on_committed(committed, now()); });
  }

  // Until neither side has anything to say.
  void exchange() {
    for (bool more = true; more;) {
      more = false;
      DispatcherCore::Actions actions;
      timed(kGrant, [&] { actions = core_->take_actions(now()); });
      for (auto& each : actions.sends) to_worker(each);
      if (!actions.submissions.empty()) commit(actions.submissions);
      more = !actions.empty();
      WorkerCore::Actions said;
      timed(kOutcome, [&] { said = worker_->take_actions(clock_.steady()); });
      for (const auto& jobs : said.start) {
        more = true;
        timed(kOutcome, [&] {
          for (std::uint32_t i = 0; i < jobs.count; i += kAtOnce) {
            const auto count = std::min(kAtOnce, jobs.count - i);
            worker_->on_done({jobs.first + i, count}, count * std::chrono::nanoseconds(200));
          }
        });
      }
      for (auto& each : said.sends) {
        more = true;
        timed(kResult, [&] {
          auto frame = decode_frame(each.frame);
          if (!frame.ok()) std::abort();
          core_->on_frame("peer", *frame, now());
        });
      }
    }
  }

  void to_worker(const DispatcherCore::Send& sent) {
    std::optional<Result<ProtocolFrame>> frame;
    const auto begun = std::chrono::steady_clock::now();
    frame.emplace(decode_frame(sent.frame, sent.records));
    const auto decoded = std::chrono::steady_clock::now();
    if (!frame->ok()) std::abort();
    const bool confirm = std::holds_alternative<Confirm>(**frame);
    worker_->on_frame(0, std::move(**frame), sent.owner, clock_.steady());
    const auto taken = std::chrono::steady_clock::now();
    spent_.at(confirm ? kConfirm : kDecode) += decoded - begun;
    spent_.at(confirm ? kConfirm : kJob) += taken - decoded;
  }

  void commit(const std::vector<spool::Submission>& submissions) {
    spool::Committed committed;
    committed.first = next_;
    for (const auto& each : submissions) {
      if (each.ticket != 0) committed.tickets.emplace_back(each.ticket, next_);
      next_ += each.entries.size();
    }
    committed.last = next_ - 1;
    timed(kSettle, [&] { core_->on_committed(committed, now()); });
  }

  const std::size_t in_commit_;
  SystemClock clock_;
  Sequence next_ = 2;
  std::vector<std::string> envelopes_;
  std::unique_ptr<DispatcherCore> core_;
  std::unique_ptr<WorkerCore> worker_;
  std::array<std::chrono::nanoseconds, kLegs> spent_{};
};

}  // namespace

int main(int argc, char** argv) {
  const auto argument = [&](int index, std::size_t otherwise) {
    return argc > index ? std::strtoul(argv[index], nullptr, 10) : otherwise;
  };
  const std::size_t messages = argument(1, 1'000'000);
  Bench bench(argument(2, 256), std::max<std::size_t>(1, argument(3, 500)));
  std::array<std::vector<double>, kLegs> seen;
  std::vector<double> totals;
  for (int run = 0; run < 5; ++run) {
    const auto spent = bench.run(messages);
    double total = 0;
    for (std::size_t leg = 0; leg < kLegs; ++leg) {
      seen.at(leg).push_back(spent.at(leg));
      total += spent.at(leg);
    }
    totals.push_back(total);
  }
  const auto median = [](std::vector<double>& values) {
    std::nth_element(values.begin(), values.begin() + 2, values.end());
    return values[2];
  };
  for (std::size_t leg = 0; leg < kLegs; ++leg) {
    std::printf("%-8s %7.1f ns\n", kNames.at(leg), median(seen.at(leg)));
  }
  std::printf("%-8s %7.1f ns\n", "all", median(totals));
}
