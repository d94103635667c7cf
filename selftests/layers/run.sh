#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
#
# Includes go one way and every file has its licence; and the checkers of both are
# able to say no. Prints TAP.
cd "$(dirname "$0")/../.." || exit 1
python3 selftests/layers/test_layers.py
status=$?
echo 1..2
for checker in layers licences; do
	if complaints=$(scripts/$checker 2>&1); then
		echo "ok - this_tree_$checker"
	else
		status=1
		echo "not ok - this_tree_$checker"
		echo "$complaints" | sed 's/^/# /'
	fi
done
exit $status
