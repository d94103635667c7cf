#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
#
# `make install` puts a program that starts a readable manual page and the library where it
# is told to, and `make uninstall` takes all away. Prints TAP.
set -u
cd "$(dirname "$0")/../.." || exit 1
. selftests/tap.sh

make_() { make --no-print-directory DESTDIR="$work/root" PREFIX=/opt/ferry "$@"; }
mode() { stat -c %a "$work/root/opt/ferry/$1"; }

echo 1..4
{ make_ install && [ "$(mode bin/ferry)" = 755 ] && [ "$(mode share/man/man1/ferry.1)" = 644 ] &&
	[ "$(mode include/ferry.h)" = 644 ] && [ "$(mode lib/libferry.so.1.0)" = 755 ] &&
	[ "$(readlink "$work/root/opt/ferry/lib/libferry.so.1")" = libferry.so.1.0 ] &&
	[ "$(mode bin/ferry-vmm)" = 755 ] &&
	[ "$(mode share/man/man1/ferry-vmm.1)" = 644 ] &&
	[ "$(find "$work/root" -type f | wc -l)" = 8 ]; } > "$work/log" 2>&1
result $? installs_its_files

# Without a command: usage, exit status 2.
{ "$work/root/opt/ferry/bin/ferry"; [ $? = 2 ]; } > "$work/log" 2>&1
result $? installed_program_starts

if command -v man > /dev/null && command -v groff > /dev/null; then
	page=$work/root/opt/ferry/share/man/man1/ferry.1
	{ MANWIDTH=80 man --warnings -E UTF-8 -l "$page" > "$work/page" 2> "$work/log" &&
		MANWIDTH=80 man --warnings -E UTF-8 -l Documentation/man/ferry.4 > "$work/page4" \
			2>> "$work/log" && [ ! -s "$work/log" ] &&
		grep -q 'EXIT STATUS' "$work/page" && grep -q '/dev/ferry' "$work/page4"; } 2>> "$work/log"
	result $? manual_pages_render_without_warnings
else
	skip manual_pages_render_without_warnings 'no man and groff here'
fi

{ make_ uninstall && [ -z "$(find "$work/root" ! -type d)" ]; } > "$work/log" 2>&1
result $? uninstalls_them
exit $status
