// SPDX-License-Identifier: GPL-2.0-or-later
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "xport/uri.h"

#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

static void good(void **state)
{
	static const struct {
		const char *text;
		enum ferry_uri_kind kind;
		const char *host, *port, *path;
	} cases[] = {
		{ "tcp:host.example:4444", FERRY_URI_TCP, "host.example", "4444", "" },
		{ "tcp:127.0.0.1:0", FERRY_URI_TCP, "127.0.0.1", "0", "" },
		{ "tcp:[::1]:65535", FERRY_URI_TCP, "::1", "65535", "" },
		{ "tcp:[fe80::1%eth0]:1", FERRY_URI_TCP, "fe80::1%eth0", "1", "" },
		{ "unix:/run/a b.sock", FERRY_URI_UNIX, "", "", "/run/a b.sock" },
		{ "unix:relative", FERRY_URI_UNIX, "", "", "relative" },
	};
	char text[FERRY_URI_MAX];
	struct ferry_uri uri;
	size_t i;

	(void)state;
	for (i = 0; i < COUNT(cases); i++) {
		assert_int_equal(ferry_uri_parse(cases[i].text, &uri, NULL), 0);
		assert_int_equal(uri.kind, cases[i].kind);
		assert_string_equal(uri.host, cases[i].host);
		assert_string_equal(uri.port, cases[i].port);
		assert_string_equal(uri.path, cases[i].path);
		ferry_uri_format(&uri, text);
		assert_string_equal(text, cases[i].text);
	}
}

static void leading_zeros(void **state)
{
	struct ferry_uri uri;

	(void)state;
	assert_int_equal(ferry_uri_parse("tcp:h:00080", &uri, NULL), 0);
	assert_string_equal(uri.port, "80");
}

static void bad(void **state)
{
	static const struct {
		const char *text;
		int want;
		const char *says;
	} cases[] = {
		{ "", -EINVAL, "of no known kind" },
		{ "host:1", -EINVAL, "of no known kind" },
		{ "udp:host:1", -EINVAL, "write tcp:HOST:PORT" },
		{ "tcp:", -EINVAL, "has no port" },
		{ "tcp:host", -EINVAL, "has no port" },
		{ "tcp::1", -EINVAL, "names no host" },
		{ "tcp:host:", -EINVAL, "not a number" },
		{ "tcp:host:65536", -EINVAL, "not a number" },
		{ "tcp:host:-1", -EINVAL, "not a number" },
		{ "tcp:host:+1", -EINVAL, "not a number" },
		{ "tcp:host: 1", -EINVAL, "not a number" },
		{ "tcp:host:000000001", -EINVAL, "not a number" },
		{ "tcp:host:ssh", -EINVAL, "not a number" },
		{ "tcp:::1:80", -EINVAL, "in brackets" },
		{ "tcp:[::1]", -EINVAL, "has no port" },
		{ "tcp:[::1:80", -EINVAL, "has no port" },
		{ "tcp:[::1]80", -EINVAL, "has no port" },
		{ "tcp:[host]:80", -EINVAL, "no valid host" },
		{ "tcp:[]:80", -EINVAL, "names no host" },
		{ "tcp:a b:80", -EINVAL, "no valid host" },
		{ "tcp:a\n:80", -EINVAL, "no valid host" },
		{ "unix:", -EINVAL, "names no socket" },
		{ "vsock:3:1", -EOPNOTSUPP, "not built yet" },
		{ "tls:host:1", -EOPNOTSUPP, "not built yet" },
	};
	struct ferry_error err;
	struct ferry_uri uri;
	size_t i;

	(void)state;
	for (i = 0; i < COUNT(cases); i++) {
		if (ferry_uri_parse(cases[i].text, &uri, &err) != cases[i].want)
			fail_msg("'%s'", cases[i].text);
		assert_int_equal(err.errnum, -cases[i].want);
		if (!strstr(err.text, cases[i].says))
			fail_msg("'%s': %s", cases[i].text, err.text);
	}
}

static void lengths(void **state)
{
	char text[600];
	struct ferry_error err;
	struct ferry_uri uri;

	(void)state;
	snprintf(text, sizeof(text), "unix:%0107d", 7);
	assert_int_equal(ferry_uri_parse(text, &uri, &err), 0);
	snprintf(text, sizeof(text), "unix:%0108d", 7);
	assert_int_equal(ferry_uri_parse(text, &uri, &err), -EINVAL);
	assert_non_null(strstr(err.text, "at most 107 bytes"));
	snprintf(text, sizeof(text), "tcp:%0255d:1", 7);
	assert_int_equal(ferry_uri_parse(text, &uri, &err), 0);
	snprintf(text, sizeof(text), "tcp:%0256d:1", 7);
	assert_int_equal(ferry_uri_parse(text, &uri, &err), -EINVAL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(good),
		cmocka_unit_test(leading_zeros),
		cmocka_unit_test(bad),
		cmocka_unit_test(lengths),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
