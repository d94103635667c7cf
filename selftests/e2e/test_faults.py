#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""One owner, whatever dies and wherever: every stage of a migration is hit by every fault.

The table says who must own the guest in the end:
    S   the source: it runs on there, both sides say so, nothing is left behind
    D   the destination: it runs there, the source does not
    E   either one: the fault races with the peer
    s d as S and D, or nobody runs, at least one side ended with 3, and the
        commands it printed bring the guest back, on whichever side they choose
    L   lost with the destination QEMU in which it already ran: the source stays still
"""
import os
import re
import shlex
import signal
import sys
import time

import tap
from lib import Lab, Netns, check, check_equal, check_result, migrate, prerequisites
from tap import Failed, test

# stage              side    kill:   worker guardian fail   QEMU (of the destination)
MATRIX = """
attach             send            S      D        S      -
connect            send            S      D        S      -
prepare            send            S      D        S      S
track              send            S      D        S      -
bulk               send            S      D        S      S
round              send            S      D        S      -
pre-switchover     send            S      D        S      S
switch             send            S      D        S      -
stop               send            S      D        S      -
save               send            S      D        S      S
final              send            S      D        S      -
flush              send            S      D        S      -
discard            send            S      D        S      -
package            send            S      D        S      -
loaded             send            S      D        S      S
commit             send            D      D        d      s
run                send            D      D        d      -
running            send            D      D        d      -
quit               send            D      D        d      -
listen             recv            S      D        S      S
hello              recv            S      D        S      -
blocks             recv            S      D        S      S
receive            recv            S      D        S      S
package-received   recv            S      D        S      S
load               recv            S      D        S      S
commit-wait        recv            S      D        S      S
pong               recv            E      D        E      s
run-received       recv            D      D        s      s
run-accepted       recv            D      D        s      s
start              recv            D      D        d      L
running-sent       recv            D      D        d      L
"""
ROWS = [line.split() for line in MATRIX.strip().splitlines()]
STAGE_SIDE = {row[0]: row[1] for row in ROWS}
# Passed in postcopy only: test_postcopy.py and test_postcopy_recover.py hit them.
POSTCOPY_STAGES = {"lacks": "send", "listening": "recv", "lacks-sent": "recv", "placed": "recv",
                   "paused": "send", "answered": "send", "again": "send", "cut": "recv",
                   "back": "recv", "told": "recv", "recover": "recv"}
# After these the guest that stayed at the source is migrated once more, for good.
AGAIN = ("attach", "prepare", "stop", "loaded", "blocks", "commit-wait", "run-accepted")
# Deadlines of ferry itself, so short that a test of a lost peer ends soon.
PATIENCE = 4
# A command in what ferry says to do next.
ADVICE = r"\bferry (?:recover|resume) [\w.-]+(?: --force-\w+| (?:tcp|unix):[\w.:/\[\]-]+)?"
# With these a guest that writes little still needs a second round.
ROUNDS = ("--max-bandwidth", "48M", "--downtime-limit", 20)


def column(number):
    return {row[0]: (row[0], row[number]) for row in ROWS if row[number] != "-"}


class Trial:
    """One migration with a fault, and the question who owns the guest after it."""

    def __init__(self, lab, stage, fault, side="worker", guest=None, netns=None,
                 patience=PATIENCE):
        self.lab, self.stage, self.netns = lab, stage, netns
        self.guest = guest or lab.guest()
        self.source, self.target = self.guest.qemu, lab.destination()
        self.hit = STAGE_SIDE[stage]
        faults = {self.hit: {"fault": "%s:%s" % (stage, fault), "side": side,
                             "env": {"FERRY_DEBUG": "1"}}}
        host = netns.right_address if netns else "127.0.0.1"
        uri = "tcp:%s:0" % host
        if stage == "listen":  # no listening event to wait for, so no port from it
            uri = "unix:%s/ferry.sock" % lab.dir
        self.recv = lab.ferry("recv", self.target.uri, uri, "--timeout", patience,
                              netns=netns and netns.right, **faults.get("recv", {}))
        if stage != "listen":
            uri = self.recv.wait_listening()
        rounds = ROUNDS if stage == "round" else ()
        self.send = lab.ferry("send", self.source.uri, uri, "--timeout", patience, *rounds,
                              netns=netns and netns.left, **faults.get("send", {}))
        self.victim = self.send if self.hit == "send" else self.recv

    def fired(self):
        return "fault point %s fires" % self.stage in self.victim.stderr

    def wait_stopped(self):
        """The worker has stopped itself at the stage; its pid."""
        return self.lab.stopped_worker("the worker stops at %s" % self.stage)

    def finish(self, seconds=30):
        self.send.finish(seconds)
        if self.stage == "attach" and self.send.code == 1:
            # It never called, so recv goes on waiting for somebody who does.
            self.lab.run("cancel", self.target.id + "-in").check_code(0)
        self.recv.finish(seconds)
        check(self.fired(), "the fault at %s never fired: %s", self.stage,
              self.victim.stderr[-500:])

    # -- who owns the guest

    def owner(self):
        """S, D or None; both is what must never be."""
        source, target = self.source.running(), self.target.running()
        check(not (source and target), "BOTH SIDES RUN THE GUEST after %s", self.stage)
        return "S" if source else "D" if target else None

    def check_source_owns(self):
        check_equal(self.owner(), "S", "the owner")
        check_equal(os.path.getsize(self.target.serial), 0, "bytes the destination's guest printed")
        self.guest.check_good()
        self.source.check_clean()
        self.lab.check_no_ferry()

    def check_destination_owns(self):
        check_equal(self.owner(), "D", "the owner")
        self.guest.moved(self.target)
        self.guest.check_good()
        check(not self.source.running(), "the source runs too")
        self.target.check_clean()
        self.lab.check_no_ferry()

    def advice(self):
        """The commands that sides which ended with 3 printed, in the order to type them."""
        found = []
        for ferry in (self.recv, self.send):
            if ferry.code == 3:
                said = ferry.stderr + str(ferry.result.get("error"))
                commands = [c for c in re.findall(ADVICE, said) if "ITS-ID" not in c]
                check(commands, "%s ended with 3 and printed no command: %s", ferry.name, said)
                space = None
                if self.netns:
                    space = self.netns.left if ferry is self.send else self.netns.right
                found += [(c, space) for c in dict.fromkeys(commands)]
        # Asking the other side comes first, forcing is for when that is of no use.
        return sorted(found, key=lambda item: "--force" in item[0])

    def follow_advice(self):
        """Type the printed commands; those that force only while nobody owns the guest."""
        for command, space in self.advice():
            forced = "--force" in command
            if forced and (self.owner() or
                           "--force-destination" in command and not self.target.alive()):
                continue
            run = self.lab.ferry(*shlex.split(command)[1:], netns=space, events=False)
            try:
                run.finish(6)
            except Failed:
                pass  # a recover at the destination waits for the source's
        check(self.owner(), "nobody owns the guest after: %s", self.advice())

    def check_owner(self, wanted):
        if wanted in "sd" and not self.owner():
            check(3 in (self.send.code, self.recv.code), "nobody runs, exits are %s and %s",
                  self.send.code, self.recv.code)
            self.follow_advice()
            wanted = "E"
        owner = self.owner()
        if wanted != "E":
            check_equal(owner, wanted.upper(), "the owner")
        if owner == "S":
            self.check_source_owns()
        else:
            self.check_destination_owns()
        return owner

    def check_results(self, owner, guardian_died=False):
        """What both sides print last agrees with who owns the guest."""
        for ferry in (self.send, self.recv):
            hit = guardian_died and ferry is self.victim
            if owner == "D" and ferry.code in (0, -signal.SIGKILL):
                check_result(ferry.result, "completed", guest="destination")
                ferry.check_code(-signal.SIGKILL if hit else 0)
            elif owner == "S" and ferry.code != 3:
                check(ferry.result["event"] in ("failed", "cancelled"), "%s says %s", ferry.name,
                      ferry.result)
                check(ferry.result["error"], "%s failed and does not say why", ferry.name)
                ferry.check_code(1)


def finish_and_judge(trial, wanted, guardian_died=False):
    trial.finish()
    owner = trial.check_owner(wanted)
    trial.check_results(owner, guardian_died)
    if wanted == "S":
        trial.send.check_code(1)
        check_equal(trial.send.result["guest"], "source", "the result's guest")
    if wanted == "D":
        check(trial.send.code in (0, -signal.SIGKILL), "send ended with %s", trial.send.code)
    if owner == "S" and trial.stage in AGAIN:
        trial.target.kill()
        again = Lab("again")  # records of its own: the IDs are used again
        try:
            again._borrowed = trial.lab._borrowed
            migrate(again, trial.guest, again.destination("again"))
        finally:
            again.close()


@test(cases=column(2))
def kill_worker(lab, stage, wanted):
    finish_and_judge(Trial(lab, stage, "kill"), wanted)


@test(cases=column(3))
def kill_guardian(lab, stage, wanted):
    finish_and_judge(Trial(lab, stage, "kill", side="guardian"), wanted, guardian_died=True)


@test(cases=column(4))
def fail(lab, stage, wanted):
    finish_and_judge(Trial(lab, stage, "fail"), wanted)


@test(timeout=60, cases=column(5))
def kill_destination_qemu(lab, stage, wanted):
    trial = Trial(lab, stage, "stop")
    worker = trial.wait_stopped()
    trial.target.kill()
    os.kill(worker, signal.SIGCONT)
    trial.finish(40)
    if wanted == "L":
        check(not trial.source.running(), "the source runs a guest that ran elsewhere")
        for ferry in (trial.send, trial.recv):
            check(ferry.code in (0, 1, 3), "%s ended with %s", ferry.name, ferry.code)
        lab.check_no_ferry()
        return
    if wanted == "s" and not trial.owner():
        trial.follow_advice()
    trial.check_source_owns()


@test(cases={s: (s,) for s in ("prepare", "bulk", "pre-switchover", "save", "package", "loaded",
                               "commit", "run")})
def kill_source_qemu(lab, stage):
    """Before PACKAGE the guest is gone with it. From then on the destination holds all of
    it and may run it; after COMMIT it must."""
    trial = Trial(lab, stage, "stop", guest=lab.boot())
    worker = trial.wait_stopped()
    trial.source.kill()
    os.kill(worker, signal.SIGCONT)
    trial.finish(40)
    if stage in ("commit", "run") or stage in ("package", "loaded") and trial.owner():
        trial.check_destination_owns()
    else:
        check(not trial.target.running(), "the destination runs a guest that was never committed")
        trial.send.check_code(1)
        lab.check_no_ferry()


@test(cases={s: (s,) for s in ("bulk", "stop", "loaded", "commit", "receive", "commit-wait",
                               "run-accepted")})
def kill_both_processes(lab, stage):
    """Guardian and worker of a side die together, as when memory runs out: nothing can
    clean up then, so `ferry status` must know it and `ferry resume` must repair it."""
    trial = Trial(lab, stage, "stop")
    worker = trial.wait_stopped()
    side = trial.victim
    for pid in {side.pid, worker}:
        os.kill(pid, signal.SIGKILL)
    for ferry in (trial.send, trial.recv):
        ferry.finish(30)
    check(not (trial.source.running() and trial.target.running()), "BOTH SIDES RUN THE GUEST")
    name = trial.source.id if side is trial.send else trial.target.id + "-in"
    check(name in lab.run("status", name).check_code(0).stdout, "status does not know %s", name)
    if trial.owner() != "D":
        lab.run("resume", name, seconds=30)
    if not trial.owner():  # past COMMIT, or the peer must be asked: a person decides
        check(stage in ("commit", "commit-wait", "run-accepted"), "resume did not resume")
        force = "--force-source" if stage == "commit-wait" else "--force-destination"
        forced = trial.source.id if force == "--force-source" else trial.target.id + "-in"
        lab.run("resume", forced, force, seconds=30)
    owner = trial.owner()
    check(owner, "nobody owns the guest after resume")
    if stage in ("bulk", "stop", "loaded", "receive"):
        check_equal(owner, "S", "the owner")
    trial.check_source_owns() if owner == "S" else trial.check_destination_owns()


CUT = {s: (s, w) for s, w in {
    "connect": "S", "prepare": "S", "bulk": "S", "pre-switchover": "S", "save": "S", "flush": "S",
    "package": "E", "loaded": "E", "commit": "D", "run": "D", "running": "D",
    "hello": "S", "blocks": "S", "receive": "S", "package-received": "S", "load": "S",
    "commit-wait": "E", "pong": "E", "run-received": "D", "run-accepted": "D", "start": "D",
    "running-sent": "D"}.items()}


@test(timeout=90, cases=CUT)
def cut_link(lab, stage, wanted):
    """The link is lost until the source has given up; then it comes back, and what the
    sides printed is typed. A recv that runs the guest listens on until the source knows."""
    net = Netns(lab)
    trial = Trial(lab, stage, "stop", netns=net, patience=2)
    worker = trial.wait_stopped()
    net.cut()
    os.kill(worker, signal.SIGCONT)
    trial.send.finish(30)
    try:
        trial.recv.finish(6)
    except Failed:
        check(trial.target.running(), "recv neither ends nor runs the guest")
    net.restore()
    if not trial.owner() or trial.send.code == 3:
        check(3 in (trial.send.code, trial.recv.code), "nobody runs, exits are %s and %s",
              trial.send.code, trial.recv.code)
        trial.follow_advice()
    elif trial.recv.process.poll() is None:
        # All is well but the last ACK: the source says how to deliver it.
        check("ferry recover" in trial.send.stderr, "send does not tell that ACK is missing")
        lab.ferry("recover", trial.source.id, netns=net.left, events=False).finish(20)
    trial.recv.finish(20)
    owner = trial.owner()
    if wanted != "E":
        check_equal(owner, wanted, "the owner")
    trial.check_source_owns() if owner == "S" else trial.check_destination_owns()


@test(timeout=60, cases={s: (s,) for s in ("bulk", "commit", "run", "commit-wait", "run-received",
                                           "start")})
def cut_link_for_a_moment(lab, stage):
    """The link comes back before anybody has given up: somebody runs, without a person."""
    net = Netns(lab)
    trial = Trial(lab, stage, "stop", netns=net)
    worker = trial.wait_stopped()
    net.cut()
    os.kill(worker, signal.SIGCONT)
    time.sleep(1)  # how long the link is away; nothing is waited for
    net.restore()
    trial.finish(40)
    check(3 not in (trial.send.code, trial.recv.code), "a person is needed: %s and %s",
          trial.send.code, trial.recv.code)
    owner = trial.owner()
    check(owner, "nobody owns the guest")
    trial.check_source_owns() if owner == "S" else trial.check_destination_owns()


@test()
def the_table_has_every_stage(lab):
    """A stage added to ferry and not to the table above would go untested."""
    listed = {}
    for line in lab.run("doctor", "--fault-points").check_code(0).stdout.splitlines():
        words = line.split()
        if len(words) > 2 and words[2].rstrip(":") in ("save", "restore"):
            continue    # test_file_faults.py and test_power_loss.c
        if len(words) > 2 and words[1] in ("source", "destination"):
            listed[words[0]] = "send" if words[1] == "source" else "recv"
    check_equal(listed, dict(STAGE_SIDE, **POSTCOPY_STAGES), "the list of fault points")


if __name__ == "__main__":
    sys.exit(tap.main(Lab, prerequisites))
