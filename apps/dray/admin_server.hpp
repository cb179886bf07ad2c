// Admin interface of a spool: HTTP/JSON on a Unix socket in the spool's directory, mode 0600.
//
//   GET  /v0/status                      the spool and P2's equation per group
//   GET  /v0/message?id=I                the life of a message, by id or sequence
//   GET  /v0/pending?group=G&after=N&limit=M    what a group has not settled
//   GET  /v0/accepted?from=N&since_ms=T&topic=T&limit=M    what was published, in order
//   GET  /v0/dead?group=G&after=N&limit=M, /v0/dead/signatures?group=G
//   POST /v0/dead/retry, /v0/dead/drop   {"group": G, "sequences": [...]} or {"group": G, "all":
//   true} POST /v0/dead/edit, /v0/dead/decide, /v0/group/pause, /v0/group/resume, /v0/group/drop,
//        /v0/replay, /v0/clock/confirm   as the commands of these names say
//   POST /v0/publish                     {"topic": T, "body": ..., "key"?, "dedup"?, "priority"?}
//   GET  /metrics                        Prometheus text
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
