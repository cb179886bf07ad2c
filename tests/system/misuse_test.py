"""Handlers that do what they must not: each has one documented end (framework/PLUGIN_ABI.md), and nobody else
is harmed."""
import json
import os
import unittest

import plugin_test
from support import wait_until

CONFIG = """
plugin_path = ["."]
[spool.s]
directory = "${DRAY_DATA}/s"
bind = "ipc://${DRAY_DATA}/s.sock"
  [spool.s.group.g]
  topics = ["t"]
[app.owner]
plugin = "built"
source = "publishes"
publish = "s"
[app.a]
plugin = "built"
handler = "%(handler)s"
consume = { group = "g", from = ["s"] }
threads = 2
timeout = "300ms"
max_memory = "%(memory)s"
retry = { max_attempts = 2, initial = "1ms", max = "1ms" }
"""


class Misuse(unittest.TestCase):
    setUp, build = plugin_test.Plugins.setUp, plugin_test.Plugins.build
    publish, group = plugin_test.Plugins.publish, plugin_test.Plugins.group

    def start(self, memory="2GiB"):
        self.build("g++", "-std=c++20", "-DDRAY_STATIC", "-fvisibility=hidden", "-fno-sanitize=all",
                   f"{plugin_test.SOURCE}/tests/system/plugins/misuse.cpp",
                   os.path.join(plugin_test.LIBRARIES, "libdray_plugin.a"))
        self.shop.config = os.path.join(self.shop.folder, "c.toml")
        with open(self.shop.config, "w", encoding="utf-8") as file:
            file.write(CONFIG % {"handler": "misuse", "memory": memory})
        self.shop.start()
        wait_until(lambda: self.shop.log().count("app is running") == 2, "the apps run")

    def dead(self):
        return json.loads(self.shop.dray("dead", "list", self.shop.config, "g", "--json"))["dead"]

    def dies_of(self, wish):
        before = len(self.dead())
        self.publish(json.dumps({"wish": wish}) if wish is not None else '{"other": 1}')
        wait_until(lambda: len(self.dead()) > before, f"{wish} is a dead letter", 40)
        return self.dead()[-1]["reason"]

    def test_each_has_its_end(self):
        self.start()
        self.assertIn("thrown on purpose", self.dies_of("throw"))
        self.assertIn("no std::exception", self.dies_of("throw an int"))
        self.assertIn("16777216", self.dies_of("huge"))          # the limit is named
        self.assertIn("'nobody.takes.it'", self.dies_of("nowhere"))
        self.assertIn("wish", self.dies_of(None))                # the field that is missing
        log = self.shop.log()
        self.assertIn("huge: ", log)
        self.assertIn("16777216", log[log.index("huge: "):].splitlines()[0])
        self.assertIn("'nobody.takes.it'", log[log.index("nowhere: "):].splitlines()[0])
        self.publish('{"wish": "well"}')
        wait_until(lambda: self.group()["done"] == 1, "the next one is handled")
        log = self.shop.log()
        self.assertEqual(log.count("started app="), 2, log)   # nobody died of it

    def test_abort_kills_its_app_alone_which_comes_back(self):
        self.start()
        self.assertIn("lost", self.dies_of("abort"))
        self.publish('{"wish": "well"}')
        wait_until(lambda: self.group()["done"] == 1, "the next one is handled")
        log = self.shop.log()
        self.assertIn("signal 6", log)
        self.assertEqual(log.count("started app=owner"), 1)
        self.assertGreaterEqual(log.count("started app=a"), 2)

    def test_one_that_blocks_for_ever_is_written_off(self):
        self.start()
        self.publish('{"wish": "block"}')
        for _ in range(20):
            self.publish('{"wish": "well"}')
        wait_until(lambda: self.group()["done"] == 20, "the others are handled meanwhile")
        wait_until(lambda: len(self.dead()) == 1, "the blocked one is a dead letter", 60)
        self.assertIn("timeout: no outcome within 300 ms", self.dead()[0]["reason"])
        self.assertIn("was written off", self.shop.log())
        self.assertEqual(self.shop.log().count("started app=owner"), 1)

    def test_one_that_leaks_is_started_again_before_the_machine_suffers(self):
        self.start("128MiB")
        for _ in range(60):
            self.publish('{"wish": "leak"}')
        wait_until(lambda: self.group()["done"] == 60, "all are handled", 60)
        wait_until(lambda: "more memory than max_memory" in self.shop.log(), "it is noticed")
        wait_until(lambda: self.shop.log().count("started app=a") >= 2, "it is started again")
        self.assertEqual(self.shop.log().count("started app=owner"), 1)
        self.assertEqual(self.group()["dead"], 0)


if __name__ == "__main__":
    unittest.main()
