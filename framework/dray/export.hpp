// DRAY_API: what of Dray a program that links the shared library can call.
//
// DRAY_STATIC is defined for what is built into a plugin or a program: nothing of it shows outside.
#pragma once

#if defined(DRAY_STATIC) || !defined(__GNUC__)
#define DRAY_API
#else
#define DRAY_API __attribute__((visibility("default")))
#endif
