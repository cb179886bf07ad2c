// CURVE keys (RFC 26/CURVEZMQ) and who may connect with which (P9).
//
// A key is 32 bytes, written as 40 characters of Z85 (RFC 32). A secret file holds both keys of a
// node and belongs to its owner alone; a public file is what others are given:
//
//   orders.secret  public = "..."      orders.public  public = "..."
//                  secret = "..."
//
// An allow list names the keys that may connect, by role; roles: worker, publisher, peer (of the
// plain patterns).
//
//   [worker]
//   mail-1 = "..."
//   [publisher]
//   till-7 = "..."
//
// Threading: pure but for the files. Failure: errors say which file, where in it, and what to do.
#pragma once

#include <map>
#include <string>

#include "dray/result.hpp"

namespace dray::transport {

constexpr std::size_t kCurveKeyBytes = 32;

struct CurveKeys {
  std::string public_key, secret_key;  // Z85
};

CurveKeys make_curve_keys();
bool is_curve_key(const std::string& text);

// Writes FOLDER/NAME.secret (mode 0600) and FOLDER/NAME.public. kConflict if one is there already.
Status write_curve_keys(const std::string& folder, const std::string& name, const CurveKeys& keys);
// kInvalid if anyone but its owner may read it, or if the two keys do not belong together.
Result<CurveKeys> read_curve_secret(const std::string& path);
// The key of a public file (or of a secret one).
Result<std::string> read_curve_public(const std::string& path);

enum class Role : unsigned { kWorker = 1, kPublisher = 2, kPeer = 4 };
// Who may connect, by key.
struct AllowedKey {
  std::string name;
  unsigned roles = 0;  // bits of Role
};
using AllowedKeys = std::map<std::string, AllowedKey>;
Result<AllowedKeys> read_allow_list(const std::string& path);

}  // namespace dray::transport
