# SPDX-License-Identifier: GPL-2.0-or-later
"""Migrations over precopy that a test does something to while they are under way."""
import os

from lib import check, check_equal, check_result


def two_on_loopback(lab, guest, send_args=(), recv_args=(), **target_options):
    """Start a migration of @guest and come back while both run."""
    target = lab.destination(**target_options)
    recv = lab.recv(target, "tcp:127.0.0.1:0", *recv_args)
    send = lab.send(guest.qemu, recv.listening, *send_args)
    return target, recv, send


def check_stayed(lab, guest, target, send, recv, code=1, event="failed"):
    """The guest runs at the source as if nothing had been, and never ran at the destination."""
    for ferry in (send, recv):
        ferry.finish().check_code(code)
    check_result(send.result, event, guest="source", state=event)
    check(recv.result["event"] in ("failed", "cancelled"), "recv says %s", recv.result)
    check(recv.result["guest"] in ("source", "none", "unknown"), "recv says %s", recv.result)
    check_equal(guest.qemu.status(), "running", "the source's state")
    check(not target.running(), "the destination runs too")
    check_equal(os.path.getsize(target.serial), 0, "bytes the destination's guest printed")
    guest.check_good()
    guest.qemu.check_clean()
    lab.check_no_ferry()


def pre_switchover(lab, guest, send_args=()):
    target, recv, send = two_on_loopback(lab, guest, ("--pause-before-switchover",) + send_args)
    send.wait_state("pre-switchover")
    # Unlike QEMU's state of this name: the migration waits, the guest does not.
    check_equal(guest.qemu.status(), "running", "the source's state")
    guest.wait_ticks(2)
    check(not target.running(), "the destination runs")
    return target, recv, send
