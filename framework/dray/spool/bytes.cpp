#include "dray/spool/bytes.hpp"

#include <isa-l/crc.h>

namespace dray::spool {

std::uint32_t crc32c(std::uint32_t seed, std::string_view bytes) {
  // ISA-L takes a mutable pointer and an int; it writes nothing, and a record is below 2 GiB.
  auto* data = const_cast<unsigned char*>(reinterpret_cast<const unsigned char*>(bytes.data()));
  return ~crc32_iscsi(data, static_cast<int>(bytes.size()), ~seed);
}

}  // namespace dray::spool
