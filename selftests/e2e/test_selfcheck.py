#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Tests of the harness itself: what it must notice, it notices. Needs no ferry."""
import os
import subprocess
import sys

import tap
from lib import (ROOT, Disk, Guest, Lab, Netns, Ticks, check, check_equal, make_pattern_disk,
                 prerequisites, wait_until)
from tap import Failed, test


def ticks_of(lab, *texts):
    paths = []
    for number, text in enumerate(texts):
        paths.append(os.path.join(lab.dir, "serial%d" % number))
        with open(paths[-1], "w") as file:
            file.write(text)
    return Ticks(paths)


def tick(number, bad=0, loops=None):
    return "TICK %d bad=%d t=%d wall=1 loops=%d\r\n" % (number, bad, number * 100,
                                                        number if loops is None else loops)


def wants_problem(ticks, part):
    check(any(part in p for p in ticks.problems), "no %r in %s", part, ticks.problems)


@test()
def ticks_accept_a_split_line(lab):
    whole = tick(1)
    ticks = ticks_of(lab, "BOOTED\n" + tick(0) + whole[:9], whole[9:] + tick(2) + "TICK 3 ba")
    check_equal(ticks.problems, [], "problems")
    check_equal(ticks.numbers, [0, 1, 2], "numbers")


@test()
def ticks_report_a_gap(lab):
    wants_problem(ticks_of(lab, tick(0) + tick(1), tick(3)), "3 follows where 2 was due")


@test()
def ticks_report_a_repeat(lab):
    wants_problem(ticks_of(lab, tick(0) + tick(1), tick(1)), "1 follows where 2 was due")


@test()
def ticks_report_a_missing_start(lab):
    wants_problem(ticks_of(lab, tick(5)), "5 follows where 0 was due")


@test()
def ticks_report_bad_memory(lab):
    wants_problem(ticks_of(lab, tick(0) + tick(1, bad=2)), "2 memory or disk checks failed")


@test()
def ticks_report_lost_characters(lab):
    wants_problem(ticks_of(lab, tick(0) + tick(1)[:9], tick(1)[12:] + tick(2)), "not a tick")


@test()
def ticks_report_work_going_back(lab):
    wants_problem(ticks_of(lab, tick(0, loops=9) + tick(1, loops=8)), "loops went back")


@test()
def a_dead_guest_is_noticed(lab):
    guest = lab.boot()
    guest.qemu.monitor.command("stop")
    try:
        guest.wait_ticks(2, seconds=1)
    except Failed:
        return
    raise Failed("a stopped guest seems to tick")


@test()
def leftovers_are_noticed(lab):
    qemu = lab.boot().qemu
    qemu.check_clean()
    qemu.monitor.command("migrate-set-capabilities",
                         capabilities=[{"capability": "x-ignore-shared", "state": True}])
    check(any("capabilities" in l for l in qemu.leftovers()), "not noticed: %s", qemu.leftovers())


def qemu_migrates(lab, guest, target):
    """QEMU's own migration of a stopped guest, as a stand-in mover.

    Not live: under TCG with several vCPUs QEMU 7.2's own dirty log loses writes,
    and then the guest says so.
    """
    path = os.path.join(lab.dir, "own")
    guest.qemu.monitor.command("stop")
    target.monitor.command("migrate-incoming", uri="unix:" + path)
    guest.qemu.monitor.command("migrate", uri="unix:" + path)
    wait_until(lambda: guest.qemu.monitor.command("query-migrate").get("status") == "completed",
               20, "QEMU's own migration")
    wait_until(lambda: target.status() == "paused", 5, "the destination is loaded")
    target.monitor.command("cont")
    guest.moved(target)


@test()
def a_moved_guest_keeps_ticking(lab):
    guest = lab.boot("vm", backends=2)
    qemu_migrates(lab, guest, lab.destination(backends=2))
    guest.check_good(more=5)


@test()
def the_source_going_on_is_noticed(lab):
    guest = lab.boot()
    source = guest.qemu
    qemu_migrates(lab, guest, lab.destination())
    source.monitor.command("cont")
    split = Guest(source)
    split.wait_ticks(3)
    wants_problem(guest.ticks(), "was due")


@test()
def ticks_go_on_though_the_clock_is_slow(lab):
    """The guest's own program, here and not in a guest, with the clock of slow_clock.c."""
    program = os.path.join(lab.dir, "guest")
    sources = [os.path.join(ROOT, "selftests", n) for n in ("qemu/guest.c", "e2e/slow_clock.c")]
    check_equal(subprocess.call(
        [os.environ.get("CC", "gcc"), "-std=gnu11", "-D_GNU_SOURCE", "-O2", "-static", "-pthread",
         "-Wl,--wrap=clock_gettime,--wrap=nanosleep", "-o", program] + sources), 0, "gcc's exit")
    run = subprocess.run([program], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
                         timeout=30 * tap.SLOW)
    check_equal(run.returncode, 0, "the exit status; it printed: %s" % run.stdout[-200:])
    ticks = ticks_of(lab, run.stdout)
    check_equal(ticks.problems, [], "problems")
    check(ticks.count >= 200, "only %d ticks", ticks.count)


@test()
def disks_are_loaded_and_checked(lab):
    read, write = (os.path.join(lab.dir, n) for n in ("read.raw", "write.qcow2"))
    make_pattern_disk(read, 8)
    check_equal(os.system("qemu-img create -q -f qcow2 %s 32M" % write), 0, "qemu-img's exit")
    append = "ferry.mib=8 ferry.pause_ms=10 ferry.disk=/dev/vda:read ferry.disk=/dev/vdb:rw"
    guest = lab.boot(disks=[Disk(read), Disk(write, "qcow2")], append=append)
    guest.check_good(more=5)

    def moved():
        disks = {b["device"]: b["stats"] for b in guest.qemu.monitor.command("query-blockstats")}
        return disks["disk0"]["rd_bytes"] > 1 << 20 and disks["disk1"]["wr_bytes"] > 1 << 16
    wait_until(moved, 15, "more than hardly anything was read and written")
    guest.check_good()


@test()
def a_wrong_disk_block_is_noticed(lab):
    path = os.path.join(lab.dir, "read.raw")
    make_pattern_disk(path, 2)
    with open(path, "r+b") as file:
        file.seek(5 * 4096 + 800)
        file.write(b"wrong")
    guest = lab.boot(disks=[Disk(path)], append="ferry.mib=8 ferry.disk=/dev/vda:read")
    wait_until(lambda: any("disk block 5" in p for p in guest.ticks().problems), 10,
               "the wrong block is reported")


@test()
def churn_frees_memory(lab):
    guest = lab.boot(args=["-device", "virtio-balloon-pci,free-page-reporting=on"],
                     append="ferry.mib=8 ferry.pause_ms=10 ferry.churn=24")
    wait_until(lambda: guest.ticks().loops > 50, 10, "fifty loops")
    guest.check_good()


@test()
def ordinary_user_and_memfd(lab):
    guest = lab.boot(user=23456, memory="memfd")
    check_equal(os.stat("/proc/%d" % guest.qemu.pid).st_uid, 23456, "QEMU's owner")
    check(len(guest.qemu.before["mappings"]) > 0, "no RAM mapping was found")
    guest.qemu.check_clean()


@test()
def the_link_can_be_cut(lab):
    net = Netns(lab)
    ping = "nsenter --net=/run/netns/%s busybox ping -c 1 -W 1 %s >/dev/null" \
        % (net.left, net.right_address)
    wait_until(lambda: os.system(ping) == 0, 5, "ping goes through")
    net.cut()
    check(os.system(ping) != 0, "ping goes through a cut link")
    net.restore()
    wait_until(lambda: os.system(ping) == 0, 5, "ping goes through again")


@test()
def all_flavours_of_memory(lab):
    for memory in ("shm", "memfd", "own-memfd", "disk"):
        qemu = lab.qemu("vm-" + memory, memory=memory, backends=2, incoming=True)
        check(len(qemu.before["mappings"]) == 2 or memory == "own-memfd",
              "%s: %s", memory, qemu.before["mappings"])
        check_equal(qemu.status(), "inmigrate", memory + "'s state")


if __name__ == "__main__":
    sys.exit(tap.main(Lab, lambda: prerequisites(ferry=False)))
