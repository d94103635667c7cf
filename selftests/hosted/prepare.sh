# SPDX-License-Identifier: GPL-2.0-or-later
#
# What run.sh and demo.sh have in common: a virtual machine (selftests/vm/machine.sh) with
# ferry.ko, the guest of one sector and the slow disk it reads. To be sourced in the top
# folder; sets $work, $out, and ends what is in $qemu when the script ends.
here=$PWD
case ${O:-build} in /*) out=$O ;; *) out=$here/${O:-build} ;; esac
work=$(mktemp -d) || exit 1
qemu=
trap '[ -z "$qemu" ] || kill "$qemu" 2>/dev/null; rm -rf "$work"' EXIT
trap 'exit 143' TERM INT
. selftests/vm/machine.sh

# prepare_kernel FLAVOUR: sets $kernel and $modules; or prints what is missing, and fails.
prepare_kernel() {
	for tool in busybox cpio gzip qemu-system-x86_64 as ld; do
		command -v "$tool" > /dev/null ||
			{ echo "'$tool' is missing: run scripts/install test"; return 1; }
	done
	selftests/qemu/kernel.sh "$1" > "$work/kernel" 2> "$work/log" ||
		{ echo "no kernel: $(tail -n 1 "$work/log")"; return 1; }
	{ read -r kernel; read -r modules; } < "$work/kernel"
	selftests/kmod/headers.sh "$1" > "$work/log" 2>&1 ||
		{ echo "no kernel headers: $(tail -n 1 "$work/log")"; return 1; }
}

# prepare_machine FLAVOUR 'VARIABLE=VALUE...' PROGRAM [ARGUMENT...]: what of this folder is run
# inside.
prepare_machine() {
	flavour=$1 variables=$2 program=$3
	shift 3
	make --no-print-directory O="$out" "$out/ferry" "$out/ferry-vmm" &&
	selftests/kmod/build.sh "$flavour" "$work/ko" &&
	as --32 -o "$work/sector.o" selftests/hosted/sector.S &&
	ld -m elf_i386 -Ttext 0x7c00 --oformat binary -o "$work/sector" "$work/sector.o" &&
	truncate -s 1M "$work/sector" && # of a smaller disk the BIOS reads nothing
	(cd selftests/e2e && PYTHONDONTWRITEBYTECODE=1 python3 -c \
		'import lib, sys; lib.make_pattern_disk(sys.argv[1], 1)' "$work/disk") &&
	machine_initramfs "$variables FERRY='$out/ferry' FERRY_MODULE='$work/ko/ferry.ko' \
		FERRY_SECTOR='$work/sector' FERRY_QEMU='$here/selftests/vm/qemu.sh' \
		python3 '$here/selftests/hosted/$program' $*"
}

# prepare_boot: each read of its disk takes 20 ms, so pages are pinned for much longer than a
# scan takes.
prepare_boot() {
	machine_boot -drive "file=$work/disk,format=raw,if=none,id=disk,throttling.iops-total=50" \
		-device virtio-blk-pci,drive=disk
}
