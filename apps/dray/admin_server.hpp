// Admin interface of a spool: HTTP/JSON on a Unix socket in the spool's directory, mode 0600.
// The requests are in patterns/PROTOCOL.md, "Administration".
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
