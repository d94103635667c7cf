#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
#
# Build the module for one of Debian's kernels, as OUT/ferry.ko. OUT must not be that of
# another flavour.
#
#   selftests/kmod/build.sh FLAVOUR OUT [MAKE-ARGUMENT...]
#
# FLAVOUR is one that headers.sh knows. Useful arguments: C=2 CF=-D__CHECK_ENDIAN__ checks
# with sparse (run.sh says what 7.2 needs beside that); FERRY_BROKEN=1 builds what only the
# tests load; -C DIR takes the sources from another folder (an absolute path). Exit status 3:
# headers or compilers cannot be had.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
[ $# -ge 2 ] || { echo "usage: build.sh FLAVOUR OUT [MAKE-ARGUMENT...]" >&2; exit 2; }
flavour=$1
mkdir -p "$2"
out=$(cd "$2" && pwd)
shift 2

kdir=$("$root/selftests/kmod/headers.sh" "$flavour") || exit 3
with=
# Since 6.12 Debian's headers bring type information, which a module's is made from.
[ "${flavour#6.12}" = "$flavour" ] || command -v pahole > /dev/null ||
	{ echo "build.sh: 'pahole' is missing on this machine: run scripts/install test" >&2; exit 3; }
case $flavour in
7.*)
	with=$root/selftests/kmod/toolchain.sh
	"$with" true || exit 3
	;;
esac
exec $with make --no-print-directory -j "$(nproc)" -C "$root" O="$out" KDIR="$kdir" "$@" module
