// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The generic netlink family: dump, one tracker by its number, events; by bare netlink
 * messages, so that wrong ones can be sent too.
 */
#include "harness.h"
#include "tracker.h"

#include <fcntl.h>
#include <linux/ferry_netlink.h>
#include <linux/genetlink.h>
#include <linux/netlink.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <sys/socket.h>
#include <sys/stat.h>

#ifndef SOL_NETLINK
#define SOL_NETLINK 270
#endif

/* What one message said; has says which attributes it had. */
struct told {
	uint8_t command;
	uint32_t has;
	uint64_t value[FERRY_A_MAX + 1];
};

struct link {
	int fd;
	uint16_t family;
	uint32_t group;
	uint32_t sequence;
};

struct request {
	struct nlmsghdr header;
	struct genlmsghdr genl;
	char room[128];
};

static const uint8_t attribute_size[FERRY_A_MAX + 1] = {
	[FERRY_A_ID] = 8, [FERRY_A_PID] = 4, [FERRY_A_UID] = 4, [FERRY_A_INODE] = 8,
	[FERRY_A_PAGES] = 8, [FERRY_A_STATE] = 4, [FERRY_A_VIEWS] = 4,
	[FERRY_A_DIRTY_PAGES] = 8, [FERRY_A_WATERMARK_PAGES] = 8, [FERRY_A_MARKED_PAGES] = 8,
	[FERRY_A_CLEANED_PAGES] = 8, [FERRY_A_PINNED_PAGES] = 8, [FERRY_A_TIME_NS] = 8,
};
/* Every reply and event has these. */
#define ALWAYS (1U << FERRY_A_ID | 1U << FERRY_A_PID | 1U << FERRY_A_UID | \
		1U << FERRY_A_INODE | 1U << FERRY_A_PAGES | 1U << FERRY_A_STATE | \
		1U << FERRY_A_VIEWS | 1U << FERRY_A_DIRTY_PAGES | \
		1U << FERRY_A_WATERMARK_PAGES | 1U << FERRY_A_MARKED_PAGES | \
		1U << FERRY_A_CLEANED_PAGES | 1U << FERRY_A_PINNED_PAGES)

static void request_start(struct request *r, uint16_t type, uint16_t flags, uint8_t command)
{
	memset(r, 0, sizeof(*r));
	r->header.nlmsg_type = type;
	r->header.nlmsg_flags = NLM_F_REQUEST | flags;
	r->header.nlmsg_len = NLMSG_LENGTH(GENL_HDRLEN);
	r->genl.cmd = command;
	r->genl.version = 1;
}

static void request_add(struct request *r, uint16_t type, const void *data, uint16_t size)
{
	struct nlattr *a = (struct nlattr *)((char *)r + r->header.nlmsg_len);

	a->nla_type = type;
	a->nla_len = (uint16_t)(NLA_HDRLEN + size);
	memcpy((char *)a + NLA_HDRLEN, data, size);
	r->header.nlmsg_len += NLA_ALIGN(a->nla_len);
}

static int request_send(struct link *link, struct request *r)
{
	r->header.nlmsg_seq = ++link->sequence;
	return send(link->fd, r, r->header.nlmsg_len, 0) < 0 ? -errno : 0;
}

/* A nested attribute's content, or the first attribute's after a header. */
static struct nlattr *attribute_find(void *from, size_t length, uint16_t type)
{
	for (size_t at = 0; at + NLA_HDRLEN <= length;) {
		struct nlattr *a = (struct nlattr *)((char *)from + at);

		if (a->nla_len < NLA_HDRLEN || a->nla_len > length - at)
			return NULL;
		if ((a->nla_type & NLA_TYPE_MASK) == type)
			return a;
		at += NLA_ALIGN(a->nla_len);
	}
	return NULL;
}

static int family_find(struct link *link)
{
	struct request r;
	char answer[8192];
	struct nlmsghdr *h = (void *)answer;
	struct nlattr *a, *groups;
	char *body;
	ssize_t n;

	request_start(&r, GENL_ID_CTRL, 0, CTRL_CMD_GETFAMILY);
	request_add(&r, CTRL_ATTR_FAMILY_NAME, FERRY_GENL_NAME, sizeof(FERRY_GENL_NAME));
	n = request_send(link, &r);
	if (n)
		return (int)n;
	n = recv(link->fd, answer, sizeof(answer), 0);
	if (n < (ssize_t)NLMSG_HDRLEN)
		return -EPROTO;
	if (h->nlmsg_type == NLMSG_ERROR)
		return ((struct nlmsgerr *)NLMSG_DATA(h))->error;
	body = (char *)NLMSG_DATA(h) + GENL_HDRLEN;
	a = attribute_find(body, h->nlmsg_len - NLMSG_LENGTH(GENL_HDRLEN), CTRL_ATTR_FAMILY_ID);
	if (!a)
		return -EPROTO;
	link->family = *(uint16_t *)((char *)a + NLA_HDRLEN);
	groups = attribute_find(body, h->nlmsg_len - NLMSG_LENGTH(GENL_HDRLEN),
				CTRL_ATTR_MCAST_GROUPS);
	/* One group: the first of the list. */
	if (!groups)
		return -EPROTO;
	groups = (struct nlattr *)((char *)groups + NLA_HDRLEN);
	a = attribute_find((char *)groups + NLA_HDRLEN, groups->nla_len - NLA_HDRLEN,
			   CTRL_ATTR_MCAST_GRP_ID);
	if (!a)
		return -EPROTO;
	link->group = *(uint32_t *)((char *)a + NLA_HDRLEN);
	return 0;
}

static int link_make(struct link *link)
{
	struct timeval patience = { .tv_sec = 60 };
	struct sockaddr_nl address = { .nl_family = AF_NETLINK };

	memset(link, 0, sizeof(*link));
	link->fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_GENERIC);
	if (link->fd < 0)
		return -errno;
	if (bind(link->fd, (struct sockaddr *)&address, sizeof(address)) ||
	    setsockopt(link->fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience)))
		return -errno;
	return family_find(link);
}

static int link_listen(struct link *link)
{
	return setsockopt(link->fd, SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, &link->group,
			  sizeof(link->group)) ? -errno : 0;
}

/* -EPROTO for a message that is not as the header says. */
static int told_parse(struct nlmsghdr *h, struct told *told)
{
	struct genlmsghdr *genl = NLMSG_DATA(h);
	char *body = (char *)genl + GENL_HDRLEN;
	size_t length;

	memset(told, 0, sizeof(*told));
	if (h->nlmsg_len < NLMSG_LENGTH(GENL_HDRLEN))
		return -EPROTO;
	length = h->nlmsg_len - NLMSG_LENGTH(GENL_HDRLEN);
	told->command = genl->cmd;
	for (size_t at = 0; at + NLA_HDRLEN <= length;) {
		struct nlattr *a = (struct nlattr *)(body + at);
		uint16_t type = a->nla_type & NLA_TYPE_MASK;

		if (a->nla_len < NLA_HDRLEN || a->nla_len > length - at || type > FERRY_A_MAX)
			return -EPROTO;
		at += NLA_ALIGN(a->nla_len);
		if (type == FERRY_A_PAD)
			continue;
		if (a->nla_len - NLA_HDRLEN != attribute_size[type] || told->has & 1U << type)
			return -EPROTO;
		told->has |= 1U << type;
		memcpy(&told->value[type], (char *)a + NLA_HDRLEN, attribute_size[type]);
	}
	return 0;
}

/* All trackers there are; how many, or a negative errno. */
static int dump(struct link *link, struct told *told, int room)
{
	struct request r;
	char answer[32768];
	int count = 0, ret;

	request_start(&r, link->family, NLM_F_DUMP, FERRY_CMD_GET);
	ret = request_send(link, &r);
	while (!ret) {
		ssize_t n = recv(link->fd, answer, sizeof(answer), 0);
		struct nlmsghdr *h = (void *)answer;

		if (n < 0)
			return -errno;
		for (; NLMSG_OK(h, (size_t)n); h = NLMSG_NEXT(h, n)) {
			if (h->nlmsg_type == NLMSG_DONE)
				return *(int *)NLMSG_DATA(h) ?: count;
			if (h->nlmsg_type == NLMSG_ERROR)
				return ((struct nlmsgerr *)NLMSG_DATA(h))->error;
			if (h->nlmsg_type != link->family || count == room)
				return -EPROTO;
			ret = told_parse(h, &told[count++]);
			if (ret)
				return ret;
		}
	}
	return ret;
}

/* The answer to a request that has one message. */
static int ask(struct link *link, struct request *r, struct told *told)
{
	char answer[4096];
	struct nlmsghdr *h = (void *)answer;
	int ret = request_send(link, r);

	if (ret)
		return ret;
	if (recv(link->fd, answer, sizeof(answer), 0) < (ssize_t)NLMSG_HDRLEN)
		return -EPROTO;
	if (h->nlmsg_type == NLMSG_ERROR)
		return ((struct nlmsgerr *)NLMSG_DATA(h))->error;
	return told_parse(h, told);
}

static int get(struct link *link, uint64_t id, struct told *told)
{
	struct request r;

	request_start(&r, link->family, 0, FERRY_CMD_GET);
	request_add(&r, FERRY_A_ID, &id, sizeof(id));
	return ask(link, &r, told);
}

FIXTURE(netlink)
{
	struct link link;
	struct told told[512];
};

FIXTURE_SETUP(netlink)
{
	ASSERT_EQ(0, link_make(&self->link));
}

FIXTURE_TEARDOWN(netlink)
{
	close(self->link.fd);
}

static struct told *told_find(struct told *told, int n, uint64_t id)
{
	for (int i = 0; i < n; i++)
		if (told[i].value[FERRY_A_ID] == id)
			return &told[i];
	return NULL;
}

TEST_F(netlink, what_is_told)
{
	struct ferry_watch watch = { .size = sizeof(watch), .watermark_pages = 50, .eventfd = -1 };
	struct told one, *all;
	struct tracker t;
	struct stat status;
	char *view;
	int n;

	ASSERT_EQ(0, tracker_make(&t, 100));
	view = tracker_view(&t);
	ASSERT_NE(NULL, view);
	store(view, 1);
	store(view + PAGE, 1);
	ASSERT_EQ(2, tracker_sync(&t));
	store(view, 1);
	ASSERT_EQ(0, ferry_ioctl(t.fd, FERRY_WATCH, &watch));
	ASSERT_EQ(0, fstat(t.memfd, &status));
	ASSERT_EQ(0, get(&self->link, t.id, &one));
	EXPECT_EQ(FERRY_CMD_GET, one.command);
	EXPECT_EQ(ALWAYS, one.has & ~(1U << FERRY_A_TIME_NS));
	EXPECT_EQ(t.id, one.value[FERRY_A_ID]);
	EXPECT_EQ(getpid(), one.value[FERRY_A_PID]);
	EXPECT_EQ(0, one.value[FERRY_A_UID]);
	EXPECT_EQ(status.st_ino, one.value[FERRY_A_INODE]);
	EXPECT_EQ(100, one.value[FERRY_A_PAGES]);
	EXPECT_EQ(FERRY_STATE_STARTED, one.value[FERRY_A_STATE]);
	EXPECT_EQ(1, one.value[FERRY_A_VIEWS]);
	EXPECT_EQ(1, one.value[FERRY_A_DIRTY_PAGES]);
	EXPECT_EQ(50, one.value[FERRY_A_WATERMARK_PAGES]);
	EXPECT_EQ(3, one.value[FERRY_A_MARKED_PAGES]);
	EXPECT_EQ(2, one.value[FERRY_A_CLEANED_PAGES]);
	EXPECT_EQ(0, one.value[FERRY_A_PINNED_PAGES]);
	n = dump(&self->link, self->told, 512);
	ASSERT_LE(1, n);
	all = told_find(self->told, n, t.id);
	ASSERT_NE(NULL, all);
	EXPECT_EQ(0, memcmp(all, &one, sizeof(one)));
	tracker_end(&t);
}

TEST_F(netlink, refuses)
{
	uint64_t no_such = ~0ULL;
	struct request r;
	struct told told;
	uint32_t short_id = 1;

	EXPECT_EQ(-ENOENT, get(&self->link, no_such, &told));
	EXPECT_EQ(-ENOENT, get(&self->link, 0, &told));
	request_start(&r, self->link.family, 0, FERRY_CMD_GET);
	EXPECT_EQ(-EINVAL, ask(&self->link, &r, &told));
	/* An attribute of the wrong size, or not for requests. */
	request_start(&r, self->link.family, 0, FERRY_CMD_GET);
	request_add(&r, FERRY_A_ID, &short_id, sizeof(short_id));
	EXPECT_GT(0, ask(&self->link, &r, &told));
	request_start(&r, self->link.family, 0, FERRY_CMD_GET);
	request_add(&r, FERRY_A_MAX + 1, &no_such, sizeof(no_such));
	EXPECT_GT(0, ask(&self->link, &r, &told));
	/* Nobody may send events, and there are no other commands. */
	for (int command = 0; command < 256; command++) {
		if (command == FERRY_CMD_GET)
			continue;
		request_start(&r, self->link.family, 0, (uint8_t)command);
		EXPECT_EQ(-EOPNOTSUPP, ask(&self->link, &r, &told));
	}
	/* Cut off in the middle. */
	request_start(&r, self->link.family, 0, FERRY_CMD_GET);
	request_add(&r, FERRY_A_ID, &no_such, sizeof(no_such));
	r.header.nlmsg_len -= 5;
	EXPECT_GT(0, ask(&self->link, &r, &told));
}

TEST_F(netlink, needs_privileges)
{
	pid_t child = fork();
	int status;

	ASSERT_LE(0, child);
	if (!child) {
		struct link link;
		struct told told;

		if (setgid(65534) || setuid(65534) || link_make(&link))
			_exit(9);
		if (get(&link, 1, &told) != -EPERM)
			_exit(1);
		if (dump(&link, self->told, 512) != -EPERM)
			_exit(2);
		_exit(link_listen(&link) == -EPERM ? 0 : 3);
	}
	ASSERT_EQ(child, waitpid(child, &status, 0));
	EXPECT_EQ(0, status) {
		TH_LOG("1: get, 2: dump, 3: events: %d", WEXITSTATUS(status));
	}
}

TEST_F(netlink, initial_namespace_only)
{
	pid_t child = fork();
	int status;

	ASSERT_LE(0, child);
	if (!child) {
		struct link link;

		if (unshare(CLONE_NEWNET))
			_exit(9);
		_exit(link_make(&link) == -ENOENT ? 0 : 1);
	}
	ASSERT_EQ(child, waitpid(child, &status, 0));
	EXPECT_EQ(0, status);
}

/* The next event, waited for; of others' trackers too. */
static int event(struct link *link, struct told *told)
{
	char message[4096];
	ssize_t n = recv(link->fd, message, sizeof(message), 0);

	return n < 0 ? -errno : told_parse((struct nlmsghdr *)message, told);
}

TEST_F(netlink, events_in_order)
{
	struct ferry_watch watch = { .size = sizeof(watch), .watermark_pages = 3, .eventfd = -1 };
	uint64_t start = clock_ns(), last = start;
	const uint8_t expected[] = { FERRY_CMD_CREATED, FERRY_CMD_WATERMARK, FERRY_CMD_WATERMARK,
				     FERRY_CMD_DESTROYED };
	struct told told;
	struct tracker t;
	uint64_t id;
	char *view;

	ASSERT_EQ(0, link_listen(&self->link));
	ASSERT_EQ(0, tracker_make(&t, 10));
	id = t.id;
	view = tracker_view(&t);
	ASSERT_NE(NULL, view);
	ASSERT_EQ(0, ferry_ioctl(t.fd, FERRY_WATCH, &watch));
	for (int round = 0; round < 2; round++) {
		for (uint64_t page = 0; page < 5; page++)
			store(view + page * PAGE, 1);
		/* The event is made by a worker: wait for it before the next one is due. */
		for (int i = round ? 1 : 0; i <= (round ? 1 : 1); i++) {
			ASSERT_EQ(0, event(&self->link, &told));
			EXPECT_EQ(expected[round ? 2 : i], told.command);
			EXPECT_EQ(ALWAYS | 1U << FERRY_A_TIME_NS, told.has);
			EXPECT_EQ(id, told.value[FERRY_A_ID]);
			EXPECT_EQ(10, told.value[FERRY_A_PAGES]);
			EXPECT_EQ(getpid(), told.value[FERRY_A_PID]);
			EXPECT_LE(last, told.value[FERRY_A_TIME_NS]);
			EXPECT_GE(clock_ns(), told.value[FERRY_A_TIME_NS]);
			last = told.value[FERRY_A_TIME_NS];
		}
		EXPECT_EQ(5, tracker_sync(&t));
	}
	munmap(view, 10 * PAGE);
	tracker_end(&t);
	ASSERT_EQ(0, event(&self->link, &told));
	EXPECT_EQ(expected[3], told.command);
	EXPECT_EQ(id, told.value[FERRY_A_ID]);
	EXPECT_LE(last, told.value[FERRY_A_TIME_NS]);
}

/* A socket that is full loses events, is told so, and a dump then has the truth. */
TEST_F(netlink, events_that_are_lost)
{
	int small = 1, lost = 0, n;
	struct tracker kept, t;
	struct told told;

	ASSERT_EQ(0, setsockopt(self->link.fd, SOL_SOCKET, SO_RCVBUF, &small, sizeof(small)));
	ASSERT_EQ(0, link_listen(&self->link));
	ASSERT_EQ(0, tracker_make(&kept, 1));
	for (int i = 0; i < 50; i++) {
		ASSERT_EQ(0, tracker_make(&t, 1));
		tracker_end(&t);
	}
	for (;;) {
		int flags = fcntl(self->link.fd, F_GETFL), ret;

		fcntl(self->link.fd, F_SETFL, flags | O_NONBLOCK);
		ret = event(&self->link, &told);
		fcntl(self->link.fd, F_SETFL, flags);
		if (ret == -EAGAIN)
			break;
		lost += ret == -ENOBUFS;
		ASSERT_TRUE(ret == 0 || ret == -ENOBUFS);
	}
	EXPECT_LT(0, lost);
	close(self->link.fd);
	ASSERT_EQ(0, link_make(&self->link));
	n = dump(&self->link, self->told, 512);
	ASSERT_LE(1, n);
	EXPECT_NE(NULL, told_find(self->told, n, kept.id));
	tracker_end(&kept);
}

static volatile bool stop;
static uint64_t churned[2];

static void *churn(void *arg)
{
	uint64_t *count = arg;
	struct tracker t[4];

	while (!stop) {
		for (int i = 0; i < 4; i++)
			if (tracker_make(&t[i], 70))
				return NULL;
		for (int i = 0; i < 4; i++)
			tracker_end(&t[i]);
		*count += 4;
	}
	return NULL;
}

/* Each that was there all the time is told once, in every dump, whoever comes and goes. */
TEST_F(netlink, dump_during_churn)
{
	enum { KEPT = 120 };	/* more than one message of a dump holds */
	uint64_t end = clock_ns() + harness_seconds(2) * 1000000000ULL;
	struct tracker kept[KEPT];
	pthread_t threads[2];
	int dumps = 0;

	for (int i = 0; i < KEPT; i++) {
		ASSERT_EQ(0, tracker_make(&kept[i], (uint64_t)i + 1));
	}
	for (int i = 0; i < 2; i++)
		ASSERT_EQ(0, pthread_create(&threads[i], NULL, churn, &churned[i]));
	while (clock_ns() < end || dumps < 10) {
		int n = dump(&self->link, self->told, 512), found = 0;

		ASSERT_LE(KEPT, n);
		for (int i = 0; i < n; i++) {
			if (i)
				ASSERT_LT(self->told[i - 1].value[FERRY_A_ID],
					  self->told[i].value[FERRY_A_ID]);
			ASSERT_EQ(ALWAYS, self->told[i].has & ~(1U << FERRY_A_TIME_NS));
		}
		for (int i = 0; i < KEPT; i++)
			found += told_find(self->told, n, kept[i].id) != NULL;
		ASSERT_EQ(KEPT, found);
		dumps++;
	}
	stop = true;
	for (int i = 0; i < 2; i++)
		pthread_join(threads[i], NULL);
	printf("#   %d dumps, %llu trackers came and went\n", dumps,
	       (unsigned long long)(churned[0] + churned[1]));
	EXPECT_LT(0, churned[0]);
	EXPECT_LT(0, churned[1]);
	for (int i = 0; i < KEPT; i++)
		tracker_end(&kept[i]);
}

HARNESS_MAIN
