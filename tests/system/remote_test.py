"""The shop's front in a process of its own, publishing to a spool that another app serves and that dies."""
import concurrent.futures
import os
import re
import subprocess
import unittest

from support import CONFIG, Shop, order_body, wait_until


class RemoteFront(unittest.TestCase):
    def test_orders_are_accepted_once_while_the_owner_of_the_spool_is_killed(self):
        shop = Shop()
        self.addCleanup(shop.stop)
        with open(CONFIG, encoding="utf-8") as file:
            text = file.read()
        text = re.sub(r'publish  = "orders"', 'publish_to = "orders"', text, count=1)
        text = text.replace("[app.view] ", '[app.view]\npublish = "orders" ', 1)
        shop.config = os.path.join(shop.folder, "shop.toml")
        with open(shop.config, "w", encoding="utf-8") as file:
            file.write(text)
        self.assertIn("good", shop.dray("check", shop.config))
        shop.start()
        shop.wait_open()

        def place(number):
            return shop.request("POST", "/orders", order_body(name=f"Customer {number}"))[0]

        count = 300
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            placed = [pool.submit(place, number) for number in range(count)]
            for part in (50, 120, 200):
                wait_until(lambda part=part: sum(each.done() for each in placed) >= part, "orders go on")
                kill = ["pkill", "-9", "-f", f"{shop.config}.*--app view"]   # it may not be back yet
                wait_until(lambda: subprocess.run(kill, check=False).returncode == 0, "the owner is killed")
            self.assertEqual({each.result() for each in placed}, {202})
        # The last order may have been accepted before the last kill.
        wait_until(lambda: "invoice" in shop.dray("status", shop.config, code=None), "the owner is back")
        wait_until(lambda: shop.group("invoice")["done"] == count, "every order has its invoice", 60)
        for group in ("email", "invoice"):
            self.assertEqual(shop.group(group)["accepted"], count)


if __name__ == "__main__":
    unittest.main()
