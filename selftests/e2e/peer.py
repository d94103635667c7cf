# SPDX-License-Identifier: GPL-2.0-or-later
"""Either side of the wire (Documentation/wire.rst), spoken by hand to a real agent."""
import os
import socket
import struct
import threading

from lib import check, check_equal, check_result

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
# What errors end with.
RELEASE = "; install the same release of ferry on both hosts"
LENGTH = ", which is not a length it can have"


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
            except TimeoutError:
                continue  # a guest takes its time to boot on a busy machine
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
