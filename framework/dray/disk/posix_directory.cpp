#include "dray/disk/posix_directory.hpp"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
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
  void swap(Descriptor& other) { std::swap(fd_, other.fd_); }
  int get() const { return fd_; }

 private:
  int fd_;
};

Error disk_error(std::string_view operation, const std::string& path, int system_error) {
  Error error = io_error(operation, path, system_error);
  if (system_error == ENOSPC || system_error == EDQUOT) error.code = ErrorCode::kFull;
  if (system_error == ENOENT) error.code = ErrorCode::kNotFound;
  if (system_error == EEXIST) error.code = ErrorCode::kConflict;
  // Too many open files: nothing is wrong with the disk.
  if (system_error == EMFILE || system_error == ENFILE) error.code = ErrorCode::kBusy;
  return error;
}

// What O_DIRECT asks of memory, offsets and sizes, on any disk.
constexpr std::size_t kDirectAlignment = 4096;
constexpr std::size_t kZerosSize = 64U << 10;
alignas(kDirectAlignment) constexpr std::array<char, kZerosSize> kZeros{};
constexpr std::size_t kZerosPerCall = 16;  // iovecs
// A longer write goes through the page cache: no buffer of such a size is kept for it.
constexpr std::size_t kDirectMax = 2U << 20;

struct FreeDeleter {
  void operator()(char* memory) const { std::free(memory); }  // NOLINT: from aligned_alloc
};

// Writes past the page cache, into blocks that the file has already. The cache would cost a copy
// and, for each page that is new to it, several times that; and it would hold what is delivered
// from memory. The last block is kept, because a write seldom begins at the beginning of one.
//
// Linux keeps the page cache coherent: it writes back what is dirty in the range before, and drops
// it afterwards (generic_file_direct_write, iomap_dio_complete).
class DirectWriter {
 public:
  // False: do it another way; nothing was written.
  bool takes(const Descriptor& file, std::uint64_t offset, std::size_t size) {
    if (unsupported_ || (offset + size) % kDirectAlignment != 0 || size > kDirectMax) return false;
    if (offset + size > file_size_) {
      struct stat info {};
      if (fstat(file.get(), &info) != 0) return false;
      file_size_ = static_cast<std::uint64_t>(info.st_size);
    }
    // A file that grows has no blocks yet.
    if (offset + size > file_size_) return false;
    if (direct_.get() >= 0) return true;
    const std::string self = "/proc/self/fd/" + std::to_string(file.get());
    Descriptor opened(open(self.c_str(), O_WRONLY | O_DIRECT | O_CLOEXEC));
    unsupported_ = opened.get() < 0;
    direct_.swap(opened);
    return !unsupported_;
  }

  // Returns 0 or the system's error. REQUIRES: takes(). EINVAL: the file system cannot.
  int write(const Descriptor& file, std::uint64_t offset, std::string_view bytes,
            std::size_t room_before, int flags) {
    const std::uint64_t begin = offset / kDirectAlignment * kDirectAlignment;
    const auto prefix = static_cast<std::size_t>(offset - begin);
    const std::size_t size = prefix + bytes.size();
    // NOLINTNEXTLINE: only the room before them is written to
    char* memory = const_cast<char*>(bytes.data()) - prefix;
    const bool in_place =
        prefix <= room_before && reinterpret_cast<std::uintptr_t>(memory) % kDirectAlignment == 0;
    if (!in_place) {
      if (!reserve(size)) return ENOMEM;
      memory = buffer_.get();
      std::memcpy(memory + prefix, bytes.data(), bytes.size());
    }
    if (prefix > 0) {
      if (tail_at_ != begin) {
        if (const int failed = read_block(file, begin); failed != 0) return failed;
      }
      std::memcpy(memory, tail_.data(), prefix);
    }
    tail_at_ = kNoTail;
    for (std::size_t done = 0; done < size;) {
      const iovec part{memory + done, size - done};
      const auto wrote = pwritev2(direct_.get(), &part, 1, static_cast<off_t>(begin + done), flags);
      if (wrote < 0 && errno == EINTR) continue;
      if (wrote < 0 && (errno == EINVAL || errno == EOPNOTSUPP)) unsupported_ = true;
      if (wrote < 0) return unsupported_ ? EINVAL : errno;
      const std::size_t blocks = static_cast<std::size_t>(wrote) / kDirectAlignment;
      if (blocks == 0) return EIO;
      done += blocks * kDirectAlignment;
    }
    std::memcpy(tail_.data(), memory + size - kDirectAlignment, kDirectAlignment);
    tail_at_ = begin + size - kDirectAlignment;
    return 0;
  }

  void rest() {
    Descriptor none(-1);
    direct_.swap(none);
    buffer_.reset();
    capacity_ = 0;
    forget();
  }

  // Something else wrote or cut the file.
  void forget() {
    tail_at_ = kNoTail;
    file_size_ = 0;
  }

 private:
  bool reserve(std::size_t size) {
    if (size <= capacity_) return true;
    const std::size_t wanted = (size + kZerosSize - 1) / kZerosSize * kZerosSize;
    std::unique_ptr<char, FreeDeleter> larger(
        static_cast<char*>(std::aligned_alloc(kDirectAlignment, wanted)));
    if (larger == nullptr) return false;
    buffer_ = std::move(larger);
    capacity_ = wanted;
    return true;
  }

  int read_block(const Descriptor& file, std::uint64_t at) {
    for (std::size_t done = 0; done < kDirectAlignment;) {
      const auto got = pread(file.get(), tail_.data() + done, kDirectAlignment - done,
                             static_cast<off_t>(at + done));
      if (got < 0 && errno == EINTR) continue;
      if (got <= 0) return got < 0 ? errno : EIO;
      done += static_cast<std::size_t>(got);
    }
    return 0;
  }

  Descriptor direct_{-1};
  bool unsupported_ = false;
  std::uint64_t file_size_ = 0;  // at least
  std::unique_ptr<char, FreeDeleter> buffer_;
  std::size_t capacity_ = 0;
  static constexpr std::uint64_t kNoTail = UINT64_MAX;
  std::array<char, kDirectAlignment> tail_{};  // the block at tail_at_ as it is in the file
  std::uint64_t tail_at_ = kNoTail;
};

class PosixFile final : public File {
 public:
  PosixFile(Descriptor descriptor, std::string path)
      : descriptor_(std::move(descriptor)), path_(std::move(path)) {}

  Status write_at(std::uint64_t offset, std::string_view bytes) override {
    direct_.forget();
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
  Status write_durable_at(std::uint64_t offset, std::string_view bytes,
                          const WriteHints& hints) override {
    if (hints.caching == Caching::kPast && direct_.takes(descriptor_, offset, bytes.size())) {
      const int failed = direct_.write(descriptor_, offset, bytes, hints.room_before, RWF_DSYNC);
      if (failed == 0) return {};
      // Nothing was written: not here, then.
      if (failed != EINVAL && failed != ENOMEM) return disk_error("write", path_, failed);
    }
    direct_.forget();
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

  Result<bool> write_ahead_at(std::uint64_t offset, std::string_view bytes,
                              std::size_t room_before) override {
    if (!direct_.takes(descriptor_, offset, bytes.size())) return false;
    const int failed = direct_.write(descriptor_, offset, bytes, room_before, 0);
    if (failed == 0) return true;
    if (failed == EINVAL || failed == ENOMEM) return false;
    return disk_error("write", path_, failed);
  }

  // Past the page cache: filling a segment ahead must not cost a copy, nor push out what is read.
  Status fill_zeros(std::uint64_t offset, std::uint64_t size) override {
    direct_.forget();
    const std::string self = "/proc/self/fd/" + std::to_string(descriptor_.get());
    const Descriptor direct(open(self.c_str(), O_WRONLY | O_DIRECT | O_DSYNC | O_CLOEXEC));
    if (direct.get() < 0 || offset % kZerosSize != 0 || size % kZerosSize != 0) {
      return File::fill_zeros(offset, size);
    }
    std::array<iovec, kZerosPerCall> parts{};
    // NOLINTNEXTLINE: POSIX's iovec
    parts.fill({const_cast<char*>(kZeros.data()), kZeros.size()});
    while (size > 0) {
      const auto count = std::min<std::uint64_t>(kZerosPerCall, size / kZerosSize);
      if (count == 0) return File::fill_zeros(offset, size);  // a short write
      const auto wrote = pwritev2(direct.get(), parts.data(), static_cast<int>(count),
                                  static_cast<off_t>(offset), 0);
      if (wrote < 0 && errno == EINTR) continue;
      if (wrote < 0 && (errno == EINVAL || errno == EOPNOTSUPP)) {
        return File::fill_zeros(offset, size);  // a file system without it
      }
      if (wrote < 0) return disk_error("write", path_, errno);
      if (wrote == 0) return disk_error("write", path_, EIO);
      offset += static_cast<std::uint64_t>(wrote);
      size -= static_cast<std::uint64_t>(wrote);
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

  void rest() override { direct_.rest(); }

  Result<std::uint64_t> size() const override {
    struct stat info {};
    if (fstat(descriptor_.get(), &info) != 0) return disk_error("fstat", path_, errno);
    return static_cast<std::uint64_t>(info.st_size);
  }

  Status truncate(std::uint64_t size) override {
    direct_.forget();
    if (ftruncate(descriptor_.get(), static_cast<off_t>(size)) != 0) {
      return disk_error("truncate", path_, errno);
    }
    return {};
  }

  Status allocate(std::uint64_t size) override {
    direct_.forget();
    int failed = 0;
    do {
      failed = posix_fallocate(descriptor_.get(), 0, static_cast<off_t>(size));
    } while (failed == EINTR);
    if (failed != 0) return disk_error("allocate", path_, failed);
    return {};
  }

 private:
  Descriptor descriptor_;
  DirectWriter direct_;
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

Result<bool> File::write_ahead_at(std::uint64_t, std::string_view, std::size_t) {
  return false;
}

Status File::fill_zeros(std::uint64_t offset, std::uint64_t size) {
  constexpr std::uint64_t kPieceMax = 1U << 20;
  const std::string zeros(static_cast<std::size_t>(std::min(size, kPieceMax)), '\0');
  while (size > 0) {
    const auto piece = std::min<std::uint64_t>(size, zeros.size());
    DRAY_TRY(write_durable_at(offset, std::string_view(zeros).substr(0, piece), {Caching::kKeep}));
    offset += piece;
    size -= piece;
  }
  return {};
}

}  // namespace dray
