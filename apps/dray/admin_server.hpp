// Admin interface of a spool: HTTP/JSON on a Unix socket in the spool's directory, mode 0600.
//
//   GET  /v0/status                      the spool and P2's equation per group
//   GET  /v0/dead?group=G&after=N&limit=M
//   POST /v0/dead/retry, /v0/dead/drop   {"group": G, "sequences": [...]} or {"group": G, "all":
//   true} POST /v0/publish                     {"topic": T, "body": ..., "key"?, "dedup"?} GET
//   /metrics                        Prometheus text
//
// Threading: the server's own thread. Ownership: the Spooler outlives the server.
#pragma once

#include <memory>
#include <string>

#include "dray/spooler.hpp"
#include "http/server.hpp"

namespace dray::app {

inline constexpr const char* kAdminSocketName = "admin.sock";

Result<std::unique_ptr<http::Server>> start_admin_server(Spooler& spooler,
                                                         const std::string& directory, Log log);

}  // namespace dray::app
