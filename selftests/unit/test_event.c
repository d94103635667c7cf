// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * What the kernel module says, byte by byte: each event, answers cut off everywhere,
 * attributes of wrong size, missing, twice, unknown; and a machine without the module.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include <linux/ferry.h>
#include <linux/ferry_netlink.h>
#include <linux/genetlink.h>
#include <linux/netlink.h>

#include "event/event.h"
#include "event/message.h"

#define FAMILY 29
#define SEQUENCE 7

/* A datagram that is being written; aligned as the parser wants it. */
struct datagram {
	_Alignas(max_align_t) char bytes[4096];
	size_t len;
	size_t message; /* where the last one begins */
};

static void message(struct datagram *d, uint16_t type, uint32_t sequence, uint8_t command)
{
	struct nlmsghdr nlh = { .nlmsg_type = type, .nlmsg_seq = sequence };
	struct genlmsghdr genl = { .cmd = command, .version = 1 };

	d->message = d->len;
	nlh.nlmsg_len = sizeof(nlh) + sizeof(genl);
	memcpy(d->bytes + d->len, &nlh, sizeof(nlh));
	memcpy(d->bytes + d->len + sizeof(nlh), &genl, sizeof(genl));
	d->len += nlh.nlmsg_len;
}

/* Set the length of the last message to what is there. */
static void message_ends(struct datagram *d)
{
	uint32_t len = (uint32_t)(d->len - d->message);

	memcpy(d->bytes + d->message, &len, sizeof(len));
}

/* An attribute within another one. */
static void nested(struct datagram *d, uint16_t type, const void *value, size_t bytes)
{
	struct nlattr a = { .nla_len = (uint16_t)(sizeof(a) + bytes), .nla_type = type };

	memcpy(d->bytes + d->len, &a, sizeof(a));
	memcpy(d->bytes + d->len + sizeof(a), value, bytes);
	memset(d->bytes + d->len + sizeof(a) + bytes, 0, NLA_ALIGN(bytes) - bytes);
	d->len += sizeof(a) + NLA_ALIGN(bytes);
}

static void attribute(struct datagram *d, uint16_t type, const void *value, size_t bytes)
{
	nested(d, type, value, bytes);
	message_ends(d);
}

static void attribute_u32(struct datagram *d, uint16_t type, uint32_t value)
{
	attribute(d, type, &value, sizeof(value));
}

static void attribute_u64(struct datagram *d, uint16_t type, uint64_t value)
{
	attribute(d, type, &value, sizeof(value));
}

/* All attributes of a tracker but @without, as the module writes them. */
static void tracker(struct datagram *d, uint16_t without)
{
	uint16_t type;

	for (type = FERRY_A_ID; type <= FERRY_A_TIME_NS; type++) {
		if (type == without)
			continue;
		if (type == FERRY_A_STATE)
			attribute_u32(d, type, FERRY_STATE_STARTED | 0x80);
		else if (type == FERRY_A_PID || type == FERRY_A_UID || type == FERRY_A_VIEWS)
			attribute_u32(d, type, 0xf0000000u + type);
		else
			attribute_u64(d, type, 0xf000000000000000ull + type);
	}
}

static void is_tracker(const struct ferry_event *e, enum ferry_event_kind kind, uint64_t time_ns)
{
	const uint64_t high = 0xf000000000000000ull;

	assert_int_equal(e->kind, kind);
	assert_true(e->id == high + FERRY_A_ID);
	assert_int_equal(e->pid, 0xf0000000u + FERRY_A_PID);
	assert_int_equal(e->uid, 0xf0000000u + FERRY_A_UID);
	assert_true(e->inode == high + FERRY_A_INODE);
	assert_true(e->pages == high + FERRY_A_PAGES);
	assert_true(e->started);
	assert_int_equal(e->views, 0xf0000000u + FERRY_A_VIEWS);
	assert_true(e->dirty_pages == high + FERRY_A_DIRTY_PAGES);
	assert_true(e->watermark_pages == high + FERRY_A_WATERMARK_PAGES);
	assert_true(e->marked_pages == high + FERRY_A_MARKED_PAGES);
	assert_true(e->cleaned_pages == high + FERRY_A_CLEANED_PAGES);
	assert_true(e->pinned_pages == high + FERRY_A_PINNED_PAGES);
	assert_true(e->time_ns == time_ns);
}

struct heard {
	unsigned int count;
	struct ferry_event last;
	int answer; /* what to say to the walk */
};

static int hear(void *ctx, const struct ferry_event *event)
{
	struct heard *h = ctx;

	h->count++;
	h->last = *event;
	return h->answer;
}

/* The bytes behind a datagram are not looked at: they are not there. */
static int walk(struct ferry_message_walk *w, const void *bytes, size_t len, struct heard *h,
		struct ferry_error *err)
{
	void *exact = malloc(len ? len : 1);
	int r;

	assert_non_null(exact);
	memcpy(exact, bytes, len);
	memset(h, 0, sizeof(*h));
	memset(err, 0, sizeof(*err));
	r = ferry_message_walk(w, exact, len, hear, h, err);
	free(exact);
	return r;
}

static int listen_to(const struct datagram *d, struct heard *h, struct ferry_error *err)
{
	struct ferry_message_walk w = { .family = FAMILY };

	return walk(&w, d->bytes, d->len, h, err);
}

static void every_event(void **state)
{
	static const struct {
		uint8_t command;
		enum ferry_event_kind kind;
		const char *name;
	} kinds[] = {
		{ FERRY_CMD_GET, FERRY_EVENT_EXISTS, "exists" },
		{ FERRY_CMD_CREATED, FERRY_EVENT_CREATED, "created" },
		{ FERRY_CMD_DESTROYED, FERRY_EVENT_DESTROYED, "destroyed" },
		{ FERRY_CMD_WATERMARK, FERRY_EVENT_WATERMARK, "watermark" },
		{ FERRY_CMD_THROTTLED, FERRY_EVENT_THROTTLED, "throttled" },
	};
	struct ferry_error err;
	struct heard h;
	size_t i;

	(void)state;
	for (i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
		struct datagram d = { .len = 0 };

		message(&d, FAMILY, 0, kinds[i].command);
		tracker(&d, 0);
		assert_int_equal(listen_to(&d, &h, &err), 0);
		assert_int_equal(h.count, 1);
		is_tracker(&h.last, kinds[i].kind, 0xf000000000000000ull + FERRY_A_TIME_NS);
		assert_string_equal(ferry_event_name(kinds[i].kind), kinds[i].name);
	}
	assert_string_equal(ferry_event_name(FERRY_EVENT_LOST), "lost");
}

/* How the kernel ends an answer: with a code, of which @bytes are there. */
static void answer_end(struct datagram *d, uint16_t type, uint32_t sequence, int code, size_t bytes)
{
	message(d, type, sequence, 0);
	d->len -= sizeof(struct genlmsghdr);
	memcpy(d->bytes + d->len, &code, bytes);
	d->len += bytes;
	message_ends(d);
}

/* A dump in two parts, with an event between them. */
static void dump(void **state)
{
	struct ferry_message_walk w = { .family = FAMILY, .sequence = SEQUENCE };
	struct datagram d = { .len = 0 };
	struct ferry_error err;
	struct heard h;

	(void)state;
	message(&d, FAMILY, SEQUENCE, FERRY_CMD_GET);
	tracker(&d, FERRY_A_TIME_NS);
	message(&d, FAMILY, 0, FERRY_CMD_CREATED);
	tracker(&d, 0);
	message(&d, FAMILY, SEQUENCE, FERRY_CMD_GET);
	tracker(&d, FERRY_A_TIME_NS);
	assert_int_equal(walk(&w, d.bytes, d.len, &h, &err), 0);
	assert_int_equal(h.count, 3);
	is_tracker(&h.last, FERRY_EVENT_EXISTS, 0);
	assert_false(w.answered);

	/* The end, with its code; of another request first. */
	d.len = 0;
	answer_end(&d, NLMSG_DONE, SEQUENCE + 1, -EPERM, 4);
	assert_int_equal(walk(&w, d.bytes, d.len, &h, &err), 0);
	assert_false(w.answered);
	d.len = 0;
	answer_end(&d, NLMSG_DONE, SEQUENCE, 0, 4);
	assert_int_equal(walk(&w, d.bytes, d.len, &h, &err), 0);
	assert_int_equal(h.count, 0);
	assert_true(w.answered);
}

static void kernel_errors(void **state)
{
	static const struct {
		int code;
		size_t bytes;
		int want;
	} cases[] = {
		{ -EPERM, 4, -EPERM }, { -ENOENT, 4, -ENOENT }, { 0, 4, 0 },
		{ -EPERM, 2, -EBADMSG }, { 5, 4, -EBADMSG }, { -5000, 4, -EBADMSG },
	};
	struct ferry_error err;
	struct heard h;
	size_t i;

	(void)state;
	for (i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct ferry_message_walk w = { .family = FAMILY, .sequence = SEQUENCE };
		struct datagram d = { .len = 0 };

		answer_end(&d, NLMSG_ERROR, SEQUENCE, cases[i].code, cases[i].bytes);
		assert_int_equal(walk(&w, d.bytes, d.len, &h, &err), cases[i].want);
		assert_int_equal(err.errnum, cases[i].want == -EBADMSG ? EBADMSG : 0);
		assert_int_equal(w.answered, cases[i].bytes == 4);
		/* Nobody asked. */
		w.sequence = 0;
		assert_int_equal(walk(&w, d.bytes, d.len, &h, &err), 0);
	}
}

/* However much of it is missing, a datagram that is cut off is an error, or says less. */
static void truncated(void **state)
{
	struct datagram d = { .len = 0 };
	struct ferry_error err;
	struct heard h;
	size_t len;

	(void)state;
	message(&d, FAMILY, 0, FERRY_CMD_CREATED);
	tracker(&d, 0);
	for (len = 1; len < d.len; len++) {
		struct ferry_message_walk w = { .family = FAMILY };

		assert_int_equal(walk(&w, d.bytes, len, &h, &err), -EBADMSG);
		assert_int_equal(h.count, 0);
		assert_non_null(strstr(err.text, "is cut off"));
	}
	/* The same with a header that says so. */
	for (len = 0; len < d.len; len++) {
		struct datagram cut = d;

		cut.len = len;
		memcpy(cut.bytes, &(uint32_t){ (uint32_t)len }, sizeof(uint32_t));
		assert_int_equal(listen_to(&cut, &h, &err), len ? -EBADMSG : 0);
		assert_int_equal(h.count, 0);
		assert_int_equal(err.errnum, len ? EBADMSG : 0);
	}
	/* An attribute that goes on after its message. */
	d.len = 0;
	message(&d, FAMILY, 0, FERRY_CMD_CREATED);
	tracker(&d, 0);
	memcpy(d.bytes + sizeof(struct nlmsghdr) + sizeof(struct genlmsghdr), &(uint16_t){ 0xffff }, 2);
	assert_int_equal(listen_to(&d, &h, &err), -EBADMSG);
	assert_non_null(strstr(err.text, "ends inside an attribute"));
	/* Lengths that would make a loop stand still. */
	memcpy(d.bytes + sizeof(struct nlmsghdr) + sizeof(struct genlmsghdr), &(uint16_t){ 0 }, 2);
	assert_int_equal(listen_to(&d, &h, &err), -EBADMSG);
	memset(d.bytes, 0, 4);
	assert_int_equal(listen_to(&d, &h, &err), -EBADMSG);
}

static void wrong_size(void **state)
{
	struct ferry_error err;
	struct heard h;
	uint16_t type;

	(void)state;
	for (type = FERRY_A_ID; type <= FERRY_A_TIME_NS; type++) {
		static const uint8_t bytes[16];
		static const size_t sizes[] = { 0, 1, 3, 5, 7, 9, 16 };
		size_t i;

		for (i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
			struct datagram d = { .len = 0 };

			message(&d, FAMILY, 0, FERRY_CMD_WATERMARK);
			tracker(&d, type);
			attribute(&d, type, bytes, sizes[i]);
			assert_int_equal(listen_to(&d, &h, &err), -EBADMSG);
			assert_int_equal(h.count, 0);
			assert_non_null(strstr(err.text, "bytes where"));
		}
	}
}

static void missing_or_twice(void **state)
{
	struct ferry_error err;
	struct heard h;
	uint16_t type;

	(void)state;
	for (type = FERRY_A_ID; type <= FERRY_A_TIME_NS; type++) {
		struct datagram d = { .len = 0 };

		message(&d, FAMILY, 0, FERRY_CMD_DESTROYED);
		tracker(&d, type);
		assert_int_equal(listen_to(&d, &h, &err), -EBADMSG);
		assert_int_equal(h.count, 0);
		assert_non_null(strstr(err.text, "a tracker destroyed but not its"));

		d.len = 0;
		message(&d, FAMILY, 0, FERRY_CMD_DESTROYED);
		tracker(&d, 0);
		if (type == FERRY_A_STATE || type == FERRY_A_PID || type == FERRY_A_UID ||
		    type == FERRY_A_VIEWS)
			attribute_u32(&d, type, 1);
		else
			attribute_u64(&d, type, 1);
		assert_int_equal(listen_to(&d, &h, &err), -EBADMSG);
		assert_non_null(strstr(err.text, "twice"));
	}
}

static void unknown_is_skipped(void **state)
{
	struct datagram d = { .len = 0 };
	struct ferry_error err;
	struct heard h;

	(void)state;
	/* Attributes between and after those we know, one of a size that needs padding. */
	message(&d, FAMILY, 0, FERRY_CMD_CREATED);
	attribute(&d, FERRY_A_PAD, "", 0);
	attribute(&d, FERRY_A_MAX + 1, "12345", 5);
	tracker(&d, 0);
	attribute(&d, 0x3fff, "x", 1);
	/* Commands and families. */
	message(&d, FAMILY, 0, FERRY_CMD_MAX + 1);
	message(&d, FAMILY, 0, FERRY_CMD_UNSPEC);
	message(&d, FAMILY + 1, 0, FERRY_CMD_CREATED);
	message(&d, NLMSG_NOOP, 0, 0);
	assert_int_equal(listen_to(&d, &h, &err), 0);
	assert_int_equal(h.count, 1);
	is_tracker(&h.last, FERRY_EVENT_CREATED, 0xf000000000000000ull + FERRY_A_TIME_NS);
}

static void callback_ends_it(void **state)
{
	struct ferry_message_walk w = { .family = FAMILY };
	struct datagram d = { .len = 0 };
	struct heard h = { .answer = -EPIPE };

	(void)state;
	message(&d, FAMILY, 0, FERRY_CMD_CREATED);
	tracker(&d, 0);
	message(&d, FAMILY, 0, FERRY_CMD_DESTROYED);
	tracker(&d, 0);
	assert_int_equal(ferry_message_walk(&w, d.bytes, d.len, hear, &h, NULL), -EPIPE);
	assert_int_equal(h.count, 1);
	assert_int_equal(h.last.kind, FERRY_EVENT_CREATED);
}

static void overrun(void **state)
{
	struct ferry_message_walk w = { .family = FAMILY };
	struct datagram d = { .len = 0 };
	struct ferry_error err;
	struct heard h;

	(void)state;
	message(&d, NLMSG_OVERRUN, 0, 0);
	assert_int_equal(walk(&w, d.bytes, d.len, &h, &err), 0);
	assert_true(w.overrun);
}

/* The controller's answer, with another group before ours. */
static void family(struct datagram *d, const char *name, uint16_t number, const char *group,
		   uint32_t group_number)
{
	struct datagram groups = { .len = 0 }, entry = { .len = 0 };
	uint32_t other = 3;

	nested(&entry, CTRL_ATTR_MCAST_GRP_ID, &other, sizeof(other));
	nested(&entry, CTRL_ATTR_MCAST_GRP_NAME, "other", 6);
	nested(&groups, 1, entry.bytes, entry.len);
	entry.len = 0;
	nested(&entry, CTRL_ATTR_MCAST_GRP_NAME, group, strlen(group) + 1);
	nested(&entry, CTRL_ATTR_MCAST_GRP_ID, &group_number, sizeof(group_number));
	nested(&groups, 2, entry.bytes, entry.len);

	message(d, GENL_ID_CTRL, SEQUENCE, CTRL_CMD_NEWFAMILY);
	attribute(d, CTRL_ATTR_FAMILY_NAME, name, strlen(name) + 1);
	attribute(d, CTRL_ATTR_FAMILY_ID, &number, sizeof(number));
	attribute_u32(d, CTRL_ATTR_MAXATTR, FERRY_A_MAX);
	attribute(d, CTRL_ATTR_MCAST_GROUPS | NLA_F_NESTED, groups.bytes, groups.len);
}

static void finds_family(void **state)
{
	static const struct {
		const char *name;
		uint16_t number;
		const char *group;
		uint32_t group_number;
		uint32_t asked;
		int want;
	} cases[] = {
		{ "ferry", 29, "events", 11, SEQUENCE, 0 },
		{ "ferry", 29, "events", 11, 0, 0 },		  /* nobody asked */
		{ "ferry", 29, "events", 11, SEQUENCE + 1, 0 },	  /* something else */
		{ "ferryboat", 29, "events", 11, SEQUENCE, -EBADMSG },
		{ "ferr", 29, "events", 11, SEQUENCE, -EBADMSG },
		{ "ferry", 29, "event", 11, SEQUENCE, -EBADMSG },
		{ "ferry", 29, "events", 0, SEQUENCE, -EBADMSG },
		{ "ferry", GENL_ID_CTRL, "events", 11, SEQUENCE, -EBADMSG },
		{ "ferry", 0, "events", 11, SEQUENCE, -EBADMSG },
	};
	struct ferry_error err;
	struct heard h;
	size_t i;

	(void)state;
	for (i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct ferry_message_walk w = { .sequence = cases[i].asked };
		struct datagram d = { .len = 0 };

		family(&d, cases[i].name, cases[i].number, cases[i].group, cases[i].group_number);
		assert_int_equal(walk(&w, d.bytes, d.len, &h, &err), cases[i].want);
		assert_int_equal(w.family, i ? 0 : 29);
		assert_int_equal(w.group, i ? 0 : 11);
		if (cases[i].want)
			assert_non_null(strstr(err.text, "is not that of ferry.ko"));
	}
}

static void family_cut_off(void **state)
{
	struct datagram d = { .len = 0 };
	struct ferry_error err;
	struct heard h;
	uint32_t len;

	(void)state;
	family(&d, "ferry", 29, "events", 11);
	for (len = sizeof(struct nlmsghdr); len < d.len; len++) {
		struct ferry_message_walk w = { .sequence = SEQUENCE };

		memcpy(d.bytes, &len, sizeof(len));
		assert_int_equal(walk(&w, d.bytes, len, &h, &err), -EBADMSG);
		assert_int_equal(w.family, 0);
		assert_int_equal(err.errnum, EBADMSG);
	}
}

static void family_goes_away(void **state)
{
	struct ferry_message_walk w = { .family = FAMILY };
	struct datagram d = { .len = 0 };
	struct ferry_error err;
	struct heard h;

	(void)state;
	message(&d, GENL_ID_CTRL, 0, CTRL_CMD_DELFAMILY);
	attribute(&d, CTRL_ATTR_FAMILY_ID, &(uint16_t){ FAMILY + 1 }, 2);
	message(&d, GENL_ID_CTRL, 0, CTRL_CMD_NEWMCAST_GRP);
	attribute(&d, CTRL_ATTR_FAMILY_ID, &(uint16_t){ FAMILY }, 2);
	assert_int_equal(walk(&w, d.bytes, d.len, &h, &err), 0);
	assert_false(w.gone);
	message(&d, GENL_ID_CTRL, 0, CTRL_CMD_DELFAMILY);
	attribute(&d, CTRL_ATTR_FAMILY_ID, &(uint16_t){ FAMILY }, 2);
	assert_int_equal(walk(&w, d.bytes, d.len, &h, &err), 0);
	assert_true(w.gone);
}

static void requests(void **state)
{
	_Alignas(max_align_t) char buf[FERRY_MESSAGE_REQUEST_BYTES];
	const struct nlmsghdr *nlh = (const void *)buf;
	const struct genlmsghdr *genl = (const void *)(nlh + 1);
	const struct nlattr *attr = (const void *)(genl + 1);
	size_t len = ferry_message_find(buf, 5);

	(void)state;
	assert_int_equal(len, nlh->nlmsg_len);
	assert_true(nlh->nlmsg_len <= sizeof(buf));
	assert_int_equal(nlh->nlmsg_type, GENL_ID_CTRL);
	assert_int_equal(nlh->nlmsg_flags, NLM_F_REQUEST | NLM_F_ACK);
	assert_int_equal(nlh->nlmsg_seq, 5);
	assert_int_equal(genl->cmd, CTRL_CMD_GETFAMILY);
	assert_int_equal(attr->nla_type, CTRL_ATTR_FAMILY_NAME);
	assert_string_equal((const char *)(attr + 1), "ferry");

	assert_int_equal(ferry_message_dump(buf, FAMILY, 6), sizeof(*nlh) + sizeof(*genl));
	assert_int_equal(nlh->nlmsg_type, FAMILY);
	assert_int_equal(nlh->nlmsg_flags, NLM_F_REQUEST | NLM_F_DUMP);
	assert_int_equal(genl->cmd, FERRY_CMD_GET);
	assert_int_equal(genl->version, FERRY_GENL_VERSION);
}

/* With the real controller of this kernel, which knows no such family. */
static void module_is_not_loaded(void **state)
{
	struct ferry_events *events = (void *)state;
	struct ferry_error err = { 0 };

	if (!access("/sys/module/ferry", F_OK)) {
		print_message("SKIP: the module is loaded here\n");
		skip();
	}
	assert_int_equal(ferry_event_open(&events, 5000, &err), -ENOENT);
	assert_null(events);
	assert_string_equal(err.text, "looking for the kernel module ferry: it is not loaded; as root "
			    "type: modprobe ferry (or, from where it was built: insmod ferry.ko)");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_event),
		cmocka_unit_test(dump),
		cmocka_unit_test(kernel_errors),
		cmocka_unit_test(truncated),
		cmocka_unit_test(wrong_size),
		cmocka_unit_test(missing_or_twice),
		cmocka_unit_test(unknown_is_skipped),
		cmocka_unit_test(callback_ends_it),
		cmocka_unit_test(overrun),
		cmocka_unit_test(finds_family),
		cmocka_unit_test(family_cut_off),
		cmocka_unit_test(family_goes_away),
		cmocka_unit_test(requests),
		cmocka_unit_test(module_is_not_loaded),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
