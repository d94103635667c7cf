# SPDX-License-Identifier: GPL-2.0-or-later
"""Guests that are saved to a file and restored from it, for the tests of that."""
import json
import os
import subprocess

import vmm
from lib import Lab, check, check_equal, check_result, wait_until
from tap import Skip
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
