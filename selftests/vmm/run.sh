#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
#
# ferry-vmm by itself: its options, its lines, and that it notices what it must notice.
# A test of whole migrations cannot fail if the guest's own checks cannot. Prints TAP.
cd "$(dirname "$0")" || exit 1
exec python3 test_vmm.py "$@"
