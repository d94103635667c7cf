#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Guests saved to a file and restored from it: `ferry save`, `restore`, `inspect`."""
import gzip
import json
import os
import re
import struct
import sys

import tap
import vmm
from lib import ROOT, check, check_equal, prerequisites, wait_until
from snapshot import KINDS, LONG, PROOF, FileLab, lazy_disk_fails, restored, restored_qemu, saved
from tap import Skip, test


@test(timeout=90)
def qemu(lab):
    """One guest, saved and restored again and again: whole, live and lazily, paused."""
    guest = lab.qemu_guest()
    saved(lab.save(guest), guest, mode="save", tracker="none", channels=2)
    guest.qemu.kill()
    target = lab.qemu_destination("second")
    restored(lab.restore(target), guest, target, mode="restore", verified=True)
    restored_qemu(guest, target)
    guest = type(guest)(target)

    saved(lab.ferry("save", target.uri, lab.path(), "--live", "--record"),
          Restored(guest), mode="save-live")
    check(lab.inspect()["order_entries"] > 0, "no order of first touch")
    target.kill()
    target = lab.qemu_destination("third")
    lazy_disk_fails(lab, target)
    restored_qemu(guest, target)

    guest = type(guest)(target)
    target.monitor.command("stop")
    save = lab.save(guest).finish().check_code(0)
    check_equal(save.result["guest"], "source", "the result's guest")
    check_equal(lab.inspect()["guest_paused"], True, "inspect's guest_paused")
    check(not target.running(), "a paused guest runs after it was saved")
    target.kill()
    target = lab.qemu_destination("fourth")
    lab.restore(target).finish().check_code(0)
    check(not target.running(), "a paused guest runs after it was restored")
    lab.check_no_ferry()


@test(timeout=60, cases={"whole": ((), "restore"), "lazy": (("--lazy",), "restore-lazy")}
      if LONG else {})
def huge_pages(lab, args, mode):
    """hugetlb memory, and a file that is no larger than for small pages."""
    lab.huge_pages(2 * 160)
    guest = lab.qemu_guest(memory="hugetlb", mib=160)
    saved(lab.save(guest, "--live"), guest, mode="save-live", tracker="pagemap")
    check(os.stat(lab.path()).st_blocks * 512 < 150 << 20, "holes are in the file")
    target = lab.qemu_destination("second", memory="hugetlb", mib=160)
    restored(lab.restore(target, *args), guest, target, mode=mode, verified=True)
    restored_qemu(guest, target)


class Restored:
    """A QEMU guest whose first tick is not number 0."""

    def __init__(self, guest):
        self.guest, self.qemu = guest, guest.qemu

    def check_good(self):
        self.guest.wait_ticks(3)
        check_equal(self.guest.ticks().bad, 0, "failed memory checks")


@test(timeout=60, cases=KINDS)
def stopped(lab, kind):
    """Pause, save, go on; killed and restored elsewhere it goes on from the file."""
    guest = lab.guest_of(kind)
    result = saved(lab.save(guest), guest, mode="save", tracker="none", channels=2)
    told = lab.inspect()
    check_equal((told["complete"], told["verified"], told["error"]), (True, True, None), "inspect")
    check_equal(told["ram_bytes"], result["ram_bytes"], "ram_bytes")
    check_equal(told["device_bytes"], result["device_bytes"], "device_bytes")
    for options in ((), ("--direct",)):
        text = lab.run("inspect", lab.path(), *options).check_code(0).stdout
        for words in ("complete", "block ", "sparse", "device state %d " % result["device_bytes"],
                      "all hold"):
            check(words in text, "'%s' is not in: %s", words, text)
    guest.qemu.kill()
    target = lab.destination_of(kind)
    restored(lab.restore(target), guest, target, mode="restore", verified=True)
    PROOF[kind](guest, target)
    lab.check_no_ferry()


@test(timeout=30)
def runs_while_it_is_synced(lab):
    """It stands still until its memory is written, and not until the disk has it."""
    guest = lab.guest()
    save = lab.save(guest, fault="file-written:delay=1500")
    save.wait_event(lambda e: e.get("state") == "device", 10, "it is stopped")
    wait_until(guest.qemu.running, 10, "it runs again")
    check(not os.path.exists(lab.path()), "it ran again only when the file was there")
    saved(save, guest)


@test(timeout=60, cases=KINDS)
def lazy(lab, kind):
    """It runs before its memory is read; what it touches is read first."""
    guest = lab.guest_of(kind)
    saved(lab.save(guest), guest)
    guest.qemu.kill()
    target = lab.destination_of(kind)
    result = restored(lab.restore(target, "--lazy"), guest, target, mode="restore-lazy",
                      verified=True)
    check(result["faults"] > 0, "nobody waited for a page: %s", result)
    check_equal(result["missing_pages"], 0, "pages that are missing")
    PROOF[kind](guest, target)
    lab.check_no_ferry()


LIVE = {"qemu": ("qemu", ()), "vmm": ("vmm", ("--channels", 4)), "record": ("vmm", ("--record",)),
        "log": ("vmm", ("--tracker", "port")),
        "direct": ("vmm", ("--direct",)), "qemu-direct": ("qemu", ("--direct", "--record"))}
if not LONG:
    LIVE = {name: args for name, args in LIVE.items() if args[0] != "qemu"}


@test(timeout=60, cases=LIVE)
def live(lab, kind, options):
    """Rounds while it runs; what the file holds is the guest at its short stop."""
    if "port" in options:
        if not vmm.have_kvm():
            raise Skip("/dev/kvm is not there or not ours to use")
        lab.shape += ("--tracker-log", "log")
    if "--record" in options:  # however short it is, something is touched meanwhile
        lab.work += ("--dirty-rate", "max")
    guest = lab.guest_of(kind)
    result = saved(lab.save(guest, "--live", *options), guest, mode="save-live")
    check(result["rounds"] >= 2, "no rounds: %s", result)
    told = lab.inspect()
    check_equal(told["verified"], True, "inspect")
    check(told["disk_bytes"] < told["ram_bytes"] + (4 << 20), "it takes %d bytes of disk",
          told["disk_bytes"])
    check(("--record" in options) == (told["order_entries"] > 0), "order of first touch: %s", told)
    guest.qemu.kill()
    target = lab.destination_of(kind)
    how = [o for o in options if o == "--direct"]
    restored(lab.restore(target, *how, "--lazy" if "--record" in options else "--no-verify"),
             guest, target)
    PROOF[kind](guest, target)


@test(timeout=300 if LONG else 60)
def full_speed(lab):
    """Writers that never rest: the file is the guest as it was at its stop, each time."""
    guest = lab.guest("--pattern", "random", "--dirty-rate", "max")
    for number in range(20 if LONG else 2):
        saved(lab.save(guest, "--live", "--downtime-limit", 20), guest)
        target = lab.destination("target%d" % number)
        restored(lab.restore(target, *(("--lazy",) if number % 2 else ())), guest, target)
        guest = type(guest)(target)
        guest.check_good()
    check_equal(guest.qemu.end(), 0, "exit status: %s" % guest.qemu.stderr)


@test(timeout=40)
def limited(lab):
    """No faster than it may be; meanwhile it is listed, and the limit can be lifted."""
    guest = lab.guest()
    save = lab.save(guest, "--max-bandwidth", "8M", "--live")
    wait_until(lambda: "active" in save.states(), 10, "it is active")
    status = json.loads(lab.run("status", guest.qemu.id, "--json").check_code(0).raw[-1])
    check_equal((status["mode"], status["uri"], status["alive"]),
                ("save-live", "file:" + lab.path(), True), "status")
    check(guest.qemu.id in lab.run("list").stdout, "it is not listed")
    result = saved(save, guest)
    least = 0.6 * result["sent_bytes"] / (8 << 20)  # what is behind the limiter may be late
    check(result["total_ns"] / 1e9 > least, "%d bytes in %g s", result["sent_bytes"],
          result["total_ns"] / 1e9)
    save = lab.save(guest, "--max-bandwidth", "4K")
    wait_until(lambda: "device" in save.states(), 10, "the guest is stopped")
    lab.run("set", guest.qemu.id, "max-bandwidth=0").check_code(0)
    saved(save, guest)


class Snapshot:
    """What a file says of itself, read by the page Documentation/mapped-ram.rst alone."""

    def __init__(self, path):
        with open(path, "rb") as file:
            def words(offset, count):
                file.seek(offset)
                return struct.unpack("<%dQ" % count, file.read(8 * count))

            file.seek(12)
            blocks = struct.unpack("<I", file.read(4))[0]
            self.held = []  # of each block, of each MiB: are there pages?
            for block in range(blocks):
                size, _, offset, length = words(8192 + 256 * block + 128, 4)
                bitmap = words(offset, length // 8)
                self.held.append([any(bitmap[mib * 4:mib * 4 + 4])
                                  for mib in range((size + (1 << 20) - 1) >> 20)])
            order, entries = words(4096 + 56, 2)
            # MiB in which something was touched, in the order of that
            self.recorded = [(e >> 48, (e & (1 << 48) - 1) >> 8) for e in words(order, entries)] \
                if order else []

    def in_file(self):
        return [(block, mib) for block, held in enumerate(self.held)
                for mib, any_page in enumerate(held) if any_page]


class Order:
    """The order in which a lazy restore must read: the page's words once more, not ferry's code."""

    def __init__(self, snapshot):
        self.left = set(snapshot.in_file())
        self.recorded, self.in_file = list(snapshot.recorded), snapshot.in_file()
        self.waited, self.near, self.rules = [], None, []

    def is_waited_for(self, block, page):
        place = (block, page >> 8)
        if place in self.left:
            self.waited.append(place)
        self.near = (block, place[1] + 1)

    def first_left(self, places):
        return next((place for place in places if place in self.left), None)

    def is_read(self, place):
        """Is this what must be read now?"""
        wanted, rule = self.first_left(self.waited), "waited"
        if not wanted:
            wanted, rule = self.first_left(self.recorded), "recorded"
        if not wanted and self.near in self.left:
            wanted, rule = self.near, "near"
            self.near = (self.near[0], self.near[1] + 1)
        elif not wanted:
            wanted, rule, self.near = self.first_left(self.in_file), "in the file", None
        check_equal(place, wanted, "what is read after %s, by the rule '%s'" % (self.rules[-3:], rule))
        first = place == self.first_left(self.in_file)
        self.rules.append((rule, place, "first of the file" if first else ""))
        self.left.remove(place)

    def count(self, rule):
        """How often it decided otherwise than the order of the file."""
        return sum(1 for r, _, first in self.rules if r == rule and not first)


# Recorded: few pages, so that they are not what comes first in the file anyway. Near: a guest that has
# written all of its 20 MiB and goes on in the midst of them. Waited: one that is everywhere at once.
ORDERS = {"recorded": (("--pattern", "random", "--dirty-rate", "20"), 1,
                       ("--live", "--record", "--max-bandwidth", "40M")),
          "near": (("--pattern", "seq", "--dirty-rate", "4000"), 6000, ()),
          "waited": (("--pattern", "random", "--dirty-rate", "max"), 8000, ())}


@test(timeout=90, cases={name: (name,) for name in ORDERS})
def order(lab, name):
    """What a lazy restore really read, one after the other, is what the file's page promises."""
    how, work, options = ORDERS[name]
    lab.shape = ("--ram", "24M,40M", "--vcpus", "1")
    guest = lab.guest("--working-set", "20M", "--fill", "36M", *how)
    wait_until(lambda: guest.qemu.ask()["work"] >= work, 20, "it has written")
    for attempt in range(6):  # until it stood somewhere that makes a difference
        saved(lab.save(guest, *options), guest)
        guest.qemu.kill()
        target = lab.destination("target%d" % attempt)
        restore = lab.restore(target, "--lazy", "--channels", 1, env={"FERRY_DEBUG": "1"})
        restored(restore, guest, target)
        model = Order(Snapshot(lab.path()))
        for word, number, block in re.findall(r"restore: (page|MiB) (\d+) of block (\d+) is",
                                              restore.stderr):
            if word == "page":
                model.is_waited_for(int(block), int(number))
            else:
                model.is_read((int(block), int(number)))
        check(not model.left, "never read: %s", sorted(model.left)[:9])
        guest = type(guest)(target)
        guest.check_good()
        if model.count(name) >= 2:
            break
    else:
        check(False, "'%s' never decided anything: %s", name, model.rules)


@test(timeout=40, cases={"whole": ((),), "lazy": (("--lazy",),)})
def fixture(lab, options):
    """A guest that the first version saved goes on, whatever this version is."""
    with gzip.open(os.path.join(ROOT, "selftests", "testdata", "ferry-vmm-threads-1.gz")) as packed, \
            open(lab.path(), "wb") as file:
        file.write(packed.read())
    lab.engine, lab.shape = "threads", ("--ram", "2M,24K", "--vcpus", "1")
    target = lab.destination()
    lab.restore(target, *options).finish().check_code(0)
    vmm.VmmGuest(target).check_good()
    check_equal(target.end(), 0, "exit status: %s" % target.stderr)


if __name__ == "__main__":
    sys.exit(tap.main(FileLab, prerequisites))
