// SPDX-License-Identifier: GPL-2.0-or-later
/* Tasks of a paused migration, and memory that is given back as it is sent. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "engine/job.h"
#include "engine/release.h"
#include "engine/task.h"

static struct ferry_job job;
static struct ferry_job_hooks hooks;

static int setup(void **state)
{
	(void)state;
	ferry_job_init(&job, &hooks);
	snprintf(job.record.id, sizeof(job.record.id), "vm1");
	job.record.role = FERRY_ROLE_SOURCE;
	job.state = FERRY_STATE_POSTCOPY_ACTIVE;
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	ferry_job_destroy(&job);
	return 0;
}

static void one_at_a_time(void **state)
{
	char path[FERRY_TASK_PATH];
	struct ferry_error err;
	struct ferry_task task;

	(void)state;
	assert_false(ferry_task_take(&job, path));
	assert_int_equal(ferry_task_ask(&job, "/a", &err), 0);
	assert_true(ferry_job_held(&job)); /* the link is cut for it */
	assert_int_equal(ferry_task_ask(&job, "/b", &err), -EBUSY);
	assert_string_equal(err.text, "vm1 is busy with /a");
	assert_true(ferry_task_take(&job, path));
	assert_string_equal(path, "/a");
	assert_false(ferry_task_take(&job, path));
	assert_int_equal(ferry_task_ask(&job, "/b", &err), -EBUSY);
	ferry_task_end(&job, 7, NULL);
	ferry_task_now(&job, &task);
	assert_int_equal(task.state, FERRY_TASK_DONE);
	assert_int_equal(task.pages, 7);
	assert_string_equal(ferry_task_state_name(task.state), "done");
	assert_int_equal(ferry_task_ask(&job, "/b", &err), 0);
	assert_true(ferry_task_take(&job, path));
	ferry_error_set(&err, ENOSPC, "no room");
	ferry_task_end(&job, 0, &err);
	ferry_task_now(&job, &task);
	assert_int_equal(task.state, FERRY_TASK_FAILED);
	assert_string_equal(task.err.text, "no room");
}

static void refused(void **state)
{
	char longest[FERRY_TASK_PATH + 1];
	struct ferry_error err;

	(void)state;
	memset(longest, 'x', sizeof(longest) - 1);
	longest[sizeof(longest) - 1] = '\0';
	assert_int_equal(ferry_task_ask(&job, longest, &err), -EINVAL);
	assert_int_equal(ferry_task_ask(&job, "", &err), -EINVAL);
	job.state = FERRY_STATE_ACTIVE;
	assert_int_equal(ferry_task_ask(&job, "/a", &err), -EINVAL);
	assert_string_equal(err.text, "vm1 has no pages to spill in state active, only in "
				      "postcopy-active and postcopy-paused");
	job.record.role = FERRY_ROLE_DESTINATION;
	job.state = FERRY_STATE_POSTCOPY_ACTIVE;
	assert_int_equal(ferry_task_ask(&job, "/a", &err), -EINVAL);
	assert_string_equal(err.text, "vm1 has no pages to take in from a file in state "
				      "postcopy-active, only in postcopy-paused");
	job.state = FERRY_STATE_POSTCOPY_PAUSED;
	assert_int_equal(ferry_task_ask(&job, "/a", &err), 0);
	assert_false(ferry_job_held(&job));
}

/* ---- memory that is given back ---- */

#define PAGES 64u

static uint64_t take_all(void *ctx, unsigned int block, uint64_t first, uint64_t pages)
{
	(void)ctx, (void)block, (void)first;
	return pages;
}

static uint64_t allocated(int fd)
{
	struct stat st;

	assert_int_equal(fstat(fd, &st), 0);
	return (uint64_t)st.st_blocks * 512 / FERRY_PAGE_SIZE;
}

static void released(void **state)
{
	struct ferry_ram_block block = { .name = "ram0", .size_bytes = PAGES * FERRY_PAGE_SIZE,
					 .page_size = FERRY_PAGE_SIZE };
	struct ferry_multifd_send_params pool_params = { .channels = 1 };
	struct ferry_page_server_params server_params = { .take = take_all };
	uint8_t page[FERRY_PAGE_SIZE];
	struct ferry_page_server *server;
	struct ferry_multifd_send *pool;
	struct ferry_release rel;
	struct ferry_rate rate;
	struct ferry_ram ram;
	int data[2], line[2];
	unsigned int i;

	(void)state;
	memset(page, 1, sizeof(page));
	block.fd = memfd_create("test", MFD_CLOEXEC);
	assert_int_equal(ftruncate(block.fd, PAGES * FERRY_PAGE_SIZE), 0);
	for (i = 0; i < PAGES; i++)
		assert_int_equal(pwrite(block.fd, page, sizeof(page), i * FERRY_PAGE_SIZE),
				 sizeof(page));
	ferry_ram_init(&ram);
	assert_int_equal(ferry_ram_add(&ram, &block, NULL), 0);
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, data), 0);
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, line), 0);
	ferry_rate_init(&rate, 0);
	pool_params.fds = data;
	pool_params.ram = server_params.ram = &ram;
	pool_params.rate = &rate;
	server_params.fd = line[0];
	assert_int_equal(ferry_multifd_send_create(&pool_params, &pool, NULL), 0);
	assert_int_equal(ferry_page_server_create(&server_params, &server, NULL), 0);
	assert_int_equal(ferry_release_init(&rel, &ram), 0);

	/* Too little to stop for. */
	assert_int_equal(ferry_multifd_send_queue(pool, 0, 0, 8, false, NULL), 0);
	ferry_release_queued(&rel, 0, 0, 8);
	assert_int_equal(ferry_release_step(&rel, pool, server, false, NULL), 0);
	assert_int_equal(allocated(block.fd), PAGES);
	assert_int_equal(ferry_release_step(&rel, pool, server, true, NULL), 0);
	assert_int_equal(allocated(block.fd), PAGES - 8);
	/* Served pages too, but none that the server has taken and not sent: then it waits. */
	ferry_release_served(&rel, 0, 20, 1);
	ferry_page_server_abort(server);
	assert_int_equal(ferry_release_step(&rel, pool, server, true, NULL), -ECANCELED);
	assert_int_equal(allocated(block.fd), PAGES - 8);

	ferry_release_free(&rel);
	ferry_multifd_send_free(pool);
	ferry_page_server_free(server);
	close(data[1]);
	close(line[1]);
	ferry_ram_free(&ram);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(one_at_a_time, setup, teardown),
		cmocka_unit_test_setup_teardown(refused, setup, teardown),
		cmocka_unit_test(released),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
