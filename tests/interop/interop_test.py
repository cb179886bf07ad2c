"""A worker in Python against real nodes: through kills, reconnects and restarts, in plain and with CURVE.

Producers are the tests' queue_node and `dray run --spool`.
"""
import collections
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

HERE = os.path.dirname(os.path.abspath(__file__))
DRAY = os.path.join(os.environ["DRAY_BIN"], "dray")
NODE = os.path.join(os.environ["DRAY_BIN"], "queue_node")
LEASE_MS, GRACE_MS = 2000, 300


def wait_until(condition, what, seconds=30):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.02)   # the bound is there to fail, not to pace
    raise AssertionError(f"{what}: not within {seconds} s")


class Process:
    def __init__(self, *command):
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.lines = []
        self.reader = threading.Thread(target=lambda: self.lines.extend(iter(self.process.stdout.readline, "")),
                                       daemon=True)
        self.reader.start()

    def said(self, word):
        # The last line of one that was killed may be half a line.
        return [line.split() for line in list(self.lines) if line.startswith(word + " ") and line.endswith("\n")]

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.reader.join()
        self.process.stdin.close()
        self.process.stdout.close()

    def drain(self):
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20)


class Producer(Process):
    def __init__(self, folder):
        super().__init__(NODE, "producer", f"{folder}/spool", f"ipc://{folder}/s", str(LEASE_MS), str(GRACE_MS))
        wait_until(lambda: "ready\n" in self.lines, "the producer is ready")

    def tell(self, line):
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def publish(self, first, count):
        before = len(self.said("receipt"))
        self.tell(f"publish {first} {count}")
        wait_until(lambda: len(self.said("receipt")) >= before + count, "all have receipts")

    def status(self):
        before = len(self.said("status"))
        self.tell("status")
        line = wait_until(lambda: self.said("status")[before:], "the status")[0]
        return dict(zip(["done", "pending", "dead", "workers", "in_flight", "stale"], map(int, line[1:])))


class Interop(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.mkdtemp(prefix="dray-py-")
        self.endpoint = f"ipc://{self.folder}/s"
        self.processes = []

    def tearDown(self):
        for process in self.processes:
            process.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def keep(self, process):
        self.processes.append(process)
        return process

    def worker(self, *more):
        return self.keep(Process(sys.executable, f"{HERE}/worker.py", self.endpoint, "g", *more))

    def test_every_message_is_handled_and_settled_once(self):
        producer = self.keep(Producer(self.folder))
        one, two = self.worker(), self.worker("--window", "3")
        producer.publish(0, 2000)
        wait_until(lambda: producer.status()["done"] == 2000, "all are settled")
        handled = collections.Counter(line[3] for each in (one, two) for line in each.said("start"))
        self.assertEqual(len(handled), 2000)
        self.assertEqual(set(handled.values()), {1})
        wait_until(lambda: len(one.said("confirmed")) + len(two.said("confirmed")) == 2000, "all are confirmed")
        self.assertEqual(producer.status()["stale"], 0)
        self.assertEqual([one.drain(), two.drain()], [0, 0])
        wait_until(lambda: producer.status()["workers"] == 0, "both said BYE")

    def test_killed_workers_and_a_killed_producer_lose_nothing(self):
        producer = self.keep(Producer(self.folder))
        workers = [self.worker()]
        published = 0
        for _ in range(4):
            producer.publish(published, 300)
            published += 300
            done = len(workers[-1].said("start"))
            wait_until(lambda: len(workers[-1].said("start")) > done + 20, "it works")
            workers[-1].kill()
            workers.append(self.worker())
        wait_until(lambda: producer.status()["pending"] == 0, "all are settled in spite of dead workers")
        # The producer dies under load: the worker keeps its session and its answers.
        producer.publish(published, 500)
        published += 500
        known = {line[3] for each in workers for line in each.said("start")}
        producer.kill()
        producer = self.keep(Producer(self.folder))
        wait_until(lambda: producer.status()["pending"] == 0, "all are settled after the restart")
        starts = collections.Counter(line[3] for line in workers[-1].said("start"))
        handled = {line[3] for each in workers for line in each.said("start")}
        self.assertEqual(len(handled), published)
        self.assertGreater(len(known), 0)
        # P5: what the living worker did is not delivered to it a second time.
        self.assertEqual([each for each, count in starts.items() if count > 1], [])
        self.assertEqual(producer.status()["dead"], 0)

    def test_a_publisher_s_messages_are_accepted_once_through_kills_of_the_producer(self):
        producer = self.keep(Producer(self.folder))
        # It publishes on, until it is told to stop: every kill is under load, however fast the machine is.
        publisher = self.keep(Process(sys.executable, f"{HERE}/publisher.py", self.endpoint, "numbered", "0",
                                      str(1_000_000), "--per-second", "2000"))
        refused = self.keep(Process(sys.executable, f"{HERE}/publisher.py", self.endpoint, "nobody.takes", "0", "3"))
        wait_until(lambda: len(refused.said("refused")) == 3, "a topic without a group is refused")
        self.assertEqual({line[2] for line in refused.said("refused")}, {"unroutable"})
        for _ in range(4):
            seen = len(publisher.said("receipt"))
            wait_until(lambda: len(publisher.said("receipt")) > seen + 300, "receipts come")
            producer.kill()
            producer = self.keep(Producer(self.folder))
        publisher.process.stdin.close()
        self.assertEqual(publisher.process.wait(20), 0)
        publisher.reader.join()
        count = len(publisher.said("receipt"))
        self.assertGreater(count, 1200)
        receipts = publisher.said("receipt")
        self.assertEqual([int(line[1]) for line in receipts], list(range(count)))
        sequences = [int(line[2]) for line in receipts]
        self.assertEqual(sequences, sorted(set(sequences)))     # in order, each a message of its own
        self.assertEqual(producer.status()["pending"], count)   # and nothing twice
        worker = self.worker()
        wait_until(lambda: producer.status()["done"] == count, "all are settled")
        handled = collections.Counter(line[3] for line in worker.said("start"))
        self.assertEqual(set(handled.values()), {1})

    def test_retry_reject_and_curve_at_a_spool_of_its_own(self):
        """The commands make keys, serve the spool, publish and show what became of it."""
        def dray(*arguments):
            return subprocess.run([DRAY, *arguments], check=True, capture_output=True, text=True).stdout

        for name in ("spool", "python"):
            dray("keygen", name, "--dir", f"{self.folder}/keys")
        with open(f"{self.folder}/keys/python.public") as public, open(f"{self.folder}/allow.toml", "w") as allow:
            allow.write("[worker]\n" + public.read().replace("public", "python"))
        self.keep(Producer(self.folder)).kill()      # makes the spool and its group
        self.keep(Process(DRAY, "run", "--spool", f"{self.folder}/spool", "--bind", "tcp://0.0.0.0:*",
                          "--secret", f"{self.folder}/keys/spool.secret", "--allow", f"{self.folder}/allow.toml"))
        wait_until(lambda: os.path.exists(f"{self.folder}/spool/admin.sock"), "the spool is served")
        bound = json.loads(dray("status", "--json", f"{self.folder}/spool"))["spools"][0]["endpoint"]
        self.endpoint = f"tcp://127.0.0.1:{bound.rpartition(':')[2]}"
        stranger = self.worker()
        worker = self.worker("--server", f"{self.folder}/keys/spool.public",
                             "--secret", f"{self.folder}/keys/python.secret")
        for number, do in ((1, ""), (2, "retry"), (3, "reject")):
            dray("publish", f"{self.folder}/spool", "numbered", json.dumps({"number": number, "do": do}))

        def group():
            return json.loads(dray("status", "--json", f"{self.folder}/spool"))["spools"][0]["groups"][0]
        wait_until(lambda: group()["done"] == 2 and group()["dead"] == 1, "done, retried, rejected")
        self.assertEqual(sorted((line[3], line[2]) for line in worker.said("start")),
                         [("1", "1"), ("2", "1"), ("2", "2"), ("3", "1")])
        dead = json.loads(dray("dead", "list", f"{self.folder}/spool", "g", "--json"))["dead"]
        self.assertEqual([each["reason"] for each in dead], ["as asked"])
        self.assertEqual(stranger.said("start"), [])
        self.assertEqual(worker.drain(), 0)


if __name__ == "__main__":
    unittest.main()
