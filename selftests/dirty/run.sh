#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
#
# The dirty trackers on Debian's kernels: boots each under emulation and runs
# selftests/unit/test_dirty*.c in it. What this machine's own kernel lacks
# (soft-dirty bits) or has (PAGEMAP_SCAN) is the other way round in 6.1. Prints TAP.
#
#   selftests/dirty/run.sh [FLAVOUR...]     default: cloud; see selftests/qemu/kernel.sh
set -u
cd "$(dirname "$0")/../.." || exit 1
out=${O:-build}
tests=$(cd selftests/unit && echo test_dirty*.c | sed 's/\.c\>//g')
programs=$(for test in $tests; do echo "$out/unit/$test"; done)
number=0

result() { # WORDS-OF-RESULT NAME [REMARK]
	number=$((number + 1))
	echo "$1 $number - $2${3:+ # $3}"
}

work=$(mktemp -d) || exit 1
qemu=
trap '[ -z "$qemu" ] || kill "$qemu" 2>/dev/null; rm -rf "$work"' EXIT
trap 'exit 143' TERM INT

for tool in busybox cpio gzip qemu-system-x86_64; do
	command -v "$tool" > /dev/null && continue
	echo "1..0 # SKIP '$tool' is missing: run scripts/install test"
	exit 0
done

# What must pass in each kernel: a test that is skipped there is a failure.
must_pass() { # FLAVOUR
	cat <<-TESTS
		softdirty reports_what_was_written
		softdirty many_regions
		softdirty stop_leaves_nothing
		softdirty dropped_entries
		softdirty absent_pages_are_dirty_once
		softdirty no_write_is_lost
		softdirty writes_are_lost_without_the_barrier
		softdirty the_race_test_sees_a_lost_collect
		softdirty start_refuses
		softdirty collect_fails_after_death
		softdirty supported_needs_a_process
		softdirty softdirty_refuses_swap
		softdirty softdirty_refuses_huge_pages
		softdirty choose_by_name
	TESTS
	case $1 in
	cloud | standard)
		echo 'pagemap pagemap_on_an_old_kernel'
		;;
	*)
		cat <<-TESTS
			pagemap reports_what_was_written
			pagemap many_regions
			pagemap dropped_entries
			pagemap dropped_and_read_again
			pagemap huge_pages
			pagemap no_write_is_lost
			pagemap no_write_is_lost_when_entries_are_dropped
			pagemap the_race_test_sees_a_lost_collect
		TESTS
		;;
	esac
}

make_initramfs() {
	root=$work/root
	mkdir -p "$root/bin" "$root/dev" "$root/proc" "$root/sys" "$root/tmp"
	cp "$(command -v busybox)" "$root/bin/busybox"
	for test in $tests; do
		cp "$out/unit/$test" "$root/" || return
		# "NAME => PATH (ADDRESS)" and, for the loader, "PATH (ADDRESS)"
		ldd "$root/$test" | grep -o '/[^ ]*' | while read -r lib; do
			mkdir -p "$root$(dirname "$lib")" && cp "$lib" "$root$lib" || exit 1
		done || return
	done
	cat > "$root/init" <<-INIT
		#!/bin/busybox sh
		/bin/busybox mount -t proc proc /proc
		/bin/busybox mount -t sysfs sys /sys
		/bin/busybox mount -t devtmpfs dev /dev
		/bin/busybox mount -t tmpfs tmp /tmp
		echo "BOOTED \$(/bin/busybox uname -r)"
		for test in $tests; do
			CMOCKA_MESSAGE_OUTPUT=TAP "/\$test" 2>&1
			echo "ENDED \$test \$?"
		done
		/bin/busybox poweroff -f
	INIT
	chmod +x "$root/init"
	(cd "$root" && find . | cpio -o -H newc --quiet | gzip -1) > "$work/initramfs"
}

# Two CPUs on two host threads, so that writer and tracker really run at once.
# Without cx16, because QEMU 7.2's emulation of CMPXCHG16B leaves rubbish in the
# flags: kernels that use it (6.12's allocator does) crash in half of all boots.
boot() { # KERNEL LOG
	timeout 240 qemu-system-x86_64 -nodefaults -no-reboot -display none -serial stdio \
		-machine pc -accel tcg,thread=multi -cpu Nehalem,-cx16 -smp 2 -m 512 \
		-kernel "$1" -initrd "$work/initramfs" \
		-append 'console=ttyS0 quiet panic=-1' < /dev/null > "$2" 2>&1 &
	qemu=$!
	wait "$qemu"
	qemu=
}

check() { # FLAVOUR
	log=$work/$1.log
	boot "$kernel" "$work/serial"
	tr -d '\r' < "$work/serial" > "$log"
	grep '^BOOTED\|stale pages' "$log" | sed 's/^#* */# /'
	missed=0
	while read -r name; do
		grep -q "^ok [0-9]* - $name\$" "$log" && { result ok "$1: $name"; continue; }
		result 'not ok' "$1: $name"
		missed=1
	done < "$work/must_pass"
	for test in $tests; do
		if grep -q "^ENDED $test 0\$" "$log"; then
			result ok "$1: nothing else failed in $test"
		else
			result 'not ok' "$1: nothing else failed in $test"
			missed=1
		fi
	done
	[ "$missed" = 0 ] || sed 's/^/# /' "$log"
}

# shellcheck disable=SC2086
if ! make --no-print-directory O="$out" $programs > "$work/make.log" 2>&1 ||
   ! make_initramfs > "$work/make.log" 2>&1; then
	sed 's/^/# /' "$work/make.log"
	echo '1..1'
	result 'not ok' 'the guest was built'
	exit 1
fi
[ $# -gt 0 ] || set -- cloud
for flavour; do
	must_pass "$flavour" > "$work/must_pass"
	if ! kernel=$(selftests/qemu/kernel.sh "$flavour" 2> "$work/log" | head -n 1) ||
	   [ ! -e "$kernel" ]; then
		sed 's/^/# /' "$work/log"
		result ok "$flavour" "SKIP no kernel: $(tail -n 1 "$work/log")"
	else
		check "$flavour"
	fi
done
echo "1..$number"
