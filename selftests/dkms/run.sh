#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
#
# What `make install-dkms` puts in place Debian's DKMS can add, build for its 6.1 kernel
# and install into a folder; sources that do not compile it refuses. Nothing is installed
# into the system: DKMS itself comes from the cache. Prints TAP.
set -u
cd "$(dirname "$0")/../.." || exit 1
. selftests/tap.sh

make_() { make --no-print-directory DESTDIR="$work/root" "$@"; }
version=$(sed -n 's/^PACKAGE_VERSION="\(.*\)"/\1/p' kmod/dkms.conf)
source=$work/root/usr/src/ferry-$version

echo 1..6
{ make_ install-dkms && [ -f "$source/dkms.conf" ] && [ -f "$source/Kbuild" ] &&
	[ -f "$source/kmod/main.c" ] && [ -f "$source/uapi/linux/ferry.h" ] &&
	[ ! -e "$source/kmod/broken.c" ] && [ -f "$work/root/usr/lib/udev/rules.d/60-ferry.rules" ] &&
	[ -f "$work/root/usr/local/include/linux/ferry_netlink.h" ] &&
	[ -z "$(find "$work/root" -type l -o -type f ! -perm 644)" ]; } > "$work/log" 2>&1
result $? install_puts_sources_in_place

# The program, the packages and the module are one version.
grep -q "printf(\"ferry $version\\\\n\")" user/agent/main.c > "$work/log" 2>&1
result $? version_is_that_of_the_program

if ! kdir=$(selftests/kmod/headers.sh standard 2> "$work/log") ||
	! dkms=$(selftests/dkms/fetch.sh 2> "$work/log") || [ "$(id -u)" != 0 ]; then
	why=$(tail -n 1 "$work/log")
	for name in adds builds installs broken_sources_are_refused; do
		number=$((number + 1))
		echo "ok $number - $name # SKIP ${why:-dkms wants to be root}"
	done
	exit $status
fi
kernel=${kdir##*/linux-headers-}

# dkms_ ACTION ARGUMENT...: all its folders are ours, and it signs nothing.
dkms_() {
	sign_file=none "$dkms" "$@" --sourcetree "$work/root/usr/src" --dkmstree "$work/tree" \
		--installtree "$work/modules" -m ferry -v "$version" -k "$kernel" -a x86_64 \
		--kernelsourcedir "$kdir" --no-depmod > "$work/log" 2>&1
}
mkdir "$work/tree"

dkms_ add
result $? adds
dkms_ build && modinfo -F vermagic "$work/tree/ferry/$version/$kernel/x86_64/module/ferry.ko" |
	grep -q "^$kernel "
result $? builds
mkdir -p "$work/modules/$kernel"
dkms_ install && find "$work/modules/$kernel" -name 'ferry.ko*' | grep -q .
result $? installs

dkms_ remove
echo 'int this is not C;' >> "$source/kmod/main.c"
! { dkms_ add && dkms_ build; } && grep -q 'Bad return status for module build' "$work/log"
result $? broken_sources_are_refused
exit $status
