// SPDX-License-Identifier: GPL-2.0-or-later
#include "xport/crew.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>

#include "base/clock.h"
#include "base/io.h"

int ferry_crew_init(struct ferry_crew *crew, const int *fds, unsigned int channels,
		    struct ferry_error *err)
{
	pthread_condattr_t attr;

	if (!channels || channels > FERRY_WIRE_MAX_CHANNELS)
		return ferry_error_set(err, EINVAL, "%u multifd channels: 1 to %u are possible",
				       channels, FERRY_WIRE_MAX_CHANNELS);
	memset(crew, 0, sizeof(*crew));
	crew->channels = channels;
	memcpy(crew->fds, fds, channels * sizeof(*fds));
	pthread_mutex_init(&crew->lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&crew->changed, &attr);
	pthread_condattr_destroy(&attr);
	return 0;
}

int ferry_crew_start(struct ferry_crew *crew, void *(*run)(void *), void *arg,
		     struct ferry_error *err)
{
	sigset_t all, old;
	int r;

	/* Signals are the main thread's; a SIGPIPE of a dead channel is nobody's. */
	sigfillset(&all);
	pthread_sigmask(SIG_BLOCK, &all, &old);
	r = pthread_create(&crew->threads[crew->started], NULL, run, arg);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (r)
		return ferry_error_set(err, r, "cannot start a thread for multifd channel %u: %s",
				       crew->started, strerror(r));
	crew->started++;
	return 0;
}

void ferry_crew_stop(struct ferry_crew *crew, const struct ferry_error *why)
{
	unsigned int i;

	pthread_mutex_lock(&crew->lock);
	if (!crew->err.errnum) {
		crew->err = *why;
		for (i = 0; i < crew->channels; i++)
			(void)shutdown(crew->fds[i], SHUT_RDWR);
		pthread_cond_broadcast(&crew->changed);
	}
	pthread_mutex_unlock(&crew->lock);
}

void ferry_crew_abort(struct ferry_crew *crew)
{
	struct ferry_error why;

	ferry_error_set(&why, ECANCELED, "the transfer was stopped");
	ferry_crew_stop(crew, &why);
}

int ferry_crew_result(const struct ferry_crew *crew, struct ferry_error *err)
{
	if (!crew->err.errnum)
		return 0;
	if (err)
		*err = crew->err;
	return -crew->err.errnum;
}

int ferry_crew_why(struct ferry_crew *crew, struct ferry_error *err)
{
	int r;

	pthread_mutex_lock(&crew->lock);
	r = ferry_crew_result(crew, err);
	pthread_mutex_unlock(&crew->lock);
	return r;
}

int ferry_crew_wait(struct ferry_crew *crew, uint64_t deadline_ns)
{
	struct timespec ts = {
		.tv_sec = (time_t)(deadline_ns / FERRY_NS_PER_S),
		.tv_nsec = (long)(deadline_ns % FERRY_NS_PER_S),
	};

	if (deadline_ns == FERRY_CLOCK_NEVER)
		return -pthread_cond_wait(&crew->changed, &crew->lock);
	return -pthread_cond_timedwait(&crew->changed, &crew->lock, &ts);
}

void ferry_crew_end(struct ferry_crew *crew, bool close_fds)
{
	unsigned int i;

	ferry_crew_abort(crew);
	for (i = 0; i < crew->started; i++)
		pthread_join(crew->threads[i], NULL);
	for (i = 0; close_fds && i < crew->channels; i++)
		ferry_io_close(&crew->fds[i]);
	pthread_cond_destroy(&crew->changed);
	pthread_mutex_destroy(&crew->lock);
}
