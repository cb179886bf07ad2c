// Little-endian integers, field by field (never by copying structs), and CRC-32C.
//
// CRC-32C: the Castagnoli polynomial of RFC 3720, appendix B.4, computed by ISA-L.
// Threading: pure functions.
#pragma once

#include <array>
#include <bit>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>

namespace dray::spool {

template <typename T>
void put_le_at(char* out, T value) {
  if constexpr (std::endian::native == std::endian::little) {
    std::memcpy(out, &value, sizeof(T));
  } else {
    for (std::size_t i = 0; i < sizeof(T); ++i) out[i] = static_cast<char>(value >> (8 * i));
  }
}

template <typename T>
void put_le(std::string& out, T value) {
  std::array<char, sizeof(T)> bytes{};
  put_le_at(bytes.data(), value);
  out.append(bytes.data(), bytes.size());
}

template <typename T>
T get_le(const char* in) {
  T value = 0;
  if constexpr (std::endian::native == std::endian::little) {
    std::memcpy(&value, in, sizeof(T));
  } else {
    for (std::size_t i = 0; i < sizeof(T); ++i) {
      value =
          static_cast<T>(value | (static_cast<T>(static_cast<unsigned char>(in[i])) << (8 * i)));
    }
  }
  return value;
}

// crc32c(0, "123456789") == 0xE3069283. Feed a result back as `seed` to continue.
std::uint32_t crc32c(std::uint32_t seed, std::string_view bytes);

}  // namespace dray::spool
