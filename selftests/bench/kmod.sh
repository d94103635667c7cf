#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
#
# What it costs to learn which pages were written, in instructions: kmod.c, run by one
# emulated processor that counts them (-icount, a nanosecond each), on one of Debian's
# kernels. All methods are measured in one run; takes some minutes.
#
#   selftests/bench/kmod.sh [FLAVOUR]      default: 6.12, which has every method
#
# The emulated processor is QEMU's "max", for which the kernel needs the fewest safeguards
# against speculation; CPU=EPYC,+svm,+npt,-cx16 takes another model. They differ by 6 to 9 %.
set -u
cd "$(dirname "$0")/../.." || exit 1
flavour=${1:-6.12}
module=selftests/module
out=${O:-build}/selftests/bench
limit=900

work=$(mktemp -d) || exit 1
qemu=
trap '[ -z "$qemu" ] || kill "$qemu" 2>/dev/null; rm -rf "$work"' EXIT
trap 'exit 143' TERM INT

die() { # WHAT-WENT-WRONG [LOG]
	echo "bench-kmod: $1" >&2
	[ -z "${2:-}" ] || tail -n 30 "$2" >&2
	exit 1
}

for tool in busybox cpio gzip xz qemu-system-x86_64; do
	command -v "$tool" > /dev/null || die "'$tool' is missing: run scripts/install test"
done
selftests/qemu/kernel.sh "$flavour" > "$work/paths" 2> "$work/log" ||
	die "there is no kernel $flavour" "$work/log"
selftests/kmod/build.sh "$flavour" "$out/kmod-$flavour" > "$work/log" 2>&1 ||
	die "ferry.ko cannot be built for $flavour" "$work/log"
# Statically linked: the guest has no C library.
${CC:-gcc} -std=gnu11 -D_GNU_SOURCE -O2 -g0 -Wall -Wextra -Wshadow -Wvla -Wmissing-prototypes \
	-Wwrite-strings -I$module -Iuser -Iuapi -static -o "$out/kmod" \
	selftests/bench/kmod.c $module/tracker.c $module/machine.c > "$work/log" 2>&1 ||
	die 'kmod.c cannot be built' "$work/log"
FERRY_GUEST=$out/kmod selftests/qemu/initramfs.sh "$work/initramfs" "$(sed -n 2p "$work/paths")" \
	kvm-amd "$out/kmod-$flavour/ferry.ko" > "$work/log" 2>&1 ||
	die 'the guest cannot be built' "$work/log"

# With sleep=off an idle processor waits for nothing. Why without cx16: module/run.sh.
timeout "$limit" qemu-system-x86_64 -nodefaults -no-reboot -display none \
	-serial "file:$work/serial" -machine pc -accel tcg,thread=single \
	-icount shift=0,sleep=off -cpu ${CPU:-max,-cx16} -smp 1 -m 1600 \
	-kernel "$(sed -n 1p "$work/paths")" -initrd "$work/initramfs" \
	-append 'console=ttyS0 quiet panic=-1' < /dev/null > "$work/log" 2>&1 &
qemu=$!
wait "$qemu"
status=$?
qemu=
tr -d '\r' < "$work/serial" > "$work/text"
grep -q '^ENDED 0$' "$work/text" || {
	cat "$work/log" >> "$work/text"
	die "the benchmark did not end well (QEMU: $status)" "$work/text"
}
sed -n 's/^BOOTED /Linux /p' "$work/text"
sed -n '/^BOOTED/,/^ENDED/p' "$work/text" | sed '/^BOOTED/d; /^ENDED/d'
