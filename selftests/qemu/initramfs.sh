#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
#
# Build the initramfs of the test guest: busybox, the workload, and the kernel
# modules named with all they depend on, loaded in that order.
#
#   selftests/qemu/initramfs.sh OUT MODULES_DIR [MODULE...]
#
# MODULES_DIR is the second line that kernel.sh prints. Modules that are built
# into the kernel are skipped; a MODULE with a slash in it is the path of one that
# the kernel does not have. OUT appears whole or not at all.
# FERRY_GUEST=PROGRAM is run in the place of the workload; static, as process 1.
set -eu
here=$(cd "$(dirname "$0")" && pwd)

die() { echo "initramfs.sh: $*" >&2; exit 1; }
[ $# -ge 2 ] || { echo "usage: initramfs.sh OUT MODULES_DIR [MODULE...]" >&2; exit 2; }
out=$1 modules=$2
shift 2
for tool in busybox cpio gzip xz zstd "${CC:-gcc}"; do
	command -v "$tool" >/dev/null || die "'$tool' is missing: run scripts/install test"
done
[ -e "$modules/modules.dep" ] || die "$modules has no modules.dep; use a folder kernel.sh printed"

tmp=$(mktemp -d)
trap 'rm -rf "$tmp" "$out.$$"' EXIT
mkdir -p "$tmp/bin" "$tmp/dev" "$tmp/proc" "$tmp/sys" "$tmp/tmp" "$tmp/modules"
cp "$(command -v busybox)" "$tmp/bin/busybox"
if [ -n "${FERRY_GUEST:-}" ]; then
	cp "$FERRY_GUEST" "$tmp/guest"
else
	"${CC:-gcc}" -std=gnu11 -D_GNU_SOURCE -O2 -Wall -Wextra -static -pthread \
		-o "$tmp/guest" "$here/guest.c" || die "cannot build guest.c"
fi

# Module names use - and _ alike; file names are as they are.
module_path() {
	grep -o "^[^:]*/$(echo "$1" | sed 's/[-_]/[-_]/g')\.ko[^:]*" "$modules/modules.dep" | head -n 1
}
insert=
add() { # PATH, after what it depends on (modules.dep lists the deepest last)
	for dep in $(sed -n "s|^$1: *||p" "$modules/modules.dep" | tr ' ' '\n' | tac) "$1"; do
		name=$(basename "$dep" | sed 's/\.ko.*/.ko/')
		[ ! -e "$tmp/modules/$name" ] || continue
		case $dep in
		*.xz) xz -dc "$modules/$dep" ;;
		*.zst) zstd -dcq "$modules/$dep" ;;
		*) cat "$modules/$dep" ;;
		esac > "$tmp/modules/$name"
		insert="$insert $name"
	done
}
for module; do
	case $module in
	*/*)
		cp "$module" "$tmp/modules/"
		insert="$insert ${module##*/}"
		continue
		;;
	esac
	path=$(module_path "$module")
	if [ -n "$path" ]; then
		add "$path"
	elif ! grep -q "/$(echo "$module" | sed 's/[-_]/[-_]/g')\.ko" "$modules/modules.builtin"; then
		die "$modules has no module '$module'"
	fi
done

cat > "$tmp/init" <<INIT
#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
/bin/busybox mount -t devtmpfs dev /dev
for module in $insert; do
	/bin/busybox insmod /modules/\$module || echo "GUEST FAILED: insmod \$module"
done
/bin/busybox mdev -s 2>/dev/null
echo "BOOTED \$(/bin/busybox uname -r)"
exec /guest
INIT
chmod +x "$tmp/init"
(cd "$tmp" && find . | cpio -o -H newc --quiet | gzip -1) > "$out.$$"
mv "$out.$$" "$out"
