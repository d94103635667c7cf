# SPDX-License-Identifier: GPL-2.0-or-later
#
# Sourced by suites that are shell scripts: $work, a folder that goes away with the script, and
# what a test came to as TAP. What a test's commands say belongs in $work/log.
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
trap 'exit 143' TERM INT
number=0 status=0

# result STATUS NAME: with the end of the log if it failed; $status is the script's own then.
result() {
	number=$((number + 1))
	if [ "$1" = 0 ]; then
		echo "ok $number - $2"
	else
		echo "not ok $number - $2"
		tail -n 100 "$work/log" | sed 's/^/# /'
		status=1
	fi
}

skip() { # NAME WHY
	number=$((number + 1))
	echo "ok $number - $1 # SKIP $2"
}
