#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""After COMMIT: each answer of the destination, `recover`, and both forms of forced `resume`.

The processes of a side are killed where a record says that the other must be asked; then the
commands a person would type are run. What is asserted every time: never two owners.
"""
import json
import os
import re
import signal
import sys

import tap
from lib import Lab, Qmp, check, check_equal, check_result, prerequisites, read_text, wait_until
from tap import test


class Handover:
    """A migration in which one side's worker stops itself at a stage."""

    def __init__(self, lab, send_fault=None, recv_fault=None, timeout=20, uri=None):
        self.lab = lab
        self.guest = lab.boot()
        self.source, self.target = self.guest.qemu, lab.destination()
        self.recv = lab.ferry("recv", self.target.uri, uri or "tcp:127.0.0.1:0",
                              "--timeout", timeout, fault=recv_fault)
        self.uri = self.recv.wait_listening()
        self.send = lab.ferry("send", self.source.uri, self.uri, "--timeout", timeout,
                              fault=send_fault)

    def stopped_worker(self, side):
        pid = side.worker()

        def stopped():
            return re.search(r"State:\tT", read_text("/proc/%d/status" % pid))
        wait_until(stopped, 15, "the worker of %s stops itself" % side.name)
        return pid

    def lose(self, side):
        """Both processes of a side die at once, worker first to be stopped already."""
        worker = self.stopped_worker(side)
        for pid in (side.pid, worker):
            os.kill(pid, signal.SIGKILL)
        side.finish(10)

    def lose_running(self, side):
        worker = side.worker()
        for pid in (side.pid, worker):
            os.kill(pid, signal.SIGSTOP)
        for pid in (side.pid, worker):
            os.kill(pid, signal.SIGKILL)
        side.finish(10)

    def owner(self):
        source, target = self.source.running(), self.target.running()
        check(not (source and target), "BOTH SIDES RUN THE GUEST")
        return "S" if source else "D" if target else None

    def check_owner(self, wanted):
        check_equal(self.owner(), wanted, "the owner")
        if wanted == "D":
            self.guest.moved(self.target)
        if wanted:
            self.guest.check_good()

    def status(self, name):
        return json.loads(self.lab.run("status", name, "--json").check_code(0).stdout)


@test(timeout=60)
def answer_ran(lab):
    """RUN went out, the source died: the destination says that it runs the guest."""
    move = Handover(lab, send_fault="run:stop")
    move.recv.wait_state("completed")
    move.lose(move.send)
    check_equal(move.status("vm")["phase"], "commit", "the source's phase")
    check_equal(move.owner(), "D", "the owner")
    # Until the source says ACK the destination listens; the guest's QMP socket is free already.
    Qmp(move.target.uri.split(":", 1)[1]).close()
    refused = lab.run("resume", "vm").check_code(3)
    check("ferry recover vm" in refused.stderr, "resume says: %s", refused.stderr)
    recover = lab.ferry("recover", "vm").finish().check_code(0)
    check_result(recover.result, "completed", guest="destination", state="completed")
    move.recv.finish().check_code(0)
    wait_until(lambda: not move.source.alive(), 5, "the source VMM has ended")
    move.check_owner("D")
    check("over" in lab.run("resume", "vm").check_code(1).stderr, "resume does something")


@test(timeout=60)
def answer_waiting(lab):
    """COMMIT is written, RUN never left: the destination waits, the source says RUN again."""
    move = Handover(lab, send_fault="commit:stop")
    move.recv.wait_state("commit-wait")
    move.lose(move.send)
    check_equal(move.owner(), None, "the owner")
    check_equal(move.status("vm2-in")["state"], "commit-wait", "the destination's state")
    lab.ferry("recover", "vm").finish().check_code(0)
    move.recv.finish().check_code(0)
    move.check_owner("D")


@test(timeout=60)
def answer_refused(lab):
    """The destination could not start the guest and recorded that: the source gets it back."""
    move = Handover(lab, send_fault="run:stop", recv_fault="run-accepted:fail")
    move.recv.wait_state("failed")
    move.lose(move.send)
    check_equal(move.owner(), None, "the owner")
    recover = lab.ferry("recover", "vm").finish().check_code(1)
    check_result(recover.result, "failed", guest="source", state="failed")
    check("never runs there" in recover.result["error"], "recover says %s", recover.result)
    move.recv.finish().check_code(1)
    move.check_owner("S")
    move.source.check_clean()


@test(timeout=90)
def answer_unknown_then_force_source(lab):
    """Whoever listens there now never heard of it: nobody moves until a person decides."""
    path = "unix:%s/there.sock" % lab.dir
    move = Handover(lab, send_fault="commit:stop", uri=path)
    move.recv.wait_state("commit-wait")
    move.lose(move.send)
    move.lose_running(move.recv)
    move.target.kill()
    other = lab.destination("vm3")
    stranger = lab.ferry("recv", other.uri, path)
    stranger.wait_listening()
    recover = lab.ferry("recover", "vm", "--timeout", 6).finish().check_code(3)
    check_result(recover.result, "failed", guest="unknown", state="commit-unknown")
    check("ferry resume vm --force-source" in recover.stderr, "recover says %s", recover.stderr)
    check_equal(move.source.status() in ("paused", "postmigrate"), True, "the source is stopped")
    wrong = lab.run("resume", "vm", "--force-destination").check_code(1)
    check("--force-source here" in wrong.stderr, "resume says: %s", wrong.stderr)
    lab.run("resume", "vm", "--force-source").check_code(0)
    move.guest.check_good()
    fenced = lab.ferry("recover", "vm", events=False).finish().check_code(1)
    check("by force" in fenced.stderr, "recover says: %s", fenced.stderr)
    lab.run("cancel", "vm3-in").check_code(0)
    stranger.finish().check_code(1)


@test(timeout=90)
def force_destination(lab):
    """The source's host is gone after COMMIT: a person runs the guest at the destination."""
    move = Handover(lab, send_fault="commit:stop", timeout=3)
    move.recv.wait_state("commit-wait")
    move.lose(move.send)
    move.source.kill()
    move.recv.finish().check_code(3)
    check_result(move.recv.result, "failed", guest="unknown", state="commit-wait")
    check("ferry resume vm2-in --force-destination" in move.recv.stderr, "recv says %s",
          move.recv.stderr)
    check("waits" in lab.run("resume", "vm2-in").check_code(3).stderr, "resume runs unforced")
    check_equal(move.target.running(), False, "the guest runs")
    lab.run("resume", "vm2-in", "--force-destination").check_code(0)
    check(move.target.running(), "the guest does not run")
    move.guest.moved(move.target)
    move.guest.check_good()
    check_equal(move.status("vm2-in")["guest"], "destination", "status: guest")
    # A source that comes back after all is told the truth.
    again = lab.ferry("recover", "vm2-in")
    again.wait_listening()
    lab.ferry("recover", "vm", move.uri).finish().check_code(0)
    again.finish().check_code(0)
    move.target.check_clean()


@test(timeout=90)
def cancel_at_a_waiting_destination(lab):
    """A person discards the loaded copy; the source, asking later, gets the guest back."""
    move = Handover(lab, send_fault="commit:stop", timeout=3)
    move.recv.wait_state("commit-wait")
    move.lose(move.send)
    move.recv.finish().check_code(3)
    lab.run("cancel", "vm2-in").check_code(0)
    wait_until(lambda: not move.target.alive(), 5, "the copy's VMM has ended")
    check_equal(move.status("vm2-in")["phase"], "aborted", "the destination's phase")
    again = lab.ferry("recover", "vm2-in")
    again.wait_listening()
    recover = lab.ferry("recover", "vm", move.uri).finish().check_code(1)
    check_result(recover.result, "failed", guest="source")
    again.finish().check_code(1)
    move.guest.check_good()


@test(timeout=60)
def cancel_while_the_destination_waits(lab):
    """The same with its ferry still there: ABORTED is durable before the source hears of it."""
    move = Handover(lab, send_fault="commit:stop")
    move.recv.wait_state("commit-wait")
    move.lose(move.send)
    lab.run("cancel", "vm2-in").check_code(0)
    move.recv.wait_state("cancelled")
    lab.ferry("recover", "vm").finish().check_code(1)
    move.recv.finish().check_code(1)
    check_equal(move.recv.result["event"], "cancelled", "recv's result")
    move.guest.check_good()


@test(timeout=60)
def run_in_a_dead_socket(lab):
    """The destination's worker sleeps over RUN; the source comes back by a new connection."""
    move = Handover(lab, recv_fault="pong:stop", timeout=4)
    worker = move.stopped_worker(move.recv)
    move.send.wait_state("commit-unknown")
    os.kill(worker, signal.SIGCONT)
    move.send.finish().check_code(0)
    move.recv.finish().check_code(0)
    move.check_owner("D")


@test(timeout=60)
def recover_what_needs_none(lab):
    move = Handover(lab)
    move.send.finish().check_code(0)
    move.recv.finish().check_code(0)
    none = lab.ferry("recover", "nobody", events=False).finish().check_code(1)
    check("no migration 'nobody'" in none.stderr, "recover says: %s", none.stderr)
    check("over" in lab.run("resume", "vm2-in").check_code(1).stderr, "resume does something")


@test(timeout=60)
def resume_while_it_runs(lab):
    """resume is for what all processes left behind; a running one is not disturbed."""
    move = Handover(lab, send_fault="bulk:stop")
    worker = move.stopped_worker(move.send)
    busy = lab.run("resume", "vm").check_code(1)
    check("in use" in busy.stderr, "resume says: %s", busy.stderr)
    os.kill(worker, signal.SIGCONT)
    move.send.finish().check_code(0)
    move.recv.finish().check_code(0)
    move.check_owner("D")


@test(timeout=60)
def resume_after_all_processes_died(lab):
    """Before COMMIT: the record says how to put the VMM back, and that it is safe."""
    move = Handover(lab, send_fault="save:stop", timeout=4)
    move.lose(move.send)
    check_equal(move.owner(), None, "the owner")
    check("ferry resume vm" in lab.run("status", "vm").stdout, "status does not tell")
    busy = lab.run("send", move.source.uri, "tcp:127.0.0.1:1").check_code(1)
    check("is not over" in busy.stderr, "send says: %s", busy.stderr)
    lab.run("resume", "vm").check_code(0)
    move.recv.finish().check_code(1)
    move.check_owner("S")
    move.source.check_clean()


if __name__ == "__main__":
    sys.exit(tap.main(Lab, prerequisites))
