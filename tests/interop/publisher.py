"""A publisher in Python, written from PROTOCOL.md alone: pyzmq and msgpack, nothing of Dray's.

    publisher.py ENDPOINT TOPIC FIRST COUNT [--per-second N] [--secret FILE --server FILE]

Publishes COUNT bodies {"number": n}, from FIRST on, and says "receipt NUMBER SEQUENCE" for each that is
accepted and "refused NUMBER CODE" for each that is not. Ends when all have an answer. With --per-second
no faster than that, and no more after the end of standard input.
"""
import argparse
import select
import sys
import time
import uuid

import msgpack

from wire import Peer

BYE, HEARTBEAT, PUBLISHER, DEPOSIT = range(4, 8)
REFUSED, WELCOME, RECEIPTS = 17, 21, 22


def envelope(topic, body):
    # id and time are given by the spool
    return msgpack.packb([uuid.uuid4().bytes, topic, None, 1, int(time.time() * 1000), None, None, None, b"",
                          msgpack.packb(body)])


class Publisher(Peer):
    def __init__(self, options):
        self.id = uuid.uuid4().bytes
        self.messages = []       # Deposit 1 is the first message. None: it had its receipt.
        self.began = time.monotonic()
        self.count = options.count
        self.lowest = 1          # without a receipt
        self.hellos = 0
        self.spool = None
        super().__init__(options)

    def say_hello(self):
        self.welcomed = False
        self.hellos += 1
        self.send(PUBLISHER, [self.id, "python", self.lowest, self.hellos])
        self.hello_at = time.monotonic()

    def deposit(self):
        while self.welcomed and self.next <= len(self.messages):
            items, first = [], self.next
            out = sum(len(message or b"") for message in self.messages[self.lowest - 1:self.next - 1])
            while (self.next <= len(self.messages) and len(items) < 100
                   and self.next - self.lowest < self.window):
                message = self.messages[self.next - 1] or b""
                if out > 0 and out + len(message) > self.window_bytes:
                    break
                out += len(message)
                items.append([0, message])
                self.next += 1
            if not items:
                return
            self.send(DEPOSIT, [first, self.lowest, items])

    def on_frame(self, kind, body):
        if kind == WELCOME:
            spool, _, lease_ms, self.window, self.window_bytes, _ = body[:6]
            assert self.spool in (None, spool), "another spool"
            self.spool, self.lease = spool, lease_ms / 1000
            self.next, self.welcomed = self.lowest, True
        elif kind == RECEIPTS and self.welcomed:
            for number, code, _reason, _id, sequence, *_ in body[0]:
                if self.messages[number - 1] is None:
                    continue
                self.messages[number - 1] = None
                what = ("refused", code) if code else ("receipt", sequence)
                print(what[0], self.options.first + number - 1, what[1], flush=True)
            while self.lowest <= len(self.messages) and self.messages[self.lowest - 1] is None:
                self.lowest += 1
        elif kind == REFUSED:
            self.welcomed = False

    def publish(self):
        due = self.count
        if self.options.per_second:
            due = min(due, int((time.monotonic() - self.began) * self.options.per_second) + 1)
            if select.select([sys.stdin], [], [], 0)[0]:
                self.count = due = len(self.messages)
        self.messages += [envelope(self.options.topic, {"number": self.options.first + i})
                          for i in range(len(self.messages), due)]

    def run(self):
        while self.lowest <= self.count:
            self.publish()
            self.keep_session(HEARTBEAT)
            self.deposit()
            self.poll(10 if self.options.per_second else 50)
        self.send(BYE, [])
        self.close()
        self.context.term()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("endpoint")
    parser.add_argument("topic")
    parser.add_argument("first", type=int)
    parser.add_argument("count", type=int)
    parser.add_argument("--per-second", type=int)
    parser.add_argument("--secret")
    parser.add_argument("--server")
    Publisher(parser.parse_args()).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
