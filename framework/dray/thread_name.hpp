// Names of threads, as `top -H`, gdb and perf show them.
//
// Threading: any. Failure: none; a name of more than 15 bytes is cut there, as Linux demands.
#pragma once

#include <pthread.h>

#include <string>
#include <string_view>

namespace dray {

// Names the thread that calls this.
inline void name_thread(std::string_view name) {
  (void)pthread_setname_np(pthread_self(), std::string(name.substr(0, 15)).c_str());
}

}  // namespace dray
