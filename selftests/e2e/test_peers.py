#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Peers that do not follow the wire (Documentation/wire.rst), against real agents.

The first half plays the source to a `ferry recv` whose QEMU waits for a guest; the
second half plays the destination to a `ferry send` of a running guest. Whatever is
said, the agent ends with the text that names it, the guest runs at the source, and
nothing is left behind in either QEMU.
"""
import os
import socket
import struct
import sys
import threading
import time

import tap
from lib import Lab, check, check_equal, check_result, prerequisites, wait_until
from tap import Failed, test

MAIN, MULTIFD, RECOVER = 1, 2, 3
OK, VERSION, BUSY, UUID, EPOCH, CHANNEL = range(6)
(CONFIG, BLOCKS, READY, FLUSH, FLUSHED, HASHES, VERIFIED, PACKAGE, PING, PONG, RUN, RUNNING,
 REFUSED, ACK, ABORT, ASK, ANSWER, GUEST) = range(1, 19)
LOADED = 1  # the PING that asks for it
HELLO = struct.Struct("<4sHHQ16sIBBHHHI16x")
FRAME = struct.Struct("<HHI")
PACKET = struct.Struct("<4sHHIIQ8x")
EXTENT = struct.Struct("<HBBIQII")
NORMAL, ZERO, SYNC = 0, 1, 1
MIB = 1 << 20
RAM_MIB, RAM_PAGES = 96, 96 * 256
UNSEEN = b"\x1b[2J"  # must not reach a terminal


def hello(kind=MAIN, version=1, role=1, uuid=b"u" * 16, epoch=1, channel=0, channels=1,
          status=0):
    return HELLO.pack(b"FRRY", version, version, 0, uuid, epoch, role, kind, channel, channels,
                      status, 4096)


def frame(kind, body=b"", flags=0, length=None):
    return FRAME.pack(kind, flags, len(body) if length is None else length) + body


def u32(number):
    return struct.pack("<I", number)


def config(flags=0):
    return frame(CONFIG, struct.pack("<IIQ", flags, 0, RAM_MIB * MIB))


def blocks(name="ram0", size=RAM_MIB * MIB, page=4096):
    return frame(BLOCKS, struct.pack("<IIQIHH", 1, 0, size, page, len(name), 0) + name.encode())


def extent(block=0, kind=NORMAL, pages=1, first=0, data=None, codec=0):
    return EXTENT.pack(block, kind, codec, pages, first,
                       (pages * 4096 if kind == NORMAL else 0) if data is None else data, 0)


def packet(*extents, data=None, flags=0, round=1, sequence=0, magic=b"FRMP"):
    size = sum(EXTENT.unpack(e)[5] for e in extents) if data is None else data
    return PACKET.pack(magic, flags, len(extents), round, size, sequence) + b"".join(extents) \
        + b"D" * min(size, 8 * MIB)


def sync(round=1, sequence=0):
    return packet(flags=SYNC, round=round, sequence=sequence)


class Line:
    """One connection, every read with a deadline."""

    def __init__(self, sock):
        self.socket = sock
        sock.settimeout(10)

    @classmethod
    def to(cls, path):
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(path)
        return cls(sock)

    def say(self, *parts):
        try:
            self.socket.sendall(b"".join(parts))
        except (BrokenPipeError, ConnectionResetError):
            pass  # it has heard enough; what it says of that is checked
        return self

    def read(self, size):
        data = b""
        while len(data) < size:
            try:
                more = self.socket.recv(size - len(data))
            except ConnectionResetError:
                more = b""
            if not more:
                raise EOFError("closed after %d of %d bytes" % (len(data), size))
            data += more
        return data

    def hello(self):
        fields = HELLO.unpack(self.read(HELLO.size))
        return dict(zip(("magic", "version", "min_version", "features", "uuid", "epoch", "role",
                         "kind", "channel", "channels", "status", "page_size"), fields))

    def frame(self):
        kind, _flags, length = FRAME.unpack(self.read(FRAME.size))
        return kind, self.read(length)

    def expect(self, wanted):
        """The next frame but PING and PONG, of this type; its body."""
        while True:
            kind, body = self.frame()
            if kind == wanted:
                return body
            check(kind in (PING, PONG), "the peer sent frame %d, wanted %d", kind, wanted)

    def ended(self):
        """It is closed without another byte."""
        try:
            data = self.socket.recv(1)
        except ConnectionResetError:
            data = b""
        check_equal(data, b"", "what comes after the end")

    def close(self):
        self.socket.close()


# ---------------------------------------------------------------- playing the source

class Receiver:
    """A ferry recv, and connections to it."""

    def __init__(self, lab, target, timeout=5):
        self.path = os.path.join(lab.dir, "recv.sock")
        self.target = target
        self.recv = lab.recv(target, "unix:" + self.path, "--timeout", timeout)
        self.lines = []

    def connect(self, **fields):
        line = Line.to(self.path)
        self.lines.append(line)
        return line.say(hello(**fields))

    def status(self, **fields):
        line = self.connect(**fields)
        answer = line.hello()
        check_equal((answer["magic"], answer["role"], answer["version"]), (b"FRRY", 2, 1),
                    "the answer to HELLO")
        return line, answer["status"]

    def main(self, ready=False, channels=0):
        """An accepted main channel, told all it needs to be READY, with data channels."""
        line, status = self.status(channels=max(1, channels))
        check_equal(status, OK, "the status of a first MAIN")
        if ready:
            line.say(config(), blocks())
            line.expect(READY)
        for number in range(channels):
            data, status = self.status(kind=MULTIFD, channel=number, channels=channels)
            check_equal(status, OK, "the status of channel %d" % number)
        return line

    def finish(self, error, seconds=10):
        """It gives up with this text (a prefix, if it ends in *), and leaves nothing."""
        self.recv.finish(seconds)
        self.recv.check_code(1)
        result = check_result(self.recv.result, "failed", state="failed", guest="source")
        if error.endswith("*"):
            check(result["error"].startswith(error[:-1]), "the error is %r, wanted %r",
                  result["error"], error)
        else:
            check_equal(result["error"], error, "the error")
        for line in self.lines:
            line.close()
        check_equal(self.target.status(), "inmigrate", "the destination's state")
        self.target.check_clean()
        check_equal(self.target.ram_blocks(), 0, "blocks left in the destination's RAM")
        check("\x1b" not in self.recv.stderr, "an escape sequence reached the terminal")


SAME = ": start both VMMs with the same memory objects and ids"
RELEASE = "; install the same release of ferry on both hosts"
LENGTH = ", which is not a length it can have"
# name: what is said after a good HELLO, and what recv says of it
FRAMES = {
    "unknown type": (frame(99), "the other side sent a frame of unknown type 99" + RELEASE),
    "unknown flag": (frame(CONFIG, bytes(16), flags=2),
                     "the other side sent a frame CONFIG (type 1) with unknown flags 0x2"),
    "long optional": (frame(99, flags=1, length=MIB + 1),
                      "the other side sent a frame unknown (type 99) of 1048577 bytes" + LENGTH),
    "long CONFIG": (frame(CONFIG, bytes(17)),
                    "the other side sent a frame CONFIG (type 1) of 17 bytes" + LENGTH),
    "huge PACKAGE": (frame(PACKAGE, length=64 * MIB + 1),
                     "the other side sent a frame PACKAGE (type 8) of 67108865 bytes" + LENGTH),
    "endless ABORT": (frame(ABORT, length=0xffffffff),
                      "the other side sent a frame ABORT (type 15) of 4294967295 bytes" + LENGTH),
    "bad CONFIG": (frame(CONFIG, b"\xff" * 16), "the source sent a bad or second CONFIG"),
    "second CONFIG": (config() + config(), "the source sent a bad or second CONFIG"),
    "BLOCKS first": (blocks(), "the source sent BLOCKS out of order"),
    "empty BLOCKS": (config() + frame(BLOCKS, bytes(25)), "the source sent a bad block table"),
    "unknown block": (config() + blocks("pc.rom"), "the source has a memory block 'pc.rom' "
                      "(100663296 bytes) that this guest has not" + SAME),
    "another size": (config() + blocks(size=MIB), "memory block 'ram0' has 1048576 bytes of "
                     "4096-byte pages at the source, 100663296 bytes of 4096-byte pages here: "
                     "start both VMMs with the same memory"),
    "another kind": (config() + frame(GUEST, b"port:x/1") + blocks(), "the guest is in a VMM of "
                     "kind 'x/1' (port:) at the source, and waited for by a QEMU (qmp:) here: a "
                     "guest moves only between VMMs of the same kind"),
    "bad GUEST": (config() + frame(GUEST, UNSEEN), "the source sent a bad GUEST, or out of order"),
    "early GUEST": (frame(GUEST, b"qmp"), "the source sent a bad GUEST, or out of order"),
    "second GUEST": (config() + 2 * frame(GUEST, b"qmp"), "the source sent a bad GUEST, or out of "
                     "order"),
    "early FLUSH": (config() + frame(FLUSH, u32(1)), "the source sent FLUSH out of order"),
    "early HASHES": (config(1) + frame(HASHES, bytes(16)), "the source sent HASHES out of order"),
    "early PACKAGE": (config() + frame(PACKAGE, b"x"), "the source sent PACKAGE out of order"),
    "early PING": (frame(PING, u32(LOADED)), "the source sent PING out of order"),
    "unknown PING": (frame(PING, u32(7)), "the source sent an unknown PING"),
    "early RUN": (frame(RUN, bytes(4)), "the source sent RUN in phase open"),
    "early ASK": (frame(ASK), "the source sent ASK in phase open"),
    "early ACK": (frame(ACK, bytes(72)), "the source sent ACK in phase open"),
    "READY from the wrong side": (frame(READY), "the source sent READY in phase open"),
    "ABORT with a text": (frame(ABORT, b"disk" + UNSEEN), "the source gave up: disk?[2J"),
    "ABORT without": (frame(ABORT), "the source gave up: "),
}


@test()
def frames_of_a_bad_source(lab):
    """Each ends the migration with its own text; the same QEMU serves for the next."""
    target = lab.qemu("vm2", incoming=True)
    for name, (said, error) in FRAMES.items():
        receiver = Receiver(lab, target)
        receiver.main().say(said)
        try:
            receiver.finish(error)
        except Failed as problem:
            raise Failed("%s: %s" % (name, problem))


@test()
def a_frame_cut_off(lab):
    target = lab.qemu("vm2", incoming=True)
    for said in (b"", frame(CONFIG, bytes(16))[:5], config() + frame(PACKAGE, b"x", length=9)):
        receiver = Receiver(lab, target)
        receiver.main().say(said).close()
        receiver.finish("the link to the source is lost")


@test()
def a_source_that_says_nothing(lab):
    target = lab.qemu("vm2", incoming=True)
    receiver = Receiver(lab, target, timeout=1)
    receiver.main()
    receiver.finish("no word from the source for 1 s")
    # Or stops in the middle of a frame.
    receiver = Receiver(lab, target, timeout=1)
    receiver.main().say(frame(CONFIG, bytes(8), length=16))
    receiver.finish("the link to the source is lost")


@test()
def an_optional_frame_is_skipped(lab):
    target = lab.qemu("vm2", incoming=True)
    receiver = Receiver(lab, target)
    line = receiver.main()
    line.say(frame(99, b"news" * 5000, flags=1), config(), blocks())
    line.expect(READY)
    line.say(frame(77, flags=1), frame(PING, u32(0)))
    check_equal(line.frame(), (PONG, u32(0)), "the answer to PING")
    line.say(frame(ABORT, b"enough"))
    receiver.finish("the source gave up: enough")


# name: packets on the one data channel; the FLUSH after them brings the verdict
PACKETS = {
    "garbage": b"GET / HTTP/1.1\r\n" * 4,
    "wrong magic": packet(extent(), magic=b"FRRY"),
    "unknown flag": packet(extent(), flags=2),
    "no extents": PACKET.pack(b"FRMP", 0, 0, 1, 0, 0),
    "too many extents": PACKET.pack(b"FRMP", 0, 513, 1, 0, 0),
    "too much data": packet(extent(pages=256), extent(first=256), data=MIB + 4096),
    "data that is not there": packet(extent(), data=8192),
    "an extent of no pages": packet(extent(pages=0, data=4096)),
    "a codec nobody knows": packet(extent(codec=1)),
    "a zero extent with data": packet(extent(kind=ZERO, data=4096)),
    "no such block": packet(extent(block=1)),
    "a page past the end": packet(extent(first=RAM_PAGES)),
    "pages up to past the end": packet(extent(first=RAM_PAGES - 1, pages=2)),
    "a page number that wraps": packet(extent(kind=ZERO, first=2 ** 64 - 1, pages=2)),
    "overlap": packet(extent(pages=3, first=10), extent(first=12)),
    "overlap of kinds": packet(extent(first=7), extent(kind=ZERO, first=0, pages=100)),
    "SYNC with extents": PACKET.pack(b"FRMP", SYNC, 1, 1, 0, 0) + extent(kind=ZERO),
    "a later round": packet(extent(), round=2),
    "a sequence number left out": packet(extent(), sequence=1),
}


@test(timeout=60)
def packets_of_a_bad_source(lab):
    """Nothing of a bad packet is written: the RAM stays empty."""
    target = lab.qemu("vm2", incoming=True)
    for name, said in PACKETS.items():
        receiver = Receiver(lab, target)
        line = receiver.main(ready=True, channels=1)
        receiver.lines[-1].say(said)
        line.say(frame(FLUSH, u32(1)))
        try:
            receiver.finish("multifd channel 0: *")
        except Failed as problem:
            raise Failed("%s: %s" % (name, problem))


@test()
def barriers_out_of_order(lab):
    """After a good round: the same one again, one far ahead, PACKAGE without any."""
    target = lab.qemu("vm2", incoming=True)
    for said, error in (
            (frame(FLUSH, u32(1)), "the source sent FLUSH out of order"),
            (frame(FLUSH, u32(0xffffffff)), "the source sent FLUSH out of order"),
            (frame(FLUSH, u32(0)), "the source sent FLUSH out of order"),
            (blocks(), "the source sent BLOCKS out of order"),
            (frame(PACKAGE, b"x") * 2, "the source sent PACKAGE out of order"),
            (frame(PING, u32(LOADED)), "the source sent PING out of order"),
            (frame(HASHES, bytes(16)), "the source sent HASHES out of order")):
        receiver = Receiver(lab, target)
        line = receiver.main(ready=True, channels=2)
        for data in receiver.lines[1:]:
            data.say(sync())
        line.say(frame(FLUSH, u32(1)))
        check_equal(line.expect(FLUSHED), u32(1), "the round that was flushed")
        line.say(said)
        receiver.finish(error)
    receiver = Receiver(lab, target)
    receiver.main(ready=True, channels=1).say(frame(PACKAGE, b"x"))
    receiver.finish("the source sent PACKAGE out of order")


@test()
def a_data_channel_that_ends(lab):
    target = lab.qemu("vm2", incoming=True)
    receiver = Receiver(lab, target)
    line = receiver.main(ready=True, channels=2)
    receiver.lines[1].say(packet(extent())[:500]).close()
    line.say(frame(FLUSH, u32(1)))
    receiver.finish("multifd channel 0: *")


@test()
def device_state_that_is_none(lab):
    """It fails in QEMU; that one has begun to load, so its process is not used again."""
    target = lab.qemu("vm2", incoming=True)
    receiver = Receiver(lab, target)
    line = receiver.main(ready=True, channels=1)
    receiver.lines[-1].say(sync())
    line.say(frame(FLUSH, u32(1)), frame(PACKAGE, b"no device state" * 100),
             frame(PING, u32(LOADED)))
    line.expect(FLUSHED)
    kind, text = line.frame()
    check_equal(kind, ABORT, "the frame after a load that failed")
    receiver.recv.finish().check_code(1)
    result = check_result(receiver.recv.result, "failed", state="failed", guest="source")
    check(text and result["error"] == text.decode(), "ABORT says %r, the result %r", text,
          result["error"])
    check(target.status() in ("gone", "inmigrate"), "the destination is %s", target.status())


@test()
def who_comes_in(lab):
    """Answers to HELLO; none of these connections ends the migration."""
    target = lab.qemu("vm2", incoming=True)
    receiver = Receiver(lab, target)
    garbage = Line.to(receiver.path).say(b"GET / HTTP/1.1\r\n" * 4)
    garbage.ended()
    for fields in ({"role": 2}, {"channels": 65}, {"kind": 5}, {"kind": MULTIFD, "channel": 1}):
        try:
            receiver.connect(**fields).ended()
        except Failed as problem:
            raise Failed("HELLO with %r: %s" % (fields, problem))
    for wanted, fields in ((VERSION, {"version": 2}), (UUID, {"kind": MULTIFD}),
                           (UUID, {"kind": RECOVER}), (CHANNEL, {"channels": 0}),
                           (CHANNEL, {"epoch": 0})):
        line, status = receiver.status(**fields)
        check_equal(status, wanted, "the status of HELLO with %r" % fields)
        line.ended()
    main = receiver.main()
    early, status = receiver.status(kind=MULTIFD)
    check_equal(status, CHANNEL, "the status of a channel before READY")
    main.say(config(), blocks())
    main.expect(READY)
    for wanted, fields in ((BUSY, {}), (BUSY, {"uuid": b"v" * 16}),
                           (UUID, {"kind": MULTIFD, "uuid": b"v" * 16}),
                           (EPOCH, {"kind": MULTIFD, "epoch": 2}),
                           (CHANNEL, {"kind": MULTIFD, "channel": 1, "channels": 2}),
                           (UUID, {"kind": RECOVER, "uuid": b"v" * 16, "epoch": 9}),
                           (EPOCH, {"kind": RECOVER, "epoch": 1})):
        line, status = receiver.status(**fields)
        check_equal(status, wanted, "the status of HELLO with %r" % fields)
        line.ended()
    # After all of them the main channel still works.
    main.say(frame(PING, u32(0)))
    check_equal(main.frame(), (PONG, u32(0)), "the answer to PING")
    main.say(frame(ABORT, b"enough"))
    receiver.finish("the source gave up: enough")


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


# ---------------------------------------------------------------- playing the destination

class Destination:
    """Listens as a destination does. The main channel is played by a function given to run()."""

    def __init__(self, lab, status=OK, version=1, first=None):
        self.path = os.path.join(lab.dir, "dest-%d.sock" % len(lab.ferries))
        self.status, self.version, self.first = status, version, first
        self.mute_channels = False
        self.problem, self.aborts, self.lines = None, [], []
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(self.path)
        self.listener.listen(64)
        self.listener.settimeout(10)
        lab.on_close(self.close)

    def run(self, play):
        self.play = play
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def close(self):
        self.listener.close()
        for line in self.lines:
            line.close()

    def _accept(self):
        while True:
            try:
                line = Line(self.listener.accept()[0])
            except OSError:
                return
            self.lines.append(line)
            threading.Thread(target=self._serve, args=(line,), daemon=True).start()

    def _serve(self, line):
        try:
            said = line.hello()
            if self.first is not None:
                line.say(self.first)
                return
            if said["kind"] == MULTIFD and self.mute_channels:
                return
            line.say(hello(kind=said["kind"], version=self.version, role=2, uuid=said["uuid"],
                           epoch=said["epoch"], channel=said["channel"], status=self.status))
            if self.status != OK or self.version != 1:
                line.close()
            elif said["kind"] == MAIN:
                self.play(self, line)
            elif said["kind"] == MULTIFD:
                while line.read(65536):
                    pass
            else:
                self.again(line)
        except (EOFError, OSError):
            pass
        except Exception as problem:  # a check that failed in this thread
            self.problem = problem

    def again(self, line):
        """A main channel for the second time: hears why, and closes."""
        self.aborts.append(line.expect(ABORT))
        line.close()


def until_ready(line):
    line.expect(CONFIG)
    line.expect(BLOCKS)
    line.say(frame(READY))


def until_loaded(line):
    """Play along until PING(loaded)."""
    until_ready(line)
    while True:
        kind, body = line.frame()
        if kind == FLUSH:
            line.say(frame(FLUSHED, body))
        elif kind == PING and body == u32(LOADED):
            return
        elif kind == PING:
            line.say(frame(PONG, body))


def refused_by(lab, guest, destination, error, *options):
    """The migration fails with this text (or one of them); the guest runs at the source."""
    uri = "unix:" + destination.path
    send = lab.send(guest.qemu, uri, "--timeout", 1, *options)
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


if __name__ == "__main__":
    sys.exit(tap.main(Lab, prerequisites))
