#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Guests saved to a file and restored from it: `ferry save`, `restore`, `inspect`."""
import gzip
import json
import os
import re
import signal
import struct
import subprocess
import sys

import tap
import vmm
from lib import ROOT, Lab, check, check_equal, check_result, prerequisites, wait_until
from tap import Skip, test
from vmm import VmmLab

LONG = bool(os.environ.get("FERRY_TEST_LONG"))


class FileLab(VmmLab):
    """Both kinds of guests in one lab."""

    def qemu_guest(self, **options):
        return Lab.boot(self, **options)

    def qemu_destination(self, name="vm2", **options):
        return self.qemu(name, incoming=True, append="", **options)

    def settle(self):
        Lab.settle(self)
        for one in self.qemus:
            if isinstance(one, vmm.Vmm) and one.alive() and one.running():
                check_equal(one.ask()["errors"], 0, "errors of " + one.name)

    def mount(self, kind, path, options):
        run = subprocess.run(["mount", "-t", kind, "-o", options, kind, path],
                             stderr=subprocess.PIPE, text=True)
        if run.returncode:
            raise Skip("cannot mount a %s: %s" % (kind, run.stderr.strip()))
        self.on_close(lambda: subprocess.run(["umount", "-l", path], stderr=subprocess.DEVNULL))

    def path(self, name="snap"):
        return os.path.join(self.dir, name)

    def save(self, guest, *args, path=None, **options):
        return self.ferry("save", guest.qemu.uri, path or self.path(), *args, **options)

    def restore(self, target, *args, path=None, **options):
        return self.ferry("restore", target.uri, path or self.path(), *args, **options)

    def inspect(self, path=None, *args, code=0):
        run = self.run("inspect", path or self.path(), *args, "--json")
        run.check_code(code)
        return json.loads(run.raw[-1])

    def guest_of(self, kind):
        return self.qemu_guest() if kind == "qemu" else self.guest()

    def destination_of(self, kind, name="vm2"):
        return self.qemu_destination(name) if kind == "qemu" else self.destination(name)


def saved(ferry, guest, **wanted):
    """The guest goes on where it was, and there is a whole file."""
    ferry.finish().check_code(0)
    result = check_result(ferry.result, state="completed", guest="source", error=None, **wanted)
    check(result["normal_pages"] > 0 and result["device_bytes"] > 0, "nothing was saved: %s",
          result)
    check(result["downtime_ns"] > 0, "no downtime was measured")
    guest.check_good()
    guest.qemu.check_clean()
    return result


def restored(ferry, guest, target, **wanted):
    """Ends the guest's VMM, if it lives; the restored guest goes on from where it was saved."""
    ferry.finish().check_code(0)
    result = check_result(ferry.result, state="completed", guest="destination", error=None,
                          **wanted)
    check_equal(target.status(), "running", "the restored guest")
    guest.qemu.kill()
    return result


def restored_qemu(guest, target):
    """It goes on in the midst of what it was doing, and finds its memory as it was."""
    last = guest.ticks().numbers[-1]
    fresh = type(guest)(target)
    wait_until(lambda: fresh.ticks().count >= 4, 15, "the restored guest ticks")
    ticks = fresh.ticks()
    # The first line may have begun before it was saved; then the counter goes on from there.
    problems = [p for p in ticks.problems if not p.endswith("where 0 was due")
                and not p.startswith("not a tick")]
    check(not problems, "the counter: %s", problems[:5])
    check(0 < ticks.numbers[0] <= last + 1, "it goes on at %d, and was at most at %d",
          ticks.numbers[0], last)
    check_equal(ticks.bad, 0, "failed memory checks")
    target.check_clean()


def restored_vmm(guest, target):
    fresh = type(guest)(target)
    fresh.check_good()
    target.check_clean()


def lazy_disk_fails(lab, target):
    """Stopped, not killed; and it goes on when the file can be read again."""
    restore = lab.restore(target, "--lazy", fault="lazy-read:fail").finish()
    restore.check_code(3)
    check_equal((restore.result["state"], restore.result["guest"]), ("postcopy-paused", "stopped"),
                "the result")
    check("Input/output error" in restore.result["error"], "the error: %s", restore.result["error"])
    check("ferry recover " + restore.result["id"] in restore.result["advice"], "the advice: %s",
          restore.result["advice"])
    with open("/proc/%d/stat" % target.pid) as file:
        check_equal(file.read().rsplit(")", 1)[1].split()[0], "T", "the VMM's process")
    # Once more in vain, then the disk is back.
    again = lab.ferry("recover", restore.result["id"], fault="lazy-read:fail").finish()
    again.check_code(3)
    recover = lab.ferry("recover", restore.result["id"]).finish().check_code(0)
    check_equal((recover.result["state"], recover.result["guest"]), ("completed", "destination"),
                "the result of recover")


PROOF = {"qemu": restored_qemu, "vmm": restored_vmm}
# Booting a QEMU takes its time: without FERRY_TEST_LONG one goes through all of it, in qemu().
KINDS = {"qemu": ("qemu",), "vmm": ("vmm",)} if LONG else {"vmm": ("vmm",)}


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


def refused(lab, guest, ferry, *words):
    """It failed for this reason, and the guest did not notice."""
    ferry.finish().check_code(1)
    for word in words:
        check(word in ferry.result["error"], "'%s' is not in: %s", word, ferry.result["error"])
    check_equal(ferry.result["event"], "failed", "the event")
    guest.check_good()


@test(timeout=60)
def cannot_be_written(lab):
    guest = lab.guest()
    with open(lab.path("precious"), "w") as file:
        file.write("not to be lost")
    refused(lab, guest, lab.save(guest, path=lab.path("precious")), "no snapshot", "not replaced")
    check_equal(open(lab.path("precious")).read(), "not to be lost", "the other file")
    refused(lab, guest, lab.save(guest, path=lab.dir), "is a folder")
    refused(lab, guest, lab.save(guest, path=lab.path("no/such")), "folder", "No such file")
    small = lab.path("small")
    os.mkdir(small)
    lab.mount("tmpfs", small, "size=2m")
    refused(lab, guest, lab.save(guest, path=small + "/snap"), "No space left", "make room")
    check_equal(os.listdir(small), [], "what is left on the full disk")
    subprocess.run(["mount", "-o", "remount,ro", small], check=True)
    refused(lab, guest, lab.save(guest, path=small + "/snap"), "Read-only", "choose a folder")
    refused(lab, guest, lab.ferry("save", guest.qemu.uri, lab.path(), fault="file-write:fail"),
            "Input/output error", lab.path())
    check(not os.path.exists(lab.path()), "a file was made")


def damage(lab, offset, data=None, name="bad"):
    """A copy of the file with other bytes there, or cut off there."""
    path = lab.path(name)
    subprocess.run(["cp", "--sparse=always", lab.path(), path], check=True)
    with open(path, "r+b") as file:
        if data is None:
            file.truncate(offset)
        else:
            file.seek(offset)
            file.write(data)
    return path


@test(timeout=60)
def bad_files(lab):
    """Refused by name, and the VMM waits on with empty memory for a good one."""
    guest = lab.guest()
    saved(lab.save(guest), guest)
    target = lab.destination()
    with open(lab.path(), "rb") as file:
        pages = os.lseek(file.fileno(), 1 << 20, os.SEEK_DATA)
    with open(lab.path("text"), "w") as file:
        file.write("some text\n" * 2000)
    size = os.path.getsize(lab.path())
    cases = {"No such file": lambda: lab.path("none"),
             "is no snapshot": lambda: lab.path("text"),
             "newer": lambda: damage(lab, 10, b"\2"),
             "never finished": lambda: damage(lab, 4096, bytes(4096)),
             "checksum of the header": lambda: damage(lab, 500, b"x"),
             "checksum of the commit record": lambda: damage(lab, 4200, b"x"),
             "name of a block": lambda: damage(lab, 8192, b"\0"),
             "header, block table, bitmaps": lambda: damage(lab, 8192, b"x"),
             "cut short": lambda: damage(lab, size - 1),
             "checksum of the pages": lambda: damage(lab, pages + 100, b"damage"),
             "checksum of the device state": lambda: damage(lab, size - 5, b"12345")}
    for words, make in cases.items():
        path = make()
        restore = lab.restore(target, path=path).finish().check_code(1)
        check(words in restore.result["error"], "'%s' is not in: %s", words,
              restore.result["error"])
        check_equal(restore.result["guest"], "none", "the result's guest")
        check(target.alive() and target.status() != "running", "the VMM is %s", target.status())
        check_equal(target.allocated(), 0, "memory that is left after: " + words)
        inspect = lab.run("inspect", path).check_code(1)
        check(words in inspect.stderr, "inspect: %s", inspect.stderr)
        # What is known of it is told all the same, and never as if all were well.
        check("all hold" not in inspect.stdout, "inspect: %s", inspect.stdout)
        told = {"never finished": "NOT usable", "checksum of the pages": "could NOT all be found"}
        check(told.get(words, "") in inspect.stdout, "inspect: %s", inspect.stdout)
    guest.qemu.kill()
    restored(lab.restore(target), guest, target)
    restored_vmm(guest, target)


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


@test(timeout=60)
def wrong_vmm(lab):
    """A VMM that the guest does not fit is refused before anything is changed there."""
    guest = lab.guest()
    saved(lab.save(guest), guest)
    other = "threads" if lab.engine == "kvm" else "kvm"
    wrong = {"another size": ("--engine", lab.engine, "--ram", "32M,9M,28K,5124K"),
             "has none of that name": ("--engine", lab.engine, "--ram", "24M,9M,28K"),
             "a memory block 'ram4'": ("--engine", lab.engine, "--ram", "24M,9M,28K,5124K,8K"),
             "same kind": ("--engine", other, "--ram", vmm.RAM)}
    if not vmm.have_kvm():
        wrong.pop("same kind")
    for number, (words, args) in enumerate(wrong.items()):
        target = lab.vmm("wrong%d" % number, *args, "--vcpus", "2", incoming=True).started()
        restore = lab.restore(target).finish().check_code(1)
        check(words in restore.result["error"], "'%s' is not in: %s", words,
              restore.result["error"])
        target.check_clean()
        target.kill()


@test(timeout=20)
def usage(lab):
    """What is typed wrong is said, and nothing is begun."""
    for words, said in ((("save", "port:/x"), "takes GUEST FILE"),
                        (("save", "port:/x", "f", "--record"), "--record goes with --live"),
                        (("save", "port:/x", "f", "--lazy"), "does not know --lazy"),
                        (("restore", "port:/x", "f", "--live"), "does not know --live"),
                        (("restore", "nothing", "f"), "qmp:"),
                        (("save", "port:/x", "x" * 600), "too long"),
                        (("inspect",), "takes FILE")):
        run = lab.run(*words).check_code(2)
        check(said in run.stderr, "'%s' is not in: %s", said, run.stderr)
    run = lab.run("inspect", "/dev/null").check_code(1)
    check("/dev/null is no file" in run.stderr, "inspect: %s", run.stderr)


if __name__ == "__main__":
    sys.exit(tap.main(FileLab, prerequisites))
