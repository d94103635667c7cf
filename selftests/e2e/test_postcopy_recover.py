#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Recovery in postcopy: the link is cut, processes die, and the guest gets all its memory.

Most use ferry-vmm, whose guest checks every page it reads and stops at the first that is not
what it wrote; two use QEMU, whose monitor hangs while a vCPU waits for a page.
"""
import json
import os
import re
import signal
import subprocess
import sys
import time

import lib
import tap
import vmm
from lib import ROOT, Lab, check, check_equal, check_result, prerequisites, wait_until
from tap import test

# So slow that it is under way when something happens; the rest is sent at full speed.
SLOWLY = ("--postcopy", "now", "--max-bandwidth", "3M")


class Move:
    """A migration of a guest of ferry-vmm that is in postcopy-active."""

    def __init__(self, lab, send=None, recv=None, side=None, timeout=10, args=SLOWLY, qemu=False,
                 running=True, shape=(), target=(), before=None):
        self.lab = lab
        if qemu:
            self.guest = lab.boot(append="ferry.dirty=16 ferry.pause_ms=10")
        else:
            self.guest = lab.guest(*shape)
        self.source = self.guest.qemu
        self.target = lab.destination() if qemu else lab.destination("vm2", *target)
        self.timeout = timeout
        if before:
            before(self.target)
        self.recv = lab.ferry("recv", self.target.uri, "tcp:127.0.0.1:0", "--timeout", timeout,
                              fault=recv, side=recv and side)
        self.uri = self.recv.wait_listening()
        self.send = lab.ferry("send", self.source.uri, self.uri, "--timeout", timeout, *args,
                              fault=send, side=send and side)
        if running:
            self.running()

    def running(self):
        self.send.wait_state("postcopy-active")
        self.recv.wait_state("postcopy-active")
        return self

    def after(self, ferry, state, do):
        """@do, and wait until @ferry has published @state since."""
        before = len(ferry.states())
        do()
        wait_until(lambda: state in ferry.states()[before:], 20, "%s is %s" % (ferry.name, state))

    def pause(self):
        self.after(self.recv, "postcopy-paused",
                   lambda: self.lab.run("pause", self.source.id).check_code(0))

    def recover(self):
        """As a person does: until it is taken."""
        before = len(self.send.states())

        def again():
            if "postcopy-active" in self.send.states()[before:]:
                return self.recv.states()[-1] == "postcopy-active"
            self.lab.run("recover", self.source.id)
            return False
        wait_until(again, 20, "it goes on")

    def recover_by_answer(self):
        """The source learns that nothing is missing any more."""
        if self.send.process.poll() is not None:
            self.send = self.lab.ferry("recover", self.source.id, "--timeout", 20)
        else:
            self.lab.run("recover", self.source.id)

    def full_speed(self):
        self.lab.run("set", self.source.id, "max-bandwidth=0")

    def completed(self, killed=None):
        self.full_speed()
        for ferry in (self.send, self.recv):
            ferry.finish(30)
            check_result(ferry.result, "completed", guest="destination", error=None,
                         missing_pages=0)
            # The process that was started was the guardian that was killed.
            ferry.check_code(-signal.SIGKILL if ferry is killed else 0)
        self.guest.moved(self.target)
        wait_until(lambda: not self.source.alive(), 5, "the source has ended")
        self.guest.check_good()
        self.target.check_clean()
        check_equal([f for f in os.listdir(self.lab.runtime) if re.search("placed|layout", f)], [],
                    "files that are left")

    def kill_all(self, ferry, stop=()):
        """Guardian and worker, neither of which sees the other die."""
        pids = list(stop) or [ferry.pid, ferry.worker()]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        ferry.finish()


def in_vmm(function):
    """The lab of ferry-vmm in the place of QEMU's."""
    def wrapped(lab, *args):
        vmm.prerequisites()
        lab = vmm.VmmLab(lab.name)
        failed = True
        try:
            function(lab, *args)
            lab.settle()
            failed = False
        finally:
            if failed:
                print("# " + lab.diagnostics().replace("\n", "\n# "))
            lab.close(failed)
    wrapped.__name__ = function.__name__
    wrapped.__doc__ = function.__doc__
    return wrapped


@test()
@in_vmm
def paused_by_a_person(lab):
    """`ferry pause`, twice; the guest works on, status tells, and `ferry recover` ends it."""
    move = Move(lab)
    run = lab.run("pause", move.target.id + "-in")
    run.check_code(1)
    check("is the destination: the source pauses" in run.stderr, "it says: %s", run.stderr)
    for _ in range(2):
        move.pause()
        status = lab.run("status", move.source.id, "--json").stdout
        check('"state":"postcopy-paused"' in status, "status: %s", status)
        check('"guest":"destination"' in status, "status: %s", status)
        check(move.target.running() and not move.source.running(), "one of them runs it")
        move.recover()
        states = move.send.states()
        check_equal(states[-4:], ["postcopy-paused", "postcopy-recover-setup", "postcopy-recover",
                                  "postcopy-active"], "the source's states")
        check_equal(move.recv.states()[-4:], states[-4:], "the destination's states")
    move.completed()
    run = lab.run("pause", move.source.id)
    run.check_code(1)


@test()
@in_vmm
def pause_too_early(lab):
    guest = lab.guest()
    recv = lab.recv(lab.destination())
    send = lab.send(guest.qemu, recv.listening, "--pause-before-switchover")
    send.wait_state("pre-switchover")
    run = lab.run("pause", guest.qemu.id)
    run.check_code(1)
    check("cannot be paused in state pre-switchover" in run.stderr, "it says: %s", run.stderr)
    lab.run("cancel", guest.qemu.id).check_code(0)
    send.finish().check_code(1)
    recv.finish().check_code(1)
    guest.check_good()


@test()
@in_vmm
def another_address(lab):
    """Both sides go on at an address that is new, and the old one is free."""
    move = Move(lab)
    move.pause()
    there = "unix:%s/elsewhere.sock" % lab.dir
    lab.run("recover", move.target.id + "-in", there).check_code(0)
    wait_until(lambda: os.path.exists(there[5:]), 5, "it listens there")
    run = lab.run("recover", move.source.id, "nonsense:1")
    run.check_code(2)
    move.after(move.send, "postcopy-active",
               lambda: lab.run("recover", move.source.id, there).check_code(0))
    run = lab.run("recover", move.source.id)
    run.check_code(1)
    check("there is nothing to recover" in run.stderr, "it says: %s", run.stderr)
    move.completed()


@test(cases={
    **{"%s-%s" % (stage, side): (end, stage, side) for end, stage in (
        ("send", "paused"), ("send", "answered"), ("send", "again"), ("recv", "cut"),
        ("recv", "back"), ("recv", "told"), ("recv", "recover")) for side in ("worker", "guardian")},
})
@in_vmm
def killed_in_recovery(lab, end, stage, side):
    """The link is cut, and while it is recovered a process dies."""
    move = Move(lab, side=side, **{end: stage + ":kill"})
    lab.run("pause", move.source.id).check_code(0)
    move.recv.wait_state("postcopy-paused")
    move.recover()
    move.completed(getattr(move, end) if side == "guardian" else None)


@test(cases={"%s-%s" % (stage, end): (end, stage, state) for end, stage, state in (
    ("recv", "listening", "source"), ("recv", "package-received", "source"),
    ("recv", "load", "source"), ("recv", "commit-wait", "source"),
    ("recv", "run-accepted", "both"), ("recv", "start", "both"), ("recv", "lacks-sent", "both"),
    ("send", "discard", "source"), ("send", "package", "source"), ("send", "commit", "both"),
    ("send", "run", "both"), ("send", "lacks", "both"))})
@in_vmm
def all_of_a_side_die(lab, end, stage, result):
    """Guardian and worker of a side, at a stage; the commands that are shown bring it back."""
    move = Move(lab, timeout=2, running=False, **{end: stage + ":stop"})
    victim = getattr(move, end)
    stopped = wait_until(lambda: [p for p in lab.ferry_pids() if is_stopped(p)], 15, "the stage")
    move.kill_all(victim, [victim.pid] + stopped)
    name = move.source.id if end == "send" else move.target.id + "-in"
    if result == "source":
        back_at_the_source(lab, move, end, name)
        return
    if end == "recv" and stage == "run-accepted":
        # The guest must not run with memory that is not there.
        run = lab.run("resume", name)
        run.check_code(3)
        check("still at the source" in run.stderr, "resume says: %s", run.stderr)
    again = lab.ferry("recover", name, "--timeout", 20)
    setattr(move, end, again)
    if end == "recv":
        again.wait_listening()
        # A source that gave up waiting says what to type, too.
        if wait_until(lambda: ended(move.send) or "postcopy-active" in move.send.states(), 15,
                      "the source goes on or ends"):
            if ended(move.send):
                move.send.check_code(3)
                move.send = lab.ferry("recover", move.source.id, "--timeout", 20)
    move.completed()


def back_at_the_source(lab, move, end, name):
    other = move.recv if end == "send" else move.send
    other.finish(20)
    if end == "recv":
        other.check_code(1)
    run = lab.run("resume", name)
    if run.code == 3:  # loaded and waits for the source, which has given up
        lab.run("cancel", name).check_code(0)
    if end == "send":
        run.check_code(0)
    check(move.source.running(), "the guest does not run at the source")
    check(not move.target.running(), "the destination runs it too")
    move.guest.check_good()
    move.source.check_clean()


def ended(ferry):
    return ferry.process.poll() is not None


def is_stopped(pid):
    try:
        with open("/proc/%d/stat" % pid) as file:
            return file.read().rsplit(")", 1)[1].split()[0] in "T"
    except OSError:
        return False


@test(cases={"%s-%s" % (end, kind): (end, kind) for end in ("send", "recv")
             for kind in ("vmm", "qemu")})
def all_of_a_side_die_under_way(lab, end, kind):
    """Both processes, in the middle of it: nobody but the VMM has the userfaultfd any more."""
    (in_vmm(die_under_way) if kind == "vmm" else die_under_way)(lab, end, kind == "qemu")


def die_under_way(lab, end, qemu):
    args = ("--postcopy", "now", "--max-bandwidth", "12M") if qemu else SLOWLY
    move = Move(lab, qemu=qemu, timeout=5, args=args)
    for turn in range(2):
        victim = getattr(move, end)
        # What it has taken over runs as a child of the one that was started.
        move.kill_all(victim)
        status = lab.run("status", move.target.id + "-in" if end == "recv" else move.source.id)
        check("ferry recover" in status.stdout, "status: %s", status.stdout)
        check(not move.source.running(), "the source runs")
        again = lab.ferry("recover", move.target.id + "-in" if end == "recv" else move.source.id,
                          "--timeout", 20)
        setattr(move, end, again)
        if end == "recv":
            again.wait_listening()
            move.recover()
        again.wait_state("postcopy-active", 20)
    move.completed()


def spilled(lab, move, path):
    run = lab.run("spill", move.source.id, path)
    run.check_code(0)
    check("pages that the destination may lack are in" in run.stdout, "it says: %s", run.stdout)
    return path


@test(cases={"destination-lives": (False, False), "destination-dead": (True, False),
             "source-dead": (False, True)})
@in_vmm
def finished_from_a_file(lab, destination_dead, source_dead):
    """The source's host is about to go: what is missing goes through a file."""
    move = Move(lab, timeout=5)
    path = spilled(lab, move, os.path.join(lab.dir, "rest"))
    move.recv.wait_state("postcopy-paused")
    if source_dead:
        move.source.kill()
        move.kill_all(move.send)
    target = move.target.id + "-in"
    if destination_dead:
        move.kill_all(move.recv)
        move.recv = lab.ferry("recover", target, "file:" + path, "--timeout", 5)
    else:
        run = lab.run("recover", target, "file:" + path)
        run.check_code(0)
        check("the guest has all of its memory" in run.stdout, "it says: %s", run.stdout)
    move.recv.wait_state("completed")
    check_equal(move.target.check_ram(), 0, "bad pages")
    if source_dead:
        lab.run("cancel", target)  # nobody will say ACK
        move.recv.finish().check_code(0)
        move.guest.moved(move.target)
        move.guest.check_good()
        return
    move.recover_by_answer()
    move.completed()


@test()
@in_vmm
def spill_errors(lab):
    move = Move(lab, timeout=5)
    source, target = move.source.id, move.target.id + "-in"
    path = os.path.join(lab.dir, "rest")
    for args, code, words in (
            (("spill", target, path), 1, "is the destination: the source spills pages"),
            (("recover", source, "file:" + path), 1, "is the source: the destination takes pages"),
            (("recover", target, "file:" + path), 1, "has no pages to take in from a file in state "
             "postcopy-active"),
            (("spill", source, lab.dir), 1, "is a folder"),
            (("spill", source, "/nowhere/at/all"), 1, "No such file or directory"),
            (("spill", "nobody", path), 1, "no migration 'nobody' is known")):
        run = lab.run(*args)
        run.check_code(code)
        check(words in run.stderr, "%s says: %s", args, run.stderr)
    move.recv.wait_state("postcopy-paused")
    spilled(lab, move, path)
    with open(path, "r+b") as file:  # pages begin at the first MiB
        at = os.lseek(file.fileno(), 1 << 20, os.SEEK_DATA)
        old = os.pread(file.fileno(), 8, at)
        os.pwrite(file.fileno(), bytes(b ^ 1 for b in old), at)
    for damaged, words in ((path, "does not hold"), (__file__, "no snapshot"),
                           (path + "x", "No such file")):
        run = lab.run("recover", target, "file:" + damaged)
        run.check_code(1)
        check(words in run.stderr, "%s: it says: %s", damaged, run.stderr)
    # The pages that were good stay; the rest comes over the line after all.
    move.recover()
    move.completed()


@test()
@in_vmm
def spilled_by_itself(lab):
    """--spill: the link breaks, and the pages are in a file without anybody's doing."""
    move = Move(lab, timeout=2, args=SLOWLY + ("--spill", lab.dir))
    path = os.path.join(lab.dir, move.source.id + ".spill")
    move.kill_all(move.recv)  # nobody listens any more
    move.send.wait_state("postcopy-paused")
    wait_until(lambda: os.path.exists(path), 15, "the pages are spilled")
    move.recv = lab.ferry("recover", move.target.id + "-in", "file:" + path, "--timeout", 20)
    move.recv.wait_state("completed")
    move.recover_by_answer()
    move.completed()


def record_of(lab, name):
    with open(os.path.join(lab.runtime, name + ".json")) as file:
        return json.load(file)


@test(cases={"all-die": (("send",), False), "guardian-then-worker": (("pid", "worker"), False),
             "worker": (("worker",), False), "paused": (("send",), True)})
@in_vmm
def options_survive(lab, victims, paused):
    """What was given to send, or set later, holds for whoever takes over from the record."""
    move = Move(lab, timeout=3, args=("--postcopy", "now", "--max-bandwidth", "9M", "--channels", 3,
                                      "--compress", "zstd", "--checksum", "--spill", lab.dir))
    name = move.source.id
    if paused:
        move.pause()
    lab.run("set", name, "max-bandwidth=1M").check_code(0)
    wait_until(lambda: record_of(lab, name)["max_bandwidth"] == 1 << 20, 5,
               "what was set is in the record")
    before = len(move.send.states())
    if "send" in victims:
        move.kill_all(move.send)
        move.send, before = lab.ferry("recover", name), 0
    else:
        worker, known = move.send.worker(), lab.ferry_pids()
        if "pid" in victims:  # the worker's new guardian knows nothing but the record
            os.kill(move.send.pid, signal.SIGKILL)
            wait_until(lambda: set(lab.ferry_pids()) - set(known), 10, "another guardian")
        os.kill(worker, signal.SIGKILL)
    wait_until(lambda: "postcopy-active" in move.send.states()[before:], 20, "it goes on")
    record = record_of(lab, name)
    check_equal((record["max_bandwidth"], record["spill_dir"], record["timeout_ms"],
                 record["stats"]["channels"]), (1 << 20, lab.dir, 3000, 3), "what the record tells")
    # Without the limit all that is missing would be there within this second.
    begin, before = time.monotonic(), sent_now(lab, name)
    time.sleep(1)
    now, seconds = sent_now(lab, name), time.monotonic() - begin
    check(now[1] > 0 and now[0] - before[0] <= 2 * 256 * (seconds + 1),
          "pages sent in the background and missing were %s, %.1f s later %s", before, seconds, now)
    # And when the link breaks it spills by itself, still.
    path = os.path.join(lab.dir, name + ".spill")
    move.kill_all(move.recv)
    wait_until(lambda: os.path.exists(path), 20, "the pages are spilled")
    move.recv = lab.ferry("recover", move.target.id + "-in", "file:" + path, "--timeout", 20)
    move.recv.wait_state("completed")
    if "pid" in victims:  # its successors write to the same place
        lab.run("recover", name)
    else:
        move.recover_by_answer()
    move.completed(move.send if "pid" in victims else None)


def sent_now(lab, name):
    run = json.loads(lab.run("status", name, "--json").stdout)
    return run["background_pages"], run["missing_pages"]


def member(lab, target):
    """Another process that maps the destination's RAM and has registered."""
    path = os.path.join(ROOT, "build", "selftests", "e2e", "member")
    make = subprocess.run(["make", "-s", "-C", ROOT, "build/selftests/e2e/member"],
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    check(make.returncode == 0, "%s", make.stdout)
    process = subprocess.Popen([path, target.port, str(target.pid)], stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, text=True)
    lab.on_close(process.kill)
    check_equal(process.stdout.readline(), "joined\n", "what a member says")
    target.before = target.traces()  # with the member's connection
    return process


@test(cases={"lives": (False,), "adopted": (True,)})
@in_vmm
def a_further_process_waits_too(lab, adopted):
    """What a vhost-user back end would do: it reads all of RAM while most of it is not there."""
    reader = []
    move = Move(lab, before=lambda target: reader.append(member(lab, target)))
    if adopted:  # by a process that nobody told of it
        move.kill_all(move.recv)
    reader[0].stdin.write("\n")
    reader[0].stdin.flush()
    if adopted:
        move.recv = lab.ferry("recover", move.target.id + "-in", "--timeout", 20)
        move.recv.wait_listening()
        move.recover()
    move.full_speed()
    filled = int(reader[0].stdout.readline())
    check(filled > 2000, "it found %d pages that are not zero", filled)
    move.completed()
    waited = [t["tid"] for t in move.recv.result["blocktime_threads"]]
    check(reader[0].pid in waited, "process %d is not among those that waited: %s", reader[0].pid,
          waited)
    reader[0].stdin.write("\n")
    reader[0].stdin.flush()
    check(abs(int(reader[0].stdout.readline()) - filled) < filled / 4, "its RAM is as it was")
    reader[0].stdin.close()
    check_equal(reader[0].wait(5), 0, "its exit status")


@test()
@in_vmm
def faults_before_the_state_is_loaded(lab):
    """Pages are served from when RAM is armed on, before the VMM is given its state."""
    reader = []
    move = Move(lab, recv="listening:delay=5000", running=False, timeout=20,
                before=lambda target: reader.append(member(lab, target)))
    # "um" in VmFlags: missing pages go to a userfaultfd.
    wait_until(lambda: re.search("^VmFlags:.* um", lib.read_text("/proc/%d/smaps" %
                                                                 reader[0].pid), re.M), 15,
               "its RAM is armed")
    reader[0].stdin.write("\n")
    reader[0].stdin.flush()
    filled = int(reader[0].stdout.readline())
    check(filled > 2000, "it found %d pages that are not zero", filled)
    check_equal((move.send.states()[-1], move.recv.states()[-1]), ("postcopy-device", "active"),
                "the states when all pages have been read")
    reader[0].stdin.close()
    check_equal(reader[0].wait(5), 0, "its exit status")
    for ferry in (move.send, move.recv):
        ferry.finish(30).check_code(0)
    check(move.recv.result["faults"] > 2000, "faults: %s", move.recv.result)
    move.guest.moved(move.target)
    move.guest.check_good()


def thread_sanitized(lab):
    """A ferry that notices races of its threads; its complaints are in files beside the lab."""
    make = subprocess.run(["make", "-s", "-j2", "-C", ROOT, "O=build/tsan", "SANITIZE=thread",
                           "build/tsan/ferry"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          text=True)
    check(make.returncode == 0, "%s", make.stdout[-2000:])
    path = os.path.join(lab.dir, "ferry")
    with open(path, "w") as file:
        file.write("#!/bin/sh\nTSAN_OPTIONS='log_path=%s/race history_size=4' exec setarch -R "
                   "%s/build/tsan/ferry \"$@\"\n" % (lab.dir, ROOT))
    os.chmod(path, 0o755)
    return path


DELAYS = (("", ""), ("package:delay=20", ""), ("", "load:delay=20"), ("", "pong:delay=20"),
          ("commit:delay=20", ""), ("run:delay=20", ""), ("", "start:delay=20"),
          ("", "lacks-sent:delay=20"), ("lacks:delay=20", "placed:delay=20"),
          ("discard:delay=20", "listening:delay=20"))


@test(timeout=600)
@in_vmm
def the_return_path_races(lab):
    """Many switchovers with delays on either side, under the thread sanitizer: --long only."""
    if not os.environ.get("FERRY_TEST_LONG"):
        raise tap.Skip("FERRY_TEST_LONG is not set: it builds ferry once more")
    usual, lib.FERRY = lib.FERRY, thread_sanitized(lab)
    try:
        for turn, (send, recv) in enumerate(DELAYS * 3):
            one = vmm.VmmLab("race-%d" % turn)
            try:
                move = Move(one, send=send or None, recv=recv or None, running=False, timeout=20,
                            args=("--postcopy", ("now", "after=1")[turn % 2], "--channels", 3))
                if turn % 3 == 0:
                    one.run("pause", move.source.id)
                    one.run("recover", move.source.id)
                for ferry in (move.send, move.recv):
                    ferry.finish(60).check_code(0)
            finally:
                one.close()
            races = [f for f in os.listdir(lab.dir) if f.startswith("race.")]
            check(not races, "%s", "".join(lib.read_text(os.path.join(lab.dir, f))[:3000]
                                           for f in races))
    finally:
        lib.FERRY = usual


@test()
@in_vmm
def released(lab):
    """--release-ram: the source's memory goes as it is sent."""
    move = Move(lab, args=("--postcopy", "now", "--max-bandwidth", "24M", "--release-ram"),
                shape=("--fill", "90M", "--ram", "96M,4M"), target=("--ram", "96M,4M"))
    most = move.source.allocated()
    wait_until(lambda: move.source.allocated() < most - (40 << 20), 20, "memory is given back")
    move.completed()


@test()
@in_vmm
def released_and_cut(lab):
    """What was under way then is lost, and it says so; nobody gets zeros instead."""
    move = Move(lab, timeout=2, args=("--postcopy", "now", "--max-bandwidth", "24M",
                                      "--release-ram"),
                shape=("--fill", "90M", "--ram", "96M,4M"), target=("--ram", "96M,4M"))
    most = move.source.allocated()
    wait_until(lambda: move.source.allocated() < most - (20 << 20), 20, "memory is given back")
    lab.run("pause", move.source.id).check_code(0)
    move.send.finish(20).check_code(3)
    check("is gone here" in move.send.result["advice"], "advice: %s", move.send.result["advice"])
    move.send = lab.ferry("recover", move.source.id, "--timeout", 1)
    move.send.finish(20).check_code(3)
    check_equal(move.recv.states()[-1], "postcopy-paused", "the destination's state")
    check_equal(move.target.ask()["errors"], 0, "errors of the guest")
    move.kill_all(move.recv)
    move.source.kill()
    move.target.kill()


@test()
@in_vmm
def gone_for_good(lab):
    """What is known of the pages is lost: nobody starts the guest with holes in its memory."""
    move = Move(lab, timeout=2)
    move.kill_all(move.recv)
    for name in os.listdir(lab.runtime):
        if name.endswith(".placed"):
            os.unlink(os.path.join(lab.runtime, name))
    run = lab.run("recover", move.target.id + "-in")
    run.check_code(3)
    check("which pages of the guest are here" in run.stderr, "recover says: %s", run.stderr)
    run = lab.run("resume", move.target.id + "-in")
    run.check_code(3)
    check("waits for memory" in run.stderr, "resume says: %s", run.stderr)
    run = lab.run("resume", move.target.id + "-in", "--force-destination")
    run.check_code(3)
    check_equal(move.target._fd_kinds()["userfaultfd"], 1, "the VMM's userfaultfds")
    move.target.kill()
    move.send.wait_state("postcopy-paused")
    wait_until(lambda: ended_by_term(move.send), 15, "the paused source ends")
    move.send.check_code(3)


def ended_by_term(ferry):
    if not ended(ferry):
        os.kill(ferry.pid, signal.SIGTERM)
        time.sleep(0.2)
    return ended(ferry)


if __name__ == "__main__":
    sys.exit(tap.main(Lab, prerequisites))
