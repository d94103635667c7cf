#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""test_cpr.py with ferry-vmm, whose guest notices any page or register that is not what it was,
and which gets its RAM as descriptors.

Without FERRY_TEST_LONG a part of each table is run.
"""
import hashlib
import os
import signal
import struct
import subprocess
import sys

import tap
import test_cpr
import vmm
from lib import ROOT, check, check_equal, wait_until
from tap import Skip, test
from test_cpr import LONG, column, hand_over
from vmm import FERRY_VMM, Port, VmmLab, have_kvm

tap.forget()  # test_cpr's own tests, of QEMU
EVERY = ("cpr-prepare", "cpr-stop", "cpr-pass", "cpr-load", "cpr-commit", "cpr-ran")


class CprLab(VmmLab):
    def heir(self, source, name="new", *args):
        heir = self.vmm("%s-%d" % (name, len(self.qemus)), "--engine", self.engine, *self.shape,
                        "--adopt", *args, incoming=True).started()
        heir.untouched = dict(heir.before)
        heir.before["mappings"] = source.before["mappings"]
        heir.before["open files"] = dict(source.before["open files"])
        return heir


def ram_hash(pid):
    """Of all RAM that this process maps."""
    digest, seen = hashlib.blake2b(), set()
    folder = "/proc/%d/fd" % pid
    for name in sorted(os.listdir(folder), key=int):
        path = os.path.join(folder, name)
        try:
            if "memfd:ferry-vmm-ram" not in os.readlink(path) or os.stat(path).st_ino in seen:
                continue
            with open(path, "rb") as file:
                seen.add(os.fstat(file.fileno()).st_ino)
                digest.update(file.read())
        except FileNotFoundError:
            continue    # closed meanwhile: a copy, for the agent, of one that stays open
    check(seen, "pid %d has no RAM", pid)
    return digest.hexdigest()


@test(timeout=60, cases={name: (name,) for name in ("kvm", "threads")})
def moves(lab, engine):
    lab.engine = engine
    if engine == "kvm" and not have_kvm():
        raise Skip("/dev/kvm is not there or not ours to use")
    guest = lab.guest("--dirty-rate", "max")
    for _ in range(3):
        source = guest.qemu
        hand_over(lab, guest, lab.heir(source))
        check_equal(source.process.returncode, 0, "the old VMM's exit status: %s" % source.stderr)
    check_equal(guest.qemu.end(), 0, "exit status: %s" % guest.qemu.stderr)


@test(timeout=60)
def paused_stays_paused(lab):
    guest = lab.guest()
    guest.check_good()
    Port(guest.qemu.port).pause().close()
    before = ram_hash(guest.qemu.pid)
    failed = lab.heir(guest.qemu)
    lab.cpr(guest.qemu, failed, fault="cpr-load:fail").finish().check_code(1)
    check_equal(ram_hash(guest.qemu.pid), before, "RAM after the rollback")
    check_equal(guest.qemu.status(), "paused", "the old VMM after the rollback")
    heir = lab.heir(guest.qemu)
    hand_over(lab, guest, heir, running=False)
    port = Port(heir.port)
    port.ask(9)  # RUN: it was loaded and never ran here
    port.close()
    wait_until(heir.running, 5, "it runs")
    guest.check_good()


@test(timeout=60)
def upgrades_itself(lab):
    """--exec of another binary: the guest runs on and keeps its name."""
    guest = lab.guest()
    binary = os.path.join(lab.dir, "ferry-vmm-2")
    os.link(FERRY_VMM, binary) if os.stat(FERRY_VMM).st_dev == os.stat(lab.dir).st_dev else \
        subprocess.run(["cp", FERRY_VMM, binary], check=True)
    source, name = guest.qemu, guest.qemu.port
    for _ in range(2):
        cpr = lab.ferry("cpr", "port:" + name, "--json", "--exec", "--", binary, "--engine",
                        lab.engine, *lab.shape, "--incoming", "--adopt", "--port", name,
                        events=False)
        cpr.finish().check_code(0)
        check_equal(cpr.result["guest"], "destination", "the guest")
    check_equal(source.process.wait(10), 0, "the old VMM: %s" % source.stderr)
    pids = [int(p) for p in os.listdir("/proc") if p.isdigit() and is_running(int(p), binary)]
    check_equal(len(pids), 1, "processes of the new binary")
    lab.on_close(lambda: is_running(pids[0], binary) and os.kill(pids[0], signal.SIGKILL))
    port = Port(name)
    check_equal(struct.unpack("<I", port.ask(3))[0] & 1, 1, "it runs")
    port.close()
    os.kill(pids[0], signal.SIGTERM)  # it checks all of RAM and tells ferry's standard error
    wait_until(lambda: not is_running(pids[0], binary), 10, "it ends")
    check("errors=0" in cpr.stderr.splitlines()[-1], "%s", cpr.stderr[-400:])


@test(timeout=60, cases={"kill": ("kill",), "fail": ("fail",)})
def exec_stage(lab, fault):
    """What --exec has started ends when it is not needed, and so does its socket."""
    guest = lab.guest()
    name = guest.qemu.port
    run = lab.run("cpr", "port:" + name, "--exec", "--", FERRY_VMM, "--engine", lab.engine,
                  *lab.shape, "--incoming", "--adopt", "--port", name, fault="cpr-exec:" + fault)
    run.check_code(1)
    check_equal(adopting(name), [], "processes left")
    check_equal([n for n in os.listdir(guest.qemu.dir) if ".cpr-" in n], [], "sockets left")
    guest.check_good()
    guest.qemu.check_clean()


@test(timeout=60)
def exec_of_a_script(lab):
    """A script that does not become the VMM is refused, and what it started ends with it."""
    guest = lab.guest()
    name = guest.qemu.port
    run = lab.run("cpr", "port:" + name, "--exec", "--", "sh", "-c", '"$@"; true', "sh", FERRY_VMM,
                  "--engine", lab.engine, *lab.shape, "--incoming", "--adopt", "--port", name)
    run.check_code(1)
    check("'sh' started the VMM as another process" in run.stderr, "it says: %s", run.stderr)
    wait_until(lambda: not adopting(name), 5, "the new VMM ends")
    guest.check_good()
    guest.qemu.check_clean()


def adopting(name):
    """The processes that were started to adopt the guest of this name."""
    return [p for p in os.listdir("/proc") if p.isdigit() and
            (b"--adopt\0--port\0%s\0" % name.encode()) in read_bytes("/proc/%s/cmdline" % p)]


def read_bytes(path):
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""


def is_running(pid, binary):
    try:
        return os.readlink("/proc/%d/exe" % pid) == binary
    except OSError:
        return False


@test(timeout=60)
def devices_are_let_go_first(lab):
    """A VMM whose device has one owner: RAM that comes before it is let go is EBUSY."""
    program = os.path.join(os.path.dirname(FERRY_VMM), "selftests/e2e/owner")
    run = subprocess.run(["make", "--no-print-directory", "O=" + os.path.dirname(FERRY_VMM),
                          program], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    check(run.returncode == 0, "%s", run.stdout.decode()[-500:])

    def start(name, *args):
        process = subprocess.Popen([program, os.path.join(lab.dir, name + ".port"),
                                    os.path.join(lab.dir, "device")] + list(args),
                                   stdout=subprocess.PIPE, text=True)
        lab.on_close(lambda: (process.kill(), process.wait()))
        check_equal(process.stdout.readline(), "ready\n", "its first line")
        return process

    def cpr(one, two):
        return lab.run("cpr", "port:%s/%s.port" % (lab.dir, one), "--to",
                       "port:%s/%s.port" % (lab.dir, two), "--timeout", 5)
    old = start("old")
    new = start("new", "incoming")
    cpr("old", "new").check_code(0)
    check_equal(old.wait(10), 0, "the old VMM")
    check_equal(new.stdout.readline(), "runs\n", "the new VMM")
    # The same without its quiesce(): the test VMM notices.
    careless = start("careless", "careless", "other")
    start("next", "incoming", "other")
    refused = cpr("careless", "next").check_code(1)
    check("the device is held by another VMM" in refused.stderr, "%s", refused.stderr)
    port = Port(os.path.join(lab.dir, "careless.port"))
    check_equal(struct.unpack("<I", port.ask(3))[0], 1, "it runs, and nothing else")
    port.close()
    check(careless.poll() is None, "the old VMM ended")


@test(timeout=60)
def refused(lab):
    """A new VMM that the guest does not fit is refused before the stop."""
    guest = lab.guest()
    other = ("--engine", "threads" if lab.engine == "kvm" else "kvm")
    wrong = [("--ram says something else", ("--engine", lab.engine, "--ram", "24M,10M,28K,5124K",
                                            "--vcpus", "2", "--adopt")),
             ("is another file", ("--engine", lab.engine) + lab.shape),
             ("ferry-vmm-" + other[1], other + lab.shape + ("--adopt",))]
    for number, (words, args) in enumerate(wrong):
        if "kvm" in args and not have_kvm():
            continue
        heir = lab.vmm("wrong-%d" % number, *args, incoming=True).started()
        run = lab.ferry("cpr", guest.qemu.uri, "--to", heir.uri, "--timeout", 5).finish()
        run.check_code(1)
        check(words in run.stderr, "'%s' is not in: %s", words, run.stderr)
        check("device" not in run.states(), "the guest was stopped: %s", run.states())
        check(heir.alive(), "the new VMM was ended")
        heir.kill()
    one = lab.heir(guest.qemu)
    run = lab.run("cpr", one.uri, "--to", guest.qemu.uri).check_code(1)
    check("is a destination" in run.stderr or "no guest" in run.stderr, "%s", run.stderr)
    guest.check_good()
    guest.qemu.check_clean()


@test(timeout=400)
def back_to_back(lab):
    """Writers at full speed, from VMM to VMM to VMM."""
    guest = lab.guest("--dirty-rate", "max")
    first = guest.qemu.before["open files"]
    for _ in range(100 if LONG else 6):
        hand_over(lab, guest, lab.heir(guest.qemu))
        check_equal(guest.qemu._fd_kinds(), first, "open files")
        for old in guest.hosts[:-1]:
            check(not old.alive(), "%s lives", old.name)
    check_equal(guest.qemu.end(), 0, "exit status: %s" % guest.qemu.stderr)


for function, cases in ((test_cpr.kill_worker, column(1, EVERY)),
                        (test_cpr.kill_guardian, column(2, ("cpr-load",))),
                        (test_cpr.fail, column(3, ("cpr-quiesce", "cpr-load"))),
                        (test_cpr.kill_old_vmm, column(4, ("cpr-stop", "cpr-save", "cpr-commit"))),
                        (test_cpr.kill_new_vmm, column(5, ("cpr-load", "cpr-commit", "cpr-run"))),
                        (test_cpr.kill_both, column(6, ("cpr-load", "cpr-commit")))):
    test(timeout=60, cases=cases)(function)


if __name__ == "__main__":
    sys.exit(tap.main(CprLab, vmm.prerequisites))
