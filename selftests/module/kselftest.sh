#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
#
# Print a folder that holds the kernel's own kselftest.h and kselftest_harness.h,
# after taking them out of Debian's package of the kernel's sources if needed. The
# package is 140 MB and is thrown away again; nothing is installed.
#
#   selftests/module/kselftest.sh
#
# $FERRY_CACHE names the cache; default build/cache.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
. "$root/selftests/qemu/apt.sh"

out=$cache/kselftest
need apt-get dpkg-deb flock xz tar
lock kselftest

fetch() { # SUITE
	apt_suite "$1"
	package=$(apt-cache $apt_options show --no-all-versions linux-source 2>/dev/null |
		sed -n 's/^Depends: .*\(linux-source-[0-9.]*[0-9]\).*/\1/p' | head -n 1)
	[ -n "$package" ] && (cd "$new" && apt-get $apt_options download "$package" >&2)
}

if [ ! -e "$out/complete" ]; then
	fetch_new - "the package behind linux-source"
	tests=$package/tools/testing/selftests
	source=./usr/src/$package.tar.xz
	# Both readers stop at the last file asked for, and what writes to them then dies of
	# SIGPIPE: whether the files arrived is what counts.
	dpkg-deb --fsys-tarfile "$new"/*.deb | tar -x -O --occurrence=1 -f - "$source" |
		xz -dc 2>/dev/null | tar -x -f - -C "$new" --strip-components=4 --occurrence=1 \
		"$tests/kselftest.h" "$tests/kselftest_harness.h" || true
	[ -s "$new/kselftest.h" ] && [ -s "$new/kselftest_harness.h" ] ||
		die "$package holds no $tests/kselftest_harness.h"
	rm "$new"/*.deb
	touch "$new/complete"
	mv "$new" "$out"
fi
echo "$out"
