#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""The commands as people and scripts type them: streams, limits, full disks, odd moments, words."""
import json
import os
import re
import shutil
import signal
import subprocess
import sys

import tap
from lib import (FERRY, ORDINARY_UID, check, check_completed, check_equal, check_result,
                 wait_until)
from tap import Skip, test
from vmm import VmmLab, prerequisites


class CommandLab(VmmLab):
    shape = ("--ram", "8M", "--vcpus", "1")
    work = ("--working-set", "1M", "--dirty-rate", "200", "--fill", "4M")

    def path(self, name="snap"):
        return os.path.join(self.dir, name)

    def shell(self, line, **variables):
        """A line for the shell, in which ferry is "$FERRY"."""
        environ = dict(os.environ, FERRY=FERRY, FERRY_RUNTIME_DIR=self.runtime, **variables)
        return subprocess.run(["sh", "-c", line], env=environ, cwd=self.dir, text=True,
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, timeout=60 * tap.SLOW)

    def save_slowly(self, guest):
        save = self.ferry("save", guest.qemu.uri, self.path(), "--live", "--max-bandwidth", "4K")
        save.wait_state("active")
        return save

    def status(self, name, *args):
        return json.loads(self.run("status", name, "--json", *args).check_code(0).raw[-1])


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
def full_output(lab):
    """An answer that could not be written is none; a migration does not need its output."""
    guest = lab.guest()
    check_equal(lab.shell('"$FERRY" save %s %s --json >/dev/full'
                          % (guest.qemu.uri, lab.path())).returncode, 0, "save")
    for words in ("list", "status " + guest.qemu.id, "inspect " + lab.path(), "doctor"):
        for form in ("", " --json"):
            run = lab.shell('"$FERRY" %s%s >/dev/full' % (words, form))
            check_equal(run.returncode, 1, "the exit status of %s%s" % (words, form))
            check("standard output" in run.stderr, "%s: %s", words, run.stderr)
    check_equal(lab.shell('"$FERRY" doctor | head -c 1').stderr, "", "what is said to a closed pipe")


@test(timeout=30)
def odd_names(lab):
    """Quotes, blanks, a newline, other scripts, and bytes that are no text: JSON all the same."""
    guest = lab.guest()
    for name in ("a b\"'\\\n\u00fc\u4e2d\U0001f6f3".encode(), b"\xff\xc3\xed\xa0\x80"):
        path = os.fsencode(lab.dir) + b"/" + name
        shown = path.decode(errors="replace").replace("\ufffd", "?")
        for words in ((b"save", guest.qemu.uri.encode(), path), (b"inspect", path),
                      (b"status", guest.qemu.id.encode())):
            run = subprocess.run([FERRY.encode(), *words, b"--json"], stdout=subprocess.PIPE,
                                 env=dict(os.environ, FERRY_RUNTIME_DIR=lab.runtime), check=True)
            last = json.loads(run.stdout.splitlines()[-1].decode())
            check(words[0] == b"save" or shown in (last.get("file"), last.get("uri", "")[5:]),
                  "%s of %r: %s", words[0], path, last)


@test(timeout=30)
def file_descriptor_limit(lab):
    """ulimit -n, wherever it hits: what is missing is named, and the VMM waits on as before."""
    target = lab.destination()
    for limit in range(6, 30, 2):
        run = lab.shell('ulimit -n %d; exec "$FERRY" recv %s unix:%s'
                        % (limit, target.uri, lab.path()))
        check_equal(run.returncode, 1, "the exit status (%s)" % run.stderr)
        check(re.search("Too many open files|ulimit -n|no room to keep the descriptor", run.stderr),
              "of %d: %s", limit, run.stderr)
        check("has gone" not in run.stderr, "of %d: %s", limit, run.stderr)
        check_equal(target.status(), "incoming", "the VMM after %d" % limit)
    target.check_clean()


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


def small_folder(lab, kib):
    folder = lab.path("small")
    os.mkdir(folder)
    run = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=%dk" % kib, "none", folder],
                         stderr=subprocess.PIPE, text=True)
    if run.returncode:
        raise Skip("no tmpfs: %s" % run.stderr.strip())
    lab.on_close(lambda: subprocess.run(["umount", "-l", folder], check=True))
    return folder


@test(timeout=60)
def a_process_that_does_not_answer(lab):
    """It is there all the same: status says so, and advises nothing that would be refused."""
    guest = lab.guest()
    save = lab.save_slowly(guest)
    worker = save.worker()
    os.kill(worker, signal.SIGSTOP)
    try:
        status = lab.status(guest.qemu.id, "--timeout", 1)
        check_equal((status["alive"], status["answers"], status.get("advice")), (True, False, None),
                    "status")
        text = lab.run("list", "--timeout", 1).check_code(0).stdout
        check("does not answer" in text, "list: %s", text)
        resume = lab.run("resume", guest.qemu.id).check_code(1)
        check("in use" in resume.stderr and "--id" not in resume.stderr, "resume: %s", resume.stderr)
    finally:
        os.kill(worker, signal.SIGCONT)
    check("answers" not in lab.status(guest.qemu.id), "it does not answer again")
    lab.run("cancel", guest.qemu.id).check_code(0)
    save.finish().check_code(1)
    guest.check_good()


@test(timeout=30)
def nothing_to_do(lab):
    """Of what is over every command says so, whatever is added to it."""
    guest, target = lab.guest(), lab.destination()
    save = lab.ferry("save", guest.qemu.uri, lab.path()).finish().check_code(0)
    restore = lab.ferry("restore", target.uri, lab.path()).finish().check_code(0)
    for name in (guest.qemu.id, target.id + "-in"):
        for words in (["cancel"], ["continue"], ["postcopy"], ["pause"], ["recover"], ["resume"],
                      ["resume", "--force-source"], ["resume", "--force-destination"],
                      ["spill", lab.path("rest")], ["set", "max-bandwidth=1"]):
            run = lab.run(words[0], name, *words[1:]).check_code(1)
            check("%s is over: completed" % name in run.stderr, "%s: %s", words, run.stderr)
            check_equal(run.stdout, "", "what %s prints" % words)
        check_equal(lab.status(name)["state"], "completed", "the state")
    for one in (save, restore):
        record, result = lab.status(one.result["id"]), one.result
        differs = {k: (v, record[k]) for k, v in result.items()
                   if k in record and v != record[k]}
        check_equal(differs, {}, "what the result and the record tell differently")


@test(timeout=30, cases={"resume": ("resume",), "cancel": ("cancel",)})
def no_socket_is_left(lab, command):
    """Of processes that were killed, once a person has said what is to be."""
    target = lab.destination()
    recv = lab.recv(target, fault="commit-wait:delay=9000")
    name = target.id + "-in"
    if command == "cancel":
        guest = lab.guest()
        send = lab.send(guest.qemu, recv.listening, "--timeout", 2)
        wait_until(lambda: lab.status(name)["phase"] == "commit-wait", 15, "it is in commit-wait")
    worker = recv.worker()
    for number in (signal.SIGSTOP, signal.SIGKILL):  # so that neither starts another one
        os.kill(recv.pid, number)
        os.kill(worker, number)
    recv.finish()
    if command == "cancel":
        send.finish().check_code(1)
    check(name + ".sock" in os.listdir(lab.runtime), "there is none before")
    run = lab.run(command, name, "--json").check_code(0)
    if command == "resume":
        check_equal(json.loads(run.stdout), lab.status(name), "what it prints, and status")
    check_equal(sorted(n for n in os.listdir(lab.runtime) if n.startswith(name)),
                [name + ".json", name + ".lock"], "what is left")


@test(timeout=60)
def no_map_of_pages_is_left(lab):
    """All pages had come when both processes were killed: resume ends it, and the source is told."""
    guest, target = lab.guest(), lab.destination()
    recv = lab.recv(target, fault="placed:stop")
    send = lab.send(guest.qemu, recv.listening, "--postcopy", "now")
    worker, name = lab.stopped_worker("the worker stops itself"), target.id + "-in"
    for pid in (recv.pid, worker):
        os.kill(pid, signal.SIGKILL)
    recv.finish()
    lab.run("resume", name).check_code(0)
    check_equal(sorted(n for n in os.listdir(lab.runtime) if n.startswith(name)),
                [name + ".json", name + ".lock"], "what is left")
    again = lab.ferry("recover", name)
    send.finish().check_code(0)
    again.finish().check_code(0)
    guest.moved(target)
    guest.check_good()


@test(timeout=30)
def two_at_once(lab):
    """The second is told which ferry is there, and which VMM says so; the first goes on."""
    guest, target = lab.guest(), lab.destination()
    recv = lab.recv(target)
    send = lab.send(guest.qemu, recv.listening, "--pause-before-switchover")
    send.wait_state("pre-switchover")
    for command, words in (("send", (recv.listening, "--timeout", 2)), ("save", (lab.path(),))):
        second = lab.ferry(command, guest.qemu.uri, *words, "--id", "second").finish().check_code(1)
        said = r"the VMM \(pid %d\) says: another ferry \(pid \d+\) is attached" % guest.qemu.pid
        check(re.search(said, second.stderr), "%s: %s", command, second.stderr)
    for words in (["set", "max-bandwidth=1"], ["postcopy"], ["pause"], ["spill", lab.path("rest")]):
        run = lab.run(words[0], target.id + "-in", *words[1:]).check_code(1)
        check("%s-in is the destination: the source" % target.id in run.stderr, "%s: %s", words,
              run.stderr)
    lab.run("continue", guest.qemu.id).check_code(0)
    check_completed(send, recv)
    guest.moved(target)
    guest.check_good()


@test(timeout=20)
def doctor_of_an_ordinary_user(lab):
    """Who may not look at other processes can move nothing, and is told so first."""
    home = lab.path("home")
    os.mkdir(home)
    os.chown(home, ORDINARY_UID, ORDINARY_UID)
    program = shutil.copy(FERRY, home)
    found = {}
    for user in (0, ORDINARY_UID):
        run = subprocess.run([program, "doctor", "--json"], user=user, group=user, extra_groups=[],
                             env={"FERRY_RUNTIME_DIR": home + "/%d" % user}, stdout=subprocess.PIPE)
        lines = [json.loads(line) for line in run.stdout.splitlines()]
        found[user] = run.returncode, {line["feature"]: line["reason"] for line in lines}
    check_equal((found[0][0], found[0][1]["other-processes"]), (0, None), "what root is told")
    code, reasons = found[ORDINARY_UID]
    check_equal(code, 1, "the exit status for others")
    check("CAP_SYS_PTRACE" in reasons["other-processes"], "the reason: %s", reasons)


@test(timeout=20)
def ids(lab):
    """What cannot be an id is a wrong command line; an unknown one leaves nothing behind."""
    for words in (["cancel"], ["continue"], ["postcopy"], ["pause"], ["recover"], ["resume"],
                  ["status"], ["spill", lab.path("rest")], ["set", "max-bandwidth=1"]):
        for name in ("", "a b", "../x", ".x", "-", "x" * 64, "\u00fc"):
            run = lab.run(words[0], name, *words[1:]).check_code(2)
            check("is no id" in run.stderr, "%s %r: %s", words, name, run.stderr)
        run = lab.run(words[0], "nobody", *words[1:]).check_code(1)
        check("no migration 'nobody' is known here" in run.stderr, "%s: %s", words, run.stderr)
    check_equal(os.listdir(lab.runtime), [], "the folder of records")
    for setting in ("colour=red", "=1", "max-bandwidth=fast", "max-bandwidth=", "downtime-limit=0",
                    "downtime-limit=4294967296", "on-stall=pray", "max-bandwidth"):
        run = lab.run("set", "nobody", setting).check_code(2)
        check("nobody" not in run.stderr and run.stderr, "%s: %s", setting, run.stderr)


@test(timeout=20)
def records_that_are_none(lab):
    """Of a damaged or later one status says so, and the others are listed all the same."""
    guest = lab.guest()
    lab.ferry("save", guest.qemu.uri, lab.path(), "--id", "m").finish().check_code(0)
    good = open(os.path.join(lab.runtime, "m.json")).read()
    check_equal(json.loads(good)["version"], 1, "the version")
    bad = {"empty": "", "cut": good[:100].replace('"m"', '"cut"'), "list": "[]", "noise": "\0\1" * 99,
           "later": good.replace('"version":1', '"version":2').replace('"m"', '"later"')
                        .replace('"version": 1', '"version": 2'),
           "renamed": good}
    for name, text in bad.items():
        with open(os.path.join(lab.runtime, name + ".json"), "w") as file:
            file.write(text)
    os.mkfifo(os.path.join(lab.runtime, "pipe.json"))
    for name in list(bad) + ["pipe"]:
        for command in ("status", "resume", "recover", "cancel"):
            run = lab.run(command, name).check_code(1)
            check(name + ".json cannot be used: it is damaged, or of another version" in run.stderr,
                  "%s %s: %s", command, name, run.stderr)
    run = lab.run("list", "--json").check_code(1)
    check_equal([json.loads(line)["id"] for line in run.raw], ["m"], "what is listed")
    check_equal(run.stderr.count("cannot be used"), len(bad) + 1, "what is said of the others")


STARTS = {"send": ("source", "precopy"), "recv": ("source", "precopy"), "save": ("source", "save"),
          "restore": ("none", "restore"), "cpr": ("source", "cpr")}


def start(lab, command, *args):
    """Of a guest that is not there: what is said of it before that is noticed."""
    words = {"send": ("unix:/nonexistent/x",), "recv": ("unix:" + lab.path("x"),),
             "save": (lab.path(),), "restore": (lab.path(),),
             "cpr": ("--to", "port:" + lab.path("new"))}
    return lab.ferry(command, "port:" + lab.path("vm.port"), *words[command], *args).finish()


@test(timeout=30, cases={name: (name,) + said for name, said in STARTS.items()})
def cannot_begin(lab, command, guest, mode):
    """No place for a record, an id in use, a record that is damaged: exit 1, and a whole result."""
    usual, readonly = lab.runtime, small_folder(lab, 64)
    subprocess.run(["mount", "-o", "remount,ro", readonly], check=True)
    lab.runtime = readonly
    ran = {"Read-only file system": start(lab, command)}
    lab.runtime = os.path.join(usual, "x" * 90)
    os.mkdir(lab.runtime)
    ran["shorter"] = start(lab, command)
    lab.runtime = usual
    with open(os.path.join(usual, "odd.json"), "w") as file:
        file.write("{")
    ran["odd.json cannot be used"] = start(lab, command, "--id", "odd")
    for words, run in ran.items():
        run.check_code(1)
        result = check_result(run.result, "failed", state="failed", guest=guest, mode=mode)
        check(words in result["error"] and words in run.stderr, "no '%s' in: %s", words, run.stderr)
    if guest == "none":
        check("the guest was not started" in run.stderr, "the message: %s", run.stderr)


@test(timeout=30)
def one_disk_for_file_and_record(lab):
    """The file fills the disk of the records: when it has gone they are written after all."""
    folder = small_folder(lab, 64)
    lab.runtime = os.path.join(folder, "run")
    guest = lab.guest()
    save = lab.ferry("save", guest.qemu.uri, os.path.join(folder, "snap")).finish()
    save.check_code(1)
    check_equal(check_result(save.result, "failed")["guest"], "source", "the guest")
    check("No space left" in save.result["error"], "the error: %s", save.result)
    status = lab.status(guest.qemu.id)
    check_equal((status["state"], status["settled"]), ("failed", True), "its record")
    guest.check_good()
    guest.qemu.check_clean()


@test(timeout=30)
def no_room_for_the_record(lab):
    """The guest goes on all the same; later a person is told what is true, and what to type."""
    folder = small_folder(lab, 64)
    lab.runtime = folder
    guest = lab.guest()
    save = lab.save_slowly(guest)
    # By then all that is done to the VMM is noted.
    save.wait_event(lambda e: e.get("event") == "progress", 10, "progress")
    filler = os.path.join(folder, "filler")
    with open(filler, "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass
    lab.run("cancel", guest.qemu.id).check_code(0)
    save.finish().check_code(1)
    check_equal(check_result(save.result, "cancelled")["guest"], "source", "the guest")
    check("ferry resume " + guest.qemu.id in save.stderr, "the advice: %s", save.stderr)
    guest.check_good()
    status = lab.status(guest.qemu.id)
    check_equal((status["state"], status["settled"], status["alive"]), ("active", False, False),
                "the old record")
    os.unlink(filler)
    lab.run("resume", guest.qemu.id).check_code(0)
    check_equal(lab.status(guest.qemu.id)["settled"], True, "the record is settled")
    guest.check_good()
    guest.qemu.check_clean()


if __name__ == "__main__":
    sys.exit(tap.main(CommandLab, prerequisites))
