// SPDX-License-Identifier: GPL-2.0-or-later
/* Layout of the public structs as released: 64-bit. Fields are only ever added at the end. */
#include <assert.h>

#include "include/ferry.h"

#define AT(type, field, offset) \
	static_assert(offsetof(struct type, field) == (offset), #type "." #field)

AT(ferry_port_ops, struct_size, 0);
AT(ferry_port_ops, kind, 8);
AT(ferry_port_ops, pause, 16);
AT(ferry_port_ops, resume, 24);
AT(ferry_port_ops, running, 32);
AT(ferry_port_ops, save, 40);
AT(ferry_port_ops, load, 48);
AT(ferry_port_ops, run, 56);
AT(ferry_port_ops, quit, 64);
AT(ferry_port_ops, check, 72);
AT(ferry_port_ops, direct_io, 80);
AT(ferry_port_ops, dirty_start, 88);
AT(ferry_port_ops, dirty_stop, 96);
AT(ferry_port_ops, dirty_sync, 104);
AT(ferry_port_ops, throttle, 112);
AT(ferry_port_ops, quiesce, 120);
AT(ferry_port_ops, adopt, 128);

AT(ferry_port_ram, struct_size, 0);
AT(ferry_port_ram, name, 8);
AT(ferry_port_ram, fd, 16);
AT(ferry_port_ram, flags, 20);
AT(ferry_port_ram, fd_offset, 24);
AT(ferry_port_ram, bytes, 32);
AT(ferry_port_ram, addr, 40);
AT(ferry_port_ram, page_bytes, 48);

static_assert(sizeof(struct ferry_port_ops) >= 128, "ferry_port_ops shrank");
static_assert(sizeof(struct ferry_port_ram) >= 56, "ferry_port_ram shrank");
static_assert(FERRY_PORT_INCOMING == 1 && FERRY_PORT_LOG_PROCESS == 2 &&
	      FERRY_PORT_LOG_MEMBERS == 4, "flags");
static_assert(FERRY_PORT_PAGE_BYTES == 4096, "page");

int main(void)
{
	return 0;
}
