// SPDX-License-Identifier: GPL-2.0-or-later
#include "guest/guest.h"

#include <errno.h>
#include <string.h>

int ferry_guest_parse(const char *spec, const struct ferry_guest_ops **ops, const char **path,
		      struct ferry_error *err)
{
	const char *colon = spec ? strchr(spec, ':') : NULL;
	size_t scheme;

	if (!colon || !colon[1])
		return ferry_error_set(err, EINVAL,
				       "guest '%s': no driver and path; type qmp:PATH with the QMP "
				       "socket of a running QEMU, or port:PATH", spec ? spec : "");
	scheme = (size_t)(colon - spec);
	if (scheme == 3 && !memcmp(spec, "qmp", 3)) {
		*ops = &ferry_guest_qemu;
		*path = colon + 1;
		return 0;
	}
	if (scheme == 4 && !memcmp(spec, "port", 4))
		return ferry_error_set(err, EOPNOTSUPP,
				       "guest '%s': this build of ferry has no port driver; only "
				       "qmp:PATH works", spec);
	return ferry_error_set(err, EINVAL,
			       "guest '%s': unknown driver '%.*s'; type qmp:PATH or port:PATH",
			       spec, (int)(scheme < 64 ? scheme : 64), spec);
}

int ferry_guest_open(const struct ferry_guest_open_params *params, struct ferry_guest **out,
		     struct ferry_error *err)
{
	const struct ferry_guest_ops *ops;
	const char *path;
	int r = ferry_guest_parse(params->spec, &ops, &path, err);

	return r ? r : ops->open(params, out, err);
}
