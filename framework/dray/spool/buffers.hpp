// Buffers: those that nobody reads any more are used again. A fresh one of this size costs the
// kernel's work for each of its pages, which is more than what is put into it.
//
// Threading: any. Failure: none.
// Ownership: a buffer comes back when its last reader lets go, or is freed if the Buffers are gone
// or keep enough.
#pragma once

#include <memory>
#include <mutex>
#include <string>
#include <vector>

namespace dray::spool {

class Buffers : public std::enable_shared_from_this<Buffers> {
 public:
  // An empty one; its capacity may be that of an earlier use.
  std::shared_ptr<std::string> take();

 private:
  void give_back(std::string* used);

  std::mutex mutex_;
  // Guarded by mutex_.
  std::vector<std::unique_ptr<std::string>> free_;
  std::size_t bytes_ = 0;  // their capacities
};

}  // namespace dray::spool
