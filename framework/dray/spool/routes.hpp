// Routes: which groups of a spool take a topic. Asked for every message: most spools have a few
// topics, which are compared faster than hashed.
//
// Threading: immutable once it is filled. Failure: none.
#pragma once

#include <algorithm>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "dray/spool/record_payload.hpp"

namespace dray::spool {

class Routes {
 public:
  // Those groups take it too.
  void add(std::string_view topic, GroupMask groups) {
    auto* known = const_cast<GroupMask*>(find(topic));  // NOLINT: of this object
    if (known != nullptr) {
      *known |= groups;
    } else if (few_.size() < kFewMax) {
      few_.emplace_back(topic, groups);
    } else {
      others_.emplace(topic, groups);
    }
  }
  // Nothing for a topic that was never added.
  const GroupMask* find(std::string_view topic) const {
    for (const auto& [name, groups] : few_) {
      if (name == topic) return &groups;
    }
    const auto found = others_.empty() ? others_.end() : others_.find(topic);
    return found == others_.end() ? nullptr : &found->second;
  }

 private:
  static constexpr std::size_t kFewMax = 8;
  struct TextHash {
    using is_transparent = void;
    std::size_t operator()(std::string_view text) const {
      return std::hash<std::string_view>()(text);
    }
  };

  std::vector<std::pair<std::string, GroupMask>> few_;
  std::unordered_map<std::string, GroupMask, TextHash, std::equal_to<>> others_;
};

}  // namespace dray::spool
