#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Snapshot files: ferry against QEMU's mapped-ram and against fio, on a disk and on tmpfs.

    make bench-file
    selftests/bench/file.py [--mib N] [--rounds N] [--only NAME,...] [--sizes MIB,...]

The newest QEMU there is runs a guest without an operating system; its RAM is filled with what
does not compress and holds no page of zeros. Both save the same stopped guest to the same place,
in turns, and restore it into a new QEMU that waits.

A save counts from the command (ferry: from the start of its process) until its last byte is synced:
ferry does that itself, after QEMU this program does it. A restore counts until the guest runs.
Before each of them the disk has nothing else to do: the older file is removed and all is synced; and as
much memory as will be needed is taken and freed (precopy.py says why). Before a restore the page
cache holds the file, unless it is read with direct I/O, which has no use for it: that holds for both.
The records of ferry are where they are by default, on a tmpfs (/run/ferry).

QEMU does what is its best in that place, of: one channel, multifd, multifd with direct I/O, and
so does ferry; *plain* and *direct* compare like with like: ferry without --direct and QEMU's
multifd, ferry --direct and QEMU's multifd with direct I/O.

fio writes and reads as many bytes in the same place: 1 MiB at a time, a job for each
channel, synced at the end; *fio-direct* past the page cache, 8 of them under way.

"first" is what ferry says of a restore (downtime_ns): from the beginning of the worker's job, a few
milliseconds after the command, until QEMU has answered `cont`; "from the command" is measured from
outside, from before the process is made until the same moment.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(HERE, "..", "e2e")]
import tap  # noqa: E402
from lib import SHM, check, other_qemu, prerequisites, wait_until  # noqa: E402
from precopy import GIB, MIB, Machine, as_program, fill, new_lab, spread, warm  # noqa: E402

CHANNELS = 2
QEMU_WAYS = {"mapped-ram": (0, False), "multifd": (CHANNELS, False),
             "multifd+direct": (CHANNELS, True)}
FERRY_WAYS = {"ferry": (), "ferry --direct": ("--direct",)}


def sync(path):
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def remove(path):
    if os.path.exists(path):
        os.unlink(path)


def into_cache(path):
    with open(path, "rb", buffering=0) as file:
        while file.read(MIB):
            pass


def qemu_setup(qemu, way):
    channels, direct = QEMU_WAYS[way]
    qemu.monitor.command("migrate-set-capabilities", capabilities=[
        {"capability": "mapped-ram", "state": True},
        {"capability": "multifd", "state": bool(channels)}])
    qemu.monitor.command("migrate-set-parameters", max_bandwidth=0, direct_io=direct,
                         **({"multifd_channels": channels} if channels else {}))


def qemu_wait(qemu):
    def ended():
        info = qemu.monitor.command("query-migrate")
        if info.get("status") in ("failed", "cancelled"):
            raise tap.Failed("QEMU's migration: %s" % info)
        return info.get("status") == "completed"
    wait_until(ended, 120, "QEMU has done it")


class Bench:
    """One guest, saved to @folder and restored from there again and again."""

    def __init__(self, lab, name, folder, mib, warm_mib=None):
        self.lab, self.mib, self.folder, self.warm_mib = lab, mib, folder, warm_mib or mib
        self.ram = os.path.join(SHM, "ferry-bench-%d-%s" % (os.getpid(), name))
        self.target_ram = self.ram + "-target"
        self.file = os.path.join(folder, "snapshot")
        for path in (self.ram, self.target_ram, self.file, self.file + ".qemu"):
            lab.on_close(lambda path=path: os.path.exists(path) and os.unlink(path))
        fill(self.ram, mib, "filled")
        self.source = self.machine(name, self.ram)
        time.sleep(1)  # until the firmware has found nothing to boot

    def machine(self, name, path, incoming=False):
        machine = Machine.__new__(Machine)
        machine.process = None
        self.lab.qemus.append(machine)
        machine.__init__(self.lab, name, path, self.mib, incoming)
        return machine

    def speed(self, began):
        return self.mib * MIB / (time.monotonic() - began) / GIB

    def settle(self):
        """The disk and the memory as each turn finds them."""
        os.sync()
        warm(self.ram + "-warm", self.warm_mib).close()

    def save(self, way):
        """GiB/s of RAM."""
        path = self.file if way in FERRY_WAYS else self.file + ".qemu"
        remove(path)
        self.settle()
        if way in FERRY_WAYS:
            began = time.monotonic()
            self.lab.ferry("save", self.source.uri, path, "--channels", CHANNELS,
                           *FERRY_WAYS[way]).finish(120).check_code(0)
            return self.speed(began)
        self.source.monitor.command("stop")
        qemu_setup(self.source, way)
        began = time.monotonic()
        self.source.monitor.command("migrate", uri="file:" + path)
        qemu_wait(self.source)
        sync(path)
        speed = self.speed(began)
        self.source.monitor.command("cont")
        return speed

    def target(self):
        with open(self.target_ram, "wb") as file:
            file.truncate(self.mib * MIB)
        return self.machine("target%d" % len(self.lab.qemus), self.target_ram, incoming=True)

    def restore(self, way, *options):
        """GiB/s; ms to the first instruction, as ferry says and from the command."""
        target = self.target()
        path = self.file if way in FERRY_WAYS else self.file + ".qemu"
        self.settle()
        if "direct" not in way:
            into_cache(path)
        try:
            if way in FERRY_WAYS:
                began, began_ns = time.monotonic(), time.monotonic_ns()
                run = self.lab.ferry("restore", target.uri, path, "--channels", CHANNELS,
                                     *FERRY_WAYS[way], *options).finish(120).check_code(0)
                speed = self.speed(began)
                # The state that follows the start; the same clock on both sides.
                ran = [e["t_ns"] for e in run.events if e.get("state") in
                       ("postcopy-active", "completed") and e["event"] == "state"]
                return speed, run.result["downtime_ns"] / 1e6, (ran[0] - began_ns) / 1e6, run.result
            qemu_setup(target, way)
            began = time.monotonic()
            target.monitor.command("migrate-incoming", uri="file:" + path)
            qemu_wait(target)
            target.monitor.command("cont")  # it was saved stopped
            return self.speed(began), (time.monotonic() - began) * 1e3
        finally:
            target.kill()

    def fio(self, kind, direct=False):
        self.settle()
        command = ["fio", "--name=x", "--directory=" + self.folder,
                   "--filename_format=snapshot.fio.$jobnum", "--rw=" + kind, "--bs=1M",
                   "--size=%dM" % (self.mib // CHANNELS), "--numjobs=%d" % CHANNELS,
                   *(("--ioengine=io_uring", "--iodepth=8", "--direct=1") if direct else
                     ("--ioengine=psync",)), "--end_fsync=1", "--thread", "--group_reporting",
                   "--invalidate=0", "--output-format=json"]
        run = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        job = json.loads(run.stdout[run.stdout.index("{"):])["jobs"][0]
        # Its own clock, which leaves out its start; the sync of what was written counts.
        return self.mib * MIB / (job["job_runtime"] / 1e3 / CHANNELS) / GIB

    def fio_remove(self):
        for job in range(CHANNELS):
            remove(os.path.join(self.folder, "snapshot.fio.%d" % job))

    def close(self):
        self.source.kill()
        self.fio_remove()
        for path in (self.ram, self.target_ram, self.file, self.file + ".qemu"):
            remove(path)


def row(*columns):
    print("%-14s %-16s %-22s %-22s %s" % columns, flush=True)


def ratio(name, ours, theirs):
    return "ratio %s: %s" % (name, spread([a / b for a, b in zip(ours, theirs)]))


def qemu_ways(bench, name):
    """Those that work here; tmpfs knows no direct I/O on some kernels."""
    tries = {}
    bench.save("mapped-ram")  # the first one does not count
    for way in QEMU_WAYS:
        try:
            tries[way] = bench.save(way)
        except Exception as error:
            print("# %s, QEMU %s: %s" % (name, way, str(error).splitlines()[0]))
            bench.source.kill()
            bench.source = bench.machine("again%d" % len(bench.lab.qemus), bench.ram)
            time.sleep(1)
    if tries["mapped-ram"] < max(tries.values()):
        del tries["mapped-ram"]
    return list(tries)


def best(ways, results):
    return max(ways, key=lambda way: statistics.median(results[way]))


def place(lab, name, folder, args, last):
    """Saves and restores in one place."""
    bench = Bench(lab, name, folder, args.mib)
    peers = qemu_ways(bench, name)
    everybody = list(FERRY_WAYS) + peers
    fios = {"fio": False, **({"fio-direct": True} if name == "disk" else {})}
    saves, restores = ({way: [] for way in everybody + list(fios)} for _ in range(2))
    bench.save("ferry")
    for turn in range(args.rounds):
        for way in everybody:
            saves[way].append(bench.save(way))
        for way in everybody:
            restores[way].append(bench.restore(way)[0])
        for way, direct in fios.items():
            bench.fio_remove()
            saves[way].append(bench.fio("write", direct))
            restores[way].append(bench.fio("read", direct))
        bench.fio_remove()
    for way in saves:
        row(name, way, spread(saves[way]), spread(restores[way]), "")
    suffix = "" if name == "disk" else "-" + name
    for word, results in (("save", saves), ("restore", restores)):
        ours, theirs = best(FERRY_WAYS, results), best(peers, results)
        last += [ratio(word + suffix, results[ours], results[theirs]),
                 ratio(word + "-plain" + suffix, results["ferry"], results["multifd"])]
        if "multifd+direct" in peers:
            last.append(ratio(word + "-direct" + suffix, results["ferry --direct"],
                              results["multifd+direct"]))
        last.append(ratio(word + "-fio" + suffix, results[ours], results[best(fios, results)]))
    bench.close()


def lazy(lab, folder, args, last):
    """To the first instruction, whole and lazy, by size of RAM; all sizes in each turn."""
    sizes, benches, results = [int(size) for size in args.sizes.split(",")], {}, {}
    for mib in sizes:
        place = os.path.join(folder, str(mib))
        os.mkdir(place)
        # What frees much memory slows all that follows it: as much of it at every size.
        benches[mib] = Bench(lab, "lazy-%d" % mib, place, mib, warm_mib=min(sizes))
        benches[mib].save("ferry")
        results[mib] = {"whole": [], "first": [], "command": [], "all": []}
    for turn in range(args.rounds):
        for mib in sizes:
            result = results[mib]
            if turn < args.whole_rounds:
                result["whole"].append(benches[mib].restore("ferry")[1])
            _, first, from_command, told = benches[mib].restore("ferry", "--lazy")
            result["first"].append(first)
            result["command"].append(from_command)
            result["all"].append(told["total_ns"] / 1e6)
    for mib, result in results.items():
        row("%d MiB" % mib, "whole", "", "", "first %s ms" % spread(result["whole"], 1))
        row("", "lazy", "", "", "first %s ms, from the command %s ms, all of it %s ms"
            % (spread(result["first"], 1), spread(result["command"], 1), spread(result["all"], 0)))
        last.append(ratio("first-%d" % mib, result["first"], result["whole"]))
        benches[mib].close()
    # 1 is flat: it does not depend on the size of RAM.
    last.append(ratio("first-flat", results[max(sizes)]["first"], results[min(sizes)]["first"]))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--mib", type=int, default=1024, help="RAM of the guest (1024)")
    parser.add_argument("--rounds", type=int, default=5, help="counted turns of each (5)")
    parser.add_argument("--sizes", default="256,1024,4096", help="MiB of RAM of the lazy restores")
    parser.add_argument("--whole-rounds", type=int, default=3,
                        help="turns of the lazy restores with a whole one before (3)")
    parser.add_argument("--only", default="disk,tmpfs,lazy")
    parser.add_argument("--disk", default="/var/tmp", help="a folder on a disk (/var/tmp)")
    args = parser.parse_args()
    only, last = args.only.split(","), []
    prerequisites()
    try:
        subprocess.run(["fio", "--version"], check=True, stdout=subprocess.DEVNULL)
    except OSError:
        raise tap.Skip("fio is not installed: run scripts/install test")
    binary = os.environ.get("FERRY_QEMU") or other_qemu("11.1")
    version = subprocess.run([binary, "--version"], stdout=subprocess.PIPE, text=True).stdout
    print("# %s; %d processors, load %.1f; %d MiB of RAM, %d turns, %d channels"
          % (version.split("\n")[0], os.cpu_count(), os.getloadavg()[0], args.mib, args.rounds,
             CHANNELS))
    row("where", "who", "save GiB/s", "restore GiB/s", "")
    lab = new_lab(binary)
    try:
        for name, parent in (("disk", args.disk), ("tmpfs", SHM)):
            if name in only:
                folder = tempfile.mkdtemp(dir=parent, prefix="ferry-bench-")
                lab.on_close(lambda folder=folder: subprocess.run(["rm", "-rf", folder]))
                place(lab, name, folder, args, last)
        if "lazy" in only:
            folder = tempfile.mkdtemp(dir=args.disk, prefix="ferry-bench-")
            lab.on_close(lambda folder=folder: subprocess.run(["rm", "-rf", folder]))
            lazy(lab, folder, args, last)
    finally:
        lab.close()
    check(last, "nothing was measured")
    for text in last:
        print(text)


if __name__ == "__main__":
    as_program(main)
