#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
#
# The module builds without a warning against Debian's kernels and says what it is.
# Prints TAP.
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

says() { # FIELD WORDS
	modinfo -F "$1" "$work/$flavour/ferry.ko" | grep -q "$2" && return
	echo "modinfo -F $1: not '$2'"
	return 1
}

build() {
	make --no-print-directory O="$work/$flavour" KDIR="$kdir" module || return
	says license '^GPL$' && says description '^ferry' && says vermagic '^6\.1\.' || return
	# Its own sources only: the headers' warnings under W=1 are not ours.
	! grep 'kmod/.*: warning:' "$work/log"
}

echo 1..2
for flavour in cloud standard; do
	if ! kdir=$(selftests/kmod/headers.sh "$flavour" 2> "$work/log"); then
		sed 's/^/# /' "$work/log"
		result ok "builds_$flavour" "SKIP no kernel headers: $(tail -n 1 "$work/log")"
	elif build > "$work/log" 2>&1; then
		result ok "builds_$flavour"
	else
		result 'not ok' "builds_$flavour"
		sed 's/^/# /' "$work/log"
	fi
done
