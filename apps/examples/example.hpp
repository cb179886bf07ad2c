// What the embedded examples share: a folder for the spool, and giving up in words.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <dray/spooler.hpp>
#include <dray/worker.hpp>
#include <filesystem>
#include <string>

namespace example {

// The value, or the end of the program.
template <typename T>
T must(dray::Result<T> result) {
  if (result.ok()) return std::move(*result);
  std::fprintf(stderr, "%s\n", result.error().text().c_str());
  std::exit(1);
}

// Removed at the end.
class Folder {
 public:
  Folder() {
    char name[] = "/tmp/dray-example-XXXXXX";
    if (mkdtemp(name) == nullptr) std::exit(1);
    path_ = name;
  }
  ~Folder() { std::filesystem::remove_all(path_); }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  std::string spool() const { return path_ + "/spool"; }
  std::string endpoint() const { return "ipc://" + path_ + "/s"; }

 private:
  std::string path_;
};

}  // namespace example
