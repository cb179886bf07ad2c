// PosixDirectory: File and Directory on the real file system.
//
// Threading, failure, ownership: as file.hpp says.
#pragma once

#include "dray/disk/file.hpp"

namespace dray {

// Opens `path`, creating it (and its parents) with mode 0700 if asked to.
Result<std::unique_ptr<Directory>> open_posix_directory(const std::string& path, bool create);

}  // namespace dray
