#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
#
# The counting of scripts/check is right. Prints TAP.
exec python3 "$(dirname "$0")/test_tap.py"
