// CURVE keys, and EndpointKeys: those of the plain patterns (push/pull, request/reply). With keys
// an endpoint may lie beyond this machine.
//
// Threading: values. Failure: wrong keys are an EndpointError where they are used.
#pragma once

#include <string>

#include "dray/export.hpp"

namespace dray {

// Z85, 40 characters each.
struct KeyPair {
  std::string public_key, secret_key;
};
// New ones, drawn at random; `dray keygen` writes the same into files.
DRAY_API KeyPair make_key_pair();

struct EndpointKeys {
  std::string public_key, secret_key;  // this side's own, Z85, as `dray keygen` makes them
  // Of the side that connects: the public key of the side that binds.
  std::string server_key = {};
  // Of the side that binds: who may connect, [peer] in this file (as the allow list of a spool).
  // Read again when it changes. Empty: only those who have this very key.
  std::string allow_file = {};
};

}  // namespace dray
