"""What the system tests share: a shop of their own in a temporary folder, on free ports."""
import http.client
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time

BIN = os.environ["DRAY_BIN"]
CONFIG = os.environ["DRAY_SHOP_CONFIG"]
DRAY = os.path.join(BIN, "dray")

claimed_ports = {}


def free_port():
    """A port for this process's servers, also for one that is stopped and started again.

    Below the range from which the kernel takes ports for connections: such a port is free now and
    may be a connection's, of a neighbouring test or the probe's own, before the server binds it.
    Neighbours see it is taken by an abstract UNIX socket, which goes when this process does.
    """
    with open("/proc/sys/net/ipv4/ip_local_port_range", encoding="ascii") as file:
        below = max(int(file.read().split()[0]), 20000)
    for port in random.sample(range(10000, below), below - 10000):
        claim = socket.socket(socket.AF_UNIX)
        try:
            claim.bind(f"\0dray-test-port-{port}")
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(("127.0.0.1", port))
        except OSError:
            claim.close()
            continue
        claimed_ports[port] = claim
        return port
    raise AssertionError("no port is free")


def wait_until(condition, what, seconds=30):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.02)   # the bound is there to fail, not to pace
    raise AssertionError(f"{what}: not within {seconds} s")


def order_body(name="Jane", email="jane@example.org", product="rope", quantity=2):
    return {"customer": {"name": name, "email": email},
            "lines": [{"product": product, "quantity": quantity}]}


class Shop:
    def __init__(self, deliver=None, config=None):
        self.folder = tempfile.mkdtemp(prefix="dray-")
        self.port = free_port()
        self.config = config or CONFIG
        self.environment = dict(
            os.environ, DRAY_DATA=self.folder, DRAY_SHOP_LISTEN=f"127.0.0.1:{self.port}",
            DRAY_SHOP_DELIVER=deliver or f"maildir:{self.folder}/mail")
        self.log_path = os.path.join(self.folder, "log")
        self.launchers = []

    def start(self, *apps):
        command = [DRAY, "run", self.config]
        for app in apps:
            command += ["--app", app]
        with open(self.log_path, "ab") as log:
            launcher = subprocess.Popen(command, env=self.environment, stdout=log, stderr=log)
        self.launchers.append(launcher)
        return launcher

    def wait_open(self):
        def answers():
            try:
                return self.request("GET", "/catalogue")[0] == 200
            except OSError:
                return False
        try:
            wait_until(answers, "the shop opens")
        except AssertionError as late:
            raise AssertionError(f"{late}; port {self.port}; its log ends:\n{self.log()[-4000:]}") from late

    def log(self):
        with open(self.log_path, encoding="utf-8", errors="replace") as file:
            return file.read()

    def request(self, method, path, body=None, headers=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            if isinstance(body, (dict, list)):
                body = json.dumps(body)
            sent = {"Content-Type": "application/json"} if body is not None else {}
            sent.update(headers or {})
            connection.request(method, path, body, sent)
            response = connection.getresponse()
            return response.status, response.read(), dict(response.getheaders())
        finally:
            connection.close()

    def order(self, **fields):
        status, body, _ = self.request("POST", "/orders", order_body(**fields))
        assert status == 202, (status, body)
        return json.loads(body)["order_id"]

    def state(self, order_id):
        status, body, _ = self.request("GET", f"/orders/{order_id}")
        assert status == 200, (status, body)
        return json.loads(body)

    def dray(self, *arguments, code=0):
        result = subprocess.run([DRAY, *arguments], env=self.environment, capture_output=True,
                                text=True, timeout=60, check=False)
        if code is not None:   # None: whatever it may be
            assert result.returncode == code, (arguments, result.returncode, result.stdout,
                                               result.stderr)
        return result.stdout + result.stderr

    def group(self, name):
        status = json.loads(self.dray("status", "--json", self.config))["spools"][0]
        return next(group for group in status["groups"] if group["name"] == name)

    def stop(self):
        for launcher in reversed(self.launchers):
            if launcher.poll() is None:
                launcher.send_signal(signal.SIGTERM)
            try:
                launcher.wait(30)
            except subprocess.TimeoutExpired:
                launcher.kill()
        shutil.rmtree(self.folder, ignore_errors=True)
