// `dray doctor`: what is wrong, or soon will be, with this machine, a config and its spools, and
// what to do about it. Looks only; the one thing it writes is a file without a name, to see how
// long a sync takes.
//
// Threading: main thread. Failure: what cannot be looked at is a finding.
#pragma once

#include "dray/commands.hpp"

namespace dray::app {

// 1 if anything is wrong; 0 if there are only warnings.
int doctor_command(const SpoolChoice& choice, bool json);

}  // namespace dray::app
