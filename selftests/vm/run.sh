#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
#
# The whole program on a stock Debian 12 kernel, where guests are tracked by
# soft-dirty bits. Prints TAP.
#
#   selftests/vm/run.sh [FLAVOUR]           default: standard; see selftests/qemu/kernel.sh
#
# Boots the kernel under emulation with this machine's own root (machine.sh) and runs
# inside.py there: QEMUs in a QEMU. The
# processor has no XSAVE, so that remote system calls save registers by FXSAVE,
# which no other suite makes them do.
set -u
cd "$(dirname "$0")/../.." || exit 1
here=$PWD
case ${O:-build} in /*) out=$O ;; *) out=$here/${O:-build} ;; esac
flavour=${1:-standard}
# Inside everything is slower than what deadlines were made for.
slow=30

tests='this_is_a_stock_kernel doctor migration what_does_not_work_here_is_refused'
limit=560
if [ -n "${FERRY_TEST_LONG-}" ]; then
	tests="$tests remote_system_calls_without_xsave demo"
	limit=1800
fi

skip() { # REASON
	echo "1..0 # SKIP $1"
	exit 0
}

work=$(mktemp -d) || exit 1
qemu=
trap '[ -z "$qemu" ] || kill "$qemu" 2>/dev/null; rm -rf "$work"' EXIT
trap 'exit 143' TERM INT

for tool in busybox cpio gzip qemu-system-x86_64; do
	command -v "$tool" > /dev/null || skip "'$tool' is missing: run scripts/install test"
done

. selftests/vm/machine.sh

# What inside.py would otherwise have to make there.
prepare() {
	make --no-print-directory O="$out" "$out/ferry" \
		$(cd selftests/unit && ls test_inject*.c | sed "s|\(.*\)\.c|$out/unit/\1|") &&
	(cd selftests/e2e && PYTHONDONTWRITEBYTECODE=1 python3 -c 'import lib; lib.boot_files()') &&
	machine_initramfs "O='$out' WERROR='${WERROR-}' FERRY='$out/ferry' FERRY_CACHE='$cache' \
		FERRY_QEMU='$here/selftests/vm/qemu.sh' FERRY_TEST_SLOW=$slow \
		python3 '$here/selftests/vm/inside.py' $tests"
}

cache=$(readlink -f "${FERRY_CACHE:-build/cache}")
selftests/qemu/kernel.sh "$flavour" > "$work/kernel" 2> "$work/log" ||
	skip "no kernel: $(tail -n 1 "$work/log")"
{ read -r kernel; read -r modules; } < "$work/kernel"
if ! prepare > "$work/log" 2>&1; then
	sed 's/^/# /' "$work/log"
	echo '1..1'
	echo 'not ok 1 - what is run inside was built'
	exit 1
fi
machine_boot
machine_results
