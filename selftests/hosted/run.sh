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
# enough that pages stay pinned for long. ferry-vmm's guest is its threads. With
# FERRY_TEST_LONG there are guests under KVM too, on nested SVM.
set -u
cd "$(dirname "$0")/../.." || exit 1
flavour=${1:-standard}
slow=5
limit=420
tests='doctor_says_so a_plain_peer_is_refused a_view_is_for_the_kmod_tracker_alone
	a_cancel_leaves_no_trace
	a_crash_is_put_right a_view_left_behind_is_no_hindrance a_peer_with_a_view_is_seen
	a_vmm_with_libferry nothing_is_left without_the_module
	a_lost_write_is_found'
if [ -n "${FERRY_TEST_LONG:-}" ]; then
	limit=900
	cpu=EPYC,+svm,+npt,-cx16
	machine_modules=kvm-amd
	machine_append=mitigations=off # or it warns of what such a processor lacks
	# They are about the guest that the ones before them are about.
	tests="${tests%%a_crash*}cpu_max_throttles/cancel cpu_max_throttles/kill a_crash${tests#*a_crash} a_kvm_guest_is_switched a_vmm_under_kvm"
fi
# Only these, for whoever works on them.
tests=${FERRY_ONLY:-$tests}
. selftests/hosted/prepare.sh

prepare_kernel "$flavour" > "$work/why" || { echo "1..0 # SKIP $(cat "$work/why")"; exit 0; }
if ! { selftests/kmod/build.sh "$flavour" "$work/broken" FERRY_BROKEN=1 &&
       prepare_machine "$flavour" \
		"FERRY_TEST_SLOW=$slow FERRY_BROKEN_MODULE='$work/broken/ferry.ko'" \
		inside.py $tests; } > "$work/log" 2>&1; then
	sed 's/^/# /' "$work/log"
	echo '1..1'
	echo 'not ok 1 - what is run inside was built'
	exit 1
fi
prepare_boot
machine_results
