#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
#
# Print the path of a command that is qemu-system-x86_64 of a given version, after
# fetching it into the cache if needed. It runs from a private folder with its own
# libraries; nothing is installed, and the process keeps the pid it was started as.
#
#   selftests/qemu/qemu.sh 7.2 | 10.0 | 11.1
#
# $FERRY_CACHE names the cache; default build/cache.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
. "$root/selftests/qemu/apt.sh"

[ $# = 1 ] || { echo "usage: qemu.sh 7.2 | 10.0 | 11.1" >&2; exit 2; }
while read -r version suite; do
	[ "$version" != "$1" ] || break
done <<TABLE
7.2   bookworm
10.0  bookworm-backports
11.1  trixie-backports
none  -
TABLE
[ "$version" = "$1" ] || die "there is no entry for QEMU $1; know 7.2 10.0 11.1"

is_version() { # COMMAND
	"$1" --version 2>/dev/null | grep -q "^QEMU emulator version $version\."
}

if system=$(command -v qemu-system-x86_64) && is_version "$system"; then
	echo "$system"
	exit 0
fi

out=$cache/qemu-$version
need apt-get dpkg-deb flock
lock "qemu-$version"

if [ ! -e "$out/complete" ]; then
	new=$out.new
	rm -rf "$new" "$out"
	mkdir -p "$new/root"
	# Nothing counts as installed in the private state, so this fetches every
	# library too, down to the C library: it must not meet this machine's.
	apt_suite "$suite"
	apt-get $apt_options install -y --download-only --no-install-recommends \
		qemu-system-x86 >&2 || die "cannot download QEMU of $suite"
	# Folders that became links in newer releases: unpack behind the links.
	for name in bin sbin lib lib64; do
		mkdir -p "$new/root/usr/$name"
		ln -s "usr/$name" "$new/root/$name"
	done
	for package in "$dir"/archives/*.deb; do
		dpkg-deb --fsys-tarfile "$package" |
			tar -x -C "$new/root" --keep-directory-symlink --no-same-owner
	done
	rm -f "$dir"/archives/*.deb
	cat > "$new/qemu-system-x86_64" <<'RUN'
#!/bin/sh
here=$(dirname "$(readlink -f "$0")")/root
lib=$here/usr/lib/x86_64-linux-gnu
export QEMU_MODULE_DIR="$lib/qemu"
exec "$here/usr/lib64/ld-linux-x86-64.so.2" \
	--library-path "$lib:$lib/pulseaudio:$lib/samba:$lib/ceph" \
	"$here/usr/bin/qemu-system-x86_64" -L "$here/usr/share/qemu" -L "$here/usr/share/seabios" "$@"
RUN
	chmod +x "$new/qemu-system-x86_64"
	# What the packages' own scripts would have linked.
	[ -e "$new/root/usr/lib64/ld-linux-x86-64.so.2" ] ||
		ln -s ../lib/x86_64-linux-gnu/ld-linux-x86-64.so.2 "$new/root/usr/lib64/"
	is_version "$new/qemu-system-x86_64" ||
		die "what $suite holds is not a QEMU $version that runs here:" \
			"$("$new/qemu-system-x86_64" --version 2>&1 | head -n 1)"
	touch "$new/complete"
	mv "$new" "$out"
fi
echo "$(readlink -f "$out")/qemu-system-x86_64"
