#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Precopy over loopback TCP: ferry against QEMU's own migration and against the line.

    make bench-precopy
    selftests/bench/precopy.py [--mib N] [--rounds N] [--only PART,...] [--sizes MIB,...]

Parts, each of which can be run by itself:

    line        TCP alone: memory sent, received and forgotten
    stages      what each step of the way costs by itself
    filled      random RAM in files of a tmpfs as it is by default; QEMU also with its
                destination in anonymous memory, which is its fastest and ferry cannot take
    filled-huge the same in a tmpfs with huge=within_size, for both
    untouched   90 % holes
    zero        90 % pages of zeros
    dirty       guests that write at several rates
    sizes       filled, untouched and downtime by size of RAM
    vmm         the downtime of an idle ferry-vmm by size of RAM

The newest QEMU there is runs a guest without an operating system, which idles in its
firmware, so that RAM is what this program wrote into its file. Both peers move the same
guest with the same RAM between the same two command lines, in turns; the first turn, which
makes the pages of memory warm, does not count. QEMU migrates with the number of multifd
channels that was its best here, ferry with what it does unasked.

Right before the copy of each turn begins as much memory as it will take is freed, which was
written before. Where this machine is a guest itself that gives back free memory to its host,
new pages are dear otherwise, for both peers and by chance.

GiB/s is all of RAM over the migration's own duration; CPU s/GiB is the processor time of
all processes of both sides (the QEMUs' too) while they migrate, for each GiB of RAM.
"""
import argparse
import ctypes
import mmap
import os
import resource
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time

# Filling gigabytes takes longer than the tests' deadlines for a start.
os.environ.setdefault("FERRY_TEST_SLOW", "5")
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "e2e"))
import tap  # noqa: E402
from lib import SHM, Lab, Qemu, other_qemu, prerequisites, wait_until  # noqa: E402
from vmm import VmmLab, have_kvm  # noqa: E402

GIB = 1 << 30
MIB = 1 << 20
TICK_S = os.sysconf("SC_CLK_TCK")
# More would not fit beside source and destination.
WARM_MIB = 4096
# Pages a loop that each of two vCPUs writes, at most 100 loops a second: 8, 80, 400 MiB/s.
DIRTY = (("8 MiB/s", 10), ("80 MiB/s", 100), ("400 MiB/s", 500))


def cpu_s(pid):
    with open("/proc/%d/stat" % pid) as file:
        fields = file.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICK_S


def children_cpu_s():
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def punch(path, mib):
    """Holes again where fill('untouched') left some: QEMU's way of reading them makes pages."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    with open(path, "r+b") as file:
        for i in range(0, mib - 1, 10):  # the last MiB is the firmware's
            length = min(9, mib - 2 - i)
            # FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
            if length > 0 and libc.fallocate(file.fileno(), 3, (i + 1) * MIB, length * MIB):
                raise OSError(ctypes.get_errno(), "cannot punch holes in " + path)


def fill(path, mib, kind):
    """Guest RAM: 'filled' all random; else 1 MiB of 10 is, and the rest zeros or holes."""
    noise = [os.urandom(MIB) for _ in range(8)]
    with open(path, "wb+") as file:
        file.truncate(mib * MIB)
        with mmap.mmap(file.fileno(), mib * MIB) as ram:  # which hugetlbfs can do as well
            for i in range(mib):
                if kind == "filled" or i % 10 == 0:
                    ram[i * MIB:(i + 1) * MIB] = noise[i % 8]
                elif kind == "zero":
                    ram[i * MIB:(i + 1) * MIB] = bytes(MIB)


class Machine(Qemu):
    """A QEMU whose guest is its idle firmware, and whose RAM is the file @path."""

    def __init__(self, lab, name, path, mib, incoming=False, anonymous=False):
        self.lab, self.name, self.mib, self.memory = lab, name, mib, "shm"
        self.dir = os.path.join(lab.dir, name)
        os.mkdir(self.dir)
        self.qmp_path = os.path.join(self.dir, name + ".qmp")
        self.serial = os.path.join(self.dir, "serial")
        self.stderr = os.path.join(self.dir, "stderr")
        self.user, self.ram_files, self._fds, self._monitor = None, [path], [], None
        command = [lab.binary, "-nodefaults", "-no-user-config", "-display", "none", "-smp", "1",
                   "-m", "%dM" % mib, "-accel", "tcg", "-machine", "q35,memory-backend=ram0",
                   "-object", "memory-backend-ram,id=ram0,size=%dM" % mib if anonymous else
                   "memory-backend-file,id=ram0,size=%dM,share=on,mem-path=%s" % (mib, path)]
        for socket_path in (self.qmp_path, self.monitor_path):
            command += ["-qmp", "unix:%s,server=on,wait=off" % socket_path]
        self._start(command + (["-incoming", "defer"] if incoming else []))


class Result:
    def __init__(self, ram_bytes, total_s, downtime_s, cpu, sent_bytes, rounds=0):
        self.total_s, self.downtime_ms, self.rounds = total_s, downtime_s * 1e3, rounds
        self.speed = ram_bytes / total_s / GIB
        self.cpu = cpu * GIB / ram_bytes
        self.sent_mib = sent_bytes / MIB
        self.slowdown = None


def by_ferry(lab, source, target, *args, ready=lambda: None):
    used, children = cpu_s(source.pid) + cpu_s(target.pid), children_cpu_s()
    recv = lab.recv(target, "tcp:127.0.0.1:0")
    send = lab.send(source, recv.listening, "--keep-source", *args)
    send.wait_event(lambda e: e.get("state") == "setup", 30, "it begins")
    ready()
    send.finish(60).check_code(0)
    recv.finish().check_code(0)
    used = cpu_s(source.pid) + cpu_s(target.pid) - used
    r = send.result
    return Result(r["ram_bytes"], r["total_ns"] / 1e9, r["downtime_ns"] / 1e9,
                  used + children_cpu_s() - children, r["sent_bytes"], r["rounds"])


def by_qemu(source, target, channels, ram_bytes, seconds=120, ready=lambda: None):
    used = cpu_s(source.pid) + cpu_s(target.pid)
    for qemu in (source, target):
        qemu.monitor.command("migrate-set-capabilities", capabilities=[
            {"capability": name, "state": bool(channels)} for name in ("multifd", "events")])
        qemu.monitor.command("migrate-set-parameters", max_bandwidth=0,
                             **({"multifd_channels": channels} if channels else {}))
    target.monitor.command("migrate-incoming", uri="tcp:127.0.0.1:0")
    port = target.monitor.command("query-migrate")["socket-address"][0]["port"]
    ready()
    source.monitor.command("migrate", uri="tcp:127.0.0.1:" + port)

    def ended():
        info = source.monitor.command("query-migrate")
        if info["status"] in ("failed", "cancelled"):
            raise tap.Failed("QEMU's migration: %s" % info)
        return info["status"] == "completed" and info
    info = wait_until(ended, seconds, "QEMU migrates")
    wait_until(target.running, 10, "the destination runs")
    used = cpu_s(source.pid) + cpu_s(target.pid) - used
    return Result(ram_bytes, info["total-time"] / 1e3, info["downtime"] / 1e3, used,
                  info["ram"]["transferred"], info["ram"]["dirty-sync-count"])


def warm(path, mib):
    """Take free memory into use; close() gives it back. See on top."""
    chunk = memoryview(bytearray(MIB))
    file = open(path, "wb", buffering=0)
    os.unlink(path)
    for _ in range(mib):
        file.write(chunk)
    return file


def huge_tmpfs(lab):
    """A tmpfs of our own, whose files are made of 2 MiB pages."""
    folder = tempfile.mkdtemp(prefix="ferry-bench-huge-")
    lab.on_close(lambda: os.rmdir(folder))
    run = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=90%,mode=700,huge=within_size",
                          "ferry-bench", folder], stderr=subprocess.PIPE, text=True)
    if run.returncode:
        raise tap.Skip("no tmpfs with huge pages: " + run.stderr.strip())
    lab.on_close(lambda: subprocess.run(["umount", folder], check=True))
    return folder


class Bench:
    """One source with one kind of RAM, moved to a new destination again and again."""

    def __init__(self, lab, name, kind, mib, folder=SHM):
        self.lab, self.name, self.mib, self.kind = lab, name, mib, kind
        self.path = os.path.join(folder, "ferry-bench-%d-%s" % (os.getpid(), name))
        lab.on_close(lambda: os.path.exists(self.path) and os.unlink(self.path))
        fill(self.path, mib, kind)
        self.source = self.machine(name, self.path)
        time.sleep(1)  # until the firmware has found nothing to boot

    def machine(self, name, path, incoming=False, anonymous=False):
        machine = Machine.__new__(Machine)
        machine.process = None
        self.lab.qemus.append(machine)
        machine.__init__(self.lab, name, path, self.mib, incoming, anonymous)
        return machine

    def move(self, peer, channels=None, anonymous=False):
        path = self.path + "-target"
        name = "target%d" % len(self.lab.qemus)
        with open(path, "wb") as file:
            file.truncate(self.mib * MIB)
        if self.kind == "untouched":
            punch(self.path, self.mib)
        target = self.machine(name, path, True, anonymous)
        memory = warm(path + "-warm", min(self.mib, WARM_MIB))
        try:
            if peer == "ferry":
                args = ("--channels", channels) if channels else ()
                return by_ferry(self.lab, self.source, target, *args, ready=memory.close)
            return by_qemu(self.source, target, channels, self.mib * MIB, ready=memory.close)
        finally:
            memory.close()
            target.kill()
            self.source.monitor.command("cont")

    def close(self):
        self.source.kill()


def spread(values, digits=2):
    return "%.*f (%.*f..%.*f)" % (digits, statistics.median(values), digits, min(values), digits,
                                  max(values))


def row(name, peer, results):
    slow = [r.slowdown for r in results if r.slowdown is not None]
    print("%-16s %-11s %-19s %-19s %-22s %-10s%s" % (
        name, peer, spread([r.speed for r in results]), spread([r.cpu for r in results]),
        spread([r.downtime_ms for r in results], 1),
        "%.1f" % statistics.median([r.sent_mib for r in results]),
        spread(slow) if slow else ""), flush=True)


def ratios(name, ours, theirs, what):
    return "ratio %s: %s" % (name, spread([getattr(a, what) / getattr(b, what)
                                           for a, b in zip(ours, theirs)]))


# ---------------------------------------------------------------- the line

def line_limit(mib, streams):
    """GiB/s and CPU s/GiB of the same memory, sent and received and forgotten."""
    children, began, pids = children_cpu_s(), time.monotonic(), []
    for _ in range(streams):
        listener = socket.create_server(("127.0.0.1", 0))
        for sends in (False, True):
            pid = os.fork()
            if pid:
                pids.append(pid)
                continue
            try:
                left, buffer = mib // streams, bytearray(MIB)
                if sends:
                    with socket.create_connection(listener.getsockname()) as line:
                        for _ in range(left):
                            line.sendall(buffer)
                else:
                    line, _ = listener.accept()
                    while line.recv_into(buffer):
                        pass
            finally:
                os._exit(0)
        listener.close()
    for pid in pids:
        os.waitpid(pid, 0)
    return Result(mib * MIB, time.monotonic() - began, 0, children_cpu_s() - children, mib * MIB)


# ---------------------------------------------------------------- each step alone

def cpu_of(work, gib):
    begin = time.process_time()
    work()
    return (time.process_time() - begin) / gib


def copy_file(source, target, mib):
    """Into @target, which is made new unless it is there."""
    buffer = bytearray(MIB)
    for i in range(mib):
        if source:
            os.preadv(source, [buffer], i * MIB)
        if target:
            os.pwrite(target, buffer, i * MIB)


def fault_in(file, mib):
    import mmap
    with mmap.mmap(file, mib * MIB) as memory:
        for i in range(0, mib * MIB, 4096):
            memory[i] = 1


def stages(mib, folders):
    """Yields (name, CPU s/GiB)."""
    gib = mib / 1024
    for size, folder in folders:
        path = os.path.join(folder, "ferry-bench-%d-stage" % os.getpid())
        for what, work in (("written: pwrite", lambda file: copy_file(None, file, mib)),
                           ("faulted in", lambda file: fault_in(file, mib))):
            memory = warm(path + "-warm", mib)
            with open(path, "w+b", buffering=0) as file:
                os.unlink(path)
                file.truncate(mib * MIB)
                memory.close()
                yield "new %s pages %s" % (size, what), cpu_of(lambda: work(file.fileno()), gib)
                if what != "faulted in":
                    yield ("old %s pages %s" % (size, what),
                           cpu_of(lambda: copy_file(None, file.fileno(), mib), gib))
                    yield ("%s pages read: pread" % size,
                           cpu_of(lambda: copy_file(file.fileno(), None, mib), gib))
    yield "TCP, both ends, 2 streams", line_limit(mib, 2).cpu


# ---------------------------------------------------------------- guests that write

def work_during(guest, move, *args):
    """Move, and how much of its usual work the guest did meanwhile."""
    begin = guest.ticks()
    guest.wait_ticks(20)
    ready = guest.ticks()
    usual = (ready.loops - begin.loops) / (ready.times[-1] - begin.times[-1])
    result = move(*args)
    guest.wait_ticks(1)
    moved = guest.ticks()
    spent = moved.times[-1] - ready.times[-1]
    result.slowdown = (moved.loops - ready.loops) / spent / usual if spent else 0
    return result


def dirtying(binary, mib, pages, peer, channels):
    """A guest with an operating system that writes all the time; one move."""
    lab = Lab("dirtying")
    try:
        append = "ferry.mib=%d ferry.dirty=%d ferry.pause_ms=10 ferry.tick_ms=20" % (mib // 2,
                                                                                     pages)
        guest = lab.boot(append=append, mib=mib, binary=binary)
        target = lab.destination(mib=mib, binary=binary)

        def move():
            if peer == "ferry":
                result = by_ferry(lab, guest.qemu, target)
            else:
                result = by_qemu(guest.qemu, target, channels, mib * MIB, 60)
            guest.moved(target)
            return result
        return work_during(guest, move)
    finally:
        lab.close()


# ---------------------------------------------------------------- ferry-vmm

def idle_vmm(mib, tracker):
    """The downtime of an idle guest of ferry-vmm."""
    lab = VmmLab("idle")
    try:
        lab.runtime = tempfile.mkdtemp(dir=SHM, prefix="ferry-bench-")
        lab.on_close(lambda: subprocess.run(["rm", "-rf", lab.runtime]))
        lab.shape = ("--ram", "%dM" % mib, "--vcpus", "1") + \
            (("--tracker-log", "log") if tracker == "port" else ())
        lab.work = ("--working-set", "64K", "--fill", "%dM" % (mib * 7 // 8), "--dirty-rate", "1")
        guest = lab.guest()
        return by_ferry(lab, guest.qemu, lab.destination(), "--tracker", tracker)
    finally:
        lab.close()


# ---------------------------------------------------------------- all of it

def new_lab(binary):
    lab = Lab("bench")
    lab.binary = binary
    # Where it is by default, in /run, is no disk either.
    lab.runtime = tempfile.mkdtemp(dir=SHM, prefix="ferry-bench-")
    lab.on_close(lambda: subprocess.run(["rm", "-rf", lab.runtime]))
    return lab


def best_channels(bench):
    """QEMU's best: what moves this RAM fastest, each tried twice."""
    bench.move("qemu", 2)
    speeds = {n: max(bench.move("qemu", n).speed for _ in range(2)) for n in (0, 1, 2, 4)}
    best = max(speeds, key=speeds.get)
    print("# QEMU's GiB/s by multifd channels (0: no multifd): %s"
          % ", ".join("%d: %.2f" % s for s in speeds.items()), flush=True)
    return best


def interleaved(bench, rounds, channels, anonymous=False):
    """Rows of both peers, and the ratios' lines."""
    peers = [("ferry", "ferry", None), ("qemu", "qemu", channels)]
    if anonymous:
        peers.append(("qemu, anon.", "qemu", channels))
    results = {name: [] for name, _, _ in peers}
    bench.move("ferry")
    for _ in range(rounds):
        for name, peer, count in peers:
            results[name].append(bench.move(peer, count, name.endswith("anon.")))
    for name in results:
        row(bench.name, name, results[name])
    ours, lines = results["ferry"], []
    for name in list(results)[1:]:
        suffix = "-anon" if name.endswith("anon.") else ""
        for what, kind in (("speed", ""), ("cpu", "-cpu"), ("downtime_ms", "-downtime")):
            lines.append(ratios(bench.name + kind + suffix, ours, results[name], what))
    bench.close()
    return lines


def part_line(_lab, args, _channels):
    for streams in (1, 2):
        row("line", "%d TCP" % streams, [line_limit(args.mib, streams)
                                         for _ in range(args.rounds)])


def part_stages(lab, args, _channels):
    """CPU s/GiB of each step alone, one thread, 1 MiB at a time; @args.rounds times in turns."""
    huge, results = huge_tmpfs(lab), {}
    for _ in range(args.rounds):
        for name, cpu in stages(min(args.mib, 1024), (("4K", SHM), ("2M", huge))):
            results.setdefault(name, []).append(cpu)
    for name, values in results.items():
        print("%-40s %s CPU s/GiB" % (name, spread(values)), flush=True)


def part_filled(lab, args, channels, name="filled"):
    folder = huge_tmpfs(lab) if name == "filled-huge" else SHM
    return interleaved(Bench(lab, name, "filled", args.mib, folder), args.rounds, channels,
                       name == "filled")


def part_filled_huge(lab, args, channels):
    return part_filled(lab, args, channels, "filled-huge")


def part_untouched(lab, args, channels, name="untouched"):
    return interleaved(Bench(lab, name, name, args.mib), args.rounds, channels)


def part_zero(lab, args, channels):
    return part_untouched(lab, args, channels, "zero")


def part_dirty(_lab, args, channels):
    lines = []
    for name, pages in DIRTY:
        ours, theirs = [], []
        for _ in range(args.rounds):
            ours.append(dirtying(args.binary, 512, pages, "ferry", channels))
            theirs.append(dirtying(args.binary, 512, pages, "qemu", channels))
        row(name, "ferry", ours)
        row(name, "qemu", theirs)
        lines.append(ratios("work-%s" % name.split()[0], ours, theirs, "slowdown"))
    return lines


def part_sizes(lab, args, channels):
    lines = []
    for mib in args.sizes:
        for kind in ("filled", "untouched"):
            name = "%s-%d" % (kind, mib)
            lines += interleaved(Bench(lab, name, kind, mib), args.rounds, channels)
    return lines


def part_vmm(_lab, args, _channels):
    if not have_kvm():
        raise tap.Skip("/dev/kvm is not there or not ours to use")
    for mib in args.sizes:
        for tracker in ("pagemap", "port"):
            row("vmm %d MiB" % mib, tracker, [idle_vmm(mib, tracker)
                                              for _ in range(args.rounds)])


PARTS = {"line": part_line, "stages": part_stages, "filled": part_filled,
         "filled-huge": part_filled_huge, "untouched": part_untouched, "zero": part_zero,
         "dirty": part_dirty, "sizes": part_sizes, "vmm": part_vmm}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--mib", type=int, default=1024, help="RAM of the guest (1024)")
    parser.add_argument("--rounds", type=int, default=5, help="counted turns of each peer (5)")
    parser.add_argument("--sizes", default="256,1024,4096,8192", help="for the parts by size")
    parser.add_argument("--only", default=",".join(PARTS), help="parts: " + ", ".join(PARTS))
    parser.add_argument("--channels", type=int, help="QEMU's multifd channels (found out)")
    args = parser.parse_args()
    args.only = args.only.split(",")
    args.sizes = [int(s) for s in args.sizes.split(",") if s]
    for name in set(args.only) - set(PARTS):
        parser.error("there is no part '%s'" % name)
    args.binary = os.environ.get("FERRY_QEMU") or other_qemu("11.1")
    return args


def run_part(name, args, channels):
    lab = new_lab(args.binary)
    try:
        return PARTS[name](lab, args, channels) or []
    except tap.Skip as skip:
        print("# %s is left out: %s" % (name, skip), flush=True)
        return []
    finally:
        lab.close()


def main():
    prerequisites()
    args = arguments()
    version = subprocess.run([args.binary, "--version"], stdout=subprocess.PIPE, text=True).stdout
    print("# %s; %d processors, load %.1f" % (version.split("\n")[0], os.cpu_count(),
                                              os.getloadavg()[0]))
    channels, last = args.channels, []
    if channels is None and set(args.only) - {"line", "stages", "vmm"}:
        lab = new_lab(args.binary)
        try:
            channels = best_channels(Bench(lab, "channels", "filled", min(args.mib, 1024)))
        finally:
            lab.close()
    print("# ferry with 2 channels, QEMU with %s, %d MiB of RAM, %d turns"
          % ("%d multifd channels" % channels if channels else "no multifd", args.mib,
             args.rounds))
    print("%-16s %-11s %-19s %-19s %-22s %-10s%s" % (
        "RAM", "peer", "GiB/s", "CPU s/GiB", "downtime ms", "sent MiB", "guest's work"))
    for name in args.only:
        last += run_part(name, args, channels)
    for text in last:
        print(text)


def as_program(bench):
    """Whatever becomes of it, what it started is ended; what is missing here is said."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # and clean up on the way
    try:
        bench()
    except tap.Skip as skip:
        print("SKIP: %s" % skip)
        sys.exit(2)
    finally:
        Lab.close_all()


if __name__ == "__main__":
    as_program(main)
