#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
#
# The module builds without a warning against Debian's kernels, sparse has nothing to say
# of it, and it is what it says it is; what depends on the kernel's version is in one file;
# what is only for tests is not in what people load. Each of these checks is shown to see
# what it looks for. FERRY_TEST_LONG=1 takes all kernels. Prints TAP.
set -u
cd "$(dirname "$0")/../.." || exit 1
number=0

flavours='cloud standard 6.12'
[ -z "${FERRY_TEST_LONG-}" ] || flavours="$flavours 6.12-cloud 7.2 7.2-cloud"
# Those that are built with sparse.
checked=' standard 6.12 7.2 '

result() { # WORDS-OF-RESULT NAME [REMARK]
	number=$((number + 1))
	echo "$1 $number - $2${3:+ # $3}"
}

report() { # STATUS NAME LOG
	if [ "$1" = 0 ]; then
		result ok "$2"
	else
		result 'not ok' "$2"
		tail -n 200 "$3" | sed 's/^/# /'
	fi
}

work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
trap 'exit 143' TERM INT

# What a compiler, objtool or sparse says of our own files; what the kernel's headers get
# to hear under W=1 is not ours. Later kernels build with short paths.
complaint='\(^\|/module/\)\(kmod\|uapi\)/.*\(warning\|error\):\|^\(WARNING\|ERROR\): modpost'

# build FLAVOUR OUT [MAKE-ARGUMENT...]: all that is said goes to OUT.log. Return: 0; 3 when
# headers or compilers cannot be had; 1 when it failed or there was a complaint.
build() {
	log=$2.log
	selftests/kmod/build.sh "$@" > "$log" 2>&1 || return
	! grep -q "$complaint" "$log"
}

# checks FLAVOUR: CF= for sparse. Released ones do not know some of what the headers of 7.2
# say: C23's typeof_unqual, and that the length of a string is a constant.
checks() {
	case $1 in
	7.*) echo "CF=-D__CHECK_ENDIAN__ -D__typeof_unqual__=__typeof__ '-D__builtin_strlen(s)=(sizeof(s)-1)'" ;;
	*) echo CF=-D__CHECK_ENDIAN__ ;;
	esac
}

says() { # KO FIELD WORDS
	modinfo -F "$2" "$1" | grep -q "$3"
}

# version_of FLAVOUR: what its kernels' versions start with.
version_of() {
	case $1 in
	cloud | standard) echo '6\.1\.' ;;
	*) echo "${1%-cloud}" | sed 's/\./\\./; s/$/\\./' ;;
	esac
}

# versions_outside DIR: the lines outside compat.h of a tree that ask for a kernel's version.
versions_outside() {
	grep -rnE 'LINUX_VERSION|KERNEL_VERSION|RHEL_|linux/version\.h' "$1" | grep -v '/compat\.h:'
}

# traces KO: what a module holds of the broken variants, debugging information aside,
# which knows the names of things that are not there.
traces() {
	bare=${1%.ko}.bare.ko
	strip -g -R .BTF -R .BTF_ids -o "$bare" "$1" || return 2
	{ nm "$bare"; strings -a "$bare"; modinfo "$bare"; } | grep -i broken
}

# twin NAME: a copy of the sources to be spoiled.
twin() {
	mkdir "$work/$1"
	cp -r Makefile Kbuild kmod uapi "$work/$1"
}

set -- $flavours
looked=2
[ -z "${FERRY_TEST_LONG-}" ] || looked=3
echo 1..$(($# * 2 + looked + 7))

good= # a flavour that builds
for flavour in $flavours; do
	out=$work/$flavour check=
	case $checked in *" $flavour "*) check=$(checks "$flavour") ;; esac
	build "$flavour" "$out" ${check:+C=2 "$check"}
	status=$?
	if [ $status = 3 ]; then
		sed 's/^/# /' "$out.log"
		for name in builds is_itself ${check:+sparse_looked_at}; do
			result ok "${name}_$flavour" "SKIP cannot build for it: $(tail -n 1 "$out.log")"
		done
		continue
	fi
	report $status "builds_$flavour" "$out.log"
	says "$out/ferry.ko" license '^GPL$' && says "$out/ferry.ko" name '^ferry$' &&
		says "$out/ferry.ko" vermagic "^$(version_of "$flavour")"
	report $? "is_itself_$flavour" "$out.log"
	if [ -n "$check" ]; then
		[ "$(grep -c 'CHECK .*kmod/.*\.c' "$out.log")" -ge "$(grep -c 'CC \[M\] .*kmod/[a-z]*\.o' "$out.log")" ]
		report $? "sparse_looked_at_$flavour" "$out.log"
		good=$flavour
	fi
done

versions_outside kmod > "$work/versions"
[ $? = 1 ]
report $? versions_only_in_compat_h "$work/versions"
twin elsewhere
printf '#include <linux/version.h>\n' >> "$work/elsewhere/kmod/main.c" &&
	[ "$(versions_outside "$work/elsewhere/kmod" | wc -l)" = $(($(wc -l < "$work/versions") + 1)) ]
report $? version_elsewhere_is_noticed "$work/versions"

if [ -z "$good" ]; then
	for name in compiler_warning sparse_warning unknown_symbol; do
		result ok "${name}_is_noticed" 'SKIP there are no kernel headers'
	done
	result ok no_trace_of_broken 'SKIP there are no kernel headers'
	result ok trace_of_broken_is_noticed 'SKIP there are no kernel headers'
	exit
fi

# One file is enough to be wrong in; what it calls in the others is not there.
twin wrong
sed -i 's/^ferry-y := .*/ferry-y := main.o/' "$work/wrong/kmod/Kbuild"
cat >> "$work/wrong/kmod/main.c" <<'END'
__be32 ferry_endian(u32 native);
__be32 ferry_endian(u32 native)
{
	return native;
}

static int nobody_calls_this(void)
{
	return 0;
}
END
build "$good" "$work/spoilt" -k -C "$work/wrong" C=2 "$(checks "$good")"
wrong=$?
noticed() { # WORDS
	[ $wrong != 0 ] && grep "$complaint" "$work/spoilt.log" | grep -q "$1"
}
noticed 'nobody_calls_this.* defined but not used'
report $? compiler_warning_is_noticed "$work/spoilt.log"
noticed 'warning: incorrect type in return expression'
report $? sparse_warning_is_noticed "$work/spoilt.log"
noticed 'modpost.* undefined!'
report $? unknown_symbol_is_noticed "$work/spoilt.log"

# All of them are built from the same sources; one that is broken by default breaks all.
traces "$work/$good/ferry.ko" > "$work/traces" 2>&1
[ $? = 1 ]
report $? no_trace_of_broken "$work/traces"
build "$good" "$work/broken" FERRY_BROKEN=1 && traces "$work/broken/ferry.ko" > /dev/null &&
	modinfo -p "$work/broken/ferry.ko" | grep -q '^broken:'
report $? trace_of_broken_is_noticed "$work/broken.log"
