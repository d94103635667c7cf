#!/bin/busybox sh
# SPDX-License-Identifier: GPL-2.0-or-later
#
# /init of the virtual machine: what the tests say goes to the second serial port. Lines
# that begin with @ are for results.py.
export PATH=/bin
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmp /tmp
mkdir /sys/fs/cgroup 2> /dev/null
mount -t cgroup2 cgroup /sys/fs/cgroup
. /settings
stty -F /dev/ttyS1 raw
exec > /dev/ttyS1 2>&1

echo "@BOOTED $(uname -r)"
for module in $load; do
	insmod "/modules/$module" || echo "@FAILED insmod $module"
done
ip link set lo up
mkswap /dev/vdb > /dev/null && swapon /dev/vdb || echo '@FAILED swapon'
insmod /modules/ferry.ko || echo '@FAILED insmod ferry'
for program in $programs; do
	echo "@PROGRAM $program"
	"/test_$program"
	echo "@STATUS $?"
done
rmmod ferry || echo '@FAILED rmmod ferry'

if [ -s /broken ]; then
	insmod /modules/ferry-broken.ko || echo '@FAILED insmod ferry-broken'
	export FERRY_ONLY FERRY_VARIANT
	while read -r safety program FERRY_ONLY FERRY_VARIANT; do
		echo "@BROKEN $safety"
		if echo "$safety" > /sys/module/ferry/parameters/broken; then
			"/test_$program"
			echo "@STATUS $?"
		fi
		echo none > /sys/module/ferry/parameters/broken
	done < /broken
	rmmod ferry || echo '@FAILED rmmod ferry-broken'
fi
# Of warnings; that this is found shows that others would be.
echo '<4>WARNING: said by inside.sh, so that results.py has something to find' > /dev/kmsg
echo '@ENDED'
poweroff -f
