"""The plugin ABI for real: plain C, another compiler, the other libstdc++ ABI; and bad plugins."""
import json
import os
import subprocess
import unittest

from support import BIN, Shop, wait_until

SOURCE = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))
LIBRARIES = os.path.join(os.path.dirname(BIN), "framework")

CONFIG = """
plugin_path = ["."]
[spool.s]
directory = "${DRAY_DATA}/s"
bind = "ipc://${DRAY_DATA}/s.sock"
retain = { age = "1h", topics = ["plain.copy"] }
  [spool.s.group.g]
  topics = ["t"]
[app.a]
plugin = "%(plugin)s"
handler = "%(handler)s"
publish = "s"
consume = { group = "g", from = ["s"] }
"""


class Plugins(unittest.TestCase):
    def setUp(self):
        self.shop = Shop()
        self.addCleanup(self.shop.stop)

    def build(self, compiler, *arguments):
        out = os.path.join(self.shop.folder, "libbuilt.so")
        command = [compiler, "-shared", "-fPIC", "-Wall", "-Werror", f"-I{SOURCE}/framework",
                   "-o", out, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        self.assertEqual(done.returncode, 0, done.stderr)
        return out

    def run_it(self, handler, config=CONFIG):
        self.shop.config = os.path.join(self.shop.folder, "c.toml")
        with open(self.shop.config, "w", encoding="utf-8") as file:
            file.write(config % {"plugin": "built", "handler": handler})
        self.assertIn("good", self.shop.dray("check", self.shop.config))
        before = self.shop.log().count("app is running") if self.shop.launchers else 0
        self.shop.start()
        wait_until(lambda: self.shop.log().count("app is running") > before, "the app runs")

    def publish(self, body):
        self.shop.dray("publish", self.shop.config, "t", body)

    def group(self):
        return json.loads(self.shop.dray("status", self.shop.config, "--json"))["spools"][0]["groups"][0]

    def wait_done(self, count):
        wait_until(lambda: self.group()["done"] == count, f"{count} done")

    def test_a_handler_in_plain_c(self):
        self.build("gcc", "-std=c99", "-Wpedantic", f"{SOURCE}/tests/system/plugins/plain.c")
        self.run_it("plain")
        for _ in range(3):
            self.publish('{"text": "x"}')
        self.wait_done(3)
        self.assertEqual(self.shop.log().count("plain handled a message"), 3)

    def greeter(self, compiler, flags, library):
        self.build(compiler, "-std=c++20", "-DDRAY_STATIC", "-fvisibility=hidden", *flags,
                   f"{SOURCE}/apps/examples/first_handler/greeter.cpp",
                   os.path.join(LIBRARIES, library))
        self.run_it("greeter")
        self.publish('{"to": "world"}')
        self.publish('{"to": ""}')
        self.wait_done(1)
        wait_until(lambda: self.group()["dead"] == 1, "the empty greeting is dead")
        self.assertIn("hello world", self.shop.log())

    def test_clang(self):
        self.greeter("clang++", [], "libdray_plugin.a")

    def test_the_old_abi_of_libstdcxx(self):
        self.greeter("g++", ["-D_GLIBCXX_USE_CXX11_ABI=0"], "libdray_plugin_old_abi.a")

    def test_a_plugin_that_anybody_may_write_is_refused(self):
        path = self.build("gcc", "-std=c99", f"{SOURCE}/tests/system/plugins/plain.c")
        os.chmod(path, 0o757)
        self.shop.config = os.path.join(self.shop.folder, "c.toml")
        with open(self.shop.config, "w", encoding="utf-8") as file:
            file.write(CONFIG % {"plugin": "built", "handler": "plain"})
        self.assertIn("anybody may write this plugin", self.shop.dray("check", self.shop.config, code=2))
        self.assertIn("anybody may write this plugin", self.shop.dray("run", self.shop.config, code=2))

    def test_of_two_plugins_with_one_name_the_first_folder_s_is_taken_and_said(self):
        path = self.build("gcc", "-std=c99", f"{SOURCE}/tests/system/plugins/plain.c")
        other = os.path.join(self.shop.folder, "other")
        os.mkdir(other)
        with open(os.path.join(other, "libbuilt.so"), "w", encoding="utf-8") as file:
            file.write("not a plugin")
        self.run_it("plain", CONFIG.replace('["."]', '[".", "other"]'))
        self.assertIn(f"plugin={path}", self.shop.log())
        bad = CONFIG.replace('["."]', '["other", "."]') % {"plugin": "built", "handler": "plain"}
        with open(self.shop.config, "w", encoding="utf-8") as file:
            file.write(bad)
        self.assertIn(f"{other}/libbuilt.so: plugin cannot be loaded",
                      self.shop.dray("check", self.shop.config, code=2))

    def test_the_author_s_policy_holds_until_the_config_says_otherwise(self):
        self.build("gcc", "-std=c99", f"{SOURCE}/tests/system/plugins/plain.c")
        self.run_it("plain")
        self.publish('{"text": "x"}')
        self.wait_done(1)      # the first attempt always fails; the author allows 3
        self.shop.launchers[-1].terminate()
        self.shop.launchers[-1].wait(20)
        # This config allows 1.
        self.run_it("plain", CONFIG + "retry = { max_attempts = 1 }\n")
        self.publish('{"text": "x"}')
        wait_until(lambda: self.group()["dead"] == 1, "dead after one attempt")


if __name__ == "__main__":
    unittest.main()
