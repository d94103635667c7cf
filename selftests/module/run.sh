#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
#
# The module on Debian's kernels: boots each under emulation (two processors, two memory
# nodes, swap, disks for direct I/O, KVM on nested SVM), loads ferry.ko and runs every
# test_*.c here in it. Prints TAP; results.py says what counts as what.
#
#   selftests/module/run.sh [FLAVOUR...]    see selftests/qemu/kernel.sh
#
# Without names: standard and 6.12; with FERRY_TEST_LONG also cloud, 6.12-cloud and 7.2,
# and each search for a race takes longer. FERRY_ONLY=NAME,NAME runs only these tests and
# no broken twins, FERRY_PROGRAMS='NAME...' only these programs, FERRY_SAFETY=NAME only the
# twin without that.
#
# After the sound module its broken twin is loaded (kmod/broken.h): with one safety removed
# at a time, the test that the list `broken` names must fail. Without FERRY_TEST_LONG in the
# first kernel only.
set -u
cd "$(dirname "$0")/../.." || exit 1
here=selftests/module
out=${O:-build}/selftests/module
number=0

result() { # WORDS-OF-RESULT NAME [REMARK]
	number=$((number + 1))
	echo "$1 $number - $2${3:+ # $3}"
}

fail() { # NAME LOG
	result 'not ok' "$1"
	sed 's/^/# /' "$2"
}

work=$(mktemp -d) || exit 1
qemu=
trap '[ -z "$qemu" ] || kill "$qemu" 2>/dev/null; rm -rf "$work"' EXIT
trap 'exit 143' TERM INT

for tool in busybox cpio gzip xz qemu-system-x86_64 python3; do
	command -v "$tool" > /dev/null && continue
	echo "1..0 # SKIP '$tool' is missing: run scripts/install test"
	exit 0
done

seconds=2 limit=420
[ -z "${FERRY_TEST_LONG:-}" ] || seconds=20 limit=1800
if [ $# = 0 ]; then
	set -- standard 6.12
	[ -z "${FERRY_TEST_LONG:-}" ] || set -- "$@" cloud 6.12-cloud 7.2
fi
# The kernels that the broken twin is shown to.
[ -n "${FERRY_TEST_LONG:-}" ] && twins=$* || twins=$1
programs=${FERRY_PROGRAMS:-$(cd "$here" && ls test_*.c | sed 's/^test_\(.*\)\.c$/\1/')}

wanted() { # PROGRAM
	case " $(echo $programs) " in *" $1 "*) ;; *) return 1 ;; esac
}

# Statically linked: the guest has no C library.
build_programs() {
	kselftest=$($here/kselftest.sh) || return
	mkdir -p "$out"
	! wanted example || selftests/uapi/example.sh test > "$out/example.h" || return
	! wanted monitor || make --no-print-directory "O=${O:-build}" "${O:-build}/ferry" || return
	for program in $programs; do
		[ -e "$here/test_$program.c" ] || { echo "there is no test_$program.c"; return 1; }
		# The macros of the kernel's header compare what they are given as it comes.
		${CC:-gcc} -std=gnu11 -D_GNU_SOURCE -O2 -g0 -Wall -Wextra -Wshadow -Wvla \
			-Wwrite-strings -Wno-sign-compare -Wno-unused-parameter -Werror \
			-I$here -I"$out" -Iuapi -isystem "$kselftest" -static -pthread \
			-o "$out/test_$program" $here/test_$program.c $here/tracker.c \
			$here/shadow.c $here/snapshot.c $here/direct.c $here/machine.c || return
	done
}

# build_module FLAVOUR: makes $out/FLAVOUR/{sound,broken}/ferry.ko
build_module() {
	selftests/kmod/build.sh "$1" "$out/$1/sound" &&
		selftests/kmod/build.sh "$1" "$out/$1/broken" FERRY_BROKEN=1
}

# modules FLAVOUR-FOLDER NAME...: copy the named modules and what they depend on, and
# print their file names in the order to load them. Built in ones are passed over.
modules() {
	folder=$1
	shift
	for name; do
		name=$(echo "$name" | sed 's/[-_]/[-_]/g')
		line=$(grep "^[^:]*/$name\.ko[^:]*:" "$folder/modules.dep" | head -n 1)
		if [ -z "$line" ]; then
			grep -q "/$name\.ko" "$folder/modules.builtin" && continue
			echo "there is no module $name" >&2
			return 1
		fi
		for path in $(echo "${line#*:}" | tr ' ' '\n' | tac) "${line%%:*}"; do
			file=$(basename "$path" | sed 's/\.ko.*/.ko/')
			[ ! -e "$root/modules/$file" ] || continue
			case $path in
			*.xz) xz -dc "$folder/$path" ;;
			*.zst) zstd -dcq "$folder/$path" ;;
			*) cat "$folder/$path" ;;
			esac > "$root/modules/$file"
			echo "$file"
		done
	done
}

has_twins() { # FLAVOUR
	case " $twins " in *" $1 "*) ;; *) return 1 ;; esac
}

make_initramfs() { # FLAVOUR MODULES-FOLDER
	root=$work/root
	rm -rf "$root"
	mkdir -p "$root/bin" "$root/dev" "$root/proc" "$root/sys" "$root/tmp" "$root/modules"
	cp "$(command -v busybox)" "$root/bin/busybox"
	# The agent, for `ferry monitor`, and the libraries it is linked with.
	if wanted monitor; then
		cp "${O:-build}/ferry" "$root/" || return
		for library in $(ldd "${O:-build}/ferry" | grep -o '/[^ ]*'); do
			mkdir -p "$root${library%/*}" && cp "$library" "$root$library" || return
		done
	fi
	for program in $programs; do
		cp "$out/test_$program" "$root/" || return
	done
	cp "$out/$1/sound/ferry.ko" "$root/modules/ferry.ko" &&
		cp "$out/$1/broken/ferry.ko" "$root/modules/ferry-broken.ko" || return
	load=$(modules "$2" virtio_pci virtio_blk kvm-amd) || return
	{
		echo "load='$(echo $load)'"
		[ -n "${FERRY_SAFETY:-}" ] && echo "programs=" || echo "programs='$(echo $programs)'"
		echo "export FERRY_SECONDS=$seconds FERRY_ONLY=${FERRY_ONLY:-} FERRY_VARIANT=${FERRY_VARIANT:-}"
	} > "$root/settings"
	: > "$root/broken"
	if [ -n "${FERRY_SAFETY:-}" ] ||
	   { [ -z "${FERRY_ONLY:-}${FERRY_PROGRAMS:-}" ] && has_twins "$1"; }; then
		python3 $here/results.py broken "$1" "${FERRY_SAFETY:-}" < $here/broken \
			> "$root/broken" || return
	fi
	cp $here/inside.sh "$root/init"
	chmod +x "$root/init"
	(cd "$root" && find . | cpio -o -H newc --quiet | gzip -1) > "$work/initramfs"
}

# Without cx16, because QEMU 7.2's emulation of CMPXCHG16B leaves rubbish in the flags:
# kernels that use it (6.12's allocator does) crash in half of all boots. The kernel's own
# checks that Debian has switched on are on, all messages go to the first serial port and
# what the tests say to the second. The slow disk holds a request for 50 ms.
boot() { # KERNEL
	truncate -s 64M "$work/direct" "$work/slow" && truncate -s 256M "$work/swap" || return
	timeout "$limit" qemu-system-x86_64 -nodefaults -no-reboot -display none \
		-serial "file:$work/kernel" -serial "file:$work/tests" \
		-machine pc -accel tcg,thread=multi -cpu EPYC,+svm,+npt,-cx16 -smp 2,sockets=2 -m 1024 \
		-object memory-backend-ram,id=m0,size=512M -numa node,nodeid=0,cpus=0,memdev=m0 \
		-object memory-backend-ram,id=m1,size=512M -numa node,nodeid=1,cpus=1,memdev=m1 \
		-drive "file=$work/direct,format=raw,if=virtio,cache=unsafe" \
		-drive "file=$work/swap,format=raw,if=virtio,cache=unsafe" \
		-drive "file=$work/slow,format=raw,if=virtio,cache=unsafe,throttling.iops-total=20" \
		-kernel "$1" -initrd "$work/initramfs" -append "console=ttyS0 loglevel=7 panic=-1 \
			slub_debug=FZPU,kmalloc-* page_poison=on init_on_free=1 \
			kfence.sample_interval=50 hung_task_timeout_secs=30 \
			transparent_hugepage=madvise mitigations=off" \
		< /dev/null > "$work/qemu" 2>&1 &
	qemu=$!
	wait "$qemu"
	status=$?
	qemu=
	return $status
}

check() { # FLAVOUR
	selftests/qemu/kernel.sh "$1" > "$work/paths" 2> "$work/log" || {
		result ok "$1" "SKIP no kernel: $(tail -n 1 "$work/log")"
		return
	}
	build_module "$1" > "$work/log" 2>&1
	case $? in
	0) ;;
	3) result ok "$1" "SKIP no module: $(tail -n 1 "$work/log")"; return ;;
	*) fail "$1: the module was built" "$work/log"; return ;;
	esac
	make_initramfs "$1" "$(sed -n 2p "$work/paths")" > "$work/log" 2>&1 ||
		{ fail "$1: the guest was built" "$work/log"; return; }
	: > "$work/kernel"
	: > "$work/tests"
	boot "$(sed -n 1p "$work/paths")"
	[ -z "${FERRY_KEEP:-}" ] || cp "$work/kernel" "$work/tests" "$FERRY_KEEP"
	python3 $here/results.py judge "$1" $? "$number" "$work/kernel" "$work/tests" \
		$here/skips "$work/root/broken" > "$work/results"
	cat "$work/results"
	number=$((number + $(grep -cE '^(not )?ok ' "$work/results")))
}

if ! build_programs > "$work/log" 2>&1; then
	fail 'the test programs were built' "$work/log"
else
	result ok 'the test programs were built'
	for flavour; do
		check "$flavour"
	done
fi
echo "1..$number"
