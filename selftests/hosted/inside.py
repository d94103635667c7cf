#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""What run.sh runs inside its virtual machine: the agent and the kernel module.

    inside.py NAME...           these tests, in order; the last ones unload the module
    inside.py peer KIND FILE    a process that maps guest RAM and writes to it: "plain", or
                                "view", a tracked view it makes itself; ends with its input
"""
import fcntl
import mmap
import os
import re
import select
import signal
import struct
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(ROOT, "selftests", "e2e"))

import tap
from lib import (Lab, Qemu, check, check_completed, check_equal, check_result, process_gone,
                 qemu_binary, read_text, wait_until)
from tap import test
from vmm import VmmLab

DISK = "/dev/vda"
MIB = 16
ROUNDS_AT, BAD_AT = 0x500, 0x504  # of sector.S
PEER_AT, PEER_PAGES = 4 << 20, 512
FERRY_MODULE = os.environ.get("FERRY_MODULE")
FERRY_TRACK = 0xF701
TRACK = struct.Struct("<IIiiQQ")
# Waiting devices and hashing are slow here; the rounds go on until the test ends them.
SEND = ("--verify", "--downtime-limit", 5000)


def saw(text, *values):
    print("# saw: " + text % values, flush=True)


class Sector(Qemu):
    """A QEMU with sector.S as its guest and the slow disk to read."""

    blocks = 1

    def __init__(self, lab, name, aio, incoming, accel):
        self.lab, self.name, self.mib, self.memory, self.user = lab, name, MIB, "shm", None
        self.incoming = incoming
        self.dir = os.path.join(lab.dir, name)
        os.mkdir(self.dir)
        self.qmp_path = os.path.join(self.dir, name + ".qmp")
        self.serial = os.path.join(self.dir, "serial")
        self.stderr = os.path.join(self.dir, "stderr")
        self.ram_files, self._fds, self._monitor = [], [], None
        self.ram_paths, self._inherited = [], []
        command = [qemu_binary(), "-nodefaults", "-no-user-config", "-display", "none",
                   "-accel", accel, "-m", "%dM" % MIB,
                   "-qmp", "unix:%s,server=on,wait=off" % self.qmp_path,
                   "-qmp", "unix:%s,server=on,wait=off" % self.monitor_path]
        for number, (path, how) in enumerate(((os.environ["FERRY_SECTOR"], "cache=writeback"),
                                              (DISK, "cache=none,aio=" + aio))):
            command += ["-drive", "file=%s,format=raw,if=none,read-only=on,id=disk%d,%s"
                        % (path, number, how),
                        "-device", "virtio-blk-pci,drive=disk%d,bootindex=%d" % (number, number)]
        command += self._memory_args("pc", 1, "ram", "")
        command += ["-incoming", "defer"] if incoming else []
        self._start(command)

    def word(self, at):
        with open(self.ram_files[0], "rb") as file:
            file.seek(at)
            return struct.unpack("<I", file.read(4))[0]

    def check_works(self):
        """It goes on counting, and all it has read was right."""
        before = self.word(ROUNDS_AT)
        wait_until(lambda: self.word(ROUNDS_AT) >= before + 3, 10, "%s counts on" % self.name)
        check_equal(self.word(BAD_AT), 0, "bad reads of " + self.name)


def start(lab, name, aio="native", incoming=False, accel="tcg"):
    qemu = Sector.__new__(Sector)
    lab.qemus.append(qemu)
    qemu.process = None
    qemu.__init__(lab, name, aio, incoming, accel)
    if not incoming:
        wait_until(lambda: qemu.word(0x7dfe) == 0xaa55 and qemu.word(ROUNDS_AT) > 3, 30,
                   "%s has booted" % name)
        qemu.check_works()
    return qemu


def viewed(vmm):
    """Is its RAM a tracked view, every block of it?"""
    views = ["de" in flags.split() for _, _, flags in vmm._ram_mappings()]
    check_equal(len(views), vmm.blocks, "mappings of RAM")
    return all(views)


class Move:
    """A migration that waits before the switchover."""

    def __init__(self, lab, source, target, *args):
        self.lab, self.source, self.target = lab, source, target
        self.id = dict(zip(args, args[1:])).get("--id", source.id)
        self.recv = lab.recv(target)
        self.send = lab.send(source, self.recv.listening, "--pause-before-switchover", *SEND,
                             *args)
        self.send.wait_state("pre-switchover", 40)
        check(viewed(source), "the source's RAM is no tracked view: %s", source._ram_mappings())

    def go_on(self, check_works=None):
        self.lab.run("continue", self.id).check_code(0)
        check_completed(self.send, self.recv)
        for ferry in (self.send, self.recv):
            check_result(ferry.result, verified=True, guest="destination", tracker="kmod")
        check_equal(self.send.result.get("suspect_pages", 0), 0, "suspect pages")
        check(self.send.result["rounds"] >= 3, "only %d rounds", self.send.result["rounds"])
        check_equal(self.target.status(), "running", "the destination")
        (check_works or self.target.check_works)()
        self.target.check_clean()
        wait_until(lambda: not self.source.alive(), 5, "the source has quit")
        saw("%s: %d rounds, %d pages sent, verified", self.source.name,
            self.send.result["rounds"], self.send.result["normal_pages"])

    def kill_all(self):
        """Neither of the sending side's processes can do anything for the other."""
        pids = [self.send.pid, self.send.worker()]
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pid in pids:
                os.kill(pid, number)
        wait_until(lambda: all(process_gone(pid) for pid in pids), 5, "both have ended")
        self.send.process.wait()
        self.recv.finish()


# ---------------------------------------------------------------- another process

def peer_main(kind, path):
    ram = os.open(path, os.O_RDWR)
    fd = ram
    if kind == "view":
        device = os.open("/dev/ferry", os.O_RDWR)
        arg = bytearray(TRACK.pack(TRACK.size, 0, ram, 0, 0, 0))
        fcntl.ioctl(device, FERRY_TRACK, arg)
        fd = TRACK.unpack(arg)[3]
    view = mmap.mmap(fd, os.fstat(ram).st_size, mmap.MAP_SHARED)
    print("ready", flush=True)
    count = 0
    while not select.select([0], [], [], 0)[0]:
        count += 1
        for page in range(PEER_PAGES):
            struct.pack_into("<I", view, PEER_AT + page * 4096 + 64, count * PEER_PAGES + page)
        time.sleep(0.01)
    print("wrote %d" % count, flush=True)
    sys.stdin.readline()  # until all is over
    sys.stdin.readline()
    return 0


class Peer:
    def __init__(self, lab, kind, qemu):
        self.process = subprocess.Popen([sys.executable, os.path.abspath(__file__), "peer", kind,
                                         qemu.ram_files[0]], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, text=True)
        lab.on_close(self.end)
        check_equal(self.process.stdout.readline(), "ready\n", "what the peer says")

    def stop_writing(self):
        """It keeps its mapping. Return: how often it has written all its pages."""
        self.process.stdin.write("stop\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline().split()[1])

    def end(self):
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


# ---------------------------------------------------------------- the tests

def doctor_says(lab):
    text = lab.run("doctor").check_code(0).stdout
    lines = [line.split(None, 2) for line in text.splitlines()
             if line.startswith("tracker-kmod ")]
    check(lines, "doctor says nothing about it: %s", text)
    return lines[0][1:]


@test()
def doctor_says_so(lab):
    word, why = doctor_says(lab)
    check_equal(word, "yes", "tracker-kmod (%s)" % why)


# Starting a QEMU takes long here, so all tests are about one guest: it is refused, cancelled
# and killed at "vm", moves to "vm2" and from there to "vm3".
_guest = {}


def guest(name, aio="native", incoming=False):
    if not _guest:
        _guest["lab"] = Lab("guest")
    if name not in _guest:
        began = time.monotonic()
        _guest[name] = start(_guest["lab"], name, aio, incoming)
        saw("%s started in %.1f s", name, time.monotonic() - began)
    return _guest[name]


def target(name="vm2"):
    return guest(name, "io_uring", incoming=True)


def refused(lab, source, *args):
    """It fails before it connects; what it says."""
    send = lab.send(source, "tcp:127.0.0.1:1", *args).finish().check_code(1)
    source.check_works()
    source.check_clean()
    return send.result["error"]


@test(timeout=60)
def a_plain_peer_is_refused(lab):
    source = guest("vm")
    peer = Peer(lab, "plain", source)
    error = refused(lab, source)
    check("pid %d (python3) maps guest RAM" % peer.process.pid in error and
          "may map a tracked view" in error, "error: %s", error)
    peer.end()


@test(timeout=60)
def a_view_is_for_the_kmod_tracker_alone(lab):
    source = guest("vm")
    peer = Peer(lab, "view", source)
    error = refused(lab, source, "--tracker", "softdirty")
    check("pid %d (python3) maps a tracked view" % peer.process.pid in error and
          "--tracker kmod" in error, "error: %s", error)
    peer.end()


@test(timeout=60)
def a_cancel_leaves_no_trace(lab):
    source = guest("vm")
    move = Move(lab, source, target())
    lab.run("cancel", source.id).check_code(0)
    move.send.finish().check_code(1)
    check_result(move.send.result, "cancelled", guest="source", tracker="kmod")
    source.check_works()
    source.check_clean()
    move.recv.finish()
    check_equal(trackers(), 0, "trackers that exist")


class Limited:
    """A control group of version 2 for one QEMU."""

    def __init__(self, lab, qemu):
        top = "/sys/fs/cgroup"
        if not os.path.exists(top + "/cgroup.controllers"):
            subprocess.run(["mount", "-t", "cgroup2", "none", top], check=True)
        self.path, self.top, self.pid = top + "/" + qemu.name, top, qemu.pid
        self.write(top + "/cgroup.subtree_control", "+cpu")
        os.mkdir(self.path)
        lab.on_close(self.remove)
        self.write(self.path + "/cgroup.procs", self.pid)
        self.before = self.limit()

    @staticmethod
    def write(path, value):
        with open(path, "w") as file:
            file.write(str(value))

    def limit(self):
        return read_text(self.path + "/cpu.max").strip()

    def throttled(self):
        return int(dict(line.split() for line in
                        read_text(self.path + "/cpu.stat").splitlines())["nr_throttled"])

    def remove(self):
        self.write(self.top + "/cgroup.procs", self.pid)
        os.rmdir(self.path)


@test(timeout=60, cases={"cancel": ("cancel",), "kill": ("kill",)})
def cpu_max_throttles(lab, how):
    """--on-stall throttle by cpu.max of version 2: set, felt, and taken back on every way out."""
    source = guest("vm")
    group = Limited(lab, source)
    check_equal(group.before, "max 100000", "the limit before")
    recv = lab.recv(target())
    send = lab.send(source, recv.listening, "--downtime-limit", 30, "--max-bandwidth", "2M",
                    "--on-stall", "throttle")
    event = send.wait_event(lambda e: e["event"] == "progress" and e["throttle"] >= 20, 40,
                            "it is throttled")
    check("throttling guest %d %%" % event["throttle"] in event["stall"], "progress: %s", event)
    limit = group.limit()
    check(re.fullmatch(r"\d+ \d+", limit), "cpu.max is %s", limit)
    felt = group.throttled()
    wait_until(lambda: group.throttled() > felt, 10, "the limit is felt")
    if how == "kill":
        os.kill(send.worker(), signal.SIGKILL)
    else:
        lab.run("cancel", source.id).check_code(0)
    send.finish().check_code(1)
    recv.finish()
    check_equal(group.limit(), "max 100000", "the limit afterwards")
    source.check_works()
    source.check_clean()
    saw("cpu.max was %s, the kernel stopped it %d times", limit, group.throttled())


@test(timeout=60)
def a_crash_is_put_right(lab):
    source = guest("vm")
    Move(lab, source, target()).kill_all()
    check(viewed(source), "the view has gone by itself")
    check_equal(trackers(), 1, "trackers that exist")
    source.check_works()
    lab.run("resume", source.id).check_code(0)
    source.check_works()
    source.check_clean()
    check_equal(trackers(), 0, "trackers that exist")


@test(timeout=60)
def a_view_left_behind_is_no_hindrance(lab):
    """Nobody resumes, the record is lost: the next migration works all the same."""
    source = guest("vm")
    monitor = lab.ferry("monitor")
    Move(lab, source, target()).kill_all()
    check(viewed(source), "the view has gone by itself")
    Move(lab, source, target(), "--id", "again").go_on()
    told(monitor)


def told(monitor):
    """`ferry monitor` saw both trackers come and go; others are tried out with a page or two."""
    def seen(event):
        return {e["id"] for e in monitor.events
                if e["event"] == event and e["pages"] == MIB * 256}
    wait_until(lambda: len(seen("destroyed")) >= 2, 5, "two trackers have ended")
    monitor.process.send_signal(signal.SIGINT)
    monitor.finish().check_code(0)
    check_equal(len(seen("created")), 2, "trackers made")
    check_equal(seen("destroyed"), seen("created"), "trackers that ended")
    saw("monitor: %s", " ".join("%s:%s" % (e["event"], e["id"]) for e in monitor.events))


@test(timeout=60)
def a_peer_with_a_view_is_seen(lab):
    """Its writes count, up to the last one before the switchover."""
    source, last = guest("vm2"), target("vm3")
    peer = Peer(lab, "view", source)
    move = Move(lab, source, last)
    count = peer.stop_writing()
    move.go_on()
    check(count > 2, "the peer has written only %d times", count)
    for page in (0, 1, PEER_PAGES - 1):
        check_equal(last.word(PEER_AT + page * 4096 + 64), count * PEER_PAGES + page,
                    "what the peer wrote last to page %d" % page)
    saw("the peer wrote %d pages %d times", PEER_PAGES, count)


def small_vmm(lab, engine="threads"):
    """A ferry-vmm of two blocks, whose guest writes each page of its memory often."""
    lab.engine = engine
    lab.shape = ("--ram", "8M,1028K", "--vcpus", "2", "--tracker-log", "none")
    lab.work = ("--working-set", "2M", "--fill", "1M", "--dirty-rate", "1000")
    guest = lab.guest()
    guest.qemu.blocks = 2
    return guest


@test(timeout=60)
def a_vmm_with_libferry(lab):
    """It puts the views over its blocks itself, and its guest finds no lost write."""
    vmm_moves(lab, "threads")


def vmm_moves(lab, engine):
    guest, vm = small_vmm(lab, engine), lab.destination()

    def check_works():
        guest.moved(vm)
        guest.check_good()
    Move(lab, guest.qemu, vm, "--tracker", "kmod").go_on(check_works)
    check_equal(vm.end(), 0, "exit status of the destination")
    check_equal(trackers(), 0, "trackers that exist")


def check_kvm():
    check(os.path.exists("/dev/kvm"), "there is no /dev/kvm: is kvm-amd loaded?")


@test(timeout=120)
def a_kvm_guest_is_switched(_lab):
    """The agent puts the view in, and takes it out again, while KVM runs the guest."""
    check_kvm()
    lab = Lab("kvm")
    try:
        switch_under_kvm(lab, start(lab, "kvm", accel="kvm"),
                         start(lab, "kvm2", incoming=True, accel="kvm"))
        lab.settle()
    finally:
        lab.close()


def switch_under_kvm(lab, source, last):
    check_equal(source.monitor.command("query-kvm"), {"present": True, "enabled": True},
                "query-kvm")
    move = Move(lab, source, last, "--tracker", "kmod")
    source.check_works()
    lab.run("cancel", source.id).check_code(0)
    move.send.finish().check_code(1)
    check_result(move.send.result, "cancelled", guest="source", tracker="kmod")
    source.check_works()
    source.check_clean()
    move.recv.finish()
    check(not viewed(source), "the view is still there")
    Move(lab, source, last, "--tracker", "kmod").go_on()


@test(timeout=120)
def a_vmm_under_kvm(lab):
    """libferry puts the views over the memory slots of a machine that runs."""
    check_kvm()
    vmm_moves(lab, "kvm")


def trackers():
    """How many there are, by FERRY_QUERY."""
    device = os.open("/dev/ferry", os.O_RDWR)
    query = struct.Struct("<IIIIQQII")
    arg = bytearray(query.pack(query.size, 0, 0, 0, 0, 0, 0, 0))
    try:
        fcntl.ioctl(device, 0xF700, arg)
    finally:
        os.close(device)
    return query.unpack(arg)[7]


@test()
def nothing_is_left(_lab):
    _guest.pop("lab").close()
    unload()
    said = subprocess.run(["dmesg"], stdout=subprocess.PIPE, text=True, check=True).stdout
    bad = re.findall(r".*(?:WARNING|BUG|Oops|lockdep|leak).*", said)
    check(not bad, "the kernel says: %s", bad[:5])


@test()
def without_the_module(lab):
    word, why = doctor_says(lab)
    check_equal(word, "no", "tracker-kmod")
    check("not loaded" in why and "modprobe ferry" in why, "doctor says: %s", why)


@test(timeout=60)
def a_lost_write_is_found(lab):
    """The module for tests stops to protect what it has read: the next write is lost."""
    load(os.environ["FERRY_BROKEN_MODULE"])
    guest, vm = small_vmm(lab), lab.destination()
    move = Move(lab, guest.qemu, vm, "--tracker", "kmod")
    with open("/sys/module/ferry/parameters/broken", "w") as file:
        file.write("noprotect")
    after = time.monotonic_ns()
    first = move.send.wait_event(lambda e: e["event"] == "progress" and e["t_ns"] > after, 10,
                                 "progress")["round"]
    move.send.wait_event(lambda e: e.get("round", 0) >= first + 4, 20, "four more rounds")
    lab.run("continue", move.id).check_code(0)
    move.send.finish().check_code(1)
    check_result(move.send.result, "failed", guest="source", tracker="kmod")
    error = move.send.result["error"]
    check("--verify: " in error and " differs from the source's" in error, "error: %s", error)
    move.recv.finish().check_code(1)
    guest.check_good()
    guest.qemu.check_clean()
    unload()
    saw("%s", error)


def load(module):
    subprocess.run(["insmod", module], check=True)
    wait_until(lambda: os.path.exists("/dev/ferry"), 5, "/dev/ferry is there")


def unload():
    check_equal(trackers(), 0, "trackers that exist")
    subprocess.run(["rmmod", "ferry"], check=True)
    check(not os.path.exists("/dev/ferry"), "/dev/ferry is still there")


def prepare():
    load(FERRY_MODULE)


if __name__ == "__main__":
    if sys.argv[1:2] == ["peer"]:
        sys.exit(peer_main(*sys.argv[2:]))
    sys.exit(tap.main(VmmLab, prepare))
