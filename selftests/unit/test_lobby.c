// SPDX-License-Identifier: GPL-2.0-or-later
/* The lobby: who says HELLO comes in, whoever else is there and whatever they say. */
#include <errno.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/io.h"
#include "engine/lobby.h"

#define SOON_MS 10000
#define SHORT_MS 50

static char path[64];

static int setup(void **state)
{
	static struct ferry_lobby lobby;
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

	snprintf(path, sizeof(path), "/tmp/ferry-lobby-%d", (int)getpid());
	unlink(path);
	strcpy(addr.sun_path, path);
	if (fd < 0 || bind(fd, (void *)&addr, sizeof(addr)) || listen(fd, 128))
		return -1;
	ferry_lobby_init(&lobby, fd, -1);
	*state = &lobby;
	return 0;
}

static int teardown(void **state)
{
	struct ferry_lobby *lobby = *state;

	ferry_lobby_clear(lobby);
	close(lobby->listen_fd);
	unlink(path);
	return 0;
}

static int join(void)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	strcpy(addr.sun_path, path);
	assert_int_equal(connect(fd, (void *)&addr, sizeof(addr)), 0);
	return fd;
}

static struct ferry_wire_hello hello_of(uint16_t channel)
{
	return (struct ferry_wire_hello){
		.version = FERRY_WIRE_VERSION,
		.min_version = FERRY_WIRE_MIN_VERSION,
		.features = FERRY_WIRE_FEATURES,
		.uuid = { 1, 2, 3 },
		.epoch = 1,
		.role = FERRY_WIRE_ROLE_SOURCE,
		.kind = FERRY_WIRE_KIND_MULTIFD,
		.channel = channel,
		.channels = 64,
		.page_size = 4096,
	};
}

static void say(int fd, const struct ferry_wire_hello *hello)
{
	uint8_t bytes[FERRY_WIRE_HELLO_BYTES];

	ferry_wire_hello_encode(hello, bytes);
	assert_int_equal(write(fd, bytes, sizeof(bytes)), sizeof(bytes));
}

static int wait_for(struct ferry_lobby *lobby, int other, unsigned int ms,
		    struct ferry_wire_hello *hello, int *fd)
{
	struct ferry_error err;

	*fd = -1;
	return ferry_lobby_wait(lobby, other, ferry_clock_in_ms(ms), hello, fd, &err);
}

static int is_closed(int fd)
{
	char c;

	return recv(fd, &c, 1, MSG_DONTWAIT) == 0;
}

static void a_guest(void **state)
{
	struct ferry_wire_hello hello = hello_of(7), got;
	int fd, peer = join();

	say(peer, &hello);
	assert_int_equal(wait_for(*state, -1, SOON_MS, &got, &fd), 1);
	assert_true(fd >= 0);
	assert_int_equal(got.channel, 7);
	assert_memory_equal(got.uuid, hello.uuid, 16);
	/* The answer carries our version and the status, and leaves the connection open. */
	assert_int_equal(ferry_lobby_answer(fd, &got, FERRY_WIRE_STATUS_BUSY), 0);
	{
		uint8_t bytes[FERRY_WIRE_HELLO_BYTES];

		assert_int_equal(read(peer, bytes, sizeof(bytes)), sizeof(bytes));
		assert_int_equal(ferry_wire_hello_decode(&got, bytes), 0);
	}
	assert_int_equal(got.status, FERRY_WIRE_STATUS_BUSY);
	assert_int_equal(got.role, FERRY_WIRE_ROLE_DESTINATION);
	assert_false(is_closed(peer));
	close(fd);
	close(peer);
}

static void other_and_wake(void **state)
{
	struct ferry_lobby *lobby = *state;
	struct ferry_wire_hello got;
	int sv[2], fd, wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	uint64_t one = 1;

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, sv), 0);
	assert_int_equal(wait_for(lobby, sv[0], SHORT_MS, &got, &fd), -ETIMEDOUT);
	assert_int_equal(write(sv[1], "x", 1), 1);
	assert_int_equal(wait_for(lobby, sv[0], SOON_MS, &got, &fd), 0);
	assert_int_equal(fd, -1);
	/* The wake-up comes before everything else that is ready. */
	lobby->wake_fd = wake;
	assert_int_equal(write(wake, &one, sizeof(one)), sizeof(one));
	assert_int_equal(wait_for(lobby, sv[0], SOON_MS, &got, &fd), -EINTR);
	assert_int_equal(read(wake, &one, sizeof(one)), sizeof(one));
	assert_int_equal(wait_for(lobby, sv[0], SOON_MS, &got, &fd), 0);
	close(sv[1]);
	close(sv[0]);
	close(wake);
}

static void a_deadline_that_has_passed(void **state)
{
	struct ferry_wire_hello got;
	struct ferry_error err;
	int fd = -1;

	assert_int_equal(ferry_lobby_wait(*state, -1, 1, &got, &fd, &err), -ETIMEDOUT);
}

static void garbage(void **state)
{
	struct ferry_wire_hello hello = hello_of(1), got;
	char bytes[FERRY_WIRE_HELLO_BYTES];
	int bad = join(), wrong_role = join(), good, fd;

	memset(bytes, 'G', sizeof(bytes));
	assert_int_equal(write(bad, bytes, sizeof(bytes)), sizeof(bytes));
	hello.role = FERRY_WIRE_ROLE_DESTINATION;
	say(wrong_role, &hello);
	assert_int_equal(wait_for(*state, -1, SHORT_MS, &got, &fd), -ETIMEDOUT);
	assert_true(is_closed(bad));
	assert_true(is_closed(wrong_role));
	/* Nobody is kept out by that. */
	good = join();
	hello = hello_of(2);
	say(good, &hello);
	assert_int_equal(wait_for(*state, -1, SOON_MS, &got, &fd), 1);
	assert_int_equal(got.channel, 2);
	close(fd);
	close(bad);
	close(wrong_role);
	close(good);
}

static void another_version_is_told(void **state)
{
	struct ferry_wire_hello hello = hello_of(1), got;
	uint8_t bytes[FERRY_WIRE_HELLO_BYTES];
	int peer = join(), fd;

	hello.version = 9;
	hello.min_version = 9;
	say(peer, &hello);
	assert_int_equal(wait_for(*state, -1, SHORT_MS, &got, &fd), -ETIMEDOUT);
	assert_int_equal(read(peer, bytes, sizeof(bytes)), sizeof(bytes));
	assert_int_equal(ferry_wire_hello_decode(&got, bytes), 0);
	assert_int_equal(got.status, FERRY_WIRE_STATUS_VERSION);
	assert_int_equal(got.version, FERRY_WIRE_VERSION);
	assert_true(is_closed(peer));
	close(peer);
}

/* In pieces and late, while another one hangs up in the middle. */
static void slow(void **state)
{
	struct ferry_wire_hello hello = hello_of(3), got;
	uint8_t bytes[FERRY_WIRE_HELLO_BYTES];
	int peer = join(), quitter = join(), fd;
	unsigned int i;

	ferry_wire_hello_encode(&hello, bytes);
	assert_int_equal(write(quitter, bytes, 30), 30);
	for (i = 0; i < sizeof(bytes); i++) {
		assert_int_equal(write(peer, bytes + i, 1), 1);
		if (i == 20)
			close(quitter);
		if (i < sizeof(bytes) - 1 && i % 16 == 0)
			assert_int_equal(wait_for(*state, -1, 5, &got, &fd), -ETIMEDOUT);
	}
	assert_int_equal(wait_for(*state, -1, SOON_MS, &got, &fd), 1);
	assert_int_equal(got.channel, 3);
	close(fd);
	close(peer);
}

/* More silent ones than there are seats: the longest waiting goes, a talker gets in. */
static void too_many(void **state)
{
	struct ferry_wire_hello hello = hello_of(5), got;
	int silent[FERRY_LOBBY_SEATS + 8], good, fd;
	unsigned int i, closed = 0;

	for (i = 0; i < FERRY_LOBBY_SEATS + 8; i++)
		silent[i] = join();
	assert_int_equal(wait_for(*state, -1, SHORT_MS, &got, &fd), -ETIMEDOUT);
	for (i = 0; i < FERRY_LOBBY_SEATS + 8; i++)
		closed += is_closed(silent[i]);
	assert_int_equal(closed, 8);
	for (i = 0; i < 8; i++)
		assert_true(is_closed(silent[i]));
	good = join();
	say(good, &hello);
	assert_int_equal(wait_for(*state, -1, SOON_MS, &got, &fd), 1);
	assert_int_equal(got.channel, 5);
	close(fd);
	close(good);
	ferry_lobby_clear(*state);
	for (i = 0; i < FERRY_LOBBY_SEATS + 8; i++) {
		assert_true(is_closed(silent[i]));
		close(silent[i]);
	}
}

/* Five seconds of silence are enough; whoever came later has longer. */
static void silent(void **state)
{
	struct ferry_lobby *lobby = *state;
	struct ferry_wire_hello got;
	int first = join(), second = join(), fd;

	assert_int_equal(wait_for(lobby, -1, SHORT_MS, &got, &fd), -ETIMEDOUT);
	assert_true(lobby->seats[0].fd >= 0 && lobby->seats[1].fd >= 0);
	assert_in_range(lobby->seats[0].deadline_ns, ferry_clock_in_ms(1000),
			ferry_clock_in_ms(5000));
	/* As if the time had gone by. */
	lobby->seats[0].deadline_ns = ferry_clock_ns();
	assert_int_equal(wait_for(lobby, -1, SHORT_MS, &got, &fd), -ETIMEDOUT);
	assert_true(is_closed(first));
	assert_false(is_closed(second));
	close(first);
	close(second);
}

#define IN_LOBBY(test) cmocka_unit_test_setup_teardown(test, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		IN_LOBBY(a_guest), IN_LOBBY(other_and_wake), IN_LOBBY(a_deadline_that_has_passed),
		IN_LOBBY(garbage), IN_LOBBY(another_version_is_told),
		IN_LOBBY(slow),	   IN_LOBBY(too_many),	     IN_LOBBY(silent),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
