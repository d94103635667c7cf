#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
#
# Check the switchover model: run.sh [BUILD_DIR]. Prints TAP, exits 1 if anything is
# not as expected. Logs and trails stay in BUILD_DIR (default build/model).
#
# The model itself must hold, completely searched. Each sabotaged twin must break the
# invariant that it was made for: a twin that does not compile, runs out of memory or
# breaks something else is "not ok", for then it proves nothing.

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
build=${1:-build/model}
model=$here/switchover.pml
: "${CC:=cc}"

# More faults make more states and found nothing new; see Documentation/switchover.rst.
good_faults=4
twin_faults=3
memory_mib=1500
search_seconds=60
truncated='out of memory|MEMLIM bound|max search depth too small'

count=0
failed=0

result() { # result STATUS NAME [WHY]
	count=$((count + 1))
	if [ "$1" = 0 ]; then
		echo "ok $count - $2"
	else
		failed=1
		echo "not ok $count - $2"
		printf '%s\n' "$3" | sed 's/^/# /'
	fi
}

# search NAME MODEL_OPTIONS PAN_OPTIONS PAN_ARGUMENTS: leaves the log in NAME/log,
# and in $why the reason when there is no verdict.
search() {
	why=
	rm -rf "${build:?}/$1"
	mkdir -p "$build/$1" || exit 1
	(
		cd "$build/$1" || exit 1
		# shellcheck disable=SC2086
		spin $2 -a "$model" >compile.log 2>&1 &&
			$CC -O1 -w -DNOFAIR -DCOLLAPSE -DMEMLIM=$memory_mib $3 \
				-o pan pan.c >>compile.log 2>&1
	) || why="does not compile: $(tail -n 3 "$build/$1/compile.log")"
	[ -z "$why" ] || return
	# shellcheck disable=SC2086
	(cd "$build/$1" && timeout $search_seconds ./pan -m200000 $4 >log 2>&1)
	status=$?
	if [ $status = 124 ]; then
		why="not finished after $search_seconds seconds"
	elif [ $status != 0 ] || ! grep -q 'errors: [0-9]' "$build/$1/log"; then
		why="pan ended with status $status: $(tail -n 3 "$build/$1/log")"
	elif grep -Eq "$truncated" "$build/$1/log"; then
		why="search truncated: $(grep -E "$truncated" "$build/$1/log")"
	fi
}

states() {
	sed -n 's/^ *\([0-9]*\) states, stored.*/\1/p' "$build/$1/log"
}

holds() { # holds NAME MODEL_OPTIONS WHAT
	search "$1" "$2" -DSAFETY
	if [ -z "$why" ] && grep -q 'Search not completed' "$build/$1/log"; then
		why="search not completed: $(grep -E '^broken|^pan:1:' "$build/$1/log")"
	elif [ -z "$why" ] && ! grep -q 'errors: 0$' "$build/$1/log"; then
		why=$(grep -E '^broken|errors:' "$build/$1/log")
	fi
	if [ -z "$why" ]; then
		result 0 "$3, $(states "$1") states"
	else
		result 1 "$3" "$why"
	fi
}

ends() { # ends NAME MODEL_OPTIONS WHAT: there is no cycle at all, so every run ends
	search "$1" "$2" -DNP -l
	if [ -z "$why" ] && ! grep -q 'errors: 0$' "$build/$1/log"; then
		why=$(grep -E '^pan:1:|errors:' "$build/$1/log")
	fi
	[ -z "$why" ]
	result $? "$3" "$why"
}

breaks() { # breaks SABOTAGE INVARIANT [MODEL_OPTIONS]
	search "$1" "-DFAULTS=$twin_faults -D$1 -DONLY=$2 $3" -DSAFETY
	if [ -z "$why" ] && ! { grep -q "^broken $2\$" "$build/$1/log" &&
				grep -q 'errors: 1$' "$build/$1/log"; }; then
		why="$2 was not broken: $(grep -E '^broken|^pan:1:|errors:' "$build/$1/log")"
	fi
	[ -z "$why" ]
	result $? "sabotage $1 breaks $2" "$why"
}

for tool in spin "$CC" timeout; do
	if ! command -v "$tool" >/dev/null; then
		echo "1..0 # SKIP $tool is not installed"
		exit 0
	fi
done
mkdir -p "$build" || exit 1

echo 1..38

precopy=
postcopy=-DPOSTCOPY=true
holds precopy-no-fault "-DFAULTS=0 $precopy" "precopy without a fault"
holds precopy "-DFAULTS=$good_faults $precopy" "precopy, $good_faults faults"
holds precopy-no-person "-DFAULTS=$good_faults -DNO_PERSON $precopy" \
	"precopy, $good_faults faults, nobody helps"
holds postcopy-no-fault "-DFAULTS=0 $postcopy" "postcopy without a fault"
holds postcopy "-DFAULTS=$good_faults $postcopy" "postcopy, $good_faults faults"
holds postcopy-no-person "-DFAULTS=$good_faults -DNO_PERSON $postcopy" \
	"postcopy, $good_faults faults, nobody helps"
ends precopy-ends "-DFAULTS=2 $precopy" "precopy always ends"
ends postcopy-ends "-DFAULTS=2 $postcopy" "postcopy always ends"

# Changing the VMM on one host is a model of its own: no link, but RAM that both share.
switchover=$model
model=$here/cpr.pml
holds cpr-no-fault "-DFAULTS=0" "cpr without a fault"
holds cpr "-DFAULTS=$good_faults" "cpr, $good_faults faults"
holds cpr-no-person "-DFAULTS=$good_faults -DNO_PERSON" "cpr, $good_faults faults, nobody helps"
ends cpr-ends "-DFAULTS=2" "cpr always ends"
model=$switchover

# What pan printed at each MOVE() that it really made, in both variants.
cat "$build/precopy/log" "$build/postcopy/log" "$build/cpr/log" 2>/dev/null |
	sed -n 's/^move //p' | tr _ - | sort -u >"$build/reached"
why=$("$here/tables.sh" 2>&1)
result $? "the model's moves are the table in user/engine/state.c" "$why"
why=$("$here/tables.sh" "$build/reached" 2>&1)
result $? "each of them is made: $(wc -l <"$build/reached") moves" "$why"

breaks RUN_BEFORE_PONG one_owner
breaks NO_EPOCH no_stale_run
breaks START_BEFORE_RUN_ACCEPTED no_way_back
breaks RESUME_AFTER_COMMIT one_owner
breaks REFUSE_WITHOUT_RECORD one_owner
breaks REFUSE_AFTER_RESTART no_way_back
breaks ABORTED_NOT_DURABLE one_owner
breaks FENCE_REFUSES one_owner
breaks FORCE_WITHOUT_FENCE no_way_back
breaks NO_RAN_RECORD no_restart
breaks ACK_WITHOUT_RECORD it_ends
breaks RECORD_BEFORE_RESUME somebody_says -DNO_PERSON
breaks COMPLETED_WHEN_SENT not_lost $postcopy

model=$here/cpr.pml
breaks RUN_BEFORE_COMMIT no_early_run
breaks RUN_BEFORE_COMMIT one_owner -DRESUME_BEFORE_END
breaks RESUME_BEFORE_END no_way_back
breaks RESUME_BEFORE_BACK no_way_back
breaks RESUME_IN_STAGE resumed_once
breaks TOUCH_BEFORE_KEEP kept_first
breaks DROP_AFTER_RESUME not_twice
breaks NO_FENCE no_way_back
breaks SECOND_START_REFUSES no_way_back
breaks QUIT_BEFORE_RAN not_lost
breaks RUN_THE_PAUSED run_state

[ $count = 38 ] || { echo "Bail out! $count results, the plan is wrong"; exit 1; }
exit $failed
