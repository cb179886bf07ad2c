"""What a hostile or broken peer can do to a spool that serves others, and what that costs them: nothing.

A spool with CURVE on TCP, a good worker in Python, and beside it one that does not behave.
"""
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import unittest
import uuid

import msgpack
import zmq

INTEROP = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "interop")
sys.path.insert(0, INTEROP)
from interop_test import DRAY, Process, Producer, wait_until   # noqa: E402
from wire import MAGIC, read_keys                                     # noqa: E402

SLACK = float(os.environ.get("DRAY_TEST_SLACK", "1"))    # of sanitizers' builds
HELLO, WINDOW, RESULT, BYE, HEARTBEAT = range(1, 6)
WELCOME, REFUSED, DELIVER = range(16, 19)


class Stranger(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.mkdtemp(prefix="dray-st-")
        self.addCleanup(shutil.rmtree, self.folder, True)
        for name in ("spool", "good", "bad"):
            self.dray("keygen", name, "--dir", f"{self.folder}/keys")
        with open(f"{self.folder}/allow.toml", "w", encoding="utf-8") as allow:
            allow.write("[worker]\n")
            for name in ("good", "bad"):
                with open(f"{self.folder}/keys/{name}.public", encoding="utf-8") as public:
                    allow.write(public.read().replace("public", name))
        first = Producer(self.folder)      # makes the spool and its group
        first.kill()
        self.spool = Process(DRAY, "run", "--spool", f"{self.folder}/spool", "--bind", "tcp://127.0.0.1:*",
                             "--secret", f"{self.folder}/keys/spool.secret",
                             "--allow", f"{self.folder}/allow.toml")
        self.addCleanup(self.spool.kill)
        wait_until(lambda: os.path.exists(f"{self.folder}/spool/admin.sock"), "the spool is served")
        endpoint = self.status()["endpoint"]
        self.port = int(endpoint.rpartition(":")[2])
        self.endpoint = f"tcp://127.0.0.1:{self.port}"
        self.context = zmq.Context()
        self.addCleanup(self.context.destroy, 0)
        self.published = 0

    def dray(self, *arguments):
        return subprocess.run([DRAY, *arguments], check=True, capture_output=True, text=True).stdout

    def status(self):
        return json.loads(self.dray("status", "--json", f"{self.folder}/spool"))["spools"][0]

    def group(self):
        return self.status()["groups"][0]

    def memory(self):
        with open(f"/proc/{self.spool.process.pid}/statm", encoding="utf-8") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")

    def good_worker(self):
        worker = Process(sys.executable, f"{INTEROP}/worker.py", self.endpoint, "g",
                         "--server", f"{self.folder}/keys/spool.public",
                         "--secret", f"{self.folder}/keys/good.secret")
        self.addCleanup(worker.kill)
        return worker

    def bad_peer(self, **options):
        peer = self.context.socket(zmq.DEALER)
        self.addCleanup(peer.close, 0)
        peer.linger = 0
        keys = read_keys(f"{self.folder}/keys/bad.secret")
        peer.curve_publickey, peer.curve_secretkey = keys["public"].encode(), keys["secret"].encode()
        peer.curve_serverkey = read_keys(f"{self.folder}/keys/spool.public")["public"].encode()
        for name, value in options.items():
            setattr(peer, name, value)
        peer.connect(self.endpoint)
        return peer

    def hello(self, peer, window=100, session=None, count=1):
        peer.send(MAGIC + bytes([HELLO]) + msgpack.packb(
            [session or uuid.uuid4().bytes, "bad", "g", window, 1 << 40, 3, 50, 1000, 0.2, [], count]))

    def hear(self, peer, kind, seconds=10):
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if peer.poll(50):
                frame = peer.recv_multipart()[0]
                if frame[3] == kind:
                    return msgpack.unpackb(frame[4:])
        raise AssertionError(f"no frame of kind {kind} within {seconds} s")

    def all_is_well(self, _worker, more=20):
        """What is published now is handled by the good worker, soon."""
        for _ in range(more):
            self.dray("publish", f"{self.folder}/spool", "numbered", json.dumps({"number": self.published}))
            self.published += 1
        wait_until(lambda: self.group()["pending"] == 0, "all is settled", 20 * SLACK)
        self.assertEqual(self.group()["dead"], 0)
        self.assertIsNone(self.spool.process.poll())

    def test_whoever_connects_and_says_nothing_or_nonsense_is_cut_off(self):
        worker = self.good_worker()
        silent = socket.create_connection(("127.0.0.1", self.port))
        babbling = socket.create_connection(("127.0.0.1", self.port))
        babbling.sendall(os.urandom(1 << 16))
        # A greeting of ZMTP 3.1 that wants no security.
        plain = socket.create_connection(("127.0.0.1", self.port))
        plain.sendall(b"\xff" + bytes(8) + b"\x7f\x03\x01NULL" + bytes(16) + b"\x00" + bytes(31)
                      + b"\x04\x1a\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER")
        self.all_is_well(worker)
        for each in (silent, babbling, plain):
            each.settimeout(15)      # the handshake may take 2 s
            try:
                while each.recv(1 << 16):
                    pass
            except ConnectionResetError:
                pass
            each.close()

    def test_a_frame_that_is_too_large_ends_its_connection_alone(self):
        worker = self.good_worker()
        before = self.memory()
        bad = self.bad_peer()
        self.hello(bad)
        self.hear(bad, WELCOME)
        bad.send(MAGIC + bytes([HEARTBEAT]) + bytes(65 << 20))
        self.all_is_well(worker)
        self.assertLess(self.memory() - before, SLACK * (256 << 20))

    def test_messages_of_many_frames_and_of_strange_kinds_are_dropped(self):
        worker = self.good_worker()
        bad = self.bad_peer()
        for _ in range(20):
            bad.send_multipart([b"x" * 1024] * 5_001)
        for kind in (0, 9, 15, 16, 18, 25, 255):
            bad.send(MAGIC + bytes([kind]) + msgpack.packb([]))
        for frame in (b"", b"D", MAGIC, MAGIC + b"\x01", b"DR\x07\x05\x90",
                      MAGIC + bytes([RESULT]) + b"\xdd\xff\xff\xff\xff"):
            bad.send(frame)
        self.hear(bad, REFUSED)
        self.all_is_well(worker)

    def test_one_that_takes_everything_and_reads_nothing_holds_nobody_up(self):
        bad = self.bad_peer(rcvhwm=1, rcvbuf=4096)
        self.hello(bad, window=4_000_000_000)
        wait_until(lambda: self.group()["workers"] == 1, "its session")
        for _ in range(50):      # what it is given lies in its pipe
            self.dray("publish", f"{self.folder}/spool", "numbered", json.dumps({"number": self.published}))
            self.published += 1
        worker = self.good_worker()
        self.all_is_well(worker)     # within its lease and a little more, though it is still connected
        self.assertEqual(self.group()["done"], self.published)

    def test_answers_that_name_a_million_deliveries_of_nobody_hold_nobody_up(self):
        worker = self.good_worker()
        bad = self.bad_peer()
        self.hello(bad, window=0)
        epoch = self.hear(bad, WELCOME)[1]
        # 20 bytes each: a retry of the messages 1 to 2^20.
        frame = MAGIC + bytes([RESULT]) + msgpack.packb([[[1, epoch, 1, [1, 1 << 20], "", -1, []]]])
        for _ in range(2_000):
            bad.send(frame)
        began = time.monotonic()
        self.all_is_well(worker)
        self.assertLess(time.monotonic() - began, 8 * SLACK)   # one by one: 24 s

    def test_a_flood_of_sessions_and_a_stolen_name_leave_others_alone(self):
        first = self.bad_peer(routing_id=b"somebody")
        self.hello(first, window=0)
        self.hear(first, WELCOME)
        second = self.bad_peer(routing_id=b"somebody")
        self.hello(second, window=0)
        flood = self.bad_peer()
        for _ in range(10_000):
            self.hello(flood, window=0)
        worker = self.good_worker()
        self.all_is_well(worker)
        self.assertLess(self.group()["workers"], 5)
        # The first of that name still has its session.
        first.send(MAGIC + bytes([HEARTBEAT]) + msgpack.packb([]))
        self.assertFalse(second.poll(500))

    def test_connections_that_come_and_go_cost_nothing_that_stays(self):
        worker = self.good_worker()
        self.all_is_well(worker, 1)
        descriptors = f"/proc/{self.spool.process.pid}/fd"
        before = len(os.listdir(descriptors))

        def knock():
            for _ in range(300):
                try:
                    with socket.create_connection(("127.0.0.1", self.port)) as each:
                        each.sendall(b"\xff" + bytes(9))
                except OSError:
                    pass
        threads = [threading.Thread(target=knock) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.all_is_well(worker)
        wait_until(lambda: len(os.listdir(descriptors)) <= before + 3, "their descriptors are closed", 15 * SLACK)


if __name__ == "__main__":
    unittest.main()
