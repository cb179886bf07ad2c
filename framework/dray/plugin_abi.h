/* The border between the launcher and a plugin: plain C, byte spans only.
 *
 * No C++ object, exception or allocation crosses it. What a span points to belongs to the side
 * that passes it and is valid only during the call; the other side copies what it keeps.
 * A plugin exports one function, dray_plugin_entry_v1, and is never unloaded.
 * Structs may grow at the end within one major: `size` says how much of them is there.
 *
 * C++ users do not write this: <dray/handler.hpp> and DRAY_PLUGIN do.
 */
#ifndef DRAY_PLUGIN_ABI_H
#define DRAY_PLUGIN_ABI_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define DRAY_PLUGIN_ABI_MAJOR 1u
#define DRAY_PLUGIN_ABI_MINOR 1u
#define DRAY_PLUGIN_ENTRY "dray_plugin_entry_v1"
/* With this begins why something could not be made if its settings are wrong: nothing but another
 * config helps then. Anything else may pass; the app is started again. */
#define DRAY_SETTING_FAULT "setting"

typedef struct dray_bytes {
  const char* data;
  size_t size;
} dray_bytes;

/* Levels: 0 debug, 1 info, 2 warning, 3 error. */
typedef struct dray_host {
  uint32_t size;
  uint32_t abi_major;
  uint32_t abi_minor;
  void* context;
  /* Any thread. */
  void (*log)(void* context, int32_t level, dray_bytes line);
} dray_host;

/* Says why something could not be made; call at most once. */
typedef struct dray_error_sink {
  void* context;
  void (*fail)(void* context, dray_bytes message);
} dray_error_sink;

/* Asks work to end: time-out, drain. */
typedef struct dray_stop {
  void* context;
  /* Non-zero once requested. Any thread. */
  int32_t (*requested)(void* context);
  /* `callback` runs once when the request comes, at once if it came already, on any thread. One
   * subscriber at a time; unsubscribe() before the call that got this struct returns. */
  void (*subscribe)(void* context, void (*callback)(void* user), void* user);
  void (*unsubscribe)(void* context);
} dray_stop;

/* Times are milliseconds since 1970 UTC; 0 means none. Priority: 0 high, 1 normal, 2 low. */
typedef struct dray_draft {
  uint32_t size;
  uint32_t priority;
  dray_bytes topic;
  dray_bytes key;
  dray_bytes body;    /* MessagePack */
  dray_bytes headers; /* MessagePack map of text to text, or empty */
  dray_bytes dedup;
  int64_t deliver_at_ms;
  int64_t expires_at_ms;
  uint32_t durability; /* 0 the spool's own, 1 os, 2 disk */
  uint32_t reserved;   /* 0 */
} dray_draft;

/* What a journal is told of a step, and what it answers: <dray/step_journal.hpp>. */
enum { DRAY_STEP_BEGIN = 0, DRAY_STEP_DONE = 1, DRAY_STEP_NOT_DONE = 2 };
enum {
  DRAY_STEP_RECORDED = 0,
  DRAY_STEP_DONE_BEFORE = 1, /* `value`: what was recorded */
  DRAY_STEP_UNKNOWN = 2,
  DRAY_STEP_REFUSED = 3, /* `value`: why, as text */
  DRAY_STEP_BUSY = 4     /* the same: no room now; snooze */
};

typedef struct dray_step_sink {
  void* context;
  /* Exactly once, before the call that got this sink returns. */
  void (*answer)(void* context, int32_t answer, dray_bytes value);
} dray_step_sink;

typedef struct dray_delivery {
  uint32_t size;
  uint32_t attempt; /* 1 for the first */
  uint64_t sequence;
  dray_bytes envelope; /* FORMATS.md, Envelope */
  dray_bytes group;
  dray_stop stop;
  /* Since 1.1. Blocks until it is durable. `value`: MessagePack, at most 4,096 bytes, of a step
   * that is done. On the thread of handle(), one call at a time. NULL: no journal is kept. */
  void* journal;
  void (*step)(void* journal, int32_t what, dray_bytes name, dray_bytes value,
               const dray_step_sink* sink);
} dray_delivery;

/* How a delivery ends. */
enum { DRAY_DONE = 0, DRAY_RETRY = 1, DRAY_SNOOZE = 2, DRAY_REJECT = 3 };

typedef struct dray_outcome_sink {
  void* context;
  /* Exactly once. delay_ms: for snooze; for retry -1 leaves it to the policy. */
  void (*settle)(void* context, int32_t outcome, dray_bytes reason, int64_t delay_ms);
  /* Before settle(DRAY_DONE), once per follow-up. */
  void (*follow_up)(void* context, const dray_draft* draft);
} dray_outcome_sink;

/* error.data is NULL on success; else `code` is a stable name such as "full" or "unknown". */
typedef struct dray_receipt {
  uint32_t size;
  int32_t durability; /* 0 os, 1 disk */
  int32_t duplicate;
  uint64_t sequence;
  dray_bytes message_id; /* 16 bytes */
  dray_bytes code;
  dray_bytes error;
} dray_receipt;

typedef struct dray_publisher {
  void* context;
  /* Any thread. `done` is called exactly once, on a thread that commits; for
   * what is refused, or known already, on the calling thread, before this returns. */
  void (*publish)(void* context, const dray_draft* draft,
                  void (*done)(void* user, const dray_receipt* receipt), void* user);
} dray_publisher;

/* What the author of a handler thinks best; the app's config overrides each. 0: not said. */
typedef struct dray_policy {
  uint32_t size;
  uint32_t threads;
  uint32_t max_attempts;
  uint32_t has_retry_jitter; /* 1: retry_jitter is said */
  double retry_jitter;       /* 0 to 1 */
  int64_t timeout_ms;        /* -1: none */
  int64_t retry_initial_ms;  /* -1: 0 */
  int64_t retry_max_ms;      /* -1: 0 */
} dray_policy;

/* dray_handler and dray_source lie in arrays and do not grow within a major. */
typedef struct dray_handler {
  dray_bytes name;
  const dray_policy* policy; /* NULL: nothing said */
  /* One object per handler thread, made one after the other. NULL after error->fail (see
   * DRAY_SETTING_FAULT). `settings` is a MessagePack map. */
  void* (*create)(const dray_host* host, dray_bytes settings, const dray_error_sink* error);
  void (*handle)(void* self, const dray_delivery* delivery, const dray_outcome_sink* sink);
  void (*destroy)(void* self);
} dray_handler;

typedef struct dray_source {
  dray_bytes name;
  void* (*create)(const dray_host* host, dray_bytes settings, const dray_error_sink* error);
  /* Returns when stop is requested; an earlier return, or error->fail, ends the app. */
  void (*run)(void* self, const dray_publisher* publisher, dray_stop stop,
              const dray_error_sink* error);
  void (*destroy)(void* self);
} dray_source;

typedef struct dray_plugin {
  uint32_t size;
  uint32_t abi_major;
  uint32_t abi_minor;
  const dray_handler* handlers;
  size_t handler_count;
  const dray_source* sources;
  size_t source_count;
} dray_plugin;

typedef const dray_plugin* (*dray_plugin_entry_function)(void);

#if defined(__GNUC__)
#define DRAY_PLUGIN_EXPORT __attribute__((visibility("default")))
#else
#define DRAY_PLUGIN_EXPORT
#endif

#ifdef __cplusplus
}
#endif
#endif
