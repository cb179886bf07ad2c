#include "dray/spool/checkpoint.hpp"

#include <algorithm>

#include "dray/spool/bytes.hpp"
#include "dray/spool/planted_fault.hpp"

namespace dray::spool {
namespace {

constexpr std::size_t kSlice = 256U << 10;
constexpr std::string_view kMagic("DRAYCKPT", 8);
constexpr std::size_t kHeaderSize = 40;
constexpr std::size_t kHeaderCrcOffset = 36;
constexpr std::uint64_t kBodySizeMax = 1ULL << 32;
constexpr std::array<const char*, 2> kNames{"checkpoint.a", "checkpoint.b"};
constexpr const char* kTemporary = "checkpoint.tmp";

// ISA-L takes an int: a body above 1 GiB goes in pieces.
std::uint32_t long_crc(std::string_view bytes) {
  constexpr std::size_t kPiece = 1U << 30;
  std::uint32_t crc = 0;
  for (; !bytes.empty(); bytes.remove_prefix(std::min(kPiece, bytes.size()))) {
    crc = crc32c(crc, bytes.substr(0, kPiece));
  }
  return crc;
}

Result<std::string> read_whole(File& file) {
  auto size = file.size();
  if (!size.ok()) return size.error();
  if (*size > kBodySizeMax) return std::string();
  std::string bytes(static_cast<std::size_t>(*size), '\0');
  auto got = file.read_at(0, bytes.data(), bytes.size());
  // What cannot be read is as good as damaged: the other one serves.
  if (!got.ok()) return std::string();
  bytes.resize(*got);
  return bytes;
}

}  // namespace

std::string encode(const Checkpoint& checkpoint) {
  const std::string body = to_bytes(checkpoint);
  std::string out;
  out.reserve(kHeaderSize + body.size());
  out += kMagic;
  put_le(out, kFormatVersion);
  put_le(out, static_cast<std::uint32_t>(kHeaderSize));
  put_le(out, static_cast<std::uint64_t>(body.size()));
  put_le(out, checkpoint.number);
  put_le(out, long_crc(body));
  put_le(out, crc32c(0, out));
  out += body;
  return out;
}

CheckpointResult decode_checkpoint(std::string_view bytes) {
  CheckpointResult result{CheckpointFault::kDamaged, std::nullopt};
  if (bytes.size() < kHeaderSize || bytes.substr(0, kMagic.size()) != kMagic) return result;
  const char* in = bytes.data();
  const bool check = !planted(Fault::kNoCheckpointCrc);
  if (check && get_le<std::uint32_t>(in + kHeaderCrcOffset) !=
                   crc32c(0, bytes.substr(0, kHeaderCrcOffset))) {
    return result;
  }
  if (get_le<std::uint32_t>(in + 8) > kFormatVersion) {
    result.fault = CheckpointFault::kNewerVersion;
    return result;
  }
  const auto size = get_le<std::uint64_t>(in + 16);
  const auto body = bytes.substr(kHeaderSize);
  if (body.size() < size) return result;
  if (check && get_le<std::uint32_t>(in + 32) != long_crc(body.substr(0, size))) return result;
  auto checkpoint = from_bytes<Checkpoint>(body.substr(0, size));
  if (!checkpoint.ok() || checkpoint->spool.bytes.size() != 16) return result;
  result.fault = CheckpointFault::kNone;
  result.checkpoint = std::move(*checkpoint);
  return result;
}

bool CheckpointStore::is_checkpoint_name(std::string_view name) {
  return name == kNames[0] || name == kNames[1];
}

Status CheckpointStore::load() {
  for (std::size_t i = 0; i < kNames.size(); ++i) {
    auto file = directory_.open(kNames[i], OpenMode::kRead);
    if (!file.ok() && file.error().code == ErrorCode::kNotFound) continue;
    if (!file.ok()) return file.error();
    auto bytes = read_whole(**file);
    if (!bytes.ok()) return bytes.error();
    bytes_max_ = std::max<std::uint64_t>(bytes_max_, bytes->size());
    auto decoded = decode_checkpoint(*bytes);
    if (decoded.fault == CheckpointFault::kNewerVersion) {
      return Error{ErrorCode::kUnsupported,
                   "the checkpoint's format is newer than this program's; run a newer dray",
                   directory_.path() + "/" + kNames[i], 0};
    }
    if (decoded.fault == CheckpointFault::kDamaged) {
      damaged_.emplace_back(kNames[i]);
      continue;
    }
    good_[i] = true;
    found_[i] = std::move(decoded.checkpoint);
  }
  // The next one replaces what is missing, damaged or older.
  if (good_[0] && good_[1]) {
    next_ = found_[0]->number < found_[1]->number ? 0 : 1;
  } else {
    next_ = good_[0] ? 1 : 0;
  }
  return {};
}

std::optional<Checkpoint> CheckpointStore::take_best() {
  const std::size_t newer = 1 - next_;
  auto best = std::move(good_[newer] ? found_[newer] : found_[next_]);
  found_ = {};
  return best;
}

Status CheckpointStore::write(const std::string& bytes) {
  auto file = directory_.open(kTemporary, OpenMode::kCreateNew);
  if (!file.ok() && file.error().code == ErrorCode::kConflict) {
    DRAY_TRY(directory_.remove(kTemporary));  // left by a crash
    file = directory_.open(kTemporary, OpenMode::kCreateNew);
  }
  if (!file.ok()) return file.error();
  // In slices: a commit that meets the sync of a large checkpoint would wait for all of it.
  Status written;
  for (std::size_t at = 0; written.ok() && at < bytes.size(); at += kSlice) {
    written = (*file)->write_at(at, std::string_view(bytes).substr(at, kSlice));
    if (written.ok() && !planted(Fault::kNoCheckpointSync)) written = (*file)->sync_data();
  }
  if (!written.ok()) {
    file = Error{};
    (void)directory_.remove(kTemporary);
    return written.error();
  }
  DRAY_TRY(directory_.rename(kTemporary, kNames[next_]));
  if (!planted(Fault::kNoCheckpointNameSync)) DRAY_TRY(directory_.sync());
  next_ = 1 - next_;
  return {};
}

}  // namespace dray::spool
