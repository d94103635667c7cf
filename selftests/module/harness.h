/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef MODULE_HARNESS_H
#define MODULE_HARNESS_H

/*
 * The kernel's kselftest harness (kselftest.sh fetches it) with what it lacks:
 *
 *  - deadlines for an emulated machine that shares its processors: they only end what
 *    hangs, nothing is measured by them;
 *  - FERRY_ONLY=NAME,NAME runs only the tests of these names (without fixture and variant),
 *    FERRY_VARIANT=NAME only those of this variant; naming a test that does not exist is a
 *    failure;
 *  - FERRY_SECONDS is how long a test that searches for a race should do so.
 */
#include <kselftest_harness.h>

#undef TEST_TIMEOUT_DEFAULT
#define TEST_TIMEOUT_DEFAULT 150

static inline unsigned int harness_seconds(unsigned int otherwise)
{
	const char *value = getenv("FERRY_SECONDS");

	return value && atoi(value) > 0 ? (unsigned int)atoi(value) : otherwise;
}

static inline bool harness_named(const char *list, const char *name)
{
	size_t length = strlen(name);

	for (const char *at = list; (at = strstr(at, name)); at += length)
		if ((at == list || at[-1] == ',') && (!at[length] || at[length] == ','))
			return true;
	return false;
}

static inline int harness_prune(void)
{
	const char *only = getenv("FERRY_ONLY"), *variant = getenv("FERRY_VARIANT");
	unsigned int left = 0;

	for (struct __fixture_metadata *f = __fixture_list; f; f = f->next) {
		struct __test_metadata **test = &f->tests;
		struct __fixture_variant_metadata **v = &f->variant;

		while (*test)
			if (only && *only && !harness_named(only, (*test)->name)) {
				*test = (*test)->next;
			} else {
				left++;
				test = &(*test)->next;
			}
		while (variant && *variant && *v)
			if (strcmp(variant, (*v)->name))
				*v = (*v)->next;
			else
				v = &(*v)->next;
	}
	return left ? 0 : -ENOENT;
}

#define HARNESS_MAIN							\
	static void __attribute__((constructor))			\
	__constructor_order_last(void)					\
	{								\
		if (!__constructor_order)				\
			__constructor_order = _CONSTRUCTOR_ORDER_BACKWARD; \
	}								\
	int main(int argc, char **argv)					\
	{								\
		setvbuf(stdout, NULL, _IOLBF, 0);			\
		if (harness_prune()) {					\
			printf("Bail out! there is no test %s\n", getenv("FERRY_ONLY")); \
			return 1;					\
		}							\
		return test_harness_run(argc, argv);			\
	}

#endif
