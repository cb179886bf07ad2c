// SpareSegments: files that are ready to become segments, so that a commit never waits for one.
//
//   reserve   allocated whole: the room for settling when the disk is full (P7)
//   next      a recycled segment, or a file that upkeep fills with zeros ahead of its use:
//             overwriting written blocks saves the file system's own commit on every sync
//
// Threading: any thread, prepare() on one; nothing waits for a disk but who asks for it.
// Failure: a disk without room yields no spare, never an error; the caller refuses messages then.
// Ownership: the Directory outlives it.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "dray/disk/file.hpp"

namespace dray::spool {

class SpareSegments {
 public:
  struct Spare {
    std::shared_ptr<File> file;
    std::string name;
    std::uint64_t size = 0;  // bytes that have blocks
    bool confined = false;   // to its size: the disk may have no room for more
  };

  SpareSegments(Directory& directory, std::uint64_t segment_size)
      : directory_(directory), segment_size_(segment_size) {}

  static bool is_spare_name(std::string_view name);
  // Takes over what an earlier run left, and removes what is not whole.
  void adopt(const std::string& name);

  // A file to use as the next segment; with `whole`, only one whose blocks are all there.
  std::optional<Spare> take(bool whole);
  // A new file without blocks. kFull if the disk has no room even for a name.
  Result<Spare> create();

  // Makes the reserve if it is missing. False while the disk has no room for it.
  bool ensure_reserve();
  // The same, but is content with a smaller one: a start must be able to settle.
  bool ensure_some_reserve();
  bool has_reserve() const;
  // Gives the reserve's room back to the disk, for a checkpoint.
  void release_reserve();

  // Whether a file of so many bytes that was a segment is of use. False: remove it. True: give it
  // a new name and hand it over.
  bool wants_recycled(std::uint64_t size) const;
  std::string fresh_name();
  void recycle(Spare spare);

  // Fills the next 1 MiB of `next`. False if nothing is left to fill.
  bool prepare();
  // Bytes of `next` that have blocks.
  std::uint64_t filled() const { return filled_.load(std::memory_order_relaxed); }

 private:
  bool make_reserve(std::uint64_t size);
  bool is_usable(std::uint64_t size) const;

  Directory& directory_;
  const std::uint64_t segment_size_;
  mutable std::mutex mutex_;
  std::optional<Spare> reserve_;
  std::optional<Spare> next_;
  bool next_whole_ = false;
  std::uint64_t names_ = 0;
  std::atomic<std::uint64_t> filled_{0};
  std::atomic<bool> has_reserve_{false};
};

}  // namespace dray::spool
