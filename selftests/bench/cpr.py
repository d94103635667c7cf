#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""The pause of a guest that gets another VMM on the same host.

    make bench-cpr
    selftests/bench/cpr.py [--rounds N] [--sizes MIB,...]

Rows are RAM sizes: nothing is copied, so the pause must not grow with them. Peers, in turns, of
the same idle guest: `ferry cpr` between two QEMUs (the newest there is) and between two
ferry-vmm, a local precopy by ferry between two QEMUs, and QEMU's own cpr-transfer.

ferry's pause is what it reports, from asking for the stop to the answer that the guest runs.
cpr-transfer's is from QEMU's STOP event until the new QEMU first answers that it runs, which
includes that QEMU's start: it waits for the guest before it makes its devices.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from precopy import (MIB, SHM, Machine, as_program, by_ferry, new_lab, other_qemu,  # noqa: E402
                     prerequisites, spread)
from lib import Qmp, QmpError, wait_until  # noqa: E402
from vmm import VmmLab, have_kvm  # noqa: E402
import tap  # noqa: E402


class Peer:
    """Pauses in ms by RAM size."""

    def __init__(self, name):
        self.name, self.pauses = name, {}

    def add(self, mib, pause_ms):
        self.pauses.setdefault(mib, []).append(pause_ms)


def machine(lab, path, mib, waits=False):
    new = Machine.__new__(Machine)
    new.process = None
    lab.qemus.append(new)
    new.__init__(lab, "m%d" % len(lab.qemus), path, mib, waits)
    new.ram_files = []  # the file stays for the next one
    return new


def by_cpr(lab, source, heir):
    cpr = lab.cpr(source, heir).finish(40).check_code(0)
    return cpr.result["downtime_ns"] / 1e6


# ---------------------------------------------------------------- QEMU's own

def start_plain(lab, path, mib, extra):
    """A QEMU as Machine's, with what cpr-transfer needs; does not wait for its monitor."""
    folder = tempfile.mkdtemp(dir=lab.dir)
    monitor = os.path.join(folder, "monitor.qmp")
    command = [lab.binary, "-nodefaults", "-no-user-config", "-display", "none", "-smp", "1",
               "-m", "%dM" % mib, "-accel", "tcg", "-machine",
               "q35,memory-backend=ram0,aux-ram-share=on", "-object",
               "memory-backend-file,id=ram0,size=%dM,share=on,mem-path=%s" % (mib, path),
               "-qmp", "unix:%s,server=on,wait=off" % monitor] + extra
    with open(os.path.join(folder, "stderr"), "w") as stderr:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=stderr, stderr=stderr)
    lab.on_close(lambda: (process.kill(), process.wait()))
    return process, monitor, folder


def cpr_transfer(lab, path, mib):
    old, monitor, folder = start_plain(lab, path, mib, [])
    source = Qmp(monitor)
    time.sleep(0.5)  # until the firmware has found nothing to boot
    channels = [{"channel-type": "main", "addr": {"transport": "socket", "type": "unix",
                                                  "path": folder + "/main.sock"}},
                {"channel-type": "cpr", "addr": {"transport": "socket", "type": "unix",
                                                 "path": folder + "/cpr.sock"}}]
    new, monitor, _ = start_plain(lab, path, mib, [
        "-incoming", json.dumps(channels[0]), "-incoming", json.dumps(channels[1])])
    wait_until(lambda: os.path.exists(folder + "/cpr.sock"), 10, "the new QEMU listens")
    time.sleep(0.1)
    source.command("migrate-set-parameters", mode="cpr-transfer")
    source.command("migrate", channels=channels)
    target, running = None, None
    end = time.time() + 20
    while running is None and time.time() < end:
        try:
            target = target or Qmp(monitor)
            if target.command("query-status")["status"] == "running":
                running = time.time()
        except (QmpError, OSError):
            target = None
    source.command("query-status")
    stop = [e["timestamp"] for e in source.events if e["event"] == "STOP"][-1]
    for process in (old, new):
        process.kill()
        process.wait()
    if running is None:
        raise tap.Failed("QEMU's cpr-transfer does not end: %s" % source.events)
    return (running - stop["seconds"] - stop["microseconds"] / 1e6) * 1e3


# ---------------------------------------------------------------- all of it

def bench_qemu(lab, mib, rounds, peers):
    path = os.path.join(SHM, "ferry-bench-%d-cpr" % os.getpid())
    lab.on_close(lambda: os.path.exists(path) and os.unlink(path))
    with open(path, "wb") as file:
        file.truncate(mib * MIB)
    guest = machine(lab, path, mib)
    time.sleep(1)
    for number in range(rounds + 1):
        heir = machine(lab, path, mib, waits=True)
        pause = by_cpr(lab, guest, heir)
        guest = heir
        if number:
            peers["cpr"].add(mib, pause)
        other = path + "-target"
        with open(other, "wb") as file:
            file.truncate(mib * MIB)
        target = machine(lab, other, mib, waits=True)
        pause = by_ferry(lab, guest, target).downtime_ms
        target.kill()
        os.unlink(other)
        guest.monitor.command("cont")
        if number:
            peers["precopy"].add(mib, pause)
    guest.kill()
    os.unlink(path)
    for _ in range(min(rounds, 3) if "own" in peers else 0):
        with open(path, "wb") as file:
            file.truncate(mib * MIB)
        peers["own"].add(mib, cpr_transfer(lab, path, mib))
    if os.path.exists(path):
        os.unlink(path)


def bench_vmm(mib, rounds, peer):
    lab = VmmLab("bench")
    try:
        lab.runtime = tempfile.mkdtemp(dir=SHM, prefix="ferry-bench-")
        lab.on_close(lambda: subprocess.run(["rm", "-rf", lab.runtime]))
        lab.shape = ("--ram", "%dM" % mib, "--vcpus", "1")
        lab.work = ("--working-set", "1M", "--dirty-rate", "100")
        guest = lab.guest()
        for number in range(rounds + 1):
            heir = lab.vmm("new-%d" % number, "--engine", lab.engine, *lab.shape, "--adopt",
                           incoming=True).started()
            pause = by_cpr(lab, guest.qemu, heir)
            guest.moved(heir)
            if number:
                peer.add(mib, pause)
    finally:
        lab.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=7, help="counted turns of each peer (7)")
    parser.add_argument("--sizes", default="256,1024,4096,16384", help="of RAM, in MiB")
    parser.add_argument("--no-qemu-cpr", action="store_true", help="leave out QEMU's own")
    args = parser.parse_args()
    sizes = [int(s) for s in args.sizes.split(",")]
    prerequisites()
    binary = os.environ.get("FERRY_QEMU") or other_qemu("11.1")
    version = subprocess.run([binary, "--version"], stdout=subprocess.PIPE, text=True).stdout
    print("# %s; %d processors, load %.1f" % (version.split("\n")[0], os.cpu_count(),
                                              os.getloadavg()[0]))
    peers = {"cpr": Peer("ferry cpr, QEMU"), "precopy": Peer("ferry precopy, QEMU"),
             "own": Peer("QEMU cpr-transfer"), "vmm": Peer("ferry cpr, ferry-vmm")}
    if args.no_qemu_cpr:
        del peers["own"]
    print("%-22s %10s  %s" % ("peer", "RAM MiB", "pause ms"))
    for mib in sizes:
        lab = new_lab(binary)
        try:
            bench_qemu(lab, mib, args.rounds, peers)
        finally:
            lab.close()
        if have_kvm():
            bench_vmm(mib, args.rounds, peers["vmm"])
        for peer in peers.values():
            if mib in peer.pauses:
                print("%-22s %10d  %s" % (peer.name, mib, spread(peer.pauses[mib])), flush=True)
    ours, vmm = peers["cpr"].pauses, peers["vmm"].pauses
    for mib in sizes:
        print("ratio pause-%d: %s" % (mib, spread([a / b for a, b in
                                                   zip(peers["precopy"].pauses[mib], ours[mib])], 1)))
    if "own" in peers:
        for mib in sizes:
            print("ratio qemu-cpr-%d: %s" % (mib, spread(
                [a / b for a, b in zip(peers["own"].pauses[mib], ours[mib])], 1)))
    for name, pauses in (("flat-qemu", ours), ("flat-vmm", vmm)):
        if sizes[-1] in pauses:
            small = statistics.median(pauses[sizes[0]])
            print("ratio %s: %s" % (name, spread([p / small for p in pauses[sizes[-1]]])))


if __name__ == "__main__":
    as_program(main)
