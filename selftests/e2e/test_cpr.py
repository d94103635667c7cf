#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Changing the VMM under a guest."""
import sys

import tap
from lib import Lab, check, check_equal, check_result, prerequisites, wait_until
from tap import test


def hand_over(lab, guest, heir, *args, paused=False):
    """cpr, and everything that always holds after a good one."""
    source = guest.qemu
    cpr = lab.cpr(source, heir, *args).finish().check_code(0)
    result = check_result(cpr.result, state="completed", guest="destination", mode="cpr", error=None)
    check(result["device_bytes"] > 0 and result["sent_bytes"] == 0, "%s", result)
    check_equal(source.alive(), False, "the old VMM lives")
    guest.moved(heir)
    check_equal(heir.running(), not paused, "it runs in the new VMM")
    if not paused:
        guest.check_good()
    heir.check_clean()
    lab.check_no_ferry()
    return cpr


@test()
def moves(lab):
    guest = lab.guest()
    r = hand_over(lab, guest, lab.heir(guest.qemu))
    print(r.stderr)
    print("#", r.result["downtime_ns"] / 1e6, r.result["faults"])
    r = hand_over(lab, guest, lab.heir(guest.qemu))
    print(r.stderr)
    print("#", r.result["downtime_ns"] / 1e6, r.result["faults"])


if __name__ == "__main__":
    sys.exit(tap.main(Lab, prerequisites))
