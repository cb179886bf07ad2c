#include "dray/disk/posix_directory.hpp"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <fstream>
#include <utility>

namespace dray {
namespace {

class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  ~Descriptor() {
    if (fd_ >= 0) close(fd_);
  }
  Descriptor(Descriptor&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Descriptor& operator=(Descriptor&&) = delete;
  int get() const { return fd_; }

 private:
  int fd_;
};

Error disk_error(std::string_view operation, const std::string& path, int system_error) {
  Error error = io_error(operation, path, system_error);
  if (system_error == ENOSPC || system_error == EDQUOT) error.code = ErrorCode::kFull;
  if (system_error == ENOENT) error.code = ErrorCode::kNotFound;
  if (system_error == EEXIST) error.code = ErrorCode::kConflict;
  return error;
}

class PosixFile final : public File {
 public:
  PosixFile(Descriptor descriptor, std::string path)
      : descriptor_(std::move(descriptor)), path_(std::move(path)) {}

  Status write_at(std::uint64_t offset, std::string_view bytes) override {
    while (!bytes.empty()) {
      const auto wrote =
          pwrite(descriptor_.get(), bytes.data(), bytes.size(), static_cast<off_t>(offset));
      if (wrote < 0 && errno == EINTR) continue;
      if (wrote < 0) return disk_error("write", path_, errno);
      if (wrote == 0) return disk_error("write", path_, EIO);
      bytes.remove_prefix(static_cast<std::size_t>(wrote));
      offset += static_cast<std::uint64_t>(wrote);
    }
    return {};
  }

  // RWF_DSYNC saves the call to fdatasync and waits for these bytes only.
  Status write_durable_at(std::uint64_t offset, std::string_view bytes) override {
    while (!bytes.empty()) {
      const iovec part{const_cast<char*>(bytes.data()), bytes.size()};  // NOLINT: POSIX's iovec
      const auto wrote =
          pwritev2(descriptor_.get(), &part, 1, static_cast<off_t>(offset), RWF_DSYNC);
      if (wrote < 0 && errno == EINTR) continue;
      if (wrote < 0 && errno == EOPNOTSUPP) {
        DRAY_TRY(write_at(offset, bytes));
        return sync_data();
      }
      if (wrote < 0) return disk_error("write", path_, errno);
      if (wrote == 0) return disk_error("write", path_, EIO);
      bytes.remove_prefix(static_cast<std::size_t>(wrote));
      offset += static_cast<std::uint64_t>(wrote);
    }
    return {};
  }

  Result<std::size_t> read_at(std::uint64_t offset, char* out, std::size_t size) const override {
    std::size_t total = 0;
    while (total < size) {
      const auto got =
          pread(descriptor_.get(), out + total, size - total, static_cast<off_t>(offset + total));
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) return disk_error("read", path_, errno);
      if (got == 0) break;
      total += static_cast<std::size_t>(got);
    }
    return total;
  }

  Status sync_data() override {
    // Not repeated, also not on EINTR: after a failed fdatasync the kernel may have dropped the
    // dirty pages, and a second call would succeed without having written them.
    if (fdatasync(descriptor_.get()) != 0) return disk_error("fdatasync", path_, errno);
    return {};
  }

  Result<std::uint64_t> size() const override {
    struct stat info {};
    if (fstat(descriptor_.get(), &info) != 0) return disk_error("fstat", path_, errno);
    return static_cast<std::uint64_t>(info.st_size);
  }

  Status truncate(std::uint64_t size) override {
    if (ftruncate(descriptor_.get(), static_cast<off_t>(size)) != 0) {
      return disk_error("truncate", path_, errno);
    }
    return {};
  }

  Status allocate(std::uint64_t size) override {
    int failed = 0;
    do {
      failed = posix_fallocate(descriptor_.get(), 0, static_cast<off_t>(size));
    } while (failed == EINTR);
    if (failed != 0) return disk_error("allocate", path_, failed);
    return {};
  }

 private:
  Descriptor descriptor_;
  std::string path_;
};

class PosixLock final : public DirectoryLock {
 public:
  explicit PosixLock(Descriptor descriptor) : descriptor_(std::move(descriptor)) {}

 private:
  Descriptor descriptor_;
};

class PosixDirectory final : public Directory {
 public:
  PosixDirectory(Descriptor descriptor, std::string path)
      : descriptor_(std::move(descriptor)), path_(std::move(path)) {}

  const std::string& path() const override { return path_; }

  Result<std::unique_ptr<File>> open(const std::string& name, OpenMode mode) override {
    int flags = O_CLOEXEC;
    if (mode == OpenMode::kRead) flags |= O_RDONLY;
    if (mode == OpenMode::kReadWrite) flags |= O_RDWR;
    if (mode == OpenMode::kCreateNew) flags |= O_RDWR | O_CREAT | O_EXCL;
    Descriptor file(openat(descriptor_.get(), name.c_str(), flags, 0600));
    if (file.get() < 0) return disk_error("open", full(name), errno);
    return std::unique_ptr<File>(std::make_unique<PosixFile>(std::move(file), full(name)));
  }

  Result<std::vector<std::string>> list() override {
    std::vector<std::string> names;
    std::error_code failed;
    for (const auto& entry : std::filesystem::directory_iterator(path_, failed)) {
      std::error_code ignored;
      if (entry.is_regular_file(ignored)) names.push_back(entry.path().filename().string());
    }
    if (failed) return disk_error("list", path_, failed.value());
    std::sort(names.begin(), names.end());
    return names;
  }

  Status rename(const std::string& from, const std::string& to) override {
    if (renameat(descriptor_.get(), from.c_str(), descriptor_.get(), to.c_str()) != 0) {
      return disk_error("rename", full(from), errno);
    }
    return {};
  }

  Status remove(const std::string& name) override {
    if (unlinkat(descriptor_.get(), name.c_str(), 0) != 0) {
      return disk_error("unlink", full(name), errno);
    }
    return {};
  }

  Status sync() override {
    if (fsync(descriptor_.get()) != 0) return disk_error("fsync", path_, errno);
    return {};
  }

  Result<std::unique_ptr<DirectoryLock>> lock(const std::string& name) override {
    Descriptor file(openat(descriptor_.get(), name.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
    if (file.get() < 0) return disk_error("open", full(name), errno);
    if (flock(file.get(), LOCK_EX | LOCK_NB) != 0) {
      if (errno != EWOULDBLOCK) return disk_error("flock", full(name), errno);
      return Error{ErrorCode::kBusy, "in use by another process; stop it first", path_, 0};
    }
    return std::unique_ptr<DirectoryLock>(std::make_unique<PosixLock>(std::move(file)));
  }

  // proc(5): "1: FLOCK ADVISORY WRITE 123 08:01:4711 0 EOF".
  bool is_locked(const std::string& name) override {
    struct stat info {};
    if (fstatat(descriptor_.get(), name.c_str(), &info, 0) != 0) return false;
    const std::string inode = ":" + std::to_string(info.st_ino) + " ";
    std::ifstream locks("/proc/locks");
    for (std::string line; std::getline(locks, line);) {
      if (line.find("FLOCK") != std::string::npos && line.find(inode) != std::string::npos) {
        return true;
      }
    }
    return false;
  }

  std::uint64_t identity() override {
    struct stat info {};
    return fstat(descriptor_.get(), &info) == 0 ? info.st_ino : 0;
  }

  std::string volatile_reason() override {
    struct statfs info {};
    if (fstatfs(descriptor_.get(), &info) != 0) return {};
    if (info.f_type == TMPFS_MAGIC || info.f_type == RAMFS_MAGIC) return "tmpfs";
    if (info.f_type == NFS_SUPER_MAGIC) return "NFS";
    return {};
  }

 private:
  std::string full(const std::string& name) const { return path_ + "/" + name; }

  Descriptor descriptor_;
  std::string path_;
};

// Creates `path` and its missing parents, and syncs the directory above each, so that a spool
// does not vanish with the name of its folder.
Status create_durably(const std::filesystem::path& path) {
  std::error_code failed;
  if (path.empty() || std::filesystem::is_directory(path, failed)) return {};
  DRAY_TRY(create_durably(path.parent_path()));
  if (mkdir(path.c_str(), 0700) != 0 && errno != EEXIST) {
    return disk_error("mkdir", path.string(), errno);
  }
  const auto parent = path.has_parent_path() ? path.parent_path() : std::filesystem::path(".");
  const Descriptor folder(::open(parent.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (folder.get() < 0 || fsync(folder.get()) != 0) {
    return disk_error("fsync", parent.string(), errno);
  }
  return {};
}

}  // namespace

Result<std::unique_ptr<Directory>> open_posix_directory(const std::string& path, bool create) {
  if (create) DRAY_TRY(create_durably(std::filesystem::path(path).lexically_normal()));
  Descriptor folder(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (folder.get() < 0) return disk_error("open", path, errno);
  return std::unique_ptr<Directory>(std::make_unique<PosixDirectory>(std::move(folder), path));
}

}  // namespace dray
