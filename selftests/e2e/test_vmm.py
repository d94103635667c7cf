#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Whole migrations of ferry-vmm, whose guest notices any page or register that is not what
it was: every tracker, channel count, transport and engine; sizes; faults at every stage.

Without FERRY_TEST_LONG a part of each table is run.
"""
import os
import sys

import tap
import test_faults
import vmm
from lib import check, check_completed, migrate, wait_until
from tap import Skip, check_equal, test
from vmm import VmmLab, have_kvm

tap.forget()  # test_faults' own tests, of QEMU
test_faults.Lab = VmmLab
LONG = bool(os.environ.get("FERRY_TEST_LONG"))

TRACKERS = {  # the engine, what ferry-vmm is told, what ferry is told
    "log": ("kvm", ("--tracker-log", "log"), ("--tracker", "port")),
    "ring": ("kvm", ("--tracker-log", "ring"), ("--tracker", "port")),
    "pagemap": ("kvm", (), ("--tracker", "pagemap")),
    "threads": ("threads", (), ("--tracker", "pagemap")),
}
WAIT_ROUNDS = 20 if LONG else 5  # without end, as far as we look
PATTERNS = ("seq", "random", "hot")
SHORT = ("log-1-tcp", "log-4-unix", "ring-2-tcp", "ring-4-tcp", "pagemap-1-unix",
         "pagemap-4-tcp", "threads-2-tcp", "threads-4-unix")


def matrix():
    """name: tracker, channels, transport, access pattern"""
    cases, number = {}, 0
    for tracker in TRACKERS:
        for channels in (1, 2, 4):
            for transport in ("tcp", "unix"):
                name = "%s-%d-%s" % (tracker, channels, transport)
                if LONG or name in SHORT:
                    cases[name] = (tracker, channels, transport, PATTERNS[number % 3])
                number += 1
    return cases


def need_kvm(engine="kvm"):
    if engine == "kvm" and not have_kvm():
        raise Skip("/dev/kvm is not there or not ours to use")


@test(timeout=90, cases=matrix())
def lost_update(lab, tracker, channels, transport, pattern):
    """Writers at full speed while the guest moves, and moves on from where it arrived."""
    lab.engine, vmm_args, send_args = TRACKERS[tracker]
    need_kvm(lab.engine)
    lab.shape = lab.shape[:2] + ("--vcpus", "4") + vmm_args
    guest = lab.guest("--pattern", pattern, "--dirty-rate", "max")
    for number in range(3 if LONG else 1):
        uri = "tcp:127.0.0.1:0" if transport == "tcp" else \
            "unix:%s/%d.sock" % (lab.dir, number)
        source = guest.qemu
        send, _recv = migrate(lab, guest, lab.destination(), "--verify", *send_args, uri=uri,
                              channels=channels)
        check_equal(send.result["verified"], True, "verified")
        check_equal(send.result["tracker"], send_args[1], "the tracker")
        check_equal(source.wait(), 0, "the source's exit status: %s" % source.stderr)
    check_equal(guest.qemu.end(), 0, "the destination's exit status: %s" % guest.qemu.stderr)


@test(timeout=120, cases={name: (name,) for name in ("16M", "512M", "8G")})
def ram_size(lab, size):
    """What nobody touched is neither sent nor allocated, on either side."""
    lab.shape = ("--ram", size, "--vcpus", "4")
    lab.work = ("--working-set", "8M", "--dirty-rate", "20000")
    guest = lab.guest()
    send, _ = migrate(lab, guest, lab.destination())
    check_equal(send.result["ram_bytes"], vmm.size_bytes(size), "ram_bytes")
    check(guest.qemu.allocated() <= 16 << 20, "%d bytes of RAM are allocated",
          guest.qemu.allocated())
    check_equal(guest.qemu.end(60), 0, "exit status: %s" % guest.qemu.stderr)


def restless(lab, engine):
    """A guest that does not converge, whose throttle is libferry's callback."""
    lab.engine = engine
    need_kvm(engine)
    lab.shape = lab.shape[:2] + ("--vcpus", "2")
    lab.work = ("--working-set", "4M", "--dirty-rate", "4000")
    guest, target = lab.guest(), lab.destination()
    # The whole working set is there to be sent, or the first round may be so short that it converges.
    wait_until(lambda: guest.qemu.ask()["work"] > 2048, 20, "it has written all of its memory")
    recv = lab.recv(target, "tcp:127.0.0.1:0")
    send = lab.send(guest.qemu, recv.listening, "--downtime-limit", 120, "--max-bandwidth", "14M",
                    "--on-stall", "wait")
    event = send.wait_event(lambda e: e["event"] == "progress" and e["stall"], 40, "a stall")
    check(event["stall"].endswith(": will not converge; waiting"), "progress: %s", event)
    first = event["round"]
    event = send.wait_event(lambda e: e["event"] == "progress" and e["round"] >= first + WAIT_ROUNDS,
                            40, "more rounds")
    check_equal((event["throttle"], guest.qemu.ask()["throttle"]), (0, 0), "the throttle")
    lab.run("set", guest.qemu.id, "on-stall=throttle").check_code(0)
    return guest, target, recv, send


@test(timeout=90, cases={name: (name,) for name in ("kvm", "threads") if LONG or name == "kvm"})
def only_a_throttle_makes_it_converge(lab, engine):
    guest, target, recv, send = restless(lab, engine)
    event = send.wait_event(lambda e: e["event"] == "progress" and e["throttle"], 30, "a throttle")
    check("throttling guest %d %%" % event["throttle"] in event["stall"], "progress: %s", event)
    send.finish(60)
    check_completed(send, recv)
    check_equal(target.ask()["throttle"], 0, "the throttle at the destination")
    guest.moved(target)
    guest.check_good()


@test(timeout=90, cases={how: (how,) for how in ("cancel", "kill", "set") if LONG or how == "kill"})
def a_throttle_is_lifted(lab, how):
    guest, target, recv, send = restless(lab, "kvm" if have_kvm() else "threads")
    # Not so high that it converges before we are done.
    lab.run("set", guest.qemu.id, "downtime-limit=5").check_code(0)
    wait_until(lambda: guest.qemu.ask()["throttle"] >= 20, 30, "the guest is throttled")
    if how == "set":
        lab.run("set", guest.qemu.id, "on-stall=wait").check_code(0)
        wait_until(lambda: guest.qemu.ask()["throttle"] == 0, 10, "the guest has its time back")
    if how == "kill":
        os.kill(send.worker(), 9)
    else:
        lab.run("cancel", guest.qemu.id).check_code(0)
    for ferry in (send, recv):
        ferry.finish().check_code(1)
    check_equal(guest.qemu.ask()["throttle"], 0, "the throttle afterwards")
    guest.check_good()
    guest.qemu.check_clean()


def an_eta(lab, guest, target):
    """Of a move that is cancelled: what is said to be left, over what its own pace makes of that."""
    recv = lab.recv(target, "tcp:127.0.0.1:0")
    send = lab.send(guest.qemu, recv.listening, "--max-bandwidth", "5M", "--downtime-limit", 30)
    seen = []

    def enough(event):
        if event["event"] == "progress" and event["round"] == 1 and event["percent"] > 10 and \
                event not in seen:
            seen.append(event)
        return len(seen) >= 3
    send.wait_event(enough, 30, "three estimates")
    lab.run("cancel", guest.qemu.id).check_code(0)
    for ferry in (send, recv):
        ferry.finish().check_code(1)
    rate = sum(e["bytes_per_s"] for e in seen) / len(seen)
    check(rate < 7 << 20, "%d bytes/s", rate)
    pace = (seen[-1]["percent"] - seen[0]["percent"]) / (seen[-1]["t_ns"] - seen[0]["t_ns"])
    return sum(e["eta_ns"] for e in seen) / sum((100 - e["percent"]) / pace for e in seen)


@test()
def the_eta_counts_pages(lab):
    """Every other page is zero and takes nothing on the line, whose pace is fixed: by bytes there
    would seem to be twice as long to go, every time. A busy machine may change the pace once."""
    lab.engine = "threads"
    lab.shape = ("--ram", "64M", "--vcpus", "2")
    lab.work = ("--working-set", "48M", "--zero-share", "50", "--dirty-rate", "20000")
    guest = lab.guest()
    wait_until(lambda: guest.qemu.ask()["work"] > 3 * 12288, 30, "all of its memory was written")
    ratios = []
    while len(ratios) < 3 and not any(0.7 < r < 1.4 for r in ratios):
        ratios.append(an_eta(lab, guest, lab.destination()))
    check(0.7 < ratios[-1] < 1.4, "of the time it would take is said to be left: %s", ratios)
    guest.check_good()
    guest.qemu.check_clean()


@test(timeout=60, cases={name: (name,) for name in ("kvm", "threads")})
def refused(lab, engine):
    """A destination that the guest does not fit is refused, and the guest runs on."""
    lab.engine = engine
    need_kvm(engine)
    guest = lab.guest()
    other = "threads" if engine == "kvm" else "kvm"
    wrong = [("--vcpus", ("--engine", engine, "--ram", vmm.RAM, "--vcpus", "3")),
             ("ram1", ("--engine", engine, "--ram", "24M,10M,28K,5124K", "--vcpus", "2"))]
    if have_kvm():
        wrong.append((r"ferry-vmm-" + other, ("--engine", other) + lab.shape))
    for number, (words, args) in enumerate(wrong):
        target = lab.vmm("wrong-%d" % number, *args, incoming=True).started()
        recv = lab.recv(target)
        send = lab.send(guest.qemu, recv.listening, "--timeout", 5).finish()
        recv.finish()
        send.check_code(1)
        said = send.stderr + str(send.result["error"]) + target.stderr
        check(words in said, "'%s' is not in: %s", words, said)
        guest.check_good()
        guest.qemu.check_clean()
        target.kill()


def some(column, stages):
    """The whole column of test_faults' table, or these stages of it."""
    return {s: args for s, args in column.items() if LONG or s in stages}


for function, table, timeout in (
        (test_faults.kill_worker,
         some(test_faults.column(2), ("bulk", "stop", "commit", "load", "start")), 40),
        (test_faults.kill_guardian, some(test_faults.column(3), ("bulk", "receive")), 40),
        (test_faults.fail,
         some(test_faults.column(4), ("final", "loaded", "commit-wait", "run-accepted")), 40),
        (test_faults.kill_destination_qemu,
         some(test_faults.column(5), ("bulk", "commit-wait")), 60),
        (test_faults.cut_link, some(test_faults.CUT, ("bulk",)), 90)):
    test(timeout=timeout, cases=table)(function)


@test(timeout=60, cases={s: (s,) for s in (("prepare", "bulk", "pre-switchover", "save", "package",
                                            "loaded", "commit", "run") if LONG else ("loaded",))})
def kill_source_vmm(lab, stage):
    test_faults.kill_source_qemu(lab, stage)


if __name__ == "__main__":
    sys.exit(tap.main(VmmLab, vmm.prerequisites))
