#include "shop/durable_file.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <stdexcept>
#include <system_error>

namespace shop {
namespace {

std::string error_text(const std::string& path) {
  return path + ": " + std::generic_category().message(errno);
}

class Opened {
 public:
  Opened(const std::string& path, int flags) : fd_(open(path.c_str(), flags | O_CLOEXEC, 0600)) {
    if (fd_ < 0) throw NotWritten(error_text(path));
  }
  ~Opened() { close(fd_); }
  Opened(const Opened&) = delete;
  Opened& operator=(const Opened&) = delete;
  int get() const { return fd_; }

 private:
  int fd_;
};

}  // namespace

void write_durably(const std::string& folder, const std::string& temporary, const std::string& name,
                   std::string_view bytes) {
  const std::string from = folder + "/" + temporary;
  const std::string to = folder + "/" + name;
  try {
    const Opened file(from, O_WRONLY | O_CREAT | O_TRUNC);
    while (!bytes.empty()) {
      const auto wrote = write(file.get(), bytes.data(), bytes.size());
      if (wrote < 0 && errno == EINTR) continue;
      if (wrote < 0) throw NotWritten(error_text(from));
      bytes.remove_prefix(static_cast<std::size_t>(wrote));
    }
    if (fsync(file.get()) != 0) throw NotWritten(error_text(from));
    if (rename(from.c_str(), to.c_str()) != 0) throw NotWritten(error_text(to));
  } catch (const NotWritten&) {
    unlink(from.c_str());  // on a full disk its room is needed
    throw;
  }
  const auto parent = std::filesystem::path(to).parent_path().string();
  const int directory = open(parent.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  const bool synced = directory >= 0 && fsync(directory) == 0;
  const std::string fault = synced ? "" : error_text(parent);
  if (directory >= 0) close(directory);
  if (!synced) throw std::runtime_error(fault);
}

}  // namespace shop
