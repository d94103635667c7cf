#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
#
# libferry as others get it: header, libraries, symbols, pkg-config, the example of
# Documentation/port.rst migrated by the agent, and no leak over many migrations.
# Prints TAP.
set -u
cd "$(dirname "$0")/../.." || exit 1
out=${O:-build}
. selftests/tap.sh
export FERRY_RUNTIME_DIR=$work/run
mkdir "$FERRY_RUNTIME_DIR"
pids=
cleanup() {
	[ -z "$pids" ] || kill $pids 2>/dev/null
	rm -rf "$work"
}
trap cleanup EXIT
# until_true SECONDS COMMAND...
until_true() {
	local end=$((SECONDS + $1))
	shift
	until "$@" 2>/dev/null; do
		[ $SECONDS -lt $end ] || return 1
		sleep 0.05
	done
}

echo 1..18
program=$out/selftests/port/leaks
if ! make --no-print-directory WERROR=1 O="$out" all "$program" "$out/selftests/port/abi" > "$work/log" 2>&1; then
	result 1 libferry_is_built
	exit 1
fi
result 0 libferry_is_built
ferry=$(realpath "$out")/ferry

# --- the header ---------------------------------------------------------------

printf '#include "ferry.h"\n#include "ferry.h"\nint main(void) { return 0; }\n' > "$work/alone.c"
cp "$work/alone.c" "$work/alone.cc"
{ for std in c99 c11 gnu17; do
	cc -std=$std -pedantic -Wall -Wextra -Werror -Iuser/include -fsyntax-only "$work/alone.c" || exit 1
done; } > "$work/log" 2>&1
result $? header_alone_in_c
{ for std in c++98 c++11 c++17; do
	c++ -std=$std -pedantic -Wall -Wextra -Werror -Iuser/include -fsyntax-only "$work/alone.cc" || exit 1
done; } > "$work/log" 2>&1
result $? header_alone_in_cxx
! grep '#include' user/include/ferry.h | grep -vE '<std(int|def)\.h>' > "$work/log"
result $? header_stands_alone

# --- the libraries -------------------------------------------------------------

cxx() { c++ -Wall -Wextra -Werror -Iuser/include -o "$work/cxx" selftests/port/cxx.cc "$@" -lpthread; }
{ cxx "$out/libferry.a" && [ "$("$work/cxx" "$work/cxx.port")" = '1.0 works' ]; } > "$work/log" 2>&1
result $? cxx_with_the_static_library
{ cxx -L"$out" -lferry && [ "$(LD_LIBRARY_PATH=$out "$work/cxx" "$work/cxx.port")" = '1.0 works' ]; } > "$work/log" 2>&1
result $? cxx_with_the_shared_library

# What the header declares, the map versions, and both libraries show is one list.
grep -oE '\bferry_[a-z_]+\(' user/include/ferry.h | tr -d '(' | sort -u > "$work/mentioned"
sed -n 's/^\t\(ferry_[a-z_]*\);$/\1/p' user/port/libferry.map | sort > "$work/map"
nm -D --defined-only "$out/libferry.so" | sed -n 's/.* T \(.*\)@@LIBFERRY_1\.0$/\1/p' | sort > "$work/shared"
nm -g --defined-only "$out/libferry.a" | sed -n 's/.* [A-Z] //p' | sort > "$work/static"
{ [ -s "$work/map" ] && diff "$work/mentioned" "$work/map"; } > "$work/log" 2>&1
result $? map_has_what_the_header_declares
{ diff "$work/map" "$work/shared" && [ "$(nm -D --defined-only "$out/libferry.so" | grep -cv ' A LIBFERRY_1.0')" = "$(wc -l < "$work/map")" ]; } > "$work/log" 2>&1
result $? shared_library_exports_that_list_versioned
diff "$work/map" "$work/static" > "$work/log" 2>&1
result $? static_library_exports_that_list
{ readelf -d "$out/libferry.so" | tee "$work/dynamic" && grep -q 'SONAME.*\[libferry.so.1\]' "$work/dynamic" &&
	! grep NEEDED "$work/dynamic" | grep -v 'libc\.so\|libpthread'; } > "$work/log" 2>&1
result $? soname_and_no_library_but_libc
{ [ "$(uname -m)" != x86_64 ] || "$out/selftests/port/abi"; } > "$work/log" 2>&1
result $? structs_are_laid_out_as_released

# --- the example of the documentation --------------------------------------------

root=$work/root
make --no-print-directory O="$out" DESTDIR="$root" PREFIX=/usr install > "$work/log" 2>&1
sed -n '/^\.\. code-block:: c$/,/^\.\. end of the example/{s/^    //p;/^$/p}' Documentation/port.rst > "$work/tiny.c"
export PKG_CONFIG_PATH=$root/usr/lib/pkgconfig PKG_CONFIG_SYSROOT_DIR=$root
{ [ "$(wc -l < "$work/tiny.c")" -gt 100 ] &&
	PKG_CONFIG_ALLOW_SYSTEM_CFLAGS=1 PKG_CONFIG_ALLOW_SYSTEM_LIBS=1 \
		pkg-config --cflags --libs ferry > "$work/flags" &&
	cc -Wall -Wextra -Werror -o "$work/tiny" "$work/tiny.c" $(cat "$work/flags") -lpthread; } >> "$work/log" 2>&1
result $? example_compiles_with_pkg_config
export LD_LIBRARY_PATH=$root/usr/lib

# vmm NAME [incoming]: start the example.
vmm() {
	"$work/tiny" "$work/$1.port" ${2:-} > "$work/$1.out" &
	pids="$pids $!"
	eval "$1=$!"
	until_true 10 test -S "$work/$1.port"
}
gone() { ! kill -0 "$1"; }
end() {
	kill $pids 2>/dev/null
	wait $pids 2>/dev/null
	pids=
}

# move OPTIONS...: from a to b. Status: of both.
move() {
	"$ferry" recv "port:$work/b.port" "unix:$work/link" --quiet > "$work/log" 2>&1 &
	local recv=$!
	pids="$pids $recv"
	"$ferry" send "port:$work/a.port" "unix:$work/link" --quiet "$@" >> "$work/log" 2>&1 || return 1
	wait $recv
}

{ vmm a && vmm b incoming && move --verify && until_true 10 gone $a; } 2>> "$work/log"
moved=$?
steps=$(sed -n 's/^quit after \([0-9]*\) steps$/\1/p' "$work/a.out")
[ $moved = 0 ] && [ "${steps:-0}" -gt 0 ] && grep -qx "arrived after $steps steps" "$work/b.out"
result $? example_migrates

# It runs there, so it can be sent on.
{ mv "$work/b.port" "$work/a.port" && vmm b incoming && move --tracker none; } 2>> "$work/log" &&
	grep -q 'arrived after' "$work/b.out"
result $? and_migrates_on
end

# The worker dies with the guest paused: the guardian resumes it, through the same connection.
vmm a && vmm b incoming
"$ferry" recv "port:$work/b.port" "unix:$work/link" --quiet > "$work/log" 2>&1 &
pids="$pids $!" recv=$!
FERRY_FAULT=save:kill "$ferry" send "port:$work/a.port" "unix:$work/link" --quiet >> "$work/log" 2>&1
code=$?
wait $recv
{ [ $code = 1 ] && ! gone $a && grep -q 'the guest is at the source' "$work/log" &&
	! grep -q arrived "$work/b.out"; } 2>> "$work/log" &&
	move # the destination waits for another
result $? killed_worker_leaves_the_guest_running
end

# --- kinds ------------------------------------------------------------------------

if command -v qemu-system-x86_64 > /dev/null; then
	rm -f "$work"/*.port
	ram=/dev/shm/ferry-port-test-$$
	vmm a
	qemu-system-x86_64 -nodefaults -display none -accel tcg -m 16M -machine memory-backend=ram \
		-object memory-backend-file,id=ram,size=16M,share=on,mem-path="$ram" \
		-qmp "unix:$work/q.qmp,server=on,wait=off" -incoming defer > "$work/qemu.log" 2>&1 &
	pids="$pids $!"
	until_true 20 test -S "$work/q.qmp"
	"$ferry" recv "qmp:$work/q.qmp" "unix:$work/link" --quiet > "$work/recv.log" 2>&1 &
	recv=$!
	pids="$pids $recv"
	"$ferry" send "port:$work/a.port" "unix:$work/link" --quiet > "$work/log" 2>&1
	code=$?
	wait $recv
	cat "$work/qemu.log" "$work/recv.log" >> "$work/log"
	[ $code = 1 ] && grep -q "in a VMM of kind 'tiny/1' (port:) at the source, and waited for by a QEMU (qmp:) here" "$work/log" &&
		! gone $a
	result $? port_to_qmp_is_refused_by_name
	"$ferry" send "qmp:$work/a.port" "unix:$work/link" --quiet --timeout 5 > "$work/log" 2>&1
	[ $? = 1 ] && ! gone $a
	result $? qmp_of_a_port_is_refused
	end
	rm -f "$ram"
else
	skip port_to_qmp_is_refused_by_name 'no qemu-system-x86_64 here'
	skip qmp_of_a_port_is_refused 'no qemu-system-x86_64 here'
fi

# --- leaks ------------------------------------------------------------------------

count=12
[ -z "${FERRY_TEST_LONG:-}" ] || count=100
"$ferry" doctor --json 2>/dev/null | grep -q '"tracker-pagemap","works":true' || export NO_PAGEMAP=1
LD_LIBRARY_PATH= "$program" "$ferry" $count "$work" > "$work/log" 2>&1
result $? "no_leak_over_${count}_migrations"
sed -n 's/^/# /p' "$work/log"
exit $status
