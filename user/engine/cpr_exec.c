// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * `ferry cpr GUEST --exec -- COMMAND`: start the new VMM.
 *
 * It is given a socket to listen at, bound to a name beside the guest's own, which it takes
 * the place of in the end: so the guest keeps its name. To a QEMU it comes as a monitor
 * (arguments added to the command), to a VMM with libferry as FERRY_PORT_FD. In the
 * command {ram:NAME} stands for the path of a memory block of the guest, so that a QEMU can map
 * RAM that has no name (a memfd): mem-path={ram:ram0}.
 *
 * The record knows the process before it executes anything: it waits for a byte.
 */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/io.h"
#include "engine/cpr.h"
#include "engine/open.h"
#include "guest/journal.h"

/* Descriptors of the new VMM: its socket, then the memory files. */
#define EXEC_SOCKET 3
#define EXEC_RAM 4
#define EXEC_MORE_ARGS 4
#define EXEC_RETRY_NS (5 * FERRY_NS_PER_MS)

struct launch {
	char **argv;
	char **envp;
	int *fds; /* the socket, then one a block */
	unsigned int count;
	int go[2], failed[2];
};

static int bind_name(struct ferry_cpr *c, int *sock, struct ferry_error *err)
{
	bool qmp = !strcmp(c->from->ops->scheme, "qmp");
	const uint8_t *u = c->job->record.uuid;
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	int n = snprintf(addr.sun_path, sizeof(addr.sun_path), "%s.cpr-%02x%02x%02x", c->from->path,
			 u[0], u[1], u[2]);

	if (n >= (int)sizeof(addr.sun_path))
		return ferry_error_set(err, ENAMETOOLONG, "%s is too long for a second socket beside "
				       "it; use a shorter path", c->from->path);
	*sock = socket(AF_UNIX, (qmp ? SOCK_STREAM : SOCK_SEQPACKET) | SOCK_CLOEXEC, 0);
	/* Bound, not listening: who listens is whom QEMU's monitor belongs to (SO_PEERCRED). */
	if (*sock < 0 || fchmod(*sock, 0600) || bind(*sock, (struct sockaddr *)&addr, sizeof(addr)))
		return ferry_error_set(err, errno, "making the new VMM's socket %s: %s",
				       addr.sun_path, strerror(errno));
	snprintf(c->job->record.uri, sizeof(c->job->record.uri), "%s:%s", c->from->ops->scheme,
		 addr.sun_path);
	c->job->record.takes_name = true;
	return ferry_job_save(c->job, err);
}

/* A word of the command with every {ram:NAME} replaced. malloc'ed, or NULL. */
static char *expand(const struct ferry_cpr *c, const char *word)
{
	char *text = strdup(word);
	unsigned int i;

	for (i = 0; i < c->ram.count && text; i++) {
		char mark[FERRY_RAM_NAME_MAX + 8], *at, *longer;

		snprintf(mark, sizeof(mark), "{ram:%s}", c->ram.blocks[i].name);
		while (text && (at = strstr(text, mark))) {
			if (asprintf(&longer, "%.*s/proc/self/fd/%u%s", (int)(at - text), text,
				     EXEC_RAM + i, at + strlen(mark)) < 0)
				longer = NULL;
			free(text);
			text = longer;
		}
	}
	return text;
}

static int make_argv(struct ferry_cpr *c, struct launch *l)
{
	static const char *const monitor[EXEC_MORE_ARGS] = {
		"-chardev", "socket,id=ferry-cpr,fd=3,server=on,wait=off",
		"-mon", "chardev=ferry-cpr,mode=control",
	};
	bool qmp = !strcmp(c->from->ops->scheme, "qmp");
	size_t i, n = 0;

	static_assert(EXEC_SOCKET == 3, "it is in the words above");
	while (c->job->command[n])
		n++;
	if (!n)
		return -EINVAL;
	l->argv = calloc(n + EXEC_MORE_ARGS + 1, sizeof(char *));
	for (i = 0; l->argv && i < n + (qmp ? EXEC_MORE_ARGS : 0); i++) {
		l->argv[i] = i < n ? expand(c, c->job->command[i]) : strdup(monitor[i - n]);
		if (!l->argv[i])
			return -ENOMEM;
	}
	return l->argv ? 0 : -ENOMEM;
}

/* Our own settings are none of the VMM's. */
static int make_envp(struct launch *l)
{
	static char port[] = "FERRY_PORT_FD=3";
	size_t i, n = 0;

	while (environ[n])
		n++;
	l->envp = calloc(n + 2, sizeof(char *));
	if (!l->envp)
		return -ENOMEM;
	l->envp[0] = port;
	for (i = 0, n = 1; environ[i]; i++)
		if (strncmp(environ[i], "FERRY_", 6))
			l->envp[n++] = environ[i];
	return 0;
}

/* Between fork and exec: async-signal-safe calls only. */
static void run_child(const struct launch *l)
{
	struct sigaction plain = { .sa_handler = SIG_DFL };
	unsigned int i;
	sigset_t none;
	char byte;
	int null;

	setsid();
	if (read(l->go[0], &byte, 1) != 1)
		_exit(125);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	sigaction(SIGPIPE, &plain, NULL);
	sigaction(SIGHUP, &plain, NULL);
	sigaction(SIGXFSZ, &plain, NULL);
	/* All of them are above the numbers they get. */
	for (i = 0; i < l->count; i++)
		dup2(l->fds[i], EXEC_SOCKET + (int)i);
	null = open("/dev/null", O_RDWR);
	dup2(null, STDIN_FILENO);
	dup2(STDERR_FILENO, STDOUT_FILENO);
	if (null > STDERR_FILENO)
		close(null);
	execvpe(l->argv[0], l->argv, l->envp);
	null = errno;
	if (write(l->failed[1], &null, sizeof(null)) < 0)
		_exit(126);
	_exit(127);
}

/* Copies of the descriptors above all numbers that the child gives away. */
static int collect_fds(struct ferry_cpr *c, int sock, struct launch *l)
{
	int above = EXEC_RAM + (int)c->ram.count;
	bool qmp = !strcmp(c->from->ops->scheme, "qmp");
	unsigned int i;

	l->fds = calloc(1 + c->ram.count, sizeof(int));
	if (!l->fds)
		return -ENOMEM;
	/* To others RAM is passed after the guest was stopped, and not before. */
	for (i = 0; i < 1 + (qmp ? c->ram.count : 0); i++) {
		l->fds[i] = fcntl(i ? c->ram.blocks[i - 1].fd : sock, F_DUPFD_CLOEXEC, above);
		if (l->fds[i] < 0)
			return -errno;
		l->count++;
	}
	for (i = 0; i < 2; i++) {
		int *ends = i ? l->failed : l->go, end;

		for (end = 0; end < 2; end++) {
			int fd = fcntl(ends[end], F_DUPFD_CLOEXEC, above);

			if (fd < 0)
				return -errno;
			close(ends[end]);
			ends[end] = fd;
		}
	}
	return 0;
}

static void free_launch(struct launch *l)
{
	unsigned int i;

	for (i = 0; l->argv && l->argv[i]; i++)
		free(l->argv[i]);
	for (i = 0; i < l->count; i++)
		close(l->fds[i]);
	for (i = 0; i < 2; i++) {
		ferry_io_close(&l->go[i]);
		ferry_io_close(&l->failed[i]);
	}
	free(l->argv);
	free(l->envp);
	free(l->fds);
}

static int spawn(struct ferry_cpr *c, struct launch *l, struct ferry_error *err)
{
	struct ferry_record *record = &c->job->record;
	int r, errnum;
	pid_t pid = fork();

	if (!pid)
		run_child(l);
	if (pid < 0)
		return ferry_error_set(err, errno, "starting the new VMM: %s", strerror(errno));
	ferry_io_close(&l->go[0]);
	ferry_io_close(&l->failed[1]);
	record->to_vmm = pid;
	record->to_undo = ferry_journal_text(record->uri, pid);
	r = record->to_undo ? ferry_job_save(c->job, err) :
			      ferry_error_set(err, ENOMEM, "out of memory");
	/* Without the byte it ends by itself. */
	if (!r && write(l->go[1], "", 1) != 1)
		r = ferry_error_set(err, EPIPE, "the new VMM's process ended at once");
	if (!r && read(l->failed[0], &errnum, sizeof(errnum)) == sizeof(errnum))
		r = ferry_error_set(err, errnum, "cannot run %s: %s", l->argv[0],
				    strerror(errnum));
	return r;
}

/* Return: 0; -ESRCH with how it ended. */
static int has_ended(pid_t pid, const char *name, struct ferry_error *err)
{
	int status;

	if (waitpid(pid, &status, WNOHANG) != pid)
		return 0;
	if (WIFSIGNALED(status))
		return ferry_error_set(err, ESRCH, "%s was killed by signal %d before it served its "
				       "socket", name, WTERMSIG(status));
	return ferry_error_set(err, ESRCH, "%s ended with status %d before it served its socket; its "
			       "messages are above", name, WEXITSTATUS(status));
}

/* Until it serves its socket. */
static int await(struct ferry_cpr *c, struct ferry_error *err)
{
	uint64_t deadline_ns = ferry_clock_in_ms(c->job->record.timeout_ms);
	const char *path = strchr(c->job->record.uri, ':') + 1;
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	int r = 0;

	memcpy(addr.sun_path, path, strlen(path));
	for (;;) {
		int type = strcmp(c->from->ops->scheme, "qmp") ? SOCK_SEQPACKET : SOCK_STREAM;
		int fd = socket(AF_UNIX, type | SOCK_CLOEXEC, 0), refused;

		refused = connect(fd, (struct sockaddr *)&addr, sizeof(addr)) ? errno : 0;
		close(fd);
		if (!refused)
			return 0;
		r = has_ended(c->job->record.to_vmm, c->job->command[0], err);
		if (!r && ferry_job_cancelled(c->job))
			r = ferry_error_set(err, ECANCELED, "cancelled");
		if (!r && ferry_clock_ns() >= deadline_ns)
			r = ferry_error_set(err, ETIMEDOUT, "%s does not serve the socket it was given; "
					    "a VMM with libferry takes the number in FERRY_PORT_FD, "
					    "a QEMU the -chardev that is added to its arguments",
					    c->job->command[0]);
		if (r)
			return r;
		ferry_clock_sleep_ns(EXEC_RETRY_NS);
	}
}

int ferry_cpr_exec(struct ferry_cpr *c, struct ferry_error *err)
{
	struct launch l = { .go = { -1, -1 }, .failed = { -1, -1 } };
	int sock = -1, r = bind_name(c, &sock, err);

	if (!r && (pipe2(l.go, O_CLOEXEC) || pipe2(l.failed, O_CLOEXEC)))
		r = ferry_error_set(err, errno, "a pipe: %s", strerror(errno));
	if (!r && (collect_fds(c, sock, &l) || make_argv(c, &l) || make_envp(&l)))
		r = ferry_error_set(err, ENOMEM, "starting the new VMM: no memory or descriptors");
	if (!r)
		r = spawn(c, &l, err);
	free_launch(&l);
	/* The only one is the new VMM's: when it ends nobody can connect any more. */
	ferry_io_close(&sock);
	return r ? r : await(c, err);
}

void ferry_cpr_take_name(struct ferry_job *job)
{
	const char *from = strchr(job->record.uri, ':'), *to = strchr(job->record.guest, ':');

	if (!job->record.takes_name || !from || !to)
		return;
	if (!rename(from + 1, to + 1))
		snprintf(job->record.uri, sizeof(job->record.uri), "%s", job->record.guest);
}
