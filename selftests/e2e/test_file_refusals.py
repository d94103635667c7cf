#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""What `ferry save` and `restore` refuse: places, files and VMMs; and that nothing comes of it."""
import os
import subprocess
import sys

import tap
import vmm
from lib import check, check_equal, prerequisites
from snapshot import FileLab, restored, restored_vmm, saved
from tap import test


def refused(lab, guest, ferry, *words):
    """It failed for this reason, and the guest did not notice."""
    ferry.finish().check_code(1)
    for word in words:
        check(word in ferry.result["error"], "'%s' is not in: %s", word, ferry.result["error"])
    check_equal(ferry.result["event"], "failed", "the event")
    guest.check_good()


@test(timeout=60)
def cannot_be_written(lab):
    guest = lab.guest()
    with open(lab.path("precious"), "w") as file:
        file.write("not to be lost")
    refused(lab, guest, lab.save(guest, path=lab.path("precious")), "no snapshot", "not replaced")
    check_equal(open(lab.path("precious")).read(), "not to be lost", "the other file")
    refused(lab, guest, lab.save(guest, path=lab.dir), "is a folder")
    refused(lab, guest, lab.save(guest, path=lab.path("no/such")), "folder", "No such file")
    small = lab.path("small")
    os.mkdir(small)
    lab.mount("tmpfs", small, "size=2m")
    refused(lab, guest, lab.save(guest, path=small + "/snap"), "No space left", "make room")
    check_equal(os.listdir(small), [], "what is left on the full disk")
    subprocess.run(["mount", "-o", "remount,ro", small], check=True)
    refused(lab, guest, lab.save(guest, path=small + "/snap"), "Read-only", "choose a folder")
    refused(lab, guest, lab.ferry("save", guest.qemu.uri, lab.path(), fault="file-write:fail"),
            "Input/output error", lab.path())
    check(not os.path.exists(lab.path()), "a file was made")


def damage(lab, offset, data=None, name="bad"):
    """A copy of the file with other bytes there, or cut off there."""
    path = lab.path(name)
    subprocess.run(["cp", "--sparse=always", lab.path(), path], check=True)
    with open(path, "r+b") as file:
        if data is None:
            file.truncate(offset)
        else:
            file.seek(offset)
            file.write(data)
    return path


@test(timeout=60)
def bad_files(lab):
    """Refused by name, and the VMM waits on with empty memory for a good one."""
    guest = lab.guest()
    saved(lab.save(guest), guest)
    target = lab.destination()
    with open(lab.path(), "rb") as file:
        pages = os.lseek(file.fileno(), 1 << 20, os.SEEK_DATA)
    with open(lab.path("text"), "w") as file:
        file.write("some text\n" * 2000)
    size = os.path.getsize(lab.path())
    cases = {"No such file": lambda: lab.path("none"),
             "is no snapshot": lambda: lab.path("text"),
             "newer": lambda: damage(lab, 10, b"\2"),
             "never finished": lambda: damage(lab, 4096, bytes(4096)),
             "checksum of the header": lambda: damage(lab, 500, b"x"),
             "checksum of the commit record": lambda: damage(lab, 4200, b"x"),
             "name of a block": lambda: damage(lab, 8192, b"\0"),
             "header, block table, bitmaps": lambda: damage(lab, 8192, b"x"),
             "cut short": lambda: damage(lab, size - 1),
             "checksum of the pages": lambda: damage(lab, pages + 100, b"damage"),
             "checksum of the device state": lambda: damage(lab, size - 5, b"12345")}
    for words, make in cases.items():
        path = make()
        restore = lab.restore(target, path=path).finish().check_code(1)
        check(words in restore.result["error"], "'%s' is not in: %s", words,
              restore.result["error"])
        check_equal(restore.result["guest"], "none", "the result's guest")
        check(target.alive() and target.status() != "running", "the VMM is %s", target.status())
        check_equal(target.allocated(), 0, "memory that is left after: " + words)
        inspect = lab.run("inspect", path).check_code(1)
        check(words in inspect.stderr, "inspect: %s", inspect.stderr)
        # What is known of it is told all the same, and never as if all were well.
        check("all hold" not in inspect.stdout, "inspect: %s", inspect.stdout)
        told = {"never finished": "NOT usable", "checksum of the pages": "could NOT all be found"}
        check(told.get(words, "") in inspect.stdout, "inspect: %s", inspect.stdout)
    guest.qemu.kill()
    restored(lab.restore(target), guest, target)
    restored_vmm(guest, target)


@test(timeout=60)
def wrong_vmm(lab):
    """A VMM that the guest does not fit is refused before anything is changed there."""
    guest = lab.guest()
    saved(lab.save(guest), guest)
    other = "threads" if lab.engine == "kvm" else "kvm"
    wrong = {"another size": ("--engine", lab.engine, "--ram", "32M,9M,28K,5124K"),
             "has none of that name": ("--engine", lab.engine, "--ram", "24M,9M,28K"),
             "a memory block 'ram4'": ("--engine", lab.engine, "--ram", "24M,9M,28K,5124K,8K"),
             "same kind": ("--engine", other, "--ram", vmm.RAM)}
    if not vmm.have_kvm():
        wrong.pop("same kind")
    for number, (words, args) in enumerate(wrong.items()):
        target = lab.vmm("wrong%d" % number, *args, "--vcpus", "2", incoming=True).started()
        restore = lab.restore(target).finish().check_code(1)
        check(words in restore.result["error"], "'%s' is not in: %s", words,
              restore.result["error"])
        target.check_clean()
        target.kill()


@test(timeout=20)
def usage(lab):
    """What is typed wrong is said, and nothing is begun."""
    for words, said in ((("save", "port:/x"), "takes GUEST FILE"),
                        (("save", "port:/x", "f", "--record"), "--record goes with --live"),
                        (("save", "port:/x", "f", "--lazy"), "does not know --lazy"),
                        (("restore", "port:/x", "f", "--live"), "does not know --live"),
                        (("restore", "nothing", "f"), "qmp:"),
                        (("save", "port:/x", "x" * 600), "too long"),
                        (("inspect",), "takes FILE")):
        run = lab.run(*words).check_code(2)
        check(said in run.stderr, "'%s' is not in: %s", said, run.stderr)
    run = lab.run("inspect", "/dev/null").check_code(1)
    check("/dev/null is no file" in run.stderr, "inspect: %s", run.stderr)


if __name__ == "__main__":
    sys.exit(tap.main(FileLab, prerequisites))
