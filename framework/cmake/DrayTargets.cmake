# Warnings, sanitizers and debug habits that every target of this tree gets.
add_library(dray_build_flags INTERFACE)
target_compile_options(dray_build_flags INTERFACE
  -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wsign-conversion
  $<$<COMPILE_LANGUAGE:CXX>:-Wnon-virtual-dtor>
  $<$<COMPILE_LANGUAGE:CXX>:-Wold-style-cast>
  $<$<COMPILE_LANGUAGE:CXX>:-Woverloaded-virtual>
  # What is exported is not to be replaced from outside: it may be inlined.
  $<$<COMPILE_LANG_AND_ID:CXX,GNU>:-fno-semantic-interposition>
  # g++ 12 cannot check a format it cannot see through std::span and optional: false alarms only.
  $<$<CXX_COMPILER_ID:GNU>:-Wno-maybe-uninitialized>)
if(DRAY_WARNINGS_AS_ERRORS)
  target_compile_options(dray_build_flags INTERFACE -Werror)
endif()
if(CMAKE_UNITY_BUILD)
  # Sources taken together look like headers to this one.
  target_compile_options(dray_build_flags INTERFACE
    $<$<COMPILE_LANG_AND_ID:CXX,GNU>:-Wno-subobject-linkage>)
endif()
if(DRAY_SANITIZE)
  # g++ 12 warns falsely of what std::string does when it is instrumented.
  target_compile_options(dray_build_flags INTERFACE
    $<$<CXX_COMPILER_ID:GNU>:-Wno-array-bounds;-Wno-restrict;-Wno-stringop-overflow;-Wno-stringop-overread>)
  add_compile_options(-fsanitize=${DRAY_SANITIZE} -fno-omit-frame-pointer)
  add_link_options(-fsanitize=${DRAY_SANITIZE})
  # These double what g++ takes, and AddressSanitizer sees most of what they see; the fuzz targets,
  # which clang builds, have them.
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND DRAY_SANITIZE MATCHES "undefined")
    add_compile_options(-fno-sanitize=null,alignment,vptr,object-size)
  endif()
  # g++ 12 warns falsely on std::atomic_thread_fence in headers under TSan.
  if(DRAY_SANITIZE STREQUAL "thread")
    add_compile_options(-Wno-tsan)
  endif()
endif()
