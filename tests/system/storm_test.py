"""The spool and a hostile world: processes killed, calls that fail, power cut under a real kernel.

A writer (spool_storm) publishes and settles for ever and says what it was promised. After each blow
a reader recovers the spool; what was promised must be true:

    accepted, settlement never submitted   -> open
    settlement durable                     -> not open

    storm_test.py Kills|Faults|PowerCuts     one of them
    storm_test.py PowerCuts --cuts 1000      more power cuts
"""
import fcntl
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest

BIN = os.environ["DRAY_BIN"]
STORM = os.path.join(BIN, "spool_storm")
DEEP = int(os.environ.get("DRAY_TEST_DEEP", "1"))
# Of the usual number of blows, for slow builds.
SHARE = float(os.environ.get("DRAY_STORM_SHARE", "1"))
CUTS = int(120 * DEEP * SHARE)
KILLS = int(300 * DEEP * SHARE)
SEED = int(os.environ.get("DRAY_TEST_SEED", str(random.randrange(1 << 32))))


class Promises:
    """What the writer said, over all its lives."""

    def __init__(self):
        self.accepted, self.submitted, self.settled = set(), set(), set()

    def hear(self, text):
        for line in text.splitlines():
            kind, _, number = line.partition(" ")
            if not number.isdigit():
                continue
            {"A": self.accepted, "T": self.submitted, "S": self.settled}[kind].add(int(number))

    def faults(self, open_now):
        lost = (self.accepted - self.submitted) - open_now
        back = self.settled & open_now
        out = []
        if lost:
            out.append(f"{len(lost)} accepted messages are lost, the first {min(lost)}")
        if back:
            out.append(f"{len(back)} settled messages are back, the first {min(back)}")
        return out

    def forget_unknown(self, open_now):
        """From here on only what is open can change."""
        self.accepted = set(open_now)
        self.submitted.clear()
        self.settled.clear()


class Writer:
    def __init__(self, folder, *more, wrap=()):
        # LeakSanitizer cannot work under strace, and ends the process with its own exit code.
        environment = dict(os.environ)
        if wrap:
            environment["ASAN_OPTIONS"] = "detect_leaks=0"
        self.process = subprocess.Popen([*wrap, STORM, "write", folder, *more], env=environment,
                                        stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        os.set_blocking(self.process.stdout.fileno(), False)
        self.rest = b""

    def heard(self):
        """All whole lines so far."""
        while True:
            try:
                piece = os.read(self.process.stdout.fileno(), 1 << 20)
            except BlockingIOError:
                break
            if not piece:
                break
            self.rest += piece
        lines, newline, self.rest = self.rest.rpartition(b"\n")
        return (lines + newline).decode()

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        heard = self.heard()
        self.process.stdout.close()
        self.process.stderr.close()
        return heard


def read(folder):
    """The open messages; raises if the reader finds a fault."""
    done = subprocess.run([STORM, "read", folder], capture_output=True, text=True, timeout=60)
    if done.returncode != 0:
        raise AssertionError(f"the reader: {done.stderr.strip()}")
    return {int(line[2:]) for line in done.stdout.splitlines() if line.startswith("O ")}


class Storm(unittest.TestCase):
    def setUp(self):
        print(f"seed {SEED} (repeat with DRAY_TEST_SEED={SEED})", flush=True)
        random.seed(SEED)
        self.folder = tempfile.mkdtemp(prefix="dray-storm-", dir=os.environ.get("DRAY_STORM_DIR"))
        self.addCleanup(shutil.rmtree, self.folder, True)
        self.spool = os.path.join(self.folder, "spool")
        self.promises = Promises()

    def check(self, what):
        open_now = read(self.spool)
        self.assertEqual(self.promises.faults(open_now), [], what)
        self.promises.forget_unknown(open_now)


class Kills(Storm):
    def test_nothing_promised_is_broken_by_300_kills(self):
        for kill in range(KILLS):
            writer = Writer(self.spool)
            time.sleep(random.uniform(0.005, 0.06))
            self.promises.hear(writer.kill())
            self.check(f"kill {kill}")


class Faults(Storm):
    """System calls of the unmodified binary fail, by strace."""

    def setUp(self):
        super().setUp()
        if shutil.which("strace") is None:
            self.skipTest("strace is not installed")
        probe = subprocess.run(["strace", "-o", "/dev/null", "true"], capture_output=True)
        if probe.returncode != 0:
            self.skipTest("strace may not trace here")

    def run_with(self, inject, seconds=0.4):
        wrap = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={inject.partition(':')[0]}",
                "-e", f"inject={inject}"]
        writer = Writer(self.spool, wrap=wrap)
        deadline = time.monotonic() + seconds
        while writer.process.poll() is None and time.monotonic() < deadline:
            self.promises.hear(writer.heard())  # a full pipe would stop it before the fault
            time.sleep(0.005)
        code = writer.process.poll()
        subprocess.run(["pkill", "-KILL", "-f", f"spool_storm write {self.spool}"], check=False)
        self.promises.hear(writer.kill())
        self.wait_for_end()
        self.check(inject)
        return code

    def wait_for_end(self):
        """The traced process may outlive its tracer, and even its own name: its threads hold the lock
        until the last of their writes has ended."""
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and os.path.exists(f"{self.spool}/lock"):
            with open(f"{self.spool}/lock", "rb") as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    return
                except BlockingIOError:
                    time.sleep(0.01)

    def test_a_failed_call_ends_the_process_and_breaks_no_promise(self):
        self.assertEqual(self.run_with("pwritev2:error=EIO:when=5+", 30), 3)
        self.assertEqual(self.run_with("fdatasync:error=EIO:when=2+", 30), 3)
        ended = 0
        for call, error in [("pwritev2", "EIO"), ("pwrite64", "EIO"), ("fdatasync", "EIO"),
                            ("fsync", "EIO"), ("renameat", "EIO"), ("unlinkat", "EIO")]:
            for _ in range(3):
                # Once, or from then on; counted per thread.
                first = random.randrange(1, 15)
                more = random.choice(["", "+"])
                ended += self.run_with(f"{call}:error={error}:when={first}{more}") == 3
        self.assertGreater(ended, 0)

    def test_a_full_disk_breaks_no_promise(self):
        for call in ("pwritev2", "pwrite64", "fallocate", "openat"):
            for first in (random.randrange(5, 30), random.randrange(30, 80)):
                self.run_with(f"{call}:error=ENOSPC:when={first}+{random.randrange(2, 9)}")
                self.run_with(f"{call}:error=ENOSPC:when={first}+")

    def test_interrupted_calls_are_repeated(self):
        for call in ("pwritev2", "pwrite64", "pread64"):
            self.assertNotEqual(self.run_with(f"{call}:error=EINTR:when=3+2"), 3)

    def test_short_writes(self):
        # The kernel writes up to the limit and says so, then refuses.
        for limit in (300, 700, 1000):
            wrap = ["bash", "-c", f'trap "" XFSZ; ulimit -f {limit // 4}; exec "$@"', "bash"]
            writer = Writer(self.spool, wrap=wrap)
            time.sleep(0.3)
            self.promises.hear(writer.kill())
            self.check(f"files of at most {limit} KiB")


class PowerCuts(Storm):
    """An ext4 image on XFS, cloned at random instants: what a power cut leaves."""

    def setUp(self):
        super().setUp()
        self.mounted = []
        self.addCleanup(self.unmount_all)
        try:
            self.make_disk()
        except (subprocess.CalledProcessError, FileNotFoundError) as fault:
            print(f"SKIPPED: loop mounts are not possible here: {fault}", flush=True)
            self.skipTest(f"loop mounts are not possible here: {fault}")

    def run_quietly(self, *command):
        subprocess.run(command, check=True, capture_output=True, timeout=60)

    def mount(self, image, point):
        os.makedirs(point, exist_ok=True)
        self.run_quietly("mount", "-o", "loop", image, point)
        self.mounted.append(point)

    def unmount(self, point):
        for _ in range(50):
            if subprocess.run(["umount", point], capture_output=True).returncode == 0:
                break
            time.sleep(0.02)
        self.mounted.remove(point)

    def unmount_all(self):
        for point in list(reversed(self.mounted)):
            self.unmount(point)

    def make_disk(self):
        below = os.path.join(self.folder, "xfs.img")
        self.below = os.path.join(self.folder, "xfs")
        with open(below, "wb") as image:
            image.truncate(600 << 20)
        self.run_quietly("mkfs.xfs", "-q", "-m", "reflink=1", below)
        self.mount(below, self.below)
        self.image = os.path.join(self.below, "disk.img")
        with open(self.image, "wb") as image:
            image.truncate(96 << 20)
        self.run_quietly("mkfs.ext4", "-q", "-F", self.image)
        self.disk = os.path.join(self.folder, "disk")
        self.mount(self.image, self.disk)

    def cut(self, writer):
        """Faults found after the power went at this instant."""
        self.promises.hear(writer.heard())
        promised = Promises()
        promised.accepted = set(self.promises.accepted)
        promised.settled = set(self.promises.settled)
        clone = os.path.join(self.below, "clone.img")
        self.run_quietly("cp", "--reflink=always", self.image, clone)
        # What was submitted until now may be in the clone.
        self.promises.hear(writer.heard())
        promised.submitted = set(self.promises.submitted)
        point = os.path.join(self.folder, "clone")
        self.mount(clone, point)
        try:
            return promised.faults(read(os.path.join(point, "spool")))
        except AssertionError as fault:
            return [str(fault)]
        finally:
            self.unmount(point)
            os.remove(clone)

    def storm(self, cuts, *more):
        spool = os.path.join(self.disk, "spool")
        writer = Writer(spool, *more)
        time.sleep(0.3)
        faults = []
        try:
            for _ in range(cuts):
                time.sleep(random.uniform(0, 0.02))
                if writer.process.poll() is not None:
                    self.fail("the writer ended: " + writer.process.stderr.read().decode())
                faults += self.cut(writer)
        finally:
            writer.kill()
        return faults

    def test_nothing_promised_is_broken_by_power_cuts(self):
        started = time.time()
        faults = self.storm(CUTS)
        print(f"{CUTS} power cuts in {time.time() - started:.0f} s, "
              f"{len(self.promises.accepted)} messages accepted", flush=True)
        self.assertEqual(faults, [])

    def test_the_test_sees_a_spool_that_does_not_sync(self):
        self.assertNotEqual(self.storm(10, "--no-sync"), [])


if __name__ == "__main__":
    if "--cuts" in sys.argv:
        at = sys.argv.index("--cuts")
        CUTS = int(sys.argv[at + 1])
        del sys.argv[at:at + 2]
    unittest.main(verbosity=2)
