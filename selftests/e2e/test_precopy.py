#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Precopy between two unmodified QEMUs: every link, memory, disk and state of a guest arrives."""
import os
import socket
import subprocess
import sys

import tap
from lib import (ORDINARY_UID, Disk, Lab, check, check_completed, check_equal, huge_bytes,
                 make_pattern_disk, migrate, other_qemu, prerequisites)
from tap import Skip, test
from underway import check_stayed, two_on_loopback


# ---------------------------------------------------------------- that it works

@test()
def basic(lab):
    guest = lab.guest()
    send, recv = migrate(lab, guest, lab.destination())
    for ferry in (send, recv):
        states = ferry.states()
        check_equal(states[0], "setup", "the first state of " + ferry.name)
        check_equal(states[-1], "completed", "the last state of " + ferry.name)
        for state in ("active", "device"):
            check(state in states, "%s was never %s: %s", ferry.name, state, states)
    check("commit-wait" in recv.states(), "recv was never commit-wait: %s", recv.states())
    times = [e["t_ns"] for e in send.events if e["event"] == "state"]
    check(times == sorted(times) and times[0] > 0, "the states' times are %s", times)
    check_equal(send.result["mode"], "precopy", "mode")
    check(send.result["tracker"] in ("pagemap", "softdirty", "kmod"), "tracker: %s", send.result)
    check(0 < send.result["downtime_ns"] < send.result["total_ns"], "times: %s", send.result)
    check(send.result["rounds"] >= 1, "rounds: %s", send.result)
    check_equal(send.result["ram_bytes"], recv.result["ram_bytes"], "both sides' RAM size")


@test(cases={"%d-%s" % (n, kind): (n, kind) for n in (1, 2, 4) for kind in ("tcp", "unix")})
def channels(lab, count, kind):
    guest = lab.guest()
    uri = "tcp:127.0.0.1:0" if kind == "tcp" else "unix:%s/ferry.sock" % lab.dir
    migrate(lab, guest, lab.destination(), uri=uri, channels=count)
    check(kind == "tcp" or not os.path.exists(uri[5:]), "%s was left behind", uri[5:])


@test()
def tcp_on_ipv6(lab):
    with socket.socket(socket.AF_INET6) as probe:
        try:
            probe.bind(("::1", 0))
        except OSError:
            raise Skip("this machine has no IPv6 loopback")
    migrate(lab, lab.guest(), lab.destination(), uri="tcp:[::1]:0")


@test()
def memory_in_memfds_and_several_blocks(lab):
    guest = lab.boot(memory="memfd", backends=2)
    migrate(lab, guest, lab.destination(memory="memfd", backends=2))


@test()
def from_file_to_memfd(lab):
    migrate(lab, lab.guest(), lab.destination(memory="memfd"))
    migrate(lab, lab._borrowed, lab.destination())


@test(timeout=60, cases={name: case for name, case in {
    "file": ("hugetlb", ()), "memfd": ("huge-memfd", ("--channels", 4)),
}.items() if name == "file" or os.environ.get("FERRY_TEST_LONG")})
def huge_pages(lab, memory, args):
    """hugetlb memory, tracked; its holes are neither sent nor allocated."""
    lab.huge_pages(2 * 160)
    guest = lab.boot(memory=memory, mib=160)
    target = lab.destination(memory=memory, mib=160)
    before = guest.qemu.ram_blocks()
    send, recv = migrate(lab, guest, target, "--verify", "--tracker", "pagemap", *args)
    for ferry in (send, recv):
        check_equal(ferry.result["verified"], True, "verified of " + ferry.name)
    check(send.result["rounds"] >= 2, "nothing was tracked: %s", send.result)
    if memory == "hugetlb":
        check(0 < before * 512 < 150 << 20, "the source's RAM is full, or none: %d", before)
        check(target.ram_blocks() <= before + 4096 * 4, "the destination has %d blocks, the source "
              "%d", target.ram_blocks(), before)


@test(timeout=60, cases={name: (name,) for name in ("always", "within_size")
                         if os.environ.get("FERRY_TEST_LONG")})
def huge_tmpfs(lab, huge):
    """Transparent huge pages at both sides, tracked by 4 KiB."""
    lab.huge_tmpfs(huge)
    # QEMU maps a tmpfs where it likes, and what lies askew is not made of huge pages.
    options = {"memory": "huge-tmpfs", "memory_options": "align=2M"}
    guest = lab.boot(**options)
    source, target = guest.qemu, lab.destination(**options)
    check(huge_bytes(source.ram_files[0]) >= 8 << 20, "the source has no huge pages")
    send, _ = migrate(lab, guest, target, "--verify", "--tracker", "pagemap")
    check_equal(send.result["verified"], True, "verified")
    check(huge_bytes(target.ram_files[0]) >= 8 << 20, "the destination has no huge pages")


@test()
def vga_and_roms_travel_with_the_devices(lab):
    options = {"args": ["-device", "VGA,vgamem_mb=8", "-device", "e1000e"]}
    send, _ = migrate(lab, lab.boot(**options), lab.destination(**options))
    check(send.result["device_bytes"] > 100 << 10, "device state: %s", send.result)


@test(timeout=90)
def back_and_forth_ten_times(lab):
    guest = lab.guest()
    for turn in range(10):
        migrate(lab, guest, lab.destination("turn%d" % turn))


@test()
def ordinary_users_qemu(lab):
    guest = lab.boot(user=ORDINARY_UID)
    migrate(lab, guest, lab.destination(user=ORDINARY_UID))


@test()
def sandboxed_qemu(lab):
    options = {"args": ["-sandbox", "on"]}
    migrate(lab, lab.boot(**options), lab.destination(**options))


@test()
def verify(lab):
    send, recv = migrate(lab, lab.guest(), lab.destination(), "--verify")
    for ferry in (send, recv):
        check_equal(ferry.result["verified"], True, "verified of " + ferry.name)


@test()
def without_verify_nothing_is_claimed(lab):
    send, recv = migrate(lab, lab.guest(), lab.destination())
    for ferry in (send, recv):
        check_equal(ferry.result["verified"], False, "verified of " + ferry.name)


@test(cases={"checksum": (("--checksum",), False), "zstd": (("--compress", "zstd"), True),
             "lz4": (("--compress", "lz4"), True),
             "zstd-checksum": (("--compress", "zstd", "--checksum"), True)})
def on_the_wire(lab, options, smaller):
    """Compressed and summed up or not, what arrives is equal; and it takes less of the line."""
    send, recv = migrate(lab, lab.guest(), lab.destination(), "--verify", *options)
    for ferry in (send, recv):
        check_equal(ferry.result["verified"], True, "verified of " + ferry.name)
    check_equal(recv.result["sent_bytes"], send.result["sent_bytes"], "bytes on the wire")
    memory = send.result["normal_pages"] * 4096
    if smaller:
        check(send.result["sent_bytes"] < memory * 0.8, "%d bytes of memory took %d",
              memory, send.result["sent_bytes"])
    else:
        check(send.result["sent_bytes"] >= memory, "pages without data? %s", send.result)


@test(cases={"none": ("none",), "auto": ("auto",), "pagemap": ("pagemap",)})
def trackers(lab, name):
    send, _ = migrate(lab, lab.guest(), lab.destination(), "--tracker", name)
    if name != "auto":
        check_equal(send.result["tracker"], name, "tracker")


@test(timeout=60, cases={"7.2-to-10.0": (None, "10.0"), "7.2-to-11.1": (None, "11.1"),
                         "10.0-to-10.0": ("10.0", "10.0"), "10.0-to-11.1": ("10.0", "11.1"),
                         "11.1-to-11.1": ("11.1", "11.1")})
def between_versions_of_qemu(lab, old, new):
    machine = "pc-q35-7.2" if old is None else "pc-q35-10.0"
    guest = lab.boot(machine=machine, binary=old and other_qemu(old))
    migrate(lab, guest, lab.destination(machine=machine, binary=other_qemu(new)))


# ---------------------------------------------------------------- disks

def make_disks(lab, cache):
    read, write = (os.path.join(lab.dir, n) for n in ("read.raw", "write.qcow2"))
    make_pattern_disk(read, 16)
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", write, "32M"], check=True)
    aio = "native" if cache == "none" else "threads"
    return [Disk(read, "raw", cache, aio), Disk(write, "qcow2", cache, aio)]


@test(timeout=90, cases={"direct-verify": ("none", ("--verify",)),
                         "buffered-verify": ("writeback", ("--verify",)),
                         "dma-barrier": ("none", ("--verify", "--dma-barrier"))})
def disks_under_load(lab, cache, send_args):
    """O_DIRECT reads into guest RAM are what a tracker by page tables loses."""
    disks = make_disks(lab, cache)
    guest = lab.boot(disks=disks, append="ferry.mib=8 ferry.dirty=16 ferry.pause_ms=5 "
                     "ferry.disk=/dev/vda:read ferry.disk=/dev/vdb:rw")
    for turn in range(3):
        send, _ = migrate(lab, guest, lab.destination("turn%d" % turn, disks=disks), *send_args)
        check_equal(send.result["verified"], True, "verified")
        guest.check_good(more=5)


@test()
def cancel_with_disks_keeps_the_image_locks(lab):
    disks = make_disks(lab, "none")
    append = "ferry.mib=8 ferry.disk=/dev/vda:read ferry.disk=/dev/vdb:rw"
    guest = lab.boot(disks=disks, append=append)
    target, recv, send = two_on_loopback(lab, guest, ("--pause-before-switchover",), disks=disks)
    send.wait_state("pre-switchover")
    lab.run("cancel", guest.qemu.id).check_code(0)
    check_stayed(lab, guest, target, send, recv, event="cancelled")
    check(not target.monitor.command("query-blockstats")[1]["stats"]["wr_operations"],
          "the destination wrote to the disk")


# ---------------------------------------------------------------- holes and old bytes

@test()
def old_bytes_in_the_destinations_ram(lab):
    """A reused RAM file must not show through where the source has holes."""
    guest = lab.guest()
    target = lab.destination()
    with open(target.ram_files[0], "r+b") as file:
        for _ in range(target.mib):
            file.write(b"\xa5" * (1 << 20))
    recv = lab.recv(target)
    send = lab.send(guest.qemu, recv.listening, "--verify")
    check_completed(send, recv)
    guest.moved(target)
    check_equal(send.result["verified"], True, "verified")
    with open(target.ram_files[0], "rb") as file:
        check(b"\xa5" * 4096 not in file.read(), "a page of old bytes is still there")
    guest.check_good()


@test()
def untouched_ram_stays_untouched(lab):
    guest = lab.boot(mib=256, append="ferry.mib=8 ferry.dirty=16 ferry.pause_ms=10")
    source, target = guest.qemu, lab.destination(mib=256)
    before = source.ram_blocks()
    check(before * 512 < 200 << 20, "the source's RAM is full: %d", before)
    send, _ = migrate(lab, guest, target)
    check(target.ram_blocks() <= before * 1.1 + 2048,
          "the destination has %d blocks, the source %d", target.ram_blocks(), before)
    check(send.result["sent_bytes"] < 200 << 20, "sent %d bytes", send.result["sent_bytes"])


@test()
def balloon_and_free_page_reporting(lab):
    options = {"mib": 160,
               "args": ["-device", "virtio-balloon-pci,free-page-reporting=on,id=balloon0"]}
    guest = lab.boot(append="ferry.mib=8 ferry.pause_ms=5 ferry.churn=24", **options)
    for turn in range(3):
        target = lab.destination("turn%d" % turn, **options)
        migrate(lab, guest, target, "--verify")
    guest.qemu.monitor.command("balloon", value=128 << 20)
    guest.check_good(more=5)


# ---------------------------------------------------------------- states of the guest

@test()
def a_paused_guest_stays_paused(lab):
    guest = lab.boot()
    guest.qemu.monitor.command("stop")
    target, recv, send = two_on_loopback(lab, guest)
    check_completed(send, recv)
    check(target.status() in ("paused", "postmigrate"), "the destination is %s", target.status())
    check_equal(os.path.getsize(target.serial), 0, "bytes a paused guest printed")
    target.monitor.command("cont")
    guest.moved(target)
    guest.check_good()


@test()
def a_guest_arrives_as_its_owner_left_it(lab):
    """Paused or resumed by a person while it is being moved: ferry does not overrule that."""
    guest = lab.boot()
    target, recv, send = two_on_loopback(lab, guest, ("--pause-before-switchover",))
    send.wait_state("pre-switchover")
    guest.qemu.monitor.command("stop")
    lab.run("cancel", guest.qemu.id).check_code(0)
    send.finish().check_code(1)
    recv.finish().check_code(1)
    check_equal(guest.qemu.status(), "paused", "the state of a source paused by hand")
    target.kill()
    target, recv, send = two_on_loopback(lab, guest, ("--pause-before-switchover",), name="vm3")
    send.wait_state("pre-switchover")
    guest.qemu.monitor.command("cont")
    lab.run("continue", guest.qemu.id).check_code(0)
    check_completed(send, recv)
    check(target.running(), "the guest was running when it left")
    guest.moved(target)
    guest.check_good()


@test()
def a_paused_guest_stays_paused_after_cancel(lab):
    guest = lab.boot()
    guest.qemu.monitor.command("stop")
    target, recv, send = two_on_loopback(lab, guest, ("--pause-before-switchover",))
    send.wait_state("pre-switchover")
    lab.run("cancel", guest.qemu.id).check_code(0)
    send.finish().check_code(1)
    recv.finish().check_code(1)
    check_equal(guest.qemu.status(), "paused", "the source's state")
    guest.qemu.monitor.command("cont")
    guest.check_good()
    guest.qemu.check_clean()


@test()
def destination_without_global_state(lab):
    """Then QEMU itself would start the guest as soon as its state is loaded."""
    guest = lab.guest()
    target = lab.destination(args=["-global", "migration.store-global-state=off"])
    migrate(lab, guest, target)


@test()
def source_without_global_state_and_cancel(lab):
    options = {"args": ["-global", "migration.store-global-state=off"]}
    guest = lab.boot(**options)
    target, recv, send = two_on_loopback(lab, guest, ("--pause-before-switchover",), **options)
    send.wait_state("pre-switchover")
    lab.run("cancel", guest.qemu.id).check_code(0)
    check_stayed(lab, guest, target, send, recv, event="cancelled")


@test()
def keep_source(lab):
    guest = lab.guest()
    source = guest.qemu
    migrate(lab, guest, lab.destination(), "--keep-source", keep=True)
    check(source.status() in ("paused", "postmigrate"), "the source is %s", source.status())


@test()
def stray_capabilities_are_restored(lab):
    guest = lab.boot()
    wanted = [{"capability": "multifd", "state": True},
              {"capability": "postcopy-ram", "state": True},
              {"capability": "events", "state": True}]
    target = lab.destination()
    for qemu in (guest.qemu, target):
        qemu.monitor.command("migrate-set-capabilities", capabilities=wanted)
        qemu.before = qemu.traces()
    migrate(lab, guest, target, "--keep-source", keep=True)


if __name__ == "__main__":
    sys.exit(tap.main(Lab, prerequisites))
