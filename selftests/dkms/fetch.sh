#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
#
# Print the path of this release's DKMS program, after fetching it into the cache if
# needed. Nothing is installed. $FERRY_CACHE names the cache; default build/cache.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
. "$root/selftests/qemu/apt.sh"

out=$cache/dkms
need apt-get dpkg-deb flock
lock dkms
fetch() { # SUITE
	apt_suite "$1"
	(cd "$new" && apt-get $apt_options download dkms >&2)
}

if [ ! -e "$out/complete" ]; then
	fetch_new - dkms
	dpkg-deb -x "$new"/*.deb "$new/root"
	rm "$new"/*.deb
	touch "$new/complete"
	mv "$new" "$out"
fi
readlink -f "$out/root/usr/sbin/dkms"
