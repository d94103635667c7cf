#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
#
# QEMU for a machine without CMPXCHG16B, which is what run.sh boots: QEMU 7.2 executes
# that instruction when its guest does, whether the processor has it or not.
exec qemu-system-x86_64 -cpu qemu64,-cx16 "$@"
