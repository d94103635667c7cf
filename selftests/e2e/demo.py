#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""The demonstration: move a running guest and prove that nothing was lost.

Started by scripts/demo, which installs and builds first.
"""
import contextlib
import os
import platform
import subprocess
import sys
import time

from lib import (ROOT, Guest, Lab, boot_files, check, check_completed, check_equal, prerequisites,
                 qemu_binary, read_text, wait_until)
from tap import Failed, Skip

APPEND = "ferry.mib=128 ferry.dirty=128 ferry.pause_ms=5"


def say(text=""):
    print(text, flush=True)


def step(number, text):
    say("\n[%d/10] %s" % (number, text))


def proved(text):
    say("      proved: " + text)


def milliseconds(ns):
    return "%.1f ms" % (ns / 1e6)


def show_ticks(guest, more):
    before = guest.ticks().count
    guest.wait_ticks(more, 120)
    with open(guest.qemu.serial, errors="replace") as file:
        lines = [line.strip() for line in file if line.startswith("TICK") and line.endswith("\n")]
    for line in lines[-more:]:
        say("      | " + line)
    return guest.ticks().count - before


def start_guest(lab):
    kernel, _ = boot_files()
    version = subprocess.run([qemu_binary(), "--version"], stdout=subprocess.PIPE,
                             text=True).stdout.splitlines()[0]
    step(1, "A virtual machine is started: Debian kernel %s in\n      %s."
         % (os.path.basename(kernel).replace("vmlinuz-", ""), version))
    say("      Its workload fills 128 MiB with random records, rewrites some of them and checks\n"
        "      all of them, over and over, on 2 CPUs, and counts on its serial line:")
    guest = lab.boot("vm1", append=APPEND, mib=256)
    show_ticks(guest, 4)
    return guest


def migrate(lab, guest):
    step(2, "A second, empty QEMU waits; `ferry recv` listens beside it.")
    target = lab.destination("vm2", mib=256)
    recv = lab.recv(target)
    say("      it listens on " + recv.listening)
    step(3, "`ferry send` moves the running guest there: TCP, 2 channels, RAM compared by hash.")
    say("      $ ferry send %s %s --channels 2 --verify" % (guest.qemu.uri, recv.listening))
    send = lab.send(guest.qemu, recv.listening, "--channels", 2, "--verify")
    check_completed(send, recv, channels=2)
    result = send.result
    say("      states: " + " -> ".join(send.states()))
    say("      %d MiB of RAM, %.1f MiB sent in %d rounds, %.2f s in all; the guest stood still "
        "for %s" % (result["ram_bytes"] >> 20, result["sent_bytes"] / 2 ** 20, result["rounds"],
                    result["total_ns"] / 1e9, milliseconds(result["downtime_ns"])))
    say("      (--verify hashes all RAM of the stopped guest, and that is part of it)")
    say("      changed pages were found by the tracker '%s' (this machine's kernel is %s)"
        % (result["tracker"], platform.release()))
    return target, send, recv


def prove(lab, guest, target, send, recv):
    source = guest.qemu
    step(4, "The guest goes on in the second QEMU:")
    guest.moved(target)
    counted = guest.ticks().count
    show_ticks(guest, 6)
    step(5, "Proofs")
    wait_until(lambda: not source.alive(), 30, "the source QEMU has quit")
    proved("the source is gone: QEMU %d has ended" % source.pid)
    check_equal(target.status(), "running", "the destination's state")
    proved("the destination runs: QEMU %d says so" % target.pid)
    ticks = guest.ticks()
    check(not ticks.problems, "the counter: %s", "; ".join(ticks.problems[:5]))
    check(ticks.count > counted, "the counter stands still")
    proved("the counter went 0..%d over both serial lines without a gap or a repeat"
           % ticks.numbers[-1])
    check_equal(ticks.bad, 0, "failed memory checks")
    proved("the guest checked its memory %d times and found 0 bad records" % ticks.loops)
    for ferry in (send, recv):
        check_equal(ferry.result["verified"], True, "verified by " + ferry.name)
    proved("at the switchover the hashes of all RAM were equal on both sides")
    target.check_clean()
    lab.check_no_ferry()
    proved("nothing of ferry is left in QEMU or on this machine")


def snapshot(lab):
    """Save it, end it as hard as can be, and start it from the file before that is read."""
    path = os.path.join(lab.dir, "vm.snap")
    step(8, "`ferry save` writes another guest to a file; its QEMU is killed; `ferry restore --lazy`\n"
            "      starts it in a new one at once, and reads what it touches first.")
    guest = lab.boot("vm3", append=APPEND, mib=256)
    say("      $ ferry save %s vm.snap --live" % guest.qemu.uri)
    save = lab.ferry("save", guest.qemu.uri, path, "--live").finish().check_code(0)
    say("      %.1f MiB written while it ran; it stood still for %s"
        % (save.result["sent_bytes"] / 2 ** 20, milliseconds(save.result["downtime_ns"])))
    last = guest.ticks().numbers[-1]
    guest.qemu.kill()
    target = lab.destination("vm4", mib=256)
    say("      $ ferry restore %s vm.snap --lazy" % target.uri)
    restore = lab.ferry("restore", target.uri, path, "--lazy").finish().check_code(0)
    say("      it ran after %s; %d times it waited for memory that was still in the file"
        % (milliseconds(restore.result["downtime_ns"]), restore.result["faults"]))
    fresh = Guest(target)
    show_ticks(fresh, 4)
    ticks = fresh.ticks()
    check(0 < ticks.numbers[0] <= last + 1, "it goes on at %d, and was at %d", ticks.numbers[0],
          last)
    check_equal(ticks.bad, 0, "failed memory checks")
    proved("it goes on where it was saved, at %d (when it was killed it was at %d), and finds\n"
           "              its memory as it was: 0 bad records" % (ticks.numbers[0], last))
    target.check_clean()


def prepare_module(lab):
    """Build what the act with the module needs, beside the acts before it."""
    if "--without-module" in sys.argv[1:]:
        return None
    run = subprocess.Popen([os.path.join(ROOT, "selftests", "hosted", "demo.sh"), "--wait"],
                           stdin=subprocess.PIPE, text=True)

    def end():
        with contextlib.suppress(OSError):
            run.stdin.close()   # no word: it ends
        run.wait()
    lab.on_close(end)
    return run


def with_the_module(run):
    """Its own proofs are in selftests/hosted/demo.py."""
    if not run:
        step(9, "NOT SHOWN, as --without-module asks: the same with the kernel module.")
        return
    step(9, "The same in a virtual machine with Debian 12's own kernel, with ferry's module, which\n"
         "      sees every writer of guest RAM. All is emulated, the guest even twice; a minute.")
    with contextlib.suppress(OSError):
        run.stdin.write("go\n")
        run.stdin.close()
    check(run.wait() == 0, "the act with the kernel module failed, as said above; "
          "`scripts/demo --without-module` leaves it out")
    proved("every page was told by the module; no lost write, nothing left in it")


def newer_qemu(lab, guest):
    """The QEMU under the running guest is upgraded, as an operator would after a security fix."""
    source = guest.qemu
    version = source.monitor.greeting["version"]["qemu"]
    wanted = "10.0" if version["major"] < 10 else "11.1"
    # It uses the instruction without asking, and is ended by SIGILL where there is none.
    if " cx16 " not in read_text("/proc/cpuinfo"):
        step(7, "NOT SHOWN, as QEMU %s needs a processor with CMPXCHG16B: a newer QEMU under the\n"
             "      guest." % wanted)
        return
    run = subprocess.run([os.path.join(ROOT, "selftests", "qemu", "qemu.sh"), wanted], text=True,
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    if run.returncode:
        step(7, "NOT SHOWN, as QEMU %s cannot be fetched (%s): a newer QEMU under the guest."
             % (wanted, run.stderr.strip().splitlines()[-1]))
        return
    machine = source.monitor.command("qom-get", path="/machine", property="type")
    heir = lab.heir(source, mib=256, binary=run.stdout.strip(),
                    machine=machine[:-len("-machine")])
    step(7, "The QEMU under the running guest is upgraded: from %d.%d to %s. Both map the same RAM."
         % (version["major"], version["minor"], wanted))
    say("      $ ferry cpr %s --to %s" % (source.uri, heir.uri))
    cpr = lab.cpr(source, heir).finish().check_code(0)
    check_equal(cpr.result["sent_bytes"], 0, "bytes of RAM that were copied")
    guest.moved(heir)
    show_ticks(guest, 4)
    check(not source.alive(), "the old QEMU has not ended")
    ticks = guest.ticks()
    check(not ticks.problems, "the counter: %s", "; ".join(ticks.problems[:5]))
    proved("it runs in QEMU %d.%d now, the old one has ended; nothing was copied, it stood still "
           "for %s" % (heir.monitor.greeting["version"]["qemu"]["major"],
                       heir.monitor.greeting["version"]["qemu"]["minor"],
                       milliseconds(cpr.result["downtime_ns"])))
    proved("the counter went on to %d over all serial lines, 0 bad records" % ticks.numbers[-1])
    heir.check_clean()


def go_back(lab, guest):
    """Act 2: the same guest goes back by postcopy."""
    step(6, "The same guest goes back, this time at once: it runs on over there while its memory\n"
            "      is still here, and what it touches first comes first (postcopy).")
    source, target = guest.qemu, lab.destination("vm1b", mib=256)
    recv = lab.recv(target)
    # At the speed of a slow line, so that there is something to see.
    args = ("--postcopy", "now", "--max-bandwidth", "48M")
    say("      $ ferry send %s %s %s" % (source.uri, recv.listening, " ".join(args)))
    send = lab.send(source, recv.listening, *args)
    check_completed(send, recv)
    result, there = send.result, recv.result
    say("      states: " + " -> ".join(send.states()))
    say("      the guest stood still for %s; then %.2f s passed until all of its memory was there"
        % (milliseconds(result["downtime_ns"]), result["total_ns"] / 1e9))
    say("      %d pages came because it waited for them, half of the waits under %.0f us; %d in the\n"
        "      background" % (there["fault_pages"], there["fault_p50_ns"] / 1e3,
                              there["background_pages"]))
    check(there["faults"] > 0, "the guest waited for nothing: that was no postcopy")
    counted = guest.ticks().count
    guest.moved(target)
    show_ticks(guest, 3)
    wait_until(lambda: not source.alive(), 30, "the QEMU it left has quit")
    ticks = guest.ticks()
    check(not ticks.problems and ticks.count > counted, "the counter: %s", ticks.problems[:5])
    check_equal(ticks.bad, 0, "failed memory checks")
    proved("no page was missing in the end, the counter went 0..%d over three serial lines, and\n"
           "              %d checks of its memory found 0 bad records" % (ticks.numbers[-1],
                                                                    ticks.loops))
    target.check_clean()
    lab.check_no_ferry()


def main():
    start = time.monotonic()
    try:
        prerequisites()
        lab = Lab("demo")
    except Skip as reason:
        print("demo: cannot run here: %s" % reason, file=sys.stderr)
        return 1
    try:
        module = prepare_module(lab)
        guest = start_guest(lab)
        prove(lab, guest, *migrate(lab, guest))
        go_back(lab, guest)
        newer_qemu(lab, guest)
        # It has shown what it had to, and would take the next one's processors.
        guest.qemu.kill()
        snapshot(lab)
        with_the_module(module)
    except Failed as error:
        print("\ndemo: FAILED: %s\n%s" % (error, lab.diagnostics()), file=sys.stderr)
        return 1
    finally:
        Lab.close_all()
    step(10, "Done: all of it holds. %.0f s. `build/ferry --help` explains the commands."
         % (time.monotonic() - start))
    return 0


if __name__ == "__main__":
    sys.exit(main())
