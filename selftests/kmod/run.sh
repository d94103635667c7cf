#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
#
# The module builds without a warning against Debian's kernels and says what it is;
# and a module with a warning in it does not pass for one without. Prints TAP.
set -u
cd "$(dirname "$0")/../.." || exit 1
number=0

result() { # WORDS-OF-RESULT NAME [REMARK]
	number=$((number + 1))
	echo "$1 $number - $2${3:+ # $3}"
}

work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
trap 'exit 143' TERM INT

# build TREE OUT: all that is said goes to OUT.log.
build() {
	make --no-print-directory -C "$1" O="$2" KDIR="$kdir" module > "$2.log" 2>&1 || return
	# Of its own sources only: what the kernel's headers say under W=1 is not ours.
	! grep -q 'kmod/.*: warning:' "$2.log"
}

says() { # KO FIELD WORDS
	modinfo -F "$2" "$1" | grep -q "$3"
}

report() { # STATUS NAME LOG
	if [ "$1" = 0 ]; then
		result ok "$2"
	else
		result 'not ok' "$2"
		sed 's/^/# /' "$3"
	fi
}

echo 1..5
for flavour in cloud standard; do
	out=$work/$flavour
	if ! kdir=$(selftests/kmod/headers.sh "$flavour" 2> "$out.log"); then
		sed 's/^/# /' "$out.log"
		for name in builds is_itself; do
			result ok "${name}_$flavour" "SKIP no kernel headers: $(tail -n 1 "$out.log")"
		done
		continue
	fi
	build . "$out"
	report $? "builds_$flavour" "$out.log"
	says "$out/ferry.ko" license '^GPL$' && says "$out/ferry.ko" vermagic '^6\.1\.'
	report $? "is_itself_$flavour" "$out.log"
done

if [ -z "$kdir" ]; then
	result ok warning_is_noticed 'SKIP no kernel headers'
	exit
fi
mkdir "$work/twin"
cp -r Makefile Kbuild kmod "$work/twin"
printf 'static int nobody_calls_this(void)\n{\n\treturn 0;\n}\n' >> "$work/twin/kmod/main.c"
build "$work/twin" "$work/warned"
[ $? != 0 ] && grep -q 'kmod/.*nobody_calls_this' "$work/warned.log"
report $? warning_is_noticed "$work/warned.log"
