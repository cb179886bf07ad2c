#!/usr/bin/env python3
"""demo --check: places orders, kills apps, and proves from the outside that nothing was lost.

Looks only at what a user could look at: HTTP answers, the maildir, the invoice folder, the two
SQLite files, and `dray status --json`. Exit 0 if every proof holds, else 1.
"""
import argparse
import email.parser
import http.client
import json
import os
import queue
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import uuid

CONNECTIONS = 32
PRODUCTS = ["barrel", "rope", "lantern", "crate", "whistle", "cart"]
NAMES = ["Jane Smith", "Łukasz Wiśniewski", "山田太郎", "Zoë O'Neill", "Ірина Коваль"]


def say(text):
    print(text, flush=True)


class Placer:
    """Places orders over keep-alive connections; repeats what got no answer, with its key."""

    def __init__(self, port):
        self.port = port
        self.keys = queue.Queue()
        self.lock = threading.Lock()
        self.accepted = {}        # key -> order id
        self.latencies = []       # seconds, of answers to a first attempt
        self.repeats = 0
        self.faults = []
        self.deadline = time.monotonic() + 170

    def place(self, count):
        for _ in range(count):
            self.keys.put(str(uuid.uuid4()))
        threads = [threading.Thread(target=self.work) for _ in range(CONNECTIONS)]
        for thread in threads:
            thread.start()
        return threads

    def work(self):
        connection = None
        while True:
            try:
                key = self.keys.get_nowait()
            except queue.Empty:
                return
            number = hash(key)
            body = json.dumps({
                "customer": {"name": NAMES[number % len(NAMES)], "email": f"c{number % 997}@example.org"},
                "lines": [{"product": PRODUCTS[number % len(PRODUCTS)], "quantity": 1 + number % 5}]})
            attempts = 0
            while True:
                attempts += 1
                if time.monotonic() > self.deadline:
                    with self.lock:
                        self.faults.append(f"no 202 for key {key} in time")
                    return
                try:
                    if connection is None:
                        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
                    started = time.perf_counter()
                    connection.request("POST", "/orders", body, {
                        "Content-Type": "application/json", "Idempotency-Key": key})
                    response = connection.getresponse()
                    answer = response.read()
                    took = time.perf_counter() - started
                    if response.status == 202:
                        break
                    if response.status < 500:
                        with self.lock:
                            self.faults.append(f"HTTP {response.status}: {answer[:200]!r}")
                        return
                except (OSError, http.client.HTTPException):
                    pass
                if connection is not None:
                    connection.close()
                connection = None
                time.sleep(0.05)   # the server is down: a client's back-off
            order_id = json.loads(answer)["order_id"]
            with self.lock:
                if attempts == 1:
                    self.latencies.append(took)
                self.repeats += attempts - 1
                if self.accepted.setdefault(key, order_id) != order_id:
                    self.faults.append(f"key {key} gave two orders")


class Shop:
    def __init__(self, options, data, port):
        self.dray = os.path.join(options.bin, "dray")
        self.config = options.config
        self.log = open(os.path.join(data, "dray.log"), "ab")
        self.environment = dict(os.environ, DRAY_DATA=data, DRAY_SHOP_LISTEN=f"127.0.0.1:{port}",
                                DRAY_SHOP_DELIVER=f"maildir:{data}/mail")
        self.launchers = []

    def start(self, *apps):
        command = [self.dray, "run", self.config]
        for app in apps:
            command += ["--app", app]
        self.launchers.append(subprocess.Popen(command, env=self.environment, stdout=self.log,
                                               stderr=self.log))

    def kill(self, app):
        """SIGKILLs the running process of an app; False if it is just being restarted."""
        ours = {str(launcher.pid) for launcher in self.launchers}
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{pid}/cmdline", "rb") as file:
                    words = file.read().decode(errors="replace").split("\0")
                with open(f"/proc/{pid}/stat") as file:
                    parent = file.read().rsplit(")", 1)[1].split()[1]
            except OSError:
                continue
            if parent in ours and words[-3:-1] == ["--app", app]:
                os.kill(int(pid), signal.SIGKILL)
                return True
        return False

    def status(self):
        result = subprocess.run([self.dray, "status", "--json", self.config], env=self.environment,
                                capture_output=True, text=True, check=False)
        return json.loads(result.stdout)["spools"][0] if result.returncode == 0 else None

    def stop(self):
        codes = []
        for launcher in reversed(self.launchers):
            if launcher.poll() is None:
                launcher.send_signal(signal.SIGTERM)
            try:
                codes.append(launcher.wait(30))
            except subprocess.TimeoutExpired:
                launcher.kill()
                codes.append("killed")
        self.launchers = []
        return codes


def wait_until(what, condition, seconds):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return
        time.sleep(0.1)
    raise TimeoutError(f"{what} did not happen within {seconds} s")


def answers(port):
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
    except OSError:
        return False


def drained(shop):
    status = shop.status()
    return status is not None and all(group["pending"] == 0 for group in status["groups"])


def read_mails(data):
    """order id -> list of Message-IDs"""
    mails = {}
    parser = email.parser.BytesHeaderParser()
    for name in os.listdir(f"{data}/mail/new"):
        with open(f"{data}/mail/new/{name}", "rb") as file:
            headers = parser.parse(file)
        mails.setdefault(headers["Subject"].split()[-1], []).append(headers["Message-ID"])
    return mails


def prove(data, placer, status, port):
    """Yields (proof, held, detail)."""
    orders = set(placer.accepted.values())
    count = len(placer.accepted)
    yield "every request got one order", not placer.faults and len(orders) == count, \
        f"{len(orders)} orders of {count} requests" + "".join(f"; {f}" for f in placer.faults[:3])
    view = sqlite3.connect(f"{data}/view/orders.sqlite").execute(
        "SELECT order_id, mail_id, invoice_number FROM orders").fetchall()
    yield "every order exists once", {row[0] for row in view} == orders and len(view) == count, \
        f"{len(view)} in the order view"
    rows = sqlite3.connect(f"{data}/invoices/numbers.sqlite").execute(
        "SELECT number, order_id FROM invoices ORDER BY number").fetchall()
    yield "one invoice number per order", {row[1] for row in rows} == orders and len(rows) == count, \
        f"{len(rows)} numbers"
    yield "numbers without a gap", [row[0] for row in rows] == list(range(1, count + 1)), \
        f"1 to {rows[-1][0] if rows else 0}"
    pdfs = [name for name in os.listdir(f"{data}/invoices") if name.endswith(".pdf")]
    wanted = {f"INV-{row[0]:06d}.pdf" for row in rows}
    whole = all(open(f"{data}/invoices/{name}", "rb").read(5) == b"%PDF-" for name in pdfs)
    yield "one PDF per order", set(pdfs) == wanted and whole, f"{len(pdfs)} files"
    yield "the page knows the invoice", all(
        row[2] == f"INV-{number:06d}" for row, number in
        ((row, dict((o, n) for n, o in rows).get(row[0], 0)) for row in view[:200])), "sample of 200"
    mails = read_mails(data)
    ids = [set(each) for each in mails.values()]
    yield "at least one e-mail per order", set(mails) == orders, f"{len(mails)} orders have mail"
    yield "one Message-ID per order", all(len(each) == 1 for each in ids) and \
        len(set().union(*ids)) == len(ids) if ids else False, f"{len(ids)} Message-IDs"
    settled = ["done", "dead", "expired", "dropped", "damaged", "pending"]
    for group in status["groups"]:
        yield f"P2 holds for group {group['name']}", \
            group["accepted"] == sum(group[key] for key in settled) and group["pending"] == 0 and \
            group["dead"] == 0, \
            " + ".join(f"{group[key]} {key}" for key in settled if group[key]) + \
            f" = {group['accepted']} accepted"
    email_group = next(g for g in status["groups"] if g["name"] == "email")
    yield "the spool holds each order once", email_group["accepted"] == count, \
        f"{email_group['accepted']} accepted"
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    served = 0
    for order_id in sorted(orders)[:20]:
        connection.request("GET", f"/orders/{order_id}/invoice.pdf")
        response = connection.getresponse()
        served += response.status == 200 and response.read()[:5] == b"%PDF-"
    yield "the page's PDF links work", served == min(20, count), f"{served} of 20 fetched"


def percentile(values, fraction):
    values = sorted(values)
    return values[int(fraction * (len(values) - 1))] * 1000 if values else 0


def run(options, data, shop, port):
    placer = Placer(port)
    started = time.monotonic()
    say(f"==> shop without e-mail and invoice, on port {port}")
    shop.start("order", "view")
    wait_until("the shop's start", lambda: answers(port), 60)
    say(f"==> placing {options.first} orders over {CONNECTIONS} connections; nobody consumes them")
    for thread in placer.place(options.first):
        thread.join()
    calm = list(placer.latencies)
    say(f"    {len(placer.accepted)} accepted in {time.monotonic() - started:.1f} s")

    say("==> starting e-mail and invoice; placing more, and pulling plugs")
    shop.start("email", "invoice")
    kills = {"email": 0, "invoice": 0, "order": 0}
    threads = []
    for turn in range(options.kills):
        threads += placer.place(options.more // options.kills)
        time.sleep(0.7)
        for app in kills:
            if shop.kill(app):
                kills[app] += 1
        say(f"    kill {turn + 1} of {options.kills}: {dict(kills)}")
        # Long enough for the launcher's back-off to bring them back to work.
        time.sleep(1.2)
    for thread in threads:
        thread.join()
    say(f"    {len(placer.accepted)} accepted; waiting until the queue is empty")
    wait_until("an empty queue", lambda: drained(shop), 120)

    status = shop.status()
    proofs = list(prove(data, placer, status, port))
    codes = shop.stop()
    proofs.append(("everything stops when asked", codes == [0, 0], f"exit codes {codes}"))
    mails = sum(len(each) for each in read_mails(data).values())
    say("")
    width = max(len(name) for name, _, _ in proofs)
    for name, held, detail in proofs:
        say(f"  {'ok  ' if held else 'FAIL'}  {name:<{width}}  {detail}")
    say("")
    for name, value in [
            ("orders", len(placer.accepted)), ("kills", sum(kills.values())),
            ("requests repeated with their key", placer.repeats),
            ("duplicate e-mails (same Message-ID)", mails - len(placer.accepted)),
            ("202 p50 / p99, consumers stopped",
             f"{percentile(calm, .5):.1f} / {percentile(calm, .99):.1f} ms"),
            ("202 p50 / p99, over all",
             f"{percentile(placer.latencies, .5):.1f} / {percentile(placer.latencies, .99):.1f} ms"),
            ("seconds", f"{time.monotonic() - started:.0f}")]:
        say(f"  {name:<36} {value}")
    enough = all(count > 0 for count in kills.values())
    if not enough:
        say("  FAIL  not every app was killed")
    return all(held for _, held, _ in proofs) and enough


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--bin", required=True)
    parser.add_argument("--config", required=True)
    parser.add_argument("--first", type=int, default=2000)
    parser.add_argument("--more", type=int, default=1000)
    parser.add_argument("--kills", type=int, default=4)
    options = parser.parse_args()
    data = f"./var/check-{os.getpid()}"
    os.makedirs(data)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shop = Shop(options, data, port)
    held = False
    try:
        held = run(options, data, shop, port)
    except TimeoutError as late:
        say(f"  FAIL  {late}; status: {json.dumps(shop.status())}")
        say("  the log's end:")
        for line in open(f"{data}/dray.log", errors="replace").read().splitlines()[-40:]:
            say(f"    {line}")
    finally:
        shop.stop()
        if held:
            shutil.rmtree(data)
        else:
            say(f"  what is left to look at: {data} (dray.log among it)")
    say("\n  nothing was lost" if held else "\n  the check FAILED")
    sys.exit(0 if held else 1)


if __name__ == "__main__":
    main()
