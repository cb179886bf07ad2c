#include "dray/uuid.hpp"

#include <sys/random.h>
#include <bit>

#include <cstring>

#include "dray/result.hpp"

namespace dray {
namespace {

// Random bytes are drawn from the kernel 512 at a time: a system call per message would cost more
// than the rest of publish.
struct RandomPool {
  std::array<std::uint8_t, 512> bytes{};
  std::size_t used = sizeof(bytes);
};

void fill_from_kernel(std::uint8_t* out, std::size_t size) {
  while (size > 0) {
    const auto got = getrandom(out, size, 0);
    if (got < 0 && errno == EINTR) continue;
    DRAY_ASSERT(got > 0);
    out += got;
    size -= static_cast<std::size_t>(got);
  }
}

// The bits of an id that its version and variant leave.
constexpr std::uint64_t kVersionPayload = 0x0FFF;
constexpr std::uint64_t kVariantPayload = (std::uint64_t{1} << 62) - 1;

void put_be(std::uint8_t* out, std::uint64_t value) {
  if constexpr (std::endian::native == std::endian::little) value = __builtin_bswap64(value);
  std::memcpy(out, &value, sizeof(value));
}

constexpr char kHex[] = "0123456789abcdef";

int hex_value(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

}  // namespace

void random_bytes(std::span<std::uint8_t> out) {
  thread_local RandomPool pool;
  if (out.size() > pool.bytes.size() / 2) return fill_from_kernel(out.data(), out.size());
  if (pool.used + out.size() > pool.bytes.size()) {
    fill_from_kernel(pool.bytes.data(), pool.bytes.size());
    pool.used = 0;
  }
  std::memcpy(out.data(), pool.bytes.data() + pool.used, out.size());
  pool.used += out.size();
}

std::uint64_t random_u64() {
  std::array<std::uint8_t, 8> bytes{};
  random_bytes(bytes);
  std::uint64_t value = 0;
  std::memcpy(&value, bytes.data(), sizeof(value));
  return value;
}

Uuid uuid_v7(UtcTime now) {
  // Fresh random bits for every millisecond and thread; within it they count up.
  struct Counter {
    std::uint64_t ms = ~std::uint64_t{0};
    std::uint64_t high = 0;
    std::uint64_t low = 0;
  };
  thread_local Counter counter;
  const auto ms = static_cast<std::uint64_t>(now.time_since_epoch().count());
  if (ms != counter.ms) {
    counter = {ms, random_u64() & kVersionPayload, random_u64() & kVariantPayload};
  } else if ((counter.low = (counter.low + 1) & kVariantPayload) == 0) {
    counter.high = (counter.high + 1) & kVersionPayload;
  }
  Uuid uuid;
  put_be(uuid.bytes.data(), ms << 16 | 0x7000 | counter.high);
  put_be(uuid.bytes.data() + 8, std::uint64_t{1} << 63 | counter.low);
  return uuid;
}

Uuid uuid_v4() {
  Uuid uuid;
  random_bytes(uuid.bytes);
  uuid.bytes[6] = static_cast<std::uint8_t>((uuid.bytes[6] & 0x0F) | 0x40);
  uuid.bytes[8] = static_cast<std::uint8_t>((uuid.bytes[8] & 0x3F) | 0x80);
  return uuid;
}

std::string Uuid::text() const {
  std::string out;
  out.reserve(36);
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    if (i == 4 || i == 6 || i == 8 || i == 10) out += '-';
    out += kHex[bytes[i] >> 4];
    out += kHex[bytes[i] & 15];
  }
  return out;
}

std::optional<Uuid> Uuid::from_text(std::string_view text) {
  if (text.size() != 36) return std::nullopt;
  Uuid uuid;
  std::size_t byte = 0;
  for (std::size_t i = 0; i < text.size();) {
    if (i == 8 || i == 13 || i == 18 || i == 23) {
      if (text[i++] != '-') return std::nullopt;
      continue;
    }
    const int high = hex_value(text[i]);
    const int low = hex_value(text[i + 1]);
    if (high < 0 || low < 0) return std::nullopt;
    uuid.bytes[byte++] = static_cast<std::uint8_t>(high * 16 + low);
    i += 2;
  }
  return uuid;
}

std::string_view Uuid::view() const {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

std::optional<Uuid> Uuid::from_bytes(std::string_view bytes) {
  if (bytes.size() != 16) return std::nullopt;
  Uuid uuid;
  std::memcpy(uuid.bytes.data(), bytes.data(), 16);
  return uuid;
}

std::size_t UuidHash::operator()(const Uuid& uuid) const noexcept {
  std::uint64_t tail = 0;  // the random end of either version
  std::memcpy(&tail, uuid.bytes.data() + 8, sizeof(tail));
  return static_cast<std::size_t>(tail);
}

}  // namespace dray
