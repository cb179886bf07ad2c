// `dray new`: a project of its own for a handler or a source, built against the installed package.
//
// Threading: main thread. Failure: nothing is written over; what cannot be is said, exit 1 or 2.
#pragma once

#include <string>

namespace dray::app {

enum class NewKind { kHandler, kSource };
// `name`: letters, digits, '-' and '_', beginning with a letter. Made in the folder
// `folder`/`name`.
int new_command(NewKind kind, const std::string& name, const std::string& folder);

}  // namespace dray::app
