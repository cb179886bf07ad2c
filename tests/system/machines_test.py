"""Three machines: a producer on one host and workers on two others, in network namespaces, with CURVE.

    machines_test.py              needs root and iproute2; says so and passes where they are not
    machines_test.py place PORT COUNT NAME     places orders and prints their ids (used inside a host)
"""
import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import unittest

from support import DRAY, order_body, wait_until

SHOP_PORT = 8080
PRODUCER = """
[spool.orders]
directory = "{folder}/orders"
bind      = "tcp://10.77.0.1:7000"
lease     = "2s"
reconnect_grace = "500ms"
keys      = {{ secret = "keys/orders.secret", allow = "allow.toml" }}
  [spool.orders.group.email]
  topics = ["order.placed"]
  [spool.orders.group.view]
  topics = ["order.placed", "mail.sent", "invoice.made"]
[app.order]
plugin   = "order"
source   = "order-front"
publish  = "orders"
settings = {{ listen = "127.0.0.1:8080", database = "{folder}/view/orders.sqlite", progress = "ipc://{folder}/progress.sock", invoices = "ipc://{folder}/invoices.sock" }}
[app.view]
plugin   = "order"
handler  = "order-view"
consume  = {{ group = "view", from = ["orders"] }}
settings = {{ database = "{folder}/view/orders.sqlite", progress = "ipc://{folder}/progress.sock" }}
"""
WORKER = """
[app.email]
plugin   = "email"
handler  = "send-confirmation"
consume  = {{ group = "email", from = ["tcp://orders.internal:7000"] }}
keys     = {{ secret = "keys/{name}.secret", server = "keys/orders.public" }}
threads  = 2
settings = {{ deliver = "maildir:{folder}/mail-{name}", progress = "ipc://{folder}/progress-{name}.sock" }}
"""


def place(port, count, name):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    for i in range(count):
        connection.request("POST", "/orders", json.dumps(order_body(email=f"{name}{i}@example.org")),
                           {"Content-Type": "application/json", "Idempotency-Key": f"{name}-{i}"})
        answer = connection.getresponse()
        body = json.loads(answer.read())
        if answer.status != 202:
            sys.exit(f"HTTP {answer.status}: {body}")
        print(body["order_id"], flush=True)


def run(*command, check=True):
    return subprocess.run(command, check=check, capture_output=True, text=True)


def why_not():
    if os.geteuid() != 0:
        return "needs root"
    if shutil.which("ip") is None:
        return "needs iproute2"
    name = f"dray{os.getpid()}t"
    made = run("ip", "netns", "add", name, check=False)
    run("ip", "netns", "del", name, check=False)
    return f"no network namespaces here: {made.stderr.strip()}" if made.returncode else None


class Hosts:
    """Hosts on one bridge: `orders` at 10.77.0.1, the others behind it."""

    def __init__(self, names):
        self.prefix = f"dray{os.getpid()}"
        self.names = names
        self.hub = f"{self.prefix}-hub"
        run("ip", "netns", "add", self.hub)
        run("ip", "-n", self.hub, "link", "add", "br0", "type", "bridge")
        run("ip", "-n", self.hub, "link", "set", "br0", "up")
        for i, name in enumerate(names):
            space = self.space(name)
            run("ip", "netns", "add", space)
            run("ip", "link", "add", "eth0", "netns", space, "type", "veth", "peer", "name", f"to{i}",
                "netns", self.hub)
            run("ip", "-n", self.hub, "link", "set", f"to{i}", "master", "br0", "up")
            run("ip", "-n", space, "addr", "add", f"10.77.0.{i + 1}/24", "dev", "eth0")
            run("ip", "-n", space, "link", "set", "eth0", "up")
            run("ip", "-n", space, "link", "set", "lo", "up")
            os.makedirs(f"/etc/netns/{space}", exist_ok=True)
            with open(f"/etc/netns/{space}/hosts", "w") as hosts:
                hosts.write("127.0.0.1 localhost\n10.77.0.1 orders.internal\n")

    def space(self, name):
        return f"{self.prefix}-{name}"

    def link(self, name, state):
        """The cable of a host."""
        run("ip", "-n", self.hub, "link", "set", f"to{self.names.index(name)}", state)

    def start(self, name, command, log):
        return subprocess.Popen(["ip", "netns", "exec", self.space(name), *command], stdout=log, stderr=log,
                                start_new_session=True)

    def close(self):
        for name in self.names:
            run("ip", "netns", "del", self.space(name), check=False)
            shutil.rmtree(f"/etc/netns/{self.space(name)}", ignore_errors=True)
        run("ip", "netns", "del", self.hub, check=False)


class Machines(unittest.TestCase):
    def setUp(self):
        if reason := why_not():
            self.skipTest(reason)
        self.folder = tempfile.mkdtemp(prefix="dray-hosts-")
        self.hosts = Hosts(["orders", "one", "two"])
        self.processes = []
        self.log = open(f"{self.folder}/log", "ab")
        for name in ("orders", "one", "two"):
            run(DRAY, "keygen", name, "--dir", f"{self.folder}/keys")
        self.write("orders.toml", PRODUCER.format(folder=self.folder))
        for name in ("one", "two"):
            self.write(f"{name}.toml", WORKER.format(folder=self.folder, name=name))

    def tearDown(self):
        for process in self.processes:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            process.wait()
        self.hosts.close()
        self.log.close()
        if sys.exc_info()[0]:
            with open(f"{self.folder}/log", errors="replace") as log:
                print(log.read()[-5000:])
        shutil.rmtree(self.folder, ignore_errors=True)

    def write(self, name, text):
        with open(f"{self.folder}/{name}.new", "w") as file:
            file.write(text)
        os.rename(f"{self.folder}/{name}.new", f"{self.folder}/{name}")

    def allow(self, *names):
        text = "[worker]\n"
        for name in names:
            with open(f"{self.folder}/keys/{name}.public") as file:
                key = file.read().split('"')[1]
            text += f'{name} = "{key}"\n'
        self.write("allow.toml", text)

    def start(self, host):
        self.processes.append(self.hosts.start(host, [DRAY, "run", f"{self.folder}/{host}.toml"], self.log))

    def orders(self, count, name):
        placed = run("ip", "netns", "exec", self.hosts.space("orders"), sys.executable, __file__, "place",
                     str(SHOP_PORT), str(count), name)
        return placed.stdout.split()

    def mails(self, *hosts):
        """Message-IDs of what these hosts sent; each once per sending."""
        ids = []
        for host in hosts:
            for folder in ("new", "cur"):
                path = f"{self.folder}/mail-{host}/{folder}"
                for name in os.listdir(path) if os.path.isdir(path) else []:
                    with open(f"{path}/{name}", errors="replace") as mail:
                        ids += [line.split()[1] for line in mail if line.lower().startswith("message-id:")]
        return ids

    def wait_open(self):
        def answers():
            return run("ip", "netns", "exec", self.hosts.space("orders"), sys.executable, "-c",
                       f"import socket; socket.create_connection(('127.0.0.1', {SHOP_PORT}), 1)",
                       check=False).returncode == 0
        wait_until(answers, "the shop is open")

    def test_workers_on_two_other_hosts_by_name_and_key_with_a_link_that_is_cut(self):
        self.allow("one")
        self.start("orders")
        self.wait_open()
        self.start("one")
        self.start("two")     # its key is not allowed yet
        orders = self.orders(100, "a")
        self.assertEqual(len(set(orders)), 100)
        wait_until(lambda: len(set(self.mails("one"))) == 100, "host one sends all")
        self.assertEqual(self.mails("two"), [])

        self.allow("one", "two")
        more = []
        placing = threading.Thread(target=lambda: more.extend(self.orders(2000, "b")))
        placing.start()
        wait_until(lambda: self.mails("two"), "host two works once it is allowed")
        self.hosts.link("one", "down")
        cut_at = time.monotonic()
        placing.join()
        self.assertEqual(len(set(more)), 2000)
        # What host one held goes to host two after a lease.
        wait_until(lambda: len(set(self.mails("one", "two"))) == 2100, "host two takes over", 60)
        print(f"all sent {time.monotonic() - cut_at:.1f} s after the cut; host two sent "
              f"{len(set(self.mails('two')))}")
        self.hosts.link("one", "up")
        before = len(set(self.mails("one")))
        last = []

        def works_again():
            last.extend(self.orders(20, f"c{len(last)}-"))
            return len(set(self.mails("one"))) > before
        wait_until(works_again, "host one works again", 60)
        total = 2100 + len(last)
        wait_until(lambda: len(set(self.mails("one", "two"))) == total, "all are sent")
        wait_until(lambda: all(
            group["pending"] == 0 and group["dead"] == 0 for group in
            json.loads(run(DRAY, "status", f"{self.folder}/orders", "--json").stdout)["spools"][0]["groups"]),
            "all is settled")
        # Nothing but what the cut left open was sent twice.
        twice = len(self.mails("one", "two")) - total
        print(f"{twice} of {total} were sent twice")


if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1] == "place":
        place(int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
    else:
        unittest.main()
