#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Sources that do not follow the wire (Documentation/wire.rst), against real agents.

They talk to a `ferry recv` whose QEMU waits for a guest. Whatever is said, it ends with the
text that names it, and nothing is left behind in that QEMU.
"""
import sys

import tap
from lib import Lab, check, check_equal, check_result, prerequisites
from peer import (ABORT, ACK, ASK, BLOCKS, BUSY, CHANNEL, CONFIG, EPOCH, FLUSH, FLUSHED, GUEST,
                  HASHES, LENGTH, LOADED, MIB, MULTIFD, PACKAGE, PACKET, PING, PONG, RAM_PAGES,
                  READY, RECOVER, RELEASE, RUN, SYNC, UNSEEN, UUID, VERSION, ZERO, Line, Receiver,
                  blocks, config, extent, frame, packet, sync, u32)
from tap import Failed, test

SAME = ": start both VMMs with the same memory objects and ids"
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


if __name__ == "__main__":
    sys.exit(tap.main(Lab, prerequisites))
