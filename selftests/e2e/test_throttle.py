#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Guests that write faster than precopy can send: the policies of --on-stall."""
import os
import re
import subprocess
import sys

import tap
from lib import Lab, check, check_completed, check_equal, prerequisites, wait_until
from tap import Skip, test
from underway import check_stayed, two_on_loopback

# A guest that dirties more than 24 MiB/s can carry: precopy cannot end by itself.
RESTLESS = "ferry.mib=32 ferry.dirty=256 ferry.pause_ms=5"
# Without end, as far as we look.
WAIT_ROUNDS = 20 if os.environ.get("FERRY_TEST_LONG") else 5


@test()
def a_restless_guest_can_be_cancelled_by_policy(lab):
    guest = lab.boot(append=RESTLESS)
    target, recv, send = two_on_loopback(lab, guest, (
        "--max-bandwidth", "24M", "--downtime-limit", 5, "--on-stall", "cancel"))
    check_stayed(lab, guest, target, send, recv)
    check("will not converge" in send.result["error"] and
          "--on-stall cancel" in send.result["error"], "error: %s", send.result["error"])
    check(send.result["rounds"] >= 2, "it gave up after %s rounds", send.result["rounds"])


class ControlGroup:
    """A control group of version 1 or 2 that limits processor time, for one QEMU."""

    def __init__(self, lab, *pids):
        name = "ferry-e2e-%d-%s" % (os.getpid(), lab.tag)
        for folder, self.limit in (("/sys/fs/cgroup", "cpu.max"),
                                   ("/sys/fs/cgroup/cpu", "cpu.cfs_quota_us"),
                                   ("/sys/fs/cgroup/cpu,cpuacct", "cpu.cfs_quota_us")):
            self.path = os.path.join(folder, name)
            try:
                os.mkdir(self.path)
            except OSError:
                continue
            if os.path.exists(os.path.join(self.path, self.limit)):
                break
            os.rmdir(self.path)
        else:
            raise Skip("no control group with a limit of processor time can be made here")
        lab.on_close(self.remove)
        self.before = self.read()
        for pid in pids:
            self.add(pid)

    def add(self, pid):
        with open(os.path.join(self.path, "cgroup.procs"), "w") as file:
            file.write(str(pid))

    def read(self):
        with open(os.path.join(self.path, self.limit)) as file:
            return file.read().strip()

    def remove(self):
        """Its processes were killed before; the kernel may take a moment to forget them."""
        wait_until(lambda: not os.path.exists(self.path) or self._rmdir(), 5, "an empty group")

    def _rmdir(self):
        try:
            os.rmdir(self.path)
            return True
        except OSError:
            return False


def throttled(lab, *send_args):
    """A guest that rewrites 4 MiB without end, under --on-stall throttle.

    The limit of downtime is too low to end by itself meanwhile."""
    guest = lab.boot(append="ferry.mib=4 ferry.dirty=256 ferry.pause_ms=5")
    group = ControlGroup(lab, guest.qemu.pid)
    target, recv, send = two_on_loopback(lab, guest, (
        "--downtime-limit", 5, "--max-bandwidth", "30M", "--on-stall", "throttle") + send_args)
    send.wait_event(lambda e: e["event"] == "progress" and e["round"] > 1, 30, "the second round")
    lab.run("set", guest.qemu.id, "max-bandwidth=14M").check_code(0)
    event = send.wait_event(lambda e: e["event"] == "progress" and e["throttle"] >= 20
                            and e["stall"], 30, "the guest is throttled")
    check("throttling guest" in event["stall"], "progress: %s", event)
    check(group.read() != group.before, "the limit is still %s", group.before)
    return guest, group, target, recv, send


@test(timeout=90)
def throttled_until_it_converges(lab):
    guest, group, target, recv, send = throttled(lab, "--verify")
    lab.run("set", guest.qemu.id, "downtime-limit=120").check_code(0)
    send.finish(60)
    check_completed(send, recv)
    check_equal(group.read(), group.before, "the limit afterwards")
    guest.moved(target)
    guest.check_good()


@test(timeout=120)
def only_a_throttle_makes_it_converge(lab):
    """The same guest, the same migration: with "wait" it goes on for ever, and says why."""
    guest = lab.boot(append="ferry.mib=4 ferry.dirty=256 ferry.pause_ms=5")
    group = ControlGroup(lab, guest.qemu.pid)
    target, recv, send = two_on_loopback(lab, guest, (
        "--downtime-limit", 120, "--max-bandwidth", "14M", "--on-stall", "wait"))
    event = send.wait_event(lambda e: e["event"] == "progress" and e["stall"], 40, "a stall")
    check(re.fullmatch(r"dirtied \d+ MiB/s, sent \d+ MiB/s(, still \d+ ms of downtime, limit "
                       r"120 ms)?: will not converge; waiting", event["stall"]),
          "progress: %s", event)
    first = event["round"]
    event = send.wait_event(lambda e: e["event"] == "progress" and
                            e["round"] >= first + WAIT_ROUNDS, 40, "more rounds")
    check(event["stall"].endswith("waiting") and not event["throttle"], "progress: %s", event)
    check_equal(group.read(), group.before, "the limit while it waits")
    lab.run("set", guest.qemu.id, "on-stall=throttle").check_code(0)
    event = send.wait_event(lambda e: e["event"] == "progress" and e["throttle"], 30, "a throttle")
    check("throttling guest %d %%" % event["throttle"] in event["stall"], "progress: %s", event)
    send.finish(60)
    check_completed(send, recv)
    check_equal(group.read(), group.before, "the limit afterwards")
    guest.moved(target)
    guest.check_good()


@test(timeout=60, cases={"cancel": ("cancel",), "kill": ("kill",), "set": ("set",)})
def a_throttle_is_lifted(lab, how):
    guest, group, target, recv, send = throttled(lab)
    if how == "set":
        lab.run("set", guest.qemu.id, "on-stall=wait").check_code(0)
        wait_until(lambda: group.read() == group.before, 10, "the guest has its time back")
        send.wait_event(lambda e: e["event"] == "progress" and not e["throttle"] and e["stall"]
                        and e["stall"].endswith("waiting"), 20, "it says that it waits")
        lab.run("cancel", guest.qemu.id).check_code(0)
    elif how == "cancel":
        lab.run("cancel", guest.qemu.id).check_code(0)
    else:
        os.kill(send.worker(), 9)
    check_stayed(lab, guest, target, send, recv, event="failed" if how == "kill" else "cancelled")
    check_equal(group.read(), group.before, "the limit afterwards")


@test()
def nobody_else_is_throttled(lab):
    """QEMU shares its control group: refused at once, with what to do."""
    guest = lab.guest()
    other = subprocess.Popen(["sleep", "60"])
    lab.on_close(other.kill)
    group = ControlGroup(lab, other.pid, guest.qemu.pid)
    try:
        send = lab.send(guest.qemu, "tcp:127.0.0.1:9", "--on-stall", "throttle").finish()
    finally:  # other tests go on with that guest
        with open(os.path.join(os.path.dirname(group.path), "cgroup.procs"), "w") as file:
            file.write(str(guest.qemu.pid))
        other.kill()
        other.wait()
    send.check_code(1)
    check("(sleep), which a limit would hit too" in send.result["error"] and
          "systemd-run --scope" in send.result["error"], "error: %s", send.result["error"])
    check_equal(group.read(), group.before, "the limit")
    guest.check_good()


if __name__ == "__main__":
    sys.exit(tap.main(Lab, prerequisites))
