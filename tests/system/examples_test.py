#!/usr/bin/env python3
"""Runs every example and looks at what it says."""
import json
import os
import subprocess
import sys
import unittest

from support import BIN, Shop, wait_until

EXAMPLES = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../apps/examples")


class Examples(unittest.TestCase):
    def said(self, name):
        result = subprocess.run([os.path.join(BIN, "example_" + name)], capture_output=True,
                                text=True, timeout=60, check=False)
        self.assertEqual(result.returncode, 0, result.stdout + result.stderr)
        return result.stdout.splitlines()

    def test_embedding(self):
        lines = self.said("embedding")
        self.assertTrue(lines[0].startswith("on disk: message "))
        self.assertEqual(lines[1], "hello world")

    def test_fan_out(self):
        self.assertEqual(sorted(self.said("fan_out")),
                         ["email takes order A-1", "invoice takes order A-1"])

    def test_ordering_key(self):
        lines = self.said("ordering_key")
        for account in "AB":
            self.assertEqual([line for line in lines if line.startswith(account)],
                             [f"{account} 1", f"{account} 2", f"{account} 3"])

    def test_delayed_reminder(self):
        self.assertEqual(self.said("delayed_reminder"), ["in a moment", "expired: 1"])

    def test_effects_once(self):
        self.assertEqual(self.said("effects_once"), ["shipped with receipt 1 for A-1", "charged 1 time"])

    def test_other_machine(self):
        self.assertEqual(self.said("other_machine"), ["done far away: sweep the yard"])

    def test_request_reply(self):
        self.assertEqual(self.said("request_reply"),
                         ["rope: 1250 cents", "moon: no such product: moon"])

    def test_pipeline(self):
        self.assertEqual(self.said("pipeline"), ["200 readings, sum 12375, dropped 0"])

    def test_first_handler(self):
        node = Shop(config=os.path.join(EXAMPLES, "first_handler/greet.toml"))
        self.addCleanup(node.stop)
        self.assertIn("good", node.dray("check", node.config))
        node.start()

        def published():
            result = subprocess.run(
                [os.path.join(BIN, "dray"), "publish", node.config, "greeting",
                 json.dumps({"to": "world"})], env=node.environment, capture_output=True, check=False)
            return result.returncode == 0
        wait_until(published, "it is served")
        wait_until(lambda: "good day, world" in node.log(), "it is greeted")

    def test_each_is_short(self):
        for folder, _, names in os.walk(EXAMPLES):
            for name in names:
                if not name.endswith(".cpp"):
                    continue
                with open(os.path.join(folder, name), encoding="utf-8") as file:
                    self.assertLess(len(file.readlines()), 60, name)


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], *sys.argv[1:]], verbosity=2)
