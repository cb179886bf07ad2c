// LimitVisitor: a msgpack-cxx visitor that allocates nothing and refuses what is too deep or has
// too many values. Base of the visitors that read without building a tree.
//
// Internal: includes msgpack-cxx. Threading: one object, one thread.
#pragma once

#include <msgpack.hpp>
#include <string>

namespace dray {

inline constexpr int kCodecDepthMax = 16;
inline constexpr std::uint32_t kCodecValuesMax = 1U << 20;

class LimitVisitor : public msgpack::null_visitor {
 public:
  bool start_array(std::uint32_t size) { return enter(size); }
  bool end_array() { return leave(); }
  bool start_map(std::uint32_t size) { return enter(size) && count(size); }
  bool end_map() { return leave(); }
  void parse_error(std::size_t, std::size_t) {}
  void insufficient_bytes(std::size_t, std::size_t) {}

  std::string reason_or(const char* otherwise) const {
    return reason_ != nullptr ? reason_ : otherwise;
  }

 protected:
  int depth() const { return depth_; }

 private:
  bool enter(std::uint32_t size) {
    if (++depth_ > kCodecDepthMax) return refuse("nested deeper than 16 levels");
    return count(size);
  }
  bool leave() {
    --depth_;
    return true;
  }
  bool count(std::uint32_t size) {
    if (size > kCodecValuesMax - values_) return refuse("more than 1048576 values");
    values_ += size;
    return true;
  }
  bool refuse(const char* reason) {
    reason_ = reason;
    return false;
  }

  int depth_ = 0;
  std::uint32_t values_ = 0;
  const char* reason_ = nullptr;
};

}  // namespace dray
