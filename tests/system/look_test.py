#!/usr/bin/env python3
"""The commands that look: peek, tail, top and doctor, at the shop as users run it."""
import fcntl
import json
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import unittest

from support import CONFIG, DRAY, Shop, wait_until


class LookCase(unittest.TestCase):
    def shop(self, *apps, retain=None):
        shop = Shop()
        self.addCleanup(shop.stop)
        if retain is not None:
            with open(CONFIG, encoding="utf-8") as file:
                text = file.read()
            shop.config = os.path.join(shop.folder, "shop.toml")
            with open(shop.config, "w", encoding="utf-8") as file:
                file.write(text.replace('max_size   = "2GiB"',
                                        f'max_size = "2GiB"\nretain = {{ age = "{retain}" }}'))
        shop.start(*apps)
        shop.wait_open()
        return shop

    def findings(self, shop, code, *arguments):
        said = json.loads(shop.dray("doctor", "--json", *(arguments or (shop.config,)), code=code))
        return {each["what"]: each for each in said["findings"] if each["level"] != "ok"}

    def one(self, findings, words):
        found = [each for what, each in findings.items() if words in what]
        self.assertEqual(len(found), 1, (words, findings))
        return found[0]


class Messages(LookCase):
    def test_peek_shows_what_waits_and_why_and_leaves_it_there(self):
        shop = self.shop()
        self.assertIn("nothing waits", shop.dray("peek", shop.config, "email"))
        shop.dray("pause", shop.config, "email")
        orders = [shop.order() for _ in range(3)]
        wait_until(lambda: shop.group("email")["pending"] == 3, "they wait")
        said = shop.dray("peek", shop.config, "email")
        for order in orders:
            self.assertIn("the group is paused; dray resume", said)
        page = json.loads(shop.dray("peek", "--json", "--limit", "2", shop.config, "email"))
        self.assertEqual([each["body"]["order_id"] for each in page["messages"]], orders[:2])
        self.assertTrue(page["more"])
        rest = json.loads(shop.dray("peek", "--json", "--after", str(page["next"]), shop.config,
                                    "email"))
        self.assertEqual([each["body"]["order_id"] for each in rest["messages"]], orders[2:])
        self.assertIn("--after", shop.dray("peek", "--limit", "1", shop.config, "email"))
        self.assertIn("no group 'mail'", shop.dray("peek", shop.config, "mail", code=1))
        self.assertIn("limit", shop.dray("peek", "--limit", "0", shop.config, "email", code=2))
        shop.dray("resume", shop.config, "email")
        wait_until(lambda: shop.group("email")["done"] == 3, "the mails go out")

    def test_tail_follows_over_a_restart_and_can_look_back(self):
        shop = self.shop(retain="1h")
        before = shop.order()
        out = tempfile.NamedTemporaryFile("r", prefix="dray-tail-")
        self.addCleanup(out.close)
        with open(out.name, "wb") as sink:
            tail = subprocess.Popen([DRAY, "tail", "--json", "--topic", "order.placed", shop.config],
                                    env=shop.environment, stdout=sink, stderr=subprocess.DEVNULL)
        self.addCleanup(tail.wait)
        self.addCleanup(tail.kill)

        def seen():
            with open(out.name, encoding="utf-8") as file:
                return [json.loads(line)["body"]["order_id"] for line in file if line.endswith("\n")]
        # It begins with what comes after it has begun, which cannot be seen from outside.
        placed = []
        wait_until(lambda: (placed.append(shop.order()), seen())[1], "it follows")
        wait_until(lambda: seen()[-1] == placed[-1], "all that came")
        shop.launchers[0].terminate()
        shop.launchers[0].wait(30)
        shop.start()
        shop.wait_open()
        placed.append(shop.order())
        wait_until(lambda: seen()[-1] == placed[-1], "what came after the restart")
        self.assertEqual(seen(), placed[-len(seen()):])
        said = shop.dray("tail", "--since", "1h", "--no-follow", "--count", "1", shop.config)
        self.assertIn(before, said)
        self.assertEqual(said.count("\n"), 1)
        said = shop.dray("tail", "--since", "2999-01-01T00:00:00Z", "--no-follow", shop.config)
        self.assertEqual(said, "")
        self.assertIn("--since wants", shop.dray("tail", "--since", "noon", shop.config, code=2))

    def test_requests_that_are_wrong_are_refused_in_words(self):
        shop = self.shop("order")
        socket = os.path.join(shop.folder, "orders", "admin.sock")
        for path in ("/v0/pending?group=email&limit=ten", "/v0/accepted?from=-1",
                     "/v0/dead?group=email&after=1x", "/v0/accepted?since_ms="):
            self.assertIn("must be a whole number", self.curl(socket, path), path)
        for path, body, words in (
                ("/v0/publish", {"topic": "t", "body": 1, "durability": "os"}, 'unknown member \\"durability'),
                ("/v0/publish", {"topic": "order.placed", "body": 1, "expires_ms": 0}, "more than 0"),
                ("/v0/dead/edit", {"group": "email", "sequence": 1}, 'body\\" is needed'),
                ("/v0/group/pause", {"group": 7}, "must be text")):
            self.assertIn(words, self.curl(socket, path, "-d", json.dumps(body)), path)

    def curl(self, socket, path, *more):
        return subprocess.run(["curl", "-s", "--unix-socket", socket, f"http://dray{path}", *more],
                              capture_output=True, text=True, timeout=20, check=True).stdout

    def test_what_would_steer_a_terminal_is_shown(self):
        shop = self.shop("order")
        shop.dray("publish", shop.config, "order.placed", json.dumps({"a": "\x1b[2J\x9bx"}))
        sequence = json.loads(shop.dray("tail", "--no-follow", "--json", shop.config))["sequence"]
        for command in (("show", shop.config, str(sequence)), ("peek", shop.config, "email"),
                        ("tail", "--no-follow", shop.config)):
            said = shop.dray(*command)
            self.assertIn("x", said)
            self.assertFalse(set(said) & {"\x1b", "\x9b"}, said)


class Operations(LookCase):
    def test_top_shows_rates_and_ends_on_q(self):
        shop = self.shop("order", "view")
        shop.order()
        said = shop.dray("top", "--interval", "100ms", shop.config)
        self.assertIn("no worker", said)
        self.assertIn("done/s", said)
        lines = shop.dray("top", "--json", "--count", "2", "--interval", "100ms", shop.config)
        looks = [json.loads(line) for line in lines.splitlines()]
        self.assertEqual(len(looks), 2)
        self.assertIn("done_per_second", looks[1]["spools"][0]["groups"][0])
        self.assertIn("100ms", shop.dray("top", "--interval", "1ms", shop.config, code=2))
        screen, terminal = pty.openpty()
        self.addCleanup(os.close, screen)
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 4, 40, 0, 0))
        top = subprocess.Popen([DRAY, "top", "--interval", "200ms", shop.config],
                               env=shop.environment, stdin=terminal, stdout=terminal)
        os.close(terminal)
        text = b""
        asked = False
        while True:
            if not select.select([screen], [], [], 20)[0]:
                top.kill()
                self.fail(f"top says nothing more after {text!r}")
            try:
                text += os.read(screen, 4096)
            except OSError:   # the terminal is closed
                break
            if b"q ends" in text and not asked:
                asked = True
                os.write(screen, b"q")
        self.assertEqual(top.wait(20), 0)
        page = text.split(b"\x1b[H\x1b[J")[1].split(b"\x1b")[0]
        self.assertLessEqual(page.count(b"\r\n"), 3)           # four lines
        self.assertTrue(all(len(line.decode()) <= 40 for line in page.split(b"\r\n")), page)
        self.assertTrue(text.rstrip().endswith(b"\x1b[?1049l"), text)   # as it was before

    def test_doctor_says_what_is_wrong_and_what_to_do(self):
        shop = self.shop("order", "view", "invoice")
        good = self.findings(shop, 0)
        self.assertIn("app.email", self.one(good, "nobody works for group email")["advice"])
        shop.order()
        wait_until(lambda: shop.group("view")["pending"] == 0, "the view")
        wrong = self.one(self.findings(shop, 1), "nobody works for group email; 1 message waits")
        self.assertEqual(wrong["level"], "fault")
        shop.dray("pause", shop.config, "email")
        self.assertIn("dray resume", self.one(self.findings(shop, 0), "is paused")["advice"])

        owner = [int(pid) for pid in os.listdir("/proc") if pid.isdigit() and self.serves(pid, shop)]
        self.assertEqual(len(owner), 1)
        os.kill(owner[0], signal.SIGSTOP)
        self.assertIn("did not answer", shop.dray("status", shop.config, code=1))
        os.kill(owner[0], signal.SIGCONT)

        shop.launchers[0].terminate()
        shop.launchers[0].wait(30)
        spool = os.path.join(shop.folder, "orders")
        wrong = self.one(self.findings(shop, 1, spool), "nobody serves it")
        self.assertIn("dray run --spool", wrong["advice"])
        with open(os.path.join(spool, "x.quarantine"), "wb"):
            pass
        with open(os.path.join(shop.folder, "bad.toml"), "w", encoding="utf-8") as file:
            with open(CONFIG, encoding="utf-8") as good_file:
                file.write(good_file.read().replace('"send-confirmation"',
                                                    '"send-confirmatoin"'))
        said = self.findings(shop, 1, os.path.join(shop.folder, "bad.toml"))
        self.one(said, "no handler 'send-confirmatoin'")
        self.one(said, "damaged file is kept aside")
        for target in ("/no/such.toml", "/no/such/folder"):
            for command in ("doctor", "status"):
                self.assertIn("give a config file, or the directory", shop.dray(command, target, code=2))
        empty = os.path.join(shop.folder, "empty")
        os.mkdir(empty)
        self.assertIn("no spool is here", shop.dray("doctor", empty, code=1))
        self.assertIn("no spool is here", shop.dray("status", empty, code=1))
        self.assertIn("--spool", shop.dray("status", spool, "--spool", "orders", code=2))

    def serves(self, pid, shop):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                command = file.read()
            with open(f"/proc/{pid}/environ", "rb") as file:
                ours = f"DRAY_DATA={shop.folder}\0".encode() in file.read()
        except OSError:
            return False
        return ours and b"--app\0order" in command and int(pid) != shop.launchers[0].pid

    def test_doctor_tries_the_endpoints_of_others_and_volatile_folders(self):
        shop = Shop()
        self.addCleanup(shop.stop)
        volatile = tempfile.mkdtemp(prefix="dray-", dir="/dev/shm")
        self.addCleanup(os.rmdir, volatile)
        path = os.path.join(shop.folder, "far.toml")
        with open(path, "w", encoding="utf-8") as file:
            file.write(f'''
[spool.here]
directory = "{volatile}"
[app.email]
plugin = "email"
handler = "send-confirmation"
consume = {{ group = "email", from = ["ipc://{shop.folder}/nobody.sock", "tcp://127.0.0.1:{shop.port}"] }}
settings = {{ deliver = "maildir:{shop.folder}/mail" }}
''')
        said = self.findings(shop, 1, path)
        self.one(said, "loses what was synced")
        self.one(said, f"nobody answers at ipc://{shop.folder}/nobody.sock")
        self.one(said, f"nobody answers at tcp://127.0.0.1:{shop.port}")


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], *sys.argv[1:]], verbosity=2)
