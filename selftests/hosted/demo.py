#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""What demo.sh runs inside its virtual machine: a migration by the kernel module's tracker.

Lines that begin with "DEMO " are for the person who watches.
"""
import os
import platform
import subprocess
import sys
import threading
import time

from inside import FERRY_MODULE, SEND, load, start, trackers, unload, viewed
from lib import FERRY, Lab, check, check_completed, check_equal, check_result, wait_until
from tap import Failed


def say(text):
    print("DEMO " + text, flush=True)


class Events:
    """`ferry monitor`; what it prints is shown when it happens."""

    def __init__(self, lab):
        self.lines = []
        self.process = subprocess.Popen([FERRY, "monitor"], stdout=subprocess.PIPE, text=True,
                                        stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        lab.on_close(self.end)
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        for line in self.process.stdout:
            say("| " + line.rstrip())
            self.lines.append(line)

    def saw(self, word):
        return sum(1 for line in self.lines if " %s " % word in line)

    def end(self):
        self.process.kill()
        self.process.wait()


def migrate(lab, source, target):
    recv = lab.recv(target)
    say("$ ferry send %s %s --tracker kmod --verify" % (source.uri, recv.listening))
    send = lab.send(source, recv.listening, "--pause-before-switchover", "--tracker", "kmod", *SEND)
    send.wait_state("pre-switchover", 40)
    check(viewed(source), "the source's RAM is no tracked view: %s", source._ram_mappings())
    say("its RAM is a tracked view now, put in place while it ran; it goes on:")
    source.check_works()
    lab.run("continue", source.id).check_code(0)
    check_completed(send, recv)
    for ferry in (send, recv):
        check_result(ferry.result, verified=True, guest="destination", tracker="kmod")
    return send.result


def show():
    lab = Lab("demo")
    load(FERRY_MODULE)
    say("$ insmod ferry.ko    (Linux %s; /dev/ferry is there)" % platform.release())
    events = Events(lab)
    source = start(lab, "vm1")
    say("a guest reads a slow disk by direct I/O into its RAM, in QEMU %d" % source.pid)
    target = start(lab, "vm2", incoming=True)
    say("$ ferry monitor      (what it says of the module's trackers is behind the bars)")
    result = migrate(lab, source, target)
    target.check_works()
    target.check_clean()
    wait_until(lambda: not source.alive(), 5, "the source has quit")
    wait_until(lambda: events.saw("created") and events.saw("destroyed") >= events.saw("created"),
               5, "ferry monitor has told of each tracker")
    check_equal(trackers(), 0, "trackers that exist")
    say("completed: tracker=%s verified=%s, %d rounds, %d pages sent, %d of them on suspicion"
        % (result["tracker"], str(result["verified"]).lower(), result["rounds"],
           result["normal_pages"] + result["zero_pages"], result.get("suspect_copied", 0)))
    Lab.close_all()
    unload()
    say("$ rmmod ferry        (nothing holds it)")


def main():
    began = time.monotonic()
    try:
        show()
    except Failed as error:
        say("FAILED: %s" % error)
        return 1
    finally:
        Lab.close_all()
    say("SHOWN in %.0f s" % (time.monotonic() - began))
    return 0


if __name__ == "__main__":
    sys.exit(main())
