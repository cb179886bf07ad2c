#!/usr/bin/env python3
"""The commands about queues, on the shop as users run it: pause, drain, replay, show, dead letters,
groups that go."""
import json
import os
import sys
import unittest

from support import CONFIG, Shop, wait_until


def shop_config(folder, change):
    with open(CONFIG, encoding="utf-8") as file:
        text = change(file.read())
    path = os.path.join(folder, "shop.toml")
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
    return path


def with_retain(text):
    return text.replace('max_size   = "2GiB"', 'max_size   = "2GiB"\nretain = { age = "1h" }')


class QueueCase(unittest.TestCase):
    def shop(self, change, *apps):
        shop = Shop()
        self.addCleanup(shop.stop)
        shop.config = shop_config(shop.folder, change)
        shop.start(*apps)
        shop.wait_open()
        return shop

    def mails(self, shop):
        try:
            return len(os.listdir(os.path.join(shop.folder, "mail", "new")))
        except FileNotFoundError:
            return 0


class Queues(QueueCase):
    def test_a_drained_group_waits_says_why_and_goes_on_after_a_restart_only_when_told(self):
        shop = self.shop(lambda text: text)
        said = shop.dray("drain", shop.config, "email")
        self.assertIn("paused", said)
        shop.order()
        wait_until(lambda: shop.group("invoice")["done"] == 1, "the invoice")
        sequence = shop.group("email")
        self.assertEqual((sequence["pending"], sequence["paused"]), (1, True))
        self.assertIn("paused", shop.dray("status", shop.config))
        shop.launchers[0].terminate()
        shop.launchers[0].wait(30)
        shop.start()
        shop.wait_open()
        self.assertTrue(shop.group("email")["paused"])
        dead = shop.dray("dead", "list", "--json", shop.config, "email")
        self.assertEqual(json.loads(dead)["dead"], [])
        self.assertEqual(self.mails(shop), 0)
        self.assertTrue(json.loads(shop.dray("drain", "--json", shop.config, "email"))["done"])
        self.assertTrue(json.loads(shop.dray("resume", "--json", shop.config, "email"))["done"])
        wait_until(lambda: self.mails(shop) == 1, "the mail")

    def test_the_order_of_the_documents_is_one_that_is_handled(self):
        shop = self.shop(lambda text: text)
        with open(os.path.join(os.path.dirname(CONFIG), "order.json"), encoding="utf-8") as file:
            body = file.read()
        shop.dray("publish", shop.config, "order.placed", body)
        for group in ("email", "invoice", "view"):
            wait_until(lambda group=group: shop.group(group)["done"] >= 1, group)
            self.assertEqual(shop.group(group)["dead"], 0)

    def test_show_tells_a_message_s_life(self):
        shop = self.shop(lambda text: text)
        order = shop.order()
        wait_until(lambda: shop.group("email")["done"] == 1, "the mail")
        wait_until(lambda: shop.group("invoice")["done"] == 1, "the invoice")
        receipt = json.loads(shop.dray("publish", shop.config, "mail.sent", json.dumps(
            {"order_id": order, "mail_id": "x"}), "--priority", "low", "--key", order))
        life = json.loads(wait_until(lambda: (lambda text: text if '"settled"' in text else None)(
            shop.dray("show", "--json", shop.config, receipt["id"])), "it is settled"))
        self.assertEqual(life["topic"], "mail.sent")
        self.assertEqual(life["priority"], "low")
        self.assertEqual(life["key"], order)
        self.assertEqual([event["what"] for event in life["groups"][0]["events"]],
                         ["delivered", "done"])
        text = shop.dray("show", shop.config, str(receipt["sequence"]))
        self.assertIn("group view: settled", text)
        self.assertIn("done by", text)
        self.assertIn("give its id", shop.dray("show", shop.config, "nonsense", code=2))
        self.assertIn("no message", shop.dray("show", shop.config, "99999999", code=1))

    def test_dead_letters_are_counted_by_error_edited_and_given_another_chance(self):
        shop = self.shop(lambda text: text)
        wait_until(lambda: shop.group("email")["workers"] == 1, "the mailer")
        good = {"order_id": "o-1", "customer": "Jane", "email": "jane@example.org",
                "currency": "EUR", "tax_permille": 190, "lines": []}
        broken = {key: value for key, value in good.items() if key != "email"}
        for _ in range(3):
            shop.dray("publish", shop.config, "order.placed", json.dumps(broken))
        wait_until(lambda: shop.group("email")["dead"] == 3, "dead letters")
        kinds = json.loads(shop.dray("dead", "list", "--signatures", "--json", shop.config, "email"))
        self.assertEqual([each["count"] for each in kinds["signatures"]], [3])
        signature = kinds["signatures"][0]["signature"]
        self.assertIn("email", shop.dray("dead", "list", shop.config, "email"))
        letters = json.loads(shop.dray("dead", "list", "--json", shop.config, "email"))["dead"]
        first = str(letters[0]["sequence"])
        self.assertIn("o-1", shop.dray("dead", "show", shop.config, "email", first))
        none = ["dead", "list", "--signatures", "--json", "--cause", "lost", shop.config, "email"]
        self.assertEqual(json.loads(shop.dray(*none))["signatures"], [])
        page = ["dead", "list", "--limit", "2", shop.config, "email"]
        self.assertIn(f"--after {letters[1]['sequence']}", shop.dray(*page))
        rest = json.loads(shop.dray(*page, "--json", "--after", str(letters[1]["sequence"])))["dead"]
        self.assertEqual([each["sequence"] for each in rest], [letters[2]["sequence"]])
        self.assertIn("3 would be pending again", shop.dray(
            "dead", "retry", "--dry-run", "--signature", signature, shop.config, "email"))
        self.assertIn("0 would be", shop.dray(
            "dead", "retry", "--dry-run", "--cause", "lost", shop.config, "email"))
        shop.dray("dead", "edit", shop.config, "email", first, json.dumps(good))
        wait_until(lambda: shop.group("email")["done"] == 1, "the edited one")
        # The message is what was published; the new body is that one group's.
        self.assertNotIn("jane@example.org", shop.dray("show", shop.config, first))
        self.assertEqual(self.mails(shop), 1)
        self.assertEqual(json.loads(shop.dray(
            "dead", "drop", "--json", "--signature", signature, shop.config, "email"))["changed"], 2)
        self.assertEqual(shop.group("email")["dead"], 0)
        self.assertIn("no dead letter", shop.dray("dead", "show", shop.config, "email", first, code=1))
        self.assertIn("no JSON", shop.dray(
            "dead", "edit", shop.config, "email", first, "{oops", code=2))
        self.assertIn("give --topic", shop.dray("dead", "drop", shop.config, "email", code=2))

    def test_retained_messages_are_replayed_to_one_group(self):
        shop = self.shop(with_retain)
        orders = [shop.order() for _ in range(5)]
        wait_until(lambda: shop.group("email")["done"] == 5, "mails")
        wait_until(lambda: shop.group("invoice")["done"] == 5, "invoices")
        replay = ["replay", "--json", shop.config, "--group", "email"]
        said = json.loads(shop.dray(*replay, "--since", "1h", "--dry-run"))
        self.assertEqual(said["replayed"], 5)
        self.assertEqual(json.loads(shop.dray(*replay, "--since", "2999-01-01T00:00:00Z"))["matched"], 0)
        said = json.loads(shop.dray(*replay, "--where", f"order_id={orders[2]}"))
        self.assertEqual(said["replayed"], 1)
        group = wait_until(lambda: (lambda g: g if g["done"] == 6 else None)(shop.group("email")),
                           "the replayed one")
        self.assertEqual(group["accepted"], 6)
        self.assertEqual(shop.group("invoice")["accepted"], 5)
        self.assertIn("--since wants", shop.dray("replay", shop.config, "--group", "email",
                                                 "--since", "yesterday", code=2))
        self.assertIn("no group", shop.dray("replay", shop.config, "--group", "mail", code=1))

    def test_a_group_that_left_the_config_is_kept_until_it_is_dropped(self):
        shop = self.shop(lambda text: text, "order", "view")
        shop.order()
        self.assertIn("is in the config", shop.dray("group", "drop", shop.config, "email", code=1))
        shop.launchers[0].terminate()
        shop.launchers[0].wait(30)
        shop.config = shop_config(shop.folder, lambda text: text.replace(
            '[spool.orders.group.email]\n  topics = ["order.placed"]',
            '[spool.orders.group.post]\n  topics = ["order.placed"]').replace(
                'group = "email"', 'group = "post"'))
        shop.start("order", "view")
        shop.wait_open()
        listed = shop.dray("group", "list", shop.config)
        self.assertIn("dray group drop", listed)
        self.assertEqual(shop.group("email")["pending"], 1)
        shop.dray("group", "drop", shop.config, "email")
        self.assertNotIn("email", shop.dray("group", "list", shop.config))
        self.assertIn("no group", shop.dray("pause", shop.config, "email", code=1))


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], *sys.argv[1:]], verbosity=2)
