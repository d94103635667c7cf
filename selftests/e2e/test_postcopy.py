#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Postcopy: the guest runs at the destination while its memory is still at the source.

The guest of every test checks all the memory it has written, counts, and says so each tick: a
page that came late, twice or from the wrong time shows as bad memory or a gap.
"""
import json
import os
import signal
import sys
import time

import tap
import vmm
from lib import (Lab, Netns, check, check_completed, check_equal, check_result, huge_bytes,
                 prerequisites, wait_until)
from tap import Skip, test

# So slow that a page that is wanted is asked for before it comes by itself.
SLOWLY = ("--max-bandwidth", "24M")


def postcopy(lab, guest, target, *args, uri="tcp:127.0.0.1:0", mode=None):
    """A whole migration that switches to postcopy."""
    source = guest.qemu
    recv = lab.recv(target, uri)
    send = lab.send(source, recv.listening, *args)
    check_completed(send, recv)
    check_moved(guest, source, target, send, recv, mode)
    return send, recv


def check_moved(guest, source, target, send, recv, mode):
    guest.moved(target)
    wait_until(lambda: not source.alive(), 5, "the source QEMU has quit")
    check_equal(target.status(), "running", "the destination's state")
    guest.check_good()
    target.check_clean()
    for ferry in (send, recv):
        if mode:
            check_equal(ferry.result["mode"], mode, "the mode " + ferry.name + " tells")
        check_equal(ferry.result["missing_pages"], 0, "pages that are missing at the end")
    if mode != "precopy":
        check_equal(send.states()[-4:], ["active", "postcopy-device", "postcopy-active",
                                         "completed"], "the source's states")
        check_equal(recv.states()[-4:], ["postcopy-device", "commit-wait", "postcopy-active",
                                         "completed"], "the destination's states")


@test(cases={
    "now": ("now", (), "postcopy"),
    "after": ("after=1", (), "hybrid"),
    "checksum-zstd": ("now", ("--checksum", "--compress", "zstd", "--channels", 4), "postcopy"),
    "tracker": ("now", ("--tracker", "pagemap"), "postcopy"),
})
def moves(lab, when, args, mode):
    guest = lab.guest()
    send, recv = postcopy(lab, guest, lab.destination(), "--postcopy", when, *SLOWLY, *args,
                          mode=mode)
    check(recv.result["faults"] > 0, "nobody waited for a page: %s", recv.result)
    check(recv.result["blocktime_ns"] > 0, "waits took no time: %s", recv.result)
    check_equal(sum(recv.result["fault_us"]) > 0, True, "a histogram of waits")
    check(0 < recv.result["fault_p50_ns"] <= recv.result["fault_p99_ns"], "percentiles of waits")
    threads = recv.result["blocktime_threads"]
    check_equal(sum(t["ns"] for t in threads), recv.result["blocktime_ns"], "blocktime by threads")
    for ferry in (send, recv):
        check(ferry.result["fault_pages"] > 0 and ferry.result["background_pages"] > 0,
              "pages by fault and by background: %s", ferry.result)
    check(send.result["fault_pages"] <= send.result["faults"], "more was sent than asked for")


@test(cases={"now": ("now", "postcopy"), "after": ("after=1", "hybrid")})
def moves_ferry_vmm(lab, when, mode):
    """A VMM that links libferry: nothing is injected into it."""
    vmm.prerequisites()
    lab = vmm.VmmLab(lab.name)
    try:
        guest = lab.guest()
        source, target = guest.qemu, lab.destination()
        recv = lab.recv(target)
        send = lab.send(source, recv.listening, "--postcopy", when, "--max-bandwidth", "8M")
        check_completed(send, recv)
        check_equal((send.result["mode"], recv.result["mode"]), (mode, mode), "the mode")
        check(recv.result["faults"] > 0, "nobody waited for a page: %s", recv.result)
        guest.moved(target)
        wait_until(lambda: not source.alive(), 5, "the source has ended")
        guest.check_good()
        target.check_clean()
        lab.settle()
    finally:
        lab.close()


@test(cases={"now": ("now", "postcopy"), "after": ("after=1", "hybrid")})
def mapped_beforehand(lab, when, mode):
    """prealloc=on leaves every page of the destination mapped: all of them must fault again."""
    options = {"memory_options": "prealloc=on"}
    guest = lab.boot(**options)
    target = lab.destination(**options)
    check(target.ram_blocks() * 512 >= target.mib << 20, "the destination's RAM is not there yet")
    _, recv = postcopy(lab, guest, target, "--postcopy", when, *SLOWLY, mode=mode)
    check(recv.result["faults"] > 0, "nobody waited for a page: %s", recv.result)


TEARING = {
    "kvm": ("kvm", ("--postcopy", "now", "--channels", 4)),
    "kvm-hybrid": ("kvm", ("--postcopy", "after=1", "--channels", 3, "--checksum")),
    "threads": ("threads", ("--postcopy", "now", "--channels", 4)),
    "threads-lz4": ("threads", ("--postcopy", "after=2", "--compress", "lz4")),
    "slow": ("kvm", ("--postcopy", "now", "--max-bandwidth", "40M", "--channels", 4)),
}


@test(timeout=600, cases=TEARING)
def no_page_is_torn(lab, engine, args):
    """Guests that write until the switch and check each page they read, whatever brings it.

    Every page that ferry-vmm's guest reads must be one that it wrote, whole: the channels, the
    fault channel and its own threads race for the same pages. With --long, 15 times each.
    """
    vmm.prerequisites()
    if engine == "kvm" and not vmm.have_kvm():
        raise Skip("no /dev/kvm")
    waited = 0
    for _ in range(15 if os.environ.get("FERRY_TEST_LONG") else 1):
        one = vmm.VmmLab(lab.name)
        try:
            one.engine = engine
            one.work = ("--working-set", "16M", "--fill", "8M", "--zero-share", "10")
            guest = one.guest()
            source, target = guest.qemu, one.destination()
            recv = one.recv(target)
            send = one.send(source, recv.listening, *args)
            check_completed(send, recv)
            guest.moved(target)
            waited += recv.result["faults"]
            guest.check_good()
            target.check_clean()
            one.settle()
        finally:
            one.close()
    check(waited > 0 or "now" not in args, "nobody ever waited for a page: nothing was tried")


@test(timeout=900, cases={"tcg": ()})
def no_page_is_torn_in_qemu(lab):
    """The same with QEMU's threads; its guest checks all records it has written."""
    guest = lab.boot(append="ferry.dirty=64 ferry.pause_ms=2")
    for _ in range(10 if os.environ.get("FERRY_TEST_LONG") else 1):
        target = lab.destination("vm-%d" % len(lab.qemus))
        postcopy(lab, guest, target, "--postcopy", "now", "--channels", 4, mode="postcopy")


LONG = bool(os.environ.get("FERRY_TEST_LONG"))


@test(timeout=60, cases={name: case for name, case in {
    "now": ("hugetlb", "postcopy", ("--postcopy", "now", "--channels", 4)),
    "after": ("hugetlb", "hybrid", ("--postcopy", "after=1", "--tracker", "pagemap")),
    "memfd-release": ("huge-memfd", "postcopy", ("--postcopy", "now", "--release-ram")),
    "checksum-zstd": ("hugetlb", "hybrid", ("--postcopy", "after=1", "--checksum", "--compress",
                                            "zstd")),
}.items() if LONG or name == "now"})
def huge_pages(lab, memory, mode, args):
    """hugetlb memory: 2 MiB are asked for, and shown, as one."""
    lab.huge_pages(2 * 160)
    guest = lab.boot(memory=memory, mib=160)
    source, target = guest.qemu, lab.destination(memory=memory, mib=160)
    before = source.ram_blocks()
    send, recv = postcopy(lab, guest, target, *SLOWLY, *args, mode=mode)
    check(recv.result["faults"] > 0, "nobody waited for a page: %s", recv.result)
    check(send.result["fault_pages"] >= 512, "parts of huge pages: %s", send.result)
    if memory == "hugetlb":
        check(0 < before * 512 < 150 << 20, "the source's RAM is full, or none: %d", before)
        check(target.ram_blocks() < 150 << 11, "holes became memory: %d", target.ram_blocks())


@test(timeout=60, cases={"now": ("now", "postcopy"), "after": ("after=1", "hybrid")}
      if LONG else {})
def huge_tmpfs(lab, when, mode):
    """Of a transparent huge page only the 4 KiB that have come are shown."""
    lab.huge_tmpfs("always")
    # QEMU maps a tmpfs where it likes, and what lies askew is not made of huge pages.
    options = {"memory": "huge-tmpfs", "memory_options": "align=2M"}
    guest = lab.boot(**options)
    source, target = guest.qemu, lab.destination(**options)
    check(huge_bytes(source.ram_files[0]) >= 8 << 20, "the source has no huge pages")
    _, recv = postcopy(lab, guest, target, "--postcopy", when, "--channels", 4, *SLOWLY, mode=mode)
    check(recv.result["faults"] > 0, "nobody waited for a page: %s", recv.result)
    check(huge_bytes(target.ram_files[0]) >= 8 << 20, "the destination has no huge pages")


@test(timeout=90, cases={"%s-%s" % (kind, when): (kind, when) for kind, when in (
    ("hugetlb", "now"), ("hugetlb", "after=1"), ("tmpfs", "now"), ("tmpfs", "after=1"))
    if LONG or when == "now"})
def huge_pages_of_ferry_vmm(lab, kind, when):
    """A guest that notices every torn or lost page, on KVM where there is one."""
    vmm.prerequisites()
    lab = vmm.VmmLab(lab.name)
    lab.shape = ("--ram", "24M,10M", "--vcpus", "2")
    try:
        if kind == "hugetlb":
            lab.huge_pages(2 * 34)
        else:
            lab.huge_tmpfs("always")
        files = [os.path.join(lab.huge_folder, name) for name in ("vm", "vm2")]
        guest = lab.guest("--ram-file", files[0])
        source, target = guest.qemu, lab.destination("vm2", "--ram-file", files[1])
        recv = lab.recv(target)
        send = lab.send(source, recv.listening, "--postcopy", when, "--channels", 3,
                        "--max-bandwidth", "24M")
        check_completed(send, recv)
        check(recv.result["faults"] > 0, "nobody waited for a page: %s", recv.result)
        guest.moved(target)
        wait_until(lambda: not source.alive(), 5, "the source has ended")
        guest.check_good()
        target.check_clean()
        if kind == "tmpfs":
            check(huge_bytes(files[1]) >= 8 << 20, "the destination has no huge pages")
        lab.settle()
    finally:
        lab.close()


class Trial:
    """A migration in postcopy-active, or on its way to it, to which something happens."""

    def __init__(self, lab, send=None, recv=None, args=("--postcopy", "now") + SLOWLY, timeout=20,
                 netns=None, memory="shm"):
        self.lab, self.netns = lab, netns
        self.guest = lab.boot(append="ferry.dirty=16 ferry.pause_ms=10", memory=memory)
        self.source, self.target = self.guest.qemu, lab.destination(memory=memory)
        uri = "tcp:%s:0" % (netns.right_address if netns else "127.0.0.1")
        self.recv = lab.ferry("recv", self.target.uri, uri, "--timeout", timeout, fault=recv,
                              netns=netns and netns.right)
        self.uri = self.recv.wait_listening()
        self.send = lab.ferry("send", self.source.uri, self.uri, "--timeout", timeout, *args,
                              fault=send, netns=netns and netns.left)

    def running(self):
        """Both sides say that pages are being sent for a guest that runs."""
        self.send.wait_state("postcopy-active")
        self.recv.wait_state("postcopy-active")
        return self

    def completed(self):
        for ferry in (self.send, self.recv):
            ferry.finish(40)
            check_result(ferry.result, "completed", guest="destination", error=None,
                         missing_pages=0)
            ferry.check_code(0)
        self.guest.moved(self.target)
        wait_until(lambda: not self.source.alive(), 5, "the source QEMU has quit")
        self.guest.check_good()
        self.target.check_clean()

    def at_source(self):
        self.send.finish(30).check_code(1)
        self.recv.finish(30).check_code(1)
        check(self.send.result["error"], "it failed and does not say why")
        check(self.source.running(), "the guest does not run at the source")
        check(not self.target.running(), "the destination runs the guest too")
        self.guest.check_good()
        self.source.check_clean()


@test()
def on_stall(lab):
    """A guest that writes faster than it can be sent, and a limit that it can never meet."""
    guest = lab.boot(append="ferry.mib=4 ferry.dirty=256 ferry.pause_ms=5")
    send, _ = postcopy(lab, guest, lab.destination(), "--postcopy", "on-stall", "--max-bandwidth",
                       "24M", "--downtime-limit", 5, mode="hybrid")
    check(send.result["rounds"] >= 2, "it switched before it could know: %s", send.result)


@test()
def by_command(lab):
    guest = lab.boot(append="ferry.dirty=24 ferry.pause_ms=0")
    source, target = guest.qemu, lab.destination()
    recv = lab.recv(target)
    send = lab.send(source, recv.listening, "--max-bandwidth", "32M", "--downtime-limit", 1)
    send.wait_event(lambda e: e.get("event") == "progress" and e["round"] > 1, 15, "a round")
    run = lab.run("postcopy", target.id + "-in")
    run.check_code(1)
    check("is the destination" in run.stderr, "the wrong side does not say so: %s", run.stderr)
    lab.run("postcopy", source.id).check_code(0)
    check_completed(send, recv)
    check_moved(guest, source, target, send, recv, "hybrid")


@test()
def command_too_early(lab):
    guest = lab.guest()
    recv = lab.recv(lab.destination())
    send = lab.ferry("send", guest.qemu.uri, recv.listening, "--verify",
                     "--pause-before-switchover")
    send.wait_state("pre-switchover")
    run = lab.run("postcopy", guest.qemu.id)
    run.check_code(1)
    check("started with --verify" in run.stderr, "no reason: %s", run.stderr)
    lab.run("cancel", guest.qemu.id).check_code(0)
    send.finish().check_code(1)
    recv.finish().check_code(1)
    guest.check_good()


@test(cases={stage.replace(":", "-"): (side, stage) for side, stage in (
    ("send", "switch:kill"), ("send", "discard:kill"), ("send", "discard:fail"),
    ("send", "package:kill"), ("send", "loaded:fail"), ("recv", "listening:kill"),
    ("recv", "listening:fail"), ("recv", "load:kill"), ("recv", "load:fail"),
)})
def back_to_the_source(lab, side, stage):
    """Up to COMMIT whatever fails leaves the guest where it was, armed or not."""
    trial = Trial(lab, **{side: stage})
    trial.at_source()


@test()
def cancelled_while_loading(lab):
    """postcopy-device is a state in which a person may still change his mind."""
    trial = Trial(lab, recv="load:delay=1500")
    trial.send.wait_state("postcopy-device")
    status = lab.run("status", trial.source.id, "--json")
    check('"state":"postcopy-device"' in status.stdout, "status says %s", status.stdout)
    lab.run("cancel", trial.source.id).check_code(0)
    trial.at_source()
    check_equal(trial.send.result["event"], "cancelled", "how it ended")


@test(cases={stage.replace(":", "-"): (side, stage) for side, stage in (
    ("send", "commit:kill"), ("send", "run:kill"), ("send", "lacks:kill"), ("send", "running:kill"),
    ("recv", "commit-wait:kill"), ("recv", "run-accepted:kill"), ("recv", "start:kill"),
    ("recv", "lacks-sent:kill"), ("recv", "placed:kill"),
)})
def worker_killed(lab, side, stage):
    """After COMMIT the guardian starts another worker, which finds out and goes on."""
    trial = Trial(lab, **{side: stage})
    if stage == "commit-wait:kill":
        trial.at_source()
    else:
        trial.completed()


@test(timeout=60, cases={"worker-killed": (True,), "lives": (False,)})
def qemu_waits_for_a_page_when_it_starts(lab, killed):
    """`cont` is answered when a page has come, and that comes over the next link if need be.

    A QEMU that is stopped stands for one whose vCPU waits for a page with the lock held. Until it
    answers, the destination answers the source's new worker, who says RUN again.
    """
    trial = Trial(lab, send="commit:stop", args=("--postcopy", "now"))
    worker = lab.stopped_worker("COMMIT is written")
    lab.on_close(lambda: trial.target.alive() and os.kill(trial.target.pid, signal.SIGCONT))
    os.kill(trial.target.pid, signal.SIGSTOP)
    os.kill(worker, signal.SIGCONT)
    name = trial.target.id + "-in"
    wait_until(lambda: record_of(lab, name)["phase"] == "run-accepted", 10, "RUN is accepted")
    if killed:
        os.kill(worker, signal.SIGKILL)
        wait_until(lambda: record_of(lab, name)["epoch"] > 1, 10, "its successor is answered")
        time.sleep(0.5)  # until it has asked, heard "waiting" and said RUN again
    check_equal(record_of(lab, name)["phase"], "run-accepted", "the destination's phase")
    os.kill(trial.target.pid, signal.SIGCONT)
    trial.completed()


def record_of(lab, name):
    with open(os.path.join(lab.runtime, name + ".json")) as file:
        return json.load(file)


@test(cases={"send": ("send",), "recv": ("recv",)})
def worker_killed_under_way(lab, side):
    """Twice, in the middle of it all."""
    trial = Trial(lab, args=("--postcopy", "now", "--max-bandwidth", "12M")).running()
    ferry = getattr(trial, side)
    trial.guest.moved(trial.target)
    for _ in range(2):
        trial.guest.wait_ticks(2, 30)
        before = len(ferry.states())
        os.kill(ferry.worker(), signal.SIGKILL)
        wait_until(lambda: "postcopy-active" in ferry.states()[before:], 20,
                   "another worker has taken over")
    trial.guest.hosts.pop()
    trial.completed()


def cut_twice(lab, trial, netns):
    for _ in range(2):
        netns.cut()
        before = len(trial.send.states()), len(trial.recv.states())
        wait_until(lambda: "postcopy-paused" in trial.send.states()[before[0]:] and
                   "postcopy-paused" in trial.recv.states()[before[1]:], 20, "both sides pause")
        # It tries by itself for --timeout; then a person says when.
        netns.restore()
        wait_until(lambda: recovers(lab, trial, before[0]), 20, "it goes on")
    trial.completed()


@test(timeout=60)
def link_cut(lab):
    """The link is lost, both sides pause, the guest goes on with what it has; then again."""
    netns = Netns(lab)
    trial = Trial(lab, args=("--postcopy", "now", "--max-bandwidth", "12M"), netns=netns,
                  timeout=2).running()
    cut_twice(lab, trial, netns)


@test(timeout=60, cases={"twice": ()} if LONG else {})
def huge_pages_link_cut(lab):
    """Huge pages of which a part has come: the rest comes on the new link."""
    lab.huge_pages(2 * 96)
    netns = Netns(lab)
    trial = Trial(lab, args=("--postcopy", "now", "--max-bandwidth", "12M"), netns=netns,
                  timeout=2, memory="hugetlb").running()
    cut_twice(lab, trial, netns)


@test(timeout=60, cases={stage.replace(":", "-"): (side, stage) for side, stage in (
    ("send", "discard:kill"), ("recv", "load:kill"), ("send", "run:kill"), ("recv", "start:kill"),
    ("recv", "placed:kill")) if LONG})
def huge_pages_killed(lab, side, stage):
    lab.huge_pages(2 * 96)
    trial = Trial(lab, memory="hugetlb", **{side: stage})
    if stage in ("discard:kill", "load:kill"):
        trial.at_source()
    else:
        trial.completed()


@test(timeout=60, cases={"send": ("send",), "recv": ("recv",)} if LONG else {})
def huge_pages_killed_under_way(lab, side):
    lab.huge_pages(2 * 96)
    trial = Trial(lab, args=("--postcopy", "now", "--max-bandwidth", "12M"),
                  memory="hugetlb").running()
    ferry, before = getattr(trial, side), len(getattr(trial, side).states())
    os.kill(ferry.worker(), signal.SIGKILL)
    wait_until(lambda: "postcopy-active" in ferry.states()[before:], 20,
               "another worker has taken over")
    trial.completed()


def recovers(lab, trial, before):
    if "postcopy-active" in trial.send.states()[before:]:
        return True
    lab.run("recover", trial.source.id, netns=trial.netns.left)
    time.sleep(0.2)
    return False


@test(timeout=60)
def left_paused(lab):
    """A paused source that is told to end says what to type, and that works."""
    netns = Netns(lab)
    trial = Trial(lab, args=("--postcopy", "now", "--max-bandwidth", "12M"), netns=netns,
                  timeout=1).running()
    netns.cut()
    trial.send.wait_state("postcopy-paused")
    run = lab.run("cancel", trial.source.id, netns=netns.left)
    run.check_code(1)
    check("cannot be cancelled any more" in run.stderr, "cancel says: %s", run.stderr)
    wait_until(lambda: end_of(trial.send), 15, "the paused source ends when it is told to")
    trial.send.check_code(3)
    result = check_result(trial.send.result, "failed", state="postcopy-paused",
                          guest="destination")
    check("ferry recover %s" % trial.source.id in result["advice"], "advice: %s", result["advice"])
    check(trial.source.alive() and not trial.source.running(), "the source is %s",
          trial.source.status())
    run = lab.run("resume", trial.source.id, "--force-source", netns=netns.left)
    run.check_code(3)
    check(not trial.source.running(), "the source was resumed while the destination runs")
    netns.restore()
    trial.send = lab.ferry("recover", trial.source.id, "--timeout", 20, netns=netns.left)
    trial.completed()


def end_of(ferry):
    if ferry.process.poll() is not None:
        return True
    os.kill(ferry.pid, signal.SIGTERM)
    time.sleep(0.2)
    return False


if __name__ == "__main__":
    sys.exit(tap.main(Lab, prerequisites))
