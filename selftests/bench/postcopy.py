#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Postcopy against QEMU's own: page faults, the background, and what the guest feels.

faults      a guest that writes all over its memory moves by postcopy. How long its threads
            waited for pages is told by each program's own fault thread; beside it the least
            a fault can take: a round trip of a request and a page on the same line, and one
            UFFDIO_CONTINUE, measured by selftests/bench/roundtrip.c in the same run: with the
            machine to itself ("alone", which "ratio fault-p50" is by), and once a
            millisecond while ferry moves that guest ("beside", "ratio fault-p50-beside"). Also over
            lines with a delay each way, made by a relay (roundtrip delay): this needs no
            netem, which not every kernel has
background  an idle guest with filled RAM: GiB/s from the start to the last page by 1, 2, 4
            channels, QEMU's postcopy, and ferry's precopy
huge        both with all of the RAM in huge pages (hugetlbfs, 2 MiB)
work        the guest's work in the second before, while pages are missing, and after
order       ferry-vmm, two vCPUs, over a line of 128 MiB/s: what the guest waits for by the order in
            which the background goes (user/engine/order.h). Its guest writes one page after the
            other, or at random, or 9 of 10 in a tenth of the pages

Before each move of "faults" and "background" as much memory as it will take is freed, which was
written before, as in bench-precopy: where this machine is a guest itself that gives back free memory to
its host, each new page is a fault there too (15 us instead of 3 on the machine of
performance.rst).
"""
import argparse
import os
import socket
import statistics
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.join(os.path.dirname(HERE), "e2e"), HERE]

import precopy  # noqa: E402
import tap  # noqa: E402
from lib import Lab, QmpError, other_qemu, prerequisites, wait_until  # noqa: E402
from precopy import GIB, MIB, Bench, spread  # noqa: E402
from vmm import VmmLab  # noqa: E402

ROUNDTRIP = os.environ.get("ROUNDTRIP", "build/selftests/bench/roundtrip")
DELAYS_US = (0, 200, 2000)
# A guest that touches pages faster than they come by themselves, over most of its memory.
GUEST = "ferry.mib=160 ferry.dirty=200 ferry.pause_ms=2 ferry.tick_ms=20"
MIB_OF_GUEST = 256


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as one:
        return one.getsockname()[1]


class Tool:
    """A roundtrip that serves."""

    def __init__(self, *args):
        self.process = subprocess.Popen([ROUNDTRIP] + [str(a) for a in args],
                                        stdout=subprocess.PIPE, text=True)
        self.process.stdout.readline()

    def end(self):
        self.process.kill()
        self.process.wait()


def least_ns(delay_us, count=2000):
    """p50 of round trip and of CONTINUE on a line like that."""
    port = there = free_port()
    tools = [Tool("serve", there)]
    if delay_us:
        port = free_port()
        tools.append(Tool("delay", port, there, delay_us))
        count = 400
    try:
        run = subprocess.run([ROUNDTRIP, "ask", str(port), str(count)], stdout=subprocess.PIPE,
                             text=True, check=True)
        trip, _, show = list(map(int, run.stdout.split()))[:3]
        return trip, show
    finally:
        for tool in tools:
            tool.end()


def capabilities(qemu, *names):
    known = [c["capability"] for c in qemu.monitor.command("query-migrate-capabilities")]
    qemu.monitor.command("migrate-set-capabilities", capabilities=[
        {"capability": n, "state": n in names} for n in
        ("postcopy-ram", "postcopy-preempt", "postcopy-blocktime", "multifd", "events")
        if n in known])


class Beside:
    """The same beside a move, once a millisecond: under its load."""

    def __init__(self):
        port = free_port()
        self.tool = Tool("serve", port)
        self.asks = subprocess.Popen([ROUNDTRIP, "beside", str(port), "60000"],
                                     stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def end(self):
        """p50 and p99 of round trip with CONTINUE, in ns."""
        try:
            times = [int(t) for t in self.asks.communicate("", timeout=10)[0].split()]
        finally:
            self.asks.kill()
            self.tool.end()
        return times[0] + times[2], times[1] + times[3]


class Moved:
    """What one move was like; times in seconds but for the faults' ns."""
    p50 = p99 = longest = faults = first = total = beside = None


def relayed(port, delay_us, tools):
    if not delay_us:
        return port
    relay = free_port()
    tools.append(Tool("delay", relay, port, delay_us))
    return relay


def by_ferry(lab, source, target, delay_us, *args):
    tools = []
    try:
        recv = lab.recv(target, "tcp:127.0.0.1:0")
        port = relayed(int(recv.listening.rsplit(":", 1)[1]), delay_us, tools)
        beside = None if delay_us else Beside()
        try:
            send = lab.send(source, "tcp:127.0.0.1:%d" % port, "--postcopy", "now", *args)
            send.finish(60).check_code(0)
            recv.finish().check_code(0)
        finally:
            least = beside and beside.end()
    finally:
        for tool in tools:
            tool.end()
    moved, r = Moved(), recv.result
    moved.beside = least
    moved.p50, moved.p99 = r["fault_p50_ns"], r["fault_p99_ns"]
    moved.longest, moved.faults = r["blocktime_max_ns"], r["faults"]
    moved.first, moved.total = send.result["downtime_ns"] / 1e9, send.result["total_ns"] / 1e9
    return moved


def percentile(buckets, percent):
    """Of QEMU's distribution, whose bucket i counts up to 2^(i+1) us; the upper end, in ns."""
    all_of_them, below = sum(buckets), 0
    for i, count in enumerate(buckets):
        below += count
        if all_of_them and below * 100 >= all_of_them * percent:
            return (2 << i) * 1000
    return 0


def by_qemu(source, target, delay_us, preempt):
    names = ["postcopy-ram", "events"] + (["postcopy-preempt"] if preempt else [])
    capabilities(source, *names)
    capabilities(target, "postcopy-blocktime", *names)
    for qemu in (source, target):
        qemu.monitor.command("migrate-set-parameters", max_bandwidth=0,
                             max_postcopy_bandwidth=0)
    target.monitor.command("migrate-incoming", uri="tcp:127.0.0.1:0")
    port, tools = int(target.monitor.command("query-migrate")["socket-address"][0]["port"]), []
    try:
        port = relayed(port, delay_us, tools)
        # All of it after the guest: the switch is asked for before there was anything to send.
        source.monitor.command("migrate-set-parameters", max_bandwidth=1)
        source.monitor.command("migrate", uri="tcp:127.0.0.1:%d" % port)
        wait_until(lambda: source.monitor.command("query-migrate").get("status") == "active",
                   20, "QEMU migrates")
        began = time.monotonic()
        source.monitor.command("migrate-start-postcopy")
        source.monitor.command("migrate-set-parameters", max_bandwidth=0)

        def ended():
            info = source.monitor.command("query-migrate")
            if info["status"] in ("failed", "cancelled", "postcopy-paused"):
                raise tap.Failed("QEMU's migration: %s" % info)
            return info["status"] == "completed" and info
        info = wait_until(ended, 60, "QEMU completes")
        took = time.monotonic() - began
        there = target.monitor.command("query-migrate")
    finally:
        for tool in tools:
            tool.end()
    moved = Moved()
    dist = there.get("postcopy-latency-dist")
    if dist:
        moved.p50, moved.p99 = percentile(dist, 50), percentile(dist, 99)
        moved.faults = sum(dist)
    moved.mean = there.get("postcopy-latency")
    moved.first, moved.total = info["downtime"] / 1e3, took
    return moved


TRIES = 4


def surely(peer, move, *args):
    """QEMU's own postcopy fails at times (its socket is reset): once more, and that is told."""
    for tries_left in range(TRIES - 1, -1, -1):
        try:
            return move(*args)
        except (tap.Failed, QmpError, OSError) as problem:
            if not tries_left or not peer.startswith("qemu"):
                raise
            print("# %s failed, once more: %s" % (peer, str(problem)[:300]), flush=True)
    return None


# ---------------------------------------------------------------- faults

def have_new_pages(mib):
    """Memory that was in use a moment ago, see on top."""
    precopy.warm(os.path.join(precopy.SHM, "ferry-bench-%d-warm" % os.getpid()), mib).close()


def fault_move(binary, peer, delay_us, memory="shm"):
    """One move of the guest that writes; and its work before, during and after."""
    lab = Lab("faults")
    try:
        if memory == "hugetlb":
            lab.huge_pages(2 * MIB_OF_GUEST)
        lab.runtime = precopy.tempfile.mkdtemp(dir=precopy.SHM, prefix="ferry-bench-")
        lab.on_close(lambda: subprocess.run(["rm", "-rf", lab.runtime]))
        shape = {"mib": MIB_OF_GUEST, "binary": binary, "memory": memory}
        guest = lab.boot(append=GUEST, **shape)
        target = lab.destination(**shape)
        begin = guest.ticks()
        guest.wait_ticks(20)
        ready = guest.ticks()
        have_new_pages(4 * MIB_OF_GUEST)
        leaves = guest.ticks()
        if peer == "ferry":
            moved = by_ferry(lab, guest.qemu, target, delay_us)
        else:
            moved = by_qemu(guest.qemu, target, delay_us, peer == "qemu-preempt")
        guest.moved(target)
        guest.wait_ticks(1)
        there = guest.ticks()
        guest.wait_ticks(20)
        after = guest.ticks()
        usual = pace(begin, ready)
        moved.during, moved.after = pace(leaves, there) / usual, pace(there, after) / usual
        return moved
    finally:
        lab.close()


def pace(a, b):
    return (b.loops - a.loops) / max(1, b.times[-1] - a.times[-1])


def us(values, digits=0):
    values = [v / 1e3 for v in values if v is not None]
    return spread(values, digits) if values else "not told"


def moves_text(of):
    return "%-19s %-19s %-17s %-13s %-20s %-18s %s, %s" % (
        us([m.p50 for m in of]), us([m.p99 for m in of]), us([m.longest for m in of]),
        "%d" % statistics.median([m.faults or 0 for m in of]),
        spread([m.first * 1e3 for m in of], 1), spread([m.total for m in of]),
        spread([m.during for m in of]), spread([m.after for m in of]))


def faults(binary, rounds, delays, peers, last):
    print("%-8s %-13s %-19s %-19s %-17s %-13s %-20s %-18s %s" % (
        "delay us", "peer", "fault p50 us", "fault p99 us", "longest us", "faults",
        "first instr. ms", "all there s", "guest's work during, after"), flush=True)
    for delay_us in delays:
        found, least = {p: [] for p in peers}, []
        for _ in range(rounds):
            for peer in peers:
                found[peer].append(surely(peer, fault_move, binary, peer, delay_us))
            least.append(least_ns(delay_us))
        print("%-8d %-13s %s + CONTINUE %s" % (
            delay_us, "least alone", us([t for t, _ in least]), us([s for _, s in least], 1)))
        beside = [m.beside for m in found["ferry"] if m.beside]
        if beside:
            print("%-8d %-13s %-19s %s" % (delay_us, "least beside", us([b[0] for b in beside]),
                                           us([b[1] for b in beside])))
        for peer in peers:
            of = found[peer]
            print("%-8d %-13s %s" % (delay_us, peer, moves_text(of)), flush=True)
        name = "fault-p50" + ("-%dus" % delay_us if delay_us else "")
        last.append("ratio %s: %s" % (name, spread([m.p50 / (t + s) for m, (t, s) in
                                                    zip(found["ferry"], least)])))
        if beside:
            last.append("ratio fault-p50-beside: %s" % spread([
                m.p50 / m.beside[0] for m in found["ferry"]]))


# ---------------------------------------------------------------- huge pages

def huge(binary, mib, rounds, peers, last):
    """What a fault of 2 MiB costs beside one of 4 KiB; then the background."""
    found = {"%s, %s" % (p, m): [] for p in peers for m in ("shm", "hugetlb")}
    for _ in range(rounds):
        for name, moves in found.items():
            peer, memory = name.split(", ")
            moves.append(surely(peer, fault_move, binary, peer, 0, memory))
    print("%-22s %-19s %-19s %-17s %-13s %-20s %-18s %s" % (
        "guest of", "fault p50 us", "fault p99 us", "longest us", "faults", "first instr. ms",
        "all there s", "guest's work during, after"))
    for name, of in found.items():
        print("%-22s %s" % (name, moves_text(of)), flush=True)
    background(binary, mib, rounds, last, huge=True)


# ---------------------------------------------------------------- background

def background(binary, mib, rounds, last, huge=False):
    name = "huge" if huge else "background"
    lab = precopy.new_lab(binary)
    try:
        if huge:
            lab.huge_pages(2 * mib)
        bench = Bench(lab, name, "filled", mib, lab.huge_folder or precopy.SHM)
        peers = ["precopy", "1", "2", "4", "qemu"]
        speeds = {p: [] for p in peers}
        for _ in range(rounds):
            for peer in peers:
                speeds[peer].append(surely(peer, background_move, bench, peer))
        bench.close()
    finally:
        lab.close()
    print("%-12s %s" % (name, "GiB/s"))
    for peer in peers:
        what = {"precopy": "precopy", "qemu": "qemu"}.get(peer, peer + " ch.")
        print("%-12s %s" % (what, spread(speeds[peer])), flush=True)
    for peer in ("1", "2", "4"):
        last.append("ratio %s-%s: %s" % (name, peer, spread([
            a / b for a, b in zip(speeds[peer], speeds["precopy"])])))
    last.append("ratio %s-qemu: %s" % (name, spread([
        a / b for a, b in zip(speeds["2"], speeds["qemu"])])))


def background_move(bench, peer):
    """GiB/s of one move of all of the RAM. The source is used again: it is kept."""
    path = bench.path + "-target"
    with open(path, "wb") as file:
        file.truncate(bench.mib * MIB)
    target = bench.machine("target%d" % len(bench.lab.qemus), path, incoming=True)
    try:
        have_new_pages(bench.mib)
        if peer == "qemu":
            return bench.mib * MIB / GIB / by_qemu(bench.source, target, 0, False).total
        args = () if peer == "precopy" else ("--postcopy", "now", "--channels", peer)
        recv = bench.lab.recv(target, "tcp:127.0.0.1:0")
        send = bench.lab.send(bench.source, recv.listening, "--keep-source", *args)
        send.finish(60).check_code(0)
        recv.finish().check_code(0)
        return send.result["ram_bytes"] / GIB / (send.result["total_ns"] / 1e9)
    finally:
        target.kill()
        if peer == "qemu":
            bench.source.kill()  # it cannot be made to run again after its own postcopy
            os.path.exists(bench.path) or precopy.fill(bench.path, bench.mib, "filled")
            bench.source = bench.machine("source%d" % len(bench.lab.qemus), bench.path)
            time.sleep(1)
        else:
            bench.source.monitor.command("cont")


# ---------------------------------------------------------------- order

# Pages a second that the guest touches: less than the line brings, or all would come by faults.
ORDER_RATE = 20000
ORDER_PAGES = 64 * 256
ORDERS = ("address", "near", "hot", "both")
PATTERNS = {
    "sequential": ("seq", ("now",)),
    "random": ("random", ("now",)),
    "hot": ("hot", ("now",)),
    "hot-hybrid": ("hot", ("after=1",)),
}


def order_move(order, pattern, postcopy):
    """One move. Seconds that threads waited, how often, until all is there; its work meanwhile."""
    lab = VmmLab("order")
    lab.shape = ("--ram", "192M", "--vcpus", "2")
    lab.work = ("--working-set", "64M", "--fill", "96M", "--pattern", pattern,
                "--dirty-rate", str(ORDER_RATE))
    try:
        guest = lab.guest()
        target = lab.destination()
        # All of it has been written; of the hot guest's cold pages, every tenth write.
        wanted = ORDER_PAGES * (10 if pattern == "hot" else 2)
        wait_until(lambda: guest.qemu.ask()["work"] >= wanted, 60, "its working set is written")
        recv = lab.recv(target)
        # All know what was written last: looking for it is not part of what is compared.
        send = lab.send(guest.qemu, recv.listening, "--tracker", "pagemap", "--postcopy",
                        *postcopy, "--max-bandwidth", "128M",
                        env={"FERRY_POSTCOPY_ORDER": order})
        send.wait_state("postcopy-active", 30)
        begin, began = target.ask()["work"], time.monotonic()
        recv.wait_state("completed", 60)
        work = (target.ask()["work"] - begin) / (time.monotonic() - began)
        send.finish(60).check_code(0)
        recv.finish().check_code(0)
        r = recv.result
        return (r["faults"], r["blocktime_ns"] / 1e9, send.result["total_ns"] / 1e9, work / ORDER_RATE)
    finally:
        lab.close()


def order(rounds, patterns, last):
    print("%-13s %-9s %-20s %-19s %-19s %s" % ("guest writes", "order", "faults", "waited s",
                                                "all there s", "work, of what is usual"))
    for name in patterns:
        pattern, postcopy = PATTERNS[name]
        found = {o: [] for o in ORDERS}
        for _ in range(rounds):
            for one in ORDERS:
                found[one].append(order_move(one, pattern, postcopy))
        for one in ORDERS:
            faults, waited, total, work = zip(*found[one])
            print("%-13s %-9s %-20s %-19s %-19s %s" % (
                name, one, spread(faults, 0), spread(waited), spread(total), spread(work)),
                flush=True)
        for one in ORDERS[1:]:
            last.append("ratio order-%s-%s: %s" % (name, one, spread([
                b[1] / a[1] for a, b in zip(found["address"], found[one]) if a[1]])))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--mib", type=int, default=1024, help="RAM for the background (1024)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each peer (3)")
    parser.add_argument("--only", default="faults,background")
    parser.add_argument("--delays", default=",".join(map(str, DELAYS_US)), help="us each way")
    parser.add_argument("--peers", default="ferry,qemu,qemu-preempt")
    parser.add_argument("--patterns", default=",".join(PATTERNS), help="of the part order")
    args = parser.parse_args()
    prerequisites()
    if not os.access(ROUNDTRIP, os.X_OK):
        raise tap.Skip("%s is not built: make bench-postcopy" % ROUNDTRIP)
    binary, last = os.environ.get("FERRY_QEMU") or other_qemu("11.1"), []
    print("# %d processors, load %.1f" % (os.cpu_count(), os.getloadavg()[0]))
    if "faults" in args.only:
        faults(binary, args.rounds, [int(d) for d in args.delays.split(",")],
               args.peers.split(","), last)
    if "background" in args.only:
        background(binary, args.mib, args.rounds, last)
    if "huge" in args.only:
        huge(binary, args.mib, args.rounds, args.peers.split(","), last)
    if "order" in args.only:
        order(args.rounds, args.patterns.split(","), last)
    for text in last:
        print(text)


if __name__ == "__main__":
    precopy.as_program(main)
