#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""One owner in postcopy, whatever breaks and wherever: every stage and every step of recovery.

As test_faults.py does for precopy, with ferry-vmm, whose guest checks every page it reads. At
each stage a worker or a guardian dies, the link is lost for a moment, or it is lost until
both sides have given up; then what they show is typed until somebody owns the guest.

    S   the source has it: both sides say so, nothing is left behind
    D   the destination: it gets all of its memory
    E   either one: the fault races with the peer
"""
import os
import signal
import sys
import time

import tap
from lib import Lab, Netns, check, check_equal, prerequisites, wait_until
import test_postcopy_recover as recover
from test_postcopy_recover import ended, in_vmm, is_stopped

tap.forget()
test = tap.test

#                    kill: worker guardian  cut: for a moment, for long
MATRIX = """
switch             send    S       D             E      S
stop               send    S       D             E      S
save               send    S       D             E      S
final              send    S       D             E      S
flush              send    S       D             E      S
discard            send    S       D             E      S
package            send    S       D             E      E
loaded             send    S       D             E      E
commit             send    D       D             D      D
run                send    D       D             D      D
lacks              send    D       D             D      D
running            send    D       D             D      D
quit               send    D       D             D      D
listening          recv    S       D             E      S
package-received   recv    S       D             E      S
load               recv    S       D             E      S
commit-wait        recv    E       D             E      E
pong               recv    E       D             E      E
run-received       recv    D       D             D      D
run-accepted       recv    D       D             D      D
start              recv    D       D             D      D
lacks-sent         recv    D       D             D      D
placed             recv    D       D             D      D
"""
ROWS = [line.split() for line in MATRIX.strip().splitlines()]
RECOVERY = (("paused", "send"), ("answered", "send"), ("again", "send"), ("cut", "recv"),
            ("back", "recv"), ("told", "recv"), ("recover", "recv"))
# So slow that it is under way when something happens; the end of it is not waited for.
SLOWLY = ("--postcopy", "now", "--max-bandwidth", "24M")


def column(number):
    return {row[0]: (row[0], row[1], row[number]) for row in ROWS}


class Case(recover.Move):
    """A move in which @end is hit at a stage; what it takes to have it settled."""

    def __init__(self, lab, end, fault, side=None, timeout=3):
        self.lab, self.netns, self.timeout = lab, Netns(lab), timeout
        self.guest = lab.guest()
        self.source, self.target = self.guest.qemu, lab.destination()
        self.fault = {end: {"fault": fault, "side": side}}
        self.recv = lab.ferry("recv", self.target.uri, "tcp:%s:0" % self.netns.right_address,
                              "--timeout", timeout, netns=self.netns.right,
                              **self.fault.get("recv", {}))
        self.send = lab.ferry("send", self.source.uri, self.recv.wait_listening(), "--timeout",
                              timeout, *SLOWLY, netns=self.netns.left,
                              **self.fault.get("send", {}))

    def hit(self):
        """The worker has stopped itself at the stage; its pid."""
        return wait_until(lambda: [p for p in self.lab.ferry_pids() if is_stopped(p)], 15,
                          "a worker stops at the stage")[0]

    def owner(self):
        source, target = self.source.running(), self.target.running()
        check(not (source and target), "BOTH SIDES RUN THE GUEST")
        return "S" if source else "D" if target else None

    def step(self):
        """What a person does who looks at both sides. Return: it is over."""
        self.owner()
        send, recv = ended(self.send), ended(self.recv)
        if send and recv and 3 not in (self.send.code, self.recv.code):
            return self.owner()
        if recv and self.recv.code == 3:
            self.recv = self.lab.ferry("recover", self.target.id + "-in", "--timeout",
                                       self.timeout, netns=self.netns.right)
        if send and self.send.code == 3:
            self.send = self.lab.ferry("recover", self.source.id, "--timeout", self.timeout,
                                       netns=self.netns.left)
        elif send and self.send.code == 1 and not recv:
            # It is back at the source, and the destination could not be told.
            self.lab.run("cancel", self.target.id + "-in", netns=self.netns.right)
        elif send and not recv:  # the last ACK was lost
            self.send = self.lab.ferry("recover", self.source.id, "--timeout", self.timeout,
                                       netns=self.netns.left)
        elif self.send.states() and self.send.states()[-1] == "postcopy-paused":
            self.lab.run("recover", self.source.id, netns=self.netns.left)
        time.sleep(0.3)
        return None

    def judge(self, wanted):
        owner = wait_until(self.step, 40, "somebody owns the guest, and both sides have ended")
        if wanted != "E":
            check_equal(owner, wanted, "the owner")
        if owner == "D":
            self.guest.moved(self.target)
            wait_until(lambda: not self.source.alive(), 5, "the source has ended")
            self.target.check_clean()
        else:
            check(self.source.alive(), "the source has ended")
            self.source.check_clean()
        self.guest.check_good()
        self.lab.check_no_ferry()


def kill(lab, stage, end, side, wanted):
    Case(lab, end, stage + ":kill", side).judge(wanted)


@test(cases=column(2), timeout=60)
@in_vmm
def kill_worker(lab, stage, end, wanted):
    kill(lab, stage, end, "worker", wanted)


@test(cases=column(3), timeout=60)
@in_vmm
def kill_guardian(lab, stage, end, wanted):
    case = Case(lab, end, stage + ":kill", "guardian")
    # Its worker starts another one and goes on; what was started is gone.
    wait_until(lambda: not lab.ferry_pids() or ended(case.send) and ended(case.recv), 30,
               "both sides have ended")
    for ferry in (case.send, case.recv):
        ferry.finish(20)
    check_equal(case.owner(), wanted, "the owner")
    case.guest.moved(case.target)
    case.guest.check_good()
    lab.check_no_ferry()


def cut(lab, stage, end, seconds, wanted, again=False):
    case = Case(lab, end, stage + ":stop", timeout=2 if seconds else 5)
    if again:
        case.send.wait_state("postcopy-active")
        case.recv.wait_state("postcopy-active")
        lab.run("pause", case.source.id, netns=case.netns.left).check_code(0)
        case.recv.wait_state("postcopy-paused")
        lab.run("recover", case.source.id, netns=case.netns.left)
    pid = case.hit()
    case.netns.cut()
    os.kill(pid, signal.SIGCONT)
    time.sleep(seconds or 0.7)  # how long the link is away; nothing is waited for
    case.netns.restore()
    case.judge(wanted)


@test(cases=column(4), timeout=90)
@in_vmm
def cut_for_a_moment(lab, stage, end, wanted):
    cut(lab, stage, end, 0, wanted)


@test(cases=column(5), timeout=90)
@in_vmm
def cut_for_long(lab, stage, end, wanted):
    cut(lab, stage, end, 6, wanted)


@test(cases={"%s-%s" % (stage, name): (stage, end, seconds) for stage, end in RECOVERY
             for name, seconds in (("moment", 0), ("long", 6))}, timeout=90)
@in_vmm
def cut_in_recovery(lab, stage, end, seconds):
    """The link is lost again while the loss before is being repaired."""
    cut(lab, stage, end, seconds, "D", again=True)


if __name__ == "__main__":
    sys.exit(tap.main(Lab, prerequisites))
