#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
#
# Print the path of a Debian kernel image and, on a second line, of its modules
# folder (lib/modules/VERSION), after fetching it into the cache if needed.
#
#   selftests/qemu/kernel.sh [FLAVOUR]      default: cloud
#
# $FERRY_CACHE names the cache; default build/cache.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
. "$root/selftests/qemu/apt.sh"
. "$root/selftests/qemu/flavour.sh"

name=${1:-cloud}
flavour "$name" image
out=$cache/kernel-$name
need apt-get dpkg-deb depmod flock
lock "kernel-$name"

fetch() { # SUITE
	apt_suite "$1"
	package=$(depends "$meta" linux-image)
	[ -n "$package" ] || return 1
	# In later releases the image package is empty and the files are in these three.
	for part in linux-binary linux-modules linux-base; do
		package="$package $(depends "${package%% *}" $part)"
	done
	(cd "$new" && apt-get $apt_options download $package >&2)
}

if [ ! -e "$out/complete" ]; then
	fetch_new "$suite" "the kernel behind $meta"
	for deb in "$new"/*.deb; do
		dpkg-deb -x "$deb" "$new/root"
	done
	rm "$new"/*.deb
	[ -d "$new/root/lib/modules" ] || ln -s usr/lib "$new/root/lib"
	version=$(ls "$new/root/lib/modules")
	depmod -b "$new/root" "$version"
	if [ -e "$new/root/boot/vmlinuz-$version" ]; then
		ln -s "root/boot/vmlinuz-$version" "$new/vmlinuz"
	else
		ln -s "root/lib/modules/$version/vmlinuz" "$new/vmlinuz"
	fi
	ln -s "root/lib/modules/$version" "$new/modules"
	[ -e "$new/vmlinuz" ] || die "$package holds no vmlinuz where one was expected"
	touch "$new/complete"
	mv "$new" "$out"
fi
readlink -f "$out/vmlinuz"
readlink -f "$out/modules"
