/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef FERRY_XPORT_URI_H
#define FERRY_XPORT_URI_H

#include "base/error.h"

/* Where an agent listens or connects: tcp:HOST:PORT, tcp:[V6]:PORT or unix:PATH. */
enum ferry_uri_kind { FERRY_URI_TCP, FERRY_URI_UNIX };

#define FERRY_URI_MAX 300

struct ferry_uri {
	enum ferry_uri_kind kind;
	char host[256]; /* tcp: name or address, without brackets */
	char port[8];	/* tcp: decimal, 0..65535 */
	char path[108]; /* unix */
};

/** ferry_uri_parse() - Return: 0, -EINVAL (with what to type), -EOPNOTSUPP (vsock:, tls:). */
int ferry_uri_parse(const char *text, struct ferry_uri *uri, struct ferry_error *err);

/** ferry_uri_format() - back to text; brackets around a v6 address. */
void ferry_uri_format(const struct ferry_uri *uri, char text[FERRY_URI_MAX]);

#endif
