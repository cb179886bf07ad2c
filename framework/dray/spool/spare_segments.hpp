// SpareSegments: files that are ready to become segments, so that a commit never waits for one.
//
//   reserve   allocated whole: the room for settling when the disk is full (P7)
//   checkpoint room   allocated: what a checkpoint takes when the reserve is used up as well
//   ready     recycled segments, and files that upkeep fills with zeros ahead of their use:
//             overwriting written blocks saves the file system's own commit on every sync
//
// Threading: any thread, prepare() on one; nothing waits for a disk but who asks for it.
// Failure: a disk without room yields no spare, never an error; the caller refuses messages then.
// Ownership: the Directory outlives it.
#pragma once

#include <atomic>
#include <deque>
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

  // Keeps `ready_wanted` (at least 1) files ready.
  SpareSegments(Directory& directory, std::uint64_t segment_size, std::size_t ready_wanted = 1)
      : directory_(directory), segment_size_(segment_size), ready_wanted_(ready_wanted) {}

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
  // The same for so many bytes of checkpoints. One thread at a time.
  bool ensure_checkpoint_room(std::uint64_t size);
  // False if there is none to give back.
  bool release_checkpoint_room();

  // Whether a file of so many bytes that was a segment is of use beside `coming` that will be
  // handed over. False: remove it. True: give it a new name and hand it over.
  bool wants_recycled(std::uint64_t size, std::size_t coming = 0) const;
  std::string fresh_name();
  void recycle(Spare spare);

  // Fills the next piece of a file to come: a commit that meets it waits for its end, so it is
  // short unless it is `urgent`. False if nothing is left to fill.
  bool prepare(bool urgent = false);
  // Bytes of `ready` that have blocks. Any thread.
  std::uint64_t filled() const { return filled_.load(std::memory_order_relaxed); }
  // Whether a file is ready whose blocks are all there. Any thread.
  bool has_whole() const { return whole_.load(std::memory_order_relaxed) != 0; }
  // Whether more than the usual one file is to be kept ready, and is not yet. Any thread.
  bool behind() const {
    return ready_wanted_ > 1 && whole_.load(std::memory_order_relaxed) < ready_wanted_;
  }

 private:
  bool make_reserve(std::uint64_t size);
  std::optional<Spare> take_whole();
  std::optional<Spare> allocated(std::uint64_t size);
  // Gives the room of files that are not whole back; false if there are none.
  bool drop_parts();
  bool is_usable(std::uint64_t size) const;
  bool is_whole(const Spare& spare) const { return spare.size >= segment_size_; }
  std::size_t usable() const;  // REQUIRES: mutex_ is held, as for count()
  void count();

  Directory& directory_;
  const std::uint64_t segment_size_;
  const std::size_t ready_wanted_;
  mutable std::mutex mutex_;
  std::optional<Spare> reserve_;
  std::deque<Spare> ready_;  // one at most is being filled: the last
  std::uint64_t names_ = 0;
  std::atomic<std::uint64_t> filled_{0};
  std::atomic<std::size_t> whole_{0};
  std::atomic<bool> has_reserve_{false};
  std::uint64_t checkpoint_room_ = 0;  // bytes
  int skip_ = 0;                       // of prepare()'s thread
};

}  // namespace dray::spool
