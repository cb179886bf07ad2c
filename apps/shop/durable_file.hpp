// Writes a file so that it is whole under its name or not there at all, also after power loss.
//
// Threading: pure. Failure: throws std::runtime_error with path and errno's words.
#pragma once

#include <string>
#include <string_view>

namespace shop {

// Writes `bytes` to folder/temporary, syncs, renames to folder/name, syncs the folder. The two
// names may contain one sub-folder each ("tmp/x", "new/x"); those must exist.
void write_durably(const std::string& folder, const std::string& temporary, const std::string& name,
                   std::string_view bytes);

}  // namespace shop
