# SPDX-License-Identifier: GPL-2.0-or-later
"""ferry-vmm as a guest of the tests: what lib.py has for QEMU, with the same names.

Vmm       one ferry-vmm and the lines it prints
Port      the agent's side of its port, for tests without an agent
VmmGuest  the guest, and every ferry-vmm it has run in
VmmLab    a Lab whose guests and destinations are these; starting one takes a moment,
          so nothing is handed from test to test
"""
import fcntl
import os
import signal
import socket
import struct
import subprocess
import threading
import time

from lib import FERRY, ROOT, Lab, Qemu, read_text, wait_until
from tap import SLOW, Failed, Skip, check, check_equal

FERRY_VMM = os.environ.get("FERRY_VMM", os.path.join(os.path.dirname(FERRY), "ferry-vmm"))
# Blocks of different sizes, none but the first a multiple of 2 MiB.
RAM = "24M,9M,28K,5124K"


def have_kvm():
    return os.access("/dev/kvm", os.R_OK | os.W_OK)


def size_bytes(size):
    return int(size[:-1]) << {"K": 10, "M": 20, "G": 30}[size[-1]]


def prerequisites(ferry=True):
    for program in [FERRY_VMM] + ([FERRY] if ferry else []):
        if not os.access(program, os.X_OK):
            raise Skip("%s is not built: run make" % program)
    if ferry and os.geteuid() != 0:
        raise Skip("not root: these tests make network namespaces and read other processes")


class Vmm:
    """One ferry-vmm, started with @args besides the port."""

    _ram_mappings, _fd_kinds = Qemu._ram_mappings, Qemu._fd_kinds
    leftovers, check_clean = Qemu.leftovers, Qemu.check_clean

    def __init__(self, lab, name, *args, incoming=False, port=True, user=None):
        self.lab, self.name, self.incoming = lab, name, incoming
        self.dir = os.path.join(lab.dir, name)
        os.makedirs(self.dir)
        self.port = os.path.join(self.dir, name + ".port")
        self.stderr_path = os.path.join(self.dir, "stderr")
        self.args = [str(a) for a in args] + (["--port", self.port] if port else [])
        self.args += ["--incoming"] if incoming else []
        self._changed, self._eof, self.events = threading.Condition(), False, []
        extra = {"user": user, "group": user, "extra_groups": []} if user else {}
        with open(self.stderr_path, "w") as stderr:
            self.process = subprocess.Popen([FERRY_VMM] + self.args, stderr=stderr, text=True,
                                            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                            cwd=self.dir if not user else "/", **extra)
        threading.Thread(target=self._read, daemon=True).start()
        self.before = None

    def _read(self):
        for line in self.process.stdout:
            kind, *pairs = line.split()
            event = {name: int(value) if value.isdigit() else value
                     for name, value in (pair.split("=") for pair in pairs)}
            with self._changed:
                self.events.append(dict(event, event=kind))
                self._changed.notify_all()
        with self._changed:
            self._eof = True
            self._changed.notify_all()

    def started(self):
        """Wait until it is up; fails with what it said when it ends before."""
        self.wait_event(0, "start")
        self.before = self.traces()
        return self

    def wait_event(self, first, kind, seconds=20):
        """The first event of that kind from number @first on."""
        end = time.monotonic() + seconds * SLOW
        with self._changed:
            while True:
                for event in self.events[first:]:
                    if event["event"] == kind:
                        return event
                if self._eof:
                    raise Failed("%s ended before '%s': %s" % (self.name, kind, self.stderr))
                if not self._changed.wait(max(0, end - time.monotonic())) and \
                        time.monotonic() >= end:
                    raise Failed("%s: no '%s' within %g s" % (self.name, kind, seconds))

    @property
    def pid(self):
        return self.process.pid

    @property
    def uri(self):
        return "port:" + self.port

    @property
    def id(self):
        return self.name

    @property
    def stderr(self):
        return read_text(self.stderr_path)

    @property
    def serial(self):
        """A file that is empty as long as no guest ran here: what a QEMU's serial line is."""
        path = os.path.join(self.dir, "ran")
        with open(path, "w") as file, self._changed:
            file.write("".join("ran\n" for e in self.events if e["state"] == "running"))
        return path

    def alive(self):
        return self.process.poll() is None

    def ask(self, number=signal.SIGUSR2, kind="work"):
        """What it prints when it is told to."""
        first = len(self.events)
        self.process.send_signal(number)
        return self.wait_event(first, kind)

    def check_ram(self):
        """The VMM's own look at all of RAM and the registers that the guest cannot read."""
        checked = self.ask(signal.SIGUSR1, "checked")
        check(checked["pages"] > 0, "nothing was checked: %s", checked)
        return checked["bad"]

    def status(self):
        if not self.alive():
            return "gone"
        try:
            return self.ask()["state"]
        except Failed:
            # It may have closed its output and be about to end.
            wait_until(lambda: not self.alive(), 5, "%s answers or ends" % self.name)
            return "gone"

    def running(self):
        return self.status() == "running"

    def allocated(self):
        """Bytes of RAM that have pages."""
        folder, found = "/proc/%d/fd" % self.pid, {}
        for name in os.listdir(folder):
            path = os.path.join(folder, name)
            if "memfd:ferry-vmm-ram" in os.readlink(path):
                stat = os.stat(path)  # libferry has descriptors of its own of the same files
                found[stat.st_ino] = stat.st_blocks * 512
        return sum(found.values())

    def traces(self):
        status = read_text("/proc/%d/status" % self.pid)
        return {"mappings": self._ram_mappings(), "open files": self._fd_kinds(),
                "tracer": [s for s in status.splitlines() if s.startswith("TracerPid")]}

    def end(self, seconds=30):
        """SIGTERM, and the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.wait(seconds)

    def wait(self, seconds=30):
        try:
            code = self.process.wait(seconds * SLOW)
        except subprocess.TimeoutExpired:
            raise Failed("%s does not end" % self.name)
        with self._changed:
            self._changed.wait_for(lambda: self._eof, 5)
        check(code < 0 or not os.path.exists(self.port), "%s left its socket behind", self.name)
        return code

    def kill(self):
        if self.process is not None and self.alive():
            self.process.kill()
        if self.process is not None:
            self.process.wait()

    kill_process = kill

    def diagnostics(self):
        return "--- ferry-vmm %s: %s\n%s%s\n" % (
            " ".join(self.args), "alive" if self.alive() else "ended %s" % self.process.returncode,
            self.stderr[-1500:], "".join("%s\n" % e for e in self.events[-5:]))


class Port:
    """The agent's side of the port protocol (port.rst), as far as tests need it."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.settimeout(10 * SLOW)
        self.socket.connect(path)
        self.ask(1, struct.pack("<IHHQII", 0x54505246, 1, 1, 0, 1, 0))

    def call(self, kind, body=b"", fds=()):
        """Return: the reply's status, and its body or why not."""
        socket.send_fds(self.socket, [struct.pack("<HHIIi", kind, 0, len(body), 1, 0) + body], fds)
        reply = self.socket.recv(2048)
        return struct.unpack_from("<i", reply, 12)[0], reply[16:]

    def ask(self, kind, body=b"", fds=()):
        status, said = self.call(kind, body, fds)
        check(status == 0, "request %d: %s", kind, said)
        return said

    def pause(self):
        self.ask(5)
        return self

    def save(self):
        """The device state of a paused guest."""
        file = open(os.memfd_create("state"), "r+b")
        with file:
            self.ask(7, struct.pack("<Q", 64 << 20), [file.fileno()])
            file.seek(0)
            return file.read()

    def load(self, state):
        """Return: why it was refused, or None."""
        with open(os.memfd_create("state", os.MFD_ALLOW_SEALING), "r+b", buffering=0) as file:
            file.write(state)
            fcntl.fcntl(file.fileno(), 1033, 0xe)  # F_ADD_SEALS: SHRINK, GROW, WRITE
            status, said = self.call(8, b"", [file.fileno()])
        return said.decode() if status else None

    def run(self):
        self.ask(9)

    def close(self):
        self.socket.close()


class VmmGuest:
    """The guest and all its hosts, in order."""

    def __init__(self, vmm):
        self.qemu, self.hosts = vmm, [vmm]

    def moved(self, vmm):
        self.qemu = vmm
        self.hosts.append(vmm)

    def check_good(self):
        """It works on from where it was, found no error, and neither does the VMM."""
        before = [e["work"] for e in (self.hosts[-2:-1] or self.hosts)[0].events if "work" in e]
        first = self.qemu.ask()
        check(not before or first["work"] >= before[-1] or len(self.hosts) == 1,
              "its work went back: %s after %s", first, before[-1:])
        wait_until(lambda: self.qemu.ask()["work"] > first["work"], 15, "the guest works")
        check_equal(self.qemu.check_ram(), 0, "bad pages and registers")
        check_equal(self.qemu.ask()["errors"], 0, "errors of the guest: %s" % self.qemu.stderr)


class VmmLab(Lab):
    # What every ferry-vmm of the lab is started with, and what only the first.
    shape = ("--ram", RAM, "--vcpus", "2")
    # Slow enough for a migration that waits for its rounds to become short.
    work = ("--working-set", "6M", "--fill", "8M", "--zero-share", "5", "--dirty-rate", "500")

    def __init__(self, name):
        super().__init__(name)
        self.engine = "kvm" if have_kvm() else "threads"

    def vmm(self, name, *args, **options):
        vmm = Vmm.__new__(Vmm)
        vmm.process = None
        self.qemus.append(vmm)
        vmm.__init__(self, name, *args, **options)
        return vmm

    def guest(self, *args):
        vmm = self.vmm("vm-%d" % len(self.qemus), "--engine", self.engine, *self.shape, *self.work,
                       *args)
        return VmmGuest(vmm.started())

    def boot(self):
        return self.guest()

    def destination(self, name="vm2", *args):
        return self.vmm("%s-%d" % (name, len(self.qemus)), "--engine", self.engine, *self.shape,
                        *args, incoming=True).started()

    def settle(self):
        """No ferry-vmm that still has the guest ever found an error."""
        super().settle()
        for vmm in self.qemus:
            if vmm.alive() and vmm.ask()["errors"]:
                raise Failed("%s found errors: %s" % (vmm.name, vmm.stderr))
