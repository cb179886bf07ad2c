#include "dray/spool/bytes.hpp"

#include <isa-l/crc.h>

#include <cstring>

namespace dray::spool {
namespace {

#ifdef __x86_64__
// ISA-L's wide registers pay from a few cache lines on. For a header the processor's own
// instruction is several times faster.
constexpr std::size_t kShort = 64;

__attribute__((target("sse4.2"))) std::uint32_t crc32c_short(std::uint32_t seed,
                                                             std::string_view bytes) {
  std::uint64_t crc = ~seed;
  const char* in = bytes.data();
  std::size_t left = bytes.size();
  for (; left >= 8; left -= 8, in += 8) {
    std::uint64_t word = 0;
    std::memcpy(&word, in, sizeof(word));
    crc = __builtin_ia32_crc32di(crc, word);
  }
  auto narrow = static_cast<std::uint32_t>(crc);
  for (; left > 0; --left, ++in) {
    narrow = __builtin_ia32_crc32qi(narrow, static_cast<unsigned char>(*in));
  }
  return ~narrow;
}

bool has_instruction() {
  static const bool has = __builtin_cpu_supports("sse4.2") != 0;
  return has;
}

// ISA-L leaves the upper halves of the vector registers in use. Every SSE instruction after that
// would wait for them: seen as 200 ns for each CRC (Intel's Optimization Reference Manual, "Mixing
// SSE and AVX").
__attribute__((target("avx"))) void clear_upper_halves() {
  __builtin_ia32_vzeroupper();
}

bool has_upper_halves() {
  static const bool has = __builtin_cpu_supports("avx") != 0;
  return has;
}
#endif

}  // namespace

std::uint32_t crc32c(std::uint32_t seed, std::string_view bytes) {
#ifdef __x86_64__
  if (bytes.size() <= kShort && has_instruction()) return crc32c_short(seed, bytes);
#endif
  // ISA-L takes a mutable pointer and an int; it writes nothing, and a record is below 2 GiB.
  auto* data = const_cast<unsigned char*>(reinterpret_cast<const unsigned char*>(bytes.data()));
  const std::uint32_t crc = ~crc32_iscsi(data, static_cast<int>(bytes.size()), ~seed);
#ifdef __x86_64__
  if (has_upper_halves()) clear_upper_halves();
#endif
  return crc;
}

}  // namespace dray::spool
