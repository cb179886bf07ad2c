/* A handler in plain C, without Dray's library: what the ABI promises is enough.
 *
 * Takes any body. The first attempt always fails; the second publishes a follow-up and is done.
 */
#include <dray/plugin_abi.h>
#include <stdlib.h>
#include <string.h>

struct plain {
  dray_host host;
  unsigned handled;
};

static dray_bytes bytes(const char* text) {
  dray_bytes out = {text, strlen(text)};
  return out;
}

static void* create(const dray_host* host, dray_bytes settings, const dray_error_sink* error) {
  /* An empty MessagePack map: no settings. */
  if (settings.size != 1 || (unsigned char)settings.data[0] != 0x80u) {
    error->fail(error->context, bytes("plain takes no settings"));
    return NULL;
  }
  struct plain* self = calloc(1, sizeof(*self));
  if (self == NULL) {
    error->fail(error->context, bytes("no memory"));
    return NULL;
  }
  self->host = *host;
  return self;
}

static void handle(void* context, const dray_delivery* delivery, const dray_outcome_sink* sink) {
  struct plain* self = context;
  ++self->handled;
  if (delivery->stop.requested(delivery->stop.context)) {
    sink->settle(sink->context, DRAY_RETRY, bytes("stopped"), -1);
    return;
  }
  if (delivery->attempt == 1) {
    sink->settle(sink->context, DRAY_RETRY, bytes("the first attempt always fails"), 10);
    return;
  }
  dray_draft draft;
  memset(&draft, 0, sizeof(draft));
  draft.size = sizeof(draft);
  draft.priority = 1;
  draft.topic = bytes("plain.copy");
  draft.body = bytes(
      "\x81\xa4text\xa4"
      "copy");
  sink->follow_up(sink->context, &draft);
  self->host.log(self->host.context, 1, bytes("plain handled a message"));
  sink->settle(sink->context, DRAY_DONE, bytes(""), 0);
}

static void destroy(void* self) {
  free(self);
}

DRAY_PLUGIN_EXPORT const dray_plugin* dray_plugin_entry_v1(void);
const dray_plugin* dray_plugin_entry_v1(void) {
  static dray_policy policy;
  static dray_handler handler;
  static dray_plugin plugin;
  policy.size = sizeof(policy);
  policy.max_attempts = 3;
  policy.threads = 2;
  handler.name = bytes("plain");
  handler.policy = &policy;
  handler.create = create;
  handler.handle = handle;
  handler.destroy = destroy;
  plugin.size = sizeof(plugin);
  plugin.abi_major = DRAY_PLUGIN_ABI_MAJOR;
  plugin.abi_minor = DRAY_PLUGIN_ABI_MINOR;
  plugin.handlers = &handler;
  plugin.handler_count = 1;
  return &plugin;
}
