#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
#
# The act of scripts/demo with the kernel module: demo.py inside a virtual machine with
# Debian 12's own kernel, because this machine's kernel is nobody's to load modules into.
# What it says is shown as it comes. Exit status: 0 if it was shown and every proof held.
#
#   selftests/hosted/demo.sh [--wait]     wait: when all is built, for a line on standard input
set -u
cd "$(dirname "$0")/../.." || exit 1
limit=180
. selftests/hosted/prepare.sh

die() { # WHAT-WENT-WRONG [LOG]
	echo "demo: FAILED: $1" >&2
	[ -z "${2:-}" ] || tail -n 40 "$2" >&2
	exit 1
}

prepare_kernel standard > "$work/why" ||
	die "the module cannot be shown here: $(cat "$work/why")"
prepare_machine standard FERRY_TEST_SLOW=5 demo.py > "$work/log" 2>&1 ||
	die 'the module or its machine cannot be built' "$work/log"
if [ "${1:-}" = --wait ]; then
	read -r _ || exit 1 # nobody wants it any more
	exec < /dev/null
fi
: > "$work/serial"
mkfifo "$work/lines"
sed -u -n 's/\r$//; s/^DEMO /      /p' < "$work/lines" &
shown=$!
tail -n +1 -f "$work/serial" > "$work/lines" &
follow=$!
prepare_boot
sleep 1 # tail looks once a second
kill "$follow"
wait "$follow" "$shown" 2> /dev/null
grep -q '^ENDED 0$' "$work/log" && grep -q '^DEMO SHOWN' "$work/log" ||
	die 'the migration with the kernel module' "$work/log"
