#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
#
# Each of the headers for programs compiles by itself in C and C++, 64 and 32 bit, without
# a warning; every struct and number is what it was when it was published; no struct has a
# hole; Documentation/uapi.rst names them all, and its example compiles (selftests/module
# runs it). Headers that are spoiled in one place do not pass. Prints TAP.
set -u
cd "$(dirname "$0")/../.." || exit 1
. selftests/tap.sh

strict='-Wall -Wextra -Wshadow -Wpadded -pedantic -Werror'
arch=$(${CC:-cc} -print-multiarch)

# compile HEADERS FILE ARGUMENT...: as the compiler that the arguments name sees it.
compile() {
	headers=$1 file=$2
	shift 2
	"$@" $strict -I "$headers" -fsyntax-only "$file" > "$work/log" 2>&1
}

c='-x c -std=c11'
cxx='-x c++ -std=c++11'
# The kernel's headers are the same for both, the libraries' are not needed.
bits32="-m32 -isystem /usr/include/$arch"

# spoil HEADER SED-EXPRESSION: a copy of the headers with one thing different.
spoil() {
	rm -rf "$work/uapi"
	cp -r uapi "$work/uapi"
	sed -i "$2" "$work/uapi/linux/$1"
	! cmp -s "uapi/linux/$1" "$work/uapi/linux/$1"
}

echo 1..17
for header in ferry ferry_netlink; do
	test=selftests/uapi/$header.c
	compile uapi $test "${CC:-cc}" $c
	result $? "c_$header"
	compile uapi $test "${CXX:-c++}" $cxx
	result $? "cxx_$header"
	compile uapi $test "${CC:-cc}" $c $bits32
	result $? "c_32_bit_$header"
done

# Each line: header, what is spoiled, and what must be said of it.
while IFS='|' read -r name header change words; do
	spoil "$header.h" "$change" && ! compile "$work/uapi" "selftests/uapi/$header.c" "${CC:-cc}" $c &&
		grep -q "$words" "$work/log"
	result $? "$name"
done <<'TABLE'
moved_field_is_noticed|ferry|s/__u32 out_page_bytes;/__u32 x; __u32 out_page_bytes;/|out_page_bytes is not where it was
grown_field_is_noticed|ferry|s/__u32 out_trackers;/__aligned_u64 out_trackers;/|ferry_query changed its size
hole_is_noticed|ferry|s/__aligned_u64 npages;/__u32 hole; __aligned_u64 npages;/|padding struct to align
changed_command_is_noticed|ferry|s/FERRY_SYNC\t_IO(FERRY_IOC_TYPE, 0x12)/FERRY_SYNC\t_IO(FERRY_IOC_TYPE, 0x22)/|FERRY_SYNC changed its value
changed_attribute_is_noticed|ferry_netlink|s/^\tFERRY_A_PID,/\tFERRY_A_NEW,\n\tFERRY_A_PID,/|FERRY_A_PID changed its value
missing_include_is_noticed|ferry|/include <linux.types.h>/d|unknown type name
TABLE

# undocumented HEADERS: the names that a program may use and the page does not have.
undocumented() {
	cat "$1"/linux/ferry*.h | sed 's,/\*.*\*/,,' |
		grep -oE '^(#define|struct)[[:space:]]+[A-Za-z_]+|^[[:space:]]+FERRY_[A-Z_]+,' |
		grep -oE 'FERRY_[A-Z_]+|ferry_[a-z_]+' |
		grep -vE '_IOC_TYPE$|_UNSPEC$|_MAX$|_H$' | sort -u | while read -r name; do
			grep -q "\b$name\b" Documentation/uapi.rst || echo "$name"
		done
}

undocumented uapi > "$work/log"
[ ! -s "$work/log" ]
result $? page_names_everything
spoil ferry.h 's/^#define FERRY_STOP/#define FERRY_NEWS 1\n#define FERRY_STOP/' &&
	undocumented "$work/uapi" > "$work/log" && [ "$(cat "$work/log")" = FERRY_NEWS ]
result $? new_name_is_noticed

selftests/uapi/example.sh > "$work/example.c" && [ "$(wc -l < "$work/example.c")" -gt 50 ] &&
	"${CC:-cc}" $c -Wall -Wextra -Wshadow -pedantic -Werror -I uapi -o "$work/example" \
		"$work/example.c" > "$work/log" 2>&1
result $? example_compiles

# holes HEADERS: what pahole, which reads what the compiler did, says of all our structs.
holes() {
	${CC:-cc} $c -g -fno-eliminate-unused-debug-types -I "$1" -c -o "$work/ferry.o" \
		selftests/uapi/ferry.c > "$work/log" 2>&1 || return 2
	pahole "$work/ferry.o" > "$work/log" 2>&1 || return 2
	# As many as the header defines, so that an empty answer is not a good one.
	[ "$(grep -c '^struct ferry_.* {$' "$work/log")" = \
	  "$(grep -c '^struct ferry_.* {$' "$1/linux/ferry.h")" ] || return 2
	! grep -q 'XXX\|holes:\|padding:' "$work/log"
}

if ! command -v pahole > /dev/null; then
	skip pahole_finds_no_hole 'no pahole here: scripts/install test'
	skip pahole_finds_a_hole 'no pahole here: scripts/install test'
	exit $status
fi
holes uapi
result $? pahole_finds_no_hole
# A hole that the sizes alone would not show: static_assert must not be there to see it.
mkdir -p "$work/uapi/linux"
printf '#include <linux/types.h>\nstruct ferry_hole {\n\t__u32 a;\n\t__aligned_u64 b;\n};\n' |
	cat uapi/linux/ferry.h - > "$work/uapi/linux/ferry.h"
holes "$work/uapi"
[ $? = 1 ]
result $? pahole_finds_a_hole
exit $status
