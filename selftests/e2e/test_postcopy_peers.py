#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Peers that do not follow the wire in postcopy. See peer.py.

Before COMMIT whatever is said leaves the guest at the source. After it the guest belongs to the
peer, so the source only pauses: it neither resumes nor ends its VMM.
"""
import os
import signal
import struct
import sys
import threading
import time

import tap
from lib import Lab, check, check_equal, prerequisites, wait_until
from peer import (ABORT, ACK, ANSWER, ASK, BLOCKS, CHANNEL, CONFIG, FLUSH, FLUSHED, HELLO, LOADED,
                  MAIN, MULTIFD, OK, PACKAGE, PING, PONG, RAM_PAGES, READY, RECOVER, RUN,
                  Destination, Receiver, blocks, config, extent, frame, packet, sync, u32)
from tap import Failed, test

FAULT = 4
(CANNOT, DISCARD, POSTCOPY, RUNNING_LACKS, PLACED, RECEIVED, RECEIVED_END, REQUEST,
 REQUEST_BLOCK) = range(19, 28)
MAY, WILL = 4, 8  # of CONFIG
FEATURE = 8       # of HELLO


def run(first=0, pages=1, block=0, reserved=0):
    return struct.pack("<QIHH", first, pages, block, reserved)


# ---------------------------------------------------------------- playing the source

class Switching(Receiver):
    def flushed(self, flags=MAY | WILL, fault=False):
        """A main channel at the end of its first round, where DISCARD may come."""
        line, status = self.status()
        check_equal(status, OK, "the status of a first MAIN")
        line.say(config(flags), blocks())
        line.expect(READY)
        data, status = self.status(kind=MULTIFD)
        check_equal(status, OK, "the status of the data channel")
        data.say(sync())
        line.say(frame(FLUSH, u32(1)))
        line.expect(FLUSHED)
        if fault:
            self.line, status = self.status(kind=FAULT)
            check_equal(status, OK, "the status of the fault channel")
        return line


# name: flags of CONFIG, with a fault channel, what is said after the first round, and the error
ORDER = {
    "DISCARD unasked": (0, False, frame(DISCARD, run()),
                        "the source sent DISCARD in incoming state none"),
    "POSTCOPY unasked": (0, False, frame(POSTCOPY),
                         "the source sent POSTCOPY in incoming state none"),
    "POSTCOPY without a channel": (12, False, frame(POSTCOPY),
                                   "the source sent POSTCOPY without a fault channel"),
    "PACKAGE after DISCARD": (12, True, frame(DISCARD, run()) + frame(PACKAGE, b"x"),
                              "the source sent PACKAGE out of order"),
    "DISCARD after PACKAGE": (12, True, frame(PACKAGE, b"x") + frame(DISCARD, run()),
                              "the source sent DISCARD out of order"),
    "POSTCOPY after PACKAGE": (12, True, frame(PACKAGE, b"x") + frame(POSTCOPY),
                               "the source sent POSTCOPY out of order"),
    "POSTCOPY twice": (12, True, frame(DISCARD, run()) + 2 * frame(POSTCOPY),
                       "the source sent POSTCOPY in incoming state listening"),
    "DISCARD after POSTCOPY": (12, True, frame(DISCARD, run()) + frame(POSTCOPY) +
                               frame(DISCARD, run()),
                               "the source sent DISCARD in incoming state listening"),
    "a run of nothing": (12, True, frame(DISCARD, run(pages=0)),
                         "the source sent a bad run of pages in DISCARD"),
    "a run past the end": (12, True, frame(DISCARD, run(RAM_PAGES - 1, 2)),
                           "the source sent a bad run of pages in DISCARD"),
    "a run that wraps": (12, True, frame(DISCARD, run(2 ** 64 - 1, 2)),
                         "the source sent a bad run of pages in DISCARD"),
    "a run of no block": (12, True, frame(DISCARD, run(block=1)),
                          "the source sent a bad run of pages in DISCARD"),
    "a reserved field": (12, True, frame(DISCARD, run(reserved=1)),
                         "the source sent a bad run of pages in DISCARD"),
    "half a run": (12, True, frame(DISCARD, run() + b"12345678"),
                   "the other side sent a frame DISCARD (type 20) of 24 bytes, which is not a "
                   "length it can have"),
    "RECEIVED from the wrong side": (12, True, frame(RECEIVED, bytes(24)),
                                     "the source sent RECEIVED in phase open"),
    "REQUEST on the main channel": (12, True, frame(REQUEST, bytes(12)),
                                    "the source sent REQUEST in phase open"),
    "ASK while armed": (12, True, frame(DISCARD, run()) + frame(POSTCOPY) + frame(ASK),
                        "the source sent ASK in phase open"),
}


@test(timeout=60)
def out_of_order(lab):
    """Each frame where it does not belong; the same QEMU serves for the next."""
    target = lab.qemu("vm2", incoming=True)
    for name, (flags, fault, said, error) in ORDER.items():
        receiver = Switching(lab, target)
        receiver.flushed(flags, fault).say(said)
        try:
            receiver.finish(error)
        except Failed as problem:
            raise Failed("%s: %s" % (name, problem))


@test()
def channels_out_of_turn(lab):
    """A fault channel comes beside the pool, once."""
    target = lab.qemu("vm2", incoming=True)
    receiver = Switching(lab, target)
    line, _ = receiver.status()
    check_equal(receiver.status(kind=FAULT)[1], CHANNEL, "a fault channel before READY")
    line.say(config(MAY | WILL), blocks())
    line.expect(READY)
    check_equal(receiver.status(kind=FAULT)[1], CHANNEL, "a fault channel before the others")
    check_equal(receiver.status(kind=MULTIFD)[1], OK, "the data channel")
    check_equal(receiver.status(kind=FAULT)[1], OK, "the fault channel")
    check_equal(receiver.status(kind=FAULT)[1], CHANNEL, "a second fault channel")
    line.say(frame(ABORT, b"enough"))
    receiver.finish("the source gave up: enough")


@test()
def pages_that_nobody_lacks(lab):
    """Once armed, what comes for pages that are there is dropped; bad packets end it."""
    target = lab.qemu("vm2", incoming=True)
    receiver = Switching(lab, target)
    line = receiver.flushed(fault=True)
    line.say(frame(DISCARD, run(5, 2)) + frame(POSTCOPY) + frame(PING, u32(0)))
    check_equal(line.expect(PONG) if False else line.frame(), (PONG, u32(0)), "the answer to PING")
    receiver.line.say(packet(extent(first=100)))  # placed since it was not named
    receiver.line.say(packet(extent(first=5), sequence=1))
    receiver.line.say(packet(extent(first=5), sequence=2))  # twice
    wait_until(lambda: target.ram_blocks() == 8, 5, "one page is there, and no other one")
    receiver.line.say(packet(extent(first=RAM_PAGES), sequence=3))
    line.say(frame(PACKAGE, b"x"), frame(PING, u32(LOADED)))
    receiver.recv.finish(10)
    receiver.recv.check_code(1)
    check_equal(receiver.recv.result["guest"], "source", "where the guest is")
    target.kill()


# ---------------------------------------------------------------- playing the destination

class Taker(Destination):
    """A destination that takes a guest in postcopy: it says RUNNING_LACKS and what a test wants."""

    def __init__(self, lab, on_fault=None, on_recover=None, before_run=False):
        super().__init__(lab)
        self.on_fault, self.on_recover, self.before_run = on_fault, on_recover, before_run
        self.epochs, self.loaded = [], threading.Event()

    def _serve(self, line):
        try:
            said = line.hello()
            self.epochs.append(said["epoch"])
            line.say(HELLO.pack(b"FRRY", 1, 1, FEATURE, said["uuid"], said["epoch"], 2,
                                      said["kind"], said["channel"], said["channels"], OK, 4096))
            {MAIN: self.main, MULTIFD: self.drain, FAULT: self.fault, RECOVER: self.back}[
                said["kind"]](line)
        except (EOFError, OSError):
            pass
        except Exception as problem:
            self.problem = problem

    def main(self, line):
        line.expect(CONFIG)
        line.expect(BLOCKS)
        line.say(frame(READY))
        while True:
            kind, body = line.frame()
            if kind == FLUSH:
                line.say(frame(FLUSHED, body))
            elif kind == PING and body == u32(LOADED):
                self.loaded.set()
                if not self.before_run:
                    line.say(frame(PONG, body))
            elif kind == PING:
                line.say(frame(PONG, body))
            elif kind == RUN:
                line.say(frame(RUNNING_LACKS, bytes(8)))

    def drain(self, line):
        while line.read(4096):
            pass

    def fault(self, line):
        if self.on_fault:
            self.loaded.wait(10)
            line.say(self.on_fault)
        self.drain(line)

    def back(self, line):
        if line.frame()[0] != ASK:
            line.close()  # it was given up before COMMIT
            return
        if self.on_recover:
            line.say(self.on_recover)
        line.expect(ACK)


BAD_REQUESTS = {
    "outside": (frame(REQUEST_BLOCK, run(RAM_PAGES)),
                "the destination asked for pages outside of guest memory"),
    "over the end": (frame(REQUEST_BLOCK, run(RAM_PAGES - 1, 2)),
                     "the destination asked for pages outside of guest memory"),
    "no block": (frame(REQUEST_BLOCK, run(block=9)), "the destination asked for pages outside"),
    "block 9 later": (frame(REQUEST_BLOCK, run()) + frame(REQUEST, run(RAM_PAGES)[:12]),
                      "the destination asked for pages outside of guest memory"),
    "too many": (frame(REQUEST_BLOCK, run(pages=257)), "the destination sent a bad request"),
    "none": (frame(REQUEST_BLOCK, run(pages=0)), "the destination sent a bad request"),
    "another frame": (frame(PLACED), "sent a frame that does not belong there"),
    "garbage": (b"GET / HTTP/1.1\r\n" * 2, "fault channel"),
}


@test(timeout=60)
def bad_requests_before_commit(lab):
    """In postcopy-device the guest stays where it is, whatever is asked for."""
    guest = lab.guest()
    for name, (said, error) in BAD_REQUESTS.items():
        taker = Taker(lab, on_fault=said, before_run=True).run(None)
        send = lab.send(guest.qemu, "unix:" + taker.path, "--timeout", 2, "--postcopy", "now")
        send.finish(20)
        taker.close()
        if taker.problem:
            raise taker.problem
        send.check_code(1)
        check_equal(send.result["guest"], "source", "where the guest is")
        check(error in send.result["error"] or "did not answer" in send.result["error"],
              "%s: the error is %r", name, send.result["error"])
        guest.check_good()
    guest.qemu.check_clean()


def taken(lab, taker, error):
    """After COMMIT: the source pauses, keeps its VMM stopped, and says what came."""
    guest = lab.boot()
    send = lab.send(guest.qemu, "unix:" + taker.path, "--timeout", 3, "--postcopy", "now",
                    "--max-bandwidth", "4M")
    send.wait_state("postcopy-paused")
    wait_until(lambda: ended_by_term(send), 15, "the paused source ends")
    taker.close()
    send.check_code(3)
    check_equal((send.result["state"], send.result["guest"]), ("postcopy-paused", "destination"),
                "how it ended")
    check(error in send.result["error"] or error in send.stderr, "the error is %r, log %s",
          send.result["error"], send.stderr[-800:])
    check(guest.qemu.alive() and not guest.qemu.running(), "the source's VMM is not as it was")


def ended_by_term(ferry):
    if ferry.process.poll() is not None:
        return True
    os.kill(ferry.pid, signal.SIGTERM)
    time.sleep(0.2)
    return False


def received(first=0, block=0, words=1, reserved=0):
    return frame(RECEIVED, struct.pack("<QHHI", first, block, reserved, 0) + bytes(8 * words))


@test(timeout=60, cases={
    "not-told": (frame(ANSWER, u32(4)), "does not tell which pages it has"),
    "another-block": (received(block=3), "bad or unexpected RECEIVED frame"),
    "past-the-end": (received(words=RAM_PAGES // 64 + 1), "bad or unexpected RECEIVED frame"),
    "odd-start": (received(first=1), "bad or unexpected RECEIVED frame"),
    "reserved": (received(reserved=7), "bad or unexpected RECEIVED frame"),
    "after-the-end": (frame(RECEIVED_END, bytes(8)) + received(), "unexpected RECEIVED frame"),
})
def bad_bitmaps(lab, said, error):
    """A recovery with bitmaps that make no sense: the source stays paused."""
    cut = frame(PLACED)  # no place on the fault channel: this connection ends
    taken(lab, Taker(lab, on_fault=cut, on_recover=said).run(None), error)


if __name__ == "__main__":
    sys.exit(tap.main(Lab, prerequisites))
