# SPDX-License-Identifier: GPL-2.0-or-later
"""What the end-to-end tests are made of.

Lab     one test's temporary folder and everything started in it; ends only
        processes it started, by pid, and removes only files it made
Qemu    one QEMU with two QMP sockets: .qmp for ferry, .monitor for the test
Guest   the workload of selftests/qemu/guest.c and the QEMUs it has run in,
        in order; Ticks reads their serial files as one
Ferry   one `ferry send` or `ferry recv` and the JSON lines it prints
Netns   two network namespaces with a link that can be cut

Booting costs two seconds, so Lab.guest() hands out one guest that tests pass on
as long as nothing fails: where one test's migration ended, the next one starts.
"""
import ctypes
import fcntl
import json
import mmap
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time

from tap import SLOW, Failed, Skip, check, check_equal

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
FERRY = os.environ.get("FERRY", os.path.join(ROOT, "build", "ferry"))
BUILD = os.path.join(ROOT, "build", "selftests", "e2e")
SHM = "/dev/shm"
GUEST_MODULES = ["virtio_pci", "virtio_blk", "virtio_balloon"]
# An account that owns nothing: it needs no entry in /etc/passwd.
ORDINARY_UID = 23456
# Every field of the last JSON object, whoever prints it (DESIGN.md, "Command line").
RESULT_FIELDS = ("event id state guest mode total_ns downtime_ns rounds ram_bytes sent_bytes "
                 "normal_pages zero_pages device_bytes faults channels tracker verified "
                 "error").split()
FINAL_EVENTS = ("completed", "failed", "cancelled")


def wait_until(condition, seconds, what):
    """Poll @condition until it is true; its value is returned."""
    seconds *= SLOW
    end = time.monotonic() + seconds
    pause = 0.002
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise Failed("waited %g s in vain for: %s" % (seconds, what))
        time.sleep(pause)
        pause = min(pause * 1.5, 0.05)


def read_text(path, tail=None):
    try:
        with open(path, errors="replace") as file:
            text = file.read()
    except OSError:
        return ""
    return text if tail is None else text[-tail:]


def process_gone(pid):
    """Gone, or dead and waiting to be reaped by somebody."""
    try:
        with open("/proc/%d/stat" % pid) as file:
            return file.read().rsplit(")", 1)[1].split()[0] in "ZX"
    except OSError:
        return True


# ---------------------------------------------------------------- the boot files

_boot = {}


def boot_files(flavour="cloud"):
    """Kernel image and initramfs of a flavour, made when first asked for."""
    if flavour in _boot:
        return _boot[flavour]
    tools = os.path.join(ROOT, "selftests", "qemu")
    run = subprocess.run([os.path.join(tools, "kernel.sh"), flavour],
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if run.returncode:
        raise Skip("no guest kernel: " + run.stderr.strip().splitlines()[-1])
    kernel, modules = run.stdout.split()
    os.makedirs(BUILD, exist_ok=True)
    initramfs = os.path.join(BUILD, "initramfs-%s.gz" % flavour)
    made_from = [os.path.join(tools, n) for n in ("guest.c", "initramfs.sh")] + [kernel]
    if not os.path.exists(initramfs) or \
            any(os.path.getmtime(f) > os.path.getmtime(initramfs) for f in made_from):
        run = subprocess.run([os.path.join(tools, "initramfs.sh"), initramfs, modules]
                             + GUEST_MODULES, stderr=subprocess.PIPE, text=True)
        if run.returncode:
            raise Skip("no guest initramfs: " + run.stderr.strip())
    _boot[flavour] = kernel, initramfs
    return _boot[flavour]


def qemu_binary():
    return os.environ.get("FERRY_QEMU", "qemu-system-x86_64")


def other_qemu(version):
    """A QEMU of another version, if it has been fetched; tests do not download it."""
    cache = os.environ.get("FERRY_CACHE", os.path.join(ROOT, "build", "cache"))
    path = os.path.join(cache, "qemu-" + version, "qemu-system-x86_64")
    if not os.path.exists(os.path.join(os.path.dirname(path), "complete")):
        raise Skip("QEMU %s is not there: selftests/qemu/qemu.sh %s fetches it"
                   % (version, version))
    return path


def prerequisites(ferry=True):
    """Skip, naming what is missing, unless the tests of a file can run at all."""
    if ferry and not os.access(FERRY, os.X_OK):
        raise Skip("%s is not built: run make" % FERRY)
    if not shutil.which(qemu_binary()):
        raise Skip("%s is not installed: run scripts/install test" % qemu_binary())
    if os.geteuid() != 0:
        raise Skip("not root: these tests trace processes and make network namespaces")
    if not os.access(SHM, os.W_OK):
        raise Skip("%s is not writable: guest RAM lives there" % SHM)
    boot_files()


# ---------------------------------------------------------------- QMP

class QmpError(Exception):
    pass


class Qmp:
    """A QMP client with a deadline on everything."""

    def __init__(self, path, seconds=10, alive=lambda: True):
        self.path, self.events = path, []
        seconds *= SLOW
        end = time.monotonic() + seconds
        while True:
            self.socket = socket.socket(socket.AF_UNIX)
            try:
                self.socket.connect(path)
                break
            except OSError as error:
                self.socket.close()
                if not alive():
                    raise Failed("the QEMU of %s died while starting" % path)
                if time.monotonic() > end:
                    raise Failed("cannot connect to %s: %s" % (path, error))
                time.sleep(0.01)
        self.socket.settimeout(seconds)
        self.file = self.socket.makefile("rb")
        self.greeting = self._read()["QMP"]
        self.command("qmp_capabilities")

    def _read(self):
        try:
            line = self.file.readline()
        except TimeoutError:
            raise QmpError("%s does not answer" % self.path)
        if not line:
            raise QmpError("%s closed the connection" % self.path)
        return json.loads(line)

    def command(self, name, **arguments):
        """Run one command; '_' in argument names stands for '-'."""
        request = {"execute": name}
        if arguments:
            request["arguments"] = {k.replace("_", "-"): v for k, v in arguments.items()}
        self.socket.sendall(json.dumps(request).encode() + b"\n")
        while True:
            reply = self._read()
            if "event" in reply:
                self.events.append(reply)
            elif "error" in reply:
                raise QmpError("%s: %s" % (name, reply["error"]["desc"]))
            else:
                return reply["return"]

    def close(self):
        self.file.close()
        self.socket.close()


# ---------------------------------------------------------------- QEMU

def make_pattern_disk(path, mib):
    """A raw disk that guest.c's mode "read" accepts: word w of block b is b * 0x10001 + w."""
    with open(path, "wb") as file:
        for block in range(mib * 256):
            first = block * 0x10001
            file.write(b"".join(w.to_bytes(8, "little") for w in range(first, first + 512)))


class Disk:
    """A disk image to be attached to both QEMUs of a migration."""

    def __init__(self, path, form="raw", cache="none", aio="native"):
        self.path, self.form, self.cache, self.aio = path, form, cache, aio

    def args(self, number):
        return ["-drive", "file=%s,format=%s,cache=%s,aio=%s,if=none,id=disk%d"
                % (self.path, self.form, self.cache, self.aio, number),
                "-device", "virtio-blk-pci,drive=disk%d" % number]


class Qemu:
    """One QEMU process, started by Lab.qemu().

    @memory: where guest RAM is: shm (a file in /dev/shm), memfd (one this side
        made, by /proc/self/fd), own-memfd (memory-backend-memfd), private (not
        shared), disk (a shared file in the lab's folder), or huge pages: hugetlb (a file on
        a hugetlbfs), huge-memfd (memory-backend-memfd), huge-tmpfs (a tmpfs with huge=);
        Lab.huge_pages() or Lab.huge_tmpfs() first
    @backends: into how many memory backends RAM is split (NUMA nodes)
    @memory_id: first letters of the backends' names, which name the RAM blocks
    @memory_options: more options of each backend, like "discard-data=on"
    @user: run as this uid, without any right
    @heir_of: a QEMU whose RAM files this one has for its own
    """

    def __init__(self, lab, name, incoming=False, mib=96, memory="shm", backends=1,
                 memory_id="ram", memory_options="", user=None, disks=(), machine="q35",
                 append="", kernel="cloud", smp=2, args=(), binary=None, heir_of=None):
        self.lab, self.name, self.mib, self.memory = lab, name, mib, memory
        self.incoming, self.user = incoming, user
        self.process, self.ram_files, self._fds, self._monitor = None, [], [], None
        self.dir = os.path.join(lab.dir, name)
        os.mkdir(self.dir, 0o755)
        self.qmp_path = os.path.join(self.dir, name + ".qmp")
        self.serial = os.path.join(self.dir, "serial")
        self.stderr = os.path.join(self.dir, "stderr")
        self._inherited = heir_of.ram_paths if heir_of else []
        self.ram_paths = []  # also those that another QEMU made
        kernel, initramfs = boot_files(kernel)
        if user is not None:  # it may not be able to read the build folder
            kernel, initramfs = [shutil.copy(f, self.dir) for f in (kernel, initramfs)]
        # Tests wait on the serial file, so it must be there from the start.
        open(self.serial, "w").close()
        command = [binary or qemu_binary(), "-nodefaults", "-no-user-config", "-display", "none",
                   "-no-reboot", "-smp", str(smp), "-m", "%dM" % mib,
                   "-accel", os.environ.get("FERRY_TEST_ACCEL", "tcg,thread=multi"),
                   "-kernel", kernel, "-initrd", initramfs,
                   # Linux panics when its timer test gets no interrupt in time: so it does on a
                   # busy machine that emulates it.
                   "-append", "console=ttyS0 loglevel=1 panic=-1 no_timer_check " + append,
                   "-chardev", "file,id=serial0,path=%s,append=on" % self.serial,
                   "-serial", "chardev:serial0",
                   "-qmp", "unix:%s,server=on,wait=off" % self.qmp_path,
                   "-qmp", "unix:%s,server=on,wait=off" % self.monitor_path]
        command += self._memory_args(machine, backends, memory_id, memory_options)
        for number, disk in enumerate(disks):
            command += disk.args(number)
        command += ["-incoming", "defer"] if incoming else []
        command += list(args)
        self._start(command)

    @property
    def monitor_path(self):
        return os.path.join(self.dir, "monitor.qmp")

    @property
    def uri(self):
        return "qmp:" + self.qmp_path

    @property
    def id(self):
        """The ID ferry derives from the path of the socket."""
        return self.name

    def _backend_path(self, number, size):
        if self.memory == "memfd":
            fd = os.memfd_create("%s-ram%d" % (self.name, number))
            os.ftruncate(fd, size)
            self._fds.append(fd)
            return "/proc/self/fd/%d" % fd
        if self._inherited:
            self.ram_paths.append(self._inherited[number])
            return self._inherited[number]
        folder = {"shm": SHM, "disk": self.dir}.get(self.memory, self.lab.huge_folder)
        path = os.path.join(folder, "ferry-e2e-%d-%s-%s%d" % (os.getpid(), self.lab.tag,
                                                             self.name, number))
        self.ram_files.append(path)
        self.ram_paths.append(path)
        if not os.path.exists(path):
            with open(path, "wb") as file:
                file.truncate(size)
        if self.user is not None:
            os.chown(path, self.user, self.user)
        return path

    def _memory_args(self, machine, backends, memory_id, options):
        args = ["-machine", machine + (",memory-backend=%s0" % memory_id if backends == 1 else "")]
        size = self.mib // backends
        for number in range(backends):
            ident = "id=%s%d,size=%dM" % (memory_id, number, size)
            if self.memory == "private":
                backend = "memory-backend-ram," + ident
            elif self.memory == "own-memfd":
                backend = "memory-backend-memfd,share=on," + ident
            elif self.memory == "huge-memfd":
                backend = "memory-backend-memfd,share=on,hugetlb=on,hugetlbsize=2M," + ident
            else:
                backend = "memory-backend-file,share=on,%s,mem-path=%s" \
                    % (ident, self._backend_path(number, size << 20))
            args += ["-object", backend + ("," + options if options else "")]
            if backends > 1:
                args += ["-numa", "node,nodeid=%d,memdev=%s%d" % (number, memory_id, number)]
        return args

    def _start(self, command):
        self.command = command
        extra = {}
        if self.user is not None:
            for path in [self.dir] + [os.path.join(self.dir, n) for n in os.listdir(self.dir)]:
                os.chown(path, self.user, self.user)
            extra = {"user": self.user, "group": self.user, "extra_groups": []}
        with open(self.stderr, "w") as stderr:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=stderr,
                                            stdout=stderr, pass_fds=self._fds, cwd=self.dir,
                                            **extra)
        for fd in self._fds:
            os.close(fd)
        self.monitor  # wait until it is up
        self.before = self.traces()

    @property
    def pid(self):
        return self.process.pid

    @property
    def monitor(self):
        if self._monitor is None:
            self._monitor = Qmp(self.monitor_path, alive=self.alive)
        return self._monitor

    def alive(self):
        return self.process.poll() is None

    def status(self):
        """query-status's word, or "gone"."""
        if not self.alive():
            return "gone"
        try:
            return self.monitor.command("query-status")["status"]
        except (QmpError, OSError):
            if wait_until(lambda: not self.alive(), 5, "%s answers on QMP or ends" % self.name):
                return "gone"

    def running(self):
        return self.status() == "running"

    def kill_process(self):
        """End it, and leave the files of its RAM."""
        if self._monitor is not None:
            self._monitor.close()
        self._monitor = None
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def kill(self):
        self.kill_process()
        for path in self.ram_files:
            try:
                os.unlink(path)
            except FileNotFoundError:
                pass

    def ram_blocks(self):
        """How many 512-byte units all RAM files have allocated."""
        return sum(os.stat(path).st_blocks for path in self.ram_files)

    # -- what ferry must leave as it was

    def _ram_mappings(self):
        """(path, offset, VmFlags) of every shared RAM mapping."""
        found, current = [], None
        for line in read_text("/proc/%d/smaps" % self.pid).splitlines():
            match = re.match(r"[0-9a-f]+-[0-9a-f]+ (\S+) ([0-9a-f]+) \S+ \d+ +(.*)", line)
            if match:
                current = match.groups()
            elif line.startswith("VmFlags:") and "s" in current[0] and \
                    ("memfd:" in current[2] or "ferry" in current[2]):
                # sd, soft-dirty, says that something was written: no trace of ferry.
                flags = " ".join(f for f in line.split()[1:] if f != "sd")
                found.append((current[2], current[1], flags))
        return sorted(found)

    def _fd_kinds(self):
        """How many open files of each kind that ferry deals with."""
        kinds = {"userfaultfd": 0, "tracker": 0, "socket": 0, "pipe": 0, "memfd": 0}
        folder = "/proc/%d/fd" % self.pid
        for name in os.listdir(folder):
            try:
                link = os.readlink(os.path.join(folder, name))
            except OSError:
                continue
            for kind, mark in (("userfaultfd", "[userfaultfd]"), ("tracker", "ferry]"),
                               ("socket", "socket:"), ("pipe", "pipe:"), ("memfd", "/memfd:")):
                kinds[kind] += mark in link
        return kinds

    def traces(self):
        """Everything about this QEMU that a migration may change and must restore."""
        parameters = self.monitor.command("query-migrate-parameters")
        status = read_text("/proc/%d/status" % self.pid)
        return {
            "capabilities": {c["capability"]: c["state"] for c in
                             self.monitor.command("query-migrate-capabilities")},
            "parameters": parameters,
            "mappings": self._ram_mappings(),
            "open files": self._fd_kinds(),
            "tracer": re.search(r"TracerPid:\t(\d+)", status).group(1),
        }

    def leftovers(self):
        """What is not as it was when QEMU had started, in words; [] is clean."""
        now = self.traces()
        return ["%s of %s: %r, was %r" % (what, self.name, now[what], was)
                for what, was in self.before.items() if now[what] != was]

    def check_clean(self):
        """Nothing of ferry is left; connections may need a moment to close."""
        end = time.monotonic() + 3
        while self.leftovers() and time.monotonic() < end:
            time.sleep(0.02)
        check(not self.leftovers(), "left behind: %s", "; ".join(self.leftovers()))

    def diagnostics(self):
        return "--- QEMU %s: %s\n%s\n--- its serial line ends with\n%s\n" % (
            self.name, "alive" if self.alive() else "ended %s" % self.process.returncode,
            read_text(self.stderr, 1500), read_text(self.serial, 300))


# ---------------------------------------------------------------- the workload

TICK = re.compile(rb"TICK (\d+) bad=(\d+) t=(\d+) wall=(\d+) loops=(\d+)\r?$")


class Ticks:
    """The TICK lines of serial files, read as one stream in the order of the hosts.

    A line may begin in one file and end in the next: bytes already in the serial
    port's hands stay at the source, the rest is migrated with the device.
    """

    def __init__(self, paths):
        data = b""
        for path in paths:
            with open(path, "rb") as file:
                data += file.read()
        self.problems, self.numbers, self.loops, self.bad, self.times = [], [], 0, 0, []
        lines = data.split(b"\n")[:-1]  # what follows the last newline is still being printed
        for line in lines:
            match = TICK.match(line)
            if match:
                self._add(*(int(g) for g in match.groups()))
            elif self.numbers or line.startswith((b"GUEST FAILED", b"BAD")):
                self.problems.append("not a tick: %r" % line[:120])

    def _add(self, number, bad, t_ms, _wall, loops):
        wanted = self.numbers[-1] + 1 if self.numbers else 0
        if number != wanted:
            self.problems.append("tick %d follows where %d was due" % (number, wanted))
        if self.times and t_ms < self.times[-1]:
            self.problems.append("the guest's clock went back at tick %d" % number)
        if loops < self.loops:
            self.problems.append("loops went back at tick %d" % number)
        if bad > self.bad:
            self.problems.append("tick %d: %d memory or disk checks failed" % (number, bad))
        self.numbers.append(number)
        self.times.append(t_ms)
        self.loops, self.bad = loops, bad

    @property
    def count(self):
        return len(self.numbers)


class Guest:
    """The workload, and every QEMU it has run in so far."""

    def __init__(self, qemu):
        self.qemu, self.hosts = qemu, [qemu]

    def ticks(self):
        return Ticks([host.serial for host in self.hosts])

    def wait_ticks(self, more=3, seconds=40):
        """It prints at least so many further ticks, and loops on meanwhile."""
        start = self.ticks()

        def advanced():
            now = self.ticks()
            return now.count >= start.count + more and now.loops > start.loops
        wait_until(advanced, seconds, "%d more ticks of %s" % (more, self.qemu.name))
        return self

    def moved(self, qemu):
        if qemu is not self.qemu and qemu.ram_paths == self.qemu.ram_paths:  # the files go with the guest
            qemu.ram_files, self.qemu.ram_files = self.qemu.ram_files, []
        self.qemu = qemu
        self.hosts.append(qemu)

    def check_good(self, more=3):
        """It runs on, without gap or repeat, and all its checks are clean."""
        self.wait_ticks(more)
        problems = self.ticks().problems
        check(not problems, "the guest's ticks: %s", "; ".join(problems[:5]))


# ---------------------------------------------------------------- ferry

class Ferry:
    """One run of ferry. With events, --json is on and its lines are collected."""

    def __init__(self, lab, *args, fault=None, side=None, netns=None, env=None, events=True):
        self.lab, self.events, self.raw = lab, [], []
        self.args = [str(a) for a in args]
        self.name = " ".join(self.args[:1])
        self.stderr_path = os.path.join(lab.dir, "ferry-%d.stderr" % len(lab.ferries))
        environ = dict(os.environ, FERRY_RUNTIME_DIR=lab.runtime)
        for name in ("FERRY_FAULT", "FERRY_FAULT_SIDE"):
            environ.pop(name, None)
        if fault:
            environ["FERRY_FAULT"] = fault
        if side:
            environ["FERRY_FAULT_SIDE"] = side
        environ.update(env or {})
        command = ["nsenter", "--net=/run/netns/" + netns] if netns else []
        command += [FERRY] + self.args + (["--json"] if events else [])
        self._changed = threading.Condition()
        with open(self.stderr_path, "w") as stderr:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, env=environ,
                                            stdout=subprocess.PIPE, stderr=stderr, cwd=lab.dir)
        self._eof = False
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        for line in self.process.stdout:
            with self._changed:
                self.raw.append(line.decode(errors="replace"))
                try:
                    self.events.append(json.loads(line))
                except ValueError:
                    pass
                self._changed.notify_all()
        with self._changed:
            self._eof = True
            self._changed.notify_all()

    @property
    def pid(self):
        return self.process.pid

    @property
    def stderr(self):
        return read_text(self.stderr_path)

    @property
    def stdout(self):
        return "".join(self.raw)

    def wait_event(self, wanted, seconds, what):
        """The first event for which @wanted is true; fails when ferry ends before."""
        seconds *= SLOW
        end = time.monotonic() + seconds
        with self._changed:
            while True:
                for event in self.events:
                    if wanted(event):
                        return event
                if self._eof:
                    raise Failed("%s ended before: %s" % (self.name, what))
                if not self._changed.wait(max(0, end - time.monotonic())) and \
                        time.monotonic() >= end:
                    raise Failed("%s: waited %g s in vain for: %s" % (self.name, seconds, what))

    def wait_state(self, state, seconds=15):
        return self.wait_event(lambda e: e.get("event") == "state" and e.get("state") == state,
                               seconds, "state " + state)

    def wait_listening(self, seconds=10):
        """recv listens; the URI it can be reached by."""
        return self.wait_event(lambda e: e.get("event") == "listening", seconds,
                               "listening")["uri"]

    def states(self):
        with self._changed:
            return [e["state"] for e in self.events if e.get("event") == "state"]

    def worker(self):
        """The pid of the worker: the child of the launched process."""
        def find():
            for name in os.listdir("/proc"):
                if name.isdigit():
                    try:
                        with open("/proc/%s/stat" % name) as file:
                            fields = file.read().rsplit(")", 1)[1].split()
                    except OSError:
                        continue
                    if int(fields[1]) == self.pid and fields[0] != "Z":
                        return int(name)
            return None
        return wait_until(find, 5, "%s has a worker" % self.name)

    def finish(self, seconds=30):
        """Wait until every process of this run has ended: guardian, worker, successors."""
        seconds *= SLOW
        end = time.monotonic() + seconds
        with self._changed:
            while not self._eof:
                if not self._changed.wait(max(0, end - time.monotonic())) and \
                        time.monotonic() >= end:
                    raise Failed("%s has not ended after %g s" % (self.name, seconds))
        try:
            self.process.wait(max(0.1, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise Failed("%s closed its output and did not end" % self.name)
        return self

    @property
    def code(self):
        return self.process.returncode

    @property
    def result(self):
        """The last JSON object, which is the result."""
        check(self.events and self.events[-1].get("event") in FINAL_EVENTS,
              "%s printed no result as its last line, but: %s%s", self.name, self.raw[-1:],
              self.stderr[-600:])
        return self.events[-1]

    def check_code(self, code):
        check(self.code == code, "%s ended with %s, wanted %s: %s", self.name, self.code, code,
              self.stderr[-600:] or self.raw[-1:])
        return self

    def diagnostics(self):
        return "--- ferry %s: %s\n%s%s" % (
            " ".join(self.args), "runs" if self.process.poll() is None else
            "ended %s" % self.code, "".join(self.raw[-12:]), read_text(self.stderr_path, 2500))


# ---------------------------------------------------------------- network namespaces

class Netns:
    """Two namespaces, left (10.77.N.1) and right (10.77.N.2), and the link between them."""

    _count = 0

    def __init__(self, lab):
        Netns._count += 1
        number = Netns._count
        base = "ferry-%d-%d" % (os.getpid(), number)
        self.left, self.right = base + "-l", base + "-r"
        self.left_address, self.right_address = "10.77.%d.1" % number, "10.77.%d.2" % number
        lab.on_close(self._remove)
        if not shutil.which("ip"):
            raise Skip("ip is not installed: run scripts/install test")
        try:
            for name in (self.left, self.right):
                self._ip("netns", "add", name)
            self._ip("-n", self.left, "link", "add", "veth0", "type", "veth", "peer", "name",
                     "veth0", "netns", self.right)
        except Failed as error:
            raise Skip("this machine gives no network namespaces: %s" % error)
        for name, address in ((self.left, self.left_address), (self.right, self.right_address)):
            self._ip("-n", name, "addr", "add", address + "/24", "dev", "veth0")
            self._ip("-n", name, "link", "set", "lo", "up")
            self._ip("-n", name, "link", "set", "veth0", "up")

    @staticmethod
    def _ip(*args):
        run = subprocess.run(("ip",) + args, stderr=subprocess.PIPE, text=True)
        check(run.returncode == 0, "ip %s: %s", " ".join(args), run.stderr.strip())

    def cut(self):
        """Packets get lost in both directions; no connection is told."""
        self._ip("-n", self.right, "link", "set", "veth0", "down")

    def restore(self):
        self._ip("-n", self.right, "link", "set", "veth0", "up")

    def _remove(self):
        for name in (self.left, self.right):
            subprocess.run(["ip", "netns", "del", name], stderr=subprocess.DEVNULL)


# ---------------------------------------------------------------- huge pages

def huge_bytes(path):
    """How much of a file on tmpfs is made of huge pages: a mapping of all of it tells."""
    with open(path, "rb") as file, \
            mmap.mmap(file.fileno(), 0, mmap.MAP_SHARED, mmap.PROT_READ) as memory:
        for at in range(0, len(memory), 4096):
            memory[at]
        found, inside = 0, False
        for line in read_text("/proc/self/smaps").splitlines():
            if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
                inside = line.endswith(path)
            elif inside and line.startswith(("ShmemPmdMapped:", "FilePmdMapped:")):
                found += int(line.split()[1]) << 10
    return found


def change_huge_pages(by):
    """So many more of 2 MiB, or fewer. Others do the same: only the difference is ours."""
    path = "/proc/sys/vm/nr_hugepages"
    try:
        file = open(path, "r+")
    except OSError as error:
        raise Skip("this kernel has no huge pages of 2 MiB: %s" % error)
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)  # selftests/unit/huge_pool.c does so too
        wanted = int(file.read()) + by
        file.seek(0)
        file.write("%d" % max(wanted, 0))
        file.flush()
        file.seek(0)
        return int(file.read()) >= wanted


# ---------------------------------------------------------------- the lab

class Lab:
    """Everything one test starts and makes, and the way it all ends."""

    _shared = None  # the lab whose guest is handed from test to test
    _shared_guest = None
    _open = []
    _serial = 0

    def __init__(self, name):
        Lab._serial += 1
        self.name, self.tag = name, str(Lab._serial)
        self.dir = tempfile.mkdtemp(prefix="ferry-e2e-")
        os.chmod(self.dir, 0o755)
        self.runtime = os.path.join(self.dir, "run")
        os.mkdir(self.runtime, 0o700)
        self.qemus, self.ferries, self._undo = [], [], []
        self.huge_folder = None
        self._borrowed = None
        Lab._open.append(self)

    # -- starting things

    def qemu(self, name, **options):
        qemu = Qemu.__new__(Qemu)
        self.qemus.append(qemu)
        qemu.process = None
        qemu.__init__(self, name, **options)
        return qemu

    def boot(self, name="vm", append="ferry.dirty=16 ferry.pause_ms=10", more=3, **options):
        """A guest of this test's own, ticking."""
        guest = Guest(self.qemu(name, append=append, **options))
        try:
            guest.wait_ticks(more)
        except Failed as error:
            raise Failed("%s; its serial line: %r" % (error, read_text(guest.qemu.serial, 300)))
        return guest

    def guest(self):
        """The guest that tests hand on, ticking and clean; booted if there is none."""
        if Lab._shared_guest is None or not Lab._shared_guest.qemu.alive():
            Lab._drop_shared()
            Lab._shared = Lab("shared")
            Lab._shared_guest = Lab._shared.boot()
        self._borrowed = Lab._shared_guest
        return self._borrowed

    def destination(self, name="vm2", **options):
        """A QEMU that waits for a guest. It lives as long as the lab of the guest."""
        owner = Lab._shared if self._borrowed else self
        return owner.qemu("%s-%d" % (name, len(owner.qemus)) if self._borrowed else name,
                          incoming=True, append="", **options)

    def ferry(self, *args, **options):
        ferry = Ferry(self, *args, **options)
        self.ferries.append(ferry)
        return ferry

    def run(self, *args, seconds=20, **options):
        """One short ferry command, to its end."""
        return self.ferry(*args, **dict({"events": False}, **options)).finish(seconds)

    def heir(self, source, name="new", **options):
        """A VMM that waits to take over @source's guest, its RAM included."""
        owner = Lab._shared if self._borrowed else self
        return owner.qemu("%s-%d" % (name, len(owner.qemus)), incoming=True, append="",
                          heir_of=source, **options)

    def cpr(self, source, heir, *args, **options):
        return self.ferry("cpr", source.uri, "--to", heir.uri, *args, **options)

    def recv(self, qemu, uri="tcp:127.0.0.1:0", *args, **options):
        """`ferry recv`, listening; .listening is the URI for the sender."""
        ferry = self.ferry("recv", qemu.uri, uri, *args, **options)
        ferry.listening = ferry.wait_listening()
        return ferry

    def send(self, qemu, uri, *args, **options):
        return self.ferry("send", qemu.uri, uri, *args, **options)

    def on_close(self, function):
        self._undo.append(function)

    def huge_pages(self, mib):
        """So many MiB of huge pages, for this test, and a hugetlbfs."""
        self.on_close(lambda: change_huge_pages(-mib // 2))
        if not change_huge_pages(mib // 2):
            raise Skip("the kernel has no %d MiB left for huge pages" % mib)
        self._mount_huge("hugetlbfs", "pagesize=2M")

    def huge_tmpfs(self, huge):
        """A tmpfs whose files may have huge pages: always or within_size."""
        self._mount_huge("tmpfs", "huge=" + huge)

    def _mount_huge(self, kind, options):
        self.huge_folder = os.path.join(self.dir, "hugetlbfs")
        os.mkdir(self.huge_folder)
        run = subprocess.run(["mount", "-t", kind, "-o", options, "none", self.huge_folder],
                             stderr=subprocess.PIPE, text=True)
        if run.returncode:
            raise Skip("no %s with %s: %s" % (kind, options, run.stderr.strip()))
        self.on_close(lambda: subprocess.run(["umount", self.huge_folder], check=True))

    # -- ending things

    def ferry_pids(self):
        """Every process of ferry that works for this lab, whoever its parent is now."""
        mark, found = ("FERRY_RUNTIME_DIR=" + self.runtime).encode(), []
        for name in os.listdir("/proc"):
            if not name.isdigit() or int(name) == os.getpid():
                continue
            try:
                with open("/proc/%s/environ" % name, "rb") as file:
                    if mark in file.read().split(b"\0") and not process_gone(int(name)):
                        found.append(int(name))
            except OSError:
                continue
        return found

    def stopped_worker(self, what):
        """A process of ferry that a fault point has stopped, which is waited for; its pid."""
        return wait_until(lambda: [pid for pid in self.ferry_pids() if "State:\tT" in
                                   read_text("/proc/%d/status" % pid)], 20, what)[0]

    def check_no_ferry(self):
        wait_until(lambda: not self.ferry_pids(), 5, "no process of ferry is left")

    def settle(self):
        """Called when a test has passed: nothing may be left, and the guest goes back."""
        self.check_no_ferry()
        if self._borrowed:
            guest = self._borrowed
            check(not guest.ticks().problems, "%s", guest.ticks().problems[:5])
            # Hosts it has left behind are of no more use.
            for qemu in list(Lab._shared.qemus):
                if qemu is not guest.qemu:
                    qemu.kill()

    def diagnostics(self):
        qemus = self.qemus + (Lab._shared.qemus if self._borrowed else [])
        parts = [f.diagnostics() for f in self.ferries]
        parts += [q.diagnostics() for q in qemus if q.process and
                  (q.alive() or q.process.returncode)]
        return "\n".join(parts)

    def close(self, failed=False):
        # A worker whose guardian dies starts another, and the other way round: until none is
        # left. SIGKILL ends stopped processes too.
        end = time.monotonic() + 5
        while self.ferry_pids() and time.monotonic() < end:
            for pid in self.ferry_pids():
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
        for qemu in self.qemus:
            qemu.kill()
        for undo in reversed(self._undo):
            undo()
        shutil.rmtree(self.dir, ignore_errors=True)
        Lab._open.remove(self)
        if failed and self._borrowed:
            Lab._drop_shared()

    @staticmethod
    def _drop_shared():
        shared, Lab._shared, Lab._shared_guest = Lab._shared, None, None
        if shared:
            shared.close()

    @staticmethod
    def close_all():
        for lab in list(Lab._open):
            try:
                lab.close()
            except Exception as error:  # the others must go all the same
                print("# cleaning up after %s: %s" % (lab.name, error))
        Lab._shared = Lab._shared_guest = None


def become_subreaper():
    """Successors of a killed guardian become our children, so nothing gets lost."""
    PR_SET_CHILD_SUBREAPER = 36
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


# ---------------------------------------------------------------- whole migrations

def check_result(result, event="completed", **wanted):
    """The last JSON object has every field, and these values."""
    missing = [f for f in RESULT_FIELDS if f not in result]
    check(not missing, "the result lacks %s: %s", missing, result)
    check_equal(result["event"], event, "the result's event")
    for name, value in wanted.items():
        check_equal(result[name], value, "the result's " + name)
    return result


def check_completed(send, recv, channels=None):
    """Both sides say that the guest is at the destination."""
    send.finish()
    if send.code == 2 and "not built" in send.stderr:
        raise Skip(send.stderr.strip())
    send.check_code(0)
    recv.finish()
    for ferry in (send, recv):
        ferry.check_code(0)
        result = check_result(ferry.result, state="completed", guest="destination", error=None)
        check(result["downtime_ns"] > 0 or ferry is recv, "no downtime was measured")
        if channels:
            check_equal(result["channels"], channels, "the result's channels")
    check(send.result["ram_bytes"] > 0 and send.result["normal_pages"] > 0,
          "nothing was sent: %s", send.result)
    check(send.result["device_bytes"] > 0, "no device state was sent: %s", send.result)


def migrate(lab, guest, target, *send_args, uri="tcp:127.0.0.1:0", channels=None, keep=False):
    """Migrate, and prove everything that always holds after a good migration."""
    source = guest.qemu
    if channels:
        send_args += ("--channels", channels)
    recv = lab.recv(target, uri)
    send = lab.send(source, recv.listening, *send_args)
    check_completed(send, recv, channels)
    guest.moved(target)
    if keep:
        check(source.alive() and not source.running(), "the kept source is %s", source.status())
        source.check_clean()
    else:
        wait_until(lambda: not source.alive(), 5, "the source QEMU has quit")
    check_equal(target.status(), "running", "the destination's state")
    guest.check_good()
    target.check_clean()
    lab.check_no_ferry()
    return send, recv
