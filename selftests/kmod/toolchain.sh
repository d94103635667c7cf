#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
#
# Run a command with the compilers of Debian 13, which the headers of 7.2 want, after
# fetching them into the cache if needed. Nothing is installed: the command sees their
# /usr in place of this machine's, in a mount namespace of its own; all else is as it is.
#
#   selftests/kmod/toolchain.sh COMMAND...
#
# As any user who may make namespaces. $FERRY_CACHE names the cache; default build/cache.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
. "$root/selftests/qemu/apt.sh"

suite=trixie
# What a module is built with; apt adds what these need.
packages='gcc-14 make pahole kmod sparse bash dash coreutils findutils sed grep mawk diffutils
	base-files libelf1t64 libssl3t64 zlib1g'
out=$cache/toolchain-$suite

need apt-get dpkg-deb flock unshare mount
[ -L /bin ] || die "/bin of this machine is not a link into /usr, so that /usr cannot be replaced"
[ $# -gt 0 ] || die "say which command to run"
lock "toolchain-$suite"

if [ ! -e "$out/complete" ] || [ ! -e "$out/usr/bin/sparse" ]; then
	new=$out.new
	rm -rf "$new" "$out"
	mkdir -p "$new"
	(
		apt_suite "$suite"
		# With a status file that says nothing is installed, apt names everything.
		apt-get $apt_options -y --download-only --no-install-recommends install $packages \
			>&2 8>&- 9>&- || die "cannot download the compilers of Debian 13"
		# The ends that other packages are laid over must be there first.
		dpkg-deb -x "$cache/apt/$suite/archives"/base-files_*.deb "$new"
		for deb in "$cache/apt/$suite/archives"/*.deb; do
			dpkg-deb -x "$deb" "$new"
			rm "$deb"
		done
	)
	# Half of it is not for compiling.
	rm -rf "$new"/usr/share/doc "$new"/usr/share/man "$new"/usr/share/locale "$new"/usr/share/info \
		"$new"/usr/lib/gcc/*/*/lto1 "$new"/usr/lib/gcc/*/*/*san*.a "$new"/var
	# What the packages' own scripts would have made.
	[ -e "$new/usr/bin/sh" ] || ln -s dash "$new/usr/bin/sh"
	[ -e "$new/usr/bin/awk" ] || ln -s mawk "$new/usr/bin/awk"
	[ -e "$new/usr/bin/gcc" ] || ln -s gcc-14 "$new/usr/bin/gcc"
	touch "$new/complete"
	mv "$new" "$out"
fi
exec 9>&-

names=--mount
[ "$(id -u)" = 0 ] || names='--mount --map-root-user'
here=$PWD
exec unshare $names sh -c '
	usr=$1 here=$2
	shift 2
	mount --bind "$usr" /usr && cd "$here" && PATH=/usr/sbin:/usr/bin exec "$@"' \
	sh "$out/usr" "$here" "$@"
