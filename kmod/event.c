// SPDX-License-Identifier: GPL-2.0-only
/*
 * Who wants to know: the count of dirty pages with its watermark (eventfd, poll), and the
 * generic netlink family.
 *
 * The watermark is told once each time it is reached from below. The count is one atomic, so
 * exactly one change crosses the watermark; whoever made it takes watch.lock and asks again:
 *
 *	a change from below to the watermark	if not reached and the count is there, tell
 *	a change from the watermark to below	reached = false; then the same question
 *
 * A rise that overtakes the fall before it finds "reached" still set, and the fall then
 * tells in its place. A rise that a fall undid before the lock was taken is not told.
 */
#include <linux/eventfd.h>
#include <linux/ktime.h>
#include <linux/module.h>
#include <linux/workqueue.h>
#include <net/genetlink.h>
#include <linux/ferry.h>

#include "compat.h"
#include "dev.h"
#include "event.h"
#include "tracker.h"
#include "trace.h"

/* Sends what a fault found out. */
static struct workqueue_struct *queue;

/* --- the watermark ------------------------------------------------------------ */

static void watch_ask(struct ferry_tracker *tracker)
{
	struct ferry_watch_state *watch = &tracker->watch;
	unsigned long dirty = atomic_long_read(&tracker->dirty_pages);

	lockdep_assert_held(&watch->lock);
	if (!watch->pages || watch->reached || dirty < watch->pages)
		return;
	watch->reached = true;
	WRITE_ONCE(watch->times, watch->times + 1);
	watch->time_ns = ktime_get_ns();
	trace_ferry_watermark(tracker, watch->pages, dirty);
	if (watch->eventfd)
		ferry_compat_eventfd_signal(watch->eventfd);
	wake_up_interruptible_poll(&watch->wait, EPOLLIN | EPOLLRDNORM);
	queue_work(queue, &watch->work);
}

/**
 * ferry_event_crossed - the count of dirty pages went over the watermark
 * @tracker: the tracker
 * @below: downwards
 *
 * Context: as ferry_event_dirty().
 */
void ferry_event_crossed(struct ferry_tracker *tracker, bool below)
{
	spin_lock(&tracker->watch.lock);
	if (below)
		tracker->watch.reached = false;
	watch_ask(tracker);
	spin_unlock(&tracker->watch.lock);
}

/**
 * ferry_event_watch - FERRY_WATCH
 * @call: with struct ferry_watch
 *
 * Return: 0 or a negative errno as the UAPI header says.
 */
int ferry_event_watch(struct ferry_call *call)
{
	struct ferry_tracker *tracker = call->tracker;
	struct ferry_watch_state *watch = &tracker->watch;
	const struct ferry_watch *arg = call->arg;
	struct eventfd_ctx *eventfd = NULL, *old;

	if (arg->reserved)
		return -EOPNOTSUPP;
	if (arg->watermark_pages > tracker->npages)
		return -ERANGE;
	if (arg->eventfd != -1) {
		if (!arg->watermark_pages)
			return -EINVAL;
		eventfd = eventfd_ctx_fdget(arg->eventfd);
		if (IS_ERR(eventfd))
			return PTR_ERR(eventfd);
	}
	if (mutex_lock_killable(&tracker->lock)) {
		if (eventfd)
			eventfd_ctx_put(eventfd);
		return -EINTR;
	}
	spin_lock(&watch->lock);
	old = watch->eventfd;
	watch->eventfd = eventfd;
	watch->reached = false;
	WRITE_ONCE(watch->pages, arg->watermark_pages);
	/*
	 * Pairs with the atomic in ferry_event_dirty(): either the count is seen here, or the
	 * watermark there.
	 */
	smp_mb();
	watch_ask(tracker);
	spin_unlock(&watch->lock);
	mutex_unlock(&tracker->lock);
	if (old)
		eventfd_ctx_put(old);
	return 0;
}

/**
 * ferry_event_poll - poll(2) of a tracker
 * @file: the tracker's file
 * @table: of the caller
 *
 * Return: readable while the watermark is reached.
 */
__poll_t ferry_event_poll(struct file *file, struct poll_table_struct *table)
{
	struct ferry_tracker *tracker = file->private_data;
	long mark;

	poll_wait(file, &tracker->watch.wait, table);
	mark = READ_ONCE(tracker->watch.pages);
	if (mark && atomic_long_read(&tracker->dirty_pages) >= mark)
		return EPOLLIN | EPOLLRDNORM;
	return 0;
}

static void watch_work(struct work_struct *work)
{
	ferry_event_send(container_of(work, struct ferry_tracker, watch.work),
			 FERRY_CMD_WATERMARK);
}

/**
 * ferry_event_init_watch - a new tracker is not watched
 * @tracker: the tracker
 */
void ferry_event_init_watch(struct ferry_tracker *tracker)
{
	spin_lock_init(&tracker->watch.lock);
	init_waitqueue_head(&tracker->watch.wait);
	INIT_WORK(&tracker->watch.work, watch_work);
}

/**
 * ferry_event_release - a tracker goes: send what is to be sent, let go of the eventfd
 * @tracker: the tracker, which nobody can reach any more
 *
 * Context: sleeps.
 */
void ferry_event_release(struct ferry_tracker *tracker)
{
	flush_work(&tracker->watch.work);
	if (tracker->watch.eventfd)
		eventfd_ctx_put(tracker->watch.eventfd);
}

/* --- netlink ------------------------------------------------------------------ */

static struct genl_family family;

static const struct genl_multicast_group groups[] = {
	{ .name = FERRY_GENL_EVENTS, .flags = FERRY_COMPAT_MCAST_FLAGS },
};

static const struct nla_policy policy[FERRY_A_MAX + 1] = {
	[FERRY_A_ID] = { .type = NLA_U64 },
};

/**
 * struct message - where a message about a tracker goes
 * @skb: the buffer
 * @portid: of the receiver, 0 for all
 * @seq: of the request
 * @flags: NLM_F_MULTI in a dump
 * @cmd: what it is about
 * @time_ns: of an event, else 0
 */
struct message {
	struct sk_buff *skb;
	u32 portid;
	u32 seq;
	int flags;
	enum ferry_genl_cmd cmd;
	u64 time_ns;
};

static bool put_u64(struct sk_buff *skb, enum ferry_genl_attr attr, u64 value)
{
	return !nla_put_u64_64bit(skb, attr, value, FERRY_A_PAD);
}

static bool message_put(struct sk_buff *skb, struct ferry_tracker *tracker, u64 time_ns)
{
	struct ferry_fault_counts counts = ferry_tracker_counts(tracker);
	u32 state = READ_ONCE(tracker->started) ? FERRY_STATE_STARTED : 0;

	return put_u64(skb, FERRY_A_ID, tracker->id) &&
	       !nla_put_u32(skb, FERRY_A_PID, tracker->pid) &&
	       !nla_put_u32(skb, FERRY_A_UID, tracker->uid) &&
	       put_u64(skb, FERRY_A_INODE, file_inode(tracker->memfd)->i_ino) &&
	       put_u64(skb, FERRY_A_PAGES, tracker->npages) &&
	       !nla_put_u32(skb, FERRY_A_STATE, state) &&
	       !nla_put_u32(skb, FERRY_A_VIEWS, atomic_read(&tracker->views)) &&
	       put_u64(skb, FERRY_A_DIRTY_PAGES, atomic_long_read(&tracker->dirty_pages)) &&
	       put_u64(skb, FERRY_A_WATERMARK_PAGES, READ_ONCE(tracker->watch.pages)) &&
	       put_u64(skb, FERRY_A_MARKED_PAGES, counts.marked_pages) &&
	       put_u64(skb, FERRY_A_CLEANED_PAGES, READ_ONCE(tracker->cleaned_pages)) &&
	       put_u64(skb, FERRY_A_PINNED_PAGES, READ_ONCE(tracker->pinned_pages)) &&
	       (!time_ns || put_u64(skb, FERRY_A_TIME_NS, time_ns));
}

static int message_fill(const struct message *message, struct ferry_tracker *tracker)
{
	void *header = genlmsg_put(message->skb, message->portid, message->seq, &family,
				   message->flags, message->cmd);

	if (!header)
		return -EMSGSIZE;
	if (!message_put(message->skb, tracker, message->time_ns)) {
		genlmsg_cancel(message->skb, header);
		return -EMSGSIZE;
	}
	genlmsg_end(message->skb, header);
	return 0;
}

/**
 * ferry_event_send - tell who listens what happened to a tracker
 * @tracker: the tracker
 * @cmd: FERRY_CMD_CREATED, _DESTROYED or _WATERMARK
 *
 * When there is no memory the event is lost, as it is when a listener's buffer is full.
 *
 * Context: sleeps.
 */
void ferry_event_send(struct ferry_tracker *tracker, enum ferry_genl_cmd cmd)
{
	struct message message = { .cmd = cmd, .time_ns = ktime_get_ns() };

	if (!genl_has_listeners(&family, &init_net, 0))
		return;
	if (cmd == FERRY_CMD_WATERMARK) {
		spin_lock(&tracker->watch.lock);
		message.time_ns = tracker->watch.time_ns;
		spin_unlock(&tracker->watch.lock);
	}
	message.skb = genlmsg_new(NLMSG_GOODSIZE, GFP_KERNEL);
	if (!message.skb)
		return;
	if (message_fill(&message, tracker)) {
		nlmsg_free(message.skb);
		return;
	}
	/* Fails when nobody listens any more. */
	genlmsg_multicast(&family, message.skb, 0, 0, GFP_KERNEL);
}

/**
 * struct get_one - FERRY_CMD_GET by id
 * @id: which tracker
 * @message: the answer
 */
struct get_one {
	u64 id;
	struct message message;
};

/* The first visited has the least id above the one before; 1 ends the walk. */
static int get_visit(struct ferry_tracker *tracker, void *arg)
{
	struct get_one *get = arg;

	if (tracker->id != get->id)
		return -ENOENT;
	return message_fill(&get->message, tracker) ?: 1;
}

static int get_doit(struct sk_buff *request, struct genl_info *info)
{
	struct get_one get = {
		.message = {
			.portid = info->snd_portid,
			.seq = info->snd_seq,
			.cmd = FERRY_CMD_GET,
		},
	};
	int ret;

	if (!info->attrs[FERRY_A_ID])
		return -EINVAL;
	get.id = nla_get_u64(info->attrs[FERRY_A_ID]);
	if (!get.id)
		return -ENOENT;
	get.message.skb = genlmsg_new(NLMSG_GOODSIZE, GFP_KERNEL);
	if (!get.message.skb)
		return -ENOMEM;
	ret = ferry_tracker_visit(get.id - 1, get_visit, &get);
	if (ret == 1)
		return genlmsg_reply(get.message.skb, info);
	nlmsg_free(get.message.skb);
	return ret ?: -ENOENT;
}

/**
 * struct get_all - FERRY_CMD_GET as a dump
 * @message: the buffer that is filled
 * @last: id of the tracker that was written last
 */
struct get_all {
	struct message message;
	u64 last;
};

static int dump_visit(struct ferry_tracker *tracker, void *arg)
{
	struct get_all *all = arg;
	int err = message_fill(&all->message, tracker);

	if (!err)
		all->last = tracker->id;
	return err;
}

/* Goes on by id: trackers that came or went between two buffers do no harm. */
static int get_dumpit(struct sk_buff *skb, struct netlink_callback *callback)
{
	struct get_all all = {
		.message = {
			.skb = skb,
			.portid = NETLINK_CB(callback->skb).portid,
			.seq = callback->nlh->nlmsg_seq,
			.flags = NLM_F_MULTI,
			.cmd = FERRY_CMD_GET,
		},
		.last = callback->args[0],
	};

	/* Nothing written is the end; so it must not be said when not even one found room. */
	if (ferry_tracker_visit(all.last, dump_visit, &all) && !skb->len)
		return -EMSGSIZE;
	callback->args[0] = all.last;
	return skb->len;
}

static const struct genl_ops operations[] = {
	{
		.cmd = FERRY_CMD_GET,
		.flags = GENL_ADMIN_PERM,
		.doit = get_doit,
		.dumpit = get_dumpit,
	},
};

/* Not in other network namespaces: trackers belong to none. */
static struct genl_family family __ro_after_init = {
	.name = FERRY_GENL_NAME,
	.version = FERRY_GENL_VERSION,
	.maxattr = FERRY_A_MAX,
	.policy = policy,
	.module = THIS_MODULE,
	.ops = operations,
	.n_ops = ARRAY_SIZE(operations),
	.mcgrps = groups,
	.n_mcgrps = ARRAY_SIZE(groups),
};

/**
 * ferry_event_init - make the netlink family
 *
 * Return: 0 or a negative errno.
 */
int __init ferry_event_init(void)
{
	int err;

	queue = alloc_workqueue("ferry", WQ_UNBOUND, 0);
	if (!queue)
		return -ENOMEM;
	err = genl_register_family(&family);
	if (err)
		destroy_workqueue(queue);
	return err;
}

/** ferry_event_exit - undo ferry_event_init() */
void ferry_event_exit(void)
{
	genl_unregister_family(&family);
	destroy_workqueue(queue);
}
