#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
#
# Print the folder to build a module in (KDIR) for one of Debian's kernels, after
# fetching its headers into the cache if needed. Nothing is installed.
#
#   selftests/kmod/headers.sh [FLAVOUR]     default: cloud
#
# build.sh beside it builds with them; those of 7.2 need compilers newer than this
# machine's. $FERRY_CACHE names the cache; default build/cache.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
. "$root/selftests/qemu/apt.sh"
. "$root/selftests/qemu/flavour.sh"

name=${1:-cloud}
flavour "$name" headers
out=$cache/headers-$name
need apt-get dpkg-deb flock
lock "headers-$name"

fetch() { # SUITE
	apt_suite "$1"
	package=$(depends "$meta" linux-headers)
	[ -n "$package" ] || return 1
	parts=
	# What all flavours share, the build tools, and in later releases the configuration.
	for kind in headers kbuild base; do
		parts="$parts $(depends "$package" "linux-$kind")"
	done
	(cd "$new" && apt-get $apt_options download "$package" $parts >&2)
}

if [ ! -e "$out/complete" ]; then
	fetch_new "$suite" "the headers behind $meta"
	for deb in "$new"/*.deb; do
		dpkg-deb -x "$deb" "$new/root"
		rm "$deb"
	done
	build=$new/root/usr/src/$package
	[ -f "$build/Makefile" ] || die "$package holds no usr/src/$package/Makefile"
	# It names itself and the common headers by the paths they would be installed to;
	# the tree moves to its final name after this.
	sed -i "s#^\(include \|KBUILD_OUTPUT=\)/usr/src/#\1$out/root/usr/src/#" "$build/Makefile"
	ln -s "root/usr/src/$package" "$new/build"
	touch "$new/complete"
	mv "$new" "$out"
fi
# C=2 asks this of recent kernels whether sparse is there and knows enough, and takes a script
# that the package left out for no. Who says C=2 here has seen to it.
for common in "$out"/root/usr/src/linux-headers-*-common; do
	valid=$common/scripts/checker-valid.sh
	[ ! -d "$common/scripts" ] || [ -e "$valid" ] ||
		{ printf '#!/bin/sh\necho 1\n' > "$valid" && chmod +x "$valid"; }
done
readlink -f "$out/build"
