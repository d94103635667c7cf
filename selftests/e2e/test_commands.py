#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Who starts a migration first, what it is told meanwhile, and what it prints."""
import json
import os
import re
import sys

import tap
from lib import (Lab, check, check_completed, check_equal, check_result, migrate, prerequisites,
                 wait_until)
from tap import test
from underway import check_stayed, pre_switchover, two_on_loopback

# So slow that 96 MiB take long enough to do something meanwhile.
SLOW = ("--max-bandwidth", "4M")


# ---------------------------------------------------------------- who starts first, ports

@test()
def send_before_recv(lab):
    guest, target = lab.guest(), lab.destination()
    path = os.path.join(lab.dir, "ferry.sock")
    send = lab.send(guest.qemu, "unix:" + path)
    guest.wait_ticks(3)
    check(send.process.poll() is None, "send did not wait for recv: %s", send.stderr)
    recv = lab.recv(target, "unix:" + path)
    check_completed(send, recv)
    guest.moved(target)
    guest.check_good()


@test()
def port_0_prints_the_port(lab):
    guest, target = lab.guest(), lab.destination()
    recv = lab.recv(target, "tcp:127.0.0.1:0")
    match = re.fullmatch(r"tcp:127\.0\.0\.1:(\d+)", recv.listening)
    check(match and int(match.group(1)) > 0, "listening says %r", recv.listening)
    send = lab.send(guest.qemu, recv.listening)
    check_completed(send, recv)
    guest.moved(target)
    guest.check_good()


@test()
def off_loopback_warns(lab):
    recv = lab.recv(lab.destination(), "tcp:0.0.0.0:0")
    wait_until(lambda: "anybody" in recv.stderr, 3, "a warning that anybody may connect")
    lab.run("cancel", lab.qemus[0].id + "-in").check_code(0)
    recv.finish().check_code(1)


@test()
def timeout_without_a_peer(lab):
    guest = lab.guest()
    send = lab.send(guest.qemu, "unix:%s/nobody.sock" % lab.dir, "--timeout", 1)
    send.finish(10).check_code(1)
    check_result(send.result, "failed", guest="source")
    check("nobody.sock" in send.result["error"], "error: %s", send.result["error"])
    guest.check_good()
    guest.qemu.check_clean()


@test(timeout=60)
def two_at_once(lab):
    guests = [lab.guest(), lab.boot("b")]
    targets = [lab.destination("a2"), lab.destination("b2")]
    recvs = [lab.recv(t) for t in targets]
    sends = [lab.send(g.qemu, r.listening) for g, r in zip(guests, recvs)]
    for guest, target, send, recv in zip(guests, targets, sends, recvs):
        check_completed(send, recv)
        guest.moved(target)
    for guest in guests:
        guest.check_good()


# ---------------------------------------------------------------- commands meanwhile

@test()
def pause_before_switchover_and_continue(lab):
    guest = lab.guest()
    target, recv, send = pre_switchover(lab, guest)
    check("device" not in send.states(), "it went on by itself: %s", send.states())
    lab.run("continue", guest.qemu.id).check_code(0)
    check_completed(send, recv)
    guest.moved(target)
    guest.check_good()


@test()
def status_and_list(lab):
    guest = lab.guest()
    target, recv, send = pre_switchover(lab, guest)
    for args in (("status",), ("status", guest.qemu.id), ("list",)):
        text = lab.run(*args, "--json").check_code(0).stdout
        check(guest.qemu.id in text and "pre-switchover" in text, "%s: %s", args, text)
        for line in text.splitlines():
            json.loads(line)
        plain = lab.run(*args).check_code(0).stdout
        check(guest.qemu.id in plain and "pre-switchover" in plain, "%s: %s", args, plain)
    check(target.id + "-in" in lab.run("list").stdout, "list does not name %s", target.id + "-in")
    lab.run("continue", guest.qemu.id).check_code(0)
    check_completed(send, recv)
    guest.moved(target)


def migrate_after_all(lab, guest):
    """What a cancelled migration leaves can be migrated."""
    migrate(lab, guest, lab.destination("again"))


@test()
def cancel_while_active(lab):
    guest = lab.guest()
    target, recv, send = two_on_loopback(lab, guest, SLOW)
    send.wait_state("active")
    lab.run("cancel", guest.qemu.id).check_code(0)
    check_stayed(lab, guest, target, send, recv, event="cancelled")
    check("cancelling" in send.states(), "states: %s", send.states())
    migrate_after_all(lab, guest)


@test()
def cancel_before_switchover(lab):
    guest = lab.guest()
    target, recv, send = pre_switchover(lab, guest)
    lab.run("cancel", guest.qemu.id).check_code(0)
    check_stayed(lab, guest, target, send, recv, event="cancelled")
    migrate_after_all(lab, guest)


@test()
def cancel_at_the_destination(lab):
    guest = lab.guest()
    target, recv, send = pre_switchover(lab, guest)
    lab.run("cancel", target.id + "-in").check_code(0)
    check_stayed(lab, guest, target, send, recv)
    migrate_after_all(lab, guest)


@test()
def sigint_cancels(lab):
    guest = lab.guest()
    target, recv, send = pre_switchover(lab, guest)
    send.process.send_signal(2)
    check_stayed(lab, guest, target, send, recv, event="cancelled")


@test()
def sighup_is_ignored(lab):
    guest = lab.guest()
    target, recv, send = pre_switchover(lab, guest)
    for ferry in (send, recv):
        ferry.process.send_signal(1)
        os.kill(ferry.worker(), 1)
    lab.run("status").check_code(0)
    lab.run("continue", guest.qemu.id).check_code(0)
    check_completed(send, recv)
    guest.moved(target)


@test()
def cancel_after_the_end_is_refused(lab):
    guest = lab.guest()
    name = guest.qemu.name
    migrate(lab, guest, lab.destination())
    check(lab.run("cancel", name).code == 1, "cancel of a completed migration is no error")


@test()
def set_max_bandwidth(lab):
    guest = lab.guest()
    target, recv, send = two_on_loopback(lab, guest, ("--max-bandwidth", "1M"))
    send.wait_state("active")
    guest.wait_ticks(15)
    check("device" not in send.states(), "1 MiB/s was not kept: %s", send.states())
    lab.run("set", guest.qemu.id, "max-bandwidth=1G").check_code(0)
    check_completed(send, recv)
    guest.moved(target)


@test()
def set_refuses_nonsense(lab):
    guest = lab.guest()
    target, recv, send = pre_switchover(lab, guest)
    for word in ("max-bandwidth=fast", "colour=red", "max-bandwidth"):
        run = lab.run("set", guest.qemu.id, word)
        check(run.code in (1, 2) and run.stderr, "set %s: %s %r", word, run.code, run.stderr)
    lab.run("continue", guest.qemu.id).check_code(0)
    check_completed(send, recv)
    guest.moved(target)


# ---------------------------------------------------------------- what is printed

@test()
def result_of_a_good_run(lab):
    send, recv = migrate(lab, lab.guest(), lab.destination(), "--id", "mine")
    check_equal(send.result["id"], "mine", "id")
    check(recv.result["id"].endswith("-in"), "recv's id is %s", recv.result["id"])
    for ferry in (send, recv):
        final = [e for e in ferry.events if e["event"] in ("completed", "failed", "cancelled")]
        check_equal(len(final), 1, "results printed")
        check_equal(ferry.code, 0, "exit")


@test()
def result_of_a_failed_run(lab):
    guest = lab.guest()
    send = lab.send(guest.qemu, "tcp:127.0.0.1:9", "--timeout", 1).finish(10)
    send.check_code(1)
    result = check_result(send.result, "failed", state="failed", guest="source", verified=False)
    check(result["error"] and "9" in result["error"], "error: %r", result["error"])


@test()
def progress_once_a_second(lab):
    guest = lab.guest()
    target, recv, send = two_on_loopback(lab, guest, ("--max-bandwidth", "1M"))
    send.wait_event(lambda e: e["event"] == "progress", 5, "a progress object")
    lab.run("set", guest.qemu.id, "max-bandwidth=1G").check_code(0)
    check_completed(send, recv)
    guest.moved(target)


@test()
def plain_output(lab):
    guest, target = lab.guest(), lab.destination()
    uri = "unix:%s/ferry.sock" % lab.dir
    recv = lab.ferry("recv", target.uri, uri, events=False)
    send = lab.ferry("send", guest.qemu.uri, uri, events=False)
    for ferry in (send, recv):
        ferry.finish().check_code(0)
        text = ferry.stdout + ferry.stderr
        for state in ("setup", "active", "device", "completed"):
            check(state in text, "%s does not say %s: %s", ferry.name, state, text)
        check("{" not in ferry.stdout, "JSON without --json: %s", ferry.stdout)
    guest.moved(target)
    guest.check_good()


@test()
def quiet_output(lab):
    guest, target = lab.guest(), lab.destination()
    uri = "unix:%s/ferry.sock" % lab.dir
    recv = lab.ferry("recv", target.uri, uri, "--quiet", events=False)
    send = lab.ferry("send", guest.qemu.uri, uri, "--quiet", events=False)
    for ferry in (send, recv):
        ferry.finish().check_code(0)
        check_equal(ferry.stdout, "", ferry.name + "'s output")
    guest.moved(target)


if __name__ == "__main__":
    sys.exit(tap.main(Lab, prerequisites))
