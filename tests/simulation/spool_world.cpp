#include "simulation/spool_world.hpp"

#include <algorithm>
#include <cstdio>
#include <cstdlib>

namespace dray::test {

using namespace spool;

struct SpoolWorld::Group {
  std::unique_ptr<GroupState> state;
  Sequence cursor = 0;
  std::vector<DamagedPart> gaps;
  std::map<Sequence, std::string> plain;  // read from the log: sequence, body
};

namespace {

const std::vector<std::string> kGroups{"email", "view"};
const std::vector<std::string> kCheckpoints{"checkpoint.a", "checkpoint.b"};
// Topic "t" goes to both groups, "u" to view only.
bool takes(std::size_t group, const std::string& topic) {
  return topic == "t" || group == 1;
}

std::int64_t to_ms(UtcTime time) {
  return time.time_since_epoch().count();
}

}  // namespace

SpoolWorld::SpoolWorld(std::uint64_t seed, const WorldOptions& options)
    : options_(options), random_(seed), disk_(seed ^ 0x9E3779B97F4A7C15ULL) {
  spool_options_.log.segment_size = 2048 + 1024 * draw(6);
  spool_options_.log.preallocate = spool_options_.log.segment_size * draw(4);
  spool_options_.groups = std::vector<GroupDeclaration>{{"email", {"t"}}, {"view", {"t", "u"}}};
  spool_options_.max_size = 1U << 20;
  durability_ = draw(4) == 0 ? Durability::kOs : Durability::kDisk;
  spool_options_.durability = durability_;
  // Several small writes for a sync, and some while one is under way.
  if (draw(3) != 0) {
    spool_options_.log.read_back_commits = 0;
    burst_ = 8;
    spool_options_.write_records = 1 + draw(4);
    spool_options_.worth_a_write = draw(400);
    spool_options_.sync_records = 1 + draw(8);
  }
}

SpoolWorld::~SpoolWorld() = default;

void SpoolWorld::run() {
  for (int life = 0; life < options_.lives; ++life) {
    live();
    die();
    if (options_.rot && life + 1 < options_.lives) rot();
  }
  faulty_ = false;
  if (open()) return check();
  // Refused in words, with everything left in place: the only declaration of a group is damaged, or
  // a header cannot be read.
  require(rotted_ && (refusal_.find("declar") != std::string::npos ||
                      refusal_.find("header cannot be read") != std::string::npos),
          "the last life cannot open: " + refusal_);
}

bool SpoolWorld::run_script(int operations, std::uint64_t cut_after_call) {
  scripted_ = true;
  disk_.fail_at(cut_after_call + 1, ErrorCode::kIo);
  faulty_ = true;
  if (open()) {
    for (int i = 0; i < operations && !poisoned_; ++i) operate();
    commit();
  }
  const bool reached = disk_.calls() > cut_after_call;
  faulty_ = false;
  poisoned_ = false;
  reader_.reset();
  spool_.reset();
  power_cut_ = true;
  disk_.cut_power();
  require(open(), "cannot open after the power cut");
  check();
  for (int i = 0; i < 10; ++i) operate();
  commit();
  require(!poisoned_, "poisoned without a fault");
  die();
  require(open(), "cannot open again");
  check();
  return reached;
}

// --- a life ---------------------------------------------------------------------------------

bool SpoolWorld::open() {
  reader_.reset();
  spool_.reset();
  groups_.clear();
  tickets_.clear();
  busy_.clear();
  poisoned_ = false;
  directory_ = disk_.directory();
  auto opened = Spool::open(*directory_, clock_, spool_options_, Log());
  if (!opened.ok()) {
    refusal_ = opened.error().text();
    require(faulty_ || rotted_, "open failed without a fault: " + opened.error().text());
    return false;
  }
  spool_ = std::move(*opened);
  opened_since_rot_ = true;
  for (const auto& range : spool_->scan_report().damaged) {
    require(rotted_, "damage reported without rot: " + std::to_string(range.first) + " to " +
                         std::to_string(range.last) + ", " + range.what);
    reported_.emplace_back(range.first, range.last);
  }
  require(rotted_ || !spool_->scan_report().checkpoints_lost, "both checkpoints lost");
  reader_ = std::make_unique<LogReader>(spool_->segments(), 16U << 10);
  for (auto& state : spool_->take_groups()) {
    auto group = std::make_unique<Group>();
    group->state = std::move(state);
    group->cursor = std::min(group->state->first_plain(), group->state->known());
    groups_.push_back(std::move(group));
  }
  last_ = spool_->segments().next_lsn() - 1;
  position_ = {};
  return true;
}

void SpoolWorld::live() {
  faulty_ = draw(3) != 0;
  if (faulty_) {
    disk_.fail_at(1 + draw(220), draw(4) == 0 ? ErrorCode::kFull : ErrorCode::kIo, draw(2) == 0);
  }
  if (!open()) return;
  check();
  for (int i = 0; i < options_.operations && !poisoned_; ++i) operate();
  if (draw(2) == 0) commit();
  if (poisoned_ || draw(2) == 0) return;
  // Dies in the middle of writing a unit.
  settle_with_follow_up();
  break_soon(1);
  commit();
}

void SpoolWorld::break_soon(std::uint64_t calls) {
  faulty_ = true;
  disk_.fail_at(1 + draw(calls), ErrorCode::kIo);
}

void SpoolWorld::operate() {
  switch (draw(18)) {
    case 0:
    case 1:
    case 2:
    case 3:
      for (std::uint64_t more = draw(burst_); more > 0; --more) publish();
      return publish();
    case 4:
    case 5:
    case 6:
      return settle();
    case 7:
      return settle_with_follow_up();
    case 8:
      return retry_or_die();
    case 9:
      return revive_or_drop();
    case 10:
    case 11:
      return checkpoint();
    case 14:
      for (int i = 0; i < 3 && !poisoned_; ++i) {
        // The instants between two names on the disk are few: go for them.
        if (i == 2 && !scripted_ && draw(3) == 0) break_soon(12);
        checkpoint();
        if (!poisoned_) commit();
      }
      return;
    case 15:
      return settle_with_follow_up();
    case 12:
      spool_->idle(*this);
      return;
    case 13:
      read_all(1 + draw(20));
      clock_.advance(std::chrono::milliseconds(draw(2000)));
      return;
    default:
      return commit();
  }
}

void SpoolWorld::publish() {
  Draft draft{draw(3) == 0 ? "u" : "t", "", {}};
  draft.body = std::to_string(++serial_) + "/" + std::string(draw(12) == 0 ? 3000 : draw(500), 'b');
  if (draw(4) == 0) draft.options.dedup = "id" + std::to_string(serial_);
  if (draw(10) == 0) draft.options.durability = Durability::kOs;
  if (draw(10) == 0) draft.options.durability = Durability::kDisk;
  // Now and then an id that was used before.
  const bool again = !dedups_.empty() && draw(8) == 0 && !rotted_;
  std::optional<Sequence> expected;
  if (again) {
    auto known = dedups_.begin();
    std::advance(known, static_cast<std::ptrdiff_t>(draw(dedups_.size())));
    draft.options.dedup = known->first;
    draft.body = known->second.second;
    draft.topic = "t";
    expected = known->second.first;
  } else if (!draft.options.dedup.empty()) {
    draft.topic = "t";
  }
  if (!again) attempted_[draft.body] = draft.topic;
  const Draft copy = draft;
  spool_->publish_draft(draft, [this, copy, expected](const Result<Receipt>& receipt) {
    if (!receipt.ok()) {
      const auto code = receipt.error().code;
      require(code == ErrorCode::kUnknown || code == ErrorCode::kFull || code == ErrorCode::kClosed,
              "refused: " + receipt.error().text());
      return;
    }
    if (expected) {
      require(receipt->duplicate && receipt->sequence == *expected,
              "a repeated dedup id was accepted again");
      return;
    }
    if (receipt->durability == Durability::kDisk) durable_ = std::max(durable_, receipt->sequence);
    attempted_.erase(copy.body);
    auto& message = messages_[receipt->sequence];
    message.body = copy.body;
    message.topic = copy.topic;
    message.dedup = copy.options.dedup;
    for (std::size_t group = 0; group < kGroups.size(); ++group) {
      if (takes(group, copy.topic))
        message.standings[group].emplace_back(receipt->sequence, Standing{});
    }
    if (!copy.options.dedup.empty()) dedups_[copy.options.dedup] = {receipt->sequence, copy.body};
  });
}

void SpoolWorld::on_committed(Committed committed) {
  require(committed.first == last_ + 1, "a commit does not follow the one before");
  committed.for_each_message([&](Sequence, const AcceptedRun& run, std::string_view envelope) {
    require(parse_envelope(envelope).ok(), "a committed message has no envelope");
    for (std::size_t group = 0; group < groups_.size(); ++group) {
      if ((run.groups >> group & 1) != 0) groups_[group]->state->accept();
    }
  });
  commits_.emplace_back(committed.evidence, committed.last);
  last_ = committed.last;
  position_ = committed.position;
  for (const auto& [ticket, lsn] : committed.tickets) {
    const auto found = tickets_.find(ticket);
    if (found == tickets_.end()) continue;
    found->second(lsn);
    tickets_.erase(found);
  }
}

// The operation becomes the model's truth when its ticket comes back; until then it may have
// happened or not.
void SpoolWorld::submit(Submission submission, Sequence sequence, std::size_t group,
                        const Standing& after, std::function<void(Lsn)> effect) {
  auto& past = messages_.at(sequence).standings.at(group);
  past.emplace_back(0, after);
  const std::size_t index = past.size() - 1;
  busy_.insert({sequence, group});
  submission.ticket = ++last_ticket_;
  submission.lazy = draw(2) == 0;
  tickets_[submission.ticket] = [this, sequence, group, index, effect](Lsn lsn) {
    effect(lsn);
    messages_.at(sequence).standings.at(group).at(index).first = lsn;
    if (durability_ == Durability::kDisk) durable_ = std::max(durable_, lsn);
    busy_.erase({sequence, group});
  };
  spool_->submit(submission);
}

std::optional<Sequence> SpoolWorld::pick_open(std::size_t group) {
  auto& state = *groups_[group]->state;
  std::vector<Sequence> open;
  for (const auto& [sequence, body] : groups_[group]->plain) {
    if (state.is_plain(sequence)) open.push_back(sequence);
  }
  for (const auto& [sequence, history] : state.entries()) {
    if (!history.dead()) open.push_back(sequence);
  }
  // Mostly in order, as workers do.
  std::sort(open.begin(), open.end());
  if (open.empty()) return std::nullopt;
  const auto at = draw(4) == 0 ? draw(open.size()) : draw(std::min<std::size_t>(3, open.size()));
  if (busy_.count({open[at], group}) != 0 || messages_.count(open[at]) == 0) return std::nullopt;
  return open[at];
}

void SpoolWorld::settle() {
  const std::size_t group = draw(2);
  const auto sequence = pick_open(group);
  if (!sequence) return;
  const auto how = static_cast<Settlement>(draw(3));
  Submission submission;
  submission.entries.push_back(
      {RecordType::kSettlement, 0,
       encode(SettlementRecord{static_cast<GroupId>(group), how, {*sequence}}), 0});
  submit(std::move(submission), *sequence, group, {Standing::Kind::kSettled, 0},
         [this, group, sequence = *sequence, how](Lsn) {
           require(groups_[group]->state->settle(sequence, how), "a settlement was refused");
         });
}

// S6: the follow-up exists exactly if the settlement does.
void SpoolWorld::settle_with_follow_up() {
  const std::size_t group = draw(2);
  const auto sequence = pick_open(group);
  if (!sequence) return;
  Draft draft{"u", "follow-up " + std::to_string(++serial_) + std::string(draw(1500), 'f'), {}};
  const auto now = clock_.utc();
  Submission submission;
  submission.entries.push_back({RecordType::kMessage, static_cast<std::uint8_t>(kContinues | 1),
                                encode_envelope(draft, uuid_v7(now), now), 2});
  submission.entries.push_back(
      {RecordType::kSettlement, 0,
       encode(SettlementRecord{static_cast<GroupId>(group), Settlement::kDone, {*sequence}}), 0});
  follow_ups_[draft.body] = {*sequence, std::to_string(group)};
  attempted_[draft.body] = draft.topic;
  submit(std::move(submission), *sequence, group, {Standing::Kind::kSettled, 0},
         [this, group, sequence = *sequence, draft](Lsn lsn) {
           require(groups_[group]->state->settle(sequence, Settlement::kDone), "refused");
           attempted_.erase(draft.body);
           auto& message = messages_[lsn];
           message.body = draft.body;
           message.topic = draft.topic;
           message.standings[1].emplace_back(lsn, Standing{});
         });
}

void SpoolWorld::retry_or_die() {
  const std::size_t group = draw(2);
  const auto sequence = pick_open(group);
  if (!sequence) return;
  const auto* history = groups_[group]->state->history(*sequence);
  const std::uint32_t attempts = (history != nullptr ? history->attempts() : 0) + 1;
  const Lsn before = history != nullptr ? history->record_lsn() : 0;
  const std::string reason = "because " + std::to_string(*sequence);
  Submission submission;
  if (draw(2) == 0) {
    const RetryRecord record{static_cast<GroupId>(group),
                             *sequence,
                             1,
                             attempts,
                             0,
                             to_ms(clock_.utc()) + 1000,
                             false,
                             reason,
                             "worker",
                             to_ms(clock_.utc()),
                             before};
    submission.entries.push_back({RecordType::kRetry, 0, to_bytes(record), 0});
    return submit(std::move(submission), *sequence, group, {Standing::Kind::kOpen, attempts},
                  [this, group, record](Lsn lsn) { groups_[group]->state->retry(record, lsn); });
  }
  const DeadRecord record{
      static_cast<GroupId>(group), *sequence, 1, attempts, "attempts", reason, "worker",
      to_ms(clock_.utc()),         before};
  submission.entries.push_back({RecordType::kDead, 0, to_bytes(record), 0});
  submit(std::move(submission), *sequence, group, {Standing::Kind::kDead, attempts},
         [this, group, record](Lsn lsn) {
           require(groups_[group]->state->dead(record, lsn), "a death was refused");
         });
}

void SpoolWorld::revive_or_drop() {
  const std::size_t group = draw(2);
  auto& state = *groups_[group]->state;
  const Sequence sequence = state.next_dead(0);
  if (sequence == 0 || busy_.count({sequence, group}) != 0 || messages_.count(sequence) == 0) {
    return;
  }
  Submission submission;
  if (draw(3) != 0) {
    submission.entries.push_back(
        {RecordType::kRevive, 0, encode(ReviveRecord{static_cast<GroupId>(group), {sequence}}), 0});
    return submit(std::move(submission), sequence, group, {Standing::Kind::kOpen, 0},
                  [this, group, sequence](Lsn) { groups_[group]->state->revive(sequence); });
  }
  submission.entries.push_back(
      {RecordType::kSettlement, 0,
       encode(SettlementRecord{static_cast<GroupId>(group), Settlement::kDropped, {sequence}}), 0});
  submit(std::move(submission), sequence, group, {Standing::Kind::kSettled, 0},
         [this, group, sequence](Lsn) {
           groups_[group]->state->settle(sequence, Settlement::kDropped);
         });
}

void SpoolWorld::commit() {
  spool_->commit_pending(*this);
  if (!poisoned_) spool_->upkeep(*this);
  if (disk_.calls() % 5 == 0 && !poisoned_) {
    // A spare that is being filled with zeros: the upkeep thread's other work.
    const_cast<SegmentLog&>(spool_->segments()).spares().prepare();
  }
}

void SpoolWorld::checkpoint() {
  if (position_.segment == 0 || spool_->checkpoint_under_way()) return;
  read_all(draw(3) == 0 ? 1000 : 1 + draw(40));
  std::vector<const GroupState*> states;
  for (const auto& group : groups_) states.push_back(group->state.get());
  auto plan = plan_reclaim(spool_->segments().segments(), states, {}, clock_.utc(), 1 + draw(8));
  Snapshot snapshot;
  snapshot.lsn = last_;
  snapshot.position = position_;
  for (const auto* state : states) snapshot.groups.push_back(state->snapshot());
  snapshot.dead = plan.dead;
  spool_->checkpoint(std::move(snapshot));
  copy_forward(plan.to_copy);
  // Go for the instants in which copies are not durable yet.
  if (!scripted_ && !plan.to_copy.empty() && draw(4) == 0) break_soon(8);
  if (draw(2) == 0) commit();
}

void SpoolWorld::copy_forward(const std::vector<Sequence>& sequences) {
  std::vector<const GroupState*> states;
  for (const auto& group : groups_) states.push_back(group->state.get());
  for (const auto sequence : sequences) {
    auto copy = make_copy(*reader_, sequence, states);
    require(copy.ok(), "a message cannot be copied");
    if (!copy->has_value()) {
      require(rotted_, "an open message cannot be read for copying");
      continue;
    }
    Submission submission;
    submission.entries.push_back({RecordType::kCopy, 0, to_bytes(**copy), 0});
    submission.ticket = ++last_ticket_;
    tickets_[submission.ticket] = [this, sequence, histories = (*copy)->histories](Lsn lsn) {
      for (const auto& each : histories) {
        groups_[each.group]->state->copied(sequence, lsn, each.record_lsn);
      }
    };
    spool_->submit(submission);
  }
}

void SpoolWorld::read_all(std::size_t messages_max) {
  for (const auto& group : groups_) {
    auto& state = *group->state;
    for (;;) {
      const BacklogRequest request{group->cursor, last_ + 1, state.passed(), state.known(),
                                   messages_max,  1U << 20,  group->gaps};
      if (request.from >= request.before) break;
      auto slice = read_backlog(*reader_, state, request);
      require(slice.ok(), "the backlog cannot be read");
      require(rotted_ || slice->lost.empty(), "messages are missing in the log behind the cursor");
      require(rotted_ || slice->damaged.empty(),
              slice->damaged.empty()
                  ? ""
                  : "messages are missing in the log of group " + kGroups[state.id()] + ": " +
                        std::to_string(slice->damaged[0].first) + " to " +
                        std::to_string(slice->damaged.back().last) + ", " +
                        std::to_string(slice->damaged.back().count) + ", known " +
                        std::to_string(request.known) + " passed " +
                        std::to_string(request.passed));
      for (const auto& [first, last] : slice->skips) state.skip(first, last);
      slice->for_each_message([&](Sequence sequence, const StoredRun&, std::string_view envelope) {
        group->plain[sequence] = body_in(envelope);
      });
      for (const auto sequence : slice->lost) {
        state.settle(sequence, Settlement::kDamaged);
        reported_.emplace_back(sequence, sequence);
      }
      if (slice->next > state.known()) state.pass(slice->next, slice->passed);
      for (const auto& part : slice->damaged) {
        state.damage(part);
        reported_.emplace_back(part.first, part.last);
      }
      group->gaps = slice->gaps;
      group->cursor = std::max(group->cursor, slice->next);
      if (messages_max < 1000) break;
    }
  }
}

void SpoolWorld::die() {
  const bool power_cut = draw(3) != 0;
  if (spool_ != nullptr && !poisoned_ && draw(3) == 0) {  // a clean stop
    spool_->commit_pending(*this);
    if (!poisoned_) spool_->idle(*this);
    if (!poisoned_) checkpoint();
    if (!poisoned_) commit();
  }
  reader_.reset();
  spool_.reset();
  // A life that could not open leaves the question open what the one before left.
  power_cut_ = power_cut_ || power_cut;
  if (std::getenv("DRAY_TEST_TRACE") != nullptr) {
    std::fprintf(stderr, "%s; the log to %llu, acknowledged to %llu\n",
                 power_cut ? "power cut" : "killed", static_cast<unsigned long long>(last_),
                 static_cast<unsigned long long>(durable_));
  }
  if (power_cut) {
    disk_.cut_power();
  } else {
    disk_.kill();
  }
  // One checkpoint may rot without harm.
  const std::string& name = kCheckpoints[draw(2)];
  const auto names = disk_.names();
  const bool both =
      std::all_of(kCheckpoints.begin(), kCheckpoints.end(), [&](const std::string& each) {
        return std::count(names.begin(), names.end(), each) == 1 &&
               decode_checkpoint(disk_.bytes(each)).fault == CheckpointFault::kNone;
      });
  if (both && draw(4) == 0) disk_.flip_bit(name, draw(disk_.bytes(name).size()));
}

// Bits flip, sectors go bad, files vanish.
void SpoolWorld::rot() {
  std::vector<std::string> segments;
  for (const auto& name : disk_.names()) {
    if (segment_number(name)) segments.push_back(name);
  }
  if (segments.empty() || draw(3) == 0) return;
  // A second spot in the same tail may take away what said that the first was durable.
  if (!opened_since_rot_) return;
  opened_since_rot_ = false;
  rotted_ = true;
  const auto& name = segments[draw(segments.size())];
  const auto size = disk_.bytes(name).size();
  if (size <= kSegmentHeaderSize) return;
  // One in eight hits the header.
  const auto at = draw(8) == 0 ? draw(kSegmentHeaderSize)
                               : kSegmentHeaderSize + draw(size - kSegmentHeaderSize);
  // A whole sector of the tail takes the evidence with it that it was durable.
  if (draw(4) == 0 && name != segments.back()) {
    disk_.break_sector(name, at);
  } else {
    disk_.flip_bit(name, at);
  }
  if (std::getenv("DRAY_TEST_TRACE") != nullptr) {
    std::fprintf(stderr, "rot in %s at %llu\n", name.c_str(), static_cast<unsigned long long>(at));
  }
}

// --- checks ---------------------------------------------------------------------------------

std::string SpoolWorld::body_in(std::string_view envelope) {
  const auto parsed = parse_envelope(envelope);
  require(parsed.ok(), "a message that is served cannot be read");
  return std::string(parsed->body);
}

bool SpoolWorld::was_reported(Sequence sequence) const {
  return std::any_of(reported_.begin(), reported_.end(), [&](const auto& range) {
    return range.first <= sequence && sequence <= range.second;
  });
}

std::optional<Standing> SpoolWorld::observe(Sequence sequence, std::size_t group) const {
  const auto& state = *groups_[group]->state;
  if (const auto* history = state.history(sequence)) {
    return Standing{history->dead() ? Standing::Kind::kDead : Standing::Kind::kOpen,
                    history->attempts()};
  }
  if (state.is_settled(sequence)) return Standing{Standing::Kind::kSettled, 0};
  if (groups_[group]->plain.count(sequence) != 0) return Standing{Standing::Kind::kOpen, 0};
  return std::nullopt;  // not there
}

void SpoolWorld::check_message(Sequence sequence, ModelMessage& message) {
  const std::string name = "message " + std::to_string(sequence);
  for (auto& [group, past] : message.standings) {
    auto& state = *groups_[group]->state;
    const auto seen = observe(sequence, group);
    require(seen.has_value(), name + " is neither open nor settled");
    // The last thing that surely happened, and all that may have happened after it.
    std::size_t sure = 0;
    for (std::size_t i = 0; i < past.size(); ++i) {
      const Lsn lsn = past[i].first;
      if (lsn != 0 && (!power_cut_ || lsn <= durable_)) sure = i;
    }
    bool allowed = false;
    for (std::size_t i = sure; i < past.size(); ++i) allowed = allowed || past[i].second == *seen;
    require(allowed || rotted_, name + " of group " + kGroups[group] + " stands wrong: seen " +
                                    std::to_string(static_cast<int>(seen->kind)) + "/" +
                                    std::to_string(seen->attempts) + ", sure " +
                                    std::to_string(static_cast<int>(past[sure].second.kind)) + "/" +
                                    std::to_string(past[sure].second.attempts) + ", body " +
                                    message.body.substr(0, 20) + ", power cut " +
                                    std::to_string(power_cut_) + ", durable to " +
                                    std::to_string(durable_) + ", log to " + std::to_string(last_));
    const bool was_open = past[sure].second.kind != Standing::Kind::kSettled;
    if (seen->kind == Standing::Kind::kSettled) {
      // Lost, or settled: only rot may lose it, and not silently.
      require(allowed || !was_open || was_reported(sequence), name + " is silently gone");
    } else {
      auto read = read_message(*reader_, sequence, state.history(sequence));
      require(read.ok() && (read->has_value() || rotted_), name + " cannot be read");
      if (read->has_value()) {
        require(body_in((*read)->envelope()) == message.body, name + " reads wrong");
      }
      const auto* history = state.history(sequence);
      if (history != nullptr && history->record_lsn() != 0 && !rotted_) {
        const auto attempts = read_attempts(*reader_, *history, static_cast<GroupId>(group), 20);
        require(!attempts.empty() && attempts[0].reason == "because " + std::to_string(sequence),
                name + " has lost its history");
      }
    }
    past.assign(1, {1, *seen});
  }
}

bool SpoolWorld::is_gone(Sequence sequence, const std::string& body) {
  if (sequence >= spool_->boundary()) return true;
  auto record = reader_->at(sequence);
  if (!record.ok() || !record->has_value()) return false;
  if ((*record)->header.type != RecordType::kMessage) return true;
  if (body_in((*record)->payload) != body) return true;
  // S6: without its settlement a follow-up does not count.
  const auto unit = follow_ups_.find(body);
  if (unit == follow_ups_.end()) return false;
  const auto origin = observe(unit->second.first, unit->second.second == "0" ? 0 : 1);
  // One that rotted counts as settled too, whatever became of its unit.
  return !origin || origin->kind != Standing::Kind::kSettled || was_reported(unit->second.first);
}

void SpoolWorld::check() {
  read_all(1000);
  for (const auto& [said, last] : commits_) {
    if (last <= durable_) evidence_ = std::max(evidence_, said);
  }
  commits_.clear();
  // Messages that the model does not know must be attempts whose receipt never came.
  check_found();
  for (auto each = messages_.begin(); each != messages_.end();) {
    const Sequence sequence = each->first;
    // What was not durable may be gone, and its position belongs to another record.
    // Rot in what nothing after it says was durable looks like a torn tail (S3).
    const bool may_be_gone =
        (power_cut_ && sequence > durable_) || (rotted_ && sequence > evidence_);
    if (may_be_gone && is_gone(sequence, each->second.body)) {
      attempted_[each->second.body] = each->second.topic;
      dedups_.erase(each->second.dedup);
      each = messages_.erase(each);
      continue;
    }
    check_message(sequence, each->second);
    ++each;
  }
  check_counts();
  power_cut_ = false;
  durable_ = std::max(durable_, last_);
  evidence_ = std::min(evidence_, last_);
}

void SpoolWorld::check_found() {
  for (std::size_t group = 0; group < groups_.size(); ++group) {
    for (const auto& [sequence, body] : groups_[group]->plain) {
      auto& message = messages_[sequence];
      if (message.body.empty()) {
        const auto attempt = attempted_.find(body);
        const auto unit = follow_ups_.find(body);
        require(attempt != attempted_.end(),
                "a message that nobody published: " + body.substr(0, 40));
        if (unit != follow_ups_.end()) {
          const auto seen = observe(unit->second.first, unit->second.second == "0" ? 0 : 1);
          require((seen && seen->kind == Standing::Kind::kSettled) || rotted_,
                  "a follow-up exists without its settlement");
        }
        message.body = body;
        message.topic = attempt->second;
        attempted_.erase(attempt);
      }
      require(message.body == body, "message " + std::to_string(sequence) + " has another body");
      auto& past = message.standings[group];
      if (past.empty()) past.emplace_back(sequence, Standing{});
    }
  }
}

void SpoolWorld::check_counts() {
  for (std::size_t g = 0; g < groups_.size(); ++g) {
    const auto& state = *groups_[g]->state;
    const auto& counts = state.counts();
    require(counts.balanced(), "the counts do not balance");
    std::uint64_t open = 0;
    std::uint64_t dead = 0;
    for (const auto& [sequence, history] : state.entries()) ++(history.dead() ? dead : open);
    for (const auto& [sequence, body] : groups_[g]->plain)
      open += state.is_plain(sequence) ? 1U : 0U;
    require(counts.dead == dead, "dead letters: counted " + std::to_string(counts.dead) +
                                     ", there are " + std::to_string(dead));
    require(counts.pending == open || rotted_, "pending: counted " +
                                                   std::to_string(counts.pending) + ", there are " +
                                                   std::to_string(open));
    std::uint64_t accepted = 0;
    for (const auto& [sequence, message] : messages_) {
      if (message.standings.count(g) != 0) ++accepted;
    }
    require(counts.accepted == accepted || rotted_, "accepted: counted " +
                                                        std::to_string(counts.accepted) +
                                                        ", there were " + std::to_string(accepted));
    require(counts.damaged == 0 || rotted_, "damaged without rot");
  }
}

}  // namespace dray::test
