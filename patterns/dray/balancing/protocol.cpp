#include "dray/balancing/protocol.hpp"

#include <algorithm>
#include <cmath>
#include <optional>
#include <utility>

#include "dray/codec.hpp"
#include "dray/spool/record.hpp"

namespace dray::balancing {
namespace {

constexpr std::string_view kMagic = "DR";
constexpr std::size_t kPrefixSize = 4;
constexpr std::size_t kReasonBytesMax = 4'096;
constexpr std::size_t kEnvelopeBytesMax = (16U << 20) + (1U << 19);

enum class FrameKind : std::uint8_t {
  kHello = 1,
  kWindow = 2,
  kResult = 3,
  kBye = 4,
  kHeartbeat = 5,
  kPublisherHello = 6,
  kDeposit = 7,
  kStep = 8,
  kWelcome = 16,
  kRefused = 17,
  kDeliver = 18,
  kConfirm = 19,
  kBacklog = 20,
  kPublisherWelcome = 21,
  kReceipts = 22,
  kStepped = 23,
  kBusy = 24,
};

std::string prefix(FrameKind kind) {
  std::string bytes(kMagic);
  bytes.push_back(static_cast<char>(kProtocolVersion));
  bytes.push_back(static_cast<char>(kind));
  return bytes;
}

void put_tokens(Encoder& encoder, const TokenRange& range) {
  encoder.natural(range.epoch);
  encoder.natural(range.number);
  encode_runs(encoder, range.sequences);
}

void put_ranges(Encoder& encoder, const std::vector<TokenRange>& ranges) {
  encoder.array(ranges.size());
  for (const auto& range : ranges) {
    encoder.array(3);
    put_tokens(encoder, range);
  }
}

// Reads the elements of an array one after the other; remembers the first fault.
class Fields {
 public:
  // `sequences_left` bounds the sequences of a whole frame, however many lists they stand in.
  Fields(const Value& value, std::size_t size, std::size_t* sequences_left)
      : value_(value),
        sequences_left_(sequences_left),
        ok_(value.kind() == Value::Kind::kArray && value.size() >= size) {}

  bool ok() const { return ok_; }
  Value next() { return ok_ && at_ < value_.size() ? value_.at(at_++) : Value(); }

  template <typename T>
  T natural() {
    std::uint64_t number = 0;
    if (!next().get(number) || !std::in_range<T>(number)) ok_ = false;
    return ok_ ? static_cast<T>(number) : T{};
  }
  std::int64_t integer() {
    std::int64_t number = 0;
    if (!next().get(number)) ok_ = false;
    return number;
  }
  double real() {
    double number = 0;
    if (!next().get(number) || !std::isfinite(number)) ok_ = false;
    return number;
  }
  std::string text() {
    std::string_view text;
    if (!next().get_text(text)) ok_ = false;
    return std::string(text);
  }
  std::string_view binary() {
    std::string_view bytes;
    if (!next().get_binary(bytes)) ok_ = false;
    return bytes;
  }
  Uuid uuid() {
    const auto id = Uuid::from_bytes(binary());
    if (!id) ok_ = false;
    return id.value_or(Uuid{});
  }
  SequenceRuns runs() {
    auto sequences = decode_runs(next(), *sequences_left_);
    if (!sequences.ok()) ok_ = false;
    return ok_ ? std::move(*sequences) : SequenceRuns{};
  }
  TokenRange tokens() {
    TokenRange range;
    range.epoch = natural<std::uint64_t>();
    range.number = natural<std::uint32_t>();
    range.sequences = runs();
    return range;
  }
  std::vector<TokenRange> ranges() {
    std::vector<TokenRange> ranges;
    const Value list = next();
    if (list.kind() != Value::Kind::kArray) ok_ = false;
    for (std::size_t i = 0; ok_ && i < list.size(); ++i) {
      Fields fields(list.at(i), 3, sequences_left_);
      ranges.push_back(fields.tokens());
      ok_ = ok_ && fields.ok();
    }
    return ranges;
  }
  void refuse() { ok_ = false; }
  std::size_t* sequences_left() const { return sequences_left_; }

 private:
  Value value_;
  std::size_t* sequences_left_;
  std::size_t at_ = 0;
  bool ok_;
};

Hello read_hello(Fields& fields) {
  Hello hello;
  hello.session = fields.uuid();
  hello.worker = fields.text();
  hello.group = fields.text();
  hello.window_messages = fields.natural<std::uint32_t>();
  hello.window_bytes = fields.natural<std::uint64_t>();
  hello.retry.max_attempts = fields.natural<std::uint32_t>();
  hello.retry.initial = Milliseconds(fields.natural<std::uint32_t>());
  hello.retry.max = Milliseconds(fields.natural<std::uint32_t>());
  hello.retry.jitter = fields.real();
  hello.held = fields.ranges();
  hello.count = fields.natural<std::uint64_t>();
  if (hello.retry.jitter < 0 || hello.retry.jitter > 1 || hello.retry.max_attempts == 0 ||
      hello.worker.size() > kNameBytesMax || name_fault(hello.group)) {
    fields.refuse();
  }
  return hello;
}

// An envelope within the limits of what may be published.
bool is_publishable(std::string_view bytes) {
  const auto envelope = parse_envelope(bytes);
  const auto draft = envelope.ok() ? draft_of(*envelope) : Result<Draft>(envelope.error());
  return draft.ok() && check_draft(*draft, MessageLimits{}).ok();
}

ResultItem read_result_item(Fields& fields) {
  ResultItem item;
  const auto kind = fields.natural<std::uint8_t>();
  if (kind > static_cast<std::uint8_t>(ResultKind::kReturned)) fields.refuse();
  item.kind = static_cast<ResultKind>(kind);
  item.tokens = fields.tokens();
  item.reason = fields.text();
  if (item.reason.size() > kReasonBytesMax) fields.refuse();
  item.delay_ms = fields.integer();
  const Value follow_ups = fields.next();
  if (follow_ups.kind() != Value::Kind::kArray || follow_ups.size() > kFollowUpsMax) {
    fields.refuse();
  }
  for (std::size_t i = 0; fields.ok() && i < follow_ups.size(); ++i) {
    std::string_view envelope;
    if (!follow_ups.at(i).get_binary(envelope) || envelope.size() > kEnvelopeBytesMax ||
        !is_publishable(envelope)) {
      fields.refuse();
    }
    item.follow_ups.emplace_back(envelope);
  }
  if (!item.follow_ups.empty() &&
      (item.kind != ResultKind::kDone || item.tokens.sequences.size() != 1)) {
    fields.refuse();
  }
  return item;
}

ResultFrame read_result(Fields& fields) {
  ResultFrame frame;
  const Value items = fields.next();
  if (items.kind() != Value::Kind::kArray) fields.refuse();
  for (std::size_t i = 0; fields.ok() && i < items.size(); ++i) {
    Fields item(items.at(i), 7, fields.sequences_left());
    frame.items.push_back(read_result_item(item));
    if (!item.ok()) fields.refuse();
  }
  return frame;
}

// Counting on from any of a frame's must not pass the end.
constexpr Sequence kSequenceMax = UINT64_MAX - kRunSequencesMax;

// Where each record begins, and which are neighbours. False if these are no records of messages.
bool read_records(std::string_view bytes, Delivered& out) {
  constexpr std::size_t kUsualRecord = 256;  // bytes
  constexpr std::size_t kPrefetch = 8;       // records
  out.bytes = bytes;
  out.offsets.reserve(bytes.size() / kUsualRecord + 1);
  for (std::size_t at = 0; at < bytes.size();) {
    const auto record = spool::parse_loose_record(bytes.substr(at));
    if (!record || record->lsn == 0 || record->lsn > kSequenceMax ||
        out.offsets.size() == kRunSequencesMax) {
      return false;
    }
    const std::size_t size = spool::record_size(record->payload_size);
    // Most have the size of the one before.
    if (size <= (bytes.size() - at) / kPrefetch)
      __builtin_prefetch(bytes.data() + at + (kPrefetch - 2) * size);
    const auto index = static_cast<std::uint32_t>(out.offsets.size());
    if (!out.runs.empty() && out.runs.back().first + out.runs.back().count == record->lsn) {
      ++out.runs.back().count;
    } else {
      out.runs.push_back({record->lsn, 1, index});
    }
    out.offsets.push_back(static_cast<std::uint32_t>(at));
    at += size;
  }
  return !out.offsets.empty();
}

Deliver read_deliver(Fields& fields, std::string_view records) {
  Deliver frame;
  frame.epoch = fields.natural<std::uint64_t>();
  frame.number = fields.natural<std::uint32_t>();
  frame.attempt = fields.natural<std::uint32_t>();
  frame.waiting = fields.natural<std::uint64_t>();
  if (!read_records(records, frame.records)) fields.refuse();
  return frame;
}

PublisherHello read_publisher_hello(Fields& fields) {
  PublisherHello hello;
  hello.publisher = fields.uuid();
  hello.name = fields.text();
  hello.next = fields.natural<std::uint64_t>();
  hello.count = fields.natural<std::uint64_t>();
  if (hello.name.size() > kNameBytesMax || hello.next == 0 || hello.publisher.is_nil()) {
    fields.refuse();
  }
  return hello;
}

Deposit read_deposit(Fields& fields) {
  Deposit deposit;
  deposit.first = fields.natural<std::uint64_t>();
  deposit.lowest = fields.natural<std::uint64_t>();
  const Value list = fields.next();
  if (list.kind() != Value::Kind::kArray || list.size() == 0 || list.size() > kDepositItemsMax ||
      deposit.first == 0 || deposit.lowest == 0 || deposit.lowest > deposit.first ||
      deposit.first > UINT64_MAX - kRunSequencesMax) {
    fields.refuse();
  }
  for (std::size_t i = 0; fields.ok() && i < list.size(); ++i) {
    Fields each(list.at(i), 2, fields.sequences_left());
    DepositItem item;
    const auto durability = each.natural<std::uint8_t>();
    item.envelope = each.binary();
    if (!each.ok() || durability > 2 || item.envelope.size() > kEnvelopeBytesMax) fields.refuse();
    if (durability != 0) item.durability = durability == 1 ? Durability::kOs : Durability::kDisk;
    deposit.items.push_back(item);
  }
  return deposit;
}

PublisherWelcome read_publisher_welcome(Fields& fields) {
  PublisherWelcome welcome;
  welcome.spool = fields.uuid();
  welcome.epoch = fields.natural<std::uint64_t>();
  welcome.lease_ms = fields.natural<std::uint32_t>();
  welcome.window_messages = fields.natural<std::uint32_t>();
  welcome.window_bytes = fields.natural<std::uint64_t>();
  welcome.memory_ms = fields.natural<std::uint64_t>();
  return welcome;
}

Receipts read_receipts(Fields& fields) {
  Receipts receipts;
  const Value list = fields.next();
  if (list.kind() != Value::Kind::kArray) fields.refuse();
  for (std::size_t i = 0; fields.ok() && i < list.size(); ++i) {
    Fields each(list.at(i), 7, fields.sequences_left());
    DepositReceipt receipt;
    receipt.number = each.natural<std::uint64_t>();
    receipt.code = each.text();
    receipt.reason = each.text();
    receipt.id = each.uuid();
    receipt.sequence = each.natural<Sequence>();
    const auto durability = each.natural<std::uint8_t>();
    receipt.durability = durability == 2 ? Durability::kDisk : Durability::kOs;
    receipt.duplicate = each.natural<std::uint8_t>() != 0;
    if (!each.ok() || durability < 1 || durability > 2) fields.refuse();
    receipts.items.push_back(std::move(receipt));
  }
  return receipts;
}

StepCall read_call(Fields& fields) {
  const auto what = fields.natural<std::uint8_t>();
  if (what > static_cast<std::uint8_t>(StepCall::kNotDone)) fields.refuse();
  return static_cast<StepCall>(what);
}

Step read_step(Fields& fields) {
  Step step;
  step.epoch = fields.natural<std::uint64_t>();
  step.number = fields.natural<std::uint32_t>();
  step.sequence = fields.natural<Sequence>();
  step.what = read_call(fields);
  step.run = fields.natural<std::uint64_t>();
  step.step = fields.text();
  step.value = fields.binary();
  if (step.sequence == 0 || !step_name_fault(step.step).empty() ||
      step.value.size() > kStepValueBytesMax) {
    fields.refuse();
  }
  return step;
}

Stepped read_stepped(Fields& fields) {
  Stepped stepped;
  stepped.sequence = fields.natural<Sequence>();
  stepped.run = fields.natural<std::uint64_t>();
  stepped.what = read_call(fields);
  stepped.step = fields.text();
  const auto answer = fields.natural<std::uint8_t>();
  stepped.answer = static_cast<StepAnswer>(answer);
  stepped.value = fields.binary();
  if (answer > static_cast<std::uint8_t>(StepAnswer::kBusy) ||
      stepped.value.size() > kStepValueBytesMax) {
    fields.refuse();
  }
  return stepped;
}

std::size_t field_count(FrameKind kind) {
  switch (kind) {
    case FrameKind::kHello:
      return 11;
    case FrameKind::kWelcome:
    case FrameKind::kPublisherHello:
    case FrameKind::kDeliver:
      return 4;
    case FrameKind::kStep:
      return 7;
    case FrameKind::kPublisherWelcome:
    case FrameKind::kStepped:
      return 6;
    case FrameKind::kDeposit:
      return 3;
    case FrameKind::kWindow:
    case FrameKind::kRefused:
      return 2;
    case FrameKind::kResult:
    case FrameKind::kConfirm:
    case FrameKind::kBusy:
    case FrameKind::kBacklog:
    case FrameKind::kReceipts:
      return 1;
    case FrameKind::kBye:
    case FrameKind::kHeartbeat:
      return 0;
  }
  return SIZE_MAX;
}

}  // namespace

std::string_view Delivered::envelope(std::uint32_t index) const {
  const auto record = spool::parse_loose_record(bytes.substr(offsets[index]));
  DRAY_ASSERT(record);  // it was read before
  return bytes.substr(offsets[index] + spool::kRecordHeaderSize, record->payload_size);
}

std::string encode(const Hello& frame) {
  std::string bytes = prefix(FrameKind::kHello);
  Encoder encoder(bytes);
  encoder.array(11);
  encoder.binary(frame.session.view());
  encoder.text(frame.worker);
  encoder.text(frame.group);
  encoder.natural(frame.window_messages);
  encoder.natural(frame.window_bytes);
  encoder.natural(frame.retry.max_attempts);
  encoder.natural(static_cast<std::uint64_t>(frame.retry.initial.count()));
  encoder.natural(static_cast<std::uint64_t>(frame.retry.max.count()));
  encoder.real(frame.retry.jitter);
  put_ranges(encoder, frame.held);
  encoder.natural(frame.count);
  return bytes;
}

std::string encode(const Window& frame) {
  std::string bytes = prefix(FrameKind::kWindow);
  Encoder encoder(bytes);
  encoder.array(2);
  encoder.natural(frame.messages);
  encoder.natural(frame.bytes);
  return bytes;
}

std::string encode(const ResultFrame& frame) {
  std::string bytes = prefix(FrameKind::kResult);
  Encoder encoder(bytes);
  encoder.array(1);
  encoder.array(frame.items.size());
  for (const auto& item : frame.items) {
    encoder.array(7);
    encoder.natural(static_cast<std::uint64_t>(item.kind));
    put_tokens(encoder, item.tokens);
    encoder.text(item.reason);
    encoder.integer(item.delay_ms);
    encoder.array(item.follow_ups.size());
    for (const auto& envelope : item.follow_ups) encoder.binary(envelope);
  }
  return bytes;
}

std::string encode(const Bye&) {
  std::string bytes = prefix(FrameKind::kBye);
  Encoder(bytes).array(0);
  return bytes;
}

std::string encode(const Heartbeat&) {
  std::string bytes = prefix(FrameKind::kHeartbeat);
  Encoder(bytes).array(0);
  return bytes;
}

std::string encode(const Welcome& frame) {
  std::string bytes = prefix(FrameKind::kWelcome);
  Encoder encoder(bytes);
  encoder.array(4);
  encoder.binary(frame.spool.view());
  encoder.natural(frame.epoch);
  encoder.natural(frame.lease_ms);
  encoder.natural(frame.reconnect_grace_ms);
  return bytes;
}

std::string encode(const Refused& frame) {
  std::string bytes = prefix(FrameKind::kRefused);
  Encoder encoder(bytes);
  encoder.array(2);
  encoder.text(frame.code);
  encoder.text(frame.reason);
  return bytes;
}

std::string encode(const Deliver& frame) {
  std::string bytes = prefix(FrameKind::kDeliver);
  Encoder encoder(bytes);
  encoder.array(4);
  encoder.natural(frame.epoch);
  encoder.natural(frame.number);
  encoder.natural(frame.attempt);
  encoder.natural(frame.waiting);
  return bytes;
}

std::string encode(const Confirm& frame) {
  std::string bytes = prefix(FrameKind::kConfirm);
  Encoder encoder(bytes);
  encoder.array(1);
  put_ranges(encoder, frame.tokens);
  return bytes;
}

std::string encode(const Backlog& frame) {
  std::string bytes = prefix(FrameKind::kBacklog);
  Encoder encoder(bytes);
  encoder.array(1);
  encoder.natural(frame.waiting);
  return bytes;
}

std::string encode(const PublisherHello& frame) {
  std::string bytes = prefix(FrameKind::kPublisherHello);
  Encoder encoder(bytes);
  encoder.array(4);
  encoder.binary(frame.publisher.view());
  encoder.text(frame.name);
  encoder.natural(frame.next);
  encoder.natural(frame.count);
  return bytes;
}

std::string encode(const Deposit& frame) {
  std::string bytes = prefix(FrameKind::kDeposit);
  Encoder encoder(bytes);
  encoder.array(3);
  encoder.natural(frame.first);
  encoder.natural(frame.lowest);
  encoder.array(frame.items.size());
  for (const auto& item : frame.items) {
    encoder.array(2);
    encoder.natural(!item.durability ? 0U : *item.durability == Durability::kOs ? 1U : 2U);
    encoder.binary(item.envelope);
  }
  return bytes;
}

std::string encode(const PublisherWelcome& frame) {
  std::string bytes = prefix(FrameKind::kPublisherWelcome);
  Encoder encoder(bytes);
  encoder.array(6);
  encoder.binary(frame.spool.view());
  encoder.natural(frame.epoch);
  encoder.natural(frame.lease_ms);
  encoder.natural(frame.window_messages);
  encoder.natural(frame.window_bytes);
  encoder.natural(frame.memory_ms);
  return bytes;
}

std::string encode(const Receipts& frame) {
  std::string bytes = prefix(FrameKind::kReceipts);
  Encoder encoder(bytes);
  encoder.array(1);
  encoder.array(frame.items.size());
  for (const auto& item : frame.items) {
    encoder.array(7);
    encoder.natural(item.number);
    encoder.text(item.code);
    encoder.text(item.reason);
    encoder.binary(item.id.view());
    encoder.natural(item.sequence);
    encoder.natural(item.durability == Durability::kDisk ? 2U : 1U);
    encoder.natural(item.duplicate ? 1U : 0U);
  }
  return bytes;
}

std::string encode(const Step& frame) {
  std::string bytes = prefix(FrameKind::kStep);
  Encoder encoder(bytes);
  encoder.array(7);
  encoder.natural(frame.epoch);
  encoder.natural(frame.number);
  encoder.natural(frame.sequence);
  encoder.natural(static_cast<std::uint64_t>(frame.what));
  encoder.natural(frame.run);
  encoder.text(frame.step);
  encoder.binary(frame.value);
  return bytes;
}

std::string encode(const Stepped& frame) {
  std::string bytes = prefix(FrameKind::kStepped);
  Encoder encoder(bytes);
  encoder.array(6);
  encoder.natural(frame.sequence);
  encoder.natural(frame.run);
  encoder.natural(static_cast<std::uint64_t>(frame.what));
  encoder.text(frame.step);
  encoder.natural(static_cast<std::uint64_t>(frame.answer));
  encoder.binary(frame.value);
  return bytes;
}

std::string encode(const Busy& frame) {
  std::string bytes = prefix(FrameKind::kBusy);
  Encoder encoder(bytes);
  encoder.array(1);
  put_ranges(encoder, frame.tokens);
  return bytes;
}

Result<ProtocolFrame> decode_frame(std::string_view bytes, std::string_view records) {
  const Error fault{ErrorCode::kCorrupt, "not a frame of the balancing protocol", "", 0};
  if (bytes.size() < kPrefixSize || bytes.substr(0, 2) != kMagic) return fault;
  if (static_cast<std::uint8_t>(bytes[2]) != kProtocolVersion) {
    return Error{ErrorCode::kUnsupported,
                 "protocol version " + std::to_string(static_cast<std::uint8_t>(bytes[2])) +
                     ", this program speaks " + std::to_string(kProtocolVersion),
                 "", 0};
  }
  const auto kind = static_cast<FrameKind>(bytes[3]);
  if (kind != FrameKind::kDeliver && !records.empty()) return fault;
  auto document = Document::parse(bytes.substr(kPrefixSize));
  if (!document.ok()) return document.error();
  std::size_t sequences_left = kRunSequencesMax;
  Fields fields(document->root(), field_count(kind), &sequences_left);
  if (!fields.ok()) return fault;
  ProtocolFrame frame = Heartbeat{};
  switch (kind) {
    case FrameKind::kHello:
      frame = read_hello(fields);
      break;
    case FrameKind::kWindow: {
      Window window;
      window.messages = fields.natural<std::uint32_t>();
      window.bytes = fields.natural<std::uint64_t>();
      frame = window;
      break;
    }
    case FrameKind::kResult:
      frame = read_result(fields);
      break;
    case FrameKind::kBye:
      frame = Bye{};
      break;
    case FrameKind::kHeartbeat:
      break;
    case FrameKind::kWelcome: {
      Welcome welcome;
      welcome.spool = fields.uuid();
      welcome.epoch = fields.natural<std::uint64_t>();
      welcome.lease_ms = fields.natural<std::uint32_t>();
      welcome.reconnect_grace_ms = fields.natural<std::uint32_t>();
      frame = welcome;
      break;
    }
    case FrameKind::kRefused: {
      Refused refused;
      refused.code = fields.text();
      refused.reason = fields.text();
      frame = refused;
      break;
    }
    case FrameKind::kDeliver:
      frame = read_deliver(fields, records);
      break;
    case FrameKind::kConfirm:
      frame = Confirm{fields.ranges()};
      break;
    case FrameKind::kBacklog:
      frame = Backlog{fields.natural<std::uint64_t>()};
      break;
    case FrameKind::kPublisherHello:
      frame = read_publisher_hello(fields);
      break;
    case FrameKind::kDeposit:
      frame = read_deposit(fields);
      break;
    case FrameKind::kPublisherWelcome:
      frame = read_publisher_welcome(fields);
      break;
    case FrameKind::kReceipts:
      frame = read_receipts(fields);
      break;
    case FrameKind::kStep:
      frame = read_step(fields);
      break;
    case FrameKind::kStepped:
      frame = read_stepped(fields);
      break;
    case FrameKind::kBusy:
      frame = Busy{fields.ranges()};
      break;
  }
  if (!fields.ok()) return fault;
  return frame;
}

std::vector<std::vector<TokenRange>> in_frames(const Tokens& tokens) {
  std::vector<std::vector<TokenRange>> frames;
  std::uint64_t left = 0;
  for (const auto& [token, sequences] : tokens) {
    bool named = false;  // in the last frame
    for (SequenceRun rest : sequences) {
      while (rest.count > 0) {
        if (left == 0) {
          frames.emplace_back();
          left = kFrameSequencesMax;
          named = false;
        }
        if (!std::exchange(named, true)) frames.back().push_back({token.first, token.second, {}});
        const auto count = std::min(rest.count, left);
        frames.back().back().sequences.add(rest.first, count);
        left -= count;
        rest.first += count;
        rest.count -= count;
      }
    }
  }
  return frames;
}

}  // namespace dray::balancing
