#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
#
# A tracer that is killed at any of its steps leaves its target unharmed. Prints TAP.
set -u
cd "$(dirname "$0")/../.." || exit 1
out=${O:-build}
log=$(mktemp) || exit 1
program=$out/selftests/inject/kill_sweep
trap 'rm -f "$log"' EXIT
trap 'exit 143' TERM INT

if ! make --no-print-directory O="$out" "$program" > "$log" 2>&1; then
	echo '1..1'
	echo 'not ok 1 - kill_sweep is built'
	sed 's/^/# /' "$log"
	exit 1
fi
rm -f "$log"
exec "$program"
