"""Wrong configs, wrong plugins, wrong handlers: what an operator sees."""
import json
import os
import re
import signal
import subprocess
import time
import unittest

from support import BIN, Shop, wait_until

BAD = os.environ["DRAY_BAD_PLUGINS"]

CONFIG = """
[spool.s]
directory = "${DRAY_DATA}/s"
bind = "ipc://${DRAY_DATA}/s.sock"
  [spool.s.group.g]
  topics = ["t"]
[app.owner]
plugin = "invoice"
source = "invoice-desk"
publish = "s"
settings = { folder = "${DRAY_DATA}/i", listen = "ipc://${DRAY_DATA}/i.sock" }
[app.worker]
plugin = "%s"
handler = "%s"
consume = { group = "g", from = ["s"] }
retry = { max_attempts = 2, initial = "10ms", max = "20ms" }
"""


class Configs(unittest.TestCase):
    def shop(self, plugin, handler="fails", text=None):
        shop = Shop()
        self.addCleanup(shop.stop)
        shop.config = os.path.join(shop.folder, "c.toml")
        with open(shop.config, "w", encoding="utf-8") as file:
            file.write(text or CONFIG % (plugin, handler))
        return shop

    def test_all_faults_of_a_config_at_once_and_exit_2(self):
        shop = self.shop("x", text="[app.a]\nplugn = 'x'\ntimeout = 3\n[spool.b]\n")
        for command in ["check", "run"]:
            said = shop.dray(command, shop.config, code=2)
            self.assertIn("c.toml:2:1: unknown key 'plugn' in app.a; did you mean 'plugin'?", said)
            self.assertIn("'timeout' has no unit", said)
            self.assertIn("spool.b needs 'directory'", said)

    def test_names_that_no_project_can_have(self):
        shop = Shop()
        self.addCleanup(shop.stop)
        for name in ("edit-cache", "Task", "dray", "9lives", "a b", "../up", "x" * 65):
            said = shop.dray("new", "handler", name, "--dir", shop.folder, code=2)
            self.assertIn("cannot be the name of a project", said)
        self.assertEqual(os.listdir(shop.folder), [])

    def test_two_spools_in_one_place_and_too_many_groups_are_faults(self):
        shop = Shop()
        self.addCleanup(shop.stop)
        shop.config = os.path.join(shop.folder, "c.toml")
        groups = "".join(f'[spool.a.group.g{i}]\ntopics = ["t"]\n' for i in range(65))
        with open(shop.config, "w", encoding="utf-8") as file:
            file.write('[spool.a]\ndirectory = "./same"\nbind = "ipc://s.sock"\n' + groups +
                       '[spool.b]\ndirectory = "./same/../same"\nbind = "ipc://s.sock"\n'
                       '[app.a]\nplugin = "x"\nsource = "x"\npublish = "a"\n'
                       '[app.b]\nplugin = "x"\nsource = "x"\npublish = "b"\n')
        said = shop.dray("check", shop.config, code=2)
        self.assertIn("spool.b has the same 'directory' as spool.a", said)
        self.assertIn("spool.b has the same 'bind' as spool.a", said)
        self.assertIn("65 groups; the limit is 64", said)

    def test_a_folder_that_is_no_spool_is_not_served_nor_repaired_and_stays_as_it_was(self):
        shop = Shop()
        self.addCleanup(shop.stop)
        folder = os.path.join(shop.folder, "plain")
        os.mkdir(folder)
        with open(os.path.join(folder, "notes.txt"), "w", encoding="utf-8"):
            pass
        for command in (["run", "--spool", folder], ["spool", "repair", folder],
                        ["spool", "adopt", folder]):
            with self.subTest(command=command):
                self.assertIn("no spool is here", shop.dray(*command, code=2))
                self.assertEqual(os.listdir(folder), ["notes.txt"])

    def test_wrong_arguments_end_in_words(self):
        shop = Shop()
        self.addCleanup(shop.stop)
        self.assertIn("did you mean 'status'?", shop.dray("statu", code=2))
        self.assertIn("invalid UTF-8", shop.dray("pause", shop.config, b"\xff", code=2))
        shop.start()
        wait_until(lambda: os.path.exists(f"{shop.folder}/orders/admin.sock"), "the spool")
        deep = "[" * 60_000 + "]" * 60_000
        self.assertIn("no JSON", shop.dray("publish", shop.config, "order.placed", deep, code=2))
        shop.dray("dead", "list", shop.config, "email", "--limit", "-1", code=2)
        shop.environment["DRAY_SUPERVISOR"] = str(os.getpid())
        shop.dray("--version")
        with open("/dev/full", "wb") as full:
            status = subprocess.run([os.path.join(BIN, "dray"), "status", "--json", shop.config],
                                    env=shop.environment, stdout=full, timeout=60, check=False)
        self.assertEqual(status.returncode, 1)

    def test_a_second_launcher_takes_no_address_away(self):
        shop = Shop()
        self.addCleanup(shop.stop)
        shop.start()
        shop.wait_open()
        path = f"{shop.folder}/invoices.sock"
        wait_until(lambda: os.path.exists(path), "the invoice desk")
        before = os.stat(path).st_ino
        second = shop.start("invoice")
        wait_until(lambda: second.poll() is not None, "it ends")
        self.assertIn("another process answers there", shop.log())
        self.assertEqual(os.stat(path).st_ino, before)

    def test_wrong_plugins_are_named_and_exit_2(self):
        for plugin, message in [("nothere", "plugin 'nothere' not found; tried"),
                                (f"{BAD}/no_entry.so", "no Dray plugin of ABI major 1"),
                                (f"{BAD}/other_abi.so", "built for plugin ABI 99"),
                                ("/etc/passwd", "plugin cannot be loaded")]:
            with self.subTest(plugin=plugin):
                shop = self.shop(plugin)
                self.assertIn(message, shop.dray("check", shop.config, code=2))
                self.assertIn(message, shop.dray("run", shop.config, code=2))
                self.assertIn(message, shop.dray("run", shop.config, "--app", "worker", code=2))
        shop = self.shop(f"{BAD}/throws.so", "fail")
        self.assertIn("has no handler 'fail'; it has throws, fails",
                      shop.dray("check", shop.config, code=2))

    def test_a_plugin_that_throws_on_load_exits_2(self):
        shop = self.shop(f"{BAD}/throws.so")
        shop.environment["DRAY_TEST_THROW_ON_LOAD"] = "1"
        self.assertIn("threw while loading: on load",
                      shop.dray("run", shop.config, "--app", "worker", code=2))

    def test_a_handler_that_throws_in_its_constructor_is_started_again_and_nobody_else_ends(self):
        shop = self.shop(f"{BAD}/throws.so", "throws")
        launcher = shop.start()
        wait_until(lambda: shop.log().count("'throws' could not be made: no licence found") >= 2,
                   "it is tried again")
        self.assertIsNone(launcher.poll())
        self.assertEqual(shop.log().count("started app=owner"), 1)
        shop.dray("publish", shop.config, "t", '"waits"')
        self.assertEqual(shop.group("g")["pending"], 1)

    def test_a_setting_that_became_wrong_ends_nobody_but_its_app(self):
        shop = self.shop(f"{BAD}/throws.so")
        shop.start()
        wait_until(lambda: shop.log().count("app is running") == 2, "both run")
        started = time.monotonic()
        wait_until(lambda: time.monotonic() - started > 5.5, "it ran well for a while")
        with open(shop.config, encoding="utf-8") as file:
            text = file.read()
        with open(shop.config, "w", encoding="utf-8") as file:
            file.write(text + "settings = { foldr = 'x' }\n")
        worker = re.search(r"started app=worker pid=(\d+)", shop.log()).group(1)
        os.kill(int(worker), signal.SIGKILL)
        wait_until(lambda: "cannot run as configured any more; the others go on" in shop.log(), "it is said")
        self.assertIsNone(shop.launchers[0].poll())
        shop.dray("publish", shop.config, "t", '"waits"')
        self.assertEqual(shop.group("g")["pending"], 1)

    def test_a_misspelt_setting_exits_2(self):
        text = CONFIG.replace("folder =", "foldr = '', folder =") % (f"{BAD}/throws.so", "fails")
        shop = self.shop("", text=text)
        self.assertEqual(shop.start("owner").wait(30), 2)
        self.assertIn("unknown setting 'foldr'", shop.log())

    def test_wrong_use_exits_2(self):
        shop = Shop()
        self.addCleanup(shop.stop)
        for arguments in [[], ["nonsense"], ["run"], ["status"], ["run", "/nowhere.toml"],
                          ["dead", "retry", shop.config, "email"]]:
            with self.subTest(arguments=arguments):
                shop.dray(*arguments, code=2)
        self.assertIn("did you mean 'email'?", shop.dray("run", shop.config, "--app", "emial", code=2))

    def test_exceptions_are_retried_and_a_message_that_kills_its_worker_ends_dead(self):
        shop = self.shop(f"{BAD}/throws.so")
        shop.start()
        wait_until(lambda: os.path.exists(f"{shop.folder}/s/admin.sock"), "the spool")
        for body in ['"throw"', '"reject"', '"die"']:
            shop.dray("publish", shop.config, "t", body)
        group = wait_until(lambda: shop.group("g")["dead"] == 3 and shop.group("g"), "three dead",
                           seconds=60)
        self.assertEqual((group["pending"], group["accepted"]), (0, 3))
        dead = json.loads(shop.dray("dead", "list", shop.config, "g", "--json"))["dead"]
        reasons = {letter["body"]: (letter["cause"], letter["reason"]) for letter in dead}
        self.assertEqual(reasons["throw"], ("attempts", "exception: as asked"))
        self.assertEqual(reasons["reject"], ("rejected", "as asked"))
        self.assertEqual(reasons["die"][0], "lost")


if __name__ == "__main__":
    unittest.main(verbosity=2)
