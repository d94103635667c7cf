// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * `ferry monitor` in front of the real module: what exists, what happens, what was lost;
 * and each reason why it cannot, in its words.
 */
#include "harness.h"
#include "tracker.h"

#include <fcntl.h>
#include <grp.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#define PAGES 64UL
#define SOON_MS 60000
#define CREATED "{\"event\":\"created\","
#define DESTROYED "{\"event\":\"destroyed\","
#define LOST "{\"event\":\"lost\"}"

/* A running `ferry monitor`; what it says on either output comes through one pipe. */
struct monitor {
	pid_t pid;
	int said;
	size_t len; /* of what was read and not looked at */
	char buf[65536];
};

static void prepare_nothing(void)
{
}

/* As run by a container: a network namespace of its own. */
static void prepare_namespace(void)
{
	if (unshare(CLONE_NEWNET))
		_exit(77);
}

static void prepare_nobody(void)
{
	if (setgroups(0, NULL) || setgid(65534) || setuid(65534))
		_exit(77);
}

static int monitor_start(struct monitor *m, const char *option, void (*prepare)(void))
{
	int ends[2];

	memset(m, 0, sizeof(*m));
	if (pipe2(ends, O_CLOEXEC))
		return -errno;
	m->pid = fork();
	if (!m->pid) {
		dup2(ends[1], STDOUT_FILENO);
		dup2(ends[1], STDERR_FILENO);
		prepare();
		execl("/ferry", "ferry", "monitor", option, NULL);
		_exit(78);
	}
	close(ends[1]);
	m->said = ends[0];
	return m->pid < 0 ? -EAGAIN : 0;
}

/* The next line, or "" at the end or when none comes. */
static const char *monitor_line(struct monitor *m, char line[1024])
{
	line[0] = 0;
	for (;;) {
		char *end = memchr(m->buf, '\n', m->len);
		struct pollfd p = { .fd = m->said, .events = POLLIN };
		ssize_t n;

		if (end) {
			size_t len = (size_t)(end - m->buf) + 1;

			snprintf(line, 1024, "%.*s", (int)len - 1, m->buf);
			m->len -= len;
			memmove(m->buf, m->buf + len, m->len);
			return line;
		}
		if (m->len == sizeof(m->buf) || poll(&p, 1, SOON_MS) <= 0)
			return line;
		n = read(m->said, m->buf + m->len, sizeof(m->buf) - m->len);
		if (n <= 0)
			return line;
		m->len += (size_t)n;
	}
}

/* Its wait status. */
static int monitor_end(struct monitor *m, int signal)
{
	int status = -1;

	if (signal)
		kill(m->pid, signal);
	waitpid(m->pid, &status, 0);
	close(m->said);
	return status;
}

/* A tracker with no view. Return: its descriptor. */
static int make_tracker(uint64_t *id)
{
	struct ferry_track track = { .size = sizeof(track) };
	int dev = open("/dev/ferry", O_RDWR | O_CLOEXEC), r = -1;

	track.memfd = memfd_create("monitor", MFD_CLOEXEC);
	if (dev >= 0 && track.memfd >= 0 && !ftruncate(track.memfd, PAGES * 4096))
		r = ioctl(dev, FERRY_TRACK, &track);
	close(track.memfd);
	close(dev);
	*id = track.out_id;
	return r ? -1 : track.out_fd;
}

/* The next line is about this event of this tracker, in full. */
#define EXPECT_EVENT(m, event, number) do {						\
	char line_[1024], want_[64];							\
	snprintf(want_, sizeof(want_), "{\"event\":\"%s\",\"id\":%llu,\"pid\":%d,\"uid\":0,", \
		 event, (unsigned long long)(number), getpid());			\
	monitor_line(m, line_);								\
	if (strncmp(line_, want_, strlen(want_)))					\
		TH_LOG("it says: %s", line_);						\
	EXPECT_EQ(0, strncmp(line_, want_, strlen(want_)));				\
	EXPECT_NE(NULL, strstr(line_, "\"pages\":64,"));				\
	EXPECT_EQ('}', line_[strlen(line_) - 1]);					\
} while (0)

/* When the first tracker is printed the monitor listens. */
TEST(tells_what_exists_and_happens)
{
	static struct monitor m;
	struct ferry_watch watch = { .size = sizeof(watch), .eventfd = -1, .watermark_pages = 1 };
	struct ferry_start start = { .size = sizeof(start) };
	uint64_t first, second;
	int a, b;
	char *at;

	a = make_tracker(&first);
	ASSERT_LE(0, a);
	ASSERT_EQ(0, monitor_start(&m, "--json", prepare_nothing));
	EXPECT_EVENT(&m, "exists", first);
	b = make_tracker(&second);
	ASSERT_LE(0, b);
	EXPECT_EVENT(&m, "created", second);
	ASSERT_EQ(0, ioctl(b, FERRY_WATCH, &watch));
	ASSERT_EQ(0, ioctl(b, FERRY_START, &start));
	at = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, b, 0);
	ASSERT_NE(MAP_FAILED, at);
	*at = 1;
	EXPECT_EVENT(&m, "watermark", second);
	munmap(at, 4096);
	close(b);
	EXPECT_EVENT(&m, "destroyed", second);
	close(a);
	EXPECT_EVENT(&m, "destroyed", first);
	EXPECT_EQ(0, monitor_end(&m, SIGTERM));
}

TEST(speaks_to_people)
{
	static struct monitor m;
	char line[1024], want[64];
	uint64_t id;
	int t = make_tracker(&id);

	ASSERT_LE(0, t);
	ASSERT_EQ(0, monitor_start(&m, NULL, prepare_nothing));
	snprintf(want, sizeof(want), " exists    tracker %llu: pid %d, uid 0, ",
		 (unsigned long long)id, getpid());
	EXPECT_NE(NULL, strstr(monitor_line(&m, line), want)) TH_LOG("it says: %s", line);
	EXPECT_NE(NULL, strstr(line, "64 pages, stopped, 0 views, 0 dirty"));
	EXPECT_EQ(0, monitor_end(&m, SIGINT));
	close(t);
}

/* It is stopped until its buffer is full; then it says so, and what is there. */
TEST(says_that_events_were_lost)
{
	static struct monitor m;
	unsigned int i, told = 0;
	uint64_t id, kept;
	char line[1024];
	int t;

	t = make_tracker(&kept);
	ASSERT_LE(0, t);
	ASSERT_EQ(0, monitor_start(&m, "--json", prepare_nothing));
	EXPECT_EVENT(&m, "exists", kept);
	kill(m.pid, SIGSTOP);
	for (i = 0; i < 3000; i++) {
		int other = make_tracker(&id);

		ASSERT_LE(0, other);
		close(other);
	}
	kill(m.pid, SIGCONT);
	/* That is said first; the events that had room are older than what exists. */
	EXPECT_STREQ(LOST, monitor_line(&m, line));
	for (;;) {
		monitor_line(&m, line);
		if (!strncmp(line, CREATED, strlen(CREATED)))
			told++;
		else if (strncmp(line, DESTROYED, strlen(DESTROYED)) && strcmp(line, LOST))
			break;
	}
	EXPECT_LT(0, told);
	EXPECT_GT(3000, told);
	EXPECT_NE(NULL, strstr(line, "{\"event\":\"exists\",\"id\":")) TH_LOG("it says: %s", line);
	close(t);
	EXPECT_EVENT(&m, "destroyed", kept);
	EXPECT_EQ(0, monitor_end(&m, SIGTERM));
}

static void expect_refusal(struct __test_metadata *_metadata, void (*prepare)(void),
			   const char *words)
{
	static struct monitor m;
	char line[1024];

	ASSERT_EQ(0, monitor_start(&m, NULL, prepare));
	EXPECT_NE(NULL, strstr(monitor_line(&m, line), words)) TH_LOG("it says: %s", line);
	EXPECT_EQ(1 << 8, monitor_end(&m, 0));
}

TEST(says_why_it_cannot)
{
	expect_refusal(_metadata, prepare_nobody, "ferry: error: listening to the kernel module "
		       "ferry: that needs CAP_NET_ADMIN; run it as root");
	expect_refusal(_metadata, prepare_namespace, "this process is in another network "
		       "namespace than the machine's first");
}

/* The module goes while it is listened to; and is not there. */
TEST(module_is_unloaded)
{
	static struct monitor m;
	char line[1024];
	uint64_t id;
	int fd, t = make_tracker(&id);

	ASSERT_LE(0, t);
	ASSERT_EQ(0, monitor_start(&m, "--json", prepare_nothing));
	EXPECT_EVENT(&m, "exists", id);
	close(t);
	EXPECT_EVENT(&m, "destroyed", id);
	fd = open("/modules/ferry.ko", O_RDONLY | O_CLOEXEC);
	ASSERT_LE(0, fd);
	ASSERT_EQ(0, syscall(SYS_delete_module, "ferry", O_NONBLOCK));
	EXPECT_STREQ("ferry: error: the kernel module ferry was unloaded: there are no more events",
		     monitor_line(&m, line));
	EXPECT_EQ(1 << 8, monitor_end(&m, 0));
	expect_refusal(_metadata, prepare_nothing, "ferry: error: looking for the kernel module "
		       "ferry: it is not loaded; as root type: modprobe ferry");
	ASSERT_EQ(0, syscall(SYS_finit_module, fd, "", 0));
	close(fd);
}

HARNESS_MAIN
