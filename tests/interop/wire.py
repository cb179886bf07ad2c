"""What the worker and the publisher in Python share: a DEALER socket, its keys, frames, and time."""
import time
import tomllib

import msgpack
import zmq

MAGIC = b"DR\x00"
DELIVER = 18     # the one kind with a second frame


def read_keys(path):
    with open(path, "rb") as file:
        return tomllib.load(file)


class Peer:
    """One side of a session. Its owner says what is said on a new connection, and takes the frames."""

    def __init__(self, options):
        self.options = options
        self.context = zmq.Context()
        self.connect()

    def connect(self):
        self.socket = self.context.socket(zmq.DEALER)
        self.socket.linger = 500
        self.socket.immediate = True
        if self.options.server:      # key files, as `dray keygen` makes them
            own = read_keys(self.options.secret)
            self.socket.curve_serverkey = read_keys(self.options.server)["public"].encode()
            self.socket.curve_publickey = own["public"].encode()
            self.socket.curve_secretkey = own["secret"].encode()
        self.monitor = self.socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED)
        self.socket.connect(self.options.endpoint)
        self.lease = 10.0
        self.welcomed = False
        self.heard_at = self.sent_at = time.monotonic()
        self.hello_at = 0.0

    def close(self):
        self.socket.disable_monitor()
        self.monitor.close(linger=0)
        self.socket.close()

    def send(self, kind, body):
        try:
            self.socket.send(MAGIC + bytes([kind]) + msgpack.packb(body), zmq.DONTWAIT)
            self.sent_at = time.monotonic()
        except zmq.Again:
            pass      # no connection: the next session tells it all again

    def poll(self, timeout_ms):
        """Says hello on a new connection, and hands what came to on_frame()."""
        poller = zmq.Poller()
        poller.register(self.socket, zmq.POLLIN)
        poller.register(self.monitor, zmq.POLLIN)
        poller.poll(timeout_ms)
        connected = False
        while self.monitor.poll(0):
            self.monitor.recv_multipart()
            connected = True
        if connected:
            self.say_hello()         # first of all
        while self.socket.poll(0):
            first, *rest = self.socket.recv_multipart()
            self.heard_at = time.monotonic()
            kind = first[3] if first[:3] == MAGIC else None
            if kind is not None and len(rest) == (1 if kind == DELIVER else 0):
                body = msgpack.unpackb(first[4:], strict_map_key=False)
                self.on_frame(kind, [*body, *rest])

    def keep_session(self, heartbeat):
        now = time.monotonic()
        if not self.welcomed and now - self.hello_at > min(self.lease / 4, 1):
            self.say_hello()
        if self.welcomed and now - self.sent_at > self.lease / 4:
            self.send(heartbeat, [])
        if now - self.heard_at > self.lease:     # a broken path may be noticed by neither end
            self.close()
            self.connect()
