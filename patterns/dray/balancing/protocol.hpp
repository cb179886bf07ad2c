// Protocol: the frames between dispatcher and worker, and dispatcher and remote publisher
// (patterns/PROTOCOL.md). Pure.
//
// A frame is one ZeroMQ frame, but for DELIVER: the records that it delivers, as they lie in the
// log, are a second one.
//
// Threading: values and pure functions. Failure: decode returns kCorrupt for bytes that are no
// frame of this version and kUnsupported for another version; it never throws.
// Ownership: views in decoded frames point into the bytes that were decoded.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "dray/message.hpp"
#include "dray/sequence_runs.hpp"
#include "dray/step_journal.hpp"

namespace dray::balancing {

inline constexpr std::uint8_t kProtocolVersion = 0;
inline constexpr std::size_t kFollowUpsMax = 64;
inline constexpr std::size_t kNameBytesMax = 256;  // of workers and publishers

// Deliveries of one grant: same epoch and delivery number. With the spool id and the group, which
// the session implies, each sequence makes a token.
struct TokenRange {
  std::uint64_t epoch = 0;
  std::uint32_t number = 0;
  SequenceRuns sequences;  // ascending
};

// So many deliveries a session may have that are not confirmed: what it holds is named in one
// HELLO.
inline constexpr std::size_t kUnconfirmedMax = 1U << 18;
// Sequences in one RESULT or CONFIRM, as Dray sends them.
inline constexpr std::size_t kFrameSequencesMax = 1U << 16;

// What several frames say of these tokens, each within kFrameSequencesMax; of each grant the
// sequences ascend.
using Tokens = std::map<std::pair<std::uint64_t, std::uint32_t>, SequenceRuns>;
std::vector<std::vector<TokenRange>> in_frames(const Tokens& tokens);

struct RetryPolicy {
  std::uint32_t max_attempts = 8;
  Milliseconds initial{1'000};
  Milliseconds max{600'000};
  double jitter = 0.2;  // the delay is spread over [1 - jitter, 1 + jitter]
};

// worker -> dispatcher
struct Hello {
  Uuid session;
  std::string worker;  // for people
  std::string group;
  std::uint32_t window_messages = 1;
  std::uint64_t window_bytes = 1;
  RetryPolicy retry;
  std::vector<TokenRange> held;  // delivered to this session and not confirmed
  std::uint64_t count = 1;       // of this session's HELLO frames: an older one may come later
};
// worker -> dispatcher: cap on (sent - answered); 0: no room now
struct Window {
  std::uint32_t messages = 1;
  std::uint64_t bytes = 1;
};

enum class ResultKind : std::uint8_t {
  kDone = 0,
  kRetry = 1,
  kSnooze = 2,
  kReject = 3,
  kReturned = 4,  // not started: no attempt
};
struct ResultItem {
  ResultKind kind = ResultKind::kDone;
  TokenRange tokens;
  std::string reason;
  std::int64_t delay_ms = -1;           // -1: by the policy
  std::vector<std::string> follow_ups;  // envelopes; only with one sequence
};
// worker -> dispatcher
struct ResultFrame {
  std::vector<ResultItem> items;
};
// worker -> dispatcher: the session ends
struct Bye {};
// both ways
struct Heartbeat {};
// worker -> dispatcher: a step of a delivery that it runs begins, or ended
struct Step {
  std::uint64_t epoch = 0;
  std::uint32_t number = 0;
  Sequence sequence = 0;
  StepCall what = StepCall::kBegin;
  std::uint64_t run = 0;  // random; of this handling, whatever number its delivery has
  std::string step;
  std::string value;  // of one that is done
};
// dispatcher -> worker
struct Welcome {
  Uuid spool;
  std::uint64_t epoch = 0;
  std::uint32_t lease_ms = 0;
  std::uint32_t reconnect_grace_ms = 0;
};
// dispatcher -> worker. "unknown-session": say HELLO; "unknown-group": as it says.
struct Refused {
  std::string code;
  std::string reason;
};
// Messages as records, one behind the other (FORMATS.md, "Record").
struct Delivered {
  // Neighbours in the log and here.
  struct Run {
    Sequence first = 0;
    std::uint32_t count = 0;
    std::uint32_t index = 0;  // of the first
  };
  std::string_view bytes;
  std::vector<std::uint32_t> offsets;  // of each record
  std::vector<Run> runs;

  std::string_view envelope(std::uint32_t index) const;
};
// dispatcher -> worker. The deliveries of a frame have one number and one attempt.
struct Deliver {
  std::uint64_t epoch = 0;
  std::uint32_t number = 1;
  std::uint32_t attempt = 1;
  std::uint64_t waiting = 0;  // as Backlog says
  Delivered records = {};     // of the second frame
};
// dispatcher -> worker: these results are durable, or were refused as stale: forget them
struct Confirm {
  std::vector<TokenRange> tokens;
};

// dispatcher -> worker: a STEP is durable, or refused
struct Stepped {
  Sequence sequence = 0;
  std::uint64_t run = 0;
  StepCall what = StepCall::kBegin;
  std::string step;
  StepAnswer answer = StepAnswer::kRecorded;
  std::string value;  // StepJournal::Reply::value
};
// dispatcher -> worker: no room for the follow-ups of these results; say them again in a while
struct Busy {
  std::vector<TokenRange> tokens;
};

// dispatcher -> worker: so many messages of the group wait for room
struct Backlog {
  std::uint64_t waiting = 0;
};

// publisher -> dispatcher: its session begins, or begins again after a broken connection
struct PublisherHello {
  Uuid publisher;           // drawn at random, for the life of the publisher
  std::string name;         // for people
  std::uint64_t next = 1;   // the lowest of its deposits without a receipt
  std::uint64_t count = 1;  // of its PUBLISHER frames: an older one may come later
};
inline constexpr std::size_t kDepositItemsMax = 4'096;  // of one frame
struct DepositItem {
  std::optional<Durability> durability;  // nothing: the spool's own
  // Its id and published_at are given anew by the spool. Empty: this one had its receipt before.
  std::string_view envelope;
};
// publisher -> dispatcher: deposits `first`, `first` + 1, ...
struct Deposit {
  std::uint64_t first = 1;
  std::uint64_t lowest = 1;  // without a receipt
  std::vector<DepositItem> items;
};
// dispatcher -> publisher
struct PublisherWelcome {
  Uuid spool;
  std::uint64_t epoch = 0;
  std::uint32_t lease_ms = 0;
  std::uint32_t window_messages = 1;  // cap on numbers from the lowest without a receipt on
  std::uint64_t window_bytes = 1;     // the same in bytes of envelopes; one may exceed it
  std::uint64_t memory_ms = 0;        // for so long a repeated deposit is recognised
};
struct DepositReceipt {
  std::uint64_t number = 0;  // of the deposit
  std::string code;          // empty: accepted; else as error_code_name()
  std::string reason;
  Uuid id;
  Sequence sequence = 0;
  Durability durability = Durability::kOs;
  bool duplicate = false;
};
// dispatcher -> publisher
struct Receipts {
  std::vector<DepositReceipt> items;
};

using ProtocolFrame =
    std::variant<Hello, Window, ResultFrame, Bye, Heartbeat, Welcome, Refused, Deliver, Confirm,
                 Backlog, PublisherHello, Deposit, PublisherWelcome, Receipts, Step, Stepped, Busy>;

std::string encode(const Hello& frame);
std::string encode(const Window& frame);
std::string encode(const ResultFrame& frame);
std::string encode(const Bye& frame);
std::string encode(const Heartbeat& frame);
std::string encode(const Welcome& frame);
std::string encode(const Refused& frame);
// The first frame; the second one is `records.bytes`.
std::string encode(const Deliver& frame);
std::string encode(const Confirm& frame);
std::string encode(const Backlog& frame);
std::string encode(const PublisherHello& frame);
std::string encode(const Deposit& frame);
std::string encode(const PublisherWelcome& frame);
std::string encode(const Receipts& frame);
std::string encode(const Step& frame);
std::string encode(const Stepped& frame);
std::string encode(const Busy& frame);

// `records`: the second frame, if there was one.
Result<ProtocolFrame> decode_frame(std::string_view bytes, std::string_view records = {});

}  // namespace dray::balancing
