// Writes a file so that it is whole under its name or not there at all, also after power loss.
//
// Threading: pure. Failure: throws with path and errno's words: NotWritten if it is certainly not
// there, another std::runtime_error if it is there and power loss may take it away again.
#pragma once

#include <stdexcept>
#include <string>
#include <string_view>

namespace shop {

class NotWritten : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Writes `bytes` to folder/temporary, syncs, renames to folder/name, syncs the folder. The two
// names may contain one sub-folder each ("tmp/x", "new/x"); those must exist.
void write_durably(const std::string& folder, const std::string& temporary, const std::string& name,
                   std::string_view bytes);

}  // namespace shop
