#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""What run.sh runs inside its virtual machine, on a Debian 12 kernel."""
import glob
import os
import platform
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(ROOT, "selftests", "e2e"))

import tap
from lib import Lab, check, check_equal, check_result, migrate, prerequisites, read_text
from tap import test

OUT = os.environ.get("O", os.path.join(ROOT, "build"))


def saw(text, *values):
    print("# saw: " + text % values, flush=True)


def run(*command):
    """Run a program, which must succeed and skip nothing; what it printed, told as it comes."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, text=True, errors="replace")
    printed = ""
    for line in process.stdout:
        print("# | " + line, end="", flush=True)
        printed += line
    check(process.wait() == 0, "%s ended with %s", command[0], process.returncode)
    check("SKIP" not in printed, "%s skipped something", command[0])
    return printed


@test()
def this_is_a_stock_kernel(lab):
    """What the tracker depends on is as Debian ships it; nothing was set for it."""
    check(platform.release().startswith("6.1."), "the kernel is %s", platform.release())
    huge = read_text("/sys/kernel/mm/transparent_hugepage/shmem_enabled")
    check("[never]" in huge, "huge pages of shared memory: %s", huge)
    check_equal(len(read_text("/proc/swaps").splitlines()), 1, "lines of /proc/swaps")
    flags = read_text("/proc/cpuinfo").split()
    check("fxsr" in flags and "xsave" not in flags, "the processor has XSAVE: %s", flags)
    saw("kernel %s, no XSAVE", platform.release())


def doctor_says(lab, name):
    text = lab.run("doctor").check_code(0).stdout
    lines = [line.split(None, 2) for line in text.splitlines() if line.startswith(name + " ")]
    check(lines, "doctor says nothing about %s: %s", name, text)
    return lines[0][1:]


@test()
def doctor(lab):
    check_equal(doctor_says(lab, "ptrace")[0], "yes", "ptrace")
    check_equal(doctor_says(lab, "tracker-softdirty")[0], "yes", "softdirty")
    word, why = doctor_says(lab, "tracker-pagemap")
    check_equal(word, "no", "pagemap")
    check("older than 6.7" in why, "pagemap does not work because: %s", why)
    saw("tracker-pagemap %s %s", word, why)


@test(timeout=60)
def migration(lab):
    guest = lab.guest()
    send, recv = migrate(lab, guest, lab.destination(), "--verify")
    for ferry in (send, recv):
        check_result(ferry.result, verified=True, guest="destination")
    check_equal(send.result["tracker"], "softdirty", "the tracker")
    check(send.result["rounds"] > 1, "no round found a changed page: %s", send.result)
    saw("tracker %(tracker)s, %(rounds)d rounds, %(normal_pages)d pages" % send.result)


@test()
def what_does_not_work_here_is_refused(lab):
    """Before anything is disturbed: the destination has not heard of it and can be used."""
    guest, target = lab.guest(), lab.destination()
    recv = lab.recv(target)
    send = lab.send(guest.qemu, recv.listening, "--tracker", "pagemap").finish()
    send.check_code(1)
    check_result(send.result, "failed", guest="source")
    check("older than 6.7" in send.result["error"], "error: %s", send.result["error"])
    guest.check_good()
    guest.qemu.check_clean()
    check_equal(recv.states(), ["setup"], "states of the destination")
    lab.run("cancel", target.id + "-in").check_code(0)
    recv.finish()


@test()
def remote_system_calls_without_xsave(_lab):
    os.environ["CMOCKA_MESSAGE_OUTPUT"] = "TAP"
    names = sorted(glob.glob(os.path.join(ROOT, "selftests", "unit", "test_inject*.c")))
    check(names, "there is no test of remote system calls")
    for name in (os.path.basename(path)[:-len(".c")] for path in names):
        text = run(os.path.join(OUT, "unit", name))
        check("\nok 1 - " in text, "no result: %s", text)
        saw("%s: %d passed", name, sum(line.startswith("ok ") for line in text.splitlines()))


@test(timeout=90)
def demo(_lab):
    text = run(os.path.join(ROOT, "scripts", "demo"), "--without-module")
    line = [line for line in text.splitlines() if "by the tracker" in line]
    check(line and "'softdirty'" in line[0] and platform.release() in line[0],
          "the demo does not say that softdirty was used: %s", text)
    saw("%s", line[0].strip())


if __name__ == "__main__":
    sys.exit(tap.main(Lab, prerequisites))
