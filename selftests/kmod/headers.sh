#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
#
# Print the folder to build a module in (KDIR) for one of Debian's kernels, after
# fetching its headers into the cache if needed. Nothing is installed.
#
#   selftests/kmod/headers.sh [FLAVOUR]     default: cloud
#
# $FERRY_CACHE names the cache; default build/cache.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
. "$root/selftests/qemu/apt.sh"

flavour=${1:-cloud}
case $flavour in
cloud) meta=linux-headers-cloud-amd64 ;;
standard) meta=linux-headers-amd64 ;;
*) die "there is no flavour '$flavour'; know cloud standard" ;;
esac

out=$cache/headers-$flavour
need apt-get dpkg-deb flock
lock "headers-$flavour"

# depends PACKAGE: the header and kbuild packages it depends on directly.
depends() {
	apt-cache $apt_options show --no-all-versions "$1" 2>/dev/null |
		sed -n 's/^Depends: //p' | head -n 1 | tr ',' '\n' |
		sed -n 's/^ *\(linux-\(headers\|kbuild\)-[^ ]*\).*/\1/p'
}

fetch() { # SUITE
	apt_suite "$1"
	package=$(depends "$meta" | head -n 1)
	[ -n "$package" ] && (cd "$new" &&
		apt-get $apt_options download "$package" $(depends "$package") >&2)
}

if [ ! -e "$out/complete" ]; then
	new=$out.new
	rm -rf "$new" "$out"
	mkdir -p "$new/root"
	# No or stale lists in the system: take private ones of the same release.
	fetch - || fetch "$(. /etc/os-release && echo "$VERSION_CODENAME")" ||
		die "cannot download the headers behind $meta; is a Debian mirror reachable?"
	for deb in "$new"/*.deb; do
		dpkg-deb -x "$deb" "$new/root"
		rm "$deb"
	done
	build=$new/root/usr/src/$package
	[ -f "$build/Makefile" ] || die "$package holds no usr/src/$package/Makefile"
	# It includes the common headers by the path they would be installed to; the
	# tree moves to its final name after this.
	sed -i "s|^include /usr/src/|include $out/root/usr/src/|" "$build/Makefile"
	ln -s "root/usr/src/$package" "$new/build"
	touch "$new/complete"
	mv "$new" "$out"
fi
readlink -f "$out/build"
