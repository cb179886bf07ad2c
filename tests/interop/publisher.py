"""A publisher in Python, written from PROTOCOL.md alone: pyzmq and msgpack, nothing of Dray's.

    publisher.py ENDPOINT TOPIC FIRST COUNT [--secret FILE --server FILE]

Publishes COUNT bodies {"number": n}, from FIRST on, and says "receipt NUMBER SEQUENCE" for each that is
accepted and "refused NUMBER CODE" for each that is not. Ends when all have an answer.
"""
import argparse
import sys
import time
import tomllib
import uuid

import msgpack
import zmq

BYE, HEARTBEAT, PUBLISHER, DEPOSIT = range(4, 8)
REFUSED, WELCOME, RECEIPTS = 17, 21, 22
MAGIC = b"DR\x00"


def read_keys(path):
    with open(path, "rb") as file:
        return tomllib.load(file)


def envelope(topic, body):
    # id and time are given by the spool
    return msgpack.packb([uuid.uuid4().bytes, topic, None, 1, int(time.time() * 1000), None, None, None, b"",
                          msgpack.packb(body)])


class Publisher:
    def __init__(self, options):
        self.options = options
        self.id = uuid.uuid4().bytes
        self.context = zmq.Context()
        # Deposit 1 is the first message. None: it had its receipt.
        self.messages = [envelope(options.topic, {"number": options.first + i}) for i in range(options.count)]
        self.lowest = 1          # without a receipt
        self.spool = None
        self.connect()

    def connect(self):
        self.socket = self.context.socket(zmq.DEALER)
        self.socket.linger = 500
        self.socket.immediate = True
        if self.options.server:
            own = read_keys(self.options.secret)
            self.socket.curve_serverkey = read_keys(self.options.server)["public"].encode()
            self.socket.curve_publickey = own["public"].encode()
            self.socket.curve_secretkey = own["secret"].encode()
        self.monitor = self.socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED)
        self.socket.connect(self.options.endpoint)
        self.lease = 10.0
        self.heard_at = self.sent_at = time.monotonic()
        self.welcomed, self.hello_at = False, 0.0

    def send(self, kind, body):
        try:
            self.socket.send(MAGIC + bytes([kind]) + msgpack.packb(body), zmq.DONTWAIT)
            self.sent_at = time.monotonic()
        except zmq.Again:
            pass      # no connection: the next session repeats it

    def say_hello(self):
        self.welcomed = False
        self.send(PUBLISHER, [self.id, "python", self.lowest])
        self.hello_at = time.monotonic()

    def deposit(self):
        while self.welcomed and self.next <= len(self.messages):
            items, first = [], self.next
            while self.next <= len(self.messages) and len(items) < 100 and self.outstanding < self.window:
                message = self.messages[self.next - 1]
                self.outstanding += message is not None
                items.append([0, message or b""])
                self.next += 1
            if not items:
                return
            self.send(DEPOSIT, [first, items])

    def on_frame(self, kind, body):
        self.heard_at = time.monotonic()
        if kind == WELCOME:
            spool, _, lease_ms, self.window, _, _ = body[:6]
            assert self.spool in (None, spool), "another spool"
            self.spool, self.lease = spool, lease_ms / 1000
            self.next, self.outstanding, self.welcomed = self.lowest, 0, True
        elif kind == RECEIPTS and self.welcomed:
            for number, code, _reason, _id, sequence, *_ in body[0]:
                if self.messages[number - 1] is None:
                    continue
                self.messages[number - 1] = None
                self.outstanding -= 1
                what = ("refused", code) if code else ("receipt", sequence)
                print(what[0], self.options.first + number - 1, what[1], flush=True)
            while self.lowest <= len(self.messages) and self.messages[self.lowest - 1] is None:
                self.lowest += 1
        elif kind == REFUSED:
            self.welcomed = False

    def run(self):
        while self.lowest <= len(self.messages):
            now = time.monotonic()
            if now - self.heard_at > self.lease:
                self.socket.disable_monitor()
                self.monitor.close(linger=0)
                self.socket.close()
                self.connect()
            if not self.welcomed and now - self.hello_at > 0.2:
                self.say_hello()
            if self.welcomed and now - self.sent_at > self.lease / 4:
                self.send(HEARTBEAT, [])
            self.deposit()
            poller = zmq.Poller()
            poller.register(self.socket, zmq.POLLIN)
            poller.register(self.monitor, zmq.POLLIN)
            ready = dict(poller.poll(50))
            if self.monitor in ready:       # a new connection: a new session
                self.monitor.recv_multipart()
                self.say_hello()
            while ready and self.socket.poll(0):
                frame = self.socket.recv()
                if frame[:3] == MAGIC:
                    self.on_frame(frame[3], msgpack.unpackb(frame[4:]))
        self.send(BYE, [])
        self.socket.disable_monitor()
        self.socket.close()
        self.monitor.close(linger=0)
        self.context.term()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("endpoint")
    parser.add_argument("topic")
    parser.add_argument("first", type=int)
    parser.add_argument("count", type=int)
    parser.add_argument("--secret")
    parser.add_argument("--server")
    Publisher(parser.parse_args()).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
