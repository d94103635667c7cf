#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Destinations that do not follow the wire (Documentation/wire.rst), against real agents.

They are sent a running guest. Whatever they say, `ferry send` ends with the text that names it,
the guest runs at the source, and nothing is left behind in its QEMU. test_peers.py has the
other side; what of that needs a running guest, a crowd at the door, is here.
"""
import os
import sys
import time

import tap
from lib import Lab, check, check_equal, check_result, prerequisites, wait_until
from peer import (ABORT, ACK, ANSWER, BLOCKS, BUSY, CONFIG, LENGTH, LOADED, PONG, RECOVER,
                  REFUSED, RELEASE, RUN, UNSEEN, UUID, VERSION, Destination, Line, frame, hello,
                  u32, until_loaded, until_ready)
from tap import Failed, test

def refused_by(lab, guest, destination, error, *options, fault=None):
    """The migration fails with this text (or one of them); the guest runs at the source."""
    uri = "unix:" + destination.path
    send = lab.send(guest.qemu, uri, "--timeout", 1, *options, fault=fault)
    send.finish(20)
    destination.close()
    if destination.problem:
        raise destination.problem
    send.check_code(1)
    result = check_result(send.result, "failed", state="failed", guest="source")
    errors = [e.replace("URI", uri) for e in ([error] if isinstance(error, str) else error)]
    check(result["error"] in errors, "the error is %r, wanted %s", result["error"], errors)
    check_equal(guest.qemu.status(), "running", "the source's state")
    guest.qemu.check_clean()
    check("\x1b" not in send.stderr, "an escape sequence reached the terminal")
    return send


@test()
def hello_of_a_bad_destination(lab):
    guest = lab.guest()
    no_ferry = "what listens at URI is no ferry of a version this one can talk to"
    for fields, error in (
            ({"status": VERSION}, "URI: no common protocol version, or a needed feature is missing" + RELEASE),
            ({"status": BUSY}, "URI: another migration is being received there"),
            ({"version": 7}, "URI speaks protocol 7 to 7, this ferry 1 to 1"),
            ({"first": b"HTTP/1.1 400 Bad Request\r\n\r\n" * 4}, no_ferry),
            ({"first": b""}, "URI does not answer HELLO within 1 s: is a ferry recv there, and "
                             "free?")):
        destination = Destination(lab, **fields).run(None)
        refused_by(lab, guest, destination, error)
    guest.check_good()


LOST = "the link to the destination is lost: "
SILENT = [LOST + "no word from it for 1 s", "the destination did not answer within 1 s"]


def play_abort(_destination, line):
    line.expect(CONFIG)
    line.say(frame(ABORT, b"no room" + UNSEEN))
    line.close()


def play_garbage(_destination, line):
    until_ready(line)
    line.say(b"GET / HTTP/1.1\r\n" * 4)


def play_wrong_frame(_destination, line):
    until_ready(line)
    line.say(frame(RUN, bytes(4)))


def play_long_frame(_destination, line):
    until_ready(line)
    line.say(frame(REFUSED, length=1025))


def play_bad_answer(_destination, line):
    line.expect(CONFIG)
    line.say(frame(ANSWER, u32(9)))


PLAYS = {
    "ABORT": (play_abort, "the destination gave up: no room?[2J"),
    "garbage": (play_garbage, LOST + "the other side sent a frame unknown (type 17735) with unknown "
                "flags 0x2054"),
    "RUN from the wrong side": (play_wrong_frame, LOST + "it sent a bad or unexpected RUN frame"),
    "a text too long": (play_long_frame, LOST + "the other side sent a frame REFUSED (type 13) of "
                        "1025 bytes" + LENGTH),
    "an answer nobody knows": (play_bad_answer, LOST + "it sent a bad or unexpected ANSWER frame"),
}


@test()
def frames_of_a_bad_destination(lab):
    guest = lab.guest()
    for name, (play, error) in PLAYS.items():
        destination = Destination(lab).run(play)
        try:
            refused_by(lab, guest, destination, error)
        except Failed as problem:
            raise Failed("%s: %s" % (name, problem))
    guest.check_good()


@test()
def a_destination_that_falls_silent(lab):
    """Before READY; then at the HELLO of the data channels."""
    guest = lab.guest()

    def silence(_destination, line):
        line.expect(CONFIG)
        line.expect(BLOCKS)
        time.sleep(5)

    refused_by(lab, guest, Destination(lab).run(silence), SILENT)

    def ready(_destination, line):
        until_ready(line)
        time.sleep(5)

    destination = Destination(lab)
    destination.mute_channels = True
    refused_by(lab, guest, destination.run(ready),
               ["multifd channel 0: URI does not answer HELLO within 1 s: is a ferry recv there, "
                "and free?", SILENT[0]])
    guest.check_good()


@test()
def loaded_and_then_refused(lab):
    """PONG twice, REFUSED as the answer to RUN: the one word after COMMIT that gives it back."""
    guest, acks = lab.guest(), []

    def play(_destination, line):
        until_loaded(line)
        line.say(frame(PONG, u32(LOADED)) * 2)
        line.expect(RUN)
        line.say(frame(REFUSED, b"the image is locked"))
        acks.append(line.expect(ACK))
        line.close()

    send = refused_by(lab, guest, Destination(lab).run(play),
                      "the destination refused: the image is locked")
    check_equal([len(a) for a in acks], [72], "the lengths of ACK")
    check_equal(send.states(), ["setup", "active", "device", "failed"], "the states")
    guest.check_good()


@test()
def refused_before_run(lab):
    """REFUSED right behind PONG: before COMMIT or after it, the guest goes on at the source."""
    guest = lab.guest()

    def play(_destination, line):
        until_loaded(line)
        line.say(frame(PONG, u32(LOADED)) + frame(REFUSED, b"cancelled at the destination"))
        while line.frame()[0] not in (ABORT, ACK):
            pass
        line.close()

    refused_by(lab, guest, Destination(lab).run(play),
               "the destination refused: cancelled at the destination")
    guest.check_good()


@test()
def refused_and_hung_up(lab):
    """The same, and the line is closed before RUN can be said: what was said before counts."""
    guest, acks = lab.guest(), []

    def play(_destination, line):
        until_loaded(line)
        line.say(frame(PONG, u32(LOADED)) + frame(REFUSED, b"cancelled at the destination"))
        line.socket.close()

    def again(line):
        acks.append(line.expect(ACK))
        line.close()

    destination = Destination(lab)
    destination.again = again
    send = refused_by(lab, guest, destination.run(play),
                      "the destination refused: cancelled at the destination",
                      fault="commit:delay=500")
    check_equal(send.states(), ["setup", "active", "device", "failed"], "the states")
    check_equal(len(acks), 1, "how often the destination was told")
    guest.check_good()


@test()
def never_loaded(lab):
    """No PONG: the source gives up, resumes, and tells a destination that may be waiting."""
    guest = lab.guest()

    def play(_destination, line):
        until_loaded(line)
        line.socket.close()

    destination = Destination(lab).run(play)
    refused_by(lab, guest, destination, LOST + "it closed the connection")
    check_equal(len(destination.aborts), 1, "how often the destination was told")
    guest.check_good()


@test()
def silent_after_run(lab):
    """No word after RUN, from nobody ever: a person decides, with the commands it prints."""
    guest = lab.guest()

    def play(destination, line):
        until_loaded(line)
        line.say(frame(PONG, u32(LOADED)))
        line.expect(RUN)
        destination.listener.close()
        os.unlink(destination.path)
        line.close()

    destination = Destination(lab).run(play)
    source = guest.qemu
    send = lab.send(source, "unix:" + destination.path, "--timeout", 1).finish(20)
    send.check_code(3)
    result = check_result(send.result, "failed", state="commit-unknown", guest="unknown")
    check(result["error"], "commit-unknown without a reason")
    check("ferry recover %s" % source.id in send.stderr and
          "ferry resume %s --force-source" % source.id in send.stderr,
          "the advice lacks a command: %s", send.stderr)
    check(source.status() in ("paused", "postmigrate"), "the source is %s", source.status())
    lab.run("resume", source.id).check_code(3)
    check(not source.running(), "the source runs without --force-source")
    lab.run("resume", source.id, "--force-source").check_code(0)
    check_equal(source.status(), "running", "the source's state")
    source.check_clean()
    guest.check_good()


@test(cases={stage: (stage,) for stage in ("loaded", "commit")})
def a_destination_that_changes_its_mind(lab, stage):
    """Cancelled in commit-wait, before or after COMMIT: nobody is needed, whatever gets lost.

    It goes on listening until the source, which is asleep, has said that it knows.
    """
    guest = lab.guest()
    target = lab.destination()
    path = os.path.join(lab.dir, "mind.sock")
    recv = lab.recv(target, "unix:" + path)
    send = lab.send(guest.qemu, recv.listening, fault=stage + ":delay=1500")
    recv.wait_state("commit-wait")
    lab.run("cancel", target.id + "-in").check_code(0)
    recv.wait_state("cancelled")
    line = Line.to(path).say(hello(kind=RECOVER, epoch=9))
    check_equal(line.hello()["status"], UUID, "the status for another migration's source")
    line.close()
    recv.finish(10).check_code(1)
    send.finish(10).check_code(1)
    check_result(recv.result, "cancelled", state="cancelled", guest="source",
                 error="cancelled at the destination")
    check_result(send.result, "failed", state="failed", guest="source")
    check("cancelled at the destination" in send.result["error"], "the error is %r",
          send.result["error"])
    check_equal(guest.qemu.status(), "running", "the source's state")
    guest.qemu.check_clean()
    wait_until(lambda: not target.alive(), 5, "the loaded destination has ended")
    guest.check_good()


@test()
def a_crowd_at_the_door(lab):
    """Forty that say nothing, some half a HELLO: a real source comes in all the same."""
    guest = lab.guest()
    target = lab.destination()
    path = os.path.join(lab.dir, "door.sock")
    recv = lab.recv(target, "unix:" + path)
    crowd = [Line.to(path).say(hello()[:n % 64]) for n in range(40)]
    send = lab.send(guest.qemu, "unix:" + path)
    send.finish().check_code(0)
    recv.finish().check_code(0)
    guest.moved(target)
    guest.check_good()
    for line in crowd:
        line.close()


if __name__ == "__main__":
    sys.exit(tap.main(Lab, prerequisites))
