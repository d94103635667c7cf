#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""A disk whose reads land late: a file that answers each read after a delay.

    slowdisk.py IMAGE MOUNTPOINT DELAY_MS

MOUNTPOINT, an empty file, becomes a read-only view of IMAGE by FUSE. A reader
that uses O_DIRECT has its pages pinned from the moment it asks until the answer
is copied into them, as it would by a disk's DMA; only here the time between is
long, and known. Many reads can be under way. "mounted" is printed when it is.
It ends, and unmounts, on SIGTERM or when its standard input closes: whoever holds
the other end cannot die and leave it behind.

The kernel's side of the protocol is in linux/fuse.h. The root of the file system
is the file itself, so there is nothing to look up.
"""
import ctypes
import errno
import heapq
import os
import select
import signal
import stat
import struct
import sys
import time

IN_HEADER = struct.Struct("=IIQQIIIHH")  # len opcode unique nodeid uid gid pid ...
OUT_HEADER = struct.Struct("=IiQ")  # len error unique
INIT_IN = struct.Struct("=IIII")  # major minor max_readahead flags
INIT_OUT = struct.Struct("=IIIIHHIIHHI28x")
ATTR_OUT = struct.Struct("=QII" "QQQQQQIIIIIIIIII")
OPEN_OUT = struct.Struct("=QII")
READ_IN = struct.Struct("=QQI")  # fh offset size ...

FORGET, GETATTR, OPEN, READ, RELEASE, FLUSH = 2, 3, 14, 15, 18, 25
INIT, INTERRUPT, DESTROY, BATCH_FORGET = 26, 36, 38, 42
ASYNC_READ, ASYNC_DIO, MAX_PAGES = 1 << 0, 1 << 15, 1 << 22
MOST_PAGES = 256  # 1 MiB in one request: a guest's read is one request

MS_RDONLY, MS_NODEV, MS_NOSUID, MNT_DETACH = 1, 4, 2, 2


class SlowDisk:
    def __init__(self, image, delay_s):
        self.image = os.open(image, os.O_RDONLY)
        self.size = os.fstat(self.image).st_size
        self.delay_s = delay_s
        self.fuse = os.open("/dev/fuse", os.O_RDWR)
        self.due = []  # (when, unique, offset, size) of reads under way

    def mount(self, path):
        libc = ctypes.CDLL(None, use_errno=True)
        options = "fd=%d,rootmode=%o,user_id=0,group_id=0,allow_other" \
            % (self.fuse, stat.S_IFREG | 0o444)
        if libc.mount(b"slowdisk", path.encode(), b"fuse", MS_RDONLY | MS_NODEV | MS_NOSUID,
                      options.encode()):
            raise OSError(ctypes.get_errno(), "mount: " + os.strerror(ctypes.get_errno()))

    def reply(self, unique, body=b"", error=0):
        try:
            os.write(self.fuse, OUT_HEADER.pack(OUT_HEADER.size + len(body), -error, unique)
                     + body)
        except FileNotFoundError:
            pass  # whoever asked has been interrupted

    def attributes(self):
        return ATTR_OUT.pack(1, 0, 0, 1, self.size, self.size // 512, 0, 0, 0, 0, 0, 0,
                             stat.S_IFREG | 0o444, 1, 0, 0, 0, 4096, 0)

    def request(self, data):
        opcode, unique = IN_HEADER.unpack_from(data)[1:3]
        body = data[IN_HEADER.size:]
        if opcode == INIT:
            major, minor, readahead, flags = INIT_IN.unpack_from(body)
            self.reply(unique, INIT_OUT.pack(
                7, min(minor, 31), readahead, flags & (ASYNC_READ | ASYNC_DIO | MAX_PAGES),
                64, 48, 4096, 1, MOST_PAGES, 0, 0))
        elif opcode == GETATTR:
            self.reply(unique, self.attributes())
        elif opcode == OPEN:
            self.reply(unique, OPEN_OUT.pack(0, 0, 0))
        elif opcode == READ:
            _, offset, size = READ_IN.unpack_from(body)
            heapq.heappush(self.due, (time.monotonic() + self.delay_s, unique, offset, size))
        elif opcode in (RELEASE, FLUSH, DESTROY):
            self.reply(unique)
        elif opcode not in (FORGET, BATCH_FORGET, INTERRUPT):
            self.reply(unique, error=errno.ENOSYS)

    def serve(self):
        """Until the mount is gone, or nobody holds the other end of standard input."""
        while True:
            wait = max(0, self.due[0][0] - time.monotonic()) if self.due else None
            ready = select.select([self.fuse, sys.stdin], [], [], wait)[0]
            if sys.stdin in ready:
                return
            if not ready:
                _, unique, offset, size = heapq.heappop(self.due)
                self.reply(unique, os.pread(self.image, size, offset))
                continue
            try:
                self.request(os.read(self.fuse, 1 << 17))
            except OSError as error:
                if error.errno == errno.ENODEV:
                    return
                if error.errno not in (errno.EINTR, errno.ENOENT, errno.EAGAIN):
                    raise


def main():
    image, mountpoint, delay_ms = sys.argv[1], os.path.abspath(sys.argv[2]), float(sys.argv[3])
    try:
        disk = SlowDisk(image, delay_ms / 1000)
        disk.mount(mountpoint)
    except OSError as error:
        print("slowdisk: %s" % error, file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    print("mounted", flush=True)
    try:
        disk.serve()
    finally:
        ctypes.CDLL(None).umount2(mountpoint.encode(), MNT_DETACH)
    return 0


if __name__ == "__main__":
    sys.exit(main())
