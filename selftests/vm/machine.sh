# SPDX-License-Identifier: GPL-2.0-or-later
#
# A virtual machine with a Debian kernel and this machine's own root, read-only by
# virtio-9p with a tmpfs over it. To be sourced by a run.sh that has set
#
#	work	a folder for initramfs, guest and serial
#	kernel, modules		as selftests/qemu/kernel.sh prints them
#	limit	seconds until it is ended
#	tests	names of what must pass: a test that is skipped in there is a failure
#
# and may have set
#
#	cpu	the processor, of QEMU's models (Nehalem,-cx16)
#	machine_modules	kernel modules to load beside those that it needs itself
#	machine_append	words for the kernel's command line
#
# and that ends the process in $qemu when it exits.

# machine_initramfs 'VARIABLE=VALUE... COMMAND': what is run inside, as root, in a chroot.
# The module loader that guests have, but with a script of ours for the workload: of
# two archives the second one's file stays.
machine_initramfs() {
	selftests/qemu/initramfs.sh "$work/initramfs" "$modules" \
		virtio_pci 9pnet_virtio 9p overlay veth virtio_blk ${machine_modules:-} || return
	cat > "$work/guest" <<-GUEST
		#!/bin/busybox sh
		/bin/busybox mkdir /host /change /machine
		/bin/busybox mount -t 9p -o ro,trans=virtio,version=9p2000.L,cache=loose,msize=512000 host /host
		/bin/busybox mount -t tmpfs change /change
		/bin/busybox mkdir /change/upper /change/work
		/bin/busybox mount -t overlay -o lowerdir=/host,upperdir=/change/upper,workdir=/change/work machine /machine
		for folder in proc sys dev; do
			/bin/busybox mount --move /\$folder /machine/\$folder
		done
		/bin/busybox mkdir -p /machine/dev/shm /machine/dev/pts
		/bin/busybox mount -t tmpfs run /machine/run
		/bin/busybox mount -t tmpfs shm /machine/dev/shm
		/bin/busybox mount -t devpts pts /machine/dev/pts
		/bin/busybox ifconfig lo up
		/bin/busybox chroot /machine /usr/bin/env -i PATH="$PATH" HOME=/root \\
			PYTHONDONTWRITEBYTECODE=1 $1 2>&1
		echo "ENDED \$?"
		/bin/busybox poweroff -f
	GUEST
	chmod +x "$work/guest"
	(cd "$work" && echo guest | cpio -o -H newc --quiet | gzip -1) >> "$work/initramfs"
}

# machine_boot [OPTION OF QEMU...]: wait for its end; what it printed is in $work/log.
# Without cx16, because QEMU 7.2's emulation of CMPXCHG16B leaves rubbish in the flags.
machine_boot() {
	timeout "$limit" qemu-system-x86_64 -nodefaults -no-reboot -display none -serial stdio \
		-machine pc -accel tcg,thread=multi -cpu ${cpu:-Nehalem,-cx16} -smp 2 -m 3G \
		-virtfs local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap \
		-kernel "$kernel" -initrd "$work/initramfs" \
		-append "console=ttyS0 quiet panic=-1 ${machine_append:-}" "$@" < /dev/null > "$work/serial" 2>&1 &
	qemu=$!
	wait "$qemu"
	qemu=
	tr -d '\r' < "$work/serial" > "$work/log"
}

# machine_results: TAP, a result for each of $tests and one for the end. All was printed by a
# tap.main() (selftests/e2e/tap.py).
machine_results() {
	number=0
	missed=0
	sed -n 's/^BOOTED/# &/p; /^# *saw: /p' "$work/log"
	sed -n 's/^ok [0-9]* - \(.*\) # \([0-9.]* s\)$/# \2 \1/p' "$work/log"
	for name in $tests; do
		machine_result "^ok [0-9]* - $name # [0-9.]* s\$" "$name"
	done
	machine_result '^ENDED 0$' 'it ended by itself'
	[ "$missed" = 0 ] || sed 's/^/# /' "$work/log"
	echo "1..$number"
}

machine_result() { # REGULAR-EXPRESSION NAME: is there such a line?
	number=$((number + 1))
	if grep -q "$1" "$work/log"; then
		echo "ok $number - $2"
	else
		echo "not ok $number - $2"
		missed=1
	fi
}
