#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Precopy between two unmodified QEMUs, by what the command line promises."""
import json
import os
import re
import socket
import subprocess
import sys

import tap
from lib import (ORDINARY_UID, Disk, Lab, check, check_completed, check_equal,
                 check_result, huge_bytes, make_pattern_disk, migrate, other_qemu,
                 prerequisites, wait_until)
from tap import Skip, test

# So slow that 96 MiB take long enough to do something meanwhile.
SLOW = ("--max-bandwidth", "4M")
# A guest that dirties more than 24 MiB/s can carry: precopy cannot end by itself.
RESTLESS = "ferry.mib=32 ferry.dirty=256 ferry.pause_ms=5"
# Without end, as far as we look.
WAIT_ROUNDS = 20 if os.environ.get("FERRY_TEST_LONG") else 5


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


# ---------------------------------------------------------------- that it works

@test()
def basic(lab):
    guest = lab.guest()
    send, recv = migrate(lab, guest, lab.destination())
    for ferry in (send, recv):
        states = ferry.states()
        check_equal(states[0], "setup", "the first state of " + ferry.name)
        check_equal(states[-1], "completed", "the last state of " + ferry.name)
        for state in ("active", "device"):
            check(state in states, "%s was never %s: %s", ferry.name, state, states)
    check("commit-wait" in recv.states(), "recv was never commit-wait: %s", recv.states())
    times = [e["t_ns"] for e in send.events if e["event"] == "state"]
    check(times == sorted(times) and times[0] > 0, "the states' times are %s", times)
    check_equal(send.result["mode"], "precopy", "mode")
    check(send.result["tracker"] in ("pagemap", "softdirty", "kmod"), "tracker: %s", send.result)
    check(0 < send.result["downtime_ns"] < send.result["total_ns"], "times: %s", send.result)
    check(send.result["rounds"] >= 1, "rounds: %s", send.result)
    check_equal(send.result["ram_bytes"], recv.result["ram_bytes"], "both sides' RAM size")


@test(cases={"%d-%s" % (n, kind): (n, kind) for n in (1, 2, 4) for kind in ("tcp", "unix")})
def channels(lab, count, kind):
    guest = lab.guest()
    uri = "tcp:127.0.0.1:0" if kind == "tcp" else "unix:%s/ferry.sock" % lab.dir
    migrate(lab, guest, lab.destination(), uri=uri, channels=count)
    check(kind == "tcp" or not os.path.exists(uri[5:]), "%s was left behind", uri[5:])


@test()
def tcp_on_ipv6(lab):
    with socket.socket(socket.AF_INET6) as probe:
        try:
            probe.bind(("::1", 0))
        except OSError:
            raise Skip("this machine has no IPv6 loopback")
    migrate(lab, lab.guest(), lab.destination(), uri="tcp:[::1]:0")


@test()
def memory_in_memfds_and_several_blocks(lab):
    guest = lab.boot(memory="memfd", backends=2)
    migrate(lab, guest, lab.destination(memory="memfd", backends=2))


@test()
def from_file_to_memfd(lab):
    migrate(lab, lab.guest(), lab.destination(memory="memfd"))
    migrate(lab, lab._borrowed, lab.destination())


@test(timeout=60, cases={name: case for name, case in {
    "file": ("hugetlb", ()), "memfd": ("huge-memfd", ("--channels", 4)),
}.items() if name == "file" or os.environ.get("FERRY_TEST_LONG")})
def huge_pages(lab, memory, args):
    """hugetlb memory, tracked; its holes are neither sent nor allocated."""
    lab.huge_pages(2 * 160)
    guest = lab.boot(memory=memory, mib=160)
    target = lab.destination(memory=memory, mib=160)
    before = guest.qemu.ram_blocks()
    send, recv = migrate(lab, guest, target, "--verify", "--tracker", "pagemap", *args)
    for ferry in (send, recv):
        check_equal(ferry.result["verified"], True, "verified of " + ferry.name)
    check(send.result["rounds"] >= 2, "nothing was tracked: %s", send.result)
    if memory == "hugetlb":
        check(0 < before * 512 < 150 << 20, "the source's RAM is full, or none: %d", before)
        check(target.ram_blocks() <= before + 4096 * 4, "the destination has %d blocks, the source "
              "%d", target.ram_blocks(), before)


@test(timeout=60, cases={name: (name,) for name in ("always", "within_size")
                         if os.environ.get("FERRY_TEST_LONG")})
def huge_tmpfs(lab, huge):
    """Transparent huge pages at both sides, tracked by 4 KiB."""
    lab.huge_tmpfs(huge)
    # QEMU maps a tmpfs where it likes, and what lies askew is not made of huge pages.
    options = {"memory": "huge-tmpfs", "memory_options": "align=2M"}
    guest = lab.boot(**options)
    source, target = guest.qemu, lab.destination(**options)
    check(huge_bytes(source.ram_files[0]) >= 8 << 20, "the source has no huge pages")
    send, _ = migrate(lab, guest, target, "--verify", "--tracker", "pagemap")
    check_equal(send.result["verified"], True, "verified")
    check(huge_bytes(target.ram_files[0]) >= 8 << 20, "the destination has no huge pages")


@test()
def vga_and_roms_travel_with_the_devices(lab):
    options = {"args": ["-device", "VGA,vgamem_mb=8", "-device", "e1000e"]}
    send, _ = migrate(lab, lab.boot(**options), lab.destination(**options))
    check(send.result["device_bytes"] > 100 << 10, "device state: %s", send.result)


@test(timeout=90)
def back_and_forth_ten_times(lab):
    guest = lab.guest()
    for turn in range(10):
        migrate(lab, guest, lab.destination("turn%d" % turn))


@test()
def ordinary_users_qemu(lab):
    guest = lab.boot(user=ORDINARY_UID)
    migrate(lab, guest, lab.destination(user=ORDINARY_UID))


@test()
def sandboxed_qemu(lab):
    options = {"args": ["-sandbox", "on"]}
    migrate(lab, lab.boot(**options), lab.destination(**options))


@test()
def verify(lab):
    send, recv = migrate(lab, lab.guest(), lab.destination(), "--verify")
    for ferry in (send, recv):
        check_equal(ferry.result["verified"], True, "verified of " + ferry.name)


@test()
def without_verify_nothing_is_claimed(lab):
    send, recv = migrate(lab, lab.guest(), lab.destination())
    for ferry in (send, recv):
        check_equal(ferry.result["verified"], False, "verified of " + ferry.name)


@test(cases={"checksum": (("--checksum",), False), "zstd": (("--compress", "zstd"), True),
             "lz4": (("--compress", "lz4"), True),
             "zstd-checksum": (("--compress", "zstd", "--checksum"), True)})
def on_the_wire(lab, options, smaller):
    """Compressed and summed up or not, what arrives is equal; and it takes less of the line."""
    send, recv = migrate(lab, lab.guest(), lab.destination(), "--verify", *options)
    for ferry in (send, recv):
        check_equal(ferry.result["verified"], True, "verified of " + ferry.name)
    check_equal(recv.result["sent_bytes"], send.result["sent_bytes"], "bytes on the wire")
    memory = send.result["normal_pages"] * 4096
    if smaller:
        check(send.result["sent_bytes"] < memory * 0.8, "%d bytes of memory took %d",
              memory, send.result["sent_bytes"])
    else:
        check(send.result["sent_bytes"] >= memory, "pages without data? %s", send.result)


@test(cases={"none": ("none",), "auto": ("auto",), "pagemap": ("pagemap",)})
def trackers(lab, name):
    send, _ = migrate(lab, lab.guest(), lab.destination(), "--tracker", name)
    if name != "auto":
        check_equal(send.result["tracker"], name, "tracker")


@test(timeout=60, cases={"7.2-to-10.0": (None, "10.0"), "7.2-to-11.1": (None, "11.1"),
                         "10.0-to-10.0": ("10.0", "10.0"), "10.0-to-11.1": ("10.0", "11.1"),
                         "11.1-to-11.1": ("11.1", "11.1")})
def between_versions_of_qemu(lab, old, new):
    machine = "pc-q35-7.2" if old is None else "pc-q35-10.0"
    guest = lab.boot(machine=machine, binary=old and other_qemu(old))
    migrate(lab, guest, lab.destination(machine=machine, binary=other_qemu(new)))


# ---------------------------------------------------------------- disks

def make_disks(lab, cache):
    read, write = (os.path.join(lab.dir, n) for n in ("read.raw", "write.qcow2"))
    make_pattern_disk(read, 16)
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", write, "32M"], check=True)
    aio = "native" if cache == "none" else "threads"
    return [Disk(read, "raw", cache, aio), Disk(write, "qcow2", cache, aio)]


@test(timeout=90, cases={"direct-verify": ("none", ("--verify",)),
                         "buffered-verify": ("writeback", ("--verify",)),
                         "dma-barrier": ("none", ("--verify", "--dma-barrier"))})
def disks_under_load(lab, cache, send_args):
    """O_DIRECT reads into guest RAM are what a tracker by page tables loses."""
    disks = make_disks(lab, cache)
    guest = lab.boot(disks=disks, append="ferry.mib=8 ferry.dirty=16 ferry.pause_ms=5 "
                     "ferry.disk=/dev/vda:read ferry.disk=/dev/vdb:rw")
    for turn in range(3):
        send, _ = migrate(lab, guest, lab.destination("turn%d" % turn, disks=disks), *send_args)
        check_equal(send.result["verified"], True, "verified")
        guest.check_good(more=5)


@test()
def cancel_with_disks_keeps_the_image_locks(lab):
    disks = make_disks(lab, "none")
    append = "ferry.mib=8 ferry.disk=/dev/vda:read ferry.disk=/dev/vdb:rw"
    guest = lab.boot(disks=disks, append=append)
    target, recv, send = two_on_loopback(lab, guest, ("--pause-before-switchover",), disks=disks)
    send.wait_state("pre-switchover")
    lab.run("cancel", guest.qemu.id).check_code(0)
    check_stayed(lab, guest, target, send, recv, event="cancelled")
    check(not target.monitor.command("query-blockstats")[1]["stats"]["wr_operations"],
          "the destination wrote to the disk")


# ---------------------------------------------------------------- holes and old bytes

@test()
def old_bytes_in_the_destinations_ram(lab):
    """A reused RAM file must not show through where the source has holes."""
    guest = lab.guest()
    target = lab.destination()
    with open(target.ram_files[0], "r+b") as file:
        for _ in range(target.mib):
            file.write(b"\xa5" * (1 << 20))
    recv = lab.recv(target)
    send = lab.send(guest.qemu, recv.listening, "--verify")
    check_completed(send, recv)
    guest.moved(target)
    check_equal(send.result["verified"], True, "verified")
    with open(target.ram_files[0], "rb") as file:
        check(b"\xa5" * 4096 not in file.read(), "a page of old bytes is still there")
    guest.check_good()


@test()
def untouched_ram_stays_untouched(lab):
    guest = lab.boot(mib=256, append="ferry.mib=8 ferry.dirty=16 ferry.pause_ms=10")
    source, target = guest.qemu, lab.destination(mib=256)
    before = source.ram_blocks()
    check(before * 512 < 200 << 20, "the source's RAM is full: %d", before)
    send, _ = migrate(lab, guest, target)
    check(target.ram_blocks() <= before * 1.1 + 2048,
          "the destination has %d blocks, the source %d", target.ram_blocks(), before)
    check(send.result["sent_bytes"] < 200 << 20, "sent %d bytes", send.result["sent_bytes"])


@test()
def balloon_and_free_page_reporting(lab):
    options = {"mib": 160,
               "args": ["-device", "virtio-balloon-pci,free-page-reporting=on,id=balloon0"]}
    guest = lab.boot(append="ferry.mib=8 ferry.pause_ms=5 ferry.churn=24", **options)
    for turn in range(3):
        target = lab.destination("turn%d" % turn, **options)
        migrate(lab, guest, target, "--verify")
    guest.qemu.monitor.command("balloon", value=128 << 20)
    guest.check_good(more=5)


# ---------------------------------------------------------------- who starts first, ports

@test()
def send_before_recv(lab):
    guest, target = lab.guest(), lab.destination()
    path = os.path.join(lab.dir, "ferry.sock")
    send = lab.send(guest.qemu, "unix:" + path)
    guest.wait_ticks(3)
    check(send.process.poll() is None, "send did not wait for recv: %s", send.stderr)
    recv = lab.recv(target, "unix:" + path)
    check_completed(send, recv)
    guest.moved(target)
    guest.check_good()


@test()
def port_0_prints_the_port(lab):
    guest, target = lab.guest(), lab.destination()
    recv = lab.recv(target, "tcp:127.0.0.1:0")
    match = re.fullmatch(r"tcp:127\.0\.0\.1:(\d+)", recv.listening)
    check(match and int(match.group(1)) > 0, "listening says %r", recv.listening)
    send = lab.send(guest.qemu, recv.listening)
    check_completed(send, recv)
    guest.moved(target)
    guest.check_good()


@test()
def off_loopback_warns(lab):
    recv = lab.recv(lab.destination(), "tcp:0.0.0.0:0")
    wait_until(lambda: "anybody" in recv.stderr, 3, "a warning that anybody may connect")
    lab.run("cancel", lab.qemus[0].id + "-in").check_code(0)
    recv.finish().check_code(1)


@test()
def timeout_without_a_peer(lab):
    guest = lab.guest()
    send = lab.send(guest.qemu, "unix:%s/nobody.sock" % lab.dir, "--timeout", 1)
    send.finish(10).check_code(1)
    check_result(send.result, "failed", guest="source")
    check("nobody.sock" in send.result["error"], "error: %s", send.result["error"])
    guest.check_good()
    guest.qemu.check_clean()


@test(timeout=60)
def two_at_once(lab):
    guests = [lab.boot("a"), lab.boot("b")]
    targets = [lab.destination("a2"), lab.destination("b2")]
    recvs = [lab.recv(t) for t in targets]
    sends = [lab.send(g.qemu, r.listening) for g, r in zip(guests, recvs)]
    for guest, target, send, recv in zip(guests, targets, sends, recvs):
        check_completed(send, recv)
        guest.moved(target)
    for guest in guests:
        guest.check_good()


# ---------------------------------------------------------------- commands meanwhile

@test()
def pause_before_switchover_and_continue(lab):
    guest = lab.guest()
    target, recv, send = pre_switchover(lab, guest)
    check("device" not in send.states(), "it went on by itself: %s", send.states())
    lab.run("continue", guest.qemu.id).check_code(0)
    check_completed(send, recv)
    guest.moved(target)
    guest.check_good()


@test()
def status_and_list(lab):
    guest = lab.guest()
    target, recv, send = pre_switchover(lab, guest)
    for args in (("status",), ("status", guest.qemu.id), ("list",)):
        text = lab.run(*args, "--json").check_code(0).stdout
        check(guest.qemu.id in text and "pre-switchover" in text, "%s: %s", args, text)
        for line in text.splitlines():
            json.loads(line)
        plain = lab.run(*args).check_code(0).stdout
        check(guest.qemu.id in plain and "pre-switchover" in plain, "%s: %s", args, plain)
    check(target.id + "-in" in lab.run("list").stdout, "list does not name %s", target.id + "-in")
    lab.run("continue", guest.qemu.id).check_code(0)
    check_completed(send, recv)
    guest.moved(target)


def migrate_after_all(lab, guest):
    """What a cancelled migration leaves can be migrated."""
    migrate(lab, guest, lab.destination("again"))


@test()
def cancel_while_active(lab):
    guest = lab.guest()
    target, recv, send = two_on_loopback(lab, guest, SLOW)
    send.wait_state("active")
    lab.run("cancel", guest.qemu.id).check_code(0)
    check_stayed(lab, guest, target, send, recv, event="cancelled")
    check("cancelling" in send.states(), "states: %s", send.states())
    migrate_after_all(lab, guest)


@test()
def cancel_before_switchover(lab):
    guest = lab.guest()
    target, recv, send = pre_switchover(lab, guest)
    lab.run("cancel", guest.qemu.id).check_code(0)
    check_stayed(lab, guest, target, send, recv, event="cancelled")
    migrate_after_all(lab, guest)


@test()
def cancel_at_the_destination(lab):
    guest = lab.guest()
    target, recv, send = pre_switchover(lab, guest)
    lab.run("cancel", target.id + "-in").check_code(0)
    check_stayed(lab, guest, target, send, recv)
    migrate_after_all(lab, guest)


@test()
def sigint_cancels(lab):
    guest = lab.guest()
    target, recv, send = pre_switchover(lab, guest)
    send.process.send_signal(2)
    check_stayed(lab, guest, target, send, recv, event="cancelled")


@test()
def sighup_is_ignored(lab):
    guest = lab.guest()
    target, recv, send = pre_switchover(lab, guest)
    for ferry in (send, recv):
        ferry.process.send_signal(1)
        os.kill(ferry.worker(), 1)
    lab.run("status").check_code(0)
    lab.run("continue", guest.qemu.id).check_code(0)
    check_completed(send, recv)
    guest.moved(target)


@test()
def cancel_after_the_end_is_refused(lab):
    guest = lab.guest()
    name = guest.qemu.name
    migrate(lab, guest, lab.destination())
    check(lab.run("cancel", name).code == 1, "cancel of a completed migration is no error")


@test()
def set_max_bandwidth(lab):
    guest = lab.guest()
    target, recv, send = two_on_loopback(lab, guest, ("--max-bandwidth", "1M"))
    send.wait_state("active")
    guest.wait_ticks(15)
    check("device" not in send.states(), "1 MiB/s was not kept: %s", send.states())
    lab.run("set", guest.qemu.id, "max-bandwidth=1G").check_code(0)
    check_completed(send, recv)
    guest.moved(target)


@test()
def set_refuses_nonsense(lab):
    guest = lab.guest()
    target, recv, send = pre_switchover(lab, guest)
    for word in ("max-bandwidth=fast", "colour=red", "max-bandwidth"):
        run = lab.run("set", guest.qemu.id, word)
        check(run.code in (1, 2) and run.stderr, "set %s: %s %r", word, run.code, run.stderr)
    lab.run("continue", guest.qemu.id).check_code(0)
    check_completed(send, recv)
    guest.moved(target)


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


# ---------------------------------------------------------------- states of the guest

@test()
def a_paused_guest_stays_paused(lab):
    guest = lab.boot()
    guest.qemu.monitor.command("stop")
    target, recv, send = two_on_loopback(lab, guest)
    check_completed(send, recv)
    check(target.status() in ("paused", "postmigrate"), "the destination is %s", target.status())
    check_equal(os.path.getsize(target.serial), 0, "bytes a paused guest printed")
    target.monitor.command("cont")
    guest.moved(target)
    guest.check_good()


@test()
def a_guest_arrives_as_its_owner_left_it(lab):
    """Paused or resumed by a person while it is being moved: ferry does not overrule that."""
    guest = lab.boot()
    target, recv, send = two_on_loopback(lab, guest, ("--pause-before-switchover",))
    send.wait_state("pre-switchover")
    guest.qemu.monitor.command("stop")
    lab.run("cancel", guest.qemu.id).check_code(0)
    send.finish().check_code(1)
    recv.finish().check_code(1)
    check_equal(guest.qemu.status(), "paused", "the state of a source paused by hand")
    target.kill()
    target, recv, send = two_on_loopback(lab, guest, ("--pause-before-switchover",), name="vm3")
    send.wait_state("pre-switchover")
    guest.qemu.monitor.command("cont")
    lab.run("continue", guest.qemu.id).check_code(0)
    check_completed(send, recv)
    check(target.running(), "the guest was running when it left")
    guest.moved(target)
    guest.check_good()


@test()
def a_paused_guest_stays_paused_after_cancel(lab):
    guest = lab.boot()
    guest.qemu.monitor.command("stop")
    target, recv, send = two_on_loopback(lab, guest, ("--pause-before-switchover",))
    send.wait_state("pre-switchover")
    lab.run("cancel", guest.qemu.id).check_code(0)
    send.finish().check_code(1)
    recv.finish().check_code(1)
    check_equal(guest.qemu.status(), "paused", "the source's state")
    guest.qemu.monitor.command("cont")
    guest.check_good()
    guest.qemu.check_clean()


@test()
def destination_without_global_state(lab):
    """Then QEMU itself would start the guest as soon as its state is loaded."""
    guest = lab.guest()
    target = lab.destination(args=["-global", "migration.store-global-state=off"])
    migrate(lab, guest, target)


@test()
def source_without_global_state_and_cancel(lab):
    options = {"args": ["-global", "migration.store-global-state=off"]}
    guest = lab.boot(**options)
    target, recv, send = two_on_loopback(lab, guest, ("--pause-before-switchover",), **options)
    send.wait_state("pre-switchover")
    lab.run("cancel", guest.qemu.id).check_code(0)
    check_stayed(lab, guest, target, send, recv, event="cancelled")


@test()
def keep_source(lab):
    guest = lab.guest()
    source = guest.qemu
    migrate(lab, guest, lab.destination(), "--keep-source", keep=True)
    check(source.status() in ("paused", "postmigrate"), "the source is %s", source.status())


@test()
def stray_capabilities_are_restored(lab):
    guest = lab.boot()
    wanted = [{"capability": "multifd", "state": True},
              {"capability": "postcopy-ram", "state": True},
              {"capability": "events", "state": True}]
    target = lab.destination()
    for qemu in (guest.qemu, target):
        qemu.monitor.command("migrate-set-capabilities", capabilities=wanted)
        qemu.before = qemu.traces()
    migrate(lab, guest, target, "--keep-source", keep=True)


# ---------------------------------------------------------------- what is printed

@test()
def result_of_a_good_run(lab):
    send, recv = migrate(lab, lab.guest(), lab.destination(), "--id", "mine")
    check_equal(send.result["id"], "mine", "id")
    check(recv.result["id"].endswith("-in"), "recv's id is %s", recv.result["id"])
    for ferry in (send, recv):
        final = [e for e in ferry.events if e["event"] in ("completed", "failed", "cancelled")]
        check_equal(len(final), 1, "results printed")
        check_equal(ferry.code, 0, "exit")


@test()
def result_of_a_failed_run(lab):
    guest = lab.guest()
    send = lab.send(guest.qemu, "tcp:127.0.0.1:9", "--timeout", 1).finish(10)
    send.check_code(1)
    result = check_result(send.result, "failed", state="failed", guest="source", verified=False)
    check(result["error"] and "9" in result["error"], "error: %r", result["error"])


@test()
def progress_once_a_second(lab):
    guest = lab.guest()
    target, recv, send = two_on_loopback(lab, guest, ("--max-bandwidth", "1M"))
    send.wait_event(lambda e: e["event"] == "progress", 5, "a progress object")
    lab.run("set", guest.qemu.id, "max-bandwidth=1G").check_code(0)
    check_completed(send, recv)
    guest.moved(target)


@test()
def plain_output(lab):
    guest, target = lab.guest(), lab.destination()
    uri = "unix:%s/ferry.sock" % lab.dir
    recv = lab.ferry("recv", target.uri, uri, events=False)
    send = lab.ferry("send", guest.qemu.uri, uri, events=False)
    for ferry in (send, recv):
        ferry.finish().check_code(0)
        text = ferry.stdout + ferry.stderr
        for state in ("setup", "active", "device", "completed"):
            check(state in text, "%s does not say %s: %s", ferry.name, state, text)
        check("{" not in ferry.stdout, "JSON without --json: %s", ferry.stdout)
    guest.moved(target)
    guest.check_good()


@test()
def quiet_output(lab):
    guest, target = lab.guest(), lab.destination()
    uri = "unix:%s/ferry.sock" % lab.dir
    recv = lab.ferry("recv", target.uri, uri, "--quiet", events=False)
    send = lab.ferry("send", guest.qemu.uri, uri, "--quiet", events=False)
    for ferry in (send, recv):
        ferry.finish().check_code(0)
        check_equal(ferry.stdout, "", ferry.name + "'s output")
    guest.moved(target)


if __name__ == "__main__":
    sys.exit(tap.main(Lab, prerequisites))
