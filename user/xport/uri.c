// SPDX-License-Identifier: GPL-2.0-or-later
#include "xport/uri.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define HOW_TO "write tcp:HOST:PORT, tcp:[V6-ADDRESS]:PORT or unix:PATH"

static bool is_port(const char *text)
{
	size_t len = strlen(text);

	return len >= 1 && len <= 5 && strspn(text, "0123456789") == len && atol(text) <= 65535;
}

static bool is_host(const char *host, size_t len, bool bracketed)
{
	size_t i;

	if (!len)
		return false;
	for (i = 0; i < len; i++)
		if (host[i] <= ' ' || host[i] > '~' || host[i] == '[' || host[i] == ']')
			return false;
	return bracketed == (memchr(host, ':', len) != NULL);
}

static int parse_tcp(const char *text, const char *rest, struct ferry_uri *uri,
		     struct ferry_error *err)
{
	bool bracketed = *rest == '[';
	const char *host = rest + bracketed;
	const char *end = bracketed ? strchr(host, ']') : strrchr(host, ':');
	const char *port;
	size_t len;

	if (!end || (bracketed && end[1] != ':'))
		return ferry_error_set(err, EINVAL, "address '%s' has no port: " HOW_TO, text);
	len = (size_t)(end - host);
	port = end + 1 + bracketed;
	if (!len)
		return ferry_error_set(err, EINVAL,
				       "address '%s' names no host: " HOW_TO
				       " (0.0.0.0 or [::] listens on all addresses)", text);
	if (!bracketed && memchr(host, ':', len))
		return ferry_error_set(err, EINVAL, "address '%s' is ambiguous: put an IPv6 "
				       "address in brackets, tcp:[ADDRESS]:PORT", text);
	if (len >= sizeof(uri->host) || !is_host(host, len, bracketed))
		return ferry_error_set(err, EINVAL, "address '%s' names no valid host: " HOW_TO,
				       text);
	if (!is_port(port))
		return ferry_error_set(err, EINVAL,
				       "address '%s': port '%s' is not a number from 0 to 65535",
				       text, port);
	uri->kind = FERRY_URI_TCP;
	memcpy(uri->host, host, len);
	snprintf(uri->port, sizeof(uri->port), "%ld", atol(port));
	return 0;
}

static int parse_unix(const char *text, const char *path, struct ferry_uri *uri,
		      struct ferry_error *err)
{
	size_t len = strlen(path);

	if (!len)
		return ferry_error_set(err, EINVAL, "address '%s' names no socket: " HOW_TO, text);
	if (len >= sizeof(uri->path))
		return ferry_error_set(err, EINVAL,
				       "address '%s': a unix socket's path has at most %zu bytes; "
				       "use a shorter one", text, sizeof(uri->path) - 1);
	uri->kind = FERRY_URI_UNIX;
	memcpy(uri->path, path, len);
	return 0;
}

int ferry_uri_parse(const char *text, struct ferry_uri *uri, struct ferry_error *err)
{
	memset(uri, 0, sizeof(*uri));
	if (!strncmp(text, "tcp:", 4))
		return parse_tcp(text, text + 4, uri, err);
	if (!strncmp(text, "unix:", 5))
		return parse_unix(text, text + 5, uri, err);
	if (!strncmp(text, "vsock:", 6) || !strncmp(text, "tls:", 4))
		return ferry_error_set(err, EOPNOTSUPP,
				       "address '%s': vsock and tls are not built yet; " HOW_TO, text);
	return ferry_error_set(err, EINVAL, "address '%s' is of no known kind: " HOW_TO, text);
}

void ferry_uri_format(const struct ferry_uri *uri, char text[FERRY_URI_MAX])
{
	bool v6 = strchr(uri->host, ':') != NULL;

	if (uri->kind == FERRY_URI_UNIX)
		snprintf(text, FERRY_URI_MAX, "unix:%s", uri->path);
	else
		snprintf(text, FERRY_URI_MAX, "tcp:%s%s%s:%s", v6 ? "[" : "", uri->host,
			 v6 ? "]" : "", uri->port);
}
