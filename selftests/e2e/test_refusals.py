#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""What ferry refuses: each with the right exit, words that help, and nothing touched."""
import os
import re
import socket
import struct
import subprocess
import sys
import threading

import tap
from lib import (Lab, Qmp, check, check_equal, check_result, migrate, other_qemu,
                 prerequisites)
from tap import Skip, test

HELLO = struct.Struct("<I H H Q 16s I B B H H H I 16x")
MAGIC = 0x59525246
SOURCE, DESTINATION, MAIN = 1, 2, 1
STATUS_VERSION = 1


def check_text(text, *parts):
    for part in parts:
        check(re.search(part, text, re.I), "no %r in: %s", part, text)


def check_refused(ferry, *parts, code=1):
    """It ended with a message that has these parts, on stderr and in the result."""
    ferry.finish(20).check_code(code)
    check_text(ferry.stderr, *parts)
    if ferry.events:
        check_result(ferry.result, "failed", state="failed")
        check_text(ferry.result["error"], *parts)


def check_source_refused(lab, guest, *parts, uri="unix:/nonexistent/ferry.sock", args=(),
                         alone=True):
    """send refuses this guest, and the guest has noticed nothing.

    @alone: no other ferry of this test goes on.
    """
    send = lab.send(guest.qemu, uri, "--timeout", 5, *args)
    check_refused(send, *parts)
    check_equal(send.result["guest"], "source", "the result's guest")
    guest.check_good()
    guest.qemu.check_clean()
    if alone:
        lab.check_no_ferry()


def check_pair_refused(lab, guest, target, *parts, args=()):
    """The two sides do not fit: both say so, the guest runs on at the source."""
    recv = lab.recv(target)
    send = lab.send(guest.qemu, recv.listening, *args)
    check_refused(send, *parts)
    recv.finish().check_code(1)
    check_result(recv.result, "failed")
    check_text(recv.result["error"], *parts)
    check(not target.running(), "the destination runs")
    guest.check_good()
    for qemu in (guest.qemu, target):
        qemu.check_clean()


# ---------------------------------------------------------------- the command line

BAD_LINES = {
    "no-command": ([], "usage"),
    "unknown-command": (["sail"], "sail"),
    "unknown-option": (["send", "qmp:/x", "unix:/y", "--sideways"], "--sideways"),
    "send-nothing": (["send"], "usage|GUEST"),
    "send-no-uri": (["send", "qmp:/x"], "usage|URI"),
    "send-too-much": (["send", "qmp:/x", "unix:/y", "unix:/z"], "GUEST URI|unix:/z"),
    "guest-kind": (["send", "vnc:/x", "unix:/y"], "vnc:/x"),
    "guest-empty": (["send", "qmp:", "unix:/y"], "qmp:"),
    "uri-kind": (["send", "qmp:/x", "udp:1.2.3.4:5"], "udp:1.2.3.4:5"),
    "uri-no-port": (["recv", "qmp:/x", "tcp:127.0.0.1"], "tcp:127.0.0.1"),
    "uri-big-port": (["recv", "qmp:/x", "tcp:127.0.0.1:65536"], "65536"),
    "uri-send-port-0": (["send", "qmp:/x", "tcp:127.0.0.1:0"], "port"),
    "uri-empty-path": (["recv", "qmp:/x", "unix:"], "unix:"),
    "uri-long-path": (["recv", "qmp:/x", "unix:/" + "x" * 200], "107"),
    "channels-0": (["send", "qmp:/x", "unix:/y", "--channels", "0"], "channels"),
    "channels-word": (["send", "qmp:/x", "unix:/y", "--channels", "two"], "two"),
    "channels-many": (["send", "qmp:/x", "unix:/y", "--channels", "100000"], "channels"),
    "channels-missing": (["send", "qmp:/x", "unix:/y", "--channels"], "channels"),
    "size-suffix": (["send", "qmp:/x", "unix:/y", "--max-bandwidth", "3X"], "3X"),
    "size-negative": (["send", "qmp:/x", "unix:/y", "--max-bandwidth", "-1"], "-1"),
    "size-overflow": (["send", "qmp:/x", "unix:/y", "--max-bandwidth", "99999999999G"],
                      "99999999999G"),
    "tracker": (["send", "qmp:/x", "unix:/y", "--tracker", "crystal"], "crystal"),
    "stall": (["send", "qmp:/x", "unix:/y", "--on-stall", "pray"], "pray"),
    "downtime": (["send", "qmp:/x", "unix:/y", "--downtime-limit", "soon"], "soon"),
    "timeout": (["send", "qmp:/x", "unix:/y", "--timeout", "-5"], "-5"),
    "id": (["send", "qmp:/x", "unix:/y", "--id", "../../etc/x"], "etc/x"),
    "cancel-no-id": (["cancel"], "usage|ID"),
    "set-no-value": (["set", "vm"], "usage|KEY"),
    "resume-both": (["resume", "vm", "--force-source", "--force-destination"], "force"),
}


@test(cases=BAD_LINES)
def command_line(lab, args, part):
    run = lab.run(*args)
    run.check_code(2)
    check_text(run.stderr, part)
    check_equal(run.stdout, "", "what a usage error prints on stdout")


@test(cases={"stage": ("lunch:kill", "lunch"), "action": ("attach:tickle", "tickle"),
             "side": ("attach:kill", "both")})
def fault_variable(lab, fault, part):
    guest = lab.guest()
    side = "both" if part == "both" else None
    send = lab.send(guest.qemu, "unix:/nonexistent/x", "--timeout", 2, fault=fault, side=side)
    send.finish(10)
    check(send.code in (1, 2), "exit %s", send.code)
    check_text(send.stderr, part)
    guest.check_good()


@test(cases={w: (w,) for w in ("status", "cancel", "continue", "recover", "resume")})
def unknown_id(lab, command):
    run = lab.run(command, "nobody")
    run.check_code(1)
    check_text(run.stderr, "nobody")


@test()
def help_and_fault_points(lab):
    check_text(lab.run("--help").check_code(0).stdout, "send", "recv", "status", "doctor")
    check_text(lab.run("doctor", "--fault-points").check_code(0).stdout, "commit-wait")


# ---------------------------------------------------------------- the QMP socket

@test()
def no_qmp_socket(lab):
    send = lab.ferry("send", "qmp:/nonexistent/vm.qmp", "unix:/nonexistent/x", "--timeout", 2)
    check_refused(send, "/nonexistent/vm.qmp", "No such file|does not exist")


@test()
def dead_qmp_socket(lab):
    path = os.path.join(lab.dir, "dead.qmp")
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(path)
    send = lab.ferry("send", "qmp:" + path, "unix:/nonexistent/x", "--timeout", 2)
    check_refused(send, "dead.qmp", "refused|not running|nobody")


@test()
def busy_qmp_socket(lab):
    """QEMU lets a second client wait for ever."""
    guest = lab.boot()
    holder = Qmp(guest.qemu.qmp_path)
    guest.qemu.before = guest.qemu.traces()
    try:
        check_source_refused(lab, guest, "busy", "second -qmp", args=("--timeout", 2))
    finally:
        holder.close()


@test(cases={"silence": (b"",), "noise": (b"\0\xff garbage\n" * 9,),
             "wrong": (b'{"hello": 1}\n',), "endless": (b"x" * (1 << 20),)})
def something_else_at_the_qmp_path(lab, greeting):
    path = os.path.join(lab.dir, "vm.qmp")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(4)

        def serve():
            peer, _ = listener.accept()
            lab.on_close(peer.close)
            try:
                for _ in range(64 if len(greeting) > 1000 else 1):
                    peer.sendall(greeting)
            except OSError:
                pass
        threading.Thread(target=serve, daemon=True).start()
        send = lab.ferry("send", "qmp:" + path, "unix:/nonexistent/x", "--timeout", 2)
        check_refused(send, "vm.qmp")


@test()
def recv_into_a_running_guest(lab):
    guest = lab.guest()
    recv = lab.ferry("recv", guest.qemu.uri, "tcp:127.0.0.1:0", "--timeout", 5)
    check_refused(recv, "-incoming defer|incoming")
    guest.check_good()
    guest.qemu.check_clean()


@test()
def send_from_a_waiting_qemu(lab):
    target = lab.destination()
    send = lab.send(target, "unix:/nonexistent/x", "--timeout", 2)
    check_refused(send, "inmigrate|incoming|waits")
    target.check_clean()


# ---------------------------------------------------------------- addresses and IDs

@test()
def busy_port(lab):
    target = lab.destination()
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen(1)
        port = holder.getsockname()[1]
        recv = lab.ferry("recv", target.uri, "tcp:127.0.0.1:%d" % port)
        check_refused(recv, str(port), "in use")
    target.check_clean()


@test()
def unix_path_of_a_live_listener(lab):
    first, second = lab.destination("a"), lab.destination("b")
    uri = "unix:%s/ferry.sock" % lab.dir
    lab.recv(first, uri)
    check_refused(lab.ferry("recv", second.uri, uri), "ferry.sock", "in use")
    check(os.path.exists(uri[5:]), "the living listener's socket was removed")
    lab.run("cancel", first.id + "-in").check_code(0)
    lab.ferries[0].finish()


@test()
def unresolvable_host(lab):
    guest = lab.guest()
    check_source_refused(lab, guest, "no-such-host.invalid",
                         uri="tcp:no-such-host.invalid:4444")


@test()
def id_in_use(lab):
    target, guest = lab.destination("a"), lab.boot("b")
    recv = lab.recv(target, "tcp:127.0.0.1:0", "--id", "same")
    check_source_refused(lab, guest, "same", "in use",
                         uri=recv.listening, args=("--id", "same"), alone=False)
    lab.run("cancel", "same").check_code(0)
    recv.finish()


# ---------------------------------------------------------------- guest RAM

@test()
def private_memory(lab):
    check_source_refused(lab, lab.boot(memory="private"), "share=on", "memory-backend-file")


@test()
def private_memory_at_the_destination(lab):
    recv = lab.ferry("recv", lab.destination(memory="private").uri, "tcp:127.0.0.1:0")
    check_refused(recv, "share=on")


@test()
def memory_in_a_disk_file(lab):
    if os.stat(lab.dir).st_dev == os.stat("/dev/shm").st_dev or \
            subprocess.run(["stat", "-f", "-c", "%T", lab.dir], stdout=subprocess.PIPE,
                           text=True).stdout.strip() == "tmpfs":
        raise Skip("%s is on a tmpfs; set TMPDIR to a folder on a disk" % lab.dir)
    check_source_refused(lab, lab.boot(memory="disk"), "/dev/shm|tmpfs")


@test()
def discard_data(lab):
    check_source_refused(lab, lab.boot(memory_options="discard-data=on"), "discard-data")


@test()
def own_memfd_on_a_new_qemu(lab):
    guest = lab.boot(memory="own-memfd", binary=other_qemu("10.0"))
    check_source_refused(lab, guest, "memory-backend-memfd", "memory-backend-file")


@test()
def another_process_maps_the_ram(lab):
    guest = lab.boot()
    program = "import mmap,time; f = open(%r, 'r+b'); m = mmap.mmap(f.fileno(), 4096); " \
        "print('mapped', flush=True); time.sleep(600)" % guest.qemu.ram_files[0]
    other = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)

    def end():
        other.kill()
        other.wait()
    lab.on_close(end)
    check_equal(other.stdout.readline(), b"mapped\n", "the other process")
    check_source_refused(lab, guest, r"\b%d\b" % other.pid)
    end()
    migrate(lab, guest, lab.destination())


# ---------------------------------------------------------------- two sides that do not fit

@test()
def block_size_mismatch(lab):
    check_pair_refused(lab, lab.guest(), lab.destination(mib=128), "ram0", "size|MiB|bytes")


@test()
def huge_and_small_pages(lab):
    lab.huge_pages(96)
    check_pair_refused(lab, lab.guest(), lab.qemu("larger", memory="hugetlb", incoming=True),
                       "4096-byte pages at the source", "2097152-byte pages here",
                       "start both VMMs with the same memory")


@test()
def block_name_mismatch(lab):
    check_pair_refused(lab, lab.guest(), lab.destination(memory_id="other"), "ram0|other0")


@test()
def block_count_mismatch(lab):
    check_pair_refused(lab, lab.boot(), lab.destination(backends=2), "block|ram0")


@test()
def device_mismatch(lab):
    """QEMU itself refuses the device state: after that the guest must run on."""
    guest = lab.boot(args=["-device", "virtio-balloon-pci"])
    target = lab.destination()
    recv = lab.recv(target)
    send = lab.send(guest.qemu, recv.listening)
    for ferry in (send, recv):
        ferry.finish().check_code(1)
    check_result(send.result, "failed", guest="source")
    check(not target.running(), "the destination runs")
    guest.check_good()
    guest.qemu.check_clean()


@test()
def a_second_sender(lab):
    """Another guest knocks while one is being received: it is turned away, the first goes on."""
    first, second = lab.boot("a"), lab.boot("b")
    target = lab.destination()
    recv = lab.recv(target)
    send = lab.send(first.qemu, recv.listening, "--pause-before-switchover")
    send.wait_state("pre-switchover")
    check_source_refused(lab, second, "another migration|refused",
                         uri=recv.listening, alone=False)
    lab.run("continue", first.qemu.id).check_code(0)
    for ferry in (send, recv):
        ferry.finish().check_code(0)
    first.moved(target)
    first.check_good()


# ---------------------------------------------------------------- the wire

def tcp_of(uri):
    _, host, port = uri.split(":")
    return host, int(port)


def read_until_closed(peer, seconds=10):
    peer.settimeout(seconds)
    data = b""
    try:
        while True:
            part = peer.recv(65536)
            if not part:
                return data
            data += part
    except ConnectionResetError:
        return data
    except TimeoutError:
        raise tap.Failed("the connection is still open after %g s" % seconds)


def hello(version=1, minimum=1, role=SOURCE, magic=MAGIC, features=0, uuid=b"u" * 16,
          channels=2, page_size=4096, status=0):
    return HELLO.pack(magic, version, minimum, features, uuid, 1, role, MAIN, 0, channels, status,
                      page_size)


BAD_HELLOS = {
    "noise": bytes(range(256)) * 16,
    "http": b"GET / HTTP/1.0\r\n\r\n" + b" " * 64,
    "magic": hello(magic=MAGIC + 1),
    "version": hello(version=9, minimum=9),
    "feature": hello(features=1 << 63),
    "role": hello(role=DESTINATION),
    "page-size": hello(page_size=3),
    "no-channels": hello(channels=0),
    "many-channels": hello(channels=65535),
    "short": hello()[:20],
}


@test(cases={name: (name, data) for name, data in BAD_HELLOS.items()})
def bad_hello_to_recv(lab, name, data):
    """The stranger is cut off; recv either goes on listening or ends with words and a 1."""
    guest, target = lab.guest(), lab.destination()
    recv = lab.recv(target, "tcp:127.0.0.1:0", "--timeout", 3)
    with socket.create_connection(tcp_of(recv.listening)) as peer:
        try:
            peer.sendall(data)
            if name == "short":
                peer.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # it has hung up first
        answer = read_until_closed(peer)
    if name == "version":
        check(len(answer) >= HELLO.size, "no HELLO came back, only %d bytes", len(answer))
        check_equal(HELLO.unpack(answer[:HELLO.size])[10], STATUS_VERSION, "HELLO's status")
    if recv.process.poll() is None:
        send = lab.send(guest.qemu, recv.listening)
        send.finish().check_code(0)
        recv.finish().check_code(0)
        guest.moved(target)
    else:
        check_refused(recv)
        check(recv.result["error"], "no words")
        target.check_clean()
    guest.check_good()


@test(cases={name: (name, data) for name, data in {
    "noise": bytes(range(256)) * 16,
    "version": hello(version=9, minimum=9, role=DESTINATION, status=STATUS_VERSION),
    "role": hello(role=SOURCE),
    "status": hello(role=DESTINATION, status=77),
    "closed": b"",
}.items()})
def bad_hello_to_send(lab, name, data):
    guest = lab.guest()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        def serve():
            while True:
                try:
                    peer, _ = listener.accept()
                except OSError:
                    return
                with peer:
                    try:
                        peer.recv(HELLO.size)
                        peer.sendall(data)
                    except OSError:
                        pass  # it has hung up first
        threading.Thread(target=serve, daemon=True).start()
        parts = {"version": ["version"]}.get(name, ["127.0.0.1"])
        check_source_refused(lab, guest, *parts,
                             uri="tcp:127.0.0.1:%d" % listener.getsockname()[1],
                             args=("--timeout", 3))


@test()
def a_stranger_who_stays_silent(lab):
    """Somebody connects and says nothing: the real sender must still get through."""
    guest, target = lab.guest(), lab.destination()
    recv = lab.recv(target, "tcp:127.0.0.1:0", "--timeout", 4)
    with socket.create_connection(tcp_of(recv.listening)):
        send = lab.send(guest.qemu, recv.listening, "--timeout", 15)
        send.finish().check_code(0)
    recv.finish().check_code(0)
    guest.moved(target)
    guest.check_good()


if __name__ == "__main__":
    sys.exit(tap.main(Lab, prerequisites))
