// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * A datagram holds netlink messages one after the other; a message of the family "ferry"
 * is a header, a command and flat attributes:
 *
 *	nlmsghdr { len, type = family, seq }  genlmsghdr { cmd, version }
 *	nlattr { len, FERRY_A_ID } u64   nlattr { len, FERRY_A_PID } u32   ...
 *
 * The answer to a dump is many messages FERRY_CMD_GET and then NLMSG_DONE; events come in
 * between, with sequence 0. The kernel wrote all this, but lengths are checked as if it
 * had not: a message ends where its header says or the datagram does, whichever is first,
 * and an attribute that goes on beyond is an error, not the end.
 */
#include "event/message.h"

#include <assert.h>
#include <errno.h>
#include <libmnl/libmnl.h>
#include <linux/ferry.h>
#include <linux/ferry_netlink.h>
#include <linux/genetlink.h>
#include <string.h>

const char *ferry_event_name(enum ferry_event_kind kind)
{
	static const char *const names[] = {
		[FERRY_EVENT_EXISTS] = "exists",       [FERRY_EVENT_CREATED] = "created",
		[FERRY_EVENT_DESTROYED] = "destroyed", [FERRY_EVENT_WATERMARK] = "watermark",
		[FERRY_EVENT_THROTTLED] = "throttled", [FERRY_EVENT_LOST] = "lost",
	};

	static_assert(sizeof(names) / sizeof(names[0]) == FERRY_EVENT_COUNT, "a name each");
	return names[kind];
}

/* What each command means; of a command that is not here nothing is known. */
static const struct {
	bool known;
	enum ferry_event_kind kind;
} commands[] = {
	[FERRY_CMD_GET] = { true, FERRY_EVENT_EXISTS },
	[FERRY_CMD_CREATED] = { true, FERRY_EVENT_CREATED },
	[FERRY_CMD_DESTROYED] = { true, FERRY_EVENT_DESTROYED },
	[FERRY_CMD_WATERMARK] = { true, FERRY_EVENT_WATERMARK },
	[FERRY_CMD_THROTTLED] = { true, FERRY_EVENT_THROTTLED },
};

/* Where an attribute goes; a bytes of 0 is one that is passed over. */
static const struct attribute {
	uint8_t bytes;
	uint16_t offset;
	const char *name;
} attributes[] = {
#define ATTRIBUTE(which, field)                                                            \
	[which] = { sizeof(((struct ferry_event *)0)->field),                              \
		    offsetof(struct ferry_event, field), #field }
	ATTRIBUTE(FERRY_A_ID, id),
	ATTRIBUTE(FERRY_A_PID, pid),
	ATTRIBUTE(FERRY_A_UID, uid),
	ATTRIBUTE(FERRY_A_INODE, inode),
	ATTRIBUTE(FERRY_A_PAGES, pages),
	[FERRY_A_STATE] = { sizeof(uint32_t), 0, "state" }, /* taken apart by itself */
	ATTRIBUTE(FERRY_A_VIEWS, views),
	ATTRIBUTE(FERRY_A_DIRTY_PAGES, dirty_pages),
	ATTRIBUTE(FERRY_A_WATERMARK_PAGES, watermark_pages),
	ATTRIBUTE(FERRY_A_MARKED_PAGES, marked_pages),
	ATTRIBUTE(FERRY_A_CLEANED_PAGES, cleaned_pages),
	ATTRIBUTE(FERRY_A_PINNED_PAGES, pinned_pages),
	ATTRIBUTE(FERRY_A_TIME_NS, time_ns),
#undef ATTRIBUTE
};

#define ATTRIBUTES (sizeof(attributes) / sizeof(attributes[0]))
static_assert(ATTRIBUTES == FERRY_A_MAX + 1, "every attribute of the header has its place");
static_assert(ATTRIBUTES <= 32, "a bit each");

static int attribute_take(const struct nlattr *attr, struct ferry_event *event, uint32_t *seen,
			  struct ferry_error *err)
{
	uint16_t type = mnl_attr_get_type(attr);
	const struct attribute *a;
	uint32_t state;

	if (type >= ATTRIBUTES || !attributes[type].bytes)
		return 0;
	a = &attributes[type];
	if (mnl_attr_get_payload_len(attr) != a->bytes)
		return ferry_error_set(err, EBADMSG,
				       "the kernel's %s of a tracker has %u bytes where %u were "
				       "expected", a->name, mnl_attr_get_payload_len(attr), a->bytes);
	if (*seen & 1u << type)
		return ferry_error_set(err, EBADMSG, "the kernel told the %s of a tracker twice",
				       a->name);
	*seen |= 1u << type;
	if (type == FERRY_A_STATE) {
		memcpy(&state, mnl_attr_get_payload(attr), sizeof(state));
		event->started = state & FERRY_STATE_STARTED;
		return 0;
	}
	memcpy((char *)event + a->offset, mnl_attr_get_payload(attr), a->bytes);
	return 0;
}

/*
 * The next of a run of attributes, or NULL at its end. @at and @left move on; a run that
 * does not end where an attribute does leaves @left non-zero.
 */
static const struct nlattr *attribute_next(const char **at, size_t *left)
{
	const struct nlattr *attr = (const void *)*at;
	size_t bytes;

	if (*left < sizeof(*attr) || attr->nla_len < sizeof(*attr) || attr->nla_len > *left)
		return NULL;
	/* The last one may lack its padding. */
	bytes = MNL_ALIGN((size_t)attr->nla_len);
	if (bytes > *left)
		bytes = *left;
	*at += bytes;
	*left -= bytes;
	return attr;
}

static int cut_off(struct ferry_error *err)
{
	return ferry_error_set(err, EBADMSG,
			       "a message of the kernel about trackers ends inside an attribute");
}

/* One message of the family. Return: 1 with an event, 0 when there is none in it. */
static int event_take(const struct nlmsghdr *nlh, struct ferry_event *event,
		      struct ferry_error *err)
{
	const struct genlmsghdr *genl = mnl_nlmsg_get_payload(nlh);
	const char *at = mnl_nlmsg_get_payload_offset(nlh, sizeof(*genl));
	size_t left, type;
	const struct nlattr *attr;
	uint32_t seen = 0;

	memset(event, 0, sizeof(*event));
	if (nlh->nlmsg_len < mnl_nlmsg_size(sizeof(*genl)))
		return ferry_error_set(err, EBADMSG,
				       "a message of the kernel about trackers has no header");
	if (genl->cmd >= sizeof(commands) / sizeof(commands[0]) || !commands[genl->cmd].known)
		return 0;
	event->kind = commands[genl->cmd].kind;
	left = nlh->nlmsg_len - mnl_nlmsg_size(sizeof(*genl));
	while ((attr = attribute_next(&at, &left))) {
		int r = attribute_take(attr, event, &seen, err);

		if (r)
			return r;
	}
	if (left)
		return cut_off(err);
	for (type = 0; type < ATTRIBUTES; type++) {
		if (!attributes[type].bytes || seen & 1u << type)
			continue;
		if (type != FERRY_A_TIME_NS || event->kind != FERRY_EVENT_EXISTS)
			return ferry_error_set(err, EBADMSG,
					       "the kernel says that a tracker %s but not its %s",
					       ferry_event_name(event->kind), attributes[type].name);
	}
	return 1;
}

/* Whether an attribute is exactly @text with its end. */
static bool attribute_is_text(const struct nlattr *attr, const char *text)
{
	return mnl_attr_get_payload_len(attr) == strlen(text) + 1 &&
	       !memcmp(mnl_attr_get_payload(attr), text, strlen(text) + 1);
}

/* One entry of the family's groups: when it is ours, its number goes to @group. */
static int group_take(const struct nlattr *entry, uint32_t *group, struct ferry_error *err)
{
	const char *at = mnl_attr_get_payload(entry);
	size_t left = mnl_attr_get_payload_len(entry);
	const struct nlattr *attr;
	uint32_t number = 0;
	bool ours = false;

	while ((attr = attribute_next(&at, &left))) {
		if (mnl_attr_get_type(attr) == CTRL_ATTR_MCAST_GRP_NAME)
			ours = attribute_is_text(attr, FERRY_GENL_EVENTS);
		else if (mnl_attr_get_type(attr) == CTRL_ATTR_MCAST_GRP_ID &&
			 mnl_attr_get_payload_len(attr) == sizeof(number))
			memcpy(&number, mnl_attr_get_payload(attr), sizeof(number));
	}
	if (left)
		return cut_off(err);
	if (ours)
		*group = number;
	return 0;
}

static int groups_take(const struct nlattr *groups, uint32_t *group, struct ferry_error *err)
{
	const char *at = mnl_attr_get_payload(groups);
	size_t left = mnl_attr_get_payload_len(groups);
	const struct nlattr *entry;

	while ((entry = attribute_next(&at, &left))) {
		int r = group_take(entry, group, err);

		if (r)
			return r;
	}
	return left ? cut_off(err) : 0;
}

/* What the controller of generic netlink says of a family. */
struct family {
	uint8_t command;
	bool ours;
	uint16_t number;
	uint32_t group;
};

static int family_take(const struct nlmsghdr *nlh, struct family *f, struct ferry_error *err)
{
	const struct genlmsghdr *genl = mnl_nlmsg_get_payload(nlh);
	const char *at = mnl_nlmsg_get_payload_offset(nlh, sizeof(*genl));
	const struct nlattr *attr;
	size_t left;
	int r = 0;

	memset(f, 0, sizeof(*f));
	if (nlh->nlmsg_len < mnl_nlmsg_size(sizeof(*genl)))
		return ferry_error_set(err, EBADMSG,
				       "the kernel's message about a family has no header");
	f->command = genl->cmd;
	left = nlh->nlmsg_len - mnl_nlmsg_size(sizeof(*genl));
	while (!r && (attr = attribute_next(&at, &left))) {
		uint16_t type = mnl_attr_get_type(attr);

		if (type == CTRL_ATTR_FAMILY_NAME)
			f->ours = attribute_is_text(attr, FERRY_GENL_NAME);
		else if (type == CTRL_ATTR_FAMILY_ID &&
			 mnl_attr_get_payload_len(attr) == sizeof(f->number))
			memcpy(&f->number, mnl_attr_get_payload(attr), sizeof(f->number));
		else if (type == CTRL_ATTR_MCAST_GROUPS)
			r = groups_take(attr, &f->group, err);
	}
	if (r)
		return r;
	return left ? cut_off(err) : 0;
}

/* A message of the controller: the answer about our family, or that it went away. */
static int controller_take(struct ferry_message_walk *walk, const struct nlmsghdr *nlh,
			   struct ferry_error *err)
{
	struct family f;
	int r = family_take(nlh, &f, err);

	if (r)
		return r;
	if (walk->family) {
		if (f.command == CTRL_CMD_DELFAMILY && f.number == walk->family)
			walk->gone = true;
		return 0;
	}
	if (f.command != CTRL_CMD_NEWFAMILY || !walk->sequence || nlh->nlmsg_seq != walk->sequence)
		return 0;
	/* Numbers below are netlink's own messages and the controller's. */
	if (!f.ours || f.number <= GENL_ID_CTRL || !f.group)
		return ferry_error_set(err, EBADMSG,
				       "the kernel's family \"%s\" is not that of ferry.ko: it has no "
				       "group \"%s\"", FERRY_GENL_NAME, FERRY_GENL_EVENTS);
	walk->family = f.number;
	walk->group = f.group;
	return 0;
}

/* NLMSG_ERROR, an error or a mere receipt, and NLMSG_DONE, which holds one or nothing. */
static int answer_end(struct ferry_message_walk *walk, const struct nlmsghdr *nlh,
		      struct ferry_error *err)
{
	int code = 0;

	if (!walk->sequence || nlh->nlmsg_seq != walk->sequence)
		return 0;
	if (mnl_nlmsg_get_payload_len(nlh) >= sizeof(code))
		memcpy(&code, mnl_nlmsg_get_payload(nlh), sizeof(code));
	else if (nlh->nlmsg_type == NLMSG_ERROR)
		return ferry_error_set(err, EBADMSG, "the kernel answered with half an error");
	walk->answered = true;
	if (code > 0 || code < -4095)
		return ferry_error_set(err, EBADMSG, "the kernel answered with error %d", code);
	return code;
}

static int message_take(struct ferry_message_walk *walk, const struct nlmsghdr *nlh,
			ferry_event_fn *fn, void *ctx, struct ferry_error *err)
{
	struct ferry_event event;
	int r;

	if (nlh->nlmsg_type == NLMSG_ERROR || nlh->nlmsg_type == NLMSG_DONE)
		return answer_end(walk, nlh, err);
	if (nlh->nlmsg_type == NLMSG_OVERRUN)
		walk->overrun = true;
	if (nlh->nlmsg_type == GENL_ID_CTRL)
		return controller_take(walk, nlh, err);
	if (nlh->nlmsg_type < NLMSG_MIN_TYPE || nlh->nlmsg_type != walk->family)
		return 0;
	r = event_take(nlh, &event, err);
	return r > 0 ? fn(ctx, &event) : r;
}

int ferry_message_walk(struct ferry_message_walk *walk, const void *bytes, size_t len,
		       ferry_event_fn *fn, void *ctx, struct ferry_error *err)
{
	const char *at = bytes;

	while (len) {
		const struct nlmsghdr *nlh = (const void *)at;
		size_t step;
		int r;

		if (len < sizeof(*nlh) || nlh->nlmsg_len < sizeof(*nlh) || nlh->nlmsg_len > len)
			return ferry_error_set(err, EBADMSG,
					       "a message of the kernel is cut off: %zu bytes of it "
					       "came", len);
		r = message_take(walk, nlh, fn, ctx, err);
		if (r)
			return r;
		step = MNL_ALIGN((size_t)nlh->nlmsg_len);
		if (step > len)
			step = len;
		at += step;
		len -= step;
	}
	return 0;
}

static struct nlmsghdr *request(void *buf, uint16_t type, uint16_t flags, uint8_t command,
				uint8_t version, uint32_t sequence)
{
	struct nlmsghdr *nlh = mnl_nlmsg_put_header(buf);
	struct genlmsghdr *genl = mnl_nlmsg_put_extra_header(nlh, sizeof(*genl));

	nlh->nlmsg_type = type;
	nlh->nlmsg_flags = NLM_F_REQUEST | flags;
	nlh->nlmsg_seq = sequence;
	genl->cmd = command;
	genl->version = version;
	return nlh;
}

size_t ferry_message_find(void *buf, uint32_t sequence)
{
	/* With a receipt: the answer itself is one message, which nothing ends. */
	struct nlmsghdr *nlh = request(buf, GENL_ID_CTRL, NLM_F_ACK, CTRL_CMD_GETFAMILY, 1, sequence);

	mnl_attr_put_strz(nlh, CTRL_ATTR_FAMILY_NAME, FERRY_GENL_NAME);
	return nlh->nlmsg_len;
}

size_t ferry_message_dump(void *buf, uint16_t family, uint32_t sequence)
{
	return request(buf, family, NLM_F_DUMP, FERRY_CMD_GET, FERRY_GENL_VERSION,
		       sequence)->nlmsg_len;
}
