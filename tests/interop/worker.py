"""A worker in Python, written from PROTOCOL.md alone: pyzmq and msgpack, nothing of Dray's.

    worker.py ENDPOINT GROUP [--window N] [--secret FILE --server FILE]

Says "start SEQUENCE ATTEMPT BODY" for each message and "confirmed SEQUENCE" for each answer that is
durable. What it does with a message is in its body, {"number": n, "do": ...}: "retry" fails its first
attempt, "reject" always; all others are done. SIGTERM drains.
"""
import argparse
import signal
import struct
import sys
import time
import uuid

import msgpack

from wire import Peer

HELLO, WINDOW, RESULT, BYE, HEARTBEAT = range(1, 6)
WELCOME, REFUSED, DELIVER, CONFIRM, BACKLOG = range(16, 21)
DONE, RETRY, SNOOZE, REJECT, RETURNED = range(5)
WINDOW_BYTES = 1 << 20


def pack_runs(sequences):
    """Ascending sequences as pairs (gap, length) in one flat array: FORMATS.md."""
    runs, at = [], 0
    for each in sorted(sequences):
        if runs and each == at:
            runs[-1] += 1
        else:
            runs += [each - at, 1]
        at = each + 1
    return runs


def unpack_runs(runs):
    at = 0
    for gap, length in zip(runs[::2], runs[1::2]):
        at += gap
        yield from range(at, at + length)
        at += length


def unpack_records(records):
    """Sequence and envelope of each: a header of 32 bytes, the envelope, zeros up to a multiple of 8."""
    at = 0
    while at < len(records):
        size, sequence = struct.unpack_from("<IQ", records, at + 4)
        yield sequence, records[at + 32:at + 32 + size]
        at += (32 + size + 7) // 8 * 8


class Worker(Peer):
    def __init__(self, options):
        self.session = uuid.uuid4().bytes
        self.draining = False
        self.want_drain = False
        self.spool = None
        self.hellos = 0
        self.forget()
        super().__init__(options)

    def forget(self):
        self.jobs = []        # (epoch, number, sequence, attempt, envelope): not begun
        self.answers = {}     # (epoch, number, sequence) -> item, until confirmed

    def say_hello(self):
        self.hellos += 1
        held = {}
        for epoch, number, sequence, *_ in self.jobs + [list(key) for key in self.answers]:
            held.setdefault((epoch, number), []).append(sequence)
        self.send(HELLO, [self.session, "python", self.options.group, self.window(), WINDOW_BYTES, 3, 50, 1000, 0.2,
                          [[epoch, number, pack_runs(each)] for (epoch, number), each in held.items()],
                          self.hellos])
        self.hello_at = time.monotonic()

    def window(self):
        return 0 if self.draining else self.options.window

    def handle(self, job):
        epoch, number, sequence, attempt, envelope = job
        body = msgpack.unpackb(msgpack.unpackb(envelope)[9])
        print("start", sequence, attempt, body["number"], flush=True)
        outcome, reason = DONE, ""
        if body.get("do") == "retry" and attempt == 1:
            outcome, reason = RETRY, "once more"
        if body.get("do") == "reject":
            outcome, reason = REJECT, "as asked"
        delay = -1 if outcome == RETRY else 0
        self.answer((epoch, number, sequence), [outcome, epoch, number, pack_runs([sequence]), reason, delay, []])

    def answer(self, token, item):
        self.answers[token] = item
        self.send(RESULT, [[item]])

    def on_welcome(self, body):
        spool, _, lease_ms = body[:3]
        if self.spool not in (None, spool):
            self.forget()
        self.spool = spool
        self.lease = lease_ms / 1000
        self.welcomed = True
        if self.answers:
            self.send(RESULT, [list(self.answers.values())])

    def on_deliver(self, body):
        epoch, number, attempt, *_, records = body
        for sequence, envelope in unpack_records(records):
            known = next((job for job in self.jobs if job[2] == sequence), None)
            if known:
                self.jobs.remove(known)
            before = next((token for token in self.answers if token[2] == sequence), None)
            if before and self.answers[before][0] in (DONE, REJECT):
                # It holds that already: the same answer with the new number.
                item = self.answers.pop(before)
                self.answer((epoch, number, sequence), [item[0], epoch, number, *item[3:]])
                continue
            if before:
                del self.answers[before]
            self.jobs.append((epoch, number, sequence, attempt, envelope))

    def on_confirm(self, body):
        for epoch, number, runs in body[0]:
            for sequence in unpack_runs(runs):
                if self.answers.pop((epoch, number, sequence), None):
                    print("confirmed", sequence, flush=True)
                self.jobs = [job for job in self.jobs if job[:3] != (epoch, number, sequence)]

    def on_frame(self, kind, body):
        if kind == WELCOME:
            self.on_welcome(body)
        elif kind == REFUSED:
            print("refused", body[0], flush=True)
            self.welcomed = False
        elif kind == DELIVER and self.welcomed:
            self.on_deliver(body)
        elif kind == CONFIRM:
            self.on_confirm(body)
        elif kind == BACKLOG and self.welcomed:
            self.send(WINDOW, [self.window(), WINDOW_BYTES])

    def turn(self):
        self.poll(0 if self.jobs and self.welcomed else 20)
        self.keep_session(HEARTBEAT)
        if self.jobs and not self.draining:
            self.handle(self.jobs.pop(0))

    def drain(self, *_):
        self.draining = True
        self.send(WINDOW, [0, WINDOW_BYTES])
        for epoch, number, sequence, *_ in self.jobs:
            self.answer((epoch, number, sequence), [RETURNED, epoch, number, pack_runs([sequence]), "", 0, []])
        self.jobs = []

    def run(self):
        signal.signal(signal.SIGTERM, lambda *_: setattr(self, "want_drain", True))
        deadline = None
        while not (self.draining and (not self.answers or time.monotonic() > deadline)):
            if self.want_drain and not self.draining:
                self.drain()
                deadline = time.monotonic() + 10
            self.turn()
        self.send(BYE, [])
        self.close()
        self.context.term()
        sys.exit(0 if not self.answers else 1)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("endpoint")
    parser.add_argument("group")
    parser.add_argument("--window", type=int, default=16)
    parser.add_argument("--secret")
    parser.add_argument("--server")
    Worker(parser.parse_args()).run()


if __name__ == "__main__":
    main()
