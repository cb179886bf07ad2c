// FlatWriter: MessagePack written value after value into room that was made before. For what is
// written once per message; everything else is written by way of Encoder. The bytes are the same.
//
// Format: https://github.com/msgpack/msgpack/blob/master/spec.md, each value in its shortest form.
// Threading: one object, one thread. Failure: none. Ownership: the room is the caller's.
// REQUIRES: for each value as much room as kPrefixMax and its bytes.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <string_view>

namespace dray {

class FlatWriter {
 public:
  static constexpr std::size_t kPrefixMax = 9;  // what stands before a value's bytes

  explicit FlatWriter(char* at) : at_(at) {}
  // Behind what was written.
  char* at() const { return at_; }

  void nil() { put(0xC0); }
  // REQUIRES: size < 16.
  void small_array(unsigned size) { put(0x90U | size); }
  void natural(std::uint64_t value) {
    if (value < 0x80) return put(static_cast<unsigned>(value));
    if (value <= UINT8_MAX) return number(0xCC, static_cast<std::uint8_t>(value));
    if (value <= UINT16_MAX) return number(0xCD, static_cast<std::uint16_t>(value));
    if (value <= UINT32_MAX) return number(0xCE, static_cast<std::uint32_t>(value));
    number(0xCF, value);
  }
  void text(std::string_view value) {
    if (value.size() < 32) {
      put(0xA0U | static_cast<unsigned>(value.size()));
    } else {
      size(0xD9, value.size());
    }
    bytes(value);
  }
  void binary(std::string_view value) {
    binary_head(value.size());
    bytes(value);
  }
  // The value's bytes follow by another way.
  void binary_head(std::size_t value_size) { size(0xC4, value_size); }

 private:
  void put(unsigned byte) { *at_++ = static_cast<char>(byte); }
  template <typename T>
  void number(unsigned tag, T value) {
    put(tag);
    if constexpr (sizeof(T) > 1 && std::endian::native == std::endian::little) {
      if constexpr (sizeof(T) == 2) value = __builtin_bswap16(value);
      if constexpr (sizeof(T) == 4) value = __builtin_bswap32(value);
      if constexpr (sizeof(T) == 8) value = __builtin_bswap64(value);
    }
    std::memcpy(at_, &value, sizeof(T));
    at_ += sizeof(T);
  }
  // Of text or binary whose size stands by itself; `tag` is that of one byte.
  void size(unsigned tag, std::size_t value_size) {
    if (value_size <= UINT8_MAX) return number(tag, static_cast<std::uint8_t>(value_size));
    if (value_size <= UINT16_MAX) return number(tag + 1, static_cast<std::uint16_t>(value_size));
    number(tag + 2, static_cast<std::uint32_t>(value_size));
  }
  void bytes(std::string_view value) {
    if (!value.empty()) std::memcpy(at_, value.data(), value.size());
    at_ += value.size();
  }

  char* at_;
};

}  // namespace dray
