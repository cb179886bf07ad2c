// File and Directory: the only way the spool reaches a disk, so that a simulation can be the disk.
//
// Threading: one thread at a time for all but read_at, which may run beside them on ranges that are
// not being written, and sync_data, which may run beside write_ahead_at.
// Failure: every error is returned and none is repeated. ENOSPC and EDQUOT come as kFull, all
// others as kIo. What a failed write or sync left behind is unknown.
// Ownership: a File keeps one descriptor for its life (Linux reports a write-back error once per
// descriptor). Files do not outlive the Directory they came from.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "dray/result.hpp"

namespace dray {

// Whether what is written will be read back soon: then it had better stay in memory.
enum class Caching { kKeep, kPast };

struct WriteHints {
  Caching caching = Caching::kKeep;
  // So many bytes before the first one are the caller's, and may be overwritten with what lies
  // there in the file. A write past the cache begins with a block: with room for its beginning, and
  // at the same place in a page as in the file, the bytes need not be copied.
  std::size_t room_before = 0;
};

class File {
 public:
  virtual ~File() = default;
  // Writes all of `bytes` at `offset` (bytes from the start), extending the file if need be.
  virtual Status write_at(std::uint64_t offset, std::string_view bytes) = 0;
  // The same, and returns once these bytes (no others) are on stable storage.
  virtual Status write_durable_at(std::uint64_t offset, std::string_view bytes,
                                  const WriteHints& hints) = 0;
  // Writes all of `bytes` past the page cache, so that an error in writing them is returned here
  // and by no sync; a sync_data() that begins after it returned, on any thread, makes them durable.
  // False: not here and now (best after a write_durable_at), and nothing was written.
  virtual Result<bool> write_ahead_at(std::uint64_t offset, std::string_view bytes,
                                      std::size_t room_before);
  // Writes zeros and returns once they are on stable storage, best without a trace in memory.
  virtual Status fill_zeros(std::uint64_t offset, std::uint64_t size);
  // Reads up to `size` bytes; fewer only at the end of the file.
  virtual Result<std::size_t> read_at(std::uint64_t offset, char* out, std::size_t size) const = 0;
  // Returns once data, and the metadata needed to read it, are on stable storage (fdatasync).
  virtual Status sync_data() = 0;
  // Nothing will be written for a long while: gives back what only writing needs.
  virtual void rest() {}
  virtual Result<std::uint64_t> size() const = 0;
  virtual Status truncate(std::uint64_t size) = 0;
  // Reserves blocks for the first `size` bytes and sets the file's size to it; new bytes are zero.
  virtual Status allocate(std::uint64_t size) = 0;
};

// Held until destroyed.
class DirectoryLock {
 public:
  virtual ~DirectoryLock() = default;
};

enum class OpenMode { kRead, kReadWrite, kCreateNew };

class Directory {
 public:
  virtual ~Directory() = default;
  virtual const std::string& path() const = 0;
  // kNotFound, or kConflict for kCreateNew of a name that exists.
  virtual Result<std::unique_ptr<File>> open(const std::string& name, OpenMode mode) = 0;
  // Names of the files, sorted.
  virtual Result<std::vector<std::string>> list() = 0;
  virtual Status rename(const std::string& from, const std::string& to) = 0;
  virtual Status remove(const std::string& name) = 0;
  // Makes created, renamed and removed names durable (fsync of the directory).
  virtual Status sync() = 0;
  // What tells this directory from a copy of it: the inode. 0 if there is none.
  virtual std::uint64_t identity() = 0;
  // kBusy if another process holds it.
  virtual Result<std::unique_ptr<DirectoryLock>> lock(const std::string& name) = 0;
  // Whether some process holds it, as far as can be told without trying to take it.
  virtual bool is_locked(const std::string& name) = 0;
  // Nothing if what is synced here survives power loss; else the reason in words ("tmpfs").
  virtual std::string volatile_reason() = 0;
};

}  // namespace dray
