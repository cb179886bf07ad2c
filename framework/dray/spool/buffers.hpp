// Buffers: room for records that nobody reads any more is used again. A fresh one of this size
// costs the kernel's work for each of its pages, which is more than what is put into it.
//
// Threading: any. Failure: none.
// Ownership: a buffer comes back when its last reader lets go, or is freed if the Buffers are gone
// or keep enough.
#pragma once

#include <memory>
#include <mutex>
#include <vector>

#include "dray/spool/records.hpp"

namespace dray::spool {

class Buffers : public std::enable_shared_from_this<Buffers> {
 public:
  // Empty; its capacity may be that of an earlier use.
  std::shared_ptr<Records> take();

 private:
  void give_back(Records* used);

  std::mutex mutex_;
  // Guarded by mutex_.
  std::vector<std::unique_ptr<Records>> free_;
  std::size_t bytes_ = 0;  // their capacities
};

}  // namespace dray::spool
