#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""The commands as people and scripts type them: streams, limits, full disks, odd moments, words."""
import json
import os
import resource
import signal
import subprocess
import sys

import tap
from lib import FERRY, check, check_equal, check_result, wait_until
from tap import Skip, test
from vmm import VmmLab, prerequisites


class CommandLab(VmmLab):
    shape = ("--ram", "8M", "--vcpus", "1")
    work = ("--working-set", "1M", "--dirty-rate", "200")

    def path(self, name="snap"):
        return os.path.join(self.dir, name)

    def shell(self, line, **variables):
        """A line for the shell, in which ferry is "$FERRY"."""
        environ = dict(os.environ, FERRY=FERRY, FERRY_RUNTIME_DIR=self.runtime, **variables)
        return subprocess.run(["sh", "-c", line], env=environ, cwd=self.dir, text=True,
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, timeout=60 * tap.SLOW)

    def status(self, name):
        return json.loads(self.run("status", name, "--json").check_code(0).raw[-1])


@test(timeout=30, cases={"stdout": (">&-",), "stderr": ("2>&-",)})
def closed_streams(lab, closed):
    """What is printed goes nowhere, and above all not into a file of ferry's own."""
    guest = lab.guest()
    run = lab.shell('"$FERRY" save %s %s %s' % (guest.qemu.uri, lab.path(), closed),
                    FERRY_DEBUG="1")
    check_equal(run.returncode, 0, "the exit status (%s)" % run.stderr)
    lab.run("inspect", lab.path()).check_code(0)
    locks = [n for n in os.listdir(lab.runtime) if n.endswith(".lock")]
    check_equal(locks, [guest.qemu.id + ".lock"], "the locks")
    check_equal(os.path.getsize(os.path.join(lab.runtime, locks[0])), 0, "the lock file's size")
    guest.check_good()


@test(timeout=30)
def file_size_limit(lab):
    """ulimit -f: an error that says so, a guest that goes on, and a record that is true."""
    guest = lab.guest()
    run = lab.shell('ulimit -f 16; exec "$FERRY" save %s %s' % (guest.qemu.uri, lab.path()))
    check_equal(run.returncode, 1, "the exit status (%s)" % run.stderr)
    check("File too large" in run.stderr, "the message: %s", run.stderr)
    check(not os.path.exists(lab.path()), "a file was made")
    status = lab.status(guest.qemu.id)
    check_equal((status["state"], status["settled"], status["guest"]), ("failed", True, "source"),
                "its record")
    guest.check_good()
    guest.qemu.check_clean()


if __name__ == "__main__":
    sys.exit(tap.main(CommandLab, prerequisites))
