#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
#
# tables.sh [MOVES]: is the transition table of user/engine/state.c the model's?
# MOVES is a file of "ROLE FROM TO" lines; without it, every MOVE(role, from, to) in the
# text of switchover.pml and cpr.pml. Nothing is left out: the model covers postcopy too.
# Exits 1 and prints the difference: "<" is legal in state.c only, ">" in the model only.

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
root=$here/../..
: "${CC:=cc}"

tmp=$(mktemp -d) || exit 1
trap 'rm -rf "$tmp"' EXIT

cat >"$tmp/table.c" <<'END'
#include <stdio.h>
#include "engine/state.h"

int main(void)
{
	ferry_state_print_table(stdout);
	return 0;
}
END
$CC -std=gnu11 -D_GNU_SOURCE -I"$root/user" -o "$tmp/table" "$tmp/table.c" \
	"$root/user/engine/state.c" || exit 1
"$tmp/table" | LC_ALL=C sort -u >"$tmp/code" || exit 1

if [ $# -gt 0 ]; then
	LC_ALL=C sort -u "$1" >"$tmp/model" || exit 1
else
	grep -hEo 'MOVE\([a-z_]+, [a-z_]+, [a-z_]+\)' "$here/switchover.pml" "$here/cpr.pml" |
		sed -E 's/MOVE\(([a-z_]+), ([a-z_]+), ([a-z_]+)\)/\1 \2 \3/' |
		grep -v '^role from to$' | tr _ - | LC_ALL=C sort -u >"$tmp/model"
fi
for side in code model; do
	if ! [ -s "$tmp/$side" ]; then
		echo "no moves found on the side of the $side" >&2
		exit 1
	fi
done
if ! diff "$tmp/code" "$tmp/model" >"$tmp/diff"; then
	grep '^[<>]' "$tmp/diff" >&2
	exit 1
fi
