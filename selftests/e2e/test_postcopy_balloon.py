#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Postcopy of a QEMU guest whose balloon gives memory back, before, during and after the move.

A page that the destination's guest gives back is a hole again and faults once more when the guest
takes it: it must get a page of zeros at once, and nobody may ask the source for it. The guest
checks all that it has written, and what it takes it fills, checks and frees again (ferry.churn).
"""
import os
import sys

import tap
from lib import Lab, check, check_equal, check_result, prerequisites, wait_until
from test_stale import data_pages, note

tap.forget()
test = tap.test

MIB = 160
BALLOON = {"mib": MIB,
           "args": ["-device", "virtio-balloon-pci,free-page-reporting=on,id=balloon0"]}
SMALL, FULL = (MIB - 44) << 20, MIB << 20
# Else what the balloon takes would be zeroed, and so be written, when it gets it.
GUEST = "init_on_alloc=0 ferry.mib=8 ferry.dirty=16 ferry.pause_ms=5 ferry.churn=24"


def balloon(qemu, size):
    """Tell the guest how much it may have, and wait until it has no more, or no less."""
    qemu.monitor.command("balloon", value=size)

    def followed():
        actual = qemu.monitor.command("query-balloon")["actual"]
        return actual <= size if size < FULL else actual >= size
    wait_until(followed, 30, "the balloon leaves the guest %d MiB" % (size >> 20))


class Given:
    """The pages of a memory file that were there once and became holes, seen while it lasts."""

    def __init__(self, qemu):
        self.qemu, self.seen, self.holes = qemu, set(), set()
        self.look()

    def look(self):
        now = data_pages(self.qemu)
        self.holes |= self.seen - now
        self.seen |= now
        return now


# So slow that it lasts until all is done, however busy the machine is; faults are not held up.
def move(lab, guest, target):
    recv = lab.recv(target)
    send = lab.send(guest.qemu, recv.listening, "--postcopy", "now", "--max-bandwidth", "1M")
    send.wait_state("postcopy-active")
    recv.wait_state("postcopy-active")
    return send, recv


def completed(lab, guest, target, send, recv):
    source = guest.qemu
    lab.run("set", source.id, "max-bandwidth=0")
    for ferry in (send, recv):
        ferry.finish(40).check_code(0)
        check_result(ferry.result, "completed", guest="destination", error=None,
                     missing_pages=0)
    guest.moved(target)
    wait_until(lambda: not source.alive(), 5, "the source QEMU has quit")
    check_equal(target.status(), "running", "the destination's state")
    guest.check_good()
    target.check_clean()
    lab.check_no_ferry()


@test(timeout=90)
def inflated_before(lab):
    """The balloon is full when the guest leaves, and is let go while its memory is moving."""
    guest = lab.boot(append=GUEST, **BALLOON)
    balloon(guest.qemu, SMALL)
    target = lab.destination(**BALLOON)
    send, recv = move(lab, guest, target)
    balloon(target, FULL)
    check_equal(recv.states()[-1], "postcopy-active", "the state when the balloon is empty")
    completed(lab, guest, target, send, recv)
    check(recv.result["faults"] > 0, "nobody waited for a page: %s", recv.result)
    check(target.monitor.command("query-balloon")["actual"] == FULL, "the balloon is not as it was")


@test(timeout=120)
def inflated_during(lab):
    """It is filled, emptied and filled at the destination while pages are missing."""
    guest = lab.boot(append=GUEST, **BALLOON)
    target = lab.destination(**BALLOON)
    send, recv = move(lab, guest, target)
    given, taken = Given(target), 0
    for _ in range(2):
        balloon(target, SMALL)
        given.look()
        balloon(target, FULL)
        # The guest fills what it has again, until holes that were pages are pages once more.
        wait_until(lambda: len(given.look() & given.holes) >= 64, 20,
                   "64 pages that were given back are taken again")
        taken = len(given.look() & given.holes)
    check_equal((send.states()[-1], recv.states()[-1]), 2 * ("postcopy-active",),
                "the states when all that is done")
    note("%d pages were given back, %d of them were taken again while others were missing",
         len(given.holes), taken)
    check(len(given.holes) >= 512, "only %d pages were given back", len(given.holes))
    completed(lab, guest, target, send, recv)
    # What is asked for is missing; a page that was there and is a hole now is not.
    check(recv.result["fault_pages"] + recv.result["background_pages"] <=
          send.result["normal_pages"] + send.result["zero_pages"],
          "pages came that were not missing: %s, %s", recv.result, send.result)


@test(timeout=120)
def inflated_when_recovering(lab):
    """The balloon is filled while the link is cut; its worker dies, and another one goes on."""
    guest = lab.boot(append=GUEST, **BALLOON)
    target = lab.destination(**BALLOON)
    send, recv = move(lab, guest, target)
    given = Given(target)
    balloon(target, SMALL)
    before = len(recv.states())
    os.kill(recv.worker(), 9)
    wait_until(lambda: "postcopy-active" in recv.states()[before:], 20, "another worker goes on")
    balloon(target, FULL)
    wait_until(lambda: len(given.look() & given.holes) >= 64, 20,
               "64 pages that were given back are taken again")
    completed(lab, guest, target, send, recv)


@test(timeout=90)
def inflated_after(lab):
    """Nothing of it is left: what is given back stays away."""
    guest = lab.boot(append=GUEST, **BALLOON)
    target = lab.destination(**BALLOON)
    send, recv = move(lab, guest, target)
    completed(lab, guest, target, send, recv)
    before = target.ram_blocks()
    balloon(target, SMALL)
    wait_until(lambda: target.ram_blocks() < before - 2048, 20, "a MiB is given back")
    balloon(target, FULL)
    guest.check_good(more=5)


if __name__ == "__main__":
    sys.exit(tap.main(Lab, prerequisites))
