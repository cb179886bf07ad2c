/* A plugin of another ABI major. */
#include "dray/plugin_abi.h"
DRAY_PLUGIN_EXPORT const dray_plugin* dray_plugin_entry_v1(void);
const dray_plugin* dray_plugin_entry_v1(void) {
  static const dray_plugin plugin = {sizeof(dray_plugin), 99u, 0u, 0, 0, 0, 0};
  return &plugin;
}
