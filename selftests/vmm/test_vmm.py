# SPDX-License-Identifier: GPL-2.0-or-later
"""ferry-vmm without ferry: options, work, damaged memory, damaged and hostile states.

States are saved and loaded at the port, as the agent does it."""
import os
import random
import re
import struct
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "e2e"))

import tap  # noqa: E402
import vmm  # noqa: E402
from lib import ORDINARY_UID, SHM, wait_until  # noqa: E402
from tap import Failed, Skip, check, check_equal, test  # noqa: E402
from vmm import Port, VmmLab, have_kvm  # noqa: E402

ENGINES = ("kvm", "threads")
PAGE = 4096


def need(engine):
    if engine == "kvm" and not have_kvm():
        raise Skip("/dev/kvm is not there or not ours to use")


def start(lab, engine, *args, **options):
    need(engine)
    return lab.vmm("vm%d" % len(lab.qemus), "--engine", engine, *args,
                   **dict({"port": False}, **options)).started()


def fails(lab, args, words, code, **options):
    """It ends at once with this exit status, having said these words."""
    run = lab.vmm("wrong%d" % len(lab.qemus), *args, **dict({"port": False}, **options))
    check_equal(run.wait(), code, "the exit status of %s" % (args,))
    check(words in run.stderr, "%s said: %s", args, run.stderr)
    check(code == 0 or not run.events, "%s started: %s", args, run.events)


# ---------------------------------------------------------------- options

@test()
def wrong_options(lab):
    for args, words in (
            (("--vcpus", "0"), "0 is no value for --vcpus"),
            (("--vcpus", "65"), "65 is no value for --vcpus"),
            (("--vcpus", "2x"), "2x is no value for --vcpus"),
            (("--ram", "64M,"), "64M, is no value for --ram"),
            (("--ram", "5K"), "5K is no value for --ram"),
            (("--ram", "0"), "0 is no value for --ram"),
            (("--ram", "-4K"), "-4K is no value for --ram"),
            (("--ram", "99999999999999999999G"), "is no value for --ram"),
            (("--ram", "17179869184G"), "is no value for --ram"),
            (("--ram", "17179869185G"), "is no value for --ram"),  # in 64 bits it would be 1G
            (("--ram", "4M;4M"), "4M;4M is no value for --ram"),
            (("--fill", "4M,4M"), "4M,4M is no value for --fill"),
            (("--ram", ",".join(["4M"] * 9)), "is no value for --ram"),
            (("--working-set", "1"), "1 is no value for --working-set"),
            (("--dirty-rate", "0"), "0 is no value for --dirty-rate"),
            (("--dirty-rate", "fast"), "fast is no value for --dirty-rate"),
            (("--zero-share", "101"), "101 is no value for --zero-share"),
            (("--pattern", "sea"), "sea is no value for --pattern"),
            (("--engine", "tcg"), "tcg is no value for --engine"),
            (("--tracker-log", "yes"), "yes is no value for --tracker-log"),
            (("--unknown",), "unrecognized option '--unknown'"),
            (("--port",), "option '--port' requires an argument"),
            (("64M",), "it takes options only, not 64M"),
            (("--incoming",), "--incoming needs --port PATH"),
            (("--adopt",), "--adopt goes with --incoming"),
            (("--tracker-log", "log", "--engine", "threads"), "--tracker-log needs --engine kvm")):
        fails(lab, args, words, 2)
        check("ferry-vmm --help" in lab.qemus[-1].stderr, "it does not say where to look")


@test()
def what_cannot_be_set_up(lab):
    for args, words in (
            (("--ram", "16M", "--working-set", "16M"), "must fit into --ram"),
            (("--ram", "16M", "--fill", "16M"), "must fit into --ram"),
            (("--vcpus", "2", "--working-set", "4K"), "each vCPU needs a page"),
            (("--ram", "32K,64M"), "first block of --ram is too small: give it"),
            (("--ram-file", "/nowhere/ram"), "cannot make /nowhere/ram of 67108864 bytes: No such"),
            (("--port", "/nowhere/x.port"), "cannot serve --port /nowhere/x.port: No such")):
        fails(lab, ("--engine", "threads") + args, words, 1)
    if os.geteuid() == 0:  # somebody who may not open /dev/kvm
        fails(lab, ("--engine", "kvm"), "--engine threads does without", 1, user=ORDINARY_UID)


@test()
def help_names_every_option(lab):
    import subprocess
    run = subprocess.run([vmm.FERRY_VMM, "--help"], stdout=subprocess.PIPE, text=True)
    check_equal(run.returncode, 0, "exit status")
    page = open(os.path.join(vmm.ROOT, "Documentation", "man", "ferry-vmm.1")).read()
    options = re.findall(r"--[a-z][a-z-]+", run.stdout)
    check(len(options) >= 13, "%d options", len(options))
    for option in set(options) - {"--help"}:
        check(option[2:].replace("-", "\\-") in page, "the man page lacks %s", option)
    described = page[page.index(".SH OPTIONS"):page.index(".SH OUTPUT")].replace("\\-", "-")
    for option in re.findall(r"^\.B\S* (--[a-z-]+)", described, re.M):
        check(option in options, "the man page has %s, which there is not", option)


# ---------------------------------------------------------------- work

@test(timeout=60, cases={"%s-%s" % (e, p): (e, p) for e in ENGINES
                         for p in ("seq", "random", "hot")})
def works_and_finds_nothing_wrong(lab, engine, pattern):
    run = start(lab, engine, "--pattern", pattern, "--vcpus", "3", "--ram", vmm.RAM,
                "--zero-share", "20", "--fill", "4M")
    first = run.ask()
    # Several sweeps of the working set, so that pages are compared with what was written.
    wait_until(lambda: run.ask()["work"] > first["work"] + 50000, 20, "it works")
    check_equal(run.check_ram(), 0, "bad pages")
    check_equal(run.end(), 0, "exit status: %s" % run.stderr)
    end = run.events[-1]
    check_equal((end["event"], end["errors"]), ("end", 0), "the end")
    check(end["work"] > first["work"], "no work was done: %s", end)
    check_equal(run.stderr, "", "what it said")


@test(timeout=60, cases={e: (e,) for e in ENGINES})
def keeps_the_rate(lab, engine):
    """Never more than it was told, however fast the machine is."""
    run = start(lab, engine, "--vcpus", "2", "--dirty-rate", "5000")
    begin = run.ask()
    end = wait_until(lambda: [e for e in [run.ask()] if e["t_ms"] > begin["t_ms"] + 1500], 20, "time")
    most = 5000 * (end[0]["t_ms"] - begin["t_ms"]) / 1000 + 5000  # what it missed is made up for
    done = end[0]["work"] - begin["work"]
    check(0 < done <= most, "%d pages in a time for %d", done, most)


@test(cases={e: (e,) for e in ENGINES})
def untouched_ram_stays_so(lab, engine):
    run = start(lab, engine, "--ram", "8G", "--working-set", "4M", "--fill", "2M")
    wait_until(lambda: run.ask()["work"] > 2000, 20, "it works")
    check_equal(run.check_ram(), 0, "bad pages")
    check(6 << 20 <= run.allocated() <= 7 << 20, "%d bytes are allocated", run.allocated())
    check_equal(run.end(), 0, "exit status")


# ---------------------------------------------------------------- damaged memory

RAM_FILE = "ferry-vmm-test-%d" % os.getpid()


def ram_file(lab):
    path = os.path.join(SHM if os.access(SHM, os.W_OK) else lab.dir, RAM_FILE)

    def remove():
        for name in (path, path + ".1"):
            if os.path.exists(name):
                os.unlink(name)
    remove()
    lab.on_close(remove)
    return path


def flip(path, offset):
    with open(path, "r+b", buffering=0) as file:
        old = os.pread(file.fileno(), 1, offset)[0]
        os.pwrite(file.fileno(), bytes([old ^ 4]), offset)


# One vCPU: the VMM prepares 8 pages, a page table and 4 pages of the vCPU. Then come 16 pages
# of working set, 16 of fill, and all the others.
WORK, FILL, FREE = 13, 13 + 16, 13 + 32
SMALL = ("--ram", "4M,4M", "--working-set", "64K", "--fill", "64K")


@test(cases={"%s-%s" % (e, w): (e, b) for e in ENGINES
             for w, b in (("first", 3), ("last", PAGE - 5))})
def a_flipped_bit_of_the_working_set(lab, engine, byte):
    path = ram_file(lab)
    run = start(lab, engine, "--ram-file", path, *SMALL)
    wait_until(lambda: run.ask()["work"] > 1000, 20, "it works")

    def flipped_and_noticed():  # a flip between a check and the write after it is nobody's loss
        flip(path, (WORK + 7) * PAGE + byte)
        then = run.ask()["work"]
        wait_until(lambda: run.ask()["work"] > then + 1000, 20, "it works on")
        return run.ask()["errors"]
    wait_until(flipped_and_noticed, 20, "the flipped bit is noticed")
    check_equal(run.end(), 1, "exit status")
    check("page 20 is" in run.stderr, "it does not name page 20: %s", run.stderr)


@test(cases={"%s-%s" % (e, w): (e, b) for e in ENGINES
             for w, b in (("fill", FILL * PAGE + 1000), ("untouched", FREE * PAGE + 77),
                          ("second-block", (1 << 22) + 5))})
def a_flipped_bit_elsewhere(lab, engine, byte):
    path = ram_file(lab)
    run = start(lab, engine, "--ram-file", path, *SMALL)
    check_equal(run.check_ram(), 0, "bad pages before")
    flip(path + (".1" if byte >> 22 else ""), byte & 0x3fffff)
    check_equal(run.check_ram(), 1, "bad pages after")
    check_equal(run.end(), 1, "exit status")


@test(cases={e: (e,) for e in ENGINES})
def a_stale_page(lab, engine):
    """What a lost update is: a page as it was some sweeps ago."""
    path = ram_file(lab)
    run = start(lab, engine, "--ram-file", path, "--dirty-rate", "2000", *SMALL)
    wait_until(lambda: run.ask()["work"] > 100, 20, "it works")
    with open(path, "r+b", buffering=0) as file:
        old = os.pread(file.fileno(), PAGE, WORK * PAGE)
        then = run.ask()["work"]
        wait_until(lambda: run.ask()["work"] > then + 100, 20, "some sweeps")
        os.pwrite(file.fileno(), old, WORK * PAGE)
    wait_until(lambda: run.ask()["errors"], 20, "the stale page is noticed")
    check_equal(run.end(), 1, "exit status")


# ---------------------------------------------------------------- states

class Saved:
    """What a paused guest is made of: its device state, its RAM, and how much it did."""

    def __init__(self, run, path):
        port = Port(run.port).pause()
        self.state, self.work = port.save(), run.ask()["work"]
        port.close()
        names = [path] + ([path + ".1"] if os.path.exists(path + ".1") else [])
        self.ram = {name: open(name, "rb").read() for name in names}


def saved(lab, path, engine, *args):
    run = start(lab, engine, "--ram-file", path, *args, port=True)
    wait_until(lambda: run.ask()["work"] > 20000, 20, "it works")
    guest = Saved(run, path)
    check_equal(run.end(), 0, "exit status of a saved one: %s" % run.stderr)
    return guest


def loading(lab, path, guest, state, engine, *args):
    """A ferry-vmm with that RAM, into which @state is loaded, and why that was refused."""
    run = lab.vmm("load%d" % len(lab.qemus), "--engine", engine, "--ram-file", path, *args,
                  incoming=True).started()
    for name, data in guest.ram.items():
        with open(name, "r+b") as file:
            file.write(data)
    port = Port(run.port)
    refusal = port.load(state)
    if not refusal:
        port.run()
    port.close()
    check(not refusal or run.status() == "incoming", "it runs, and said %s", refusal)
    return run, refusal


@test(timeout=60, cases={e: (e,) for e in ENGINES})
def goes_on_where_it_was_saved(lab, engine):
    """Five times over, with all registers live: nobody notices anything."""
    path = ram_file(lab)
    args = ("--ram", "24M,5124K", "--vcpus", "4")
    guest = saved(lab, path, engine, *args)
    for _ in range(5):
        run, refusal = loading(lab, path, guest, guest.state, engine, *args)
        check(not refusal, "it was refused: %s", refusal)
        first = run.ask()["work"]
        check(first >= guest.work, "work went back from %d to %d", guest.work, first)
        wait_until(lambda: run.ask()["work"] > first + 1000, 20, "it works on")
        check_equal(run.check_ram(), 0, "bad pages and registers")
        guest = Saved(run, path)
        check_equal(run.end(), 0, "exit status: %s" % run.stderr)


class State:
    """Where things are in a saved state of one vCPU (user/vmm/state.c)."""

    CPUID, CPUIDS, VCPU = 40, 256, 40 + 40 * 256  # before them realtime_ns at 16, clock_ns, cpuids at 36
    # In struct vcpu_state.
    AT = {"xsave": 0, "sregs": 4096, "xcrs": 4416, "regs": 4808, "debug": 4952, "events": 5080,
          "run state": 5144, "tsc": 5152, "nmsrs": 5160, "msr": 5168}

    def __init__(self, data):
        self.data = bytearray(data)
        check_equal(len(self.data), self.VCPU + 5168 + 16 * 512, "the size of the state")
        self.at = {name: self.VCPU + at for name, at in self.AT.items()}
        count, = struct.unpack_from("<I", self.data, self.at["nmsrs"])
        self.msrs = {struct.unpack_from("<I", self.data, at)[0]: at + 8 for at in
                     range(self.at["msr"], self.at["msr"] + 16 * count, 16)}
        self.tsc = self.at["tsc"]

    def xfeatures(self):
        return struct.unpack_from("<Q", self.data, self.at["xsave"] + 512)[0]

    def xoffset(self, feature):
        """Where a component of the XSAVE area is: CPUID leaf 0xd."""
        for at in range(self.CPUID, self.VCPU, 40):
            function, index, _flags, _eax, ebx = struct.unpack_from("<5I", self.data, at)
            if (function, index) == (0xd, feature):
                return ebx
        raise Skip("this KVM tells no place for it")


def sabotage(state, what):
    """Change one register. Return what ferry-vmm may say of it."""
    flips = {"rbx": ("regs", 8 + 6), "rsp": ("regs", 48 + 6), "rip": ("regs", 128 + 3), "x87": ("xsave", 32),
             "mxcsr": ("xsave", 25), "xmm0": ("xsave", 160), "xmm15": ("xsave", 160 + 255),
             "dr3": ("debug", 25)}
    if what in flips:
        section, offset = flips[what]
        state.data[state.at[section] + offset] ^= 0x40
    elif what in ("fs", "gs"):
        state.data[state.at["sregs"] + {"fs": 3, "gs": 4}[what] * 24 + 1] ^= 0x10
    elif what in ("avx", "opmask", "zmm-high", "zmm16-31"):
        feature = {"avx": 2, "opmask": 5, "zmm-high": 6, "zmm16-31": 7}[what]
        if not state.xfeatures() >> feature & 1:
            raise Skip("no %s state on this machine" % what)
        state.data[state.at["xsave"] + state.xoffset(feature) + 9] ^= 1
    elif what == "kvm-clock":
        if 0x4b564d01 not in state.msrs:
            raise Skip("this KVM has no clock")
        struct.pack_into("<QQ", state.data, 16, int(time.time() * 1e9) * 2, 1)
    else:  # the name of an MSR
        index = {"lstar": 0xc0000082, "kernel-gs-base": 0xc0000102, "sysenter-esp": 0x175}[what]
        state.data[state.msrs[index]] ^= 8


@test(timeout=90, cases={w: (w,) for w in (
    "rbx", "rsp", "rip", "fs", "gs", "x87", "mxcsr", "xmm0", "xmm15", "avx", "opmask", "zmm-high", "zmm16-31",
    "lstar", "kernel-gs-base", "sysenter-esp", "dr3", "kvm-clock")})
def a_sabotaged_register(lab, what):
    """Each class of registers: one changed bit in the state is noticed. A vCPU that is just
    about to load new values anyway notices nothing; then it is saved once more."""
    need("kvm")
    path = ram_file(lab)
    for _ in range(8):
        guest = saved(lab, path, "kvm", *SMALL)
        state = State(guest.state)
        sabotage(state, what)
        run, refusal = loading(lab, path, guest, state.data, "kvm", *SMALL)
        if refusal:
            check(what != "kvm-clock", "no state is refused for its time: %s", refusal)
            check("vCPU 0: KVM" in refusal, "it is refused for another reason: %s", refusal)
            return
        first = run.ask()["work"]
        wait_until(lambda: run.ask()["errors"] or run.ask()["work"] > first + 5000, 20,
                   "it runs or finds an error")
        code = run.end()
        if code == 1:
            check(what != "kvm-clock" or "the first: clock " in run.stderr,
                  "it found something else: %s", run.stderr)
            return
        check_equal(code, 0, "exit status: %s" % run.stderr)
    raise Failed("a changed %s went unnoticed eight times" % what)


def refused(lab, path, guest, data, words, engine, *args):
    run, refusal = loading(lab, path, guest, data, engine, *(SMALL + args))
    check(refusal and words in refusal, "wanted '%s': %s", words, refusal)
    check("ferry-vmm: " + refusal in run.stderr, "wanted '%s': %s", refusal, run.stderr)
    check_equal(run.end(), 0, "exit status of one that never had a guest: %s" % run.stderr)


@test(timeout=60)
def hostile_states(lab):
    need("kvm")
    path = ram_file(lab)
    guest = saved(lab, path, "kvm", *SMALL)
    good = State(guest.state)

    def changed(offset, form, value):
        data = bytearray(good.data)
        struct.pack_into(form, data, offset, value)
        return data
    size, others = "too short or too long", "other MSRs than this host"
    stranger, cpuid = "no device state of this ferry-vmm with 1 vCPUs", "another CPUID"
    for data, words in (
            (b"", stranger), (good.data[:8], stranger), (changed(0, "<B", 1), stranger),
            (changed(7, "<B", ord("2")), stranger),  # the version before this
            (changed(8, "<I", 3), stranger), (changed(12, "<I", 0xffffffff), stranger),
            (changed(36, "<I", 0xffffffff), cpuid), (changed(good.CPUID + 16, "<I", 0x12345678), cpuid),
            (changed(good.VCPU - 4, "<I", 1), cpuid),
            (good.data[:good.VCPU], size), (good.data[:-1], size), (good.data + b"x", size),
            (changed(good.at["xsave"] + 512, "<Q", 1 << 62), "KVM refuses the xsave"),
            (changed(good.at["run state"], "<I", 99), "KVM refuses the run_state"),
            (changed(good.at["regs"] + 136, "<Q", 0), "KVM took the regs in the state and changed"),
            (changed(good.at["nmsrs"], "<I", 0xffffffff), others),
            (changed(good.at["msr"], "<I", 0xdead), others),
            (changed(good.at["msr"] + 4, "<I", 1), others),
            (changed(good.at["run state"] + 4, "<I", 1), others),
            (changed(len(good.data) - 8, "<I", 1), others)):
        refused(lab, path, guest, data, words, "kvm")
    refused(lab, path, guest, good.data, "ferry-vmm with 2 vCPUs: --vcpus", "kvm", "--vcpus", "2")


@test(timeout=120)
def random_states(lab):
    """Any damage is an error or a crash of the guest, never of ferry-vmm."""
    need("kvm")
    path = ram_file(lab)
    guest = saved(lab, path, "kvm", *SMALL)
    chance = random.Random(1)
    outcomes = {0: 0, 1: 0}
    for number in range(200 if os.environ.get("FERRY_TEST_LONG") else 25):
        data = bytearray(guest.state)
        for _ in range(chance.choice((1, 1, 4, 50))):
            at = chance.randrange(State.VCPU, State.VCPU + 6000)
            data[at] = chance.choice((0, 255, data[at] ^ 1 << chance.randrange(8)))
        run, refusal = loading(lab, path, guest, data, "kvm", *SMALL)
        code = run.end()
        check(code in outcomes, "state %d: exit status %d: %s", number, code, run.stderr)
        outcomes[1 if refusal else code] += 1
    check(outcomes[1], "no damage was noticed at all")


@test()
def other_states_of_threads(lab):
    path = ram_file(lab)
    guest = saved(lab, path, "threads", *SMALL)
    good, stranger = guest.state, "no device state of this ferry-vmm with 1 vCPUs"
    for data, words in ((b"", stranger), (good[:15], "too short or too long"),
                        (good + b"x", "too short or too long"), (b"x" + good[1:], stranger),
                        (good[:8] + b"\2" + good[9:], stranger)):
        refused(lab, path, guest, data, words, "threads")


if __name__ == "__main__":
    sys.exit(tap.main(VmmLab, lambda: vmm.prerequisites(ferry=False)))
