#include "dray/handler_threads.hpp"

#include <time.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <optional>

#include "dray/thread_traits.hpp"

namespace dray {
namespace {

using Jobs = HandlerThreads::Jobs;
using Ended = HandlerThreads::Ended;

constexpr std::uint32_t kPrefetch = 2;  // jobs
// Of short jobs so many are told together, while there are as many more to do, and within so long;
// or when the socket's thread looks next, if one of them turns out long.
constexpr std::uint64_t kToldAtOnce = 512;
constexpr auto kToldWithin = std::chrono::milliseconds(1);
constexpr auto kTickMax = Milliseconds(10);  // of CLOCK_MONOTONIC_COARSE
// After a job this long a thread keeps nothing to itself.
constexpr auto kLongJob = std::chrono::milliseconds(1);

// How far a thread is with jobs that are neighbours. It takes one after the other off the front
// without a lock; who holds its slot's mutex may take what is not begun off the end, or ask for
// attention: then the thread stops at its mutex before it goes on.
struct Progress {
  bool attention = false;
  bool busy = false;       // with the one before `next`
  std::uint32_t next = 0;  // begun, and of those all but the one that it is busy with ended
  std::uint32_t end = 0;

  static Progress of(std::uint64_t bits) {
    return {(bits >> 63) != 0, (bits >> 62 & 1) != 0,
            static_cast<std::uint32_t>(bits >> 31 & kMask),
            static_cast<std::uint32_t>(bits & kMask)};
  }
  std::uint64_t bits() const {
    return std::uint64_t{attention} << 63 | std::uint64_t{busy} << 62 | std::uint64_t{next} << 31 |
           end;
  }
  std::uint32_t ended() const { return busy ? next - 1 : next; }

 private:
  static constexpr std::uint64_t kMask = (std::uint64_t{1} << 31) - 1;
};

bool is_plain(const Outcome& outcome) {
  return outcome.kind() == Outcome::Kind::kDone && outcome.follow_ups().empty();
}

// Takes those that are not wanted out of a list.
void sort_out(std::deque<Jobs>& list, const SequenceRuns& unwanted, SequenceRuns& taken) {
  std::deque<Jobs> kept;
  for (auto& jobs : list) {
    for (const auto& run : unwanted) {
      if (jobs.count == 0 || run.first >= jobs.first + jobs.count) break;
      if (run.end() <= jobs.first) continue;
      if (run.first > jobs.first) {
        kept.push_back(jobs.split(static_cast<std::uint32_t>(run.first - jobs.first)));
      }
      const auto gone = std::min<std::uint64_t>(run.end() - jobs.first, jobs.count);
      taken.add(jobs.first, gone);
      if (gone == jobs.count) {
        jobs.count = 0;
      } else {
        (void)jobs.split(static_cast<std::uint32_t>(gone));
      }
    }
    if (jobs.count > 0) kept.push_back(std::move(jobs));
  }
  list = std::move(kept);
}

}  // namespace

// What one handler thread is doing.
struct HandlerThreads::Slot {
  std::unique_ptr<Consumer> consumer;  // used by its thread only

  std::atomic<bool> ended{false};           // its thread
  std::atomic<std::uint64_t> progress{0};   // Progress, with `at`
  std::atomic<std::int64_t> started_ns{0};  // the job that it is busy with
  std::atomic<std::int64_t> took_ns{0};     // all jobs that were plainly done; only it writes

  // Guarded by mutex.
  std::mutex mutex;
  Jobs at;                        // its thread reads it without a lock: nobody else writes
  std::deque<Jobs> next;          // taken from the queue, not begun
  std::uint32_t told = 0;         // of `at`, so many from its beginning
  std::int64_t took_told_ns = 0;  // of took_ns
  std::optional<SteadyTime> stop_asked;
  std::stop_source stop;
  bool written_off = false;
  std::optional<StepJournal::Reply> reply;  // to the job's call of its journal
  std::condition_variable replied;          // or nobody will

  Progress where() const { return Progress::of(progress.load(std::memory_order_acquire)); }
  // 0: none.
  std::uint64_t running() const {
    const auto is = where();
    return is.busy ? at.first + is.next - 1 : 0;
  }
  std::optional<Jobs> take_off();
  bool begin_next();
  bool go_on();
  bool ask_attention(std::uint64_t job);
  void add_time(std::chrono::nanoseconds took);
};

struct HandlerThreads::Shared {
  Shared(const WorkerSettings& settings_in, ConsumerFactory factory_in)
      : settings(settings_in), factory(std::move(factory_in)) {}

  const WorkerSettings settings;
  const ConsumerFactory factory;  // may keep the code of its consumers loaded
  std::mutex factory_mutex;       // held while it is called
  SystemClock clock;
  // Any thread.
  transport::WakeUp wake_up;
  std::atomic<std::uint64_t> written_off{0};
  std::atomic<std::uint32_t> jobs_at_once{1};
  std::atomic<bool> tells_together{false};
  std::atomic<bool> closing{false};  // handler threads end

  // Guarded by mutex. Taken after a slot's.
  std::mutex mutex;
  std::condition_variable work;
  std::deque<Jobs> queue;
  News news;
  std::uint64_t ended_jobs = 0;  // in news
  SteadyTime ended_since{};      // the first of them
  bool waking = false;           // the socket thread will look at it
};

// --- a thread's slot ------------------------------------------------------------------------

// Takes off what a thread did not begin of what it is at. REQUIRES: mutex is held.
std::optional<Jobs> HandlerThreads::Slot::take_off() {
  std::uint64_t bits = progress.load(std::memory_order_acquire);
  Progress is = Progress::of(bits);
  for (;; is = Progress::of(bits)) {
    if (is.next == is.end) return std::nullopt;
    Progress shortened = is;
    shortened.end = is.next;
    if (progress.compare_exchange_weak(bits, shortened.bits(), std::memory_order_acq_rel)) {
      break;
    }
  }
  Jobs rest = at;
  if (is.next > 0) (void)rest.split(is.next);
  rest.count = is.end - is.next;
  return rest;
}

// Goes on with the next job of what it has; false if there is none. REQUIRES: mutex is held,
// and it is busy with none.
bool HandlerThreads::Slot::begin_next() {
  Progress is = where();
  if (is.next == is.end) {
    if (next.empty()) return false;
    at = std::move(next.front());
    next.pop_front();
    told = 0;
    is = {false, false, 0, at.count};
  }
  progress.store(Progress{false, true, is.next + 1, is.end}.bits(), std::memory_order_release);
  return true;
}

// The same without a lock, in the usual case. False: the lock is needed; it is busy no more.
bool HandlerThreads::Slot::go_on() {
  std::uint64_t bits = progress.load(std::memory_order_relaxed);
  for (;;) {
    Progress is = Progress::of(bits);
    const bool goes = !is.attention && is.next < is.end;
    is.busy = goes;
    is.next += goes ? 1 : 0;
    if (progress.compare_exchange_weak(bits, is.bits(), std::memory_order_acq_rel)) {
      return goes;
    }
  }
}

// The thread stops at its mutex before it goes on. False if it is not busy with this job any
// more. REQUIRES: mutex is held.
bool HandlerThreads::Slot::ask_attention(std::uint64_t job) {
  std::uint64_t bits = progress.load(std::memory_order_acquire);
  for (;;) {
    Progress is = Progress::of(bits);
    if (!is.busy || at.first + is.next - 1 != job) return false;
    is.attention = true;
    if (progress.compare_exchange_weak(bits, is.bits(), std::memory_order_acq_rel)) {
      return true;
    }
  }
}

void HandlerThreads::Slot::add_time(std::chrono::nanoseconds took) {
  if (took.count() == 0) return;
  took_ns.store(took_ns.load(std::memory_order_relaxed) + took.count(), std::memory_order_relaxed);
}

// --- a handler thread -----------------------------------------------------------------------

// What ended and was not told. While there is more to do, what is plainly done waits a little for
// more of it: waking the socket's thread costs more than some jobs. REQUIRES: slot.mutex is held.
void HandlerThreads::tell_ended(Shared& shared, Slot& slot, SteadyTime now,
                                std::unique_ptr<Outcome> outcome,
                                std::chrono::nanoseconds outcome_took, bool at_once) {
  const auto is = slot.where();
  const bool urgent = at_once || outcome != nullptr || !shared.tells_together;
  std::vector<Ended> ended;
  if (is.ended() > slot.told) {
    const std::int64_t took = slot.took_ns.load(std::memory_order_relaxed);
    ended.push_back({{slot.at.first + slot.told, is.ended() - slot.told},
                     std::chrono::nanoseconds(took - slot.took_told_ns),
                     nullptr});
    slot.took_told_ns = took;
    slot.told = is.ended();
  }
  if (outcome != nullptr) {
    ended.push_back({{slot.running(), 1}, outcome_took, std::move(outcome)});
    slot.told = is.next;
  }
  if (ended.empty()) return;
  bool wake = false;
  {
    const std::lock_guard lock(shared.mutex);
    if (shared.news.ended.empty()) shared.ended_since = now;
    for (auto& each : ended) {
      shared.ended_jobs += each.jobs.count;
      shared.news.ended.push_back(std::move(each));
    }
    // What is left must last until more is there.
    std::uint64_t left = is.end - is.next;
    for (const auto* list : {&slot.next, &shared.queue}) {
      for (auto each = list->begin(); each != list->end() && left <= shared.ended_jobs; ++each) {
        left += each->count;
      }
    }
    const bool due = urgent || left <= shared.ended_jobs || shared.ended_jobs >= kToldAtOnce ||
                     now - shared.ended_since >= kToldWithin;
    wake = due && !std::exchange(shared.waking, true);
  }
  if (wake) shared.wake_up.wake();
}

// Its outcome is told at once. False if nobody takes it any more.
bool HandlerThreads::tell_outcome(Shared& shared, Slot& slot, Outcome outcome,
                                  std::chrono::nanoseconds took, SteadyTime now) {
  const std::lock_guard lock(slot.mutex);
  // At the end what is done is told. What was interrupted comes back when the session ends.
  const bool over = shared.closing && outcome.kind() != Outcome::Kind::kDone;
  if (slot.written_off || over) return false;
  tell_ended(shared, slot, now, std::make_unique<Outcome>(std::move(outcome)), took);
  return true;
}

// A thread keeps nothing to itself while it is at a long job: what it did not begin goes back to
// the front of the queue, what it ended is told. REQUIRES: slot.mutex is held.
void HandlerThreads::hand_over(Shared& shared, Slot& slot, SteadyTime now) {
  tell_ended(shared, slot, now, nullptr, {}, true);
  auto rest = slot.take_off();
  if (!rest && slot.next.empty()) return;
  {
    const std::lock_guard lock(shared.mutex);
    for (; !slot.next.empty(); slot.next.pop_back()) {
      shared.queue.push_front(std::move(slot.next.back()));
    }
    if (rest) shared.queue.push_front(std::move(*rest));
  }
  shared.work.notify_all();
}

// Into the slot: one job, or where jobs are so short that a lock for each counts, a share of what
// there is. REQUIRES: both mutexes are held.
void HandlerThreads::take_share(Shared& shared, Slot& slot) {
  std::size_t queued = 0;
  const std::size_t most = shared.jobs_at_once;
  const std::size_t shares = 2 * std::size_t{shared.settings.threads};
  for (const auto& each : shared.queue) {
    queued += each.count;
    if (queued >= shares * most) break;
  }
  auto share = std::clamp<std::size_t>(queued / shares, 1, most);
  while (share > 0 && !shared.queue.empty()) {
    auto& front = shared.queue.front();
    if (front.count > share) {
      slot.next.push_back(front.split(static_cast<std::uint32_t>(share)));
      break;
    }
    share -= front.count;
    slot.next.push_back(std::move(front));
    shared.queue.pop_front();
  }
}

// Tells what ended, waits for work and takes some of it. False at the end.
bool HandlerThreads::take_jobs(Shared& shared, Slot& slot, std::stop_token& stop, SteadyTime now) {
  {
    const std::lock_guard lock(slot.mutex);
    if (slot.written_off) return false;  // the attempt was ended by the clock
    tell_ended(shared, slot, now, nullptr, {}, shared.closing);
    if (shared.closing) return false;
    // Whoever asks it to stop may not have done so yet.
    const bool asked = std::exchange(slot.stop_asked, std::nullopt).has_value();
    if (asked || slot.stop.stop_requested() || !stop.stop_possible()) {
      slot.stop = std::stop_source();
      stop = slot.stop.get_token();
    }
    if (slot.begin_next()) return true;
    slot.progress.store(0, std::memory_order_release);
  }
  for (;;) {
    {
      std::unique_lock lock(shared.mutex);
      // What was told while there was more to do waits for no more of it.
      const bool untold = shared.queue.empty() && !shared.news.ended.empty();
      if (untold && !std::exchange(shared.waking, true)) shared.wake_up.wake();
      shared.work.wait(lock, [&] { return shared.closing || !shared.queue.empty(); });
    }
    const std::lock_guard slot_lock(slot.mutex);
    const std::lock_guard lock(shared.mutex);
    if (shared.closing) return false;
    if (shared.queue.empty()) continue;  // another thread was first
    take_share(shared, slot);
    // Before it is busy: else it might be timed from the job before.
    slot.started_ns.store(shared.clock.steady().time_since_epoch().count(),
                          std::memory_order_relaxed);
    return slot.begin_next();
  }
}

// The journal of one handling: asks the dispatcher that its message came from, and waits.
class HandlerThreads::Journal final : public StepJournal {
 public:
  Journal(Shared& shared, Slot& slot, std::uint64_t job, const std::stop_token& stop)
      : shared_(shared), slot_(slot), job_(job), stop_(stop) {}

  Reply call(StepCall what, std::string_view step, std::string_view value) override {
    over_ = over_ || (what == StepCall::kBegin && (stop_.stop_requested() || shared_.closing));
    if (over_) return {StepAnswer::kRefused, kStopped};
    if (run_ == 0) run_ = random_u64() | 1;
    {
      const std::lock_guard lock(slot_.mutex);
      slot_.reply.reset();
    }
    {
      const std::lock_guard lock(shared_.mutex);
      shared_.news.step_calls.push_back(
          {job_, {what, run_, std::string(step), std::string(value)}});
    }
    shared_.wake_up.wake();
    // With the slot's mutex, so that no wish is missed. What was done is worth waiting for, until
    // the attempt is ended.
    const std::stop_callback wish(stop_, [this] {
      const std::lock_guard inner(slot_.mutex);
      slot_.replied.notify_all();
    });
    std::unique_lock lock(slot_.mutex);
    slot_.replied.wait(lock, [&] {
      return slot_.reply || slot_.written_off || shared_.closing ||
             (what == StepCall::kBegin && stop_.stop_requested());
    });
    if (slot_.reply) return std::move(*slot_.reply);
    over_ = true;  // a late answer would be taken for that to the next call
    lock.unlock();
    if (what == StepCall::kBegin) {  // it will not run: nobody need ask
      const std::lock_guard inner(shared_.mutex);
      shared_.news.step_calls.push_back({job_, {StepCall::kNotDone, run_, std::string(step), ""}});
    }
    return {StepAnswer::kRefused, kStopped};
  }

 private:
  static constexpr const char* kStopped = "the handling is asked to stop";

  Shared& shared_;
  Slot& slot_;
  const std::uint64_t job_;
  const std::stop_token& stop_;
  std::uint64_t run_ = 0;  // drawn when it is needed
  bool over_ = false;
};

// Times jobs. Those that are far shorter than a tick of the system's are timed together: a look at
// the clock would cost a part of what they do.
class HandlerThreads::Stopwatch {
 public:
  Stopwatch(const Shared& shared, Slot& slot) : shared_(shared), slot_(slot) { begin(); }

  void begin() {
    apart_ = shared_.jobs_at_once < kTimedTogether;
    begin_at(shared_.clock.steady());
  }
  // When the job that just ended began, or one before it.
  SteadyTime started() const { return started_; }
  // A job ended. How long it took, as far as it is known; what began before it counts with it.
  std::chrono::nanoseconds lap() {
    if (!apart_ && ticks() == tick_) return {};
    const auto now = shared_.clock.steady();
    const std::chrono::nanoseconds took = now - started_;
    begin_at(now);
    return took;
  }
  // The same; it is known.
  std::chrono::nanoseconds stop() {
    const auto now = shared_.clock.steady();
    const std::chrono::nanoseconds took = now - started_;
    begin_at(now);
    return took;
  }

 private:
  static constexpr std::uint32_t kTimedTogether = 8;  // jobs that a thread takes at once

  static std::int64_t ticks() {
    timespec now{};
    clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
    return now.tv_sec * 1'000'000'000 + now.tv_nsec;
  }
  void begin_at(SteadyTime now) {
    started_ = now;
    if (!apart_) tick_ = ticks();
    slot_.started_ns.store(now.time_since_epoch().count(), std::memory_order_relaxed);
  }

  const Shared& shared_;
  Slot& slot_;
  bool apart_ = true;
  SteadyTime started_{};
  std::int64_t tick_ = 0;
};

void HandlerThreads::handle_jobs(Shared& shared, Slot& slot) {
  std::stop_token stop;  // of slot.stop, which this thread alone renews
  Stopwatch watch(shared, slot);
  while (take_jobs(shared, slot, stop, watch.started())) {
    watch.begin();
    for (bool more = true; more;) {
      const std::uint32_t index = slot.where().next - 1;
      slot.at.prefetch(index + kPrefetch);
      Journal journal(shared, slot, slot.at.first + index, stop);
      Outcome outcome =
          slot.consumer->consume({slot.at.envelope(index), shared.settings.group,
                                  slot.at.sequence + index, slot.at.attempt, &journal},
                                 stop);
      const bool plain = is_plain(outcome);
      const auto took = plain ? watch.lap() : watch.stop();
      if (plain) {
        slot.add_time(took);
      } else if (!tell_outcome(shared, slot, std::move(outcome), took, watch.started())) {
        return;
      }
      more = slot.go_on();
      if (took < kLongJob) continue;
      const std::lock_guard lock(slot.mutex);
      if (slot.written_off) return;
      hand_over(shared, slot, watch.started());
    }
    slot.add_time(watch.stop());
  }
}

// --- the socket thread ----------------------------------------------------------------------

HandlerThreads::HandlerThreads(const WorkerSettings& settings, ConsumerFactory factory)
    : shared_(std::make_shared<Shared>(settings, std::move(factory))) {}

HandlerThreads::~HandlerThreads() {
  close();
  stop();
}

Status HandlerThreads::add() {
  auto consumer = make_consumer(*shared_);
  if (!consumer.ok()) return consumer.error();
  start(std::move(*consumer));
  return {};
}

Result<std::unique_ptr<Consumer>> HandlerThreads::make_consumer(Shared& shared) {
  const std::lock_guard lock(shared.factory_mutex);
  try {
    return shared.factory();
  } catch (const std::exception& exception) {
    return Error{ErrorCode::kBusy, std::string("the handler's constructor: ") + exception.what(),
                 "", 0};
  } catch (...) {
    return Error{ErrorCode::kBusy, "the handler's constructor: no std::exception", "", 0};
  }
}

// Without a consumer the thread makes its own: a constructor may wait for what made another handler
// hang, and the socket thread must not.
void HandlerThreads::start(std::unique_ptr<Consumer> consumer) {
  auto slot = std::make_shared<Slot>();
  slot->consumer = std::move(consumer);
  slots_.push_back(slot);
  threads_.emplace_back([shared = shared_, slot] {
    name_thread("dray-handler");
    if (slot->consumer == nullptr) {
      auto made = make_consumer(*shared);
      if (made.ok()) slot->consumer = std::move(*made);
      if (!made.ok()) {
        shared->settings.log.error("no handler to replace it: " + made.error().text());
      }
    }
    if (slot->consumer != nullptr) handle_jobs(*shared, *slot);
    slot->ended = true;
    shared->wake_up.wake();
  });
}

bool HandlerThreads::all_ended() const {
  return std::all_of(slots_.begin(), slots_.end(),
                     [](const auto& slot) { return slot->ended.load(); });
}

transport::WakeUp& HandlerThreads::wake_up() {
  return shared_->wake_up;
}

void HandlerThreads::give(std::vector<Jobs> jobs) {
  if (jobs.empty()) return;
  const bool one = jobs.size() == 1 && jobs.front().count == 1;
  {
    const std::lock_guard lock(shared_->mutex);
    for (auto& each : jobs) shared_->queue.push_back(std::move(each));
  }
  if (one) {
    shared_->work.notify_one();
  } else {
    shared_->work.notify_all();
  }
}

SequenceRuns HandlerThreads::take_back(const SequenceRuns& jobs) {
  SequenceRuns taken;
  // All at once: a job may be on its way from one to the other.
  std::vector<std::unique_lock<std::mutex>> locks;
  for (const auto& slot : slots_) locks.emplace_back(slot->mutex);
  const std::lock_guard lock(shared_->mutex);
  for (const auto& slot : slots_) {
    if (auto rest = slot->take_off()) slot->next.push_front(std::move(*rest));
    sort_out(slot->next, jobs, taken);
  }
  sort_out(shared_->queue, jobs, taken);
  return taken;
}

void HandlerThreads::set_pace(std::uint32_t at_once, bool tells_together) {
  shared_->jobs_at_once = at_once;
  shared_->tells_together = tells_together;
}

HandlerThreads::News HandlerThreads::take_news() {
  const std::lock_guard lock(shared_->mutex);
  shared_->ended_jobs = 0;
  shared_->waking = false;
  return std::exchange(shared_->news, {});
}

void HandlerThreads::answer(std::uint64_t job, const StepJournal::Reply& reply) {
  for (const auto& slot : slots_) {
    const std::lock_guard lock(slot->mutex);
    if (slot->running() != job) continue;
    slot->reply = reply;
    slot->replied.notify_all();
    return;
  }
}

std::uint64_t HandlerThreads::written_off() const {
  return shared_->written_off;
}

// REQUIRES: its slot is written off.
void HandlerThreads::replace(std::size_t index) {
  const auto& settings = shared_->settings;
  threads_[index].detach();
  threads_.erase(threads_.begin() + static_cast<std::ptrdiff_t>(index));
  slots_.erase(slots_.begin() + static_cast<std::ptrdiff_t>(index));
  const std::uint64_t written_off = ++shared_->written_off;
  settings.log.error("a handler ignored its stop request and was written off",
                     {{"written_off", std::to_string(written_off)}});
  if (!shared_->closing) start(nullptr);
  if (written_off * 2 < settings.threads || exhausted_) return;
  exhausted_ = true;
  if (settings.on_exhausted) settings.on_exhausted();
}

std::vector<std::uint64_t> HandlerThreads::watch_timeouts() {
  std::vector<std::uint64_t> written_off;
  const auto& settings = shared_->settings;
  const auto now = shared_->clock.steady();
  for (std::size_t i = 0; i < slots_.size(); ++i) {
    auto& slot = *slots_[i];
    std::uint64_t late = 0;
    {
      const std::lock_guard lock(slot.mutex);
      const std::uint64_t job = slot.running();
      const SteadyTime started(
          std::chrono::nanoseconds(slot.started_ns.load(std::memory_order_relaxed)));
      // What it says of a job that has just begun is of the one before.
      if (job == 0 || job != slot.running()) continue;
      if (now - started >= kLongJob) hand_over(*shared_, slot, now);
      // Of short jobs it may be that of one before.
      const auto late_by = shared_->jobs_at_once > 1 ? kTickMax : Milliseconds(0);
      if (settings.timeout.count() == 0 || now - started < settings.timeout + late_by) continue;
      if (!slot.stop_asked) {
        if (!slot.ask_attention(job)) continue;
        slot.stop_asked = now;
        // A handler's own callbacks run there, and take the time they take.
        std::thread([source = slot.stop]() mutable { source.request_stop(); }).detach();
      } else if (now - *slot.stop_asked >= settings.timeout_grace) {
        slot.written_off = true;
        slot.replied.notify_all();
        late = job;
      }
    }
    if (late == 0) continue;
    written_off.push_back(late);
    replace(i);
    --i;
  }
  return written_off;
}

void HandlerThreads::close() {
  {
    const std::lock_guard lock(shared_->mutex);
    shared_->closing = true;
  }
  shared_->work.notify_all();
}

void HandlerThreads::ask_to_stop() {
  for (auto& slot : slots_) {
    std::stop_source source;
    {
      const std::lock_guard lock(slot->mutex);
      slot->next.clear();
      (void)slot->take_off();
      source = slot->stop;
      slot->replied.notify_all();  // if it was requested before
    }
    source.request_stop();
  }
}

void HandlerThreads::stop() {
  ask_to_stop();
  for (auto& thread : threads_) {
    if (thread.joinable()) thread.join();
  }
  threads_.clear();
}

}  // namespace dray
