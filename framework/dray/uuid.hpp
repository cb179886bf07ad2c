// Uuid: 16 bytes that name a message, a spool or a session.
//
// Threading: values. uuid_v7() and random_bytes() may be called from any thread.
// Failure: the kernel's random source cannot fail after boot; if it does, the process aborts.
#pragma once

#include <array>
#include <compare>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "dray/clock.hpp"
#include "dray/export.hpp"

namespace dray {

struct DRAY_API Uuid {
  std::array<std::uint8_t, 16> bytes{};

  auto operator<=>(const Uuid&) const = default;
  bool is_nil() const { return *this == Uuid{}; }

  // 8-4-4-4-12 lower-case hexadecimal digits (RFC 9562, section 4).
  std::string text() const;
  static std::optional<Uuid> from_text(std::string_view text);

  // The 16 bytes as a view; valid as long as this object.
  std::string_view view() const;
  static std::optional<Uuid> from_bytes(std::string_view bytes);
};

// Time-ordered UUID, version 7 (RFC 9562, section 5.7): 48 bits of Unix milliseconds and 74 bits
// that are random for the first id of a thread in a millisecond and count up from there (section
// 6.2, method 2): ids of one thread ascend while the clock does not go back.
DRAY_API Uuid uuid_v7(UtcTime now);

// Random UUID, version 4.
DRAY_API Uuid uuid_v4();

// Fills `out` from the kernel.
DRAY_API void random_bytes(std::span<std::uint8_t> out);
DRAY_API std::uint64_t random_u64();

struct DRAY_API UuidHash {
  std::size_t operator()(const Uuid& uuid) const noexcept;
};

}  // namespace dray
