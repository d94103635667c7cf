#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Processes that die, files that fail and people who cancel while a guest is saved or restored."""
import os
import signal
import sys

import tap
from lib import check, check_equal, prerequisites, wait_until
from snapshot import (KINDS, LONG, PROOF, FileLab, lazy_disk_fails, restored, restored_qemu,
                      restored_vmm, saved)
from tap import test

KILLED = ("attach", "file", "prepare", "stop", "save", "final", "resumed", "file-write",
          "file-written", "file-synced", "file-commit", "file-named")
KILLS = {s: (s,) for s in (KILLED if LONG else ("file-write", "final", "file-synced", "file-named"))}
if LONG:
    KILLS.update({"live-" + s: (s, "--live", "--downtime-limit", 1)
                  for s in ("track", "bulk", "round", "file-write", "stop")})


@test(timeout=40, cases=KILLS)
def kill_worker(lab, stage, *options):
    """The guest goes on, and the name stands for nothing, or for the whole."""
    guest = lab.guest(*(("--dirty-rate", "max") if options else ()))  # else there are no rounds
    before = os.listdir(lab.dir)
    save = lab.save(guest, *options, fault=stage + ":kill").finish()
    save.check_code(1)
    check_equal((save.result["event"], save.result["guest"]), ("failed", "source"), "the result")
    guest.check_good()
    guest.qemu.check_clean()
    lab.check_no_ferry()
    new = set(os.listdir(lab.dir)) - set(before)
    new = {n for n in new if not n.startswith("ferry-")}
    if stage == "file-named":
        check_equal(new, {"snap"}, "new files")
        check_equal(lab.inspect()["verified"], True, "a whole file")
    else:
        check_equal(new, set(), "files that are left")
    # And it can be saved afterwards.
    saved(lab.save(guest), guest)


@test(timeout=40, cases={"save": ("file-write",), "lazy": ("lazy-read",)})
def kill_guardian(lab, stage):
    """The worker gets another guardian and goes on."""
    guest = lab.guest()
    fault = {"fault": stage + ":kill", "side": "guardian"}
    save = lab.save(guest, "--live", **(fault if stage == "file-write" else {})).finish()
    check_equal((save.result["event"], save.result["guest"]), ("completed", "source"), "the save")
    check_equal(save.code, -signal.SIGKILL if stage == "file-write" else 0, "the guardian")
    guest.check_good()
    guest.qemu.check_clean()
    guest.qemu.kill()
    target = lab.destination()
    restore = lab.restore(target, "--lazy", **(fault if stage == "lazy-read" else {})).finish()
    check_equal((restore.result["event"], restore.result["guest"]), ("completed", "destination"),
                "the restore")
    restored_vmm(guest, target)
    lab.check_no_ferry()


@test(timeout=40)
def kill_both(lab):
    """Nobody is left to put things right: status says so, and resume does it."""
    guest = lab.guest()
    save = lab.ferry("save", guest.qemu.uri, lab.path(), fault="save:stop")
    wait_until(lambda: "device" in save.states(), 10, "the guest is stopped")
    worker = save.worker()
    os.kill(save.pid, signal.SIGKILL)
    wait_until(lambda: set(lab.ferry_pids()) - {save.pid}, 5, "only others are left")
    for pid in lab.ferry_pids():
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    check(worker, "no worker")
    lab.check_no_ferry()
    status = lab.run("status", guest.qemu.id)
    check("ferry resume " + guest.qemu.id in status.stdout, "no advice: %s", status.stdout)
    lab.run("resume", guest.qemu.id).check_code(0)
    guest.check_good()
    guest.qemu.check_clean()
    check(not os.path.exists(lab.path()), "a file was made")


@test(timeout=40)
def cancelled(lab):
    """At any time before it has its name; nothing is left."""
    guest = lab.guest()
    for stage in ("file-write", "final", "file-written"):
        save = lab.ferry("save", guest.qemu.uri, lab.path(), fault=stage + ":delay=700")
        wait_until(lambda: "active" in save.states(), 10, "it is active")
        lab.run("cancel", guest.qemu.id).check_code(0)
        save.finish().check_code(1)
        check_equal((save.result["event"], save.result["guest"]), ("cancelled", "source"),
                    "the result at " + stage)
        check(not os.path.exists(lab.path()), "a file was made")
        guest.check_good()


KILLED_LAZY = ("opened", "pages", "load", "run-accepted", "start", "lazy-read")
KILLS = {s: (s, "--lazy") for s in (KILLED_LAZY if LONG else ("load", "run-accepted", "lazy-read"))}
if LONG:
    KILLS.update({"whole-" + s: (s,) for s in ("opened", "file-read") + KILLED_LAZY[1:-1]})


@test(timeout=60, cases=KILLS)
def kill_restore(lab, stage, *options):
    """The worker of a restore dies: before the guest is started nothing has happened; from
    then on another one goes on."""
    guest = lab.guest()
    saved(lab.save(guest), guest)
    guest.qemu.kill()
    target = lab.destination()
    restore = lab.restore(target, *options, fault=stage + ":kill").finish()
    if stage in ("opened", "file-read", "pages", "load"):
        restore.check_code(1)
        check(not target.alive() or target.status() != "running", "it runs")
        lab.check_no_ferry()
        target = lab.destination("again")
        restore = lab.restore(target, *options).finish()
    restored(restore, guest, target)
    restored_vmm(guest, target)
    lab.check_no_ferry()


@test(timeout=60, cases=KINDS)
def lazy_disk_error(lab, kind):
    """The guest is stopped, not killed; when the file can be read again it goes on."""
    guest = lab.guest_of(kind)
    saved(lab.save(guest), guest)
    guest.qemu.kill()
    target = lab.destination_of(kind)
    lazy_disk_fails(lab, target)
    PROOF[kind](guest, target)
    lab.check_no_ferry()


@test(timeout=40)
def read_error(lab):
    """While all is read nothing has begun: the VMM waits on, with empty memory."""
    guest = lab.guest()
    saved(lab.save(guest), guest)
    guest.qemu.kill()
    target = lab.destination()
    restore = lab.restore(target, fault="file-read:fail").finish().check_code(1)
    check("reading %s: Input/output error" % lab.path() in restore.result["error"], "the error: %s",
          restore.result["error"])
    check_equal(target.allocated(), 0, "memory that is left")
    restored(lab.restore(target), guest, target)
    restored_vmm(guest, target)


if LONG:
    @test(timeout=60)
    def load_error(lab):
        """The file fails while device state is loaded, which waits for memory: it never ran."""
        guest = lab.qemu_guest()
        saved(lab.save(guest), guest)
        guest.qemu.kill()
        target = lab.qemu_destination("second")
        restore = lab.restore(target, "--lazy", fault="file-read:fail").finish().check_code(1)
        check_equal((restore.result["event"], restore.result["guest"]), ("failed", "none"),
                    "the result")
        check("Input/output error" in restore.result["error"], "the error: %s",
              restore.result["error"])
        check(not target.alive() or not target.running(), "it runs")
        lab.check_no_ferry()
        target = lab.qemu_destination("third")
        restored(lab.restore(target, "--lazy"), guest, target)
        restored_qemu(guest, target)


@test(timeout=40)
def lazy_file_lost(lab):
    """It never can be read again: the VMM is ended by hand, and another restore may follow."""
    guest = lab.guest()
    saved(lab.save(guest), guest)
    guest.qemu.kill()
    target = lab.destination()
    restore = lab.restore(target, "--lazy", fault="lazy-read:fail").finish().check_code(3)
    ident = restore.result["id"]
    refuse = lab.run("resume", ident).check_code(3)
    check("recover " + ident in refuse.stderr, "resume: %s", refuse.stderr)
    target.kill()
    lab.run("resume", ident).check_code(0)
    target = lab.destination("again")
    restored(lab.restore(target, "--id", ident), guest, target)
    restored_vmm(guest, target)


@test(timeout=40)
def restore_cancelled(lab):
    """Before the guest is started: its VMM waits on, with empty memory."""
    guest = lab.guest()
    saved(lab.save(guest), guest)
    guest.qemu.kill()
    target = lab.destination()
    for options in ((), ("--lazy",)):
        restore = lab.restore(target, *options, fault="pages:delay=700")
        wait_until(lambda: "active" in restore.states(), 10, "it is active")
        lab.run("cancel", restore.args[1].rsplit("/", 1)[1][:-len(".port")] + "-in").check_code(0)
        restore.finish().check_code(1)
        check_equal((restore.result["event"], restore.result["guest"]), ("cancelled", "none"),
                    "the result")
        check_equal(target.allocated(), 0, "memory that is left")
        target.check_clean()
    restored(lab.restore(target), guest, target)
    restored_vmm(guest, target)


if __name__ == "__main__":
    sys.exit(tap.main(FileLab, prerequisites))
