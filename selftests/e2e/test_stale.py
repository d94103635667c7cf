#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Pages that go stale behind a tracker's back, and the rules that keep them fresh.

Pinned DMA: a page is marked dirty when a disk read pins it, collected, sent,
and then the data lands unseen. Holes: a page that is punched while clean is not
reported. For each rule two tests say that it is needed and that it is enough:
with the rule switched off (FERRY_TEST_NO_SUSPECTS, FERRY_TEST_NO_HOLES in the
environment of `ferry send`) --verify must find a stale page, with the rule on it
never may, over many runs.

To lose a page for sure, DMA must be slow. Reads of slowdisk.py land 150 ms after
they were pinned; a file on a real disk is read too, with the rule on only, since
its reads rarely land late enough. A downtime limit below what devices are
taken to need makes for rounds in which such a page is sent too early.

    test_stale.py [--long] [--list] [PART-OF-A-NAME...]

--long, or FERRY_TEST_LONG=1, makes many more runs with the rules on.
"""
import os
import re
import signal
import subprocess
import sys

import tap
from lib import (Disk, Lab, check, check_completed, check_equal, check_result,
                 make_pattern_disk, prerequisites, read_text, wait_until)
from tap import Failed, Skip, test

LONG = os.environ.get("FERRY_TEST_LONG", "0") not in ("", "0") or "--long" in sys.argv
RUNS = 20 if LONG else 2  # with a rule on, each case
TRIES = 6  # with a rule off, at most

NO_SUSPECTS = {"FERRY_TEST_NO_SUSPECTS": "1"}
NO_HOLES = {"FERRY_TEST_NO_HOLES": "1"}

# Saving and loading devices is taken to need as much, so it is never reached.
NEVER_MS = 20
AT_ONCE_MS = 5000

DISK_MIB = 8
READ_DELAY_MS = 150
STALE = re.compile(r"--verify: memory block \S+ differs")
AIO = ("native", "threads", "io_uring")


# ---------------------------------------------------------------- disks

class ReadOnly(Disk):
    """A disk for guest.c's mode "read"."""

    def __init__(self, path, aio):
        super().__init__(path, "raw", "none", aio)

    def args(self, number):
        drive, text, *rest = super().args(number)
        return [drive, text + ",read-only=on"] + rest


def check_direct(path):
    """This file can be read by O_DIRECT."""
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECT))
    except OSError as error:
        raise Skip("no O_DIRECT in %s (%s): point TMPDIR to a disk file system"
                   % (os.path.dirname(path), error.strerror))


def check_aio(lab, aio):
    """This QEMU and this kernel do @aio."""
    path = os.path.join(lab.dir, "probe.raw")
    with open(path, "wb") as file:
        file.truncate(1 << 20)
    check_direct(path)
    run = subprocess.run(["qemu-io", "--image-opts", "-c", "read 0 4k",
                          "driver=file,filename=%s,cache.direct=on,aio=%s" % (path, aio)],
                         stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if run.returncode or "read 4096/4096" not in run.stdout:
        raise Skip("aio=%s is refused here: %s" % (aio, run.stdout.strip()[-200:]))


def pattern(lab):
    path = os.path.join(lab.dir, "pattern.raw")
    make_pattern_disk(path, DISK_MIB)
    check_direct(path)
    return path


def slow_disk(lab, aio):
    """Reads are pinned for READ_DELAY_MS."""
    image, path = pattern(lab), os.path.join(lab.dir, "slow.raw")
    open(path, "w").close()
    server = subprocess.Popen(
        [sys.executable, os.path.join(os.path.dirname(os.path.abspath(__file__)), "slowdisk.py"),
         image, path, str(READ_DELAY_MS)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def end():
        server.stdin.close()
        server.wait(10)
        server.stdout.close()
        server.stderr.close()
    lab.on_close(end)
    if server.stdout.readline() != "mounted\n":
        raise Skip("no FUSE mount for a slow disk: " + server.stderr.read().strip())
    return ReadOnly(path, aio)


def file_disk(lab, aio):
    """A file on a real disk."""
    return ReadOnly(pattern(lab), aio)


MEDIA = {"slow": slow_disk, "file": file_disk}


def disk_reads(qemu):
    """How many reads of its first disk the guest has had answered."""
    return qemu.monitor.command("query-blockstats")[0]["stats"]["rd_operations"]


# ---------------------------------------------------------------- one migration

class Attempt:
    """A migration of @guest that is kept going until switch_over()."""

    def __init__(self, lab, guest, *send_args, env=None, fault=None, **options):
        self.lab, self.guest, self.source = lab, guest, guest.qemu
        self.target = lab.destination("turn%d" % len(lab.qemus), **options)
        self.recv = lab.recv(self.target)
        self.send = lab.send(self.source, self.recv.listening, *send_args, env=env or {},
                             fault=fault)

    def switch_over(self, *command):
        """@command lets it go on, unless it has already, at a moment with nothing pending."""
        if self.lab.run(*command).code:
            self.send.finish()

    def stale(self):
        """How it ended: was a stale page found? Any other failure fails the test."""
        self.send.finish()
        if self.send.code == 0:
            self._check_moved()
            return False
        self.send.check_code(1)
        result = check_result(self.send.result, "failed", guest="source", verified=False)
        check(STALE.search(result["error"]), "not stale, but: %s", result["error"])
        self.recv.finish().check_code(1)
        check_equal(self.source.status(), "running", "the source's state")
        self.target.kill()
        self.guest.check_good(more=1)
        self.source.check_clean()
        return True

    def check_fresh(self):
        check(not self.stale(), "with all rules on: %s", self.send.result["error"]
              if self.send.code else "")
        return self.send.result

    def _check_moved(self):
        check_completed(self.send, self.recv)
        self.guest.moved(self.target)
        wait_until(lambda: not self.source.alive(), 5, "the source QEMU has quit")
        check_equal(self.target.status(), "running", "the destination's state")
        self.guest.check_good(more=2)
        self.target.check_clean()


def note(text, *values):
    """A comment in the TAP output: numbers for people."""
    print("# " + text % values, flush=True)


def note_runs(name, results):
    note("%s: %d runs; suspects %s, recopied %s, rounds %s, downtime %s ms", name, len(results),
         *([r[key] // unit for r in results[:6]] for key, unit in
           (("suspect_pages", 1), ("suspect_copied", 1), ("rounds", 1),
            ("downtime_ns", 1000000))))


# ---------------------------------------------------------------- pinned DMA

def reading_guest(lab, medium, aio):
    check_aio(lab, aio)
    disks = [MEDIA[medium](lab, aio)]
    # Without a rest at the file, whose reads are short: more chances for them to land late.
    append = "ferry.mib=4 ferry.dirty=8 ferry.pause_ms=%d ferry.disk=/dev/vda:read" \
        % (0 if medium == "file" else 5)
    return lab.boot(append=append, disks=disks), disks


def stopped(pid):
    return read_text("/proc/%d/stat" % pid).rpartition(")")[2].split()[:1] == ["T"]


def read_while_copied(lab, guest, disks, *args, env=None):
    """Migrate, and let reads land that were under way in a round."""
    attempt = Attempt(lab, guest, "--downtime-limit", NEVER_MS, *args, env=env, disks=disks,
                      fault="round:stop")
    worker = attempt.send.worker()
    wait_until(lambda: stopped(worker) or "device" in attempt.send.states(), 20,
               "the first round after the bulk is over")
    if stopped(worker):  # it is not without a tracker: then there are no rounds
        start = disk_reads(attempt.source)
        wait_until(lambda: disk_reads(attempt.source) > start + 2, 15, "the guest reads its disk")
        os.kill(worker, signal.SIGCONT)
        attempt.switch_over("set", attempt.source.id, "downtime-limit=%d" % AT_ONCE_MS)
    return attempt


@test(timeout=60 + 15 * RUNS,
      cases={"%s-%s" % (medium, aio): (medium, aio) for medium in MEDIA for aio in AIO})
def suspects_keep_direct_reads(lab, medium, aio):
    guest, disks = reading_guest(lab, medium, aio)
    results = [read_while_copied(lab, guest, disks, "--verify").check_fresh()
               for _ in range(RUNS)]
    note_runs("rule on, %s, aio=%s" % (medium, aio), results)
    for result in results:
        check_equal(result["verified"], True, "verified")
        check(result["rounds"] >= 3, "only %d rounds", result["rounds"])
        check(result["suspect_pages"] > 0, "no page was suspect: %s", result)
    check(medium != "slow" or any(result["suspect_copied"] for result in results),
          "no read landed late: this proves nothing")


@test(timeout=60 + 15 * RUNS)
def too_many_suspects_are_settled_between_rounds(lab):
    """What may be suspect depends on the downtime limit: here 250 pages, and half a read is."""
    guest, disks = reading_guest(lab, "slow", "native")
    results = [read_while_copied(lab, guest, disks, "--verify", "--downtime-limit", 1)
               .check_fresh() for _ in range(RUNS)]
    note_runs("limit 1 ms", results)
    check(any(result["suspect_copied"] for result in results),
          "no read landed late: this proves nothing")


@test(timeout=90, cases={aio: (aio,) for aio in AIO})
def without_suspects_direct_reads_are_lost(lab, aio):
    guest, disks = reading_guest(lab, "slow", aio)
    for number in range(1, TRIES + 1):
        if read_while_copied(lab, guest, disks, "--verify", env=NO_SUSPECTS).stale():
            note("rule off, aio=%s: stale at try %d", aio, number)
            return
    raise Failed("%d migrations without the rule lost nothing: it proves nothing" % TRIES)


@test()
def without_suspects_and_verify_the_guest_notices(lab):
    """What --verify finds is damage: buffers the guest has read do not hold what was read."""
    guest, disks = reading_guest(lab, "slow", "native")
    attempt = read_while_copied(lab, guest, disks, env=NO_SUSPECTS)
    check_completed(attempt.send, attempt.recv)
    guest.moved(attempt.target)
    wait_until(lambda: "BAD disk block" in read_text(attempt.target.serial), 10,
               "the guest finds a bad disk block")


@test(timeout=60 + 15 * RUNS, cases={"dma-barrier": ("--dma-barrier",),
                                     "stop-and-copy": ("--tracker", "none")})
def no_suspects_are_needed_with(lab, *args):
    guest, disks = reading_guest(lab, "slow", "native")
    results = [read_while_copied(lab, guest, disks, "--verify", *args).check_fresh()
               for _ in range(RUNS)]
    note_runs(" ".join(args), results)
    for result in results:
        check_equal(result["verified"], True, "verified")
        check_equal(result["suspect_pages"], 0, "suspect pages")


# ---------------------------------------------------------------- holes

BALLOON = {"mib": 160,
           "args": ["-device", "virtio-balloon-pci,free-page-reporting=on,id=balloon0"]}


def data_pages(qemu):
    """The numbers of all pages of guest RAM that are not holes."""
    pages = set()
    with open(qemu.ram_files[0], "rb") as file:
        end, at = os.fstat(file.fileno()).st_size, 0
        while at < end:
            try:
                first = os.lseek(file.fileno(), at, os.SEEK_DATA)
            except OSError:  # nothing but a hole is left
                break
            at = os.lseek(file.fileno(), first, os.SEEK_HOLE)
            pages.update(range(first // 4096, at // 4096))
    return pages


def inflate(attempt):
    """The guest gives away memory, some of which holds what it has freed."""
    source, wanted = attempt.source, (BALLOON["mib"] - 56) << 20
    source.monitor.command("balloon", value=wanted)
    wait_until(lambda: source.monitor.command("query-balloon")["actual"] <= wanted, 15,
               "the balloon is inflated")


def free_pages_are_reported(attempt):
    """Linux reports what has been free for two seconds."""


PUNCH = {"balloon": inflate, "free-page-reporting": free_pages_are_reported}


def punch_while_copied(lab, guest, punch, env=None):
    attempt = Attempt(lab, guest, "--verify", "--pause-before-switchover", env=env, **BALLOON)
    attempt.send.wait_state("pre-switchover")
    before = data_pages(attempt.source)
    PUNCH[punch](attempt)
    punched = wait_until(lambda: [p for p in [before - data_pages(attempt.source)]
                                  if len(p) >= 512], 20, "512 pages are punched")
    note("%s: %d pages became holes", punch, len(punched[0]))
    attempt.switch_over("continue", attempt.source.id)
    return attempt


def freeing_guest(lab):
    # Else the balloon driver's pages would be zeroed, and therefore dirty, when it gets them.
    return lab.boot(append="init_on_alloc=0 ferry.mib=8 ferry.dirty=16 ferry.pause_ms=5 "
                    "ferry.churn=24", **BALLOON)


@test(timeout=60 + 25 * RUNS, cases={punch: (punch,) for punch in PUNCH})
def punched_pages_arrive_as_holes(lab, punch):
    guest = freeing_guest(lab)
    for _ in range(RUNS):
        result = punch_while_copied(lab, guest, punch).check_fresh()
        check_equal(result["verified"], True, "verified")
        guest.qemu.monitor.command("balloon", value=BALLOON["mib"] << 20)
        guest.wait_ticks()


@test(timeout=150, cases={punch: (punch,) for punch in PUNCH})
def without_the_rule_punched_pages_keep_old_bytes(lab, punch):
    guest = freeing_guest(lab)
    for number in range(1, TRIES + 1):
        if punch_while_copied(lab, guest, punch, env=NO_HOLES).stale():
            note("rule off, %s: stale at try %d", punch, number)
            return
        guest.qemu.monitor.command("balloon", value=BALLOON["mib"] << 20)
        guest.wait_ticks()
    raise Failed("%d migrations without the rule lost nothing: it proves nothing" % TRIES)


if __name__ == "__main__":
    sys.argv = [a for a in sys.argv if a != "--long"]
    sys.exit(tap.main(Lab, prerequisites))
