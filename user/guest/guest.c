// SPDX-License-Identifier: GPL-2.0-or-later
#include "guest/guest.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

int ferry_guest_parse(const char *spec, const struct ferry_guest_ops **ops, const char **path,
		      struct ferry_error *err)
{
	const char *colon = spec ? strchr(spec, ':') : NULL;
	size_t scheme;

	if (!colon || !colon[1])
		return ferry_error_set(err, EINVAL,
				       "guest '%s': no driver and path; type qmp:PATH with the QMP "
				       "socket of a running QEMU, or port:PATH with the socket of "
				       "a VMM that links libferry", spec ? spec : "");
	scheme = (size_t)(colon - spec);
	if (scheme == 3 && !memcmp(spec, "qmp", 3)) {
		*ops = &ferry_guest_qemu;
		*path = colon + 1;
		return 0;
	}
	if (scheme == 4 && !memcmp(spec, "port", 4)) {
		*ops = &ferry_guest_port;
		*path = colon + 1;
		return 0;
	}
	return ferry_error_set(err, EINVAL,
			       "guest '%s': unknown driver '%.*s'; type qmp:PATH or port:PATH",
			       spec, (int)(scheme < 64 ? scheme : 64), spec);
}

const char *ferry_guest_kind(const struct ferry_guest *guest)
{
	return guest->kind[0] ? guest->kind : guest->ops->scheme;
}

void ferry_guest_kind_text(const char *kind, char *text, size_t room)
{
	static const char port[] = "port:";

	if (!strncmp(kind, port, sizeof(port) - 1))
		snprintf(text, room, "a VMM of kind '%s' (port:)", kind + sizeof(port) - 1);
	else if (!strcmp(kind, "qmp"))
		snprintf(text, room, "a QEMU (qmp:)");
	else
		snprintf(text, room, "a guest of kind '%s'", kind);
}

int ferry_guest_open(const struct ferry_guest_open_params *params, struct ferry_guest **out,
		     struct ferry_error *err)
{
	const struct ferry_guest_ops *ops;
	const char *path;
	int r = ferry_guest_parse(params->spec, &ops, &path, err);

	return r ? r : ops->open(params, out, err);
}
