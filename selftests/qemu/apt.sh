# SPDX-License-Identifier: GPL-2.0-or-later
#
# To be sourced: fetch Debian packages into private folders, as any user, without
# touching what is installed. Sets $cache.
#
# The mirror is whatever this machine's own apt sources name. A suite of '-' means
# this machine's own sources and lists as they are; any other suite gets lists of
# its own in the cache.

cache=${FERRY_CACHE:-$root/build/cache}
PATH=$PATH:/usr/sbin:/sbin

die() { echo "${0##*/}: $*" >&2; exit 1; }

need() {
	for tool; do
		command -v "$tool" >/dev/null ||
			die "'$tool' is missing on this machine: run scripts/install test"
	done
}

# apt_mirror CODENAME: the URI this machine takes Debian from.
apt_mirror() {
	# What an update would fetch; unlike the lists, that is known before the first one.
	apt-get --print-uris update |
		sed -n "s|^'\([^']*\)/dists/$1/InRelease'.*|\1|p" | head -n 1
}

# apt_suite SUITE: make $apt_options select the private lists of a suite, fetched
# at most once a day.
apt_suite() {
	apt_options="-q -o Dpkg::Use-Pty=0"
	[ "$(id -u)" != 0 ] || apt_options="$apt_options -o APT::Sandbox::User=root"
	[ "$1" != - ] || return 0
	own=$(. /etc/os-release && echo "$VERSION_CODENAME")
	mirror=$(apt_mirror "$own")
	[ -n "$mirror" ] || die "this machine's apt sources name no mirror for $own"
	dir=$cache/apt/$1
	base=${1%-backports}
	keyring=/usr/share/keyrings/debian-archive-keyring.gpg
	mkdir -p "$dir/lists/partial" "$dir/archives/partial" "$dir/empty"
	: > "$dir/status"
	{
		echo "deb [signed-by=$keyring] $mirror $base main"
		[ "$base" = "$1" ] || echo "deb [signed-by=$keyring] $mirror $1 main"
	} > "$dir/sources.list"
	apt_options="$apt_options -o Dir::Etc::sourcelist=$dir/sources.list
		-o Dir::Etc::sourceparts=$dir/empty -o Dir::Etc::preferencesparts=$dir/empty
		-o Dir::State::lists=$dir/lists -o Dir::State::status=$dir/status
		-o Dir::Cache::archives=$dir/archives -o Dir::Cache::pkgcache=
		-o Dir::Cache::srcpkgcache= -o APT::Default-Release=$1"
	exec 8> "$dir/lock" # held until the script ends: apt does not wait for another apt
	flock -w 600 8 || die "another run has held $dir/lock for ten minutes"
	[ -z "$(find "$dir/updated" -mtime -1 2>/dev/null)" ] || return 0
	apt-get $apt_options update >&2 || die "cannot fetch the package lists of $1 from $mirror"
	touch "$dir/updated"
}

# fetch_new SUITE WHAT: an empty $new, and in it what the script's own fetch() SUITE downloads.
fetch_new() {
	new=$out.new
	rm -rf "$new" "$out"
	mkdir -p "$new"
	fetch "$1" && return
	# No or stale lists in the system: take private ones of the same release.
	[ "$1" = - ] && fetch "$(. /etc/os-release && echo "$VERSION_CODENAME")" ||
		die "cannot download $2; is a Debian mirror reachable?"
}

# Run the rest of the script alone for one cache entry; others wait.
lock() {
	mkdir -p "$cache"
	exec 9> "$cache/$1.lock"
	flock -w 600 9 || die "another run has held $cache/$1.lock for ten minutes"
}
