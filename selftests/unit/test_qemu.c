// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The QEMU driver's refusals against a child process that plays QEMU. A row that could refuse
 * nothing would open the test "a healthy guest passes".
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include "fake_qemu.h"
#include "guest/proc.h"

/* check() with these answers: that errno, and a text that holds @words. */
static void check_says(struct fake *f, enum ferry_guest_role role, int expected,
		       const char *words)
{
	struct ferry_guest *guest = fake_open(f, role);
	struct ferry_error err = { 0 };
	int r = guest->ops->check(guest, &err);

	if (r != expected || (words && !strstr(err.text, words)))
		fail_msg("check gave %d \"%s\", expected %d \"%s\"", r, err.text, expected,
			 words ? words : "");
	guest->ops->close(guest);
	fake_stop(f);
}

static void a_healthy_guest_passes(void **state)
{
	struct fake f;

	(void)state;
	fake_start(&f, NULL);
	check_says(&f, FERRY_GUEST_SOURCE, 0, NULL);
}

/* One answer that is not healthy, and what check() must say of it. */
static const struct {
	struct answer override;
	int errnum;
	const char *words;
} refusals[] = {
	{ { "query-status", "{\"status\":\"io-error\",\"running\":false}" }, EBUSY,
	  "'io-error'; a disk failed" },
	{ { "query-status", "{\"status\":\"guest-panicked\",\"running\":false}" }, EBUSY,
	  "'guest-panicked'" },
	{ { "query-status", "{\"status\":\"internal-error\",\"running\":false}" }, EBUSY,
	  "'internal-error'" },
	{ { "query-status", "{\"status\":\"postmigrate\",\"running\":false}" }, EBUSY,
	  "it was migrated before" },
	{ { "query-status", "{\"status\":\"inmigrate\",\"running\":false}" }, EBUSY,
	  "it is a destination" },
	{ { "query-status", "[]" }, EBUSY, "'unknown'" },
	{ { "\"query-migrate\"", "{\"status\":\"active\"}" }, EBUSY, "under way ('active')" },
	{ { "\"query-migrate\"", "{\"status\":\"cancelling\"}" }, EBUSY, "'cancelling'" },
	{ { "\"query-migrate\"", "{\"blocked-reasons\":[\"vmdk cannot\"]}" }, EBUSY,
	  "vmdk cannot" },
	{ { "query-memdev", "[{\"id\":\"m\",\"size\":1048576,\"share\":false}]" },
	  EOPNOTSUPP,
	  "share=off); start QEMU with -object memory-backend-file,id=m,size=1M,share=on,"
	  "mem-path=/dev/shm/NAME -machine memory-backend=m" },
	{ { "query-memdev", "[]" }, ENOENT, "0 memory backends" },
	{ { "query-memdev", "{}" }, ENOENT, "0 memory backends" },
	{ { "query-memdev", "[{\"size\":1048576,\"share\":true}]" }, EINVAL, "id=NAME" },
	{ { "query-memdev", "[{\"id\":\"m\",\"size\":2097152,\"share\":true}]" }, ENXIO,
	  "is not mapped" },
	{ { "\"property\":\"discard-data\"", "true" }, EOPNOTSUPP, "discard-data=on" },
	{ { "\"property\":\"type\"", "\"memory-backend-epc\"" }, EOPNOTSUPP,
	  "memory-backend-epc" },
	{ { "\"property\":\"mem-path\"", "\"/dev/shm/not-there\"" }, ENXIO,
	  "-qmp unix:PATH,server=on,wait=off" },
	{ { "\"property\":\"offset\"", "4096" }, ENXIO, "is not mapped" },
	{ { "qom-list", "[{\"name\":\"hd\",\"type\":\"child<vfio-pci>\"}]" }, EOPNOTSUPP,
	  "device 'hd' (vfio-pci) pins" },
	{ { "qom-list", "[{\"name\":\"s\",\"type\":\"child<vhost-scsi-pci>\"}]" },
	  EOPNOTSUPP, "device 's' (vhost-scsi-pci)" },
	{ { "qom-list", "[{\"name\":\"s\",\"type\":\"child<vhost-vdpa-device-pci>\"}]" },
	  EOPNOTSUPP, "vhost-vdpa-device-pci" },
	{ { "human-monitor-command", "\"n: type=vhost-vdpa,x\"" }, EOPNOTSUPP,
	  "network backend of type vhost-vdpa" },
	{ { "query-memory-devices", "[{\"type\":\"virtio-mem\",\"data\":{\"id\":\"vm0\","
	    "\"size\":0,\"requested-size\":4096}}]" }, EBUSY, "'vm0' is being resized" },
	{ { "query-named-block-nodes", "[{\"node-name\":\"n\",\"drv\":\"nvme\"}]" },
	  EOPNOTSUPP, "block node 'n' (nvme)" },
	{ { "query-named-block-nodes",
	    "[{\"node-name\":\"n\",\"drv\":\"virtio-blk-vhost-vdpa\"}]" }, EOPNOTSUPP,
	  "(virtio-blk-vhost-vdpa)" },
	{ { "query-status", "!not now" }, EREMOTEIO, "not now" },
	{ { "query-status", "DIE" }, ESRCH, "has gone" },
	{ { "query-memory-devices", "DIE" }, ESRCH, "has gone" },
};

static void refusals_name_the_culprit(void **state)
{
	size_t i;

	(void)state;
	for (i = 0; i < sizeof(refusals) / sizeof(refusals[0]); i++) {
		struct answer overrides[] = { refusals[i].override, { NULL, NULL } };
		struct fake f;

		fake_start(&f, overrides);
		check_says(&f, FERRY_GUEST_SOURCE, -refusals[i].errnum, refusals[i].words);
	}
}

static void memfd_backends_depend_on_the_version(void **state)
{
	static const struct answer overrides[] = {
		{ "query-version", "{\"qemu\":{\"major\":8,\"minor\":1,\"micro\":0}}" },
		{ "\"property\":\"type\"", "\"memory-backend-memfd\"" },
		{ "\"property\":\"mem-path\"", "!no such property" },
		{ NULL, NULL },
	};
	struct fake f;

	(void)state;
	fake_start(&f, overrides);
	check_says(&f, FERRY_GUEST_SOURCE, -EOPNOTSUPP, "mem-path=/proc/self/fd/N");
	/* QEMU 7.2 may have one; this fake has not mapped it. */
	fake_start(&f, overrides + 1);
	check_says(&f, FERRY_GUEST_SOURCE, -ENXIO, "'m' (memfd) is not mapped");
}

static void a_private_mapping_is_refused(void **state)
{
	struct fake f;

	(void)state;
	fake_start_at(&f, NULL, "/dev/shm", MAP_PRIVATE);
	check_says(&f, FERRY_GUEST_SOURCE, -EOPNOTSUPP, "maps it privately");
}

static void a_disk_file_is_refused(void **state)
{
	struct statfs fs;
	struct fake f;

	(void)state;
	if (statfs("/var/tmp", &fs) || fs.f_type == TMPFS_MAGIC) {
		print_message("SKIP: /var/tmp is no disk here\n");
		skip();
	}
	fake_start_at(&f, NULL, "/var/tmp", MAP_SHARED);
	check_says(&f, FERRY_GUEST_SOURCE, -EOPNOTSUPP, "a file on a disk");
}

static void a_destination_must_wait(void **state)
{
	static const struct answer waits[] = {
		{ "query-status", "{\"status\":\"inmigrate\",\"running\":false}" }, { NULL, NULL },
	};
	struct ferry_error err = { 0 };
	struct ferry_guest *guest;
	struct fake f;

	(void)state;
	fake_start(&f, waits);
	check_says(&f, FERRY_GUEST_DESTINATION, 0, NULL);
	fake_start(&f, NULL);
	check_says(&f, FERRY_GUEST_DESTINATION, -EINVAL, "-incoming defer");
	/* A running guest that somebody named by mistake is neither prepared nor ended. */
	fake_start(&f, NULL);
	guest = fake_open(&f, FERRY_GUEST_DESTINATION);
	assert_int_equal(guest->ops->prepare(guest, &err), -EINVAL);
	assert_int_equal(guest->ops->undo(guest, false, &err), 0);
	assert_int_equal(kill(f.pid, 0), 0);
	assert_int_equal(waitpid(f.pid, NULL, WNOHANG), 0);
	guest->ops->close(guest);
	fake_stop(&f);
}

static void a_stranger_is_refused_by_name(void **state)
{
	int pipe_fds[2];
	struct ferry_error err = { 0 };
	struct ferry_guest *guest;
	struct fake f;
	char words[64], c;
	pid_t stranger;

	(void)state;
	fake_start(&f, NULL);
	assert_int_equal(pipe2(pipe_fds, O_CLOEXEC), 0);
	stranger = fork();
	if (!stranger) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		prctl(PR_SET_NAME, "virtio-fake");
		map_ram(f.ram, MAP_SHARED);
		if (write(pipe_fds[1], "x", 1) != 1)
			_exit(1);
		pause();
		_exit(0);
	}
	assert_int_equal(read(pipe_fds[0], &c, 1), 1);
	/* Unless the caller knows it. */
	guest = fake_open_with(&f, FERRY_GUEST_SOURCE, NULL, &stranger);
	assert_int_equal(guest->ops->check(guest, &err), 0);
	guest->ops->close(guest);
	snprintf(words, sizeof(words), "pid %d (virtio-fake) maps guest RAM 'm'", stranger);
	check_says(&f, FERRY_GUEST_SOURCE, -EBUSY, words);
	kill(stranger, SIGKILL);
	waitpid(stranger, NULL, 0);
	close(pipe_fds[0]);
	close(pipe_fds[1]);
}

static void direct_io_is_named(void **state)
{
	static const struct {
		struct answer override;
		int expected;
		const char *why;
	} rows[] = {
		{ { "nothing", "" }, 0, "" },
		{ { "query-named-block-nodes",
		    "[{\"node-name\":\"d1\",\"cache\":{\"direct\":true}}]" }, 1,
		  "block node 'd1': direct I/O" },
		{ { "query-named-block-nodes", "[{\"node-name\":\"d1\"}]" }, 1,
		  "block node 'd1': cache mode unknown" },
		{ { "qom-list", "[{\"name\":\"s\",\"type\":\"child<scsi-block>\"}]" }, 1,
		  "device 's' (scsi-block): SCSI pass-through" },
		{ { "query-named-block-nodes", "!no" }, -EREMOTEIO, "" },
	};
	struct ferry_error err = { 0 };
	char why[128];
	size_t i;

	(void)state;
	for (i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		struct answer overrides[] = { rows[i].override, { NULL, NULL } };
		struct ferry_guest *guest;
		struct fake f;

		fake_start(&f, overrides);
		guest = fake_open(&f, FERRY_GUEST_SOURCE);
		assert_int_equal(guest->ops->direct_io(guest, why, sizeof(why), &err),
				 rows[i].expected);
		assert_string_equal(why, rows[i].why);
		guest->ops->close(guest);
		fake_stop(&f);
	}
}

/* Behind a proxy the socket's maker is not QEMU: nothing is done to that process. */
static void a_proxy_is_no_qemu(void **state)
{
	struct ferry_error err = { 0 };
	struct ferry_guest *guest;
	struct fake f;
	int fd, uffd;

	(void)state;
	fake_start_at(&f, NULL, "/dev/shm", 0);
	fd = open(f.ram, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	assert_int_equal(ftruncate(fd, RAM_BYTES), 0);
	guest = fake_open(&f, FERRY_GUEST_SOURCE);
	assert_int_equal(guest->ops->check(guest, &err), -ENXIO);
	assert_non_null(strstr(err.text, "give ferry one QEMU makes itself"));
	assert_int_equal(guest->ops->prepare(guest, &err), -ENXIO);
	assert_int_equal(guest->ops->userfaultfd(guest, &uffd, &err), -ENXIO);
	assert_int_equal(guest->ops->quit(guest, &err), -EPERM);
	assert_int_equal(guest->ops->undo(guest, true, &err), 0);
	assert_int_equal(waitpid(f.pid, NULL, WNOHANG), 0);
	guest->ops->close(guest);
	close(fd);
	fake_stop(&f);
}

/* run(): certain failures keep their errno, an unknown outcome is -EIO. */
static void run_tells_certain_from_unknown(void **state)
{
	static const struct answer paused = { "query-status",
					      "{\"status\":\"paused\",\"running\":false}" };
	static const struct {
		struct answer override[3];
		int expected;
		const char *words;
	} rows[] = {
		{ { paused, { NULL, NULL } }, 0, "" },
		{ { { NULL, NULL } }, 0, "" }, /* it runs already */
		{ { { "cont", "!write lock" }, paused, { NULL, NULL } }, -EREMOTEIO, "write lock" },
		{ { { "cont", "DIE" }, paused, { NULL, NULL } }, -EIO, "may have run" },
		{ { { "query-status", "DIE" }, { NULL, NULL } }, -ESRCH, "has gone" },
		{ { { "query-status", "{\"status\":\"inmigrate\",\"running\":false}" },
		    { NULL, NULL } }, -EINVAL, "no device state" },
	};
	size_t i;

	(void)state;
	for (i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		struct ferry_error err = { 0 };
		struct ferry_guest *guest;
		struct fake f;

		fake_start(&f, rows[i].override);
		guest = fake_open(&f, FERRY_GUEST_DESTINATION);
		assert_int_equal(guest->ops->run(guest, &err), rows[i].expected);
		assert_non_null(strstr(err.text, rows[i].words));
		guest->ops->close(guest);
		fake_stop(&f);
	}
}

/* A destination that runs before its time is a second owner: it is ended. */
static void a_destination_that_starts_by_itself_is_killed(void **state)
{
	static const struct answer early[] = {
		{ "migrate-incoming", "{}" },
		{ "\"query-migrate\"", "{\"status\":\"completed\"}" },
		{ NULL, NULL },
	};
	const uint8_t blob[16] = { 0 };
	struct ferry_error err = { 0 };
	struct ferry_ram ram;
	struct ferry_guest *guest;
	struct fake f;
	int status;

	(void)state;
	fake_start(&f, early);
	guest = fake_open(&f, FERRY_GUEST_DESTINATION);
	ferry_ram_init(&ram);
	assert_int_equal(guest->ops->describe(guest, &ram, &err), 0);
	ferry_ram_free(&ram);
	assert_true(guest->ops->load(guest, blob, sizeof(blob), &err) < 0);
	assert_int_equal(waitpid(f.pid, &status, WNOHANG), f.pid);
	assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
	assert_int_equal(guest->ops->undo(guest, false, &err), 0);
	guest->ops->close(guest);
	f.pid = 0x7ffffff0;
	fake_stop(&f);
}

/* A loaded guest that waits for memory blocks QEMU: it is killed all the same. */
static void a_mute_destination_is_ended(void **state)
{
	static const struct answer mute[] = { { "query-status", "MUTE" }, { NULL, NULL } };
	struct ferry_error err = { 0 };
	struct ferry_guest *guest;
	char text[256];
	struct fake f;
	int status;

	(void)state;
	fake_start(&f, mute);
	snprintf(text, sizeof(text), "{\"driver\":\"qmp\",\"version\":1,\"role\":\"destination\","
		 "\"pid\":%d,\"start\":%llu,\"capabilities\":{}}", f.pid,
		 (unsigned long long)ferry_proc_start(f.pid));
	guest = fake_open_with(&f, FERRY_GUEST_DESTINATION, text, NULL);
	assert_int_equal(guest->ops->undo(guest, false, &err), 0);
	assert_int_equal(waitpid(f.pid, &status, WNOHANG), f.pid);
	guest->ops->close(guest);
	f.pid = 0x7ffffff0;
	fake_stop(&f);
}

/* Undo texts are our own, but may be damaged: refused, never crashed on. */
static void a_damaged_undo_text_is_refused(void **state)
{
	static const char *const texts[] = {
		"", "{", "[]", "{}", "{\"driver\":\"port\"}", "{\"driver\":\"qmp\"}",
		"{\"driver\":\"qmp\",\"version\":1,\"role\":\"destination\",\"pid\":1}",
		"{\"driver\":\"qmp\",\"version\":2,\"role\":\"source\",\"pid\":1}",
		"{\"driver\":\"qmp\",\"version\":1,\"role\":\"source\"}",
		"{\"driver\":\"qmp\",\"version\":1,\"role\":\"source\",\"pid\":99999999999}",
		"{\"driver\":\"qmp\",\"version\":1,\"role\":\"source\",\"pid\":1,\"was\":7}",
		"{\"driver\":\"qmp\",\"version\":1,\"role\":\"source\",\"pid\":1,"
		"\"capabilities\":[]}",
	};
	struct ferry_guest_open_params params = { .spec = "qmp:/nonexistent/q", .held_fd = -1,
						  .timeout_ms = 1000 };
	struct ferry_guest *guest;
	struct ferry_error err;
	size_t i;

	(void)state;
	for (i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
		params.undo = texts[i];
		assert_int_equal(ferry_guest_open(&params, &guest, &err), -EPROTO);
		assert_non_null(strstr(err.text, "x-ignore-shared"));
	}
}

/* The process of the undo text has ended (its pid may be another's now): nothing to do. */
static void undo_of_a_gone_qemu_is_done(void **state)
{
	char text[256];
	struct ferry_guest_open_params params = { .spec = "qmp:/nonexistent/q", .undo = text,
						  .held_fd = -1, .timeout_ms = 1000 };
	struct ferry_guest *guest;
	struct ferry_error err = { 0 };

	(void)state;
	snprintf(text, sizeof(text), "{\"driver\":\"qmp\",\"version\":1,\"role\":\"source\","
		 "\"pid\":%d,\"start\":1,\"was\":\"running\"}", getpid());
	assert_int_equal(ferry_guest_open(&params, &guest, &err), 0);
	assert_int_equal(guest->ops->undo(guest, true, &err), 0);
	assert_int_equal(guest->ops->resume(guest, &err), -ESRCH);
	assert_int_equal(guest->ops->quit(guest, &err), 0);
	guest->ops->close(guest);
}

/* x-ignore-shared cannot be set on a QEMU without it. */
static void an_old_qemu_is_refused(void **state)
{
	static const struct answer old[] = { { "query-migrate-capabilities", "[]" },
					     { NULL, NULL } };
	struct ferry_error err = { 0 };
	struct ferry_guest *guest;
	struct fake f;

	(void)state;
	fake_start(&f, old);
	guest = fake_open(&f, FERRY_GUEST_SOURCE);
	assert_int_equal(guest->ops->prepare(guest, &err), -EOPNOTSUPP);
	assert_non_null(strstr(err.text, "QEMU 4.0"));
	guest->ops->close(guest);
	fake_stop(&f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_healthy_guest_passes),
		cmocka_unit_test(refusals_name_the_culprit),
		cmocka_unit_test(memfd_backends_depend_on_the_version),
		cmocka_unit_test(a_private_mapping_is_refused),
		cmocka_unit_test(a_disk_file_is_refused),
		cmocka_unit_test(a_destination_must_wait),
		cmocka_unit_test(a_stranger_is_refused_by_name),
		cmocka_unit_test(direct_io_is_named),
		cmocka_unit_test(a_proxy_is_no_qemu),
		cmocka_unit_test(run_tells_certain_from_unknown),
		cmocka_unit_test(a_destination_that_starts_by_itself_is_killed),
		cmocka_unit_test(a_mute_destination_is_ended),
		cmocka_unit_test(a_damaged_undo_text_is_refused),
		cmocka_unit_test(undo_of_a_gone_qemu_is_done),
		cmocka_unit_test(an_old_qemu_is_refused),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
