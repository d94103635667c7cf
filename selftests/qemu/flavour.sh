# SPDX-License-Identifier: GPL-2.0-or-later
#
# Sourced, after apt.sh: the Debian kernels that ferry is tested on. A flavour stands for the
# package linux-KIND-ARCH of a suite, which depends on the current version's; "-" is the
# suite of this machine.

# flavour NAME KIND: set $meta and $suite for its package of that kind (image, headers).
flavour() {
	case $1 in
	standard | 6.12 | 7.2) meta=linux-$2-amd64 ;;
	cloud | 6.12-cloud | 7.2-cloud) meta=linux-$2-cloud-amd64 ;;
	*) die "there is no flavour '$1'; know cloud standard 6.12 6.12-cloud 7.2 7.2-cloud" ;;
	esac
	case $1 in
	6.12*) suite=bookworm-backports ;;
	7.2*) suite=trixie-backports ;;
	*) suite=- ;;
	esac
}

# depends PACKAGE PREFIX: what a package depends on directly whose name starts so and goes on
# with a version, from the lists that $apt_options selects.
depends() {
	apt-cache $apt_options show --no-all-versions "$1" 2>/dev/null | sed -n 's/^Depends: //p' |
		head -n 1 | tr ',' '\n' | sed -n "s/^ *\($2-[0-9][^ ]*\).*/\1/p"
}
