#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
#
# The agent with the kernel module, on a stock Debian 12 kernel. Prints TAP.
#
#   selftests/hosted/run.sh [FLAVOUR]       default: standard; see selftests/qemu/kernel.sh
#
# Boots the kernel under emulation with this machine's own root (selftests/vm/machine.sh),
# loads ferry.ko and runs inside.py there. QEMU's guests are emulated twice, so they are of
# one sector (sector.S). They read a disk of the outer machine by O_DIRECT, which is slow
# enough that pages stay pinned for long. ferry-vmm's guest is its threads.
set -u
cd "$(dirname "$0")/../.." || exit 1
here=$PWD
case ${O:-build} in /*) out=$O ;; *) out=$here/${O:-build} ;; esac
flavour=${1:-standard}
slow=5
limit=420
tests='doctor_says_so a_plain_peer_is_refused a_view_is_for_the_kmod_tracker_alone
	a_cancel_leaves_no_trace a_crash_is_put_right a_view_left_behind_is_no_hindrance
	a_peer_with_a_view_is_seen a_vmm_with_libferry nothing_is_left without_the_module
	a_lost_write_is_found'

skip() { # REASON
	echo "1..0 # SKIP $1"
	exit 0
}

work=$(mktemp -d) || exit 1
qemu=
trap '[ -z "$qemu" ] || kill "$qemu" 2>/dev/null; rm -rf "$work"' EXIT
trap 'exit 143' TERM INT

for tool in busybox cpio gzip qemu-system-x86_64 as ld; do
	command -v "$tool" > /dev/null || skip "'$tool' is missing: run scripts/install test"
done
. selftests/vm/machine.sh

prepare() {
	make --no-print-directory O="$out" "$out/ferry" "$out/ferry-vmm" &&
	selftests/kmod/build.sh "$flavour" "$work/ko" &&
	selftests/kmod/build.sh "$flavour" "$work/broken" FERRY_BROKEN=1 &&
	as --32 -o "$work/sector.o" selftests/hosted/sector.S &&
	ld -m elf_i386 -Ttext 0x7c00 --oformat binary -o "$work/sector" "$work/sector.o" &&
	truncate -s 1M "$work/sector" && # of a smaller disk the BIOS reads nothing
	(cd selftests/e2e && PYTHONDONTWRITEBYTECODE=1 python3 -c \
		'import lib, sys; lib.make_pattern_disk(sys.argv[1], 1)' "$work/disk") &&
	machine_initramfs "FERRY='$out/ferry' FERRY_MODULE='$work/ko/ferry.ko' \
		FERRY_BROKEN_MODULE='$work/broken/ferry.ko' \
		FERRY_SECTOR='$work/sector' FERRY_QEMU='$here/selftests/vm/qemu.sh' \
		FERRY_TEST_SLOW=$slow python3 '$here/selftests/hosted/inside.py'"
}

selftests/qemu/kernel.sh "$flavour" > "$work/kernel" 2> "$work/log" ||
	skip "no kernel: $(tail -n 1 "$work/log")"
{ read -r kernel; read -r modules; } < "$work/kernel"
selftests/kmod/headers.sh "$flavour" > "$work/log" 2>&1 ||
	skip "no kernel headers: $(tail -n 1 "$work/log")"
if ! prepare > "$work/log" 2>&1; then
	sed 's/^/# /' "$work/log"
	echo '1..1'
	echo 'not ok 1 - what is run inside was built'
	exit 1
fi
# Each read takes 20 ms: pages are pinned for much longer than a scan takes.
machine_boot -drive "file=$work/disk,format=raw,if=none,id=disk,throttling.iops-total=50" \
	-device virtio-blk-pci,drive=disk
machine_results
