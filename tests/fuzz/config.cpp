// Fuzz target: config files. Whatever is wrong gets a fault with its place.
#include <cstdlib>

#include "dray/config/config.hpp"
#include "dray/text.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string text(reinterpret_cast<const char*>(data), size);
  const auto loaded = dray::config::parse_config(text, "fuzz.toml");
  for (const auto& fault : loaded.faults) {
    if (fault.text().rfind("fuzz.toml:", 0) != 0) std::abort();
  }
  (void)dray::parse_duration(text);
  (void)dray::parse_utc(text);
  return 0;
}
