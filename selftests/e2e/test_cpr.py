#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Changing the VMM under a guest: it moves with its RAM, or stays where it was with every
byte as it was, whatever fails or dies and wherever.

Without FERRY_TEST_LONG a part of each table is run.
"""
import hashlib
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys

import tap
from lib import (FERRY, ORDINARY_UID, ROOT, SHM, Lab, Qmp, boot_files, check, check_equal,
                 check_result, other_qemu, prerequisites, qemu_binary, read_text, wait_until)
from tap import test

LONG = bool(os.environ.get("FERRY_TEST_LONG"))
# A new one writes its number into the guest's RAM when it loads: what loading touches is seen.
TOUCHES = ("-device", "vmgenid,guid=auto")

# Where the guest is in the end: S in the old VMM, D in the new one, N lost with its VMM.
# stage         kill: worker guardian fail  old VMM  new VMM   both processes, then resume
MATRIX = """
cpr-attach             S     D        S     -        -         S
cpr-check              S     D        S     -        -         S
cpr-prepare            S     D        S     N        S         S
cpr-stop               S     D        S     N        S         S
cpr-quiesce            S     D        S     -        S         S
cpr-pass               S     D        S     N        S         S
cpr-save               S     D        S     D        S         S
cpr-load               S     D        S     D        S         S
cpr-commit             D     D        D     D        S         D
cpr-run                D     D        D     D        N         D
cpr-ran                D     D        D     D        N         D
cpr-quit               D     D        D     -        N         D
"""
ROWS = [line.split() for line in MATRIX.strip().splitlines()]
SHORT = ("cpr-load", "cpr-run")


def column(number, stages=SHORT):
    return {row[0]: (row[0], row[number]) for row in ROWS
            if row[number] != "-" and (LONG or row[0] in stages)}


def ram_hash(vmm):
    """Of what is in the files of its RAM; they belong to both VMMs."""
    digest = hashlib.blake2b()
    for path in vmm.ram_paths:
        with open(path, "rb") as file:
            for block in iter(lambda: file.read(1 << 20), b""):
                digest.update(block)
    return digest.hexdigest()


def hand_over(lab, guest, heir, *args, running=True):
    """cpr, and everything that always holds after a good one."""
    source = guest.qemu
    cpr = lab.cpr(source, heir, *args).finish().check_code(0)
    result = check_result(cpr.result, state="completed", guest="destination", mode="cpr",
                          error=None, sent_bytes=0)
    check(result["device_bytes"] > 0 and result["ram_bytes"] > 0, "%s", result)
    check((result["downtime_ns"] > 0) or not running, "no downtime was measured")
    check_equal(source.alive(), False, "the old VMM lives")
    guest.moved(heir)
    check_equal(heir.running(), running, "it runs in the new VMM")
    if running:
        guest.check_good()
    heir.check_clean()
    lab.check_no_ferry()
    check_equal(leftovers(lab), [], "files left in the runtime folder")
    return cpr


def leftovers(lab):
    return [name for name in os.listdir(lab.runtime) if not name.endswith((".json", ".lock", ".sock"))]


class Trial:
    """One cpr with a fault, and the question who owns the guest after it."""

    def __init__(self, lab, stage, fault, side="worker", guest=None, patience=10):
        self.lab, self.stage = lab, stage
        self.guest = guest or lab.guest()
        self.source, self.heir = self.guest.qemu, lab.heir(self.guest.qemu)
        self.cpr = lab.cpr(self.source, self.heir, "--timeout", patience,
                           fault="%s:%s" % (stage, fault), side=side, env={"FERRY_DEBUG": "1"})

    def fired(self):
        return "fault point %s fires" % self.stage in self.cpr.stderr

    def wait_stopped(self):
        return self.lab.stopped_worker("the worker stops at %s" % self.stage)

    def owner(self):
        source, heir = self.source.running(), self.heir.running()
        check(not (source and heir), "BOTH VMMs RUN THE GUEST after %s", self.stage)
        return "S" if source else "D" if heir else "N"

    def judge(self, wanted, code=None):
        self.cpr.finish()
        check(self.fired(), "the fault at %s never fired: %s", self.stage, self.cpr.stderr[-500:])
        self.lab.check_no_ferry()
        check_equal(self.owner(), wanted, "the owner: %s" % self.cpr.stderr[-600:])
        if code is None:
            code = 0 if wanted == "D" else 1
        self.cpr.check_code(code)
        if code >= 0:
            where = {"S": "source", "D": "destination", "N": "none"}[wanted]
            check_equal(self.cpr.result["guest"], where, "the result's guest")
        self.settled(wanted)

    def settled(self, wanted):
        """One owner, a good guest, nothing of ferry left."""
        if wanted == "S":
            if self.stage in ("cpr-attach", "cpr-check"):
                # Not touched: it may be used again.
                self.heir.before = getattr(self.heir, "untouched", self.heir.before)
                self.heir.check_clean()
            else:
                check_equal(self.heir.alive(), False, "the new VMM lives")
            check_equal(os.path.getsize(self.heir.serial), 0, "bytes the new VMM's guest printed")
            self.guest.check_good()
            self.source.check_clean()
        if wanted == "D":
            self.guest.moved(self.heir)
            check_equal(self.source.alive(), False, "the old VMM lives")
            self.guest.check_good()
            self.heir.check_clean()
        check_equal(leftovers(self.lab), [], "files left in the runtime folder")


# ---------------------------------------------------------------- it moves

@test()
def moves(lab):
    """From one QEMU to the next and on, and a disk with it."""
    guest = lab.guest()
    for _ in range(3 if LONG else 2):
        hand_over(lab, guest, lab.heir(guest.qemu))


@test(timeout=90)
def touched_pages_come_back(lab):
    """What loading wrote is undone, by the guardian, and when it has died too by `resume`."""
    guest = lab.boot(args=TOUCHES)
    guest.qemu.monitor.command("stop")
    before = ram_hash(guest.qemu)
    heir = lab.heir(guest.qemu, args=TOUCHES)
    # Nothing but loading changes any byte: neither the start of the new QEMU nor the rest.
    check_equal(ram_hash(guest.qemu), before, "RAM after the new QEMU started")
    lab.cpr(guest.qemu, heir, fault="cpr-save:fail").finish().check_code(1)
    check_equal(ram_hash(guest.qemu), before, "RAM after a cpr that saved")
    for both in (False, True):
        # QEMU says postmigrate now, and would refuse to save the guest again.
        guest.qemu.monitor.command("cont")
        guest.qemu.monitor.command("stop")
        before = ram_hash(guest.qemu)
        heir = lab.heir(guest.qemu, args=TOUCHES)
        trial = Trial.__new__(Trial)
        trial.lab, trial.stage = lab, "cpr-load"
        trial.cpr = lab.cpr(guest.qemu, heir, fault="cpr-load:stop")
        worker = trial.wait_stopped()
        # Or this test would prove nothing.
        check(ram_hash(guest.qemu) != before, "loading changed no byte of RAM")
        if both:
            trial.cpr.process.kill()
        os.kill(worker, signal.SIGKILL)
        trial.cpr.finish()
        if both:
            lab.run("resume", "vm").check_code(0)
        check_equal(ram_hash(guest.qemu), before, "RAM after the rollback")
        check_equal(guest.qemu.running(), False, "it was paused and runs")
        check_equal(heir.alive(), False, "the new QEMU lives")
        check_equal(leftovers(lab), [], "files left in the runtime folder")
    guest.qemu.monitor.command("cont")
    guest.check_good()


@test()
def paused_stays_paused(lab):
    guest = lab.guest()
    guest.qemu.monitor.command("stop")
    before = ram_hash(guest.qemu)
    heir = lab.heir(guest.qemu)
    hand_over(lab, guest, heir, running=False)
    check_equal(heir.status(), "paused", "the new QEMU's state")
    check_equal(ram_hash(heir), before, "RAM")
    heir.monitor.command("cont")
    guest.check_good()


@test()
def memfd(lab):
    """RAM without a name comes to the new QEMU as a descriptor: --exec and {ram:ram0}."""
    guest = lab.boot(memory="memfd")
    serial = os.path.join(lab.dir, "new.serial")
    source = guest.qemu
    command = [w if "mem-path=" not in w else re.sub(r"mem-path=[^,]*", "mem-path={ram:ram0}", w)
               for w in source.command]
    # It gets a monitor from ferry; the chardev of the serial line is a file of its own.
    drop = [i for i, w in enumerate(command) if w == "-qmp"]
    command = [w for i, w in enumerate(command) if i not in drop and i - 1 not in drop]
    command = [w.replace(source.serial, serial) for w in command] + ["-incoming", "defer"]
    open(serial, "w").close()
    cpr = lab.ferry("cpr", source.uri, "--exec", "--", *command, events=False)
    cpr.finish().check_code(0)
    check_equal(source.alive(), False, "the old QEMU lives")
    pid = int(re.search(r"new VMM \(pid (\d+)\)", cpr.stdout).group(1))
    lab.on_close(lambda: os.kill(pid, signal.SIGKILL))
    wait_until(lambda: b"TICK" in open(serial, "rb").read(), 15, "the guest ticks in the new QEMU")
    check("bad=0" in read_text(serial), "%s", read_text(serial, 300))
    # The guest is called what it was called before.
    monitor = Qmp(source.qmp_path)
    peer = monitor.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    check_equal(int.from_bytes(peer[:4], "little"), pid, "whose the guest's old name is")
    check_equal(monitor.command("query-status")["status"], "running", "the guest")
    check_equal([n for n in os.listdir(source.dir) if ".cpr-" in n], [], "sockets left")


@test()
def exec_fails(lab):
    """A command that is none, ends, or serves nothing: told by name, and the guest runs on."""
    guest = lab.guest()
    for command, words in ((["/nonexistent/vmm"], "cannot run /nonexistent/vmm"),
                           (["false"], "false ended with status 1"),
                           (["sh", "-c", "sleep 60"], "sh does not serve the socket")):
        cpr = lab.run("cpr", guest.qemu.uri, "--timeout", 2, "--exec", "--", *command)
        cpr.check_code(1)
        check(words in cpr.stderr, "'%s' is not in: %s", words, cpr.stderr)
        check_equal(leftovers(lab), [], "files left in the runtime folder")
        names = [n for n in os.listdir(guest.qemu.dir) if ".cpr-" in n]
        check_equal(names, [], "sockets left beside the guest's")
        check_equal(guest.qemu.status(), "running", "the guest")
    guest.check_good()
    guest.qemu.check_clean()


@test(timeout=90)
def newer_qemus(lab):
    """As an operator upgrades: 7.2, then 10.0, then 11.1, of one machine type."""
    paths = [other_qemu("10.0"), other_qemu("11.1")]
    guest = lab.boot(machine="pc-q35-7.2")
    for path in paths:
        hand_over(lab, guest, lab.heir(guest.qemu, machine="pc-q35-7.2", binary=path))
        check(guest.qemu.monitor.greeting["version"]["qemu"]["major"] ==
              int(re.search(r"qemu-(\d+)", path).group(1)), "%s", guest.qemu.monitor.greeting)


# ---------------------------------------------------------------- systemd's units

class Slot:
    """What systemd does with vm-SLOT@NAME.service, by its own lines."""

    def __init__(self, lab, slot, name, folder):
        self.lab, self.lines = lab, {}
        self.text = read_text(os.path.join(ROOT, "scripts/systemd/vm-%s@.service" % slot))
        for line in self.text.splitlines():
            key, equals, value = line.partition("=")
            if equals and not line.startswith("#"):
                value = value.replace("%i", name).replace("/run/vm/", folder + "/")
                value = value.replace("/etc/vm/", folder + "/").replace("$$", "$")
                self.lines.setdefault(key, []).append(value)
        with open(self.lines["EnvironmentFile"][0]) as file:
            self.env = dict(os.environ, FERRY_RUNTIME_DIR=lab.runtime,
                            PATH=lab.dir + ":" + os.environ["PATH"])
            for line in file:
                key, _, value = line.rstrip("\n").partition("=")
                self.env[key] = value

    def start(self):
        env = {k: v for k, v in self.env.items() if k != "FERRY_RUNTIME_DIR"}
        self.main = subprocess.Popen(shlex.split(self.lines["ExecStart"][0]), env=env)
        self.lab.on_close(lambda: (self.main.kill(), self.main.wait()))
        for line in self.lines["ExecStartPost"]:
            run = subprocess.run(shlex.split(line), env=self.env, stdout=subprocess.PIPE,
                                 stderr=subprocess.STDOUT, text=True, timeout=60)
            check_equal(run.returncode, 0, "%s: %s" % (line, run.stdout))
        return self


@test(timeout=90)
def systemd_units(lab):
    """The pair of units that the documentation shows: boot in one slot, upgrade, and back."""
    kernel, initramfs = boot_files()
    path = os.path.join(SHM, "ferry-e2e-%d-%s-unit" % (os.getpid(), lab.tag))
    lab.on_close(lambda: os.path.exists(path) and os.unlink(path))
    os.symlink(FERRY, os.path.join(lab.dir, "ferry"))
    serial = os.path.join(lab.dir, "serial")
    # No argument has a blank in it: sh splits ARGS.
    with open(os.path.join(lab.dir, "web1.env"), "w") as file:
        file.write("QEMU=%s\nARGS=-nodefaults -display none -m 96M -accel tcg -smp 1 -machine "
                   "q35,memory-backend=ram0 -object memory-backend-file,id=ram0,size=96M,share=on,"
                   "mem-path=%s -kernel %s -initrd %s -append console=ttyS0 -chardev "
                   "file,id=serial0,path=%s,append=on -serial chardev:serial0\n"
                   % (qemu_binary(), path, kernel, initramfs, serial))
    slots = {slot: Slot(lab, slot, "web1", lab.dir) for slot in "ab"}
    check_equal(slots["a"].text.replace("-a.qmp", "-b.qmp").replace("slot a", "slot b"),
                slots["b"].text, "the text of slot b")
    running = slots["a"].start().main

    def ticks():
        return [int(n) for n in re.findall(r"TICK (\d+) bad=0", read_text(serial))]
    wait_until(lambda: len(ticks()) > 3, 30, "the guest ticks")
    for slot in ("b", "a"):
        new = slots[slot].start().main
        check_equal(running.wait(10), 0, "the exit status of the old slot's QEMU")
        running, seen = new, ticks()[-1]
        wait_until(lambda: ticks()[-1] > seen + 2, 15, "the guest ticks in slot " + slot)
    check(ticks() == list(range(len(ticks()))), "ticks are missing or repeated: %s", ticks())
    if shutil.which("systemd-analyze"):
        for slot in "ab":
            unit = os.path.join(lab.dir, "vm-%s@web1.service" % slot)
            shutil.copy(os.path.join(ROOT, "scripts/systemd/vm-%s@.service" % slot), unit)
            run = subprocess.run(["systemd-analyze", "verify", "--man=no", unit], text=True,
                                 stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            said = [line for line in run.stdout.splitlines() if "vm-%s@" % slot in line]
            check(not said, "systemd-analyze: %s", said)


# ---------------------------------------------------------------- faults

@test()
def the_table_has_every_stage(lab):
    """A stage added to ferry and not to the table above would go untested."""
    listed = [line.split()[0] for line in lab.run("doctor", "--fault-points").stdout.splitlines()
              if line.split()[1] == "cpr"]
    # With --exec: test_cpr_vmm.py.
    check_equal([s for s in listed if s != "cpr-exec"], [row[0] for row in ROWS], "the stages")


@test(cases=column(1))
def kill_worker(lab, stage, wanted):
    Trial(lab, stage, "kill").judge(wanted)


@test(cases=column(2, ("cpr-load",)))
def kill_guardian(lab, stage, wanted):
    Trial(lab, stage, "kill", side="guardian").judge(wanted, -signal.SIGKILL)


@test(cases=column(3, ("cpr-check", "cpr-stop")))
def fail(lab, stage, wanted):
    Trial(lab, stage, "fail").judge(wanted)


@test(timeout=60, cases=column(4, ("cpr-save",)))
def kill_old_vmm(lab, stage, wanted):
    trial = Trial(lab, stage, "stop")
    worker = trial.wait_stopped()
    trial.source.kill_process()
    os.kill(worker, signal.SIGCONT)
    trial.judge(wanted)


@test(timeout=60, cases=column(5, ("cpr-commit",)))
def kill_new_vmm(lab, stage, wanted):
    trial = Trial(lab, stage, "stop")
    worker = trial.wait_stopped()
    trial.heir.kill_process()
    os.kill(worker, signal.SIGCONT)
    trial.judge(wanted)


@test(timeout=60, cases=column(6, ("cpr-load", "cpr-commit")))
def kill_both(lab, stage, wanted):
    """Nobody is left to clean up: status says what to type, and that does it."""
    trial = Trial(lab, stage, "stop")
    worker = trial.wait_stopped()
    trial.cpr.process.kill()
    os.kill(worker, signal.SIGKILL)
    trial.cpr.finish()
    status = lab.run("status", trial.source.id).stdout
    check("ferry resume %s" % trial.source.id in status, "status says: %s", status)
    # Nothing is decided by itself.
    owner = trial.owner()
    check(owner in ("N", "S" if stage in ("cpr-attach", "cpr-check", "cpr-prepare") else "D"),
          "%s owns the guest", owner)
    lab.run("resume", trial.source.id).check_code(0)
    lab.check_no_ferry()
    check_equal(trial.owner(), wanted, "the owner")
    trial.settled(wanted)
    again = lab.run("resume", trial.source.id)
    check("nothing to resume" in again.stderr, "%s", again.stderr)


@test(cases={s: (s,) for s in (("cpr-attach", "cpr-stop", "cpr-save", "cpr-load") if LONG
                               else ("cpr-save",))})
def cancel(lab, stage):
    trial = Trial(lab, stage, "delay=1500")
    wait_until(trial.fired, 15, "it comes to " + stage)
    lab.run("cancel", trial.source.id).check_code(0)
    trial.judge("S")
    check_equal(trial.cpr.result["event"], "cancelled", "the event")
    check_equal(trial.cpr.states()[-2:], ["cancelling", "cancelled"], "the states")


@test()
def too_late_to_cancel(lab):
    trial = Trial(lab, "cpr-commit", "delay=1500")
    wait_until(trial.fired, 15, "it comes to COMMIT")
    refused = lab.run("cancel", trial.source.id).check_code(1)
    check("cannot be cancelled any more" in refused.stderr, "%s", refused.stderr)
    trial.judge("D")


@test(timeout=60)
def forced_back(lab):
    """COMMIT stands, the new VMM died before it ran anything, nobody knows: a person decides."""
    trial = Trial(lab, "cpr-commit", "stop")
    worker = trial.wait_stopped()
    trial.cpr.process.kill()
    os.kill(worker, signal.SIGKILL)
    trial.cpr.finish()
    trial.heir.kill_process()
    resumed = lab.run("resume", trial.source.id).check_code(3)
    check("--force-source" in resumed.stderr, "%s", resumed.stderr)
    check_equal(trial.owner(), "N", "the owner")
    lab.run("resume", trial.source.id, "--force-source").check_code(0)
    check_equal(trial.owner(), "S", "the owner")
    trial.settled("S")


@test(timeout=60)
def one_and_the_next(lab):
    """After a cpr that failed the guest moves all the same."""
    trial = Trial(lab, "cpr-load", "fail")
    trial.judge("S")
    hand_over(lab, trial.guest, lab.heir(trial.guest.qemu))


# ---------------------------------------------------------------- refusals

def refused(lab, guest, heir_uri, words, *args, **options):
    guest.qemu.monitor.command("query-status")
    seen = len(guest.qemu.monitor.events)
    cpr = lab.run("cpr", guest.qemu.uri, "--to", heir_uri, "--timeout", 5, *args, **options)
    cpr.check_code(1)
    check(re.search(words, cpr.stderr), "'%s' is not in: %s", words, cpr.stderr)
    guest.qemu.monitor.command("query-status")
    stops = [e for e in guest.qemu.monitor.events[seen:] if e["event"] in ("STOP", "RESUME")]
    check_equal(stops, [], "the guest was disturbed")
    guest.qemu.check_clean()
    lab.check_no_ferry()
    check_equal(leftovers(lab), [], "files left in the runtime folder")


WRONG = {  # what the new QEMU is started with, and the words
    "inode": (dict(heir_of=None), r"'ram0' of the new VMM is another file"),
    "name": (dict(memory_id="mem"), r"no memory block 'ram0'"),
    "machine": (dict(machine="pc-q35-6.2"), r"machine type pc-q35-6.2, the guest has pc-q35-7"),
    "private": (dict(heir_of=None, memory="private"), r"new VMM.*private to QEMU"),
    "discard": (dict(memory_options="discard-data=on"), r"new VMM.*discard-data=on"),
    "prealloc": (dict(memory_options="prealloc=on"), r"prealloc=on, which touches"),
    "running": (dict(heir_of=None, incoming=False), r"waits for no migration"),
}


@test(cases={name: (name,) for name in WRONG
             if LONG or name in ("inode", "machine", "discard", "prealloc")})
def wrong_new_vmm(lab, name):
    guest = lab.guest()
    options, words = WRONG[name]
    options = dict(dict(heir_of=guest.qemu, incoming=True), **options)
    owner = Lab._shared
    heir = owner.qemu("wrong-%d" % len(owner.qemus), **options)
    refused(lab, guest, heir.uri, words)
    check(heir.alive(), "the new QEMU was ended")
    heir.check_clean()
    guest.check_good()
    heir.kill()


@test()
def wrong_size(lab):
    """The file is the same, and one of the two maps less of it."""
    guest = lab.guest()
    heir = lab.heir(guest.qemu, mib=64)
    refused(lab, guest, heir.uri, r"'ram0' has 67108864 bytes in the new VMM, the guest has")
    guest.check_good()
    heir.kill()


@test(cases={"refused": ()} if LONG else {})
def huge_pages(lab):
    lab.huge_pages(96)
    guest = lab.boot(memory="hugetlb")
    refused(lab, guest, lab.heir(guest.qemu, memory="hugetlb").uri,
            r"'ram0' is of huge pages \(hugetlb\): such a guest cannot be handed")
    guest.check_good()


@test()
def other_refusals(lab):
    guest = lab.guest()
    for to, words in (("port:/nowhere", "different kinds"), ("/nowhere", "no driver and path"),
                      (guest.qemu.uri, "the guest's own VMM")):
        usage = lab.run("cpr", guest.qemu.uri, "--to", to).check_code(2)
        check(words in usage.stderr, "'%s' is not in %s", words, usage.stderr)
    refused(lab, guest, "qmp:/nowhere", "the new VMM")
    usage = lab.run("cpr", guest.qemu.uri).check_code(2)
    check("--to GUEST" in usage.stderr, "%s", usage.stderr)
    lab.run("cpr", guest.qemu.uri, "--exec").check_code(2)
    # A stranger maps the RAM.
    stranger = lab.heir(guest.qemu)
    heir = lab.heir(guest.qemu)
    refused(lab, guest, heir.uri, r"pid %d \(.*\) maps guest RAM" % stranger.pid)
    stranger.kill()
    guest.check_good()


@test()
def not_enough_rights(lab):
    """Without the right to look at the VMMs nothing is tried."""
    guest = lab.guest()
    heir = lab.heir(guest.qemu)
    os.chmod(lab.runtime, 0o777)
    for vmm in (guest.qemu, heir):
        os.chmod(vmm.qmp_path, 0o777)
    plain = os.path.join(lab.dir, "ferry")
    shutil.copy(FERRY, plain)
    os.chmod(plain, 0o755)
    refused_as(lab, guest, heir, plain)
    guest.check_good()


def refused_as(lab, guest, heir, program):
    run = subprocess.run([program, "cpr", guest.qemu.uri, "--to", heir.uri, "--timeout", "5"],
                         user=ORDINARY_UID, group=ORDINARY_UID, extra_groups=[], text=True,
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                         env=dict(os.environ, FERRY_RUNTIME_DIR=lab.runtime))
    check_equal(run.returncode, 1, "the exit code: %s" % run.stderr)
    check("run ferry as root" in run.stderr, "%s", run.stderr)
    check_equal(guest.qemu.status(), "running", "the guest")
    check_equal(heir.status(), "inmigrate", "the new QEMU")


@test(timeout=60)
def another_migration(lab):
    """One under way, by either of its names, is named."""
    guest = lab.boot(args=("-qmp", "unix:second.qmp,server=on,wait=off")) if LONG else lab.guest()
    names = [guest.qemu.uri] + (["qmp:%s/second.qmp" % guest.qemu.dir] if LONG else [])
    target = lab.destination()
    recv = lab.recv(target)
    send = lab.send(guest.qemu, recv.listening, "--max-bandwidth", "1M")
    send.wait_state("active")
    heir = lab.heir(guest.qemu)
    for uri in names:
        run = lab.run("cpr", uri, "--to", heir.uri, "--id", "other").check_code(1)
        check(re.search(r"%s(, a precopy| of).*under way" % guest.qemu.id, run.stderr), "%s",
              run.stderr)
    lab.run("cancel", guest.qemu.id).check_code(0)
    send.finish()
    recv.finish()
    heir.kill()
    guest.check_good()


# ---------------------------------------------------------------- over and over

@test(timeout=300, cases={"100": (100,)} if LONG else {})
def back_to_back(lab, times):
    """One guest under load through many QEMUs: nothing is lost, nothing is left."""
    guest = lab.boot()
    first = guest.qemu
    paths = list(first.ram_paths)
    for _ in range(times):
        old = guest.qemu
        heir = lab.heir(old)
        hand_over(lab, guest, heir)
        check_equal(heir.ram_paths, paths, "the files of its RAM")
        check_equal(heir._fd_kinds(), heir.before["open files"], "open files")
    names = [n for n in os.listdir(SHM) if n.startswith("ferry-e2e-%d-%s" % (os.getpid(), lab.tag))]
    check_equal(len(names), len(paths), "files in /dev/shm")


if __name__ == "__main__":
    sys.exit(tap.main(Lab, prerequisites))
