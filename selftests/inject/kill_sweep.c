// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Kills the tracer of a remote system call at each of its steps, and at random
 * moments, and looks whether the target noticed. TAP on standard output.
 *
 * Targets: processes that check themselves (target.h), one for each way a thread
 * can be busy, and a running QEMU (TCG, with its seccomp sandbox on) in which a
 * userfaultfd is made: its main thread and its vCPU thread. After every kill:
 * alive, not traced, no failed check, progress; for QEMU an answer on QMP that
 * says "running", guest instructions executed, and at most one userfaultfd
 * more, which is found and closed as a later ferry would do it.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "inject/inject.h"
#include "inject/tracer.h"
#include "target.h"

#define QEMU "qemu-system-x86_64"
#define UFFD_LINK "anon_inode:[userfaultfd]"
/* Number of /dev/userfaultfd in QEMU, passed on at exec. */
#define DEV_FD 50
#define RAM_FD 51
#define RAM_BYTES (64ul << 20)
/* Guest address that the boot sector counts at. */
#define COUNTER_ADDR 0x500
#define ALIVE_MS 5000
#define ROUNDS 4
#define RANDOM_KILLS 60
/* A pause before the odd rounds' kills, to meet the target at different places. */
#define STEP_PAUSE_NS 40000
#define STEPS_MAX 5000
#define KILLS_MIN 200

struct victim {
	pid_t pid;
	int (*inject)(const struct victim *v); /* in the tracer; 0 or -errno */
	int (*check)(struct victim *v);	       /* in the parent; 0 when unharmed */
	struct target *target;
	pid_t tid; /* the thread to use; 0: as ferry chooses */
};

struct qemu {
	pid_t pid;
	int qmp;
	volatile uint32_t *counter;
	char dir[64];
};

static struct qemu qemu = { .qmp = -1 };
static unsigned int tests, failures, kills;
static char why[1024];

static void result(int ok, const char *name)
{
	printf("%sok %u - %s%s%s\n", ok ? "" : "not ", ++tests, name, ok ? "" : " # ",
	       ok ? "" : why);
	failures += !ok;
	fflush(stdout);
}

/* --- the tracer that dies --- */

static int steps_left;
static uint64_t pause_ns;

static int kill_self_at_step(void)
{
	uint64_t until;

	if (steps_left-- != 0)
		return 0;
	for (until = ferry_clock_ns() + pause_ns; ferry_clock_ns() < until;)
		continue;
	kill(getpid(), SIGKILL);
	return 0;
}

/*
 * One tracer. @step: where it kills itself, or -1; @kill_us: when it is killed, or -1.
 * Return: 1 killed, 0 it got through, -errno it failed by itself.
 */
static int run_tracer(const struct victim *v, int step, long kill_us)
{
	int status;
	pid_t pid = fork();

	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		steps_left = step;
		ferry_tracer_probe = step >= 0 ? kill_self_at_step : NULL;
		_exit(-v->inject(v));
	}
	if (pid < 0)
		return -errno;
	if (kill_us >= 0) {
		ferry_clock_sleep_ns((uint64_t)kill_us * 1000);
		kill(pid, SIGKILL);
	}
	if (waitpid(pid, &status, 0) != pid)
		return -errno;
	if (WIFSIGNALED(status)) {
		kills++;
		return 1;
	}
	return -WEXITSTATUS(status);
}

static int all_untraced(pid_t pid)
{
	char path[64], value[32];
	struct dirent *entry;
	int traced = 0;
	DIR *dir;

	snprintf(path, sizeof(path), "/proc/%d/task", pid);
	dir = opendir(path);
	if (!dir)
		return -ESRCH;
	while ((entry = readdir(dir))) {
		pid_t tid = atoi(entry->d_name);

		if (tid > 0 &&
		    !ferry_tracer_task_field(pid, tid, "TracerPid:", value, sizeof(value)) &&
		    strcmp(value, "0"))
			traced = tid;
	}
	closedir(dir);
	return traced ? -EBUSY : 0;
}

static int check_victim(struct victim *v, const char *how, long where)
{
	int rc = all_untraced(v->pid);

	if (rc)
		snprintf(why, sizeof(why), "still traced");
	else
		rc = v->check(v);
	if (rc) {
		size_t n = strlen(why);

		snprintf(why + n, sizeof(why) - n, " (after a kill %s %ld)", how, where);
	}
	return rc;
}

/* Kills at step 0, 1, 2, ... until a tracer gets through. */
static int sweep_steps(struct victim *v, int round)
{
	int step, rc = 1;

	for (step = 0; rc > 0 && step < STEPS_MAX; step++) {
		pause_ns = round % 2 ? (uint64_t)random() % STEP_PAUSE_NS : 0;
		rc = run_tracer(v, step, -1);
		if (check_victim(v, "at step", step))
			return -EIO;
	}
	if (rc)
		snprintf(why, sizeof(why), "the tracer failed: %s", strerror(-rc));
	return rc;
}

/* Kills at random moments of the time that a whole run takes. */
static int sweep_times(struct victim *v)
{
	uint64_t start = ferry_clock_ns();
	long us, span_us;
	int i, rc;

	rc = run_tracer(v, -1, -1);
	span_us = (long)((ferry_clock_ns() - start) / 1000) + 1;
	if (check_victim(v, "none, us", span_us))
		return -EIO;
	for (i = 0; rc >= 0 && i < RANDOM_KILLS; i++) {
		us = random() % span_us;
		rc = run_tracer(v, -1, us);
		if (check_victim(v, "at us", us))
			return -EIO;
	}
	if (rc < 0)
		snprintf(why, sizeof(why), "the tracer failed: %s", strerror(-rc));
	return rc < 0 ? rc : 0;
}

static void sweep(struct victim *v, const char *name)
{
	unsigned int before = kills;
	char line[128];
	int round, rc = 0;

	why[0] = '\0';
	for (round = 0; !rc && round < ROUNDS; round++)
		rc = sweep_steps(v, round);
	if (!rc)
		rc = sweep_times(v);
	snprintf(line, sizeof(line), "%s: unharmed by %u kills", name, kills - before);
	result(!rc && kills > before, line);
}

/* --- processes that check themselves --- */

static int inject_getpid(const struct victim *v)
{
	static const uint64_t args[6];
	struct ferry_inject *inj;
	int64_t ret = 0;
	int rc;

	rc = ferry_inject_open(v->pid, &inj, NULL);
	if (rc)
		return rc;
	rc = ferry_inject_syscall(inj, SYS_getpid, args, &ret, NULL);
	ferry_inject_close(inj);
	return rc ? rc : ret == v->pid ? 0 : -EPROTO;
}

static int check_target(struct victim *v)
{
	int rc = target_alive(v->target, ALIVE_MS);

	if (rc)
		snprintf(why, sizeof(why), "%s: %s", strerror(-rc), v->target->report->what);
	return rc;
}

static void sweep_target(enum target_kind kind)
{
	struct target t;
	struct victim v = { .inject = inject_getpid, .check = check_target, .target = &t };
	char name[64];
	int rc = target_start(&t, kind);

	snprintf(name, sizeof(name), "process in %s", target_name(kind));
	if (rc || target_alive(&t, ALIVE_MS)) {
		snprintf(why, sizeof(why), "it did not start");
		result(0, name);
	} else {
		v.pid = t.pid;
		sweep(&v, name);
	}
	target_stop(&t);
}

/* --- QEMU --- */

/* One line from QMP that has @token in it; events and others are passed over. */
static int qmp_expect(const char *token)
{
	uint64_t deadline_ns = ferry_clock_in_ms(ALIVE_MS);
	struct pollfd p = { .fd = qemu.qmp, .events = POLLIN };
	char buf[8192];
	size_t len = 0;

	while (len < sizeof(buf) - 1 && poll(&p, 1, ferry_clock_poll_ms(deadline_ns)) == 1) {
		ssize_t n = read(qemu.qmp, buf + len, sizeof(buf) - 1 - len);

		if (n <= 0)
			break;
		len += (size_t)n;
		buf[len] = '\0';
		if (strstr(buf, token) && buf[len - 1] == '\n')
			return 0;
	}
	return -ETIMEDOUT;
}

static int qmp_command(const char *command, const char *token)
{
	if (write(qemu.qmp, command, strlen(command)) != (ssize_t)strlen(command))
		return -errno;
	return qmp_expect(token);
}

static int guest_runs(void)
{
	uint64_t deadline_ns = ferry_clock_in_ms(ALIVE_MS);
	uint32_t before = *qemu.counter;

	while (*qemu.counter == before) {
		if (ferry_clock_ns() > deadline_ns)
			return -ETIMEDOUT;
		ferry_clock_sleep_ns(100000);
	}
	return 0;
}

/* Finds and closes what a dead tracer left. Return: 0, or -EMFILE for more than one. */
static int clean_up_uffds(void)
{
	struct ferry_error err = { 0 };
	struct ferry_inject *inj;
	int fds[8], n, rc = 0;

	n = ferry_inject_find_fds(qemu.pid, UFFD_LINK, fds, 8);
	if (n == 0)
		return 0;
	if (n == 1)
		rc = ferry_inject_open(qemu.pid, &inj, &err);
	if (n == 1 && !rc) {
		rc = ferry_inject_close_fd(inj, fds[0], &err);
		ferry_inject_close(inj);
	}
	if (!rc && !ferry_inject_find_fds(qemu.pid, UFFD_LINK, fds, 8))
		return 0;
	snprintf(why, sizeof(why), "%d userfaultfds left over; %.200s", n, err.text);
	return rc ? rc : -EMFILE;
}

static int check_qemu(struct victim *v)
{
	int status;

	(void)v;
	if (waitpid(qemu.pid, &status, WNOHANG)) {
		snprintf(why, sizeof(why), "QEMU died, status %#x", status);
		qemu.pid = 0;
		return -ECHILD;
	}
	if (qmp_command("{\"execute\":\"query-status\"}\n", "\"status\": \"running\"")) {
		snprintf(why, sizeof(why), "no \"running\" on QMP");
		return -ETIMEDOUT;
	}
	if (guest_runs()) {
		snprintf(why, sizeof(why), "the guest stands still");
		return -ETIMEDOUT;
	}
	/* After QMP answered: by then the main thread has finished what it was left with. */
	return clean_up_uffds();
}

static int inject_uffd(const struct victim *v)
{
	struct ferry_inject *inj;
	int remote, uffd, rc;

	rc = ferry_inject_open(v->pid, &inj, NULL);
	if (rc)
		return rc;
	rc = ferry_inject_userfaultfd(inj, DEV_FD, &remote, &uffd, NULL);
	ferry_inject_close(inj);
	return rc;
}

/* As inject_getpid(), but in a given thread. */
static int inject_in_thread(const struct victim *v)
{
	static const uint64_t args[6];
	struct ferry_tracer_call call = { .pid = v->pid, .tid = v->tid, .stop_ms = 2000,
					  .nr = SYS_getpid, .args = args };
	char path[64];
	int rc;

	snprintf(path, sizeof(path), "/proc/%d/mem", v->pid);
	call.mem_fd = open(path, O_RDONLY | O_CLOEXEC);
	rc = ferry_gadgets_find(v->pid, call.mem_fd, &call.gadgets, NULL);
	if (rc)
		return rc;
	rc = ferry_tracer_run(&call, NULL);
	return rc ? rc : call.result == v->pid ? 0 : -EPROTO;
}

static pid_t find_thread(pid_t pid, const char *name)
{
	char path[64], value[64];
	struct dirent *entry;
	pid_t found = 0;
	DIR *dir;

	snprintf(path, sizeof(path), "/proc/%d/task", pid);
	dir = opendir(path);
	while (dir && !found && (entry = readdir(dir))) {
		pid_t tid = atoi(entry->d_name);

		if (tid > 0 && !ferry_tracer_task_field(pid, tid, "Name:", value, sizeof(value)) &&
		    !strncmp(value, name, strlen(name)))
			found = tid;
	}
	if (dir)
		closedir(dir);
	return found;
}

/* Counts at COUNTER_ADDR for ever: xor ax,ax; mov ds,ax; l: inc dword [0x500]; jmp l */
static int write_boot_sector(const char *path)
{
	uint8_t sector[512] = { 0x31, 0xc0, 0x8e, 0xd8, 0x66, 0xff, 0x06, 0x00, 0x05, 0xeb, 0xf9 };
	int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600), rc = 0;

	sector[510] = 0x55;
	sector[511] = 0xaa;
	if (fd < 0 || write(fd, sector, sizeof(sector)) != sizeof(sector))
		rc = -EIO;
	close(fd);
	return rc;
}

static void exec_qemu(int dev, int ram, const char *boot, const char *sock)
{
	char drive[160], chardev[160];

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	dup2(dev, DEV_FD);
	dup2(ram, RAM_FD);
	snprintf(drive, sizeof(drive), "file=%s,format=raw,if=ide", boot);
	snprintf(chardev, sizeof(chardev), "unix:%s,server=on,wait=off", sock);
	execlp(QEMU, QEMU, "-nodefaults", "-display", "none", "-accel", "tcg", "-machine",
	       "pc,memory-backend=m", "-name", "kill-sweep,debug-threads=on", "-object",
	       "memory-backend-file,id=m,size=64M,share=on,mem-path=/proc/self/fd/51", "-m", "64M",
	       "-sandbox",
	       "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny", "-drive",
	       drive, "-qmp", chardev, (char *)NULL);
	_exit(127);
}

static int connect_qmp(const char *sock)
{
	uint64_t deadline_ns = ferry_clock_in_ms(ALIVE_MS * 2);
	struct sockaddr_un addr = { .sun_family = AF_UNIX };

	snprintf(addr.sun_path, sizeof(addr.sun_path), "%s", sock);
	qemu.qmp = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	while (connect(qemu.qmp, (struct sockaddr *)&addr, sizeof(addr))) {
		if (ferry_clock_ns() > deadline_ns || waitpid(qemu.pid, NULL, WNOHANG))
			return -ETIMEDOUT;
		ferry_clock_sleep_ns(10 * FERRY_NS_PER_MS);
	}
	if (qmp_expect("\"QMP\"") || qmp_command("{\"execute\":\"qmp_capabilities\"}\n", "return"))
		return -ETIMEDOUT;
	return 0;
}

/* Return: 0; 1 with the reason in @why when something is not there; -errno. */
static int start_qemu(void)
{
	char boot[96], sock[96];
	int ram, dev;

	if (system("command -v " QEMU " >/dev/null 2>&1")) {
		snprintf(why, sizeof(why), QEMU " is not installed");
		return 1;
	}
	dev = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
	if (dev < 0) {
		snprintf(why, sizeof(why), "no /dev/userfaultfd: %s", strerror(errno));
		return 1;
	}
	snprintf(qemu.dir, sizeof(qemu.dir), "/tmp/kill_sweep.XXXXXX");
	if (!mkdtemp(qemu.dir))
		return -errno;
	snprintf(boot, sizeof(boot), "%s/boot", qemu.dir);
	snprintf(sock, sizeof(sock), "%s/qmp", qemu.dir);
	ram = memfd_create("ram", MFD_CLOEXEC);
	if (write_boot_sector(boot) || ram < 0 || ftruncate(ram, RAM_BYTES))
		return -EIO;
	qemu.counter = mmap(NULL, 4096, PROT_READ, MAP_SHARED, ram, 0);
	if (qemu.counter == MAP_FAILED)
		return -errno;
	qemu.counter += COUNTER_ADDR / sizeof(*qemu.counter);
	qemu.pid = fork();
	if (!qemu.pid)
		exec_qemu(dev, ram, boot, sock);
	close(ram);
	close(dev);
	return connect_qmp(sock);
}

/* The boot sector counts without a pause; the BIOS writes there at most now and then. */
static int wait_boot(void)
{
	uint64_t deadline_ns = ferry_clock_in_ms(ALIVE_MS * 4);

	while (*qemu.counter < 100000) {
		if (ferry_clock_ns() > deadline_ns)
			return -ETIMEDOUT;
		ferry_clock_sleep_ns(10 * FERRY_NS_PER_MS);
	}
	return guest_runs();
}

static void stop_qemu(void)
{
	char path[96];

	if (qemu.pid > 0) {
		kill(qemu.pid, SIGKILL);
		waitpid(qemu.pid, NULL, 0);
	}
	if (qemu.qmp >= 0)
		close(qemu.qmp);
	if (!qemu.dir[0])
		return;
	snprintf(path, sizeof(path), "%s/boot", qemu.dir);
	unlink(path);
	snprintf(path, sizeof(path), "%s/qmp", qemu.dir);
	unlink(path);
	rmdir(qemu.dir);
}

static void sweep_qemu(void)
{
	struct victim v = { .inject = inject_uffd, .check = check_qemu };
	int rc = start_qemu();

	if (rc > 0) {
		printf("ok %u # SKIP QEMU: main thread: %s\n", ++tests, why);
		printf("ok %u # SKIP QEMU: vCPU thread: %s\n", ++tests, why);
		return;
	}
	if (rc || wait_boot()) {
		snprintf(why, sizeof(why), "QEMU did not start or its guest does not run");
		result(0, "QEMU: main thread");
		result(0, "QEMU: vCPU thread");
		return;
	}
	v.pid = qemu.pid;
	sweep(&v, "QEMU: userfaultfd made in the main thread");
	v.tid = find_thread(qemu.pid, "CPU 0");
	v.inject = inject_in_thread;
	if (v.tid && qemu.pid) {
		sweep(&v, "QEMU: call made in the vCPU thread");
	} else {
		snprintf(why, sizeof(why), "no thread called CPU 0");
		result(0, "QEMU: vCPU thread");
	}
}

int main(void)
{
	unsigned int seed = (unsigned int)time(NULL);
	enum target_kind kind;
	uint64_t start = ferry_clock_ns();
	char line[96];

	srandom(seed);
	/* Not sigppoll: see the list in tracer.c of what the tracer's death can change. */
	printf("TAP version 13\n1..%d\n# seed %u\n", TARGET_SIGPPOLL + 3, seed);
	fflush(stdout);
	for (kind = 0; kind < TARGET_SIGPPOLL; kind++)
		sweep_target(kind);
	sweep_qemu();
	stop_qemu();
	snprintf(line, sizeof(line), "%u kills in all, at least %d wanted", kills, KILLS_MIN);
	snprintf(why, sizeof(why), "too few");
	result(kills >= KILLS_MIN, line);
	printf("# %.1f s\n", (double)(ferry_clock_ns() - start) / 1e9);
	return failures != 0;
}
