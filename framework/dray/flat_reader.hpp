// FlatReader: MessagePack read value after value, where the format says what comes next. For what
// is read once per message: msgpack-cxx allocates a stack for each parse, which costs more than the
// reading. Everything else is read by way of Document.
//
// Format: https://github.com/msgpack/msgpack/blob/master/spec.md; naturals in every encoding that
// has them. Each returns false, and takes nothing, if the next value is of another kind or its
// bytes are not all there.
// Threading: one object, one thread. Ownership: views point into the bytes.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <string_view>

namespace dray {

class FlatReader {
 public:
  explicit FlatReader(std::string_view bytes) : bytes_(bytes) {}

  bool at_end() const { return bytes_.empty(); }
  bool nil() { return tag() == 0xC0 && take(1); }
  // The number of values that follow.
  bool array(std::uint64_t& size) {
    const unsigned first = tag();
    if ((first & 0xF0U) == 0x90U) {
      size = first & 0x0FU;
      return take(1);
    }
    if (first != 0xDC && first != 0xDD) return false;
    return number(1, first == 0xDC ? 2 : 4, size) && take(first == 0xDC ? 3 : 5);
  }
  bool natural(std::uint64_t& value) {
    const unsigned first = tag();
    if (first < 0x80) {
      value = first;
      return take(1);
    }
    const bool is_signed = first >= 0xD0 && first <= 0xD3;
    if (!is_signed && (first < 0xCC || first > 0xCF)) return false;
    const std::size_t size = std::size_t{1} << (first & 3U);
    std::uint64_t found = 0;
    if (!number(1, size, found)) return false;
    if (is_signed && (found >> (8 * size - 1)) != 0) return false;  // negative
    value = found;
    return take(1 + size);
  }
  bool text(std::string_view& out) {
    const unsigned first = tag();
    if ((first & 0xE0U) == 0xA0U) return span(1, first & 0x1FU, out);
    return first >= 0xD9 && first <= 0xDB && sized(std::size_t{1} << (first - 0xD9), out);
  }
  bool binary(std::string_view& out) {
    const unsigned first = tag();
    return first >= 0xC4 && first <= 0xC6 && sized(std::size_t{1} << (first - 0xC4), out);
  }

 private:
  static constexpr unsigned kNever = 0xC1;  // MessagePack does not use it

  unsigned tag() const {
    return bytes_.empty() ? kNever : static_cast<unsigned char>(bytes_.front());
  }
  bool take(std::size_t size) {
    bytes_.remove_prefix(size);
    return true;
  }
  // Big-endian.
  bool number(std::size_t at, std::size_t size, std::uint64_t& out) const {
    if (bytes_.size() < at + size) return false;
    const char* in = bytes_.data() + at;
    switch (size) {
      case 1:
        out = static_cast<unsigned char>(*in);
        return true;
      case 2:
        out = big_endian<std::uint16_t>(in);
        return true;
      case 4:
        out = big_endian<std::uint32_t>(in);
        return true;
      default:
        out = big_endian<std::uint64_t>(in);
        return true;
    }
  }
  template <typename T>
  static T big_endian(const char* in) {
    T value = 0;
    std::memcpy(&value, in, sizeof(T));
    if constexpr (std::endian::native != std::endian::little) return value;
    if constexpr (sizeof(T) == 2) return __builtin_bswap16(value);
    if constexpr (sizeof(T) == 4) return __builtin_bswap32(value);
    return static_cast<T>(__builtin_bswap64(value));
  }
  bool sized(std::size_t size_of_size, std::string_view& out) {
    std::uint64_t size = 0;
    return number(1, size_of_size, size) && span(1 + size_of_size, size, out);
  }
  bool span(std::size_t at, std::uint64_t size, std::string_view& out) {
    if (bytes_.size() - at < size) return false;
    out = bytes_.substr(at, static_cast<std::size_t>(size));
    return take(at + static_cast<std::size_t>(size));
  }

  std::string_view bytes_;
};

}  // namespace dray
