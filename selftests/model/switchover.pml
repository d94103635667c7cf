/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The switchover of ferry as a spin model. Documentation/switchover.rst explains
 * the protocol to people; this file is the same protocol for a machine.
 *
 * Data. There are three kinds, and the difference is the point of the model:
 *
 *   records   survive the death of worker and guardian. The published state is a
 *             record too: MOVE() is a durable write. A record goes with its host.
 *   volatile  what a worker knows. It is gone when the worker dies; a new one
 *             has the records only, and starts at the step "start".
 *   world     guests, VMMs, hosts, links: true whether anybody knows it or not.
 *
 * Steps. Each d_step is one durable write, or one act on a guest, or one message.
 * A process can be killed between any two of them, so nothing may be merged that
 * the code cannot do at once. Two things written together are in one step only if
 * dying in between looks like dying before or after.
 *
 * Connections. Number c carries HELLO(epoch c), FIFO each way; nothing is ordered
 * between connections. A cut link is noticed by each end when it likes. Until an
 * end closes, it may still read all that was ever sent to it (late delivery); when
 * it closes, the rest is lost. A peer that closes an uncut link loses nothing: the
 * end of file comes after the last message.
 *
 * Faults. At most FAULTS of: a cut link, a killed worker or guardian or both at
 * once, one host dead for good, a load or start that fails, a start with no answer.
 *
 * The person. Runs `ferry resume` or `ferry recover` where both processes are dead,
 * cancels once a side, says `continue`, and forces one side only when entitled to:
 *   --force-source       the destination's host is dead for good and the guest did not
 *                        go on from there, or the person has read failed or cancelled
 *                        there;
 *   --force-destination  the source's host is dead for good (postcopy: and every page is
 *                        here), or the person has read commit-unknown there.
 * -DNO_PERSON takes this process away: what is left must then say it needs one.
 *
 * Invariants, checked where a guest is started, given up or spoken of:
 *   one_owner     the guest never runs on both sides;
 *   no_way_back   it never runs at the source after it ran at the destination, unless a
 *                 person forced it because the destination's host is dead for good;
 *   no_restart    a guest that ran at the destination and went on is not started there;
 *   no_stale_run  a RUN is not acted on once a later connection has been greeted;
 *   not_lost      no VMM that is needed is quit: the source's only after the guest ran at
 *                 the destination with every page placed;
 *   in_order      a message that cannot come in this state does not;
 * and by the judge, when nothing can move any more:
 *   somebody_says nobody runs only if a living side says so and needs a person;
 *   an_owner      with a person's help there is an owner, or it died with its host;
 *   it_ends       with a person's help, while both hosts live, both sides end;
 *   true_states   the published states are true;
 *   no_fault      without a fault and a cancel: completed on both sides, both exited.
 *
 * Sabotage: each -DNAME breaks one rule, and must break one of the invariants.
 *   RUN_BEFORE_PONG            RUN goes out with PACKAGE, before PONG and COMMIT
 *   NO_EPOCH                   older sockets stay open, RUN is taken from any
 *   START_BEFORE_RUN_ACCEPTED  first the guest runs, then it is recorded
 *   RESUME_AFTER_COMMIT        the guardian resumes whatever the records say
 *   REFUSE_WITHOUT_RECORD      the message REFUSED first, the record after it
 *   REFUSE_AFTER_RESTART       REFUSED by a worker that did not make the first attempt
 *   ABORTED_NOT_DURABLE        a cancel in commit-wait is told first, then recorded
 *   FENCE_REFUSES              a fenced destination answers REFUSED
 *   FORCE_WITHOUT_FENCE        --force-destination starts the guest, no record
 *   NO_RAN_RECORD              a new worker of a completed destination starts it again
 *   ACK_WITHOUT_RECORD         the source says ACK before completed is recorded
 *   RECORD_BEFORE_RESUME       failed or cancelled is recorded before the guest runs
 *   COMPLETED_WHEN_SENT        postcopy: completed when the last page is sent, not placed
 *
 * -DPOSTCOPY=true: postcopy-device instead of device, and what follows from it. RAM is
 * one bit, placed: the last page has arrived. It travels unordered with the messages.
 */
#ifndef FAULTS
#define FAULTS 2
#endif
/* Each fault costs one connection at most: the bound never decides how a run ends. */
#define CONNS (FAULTS + 1)

mtype:state = {
	at_none, at_setup, at_active, at_pre_switchover, at_device, at_postcopy_device,
	at_postcopy_active, at_postcopy_paused, at_postcopy_recover_setup, at_postcopy_recover,
	at_commit_unknown, at_commit_wait, at_completed, at_failed, at_cancelling, at_cancelled
};

mtype:message = {
	HELLO, PACKAGE, PING, PONG, RUN, RUNNING, REFUSED, ACK, ABORT, ASK,
	ANSWER_RAN, ANSWER_WAITING, ANSWER_REFUSED,
	/* Postcopy: the same while pages are missing, and: every page is placed. */
	RUNNING_LACKS, ANSWER_LACKS, PLACED
};

/* Where a worker is between two steps. */
mtype:step = {
	start, connecting, greeted, copying, stopped, sending, wait_pong, loaded, committed,
	wait_running, quitting, acking, aborting, undo, undone, lost, reconnecting,
	wait_answer, stuck, greeted_again, acked_early, paging, wait_placed,
	ready, loading, recorded, got_run, start_guest, refuse_early, refusing, started,
	telling, told_placed, cancel_recorded, cancel_early, bye
};

/* Records of the source. */
mtype:state source_state = at_none;
bool commit;			/* COMMIT */
bool heard_refused;		/* REFUSED, as the destination said */
bool source_fenced;		/* FENCED */
byte source_epoch;		/* EPOCH: the highest ever used */

/* Records of the destination. */
mtype:state destination_state = at_none;
bool waiting;			/* commit-wait: loaded, and nothing is promised yet */
bool accepted;			/* RUN-ACCEPTED: from here on it may have run here */
bool refused;			/* REFUSED: it never ran here and never will */
bool aborted;			/* ABORTED: the same, by ABORT or by a person */
bool destination_fenced;	/* FENCED */
byte destination_epoch;		/* EPOCH: the highest ever greeted with */

/* Volatile. */
bool source_worker = true, source_guardian = true;
mtype:step source_at = connecting;
byte source_conn;		/* the open connection, or 0 */
bool destination_worker = true, destination_guardian = true;
mtype:step destination_at = ready;
bool last_sent;			/* postcopy: LAST is on its way on this connection */
bool all_placed;		/* postcopy: the answer said that nothing is missing */
bool first_start;		/* this worker wrote RUN-ACCEPTED and has not tried to start */
bool source_done, destination_done;	/* both processes have exited by themselves */

/* World. */
bool source_runs = true, destination_runs;
bool source_vmm = true, destination_vmm = true;
bool source_host = true, destination_host = true;
bool destination_ran, went_on;	/* history: it ran there; it went on from there */
bool placed;			/* every page is in the destination's RAM */
bool destination_open[CONNS + 1];
bool last_page[CONNS + 1];	/* on its way, on a channel of its own */
bool cut[CONNS + 1];
chan to_destination[CONNS + 1] = [4] of { mtype:message };
chan to_source[CONNS + 1] = [4] of { mtype:message };

/* Budgets. */
byte faults;
bool source_cancels, destination_cancels;

#ifndef POSTCOPY
#define POSTCOPY false
#endif
#ifdef NO_PERSON
#define PERSON false
#else
#define PERSON true
#endif

/*
 * The one way to change a published state; tables.sh greps for it. The print tells
 * run.sh which moves were really made. Not part of the state that is searched.
 */
#define MOVE(role, from, to) \
	assert(role##_state == at_##from); \
	role##_state = at_##to; \
	c_code { { static char once; if (!once) { once = 1; \
		printf("move " #role " " #from " " #to "\n"); } } }

/*
 * An invariant, by name. -DONLY=name checks that one alone, so that run.sh can tell
 * for which reason a sabotaged model fails.
 */
#define one_owner	1
#define no_way_back	2
#define no_restart	3
#define no_stale_run	4
#define not_lost	5
#define in_order	6
#define somebody_says	7
#define an_owner	8
#define it_ends		9
#define true_states	10
#define no_fault	11
#ifndef ONLY
#define ONLY		0
#endif
#define CHECKED(name)	(ONLY == 0 || ONLY == name)
#define HOLDS(name, condition) \
	if \
	:: !CHECKED(name) || (condition) \
	:: else -> \
		c_code { printf("broken " #name "\n"); }; \
		assert(false) \
	fi

#define IN_POSTCOPY(s)	(s == at_postcopy_active || s == at_postcopy_paused || \
	s == at_postcopy_recover_setup || s == at_postcopy_recover)
#define FINAL(s)	(s == at_completed || s == at_failed || s == at_cancelled)
#define SOURCE(at)	(source_worker && source_at == at)
#define DESTINATION(at)	(destination_worker && destination_at == at)
#define FAULT		(faults < FAULTS)

/* Nobody will ever answer for this uuid at the destination: it ended or its host did. */
#define DESTINATION_GONE (!destination_host || destination_done)
#define SOURCE_LOST (source_conn && (cut[source_conn] || \
	(!destination_open[source_conn] && len(to_source[source_conn]) == 0)))
#define DESTINATION_LOST(c) (destination_open[c] && (cut[c] || \
	(source_conn != c && len(to_destination[c]) == 0)))
#define DESTINATION_LISTENS (destination_worker && destination_at != start)

#define MAY_FORCE_SOURCE (PERSON && source_state == at_commit_unknown && \
	((!destination_host && !went_on) || \
	 destination_state == at_failed || destination_state == at_cancelled))
#define MAY_FORCE_DESTINATION (PERSON && destination_state == at_commit_wait && \
	((!source_host && (!POSTCOPY || placed)) || source_state == at_commit_unknown) && \
	!destination_fenced)

/* ---- guests --------------------------------------------------------------- */

inline run_source()
{
	HOLDS(not_lost, source_vmm);
	HOLDS(one_owner, !destination_runs && !went_on);
	HOLDS(no_way_back, !destination_ran || (source_fenced && !destination_host));
	source_runs = true
}

/* As guest.run: harmless if it runs already. */
inline run_destination()
{
	HOLDS(not_lost, destination_vmm);
	HOLDS(one_owner, !source_runs);
	HOLDS(no_restart, !went_on);
	destination_runs = true;
	destination_ran = true
}

inline discard_destination()
{
	HOLDS(not_lost, !destination_runs);
	destination_vmm = false
}

/* ---- connections ----------------------------------------------------------- */

inline drain(queue)
{
	do
	:: len(queue) > 0 -> queue?_
	:: else -> break
	od
}

inline source_closes()
{
	if
	:: source_conn ->
		drain(to_source[source_conn]);
		last_sent = false;
		all_placed = false;
		source_conn = 0
	:: else
	fi
}

inline destination_closes(c)
{
	drain(to_destination[c]);
	last_page[c] = false;
	destination_open[c] = false
}

inline destination_closes_up_to(last)
{
	j = 1;
	do
	:: j <= last -> if
		:: destination_open[j] -> destination_closes(j)
		:: else
		fi;
		j++
	:: else -> break
	od;
	j = 0
}

/* A message for a closed end is lost; on a cut link it may still arrive. */
inline to_destination_send(message)
{
	if
	:: source_conn && destination_open[source_conn] ->
		assert(nfull(to_destination[source_conn]));
		to_destination[source_conn]!message
	:: else
	fi
}

inline to_source_send(c, message)
{
	if
	:: c && source_conn == c && destination_open[c] ->
		assert(nfull(to_source[c]));
		to_source[c]!message
	:: else
	fi
}

inline send_last_page()
{
	last_page[source_conn] = destination_open[source_conn];
	last_sent = true
}

inline open_connection()
{
	source_conn = source_epoch;
	destination_open[source_conn] = true;
	to_destination[source_conn]!HELLO
}

/* ---- the source ------------------------------------------------------------ */

#define HEARS(message)	(source_conn && to_source[source_conn]?[message])
#define BEFORE_COMMIT	(source_at == connecting || source_at == greeted || \
	source_at == copying || source_at == stopped || source_at == sending || \
	source_at == wait_pong || source_at == loaded)
#define AFTER_COMMIT	(source_at == committed || source_at == wait_running || \
	source_at == wait_answer || source_at == paging || source_at == wait_placed || \
	source_at == greeted_again)
/*
 * A destination may say RUNNING by itself before it reads ASK. So these mean the same,
 * in every step that waits for news, and may come twice.
 */
#define HOPEFUL		(source_at == wait_running || source_at == wait_answer || \
	source_at == wait_placed)
#define SAYS_RAN	(HEARS(RUNNING) || HEARS(ANSWER_RAN) || HEARS(PLACED))
#define SAYS_LACKS	(HEARS(RUNNING_LACKS) || HEARS(ANSWER_LACKS))

inline source_receives()
{
	to_source[source_conn]?_
}

inline source_cancelling()
{
	if
	:: source_state == at_setup -> MOVE(source, setup, cancelling)
	:: source_state == at_active -> MOVE(source, active, cancelling)
	:: source_state == at_pre_switchover -> MOVE(source, pre_switchover, cancelling)
	:: source_state == at_device -> MOVE(source, device, cancelling)
	:: source_state == at_postcopy_device -> MOVE(source, postcopy_device, cancelling)
	fi
}

inline source_fails()
{
	if
	:: source_state == at_setup -> MOVE(source, setup, failed)
	:: source_state == at_active -> MOVE(source, active, failed)
	:: source_state == at_pre_switchover -> MOVE(source, pre_switchover, failed)
	:: source_state == at_device -> MOVE(source, device, failed)
	:: source_state == at_postcopy_device -> MOVE(source, postcopy_device, failed)
	:: source_state == at_commit_unknown -> MOVE(source, commit_unknown, failed)
	:: source_state == at_cancelling -> MOVE(source, cancelling, failed)
	fi
}

inline source_ends_here()
{
	if
	:: source_state == at_cancelling -> MOVE(source, cancelling, cancelled)
	:: else -> source_fails()
	fi
}

inline source_completes()
{
	if
	:: source_state == at_device -> MOVE(source, device, completed)
	:: source_state == at_postcopy_device -> MOVE(source, postcopy_device, completed)
	:: source_state == at_postcopy_active -> MOVE(source, postcopy_active, completed)
	:: source_state == at_commit_unknown -> MOVE(source, commit_unknown, completed)
	:: source_state == at_completed
	fi
}

inline source_commit_unknown()
{
	if
	:: source_state == at_device -> MOVE(source, device, commit_unknown)
	:: source_state == at_postcopy_device -> MOVE(source, postcopy_device, commit_unknown)
	:: source_state == at_commit_unknown
	:: source_state == at_completed
	fi
}

inline source_postcopy()
{
	if
	:: source_state == at_postcopy_device -> MOVE(source, postcopy_device, postcopy_active)
	:: source_state == at_commit_unknown -> MOVE(source, commit_unknown, postcopy_active)
	fi
}

inline source_pauses()
{
	if
	:: source_state == at_postcopy_active -> MOVE(source, postcopy_active, postcopy_paused)
	:: source_state == at_postcopy_recover_setup ->
		MOVE(source, postcopy_recover_setup, postcopy_paused)
	:: source_state == at_postcopy_recover -> MOVE(source, postcopy_recover, postcopy_paused)
	:: source_state == at_postcopy_paused
	fi
}

proctype source_main()
{
end:	do
	/* A new worker: only after COMMIT. What do the records say? */
	:: d_step { SOURCE(start) && (heard_refused || source_fenced) -> source_at = undo }
	:: d_step { SOURCE(start) && !heard_refused && !source_fenced &&
		    (source_state == at_device || source_state == at_postcopy_device ||
		     source_state == at_commit_unknown) ->
		source_commit_unknown();
		source_at = lost }
	:: d_step { SOURCE(start) && IN_POSTCOPY(source_state) ->
		source_pauses();
		source_at = lost }
	:: d_step { SOURCE(start) && source_state == at_completed -> source_at = quitting }

	/* Before COMMIT. */
	:: d_step { SOURCE(connecting) && DESTINATION_LISTENS && !source_epoch ->
		source_epoch = 1 }
	:: d_step { SOURCE(connecting) && DESTINATION_LISTENS && source_epoch ->
		open_connection();
		source_at = greeted }
	:: d_step { SOURCE(connecting) && DESTINATION_GONE -> source_at = aborting }
	:: d_step { SOURCE(greeted) && HEARS(HELLO) ->
		source_receives();
		MOVE(source, setup, active);
		source_at = copying }
	:: d_step { SOURCE(copying) && source_state == at_active ->
		MOVE(source, active, pre_switchover) }
	:: d_step { SOURCE(copying) -> source_runs = false; source_at = stopped }
	:: d_step { SOURCE(stopped) ->
		if
		:: !POSTCOPY && source_state == at_active -> MOVE(source, active, device)
		:: !POSTCOPY && source_state == at_pre_switchover ->
			MOVE(source, pre_switchover, device)
		:: POSTCOPY && source_state == at_active -> MOVE(source, active, postcopy_device)
		:: POSTCOPY && source_state == at_pre_switchover ->
			MOVE(source, pre_switchover, postcopy_device)
		fi;
		source_at = sending }
	:: d_step { SOURCE(sending) ->
		to_destination_send(PACKAGE);
		to_destination_send(PING);
#ifdef RUN_BEFORE_PONG
		to_destination_send(RUN);
#endif
		source_at = wait_pong }
	/* The background stream need not wait for the device to load. */
	:: d_step { SOURCE(wait_pong) && POSTCOPY && source_conn && !last_sent ->
		send_last_page() }
	:: d_step { SOURCE(wait_pong) && HEARS(PONG) ->
		source_receives();
		source_at = loaded }

	/* COMMIT, and then RUN. */
	:: d_step { SOURCE(loaded) -> commit = true; source_at = committed }
	:: d_step { SOURCE(committed) ->
		to_destination_send(RUN);
		source_at = wait_running }
	:: d_step { source_worker && HOPEFUL && SAYS_RAN ->
		source_receives();
		if
		:: source_state == at_postcopy_recover_setup ->
			MOVE(source, postcopy_recover_setup, postcopy_recover);
			all_placed = true;
			source_at = greeted_again
		:: else ->
#ifdef ACK_WITHOUT_RECORD
			to_destination_send(ACK);
			source_at = acked_early
		fi }
	:: d_step { SOURCE(acked_early) -> source_completes(); source_at = quitting }
#else
			source_completes();
			source_at = quitting
		fi }
#endif
	:: d_step { source_worker && HOPEFUL && SAYS_LACKS ->
		source_receives();
		if
		:: source_state == at_postcopy_active	/* said twice */
		:: source_state == at_postcopy_recover_setup ->
			MOVE(source, postcopy_recover_setup, postcopy_recover);
			source_at = greeted_again
#ifdef COMPLETED_WHEN_SENT
		:: source_state == at_postcopy_device && last_sent ->
			source_completes();
			source_at = quitting
#endif
		:: else -> source_postcopy(); source_at = paging
		fi }
	:: d_step { SOURCE(paging) ->
		if
		:: source_conn && !last_sent -> send_last_page()
		:: else
		fi;
		source_at = wait_placed }
	:: d_step { SOURCE(wait_placed) && all_placed ->
		source_completes();
		source_at = quitting }
	:: d_step { SOURCE(quitting) ->
		HOLDS(not_lost, destination_ran && (!POSTCOPY || placed));
		source_vmm = false;
		source_at = acking }
	:: d_step { SOURCE(acking) && source_conn ->
		to_destination_send(ACK);
		source_closes();
		source_worker = false;
		source_done = true }
	:: d_step { SOURCE(acking) && !source_conn && source_state != at_completed ->
		source_worker = false;
		source_done = true }
	:: d_step { SOURCE(acking) && !source_conn && source_state == at_completed ->
		source_at = lost }

	/* The guest comes back: cancelled, failed before COMMIT, or refused. */
	:: d_step { source_worker && BEFORE_COMMIT && PERSON && !source_cancels ->
		source_cancels = true;
		source_cancelling();
		source_at = aborting }
	:: d_step { source_worker && BEFORE_COMMIT && SOURCE_LOST ->
		source_at = aborting }
	:: d_step { source_worker && BEFORE_COMMIT && HEARS(REFUSED) ->
		source_receives();
		source_at = aborting }
	:: d_step { SOURCE(aborting) ->
		to_destination_send(ABORT);
		source_closes();
		source_at = undo }
	:: d_step { source_worker && AFTER_COMMIT && (HEARS(REFUSED) || HEARS(ANSWER_REFUSED)) ->
		source_receives();
		heard_refused = true;
		source_at = undo }
#ifdef RECORD_BEFORE_RESUME
	:: d_step { SOURCE(undo) -> source_ends_here(); source_at = undone }
	:: d_step { SOURCE(undone) -> run_source(); source_at = acking }
#else
	:: d_step { SOURCE(undo) -> run_source(); source_at = undone }
	:: d_step { SOURCE(undone) -> source_ends_here(); source_at = acking }
#endif

	/* The link is lost after COMMIT: ask, over a new connection. */
	:: d_step { source_worker && AFTER_COMMIT && SOURCE_LOST ->
		source_closes();
		if
		:: IN_POSTCOPY(source_state) -> source_pauses()
		:: else -> source_commit_unknown()
		fi;
		source_at = lost }
	:: d_step { SOURCE(lost) && DESTINATION_LISTENS && source_epoch < CONNS ->
		source_epoch++;
		if
		:: source_state == at_postcopy_paused ->
			MOVE(source, postcopy_paused, postcopy_recover_setup)
		:: else
		fi;
		source_at = reconnecting }
	:: d_step { SOURCE(reconnecting) && DESTINATION_LISTENS ->
		open_connection();
		to_destination_send(ASK);
		source_at = wait_answer }
	:: d_step { SOURCE(greeted_again) ->
		MOVE(source, postcopy_recover, postcopy_active);
		source_at = paging }
	:: d_step { SOURCE(wait_answer) && HEARS(ANSWER_WAITING) ->
		source_receives();
		HOLDS(in_order, source_state == at_commit_unknown);
		source_at = committed }
	/* "Unknown uuid", from whoever listens there now. */
	:: d_step { (SOURCE(lost) || SOURCE(reconnecting)) && DESTINATION_GONE ->
		if
		:: source_state == at_completed ->
			source_worker = false;
			source_done = true
		:: IN_POSTCOPY(source_state) -> source_pauses(); source_at = stuck
		:: else -> source_at = stuck
		fi }
	:: d_step { source_worker && !source_fenced && MAY_FORCE_SOURCE &&
		    (AFTER_COMMIT || source_at == lost || source_at == stuck ||
		     source_at == reconnecting) ->
		source_fenced = true;
		source_closes();
		source_at = undo }
	:: d_step { source_worker && !source_guardian -> source_guardian = true }
	od
}

#ifdef RESUME_AFTER_COMMIT
#define MUST_ASK false
#else
#define MUST_ASK commit
#endif

proctype source_guard()
{
end:	do
	:: d_step { source_guardian && !source_worker && !source_done &&
		    (source_state == at_failed || source_state == at_cancelled) ->
		source_done = true }
	:: d_step { source_guardian && !source_worker && !source_done && MUST_ASK &&
		    source_state != at_failed && source_state != at_cancelled ->
		source_worker = true }
	/* No COMMIT: the guest comes back. First it runs, then the record says so. */
	:: d_step { source_guardian && !source_worker && !source_done && !MUST_ASK &&
		    !FINAL(source_state) && !source_runs -> run_source() }
	:: d_step { source_guardian && !source_worker && !source_done && !MUST_ASK &&
		    !FINAL(source_state) && source_runs -> source_fails() }
	/* Both are dead: `ferry resume` or `ferry recover` does what a guardian does. */
	:: d_step { PERSON && source_host && !source_guardian && !source_worker &&
		    !source_done -> source_guardian = true }
	od
}

/* ---- the destination ------------------------------------------------------- */

#define RAN_HERE	(destination_state == at_completed || IN_POSTCOPY(destination_state))
#define READY(c)	(DESTINATION(ready) && destination_open[c])
#ifdef NO_EPOCH
#define CURRENT(c)	true
#else
#define CURRENT(c)	(c == destination_epoch)
#endif

inline destination_fails()
{
	if
	:: destination_state == at_setup -> MOVE(destination, setup, failed)
	:: destination_state == at_active -> MOVE(destination, active, failed)
	:: destination_state == at_device -> MOVE(destination, device, failed)
	:: destination_state == at_postcopy_device -> MOVE(destination, postcopy_device, failed)
	:: destination_state == at_commit_wait -> MOVE(destination, commit_wait, failed)
	:: destination_state == at_cancelling -> MOVE(destination, cancelling, failed)
	fi
}

inline destination_cancelling()
{
	if
	:: destination_state == at_setup -> MOVE(destination, setup, cancelling)
	:: destination_state == at_active -> MOVE(destination, active, cancelling)
	:: destination_state == at_device -> MOVE(destination, device, cancelling)
	:: destination_state == at_postcopy_device ->
		MOVE(destination, postcopy_device, cancelling)
	:: destination_state == at_commit_wait -> MOVE(destination, commit_wait, cancelling)
	fi
}

/* What the records say to ASK. A fenced side never says REFUSED: see the document. */
inline answer(c)
{
	if
	:: destination_state == at_completed -> to_source_send(c, ANSWER_RAN)
	:: IN_POSTCOPY(destination_state) -> to_source_send(c, ANSWER_LACKS)
	:: !RAN_HERE && (refused || aborted) ->
		to_source_send(c, ANSWER_REFUSED)
#ifdef FENCE_REFUSES
	:: !RAN_HERE && destination_fenced ->
		to_source_send(c, ANSWER_REFUSED)
#endif
	:: else -> to_source_send(c, ANSWER_WAITING)
	fi
}

inline destination_pauses()
{
	if
	:: destination_state == at_postcopy_active ->
		MOVE(destination, postcopy_active, postcopy_paused)
	:: destination_state == at_postcopy_recover_setup ->
		MOVE(destination, postcopy_recover_setup, postcopy_paused)
	:: destination_state == at_postcopy_recover ->
		MOVE(destination, postcopy_recover, postcopy_paused)
	:: destination_state == at_postcopy_paused
	fi
}

/* One socket of the destination's worker. They share the worker's one thread. */
proctype destination_socket(byte c)
{
	byte j;

end:	do
	:: d_step { READY(c) && to_destination[c]?[HELLO] ->
		to_destination[c]?_;
		if
		:: c <= destination_epoch -> destination_closes(c)
		:: else ->
			destination_epoch = c;
#ifndef NO_EPOCH
			destination_closes_up_to(c - 1);
#endif
			if
			:: destination_state == at_setup ->
				MOVE(destination, setup, active);
				to_source_send(c, HELLO)
			/* The old link is dead, though nobody noticed here. */
			:: destination_state == at_postcopy_active -> destination_pauses()
			:: destination_state == at_postcopy_recover -> destination_pauses()
			:: else
			fi
		fi }
	:: d_step { READY(c) && to_destination[c]?[PACKAGE] && destination_state == at_active ->
		to_destination[c]?_;
		if
		:: !POSTCOPY -> MOVE(destination, active, device)
		:: else -> MOVE(destination, active, postcopy_device)
		fi;
		destination_at = loading }
	:: d_step { READY(c) && to_destination[c]?[PING] && destination_state == at_commit_wait ->
		to_destination[c]?_;
		to_source_send(c, PONG) }
	:: d_step { READY(c) && FINAL(destination_state) &&
		    (to_destination[c]?[PACKAGE] || to_destination[c]?[PING]) ->
		to_destination[c]?_ }
	/* Not ordered with the messages, and not the main thread's work. */
	:: d_step { destination_worker && destination_open[c] && last_page[c] ->
		last_page[c] = false;
		placed = true }
	:: d_step { READY(c) && CURRENT(c) && to_destination[c]?[RUN] ->
		to_destination[c]?_;
		HOLDS(no_stale_run, c == destination_epoch);
		if
		:: destination_state == at_completed -> to_source_send(c, RUNNING)
		:: IN_POSTCOPY(destination_state) -> to_source_send(c, RUNNING_LACKS)
		:: !RAN_HERE && (refused || aborted) ->
			to_source_send(c, REFUSED)
#ifdef FENCE_REFUSES
		:: !RAN_HERE && destination_fenced ->
			to_source_send(c, REFUSED)
#endif
		:: else -> destination_at = got_run
		fi }
	:: d_step { READY(c) && to_destination[c]?[ABORT] ->
		to_destination[c]?_;
		HOLDS(in_order, !accepted || destination_fenced);
		if
		:: FINAL(destination_state) || destination_fenced
		:: !FINAL(destination_state) && !destination_fenced ->
			aborted = waiting;
			destination_at = undo
		fi }
	:: d_step { READY(c) && to_destination[c]?[ASK] ->
		to_destination[c]?_;
		answer(c) }
	:: d_step { READY(c) && to_destination[c]?[ACK] ->
		HOLDS(in_order, FINAL(destination_state));
		destination_closes_up_to(CONNS);
		destination_worker = false;
		destination_done = true }
	:: d_step { destination_worker && DESTINATION_LOST(c) ->
		destination_closes(c) }
	od
}

proctype destination_main()
{
	byte j;

end:	do
	/* A new worker: only with commit-wait recorded. What else is? */
	:: d_step { DESTINATION(start) ->
		first_start = false;
		if
		:: destination_state == at_device || destination_state == at_postcopy_device ->
			destination_at = recorded
		:: IN_POSTCOPY(destination_state) -> destination_pauses(); destination_at = ready
		:: destination_state == at_cancelling -> destination_at = undo
		:: destination_state == at_commit_wait && (refused || aborted) ->
			destination_at = undo
		:: destination_state == at_commit_wait && !refused && !aborted &&
		   (accepted || destination_fenced) -> destination_at = start_guest
#ifdef NO_RAN_RECORD
		:: destination_state == at_completed && accepted -> destination_at = start_guest
#endif
		:: else -> destination_at = ready
		fi }

	/* Load, record, and only then PONG (above). */
	:: d_step { DESTINATION(loading) -> destination_at = loaded }
	:: d_step { DESTINATION(loading) && FAULT -> faults++; destination_at = undo }
	:: d_step { DESTINATION(loaded) -> waiting = true; destination_at = recorded }
	:: d_step { DESTINATION(recorded) ->
		if
		:: !POSTCOPY -> MOVE(destination, device, commit_wait)
		:: else -> MOVE(destination, postcopy_device, commit_wait)
		fi;
		destination_at = ready }
	:: d_step { (DESTINATION(ready) || DESTINATION(loading) || DESTINATION(loaded)) &&
		    !waiting && destination_epoch && !destination_open[destination_epoch] &&
		    !FINAL(destination_state) -> destination_at = undo }

	/* RUN. */
#ifdef START_BEFORE_RUN_ACCEPTED
	:: d_step { DESTINATION(got_run) -> first_start = !accepted;
		destination_at = start_guest }
#else
	:: d_step { DESTINATION(got_run) && !accepted ->
		accepted = true;
		first_start = true;
		destination_at = start_guest }
	:: d_step { DESTINATION(got_run) && accepted -> destination_at = start_guest }
#endif
	:: d_step { DESTINATION(start_guest) -> run_destination(); destination_at = started }
	/* It fails for certain: nothing ran, if nobody tried before. */
	:: d_step { DESTINATION(start_guest) && FAULT ->
		faults++;
		if
#ifdef REFUSE_AFTER_RESTART
		:: !destination_fenced -> destination_at = refusing
#else
		:: first_start && !destination_fenced -> destination_at = refusing
#endif
		:: else -> destination_at = ready
		fi;
		first_start = false }
	/* No answer: it may run or not. A person retries (`ferry recover`), or RUN does. */
	:: d_step { DESTINATION(start_guest) && FAULT ->
		faults++;
		first_start = false;
		destination_at = ready }
	:: d_step { DESTINATION(start_guest) && FAULT ->
		faults++;
		run_destination();
		first_start = false;
		destination_at = ready }
	:: d_step { DESTINATION(ready) && PERSON && destination_state == at_commit_wait &&
		    (accepted || destination_fenced) -> destination_at = start_guest }
	:: d_step { DESTINATION(started) ->
#ifdef START_BEFORE_RUN_ACCEPTED
		accepted = true;
#endif
		first_start = false;
		if
#ifdef NO_RAN_RECORD
		:: destination_state == at_completed
#endif
		:: destination_state == at_commit_wait && (!POSTCOPY || placed) ->
			MOVE(destination, commit_wait, completed)
		:: destination_state == at_commit_wait && POSTCOPY && !placed ->
			MOVE(destination, commit_wait, postcopy_active)
		fi;
		destination_at = telling }
	:: d_step { DESTINATION(telling) ->
		if
		:: destination_state == at_completed -> to_source_send(destination_epoch, RUNNING)
		:: else -> to_source_send(destination_epoch, RUNNING_LACKS)
		fi;
		destination_at = ready }

	/* Postcopy: the rest of the pages, and a link that is lost and found. */
	:: d_step { DESTINATION(ready) && placed && destination_state == at_postcopy_active ->
		MOVE(destination, postcopy_active, completed);
		destination_at = told_placed }
	:: d_step { DESTINATION(told_placed) ->
		to_source_send(destination_epoch, PLACED);
		destination_at = ready }
	:: d_step { DESTINATION(ready) && !destination_open[destination_epoch] &&
		    (destination_state == at_postcopy_active ||
		     destination_state == at_postcopy_recover) -> destination_pauses() }
	:: d_step { DESTINATION(ready) && destination_state == at_postcopy_paused ->
		MOVE(destination, postcopy_paused, postcopy_recover_setup) }
	:: d_step { DESTINATION(ready) && destination_state == at_postcopy_recover_setup &&
		    destination_open[destination_epoch] ->
		MOVE(destination, postcopy_recover_setup, postcopy_recover) }
	:: d_step { DESTINATION(ready) && destination_state == at_postcopy_recover &&
		    destination_open[destination_epoch] ->
		MOVE(destination, postcopy_recover, postcopy_active) }
#ifdef REFUSE_WITHOUT_RECORD
	:: d_step { DESTINATION(refusing) ->
		to_source_send(destination_epoch, REFUSED);
		destination_at = refuse_early }
	:: d_step { DESTINATION(refuse_early) -> refused = true; destination_at = undo }
#else
	:: d_step { DESTINATION(refusing) -> refused = true; destination_at = undo }
#endif

	/* It never ran here and will not. */
	:: d_step { DESTINATION(undo) -> discard_destination(); destination_at = undone }
	:: d_step { DESTINATION(undone) ->
		if
		:: destination_state == at_cancelling -> MOVE(destination, cancelling, cancelled)
		:: else -> destination_fails()
		fi;
		destination_at = bye }
	:: d_step { DESTINATION(bye) ->
		to_source_send(destination_epoch, REFUSED);
		if
		:: waiting -> destination_at = ready
		:: else ->
			destination_closes_up_to(CONNS);
			destination_worker = false;
			destination_done = true
		fi }

	/* The person. */
	:: d_step { (DESTINATION(ready) || DESTINATION(loading) || DESTINATION(loaded)) &&
		    PERSON && !destination_cancels && !waiting && !FINAL(destination_state) ->
		destination_cancels = true;
		destination_cancelling();
		destination_at = undo }
	:: d_step { DESTINATION(ready) && PERSON && !destination_cancels &&
		    destination_state == at_commit_wait && !accepted && !destination_fenced ->
		destination_cancels = true;
#ifdef ABORTED_NOT_DURABLE
		to_source_send(destination_epoch, REFUSED);
		destination_at = cancel_early }
	:: d_step { DESTINATION(cancel_early) ->
#endif
		aborted = true;
		destination_at = cancel_recorded }
	:: d_step { DESTINATION(cancel_recorded) ->
		destination_cancelling();
		destination_at = undo }
	:: d_step { DESTINATION(ready) && MAY_FORCE_DESTINATION ->
#ifdef FORCE_WITHOUT_FENCE
		first_start = true;
#else
		destination_fenced = true;
#endif
		destination_at = start_guest }
	:: d_step { destination_worker && !destination_guardian -> destination_guardian = true }
	od
}

proctype destination_guard()
{
end:	do
	:: d_step { destination_guardian && !destination_worker && !destination_done && waiting ->
		destination_worker = true }
	/* No commit-wait: it never ran, and the source knows nothing but a lost link. */
	:: d_step { destination_guardian && !destination_worker && !destination_done &&
		    !waiting && destination_vmm -> discard_destination() }
	:: d_step { destination_guardian && !destination_worker && !destination_done &&
		    !waiting && !destination_vmm ->
		if
		:: FINAL(destination_state)
		:: else -> destination_fails()
		fi;
		destination_done = true }
	:: d_step { PERSON && destination_host && !destination_guardian && !destination_worker &&
		    !destination_done -> destination_guardian = true }
	od
}

/* ---- the world ------------------------------------------------------------- */

inline source_worker_dies()
{
	if
	:: source_conn -> cut[source_conn] = true; source_closes()
	:: else
	fi;
	source_worker = false;
	source_at = start
}

inline destination_worker_dies()
{
	j = 1;
	do
	:: j <= CONNS -> cut[j] = cut[j] || destination_open[j]; j++
	:: else -> break
	od;
	destination_closes_up_to(CONNS);
	destination_worker = false;
	destination_at = start;
	first_start = false
}

proctype nature()
{
	byte j;

end:	do
	:: d_step { FAULT && source_worker && source_state != at_none ->
		faults++;
		source_worker_dies() }
	:: d_step { FAULT && source_guardian && !source_done ->
		faults++;
		source_guardian = false }
	:: d_step { FAULT && source_worker && source_guardian ->
		faults++;
		source_guardian = false;
		source_worker_dies() }
	:: d_step { FAULT && destination_worker ->
		faults++;
		destination_worker_dies() }
	:: d_step { FAULT && destination_guardian && !destination_done ->
		faults++;
		destination_guardian = false }
	:: d_step { FAULT && destination_worker && destination_guardian ->
		faults++;
		destination_guardian = false;
		destination_worker_dies() }
	:: d_step { FAULT && source_host && destination_host ->
		faults++;
		source_host = false;
		source_runs = false;
		source_vmm = false;
		source_guardian = false;
		source_worker_dies() }
	:: d_step { FAULT && source_host && destination_host ->
		faults++;
		destination_host = false;
		destination_runs = false;
		destination_vmm = false;
		destination_guardian = false;
		destination_worker_dies() }
	/* The guest is migrated on to a third host, or is shut down. */
	:: d_step { destination_runs && destination_state == at_completed ->
		destination_runs = false;
		went_on = true }
	od
}

proctype link(byte c)
{
end:	do
	:: d_step { FAULT && !cut[c] && (source_conn == c || destination_open[c]) ->
		faults++;
		cut[c] = true }
	od
}

#define OWNED	(source_runs || destination_runs || went_on)
#define SOURCE_SAYS (source_state == at_commit_unknown || \
	source_state == at_postcopy_paused || DEAD(source))
#define DESTINATION_SAYS (destination_state == at_commit_wait || DEAD(destination))
/* `ferry status` finds a record that has not ended, and no process: interrupted. */
#define DEAD(side) (side##_host && !side##_worker && !side##_guardian && \
	!side##_done && !FINAL(side##_state))

/* Nothing can move any more: what must be true then? */
proctype judge()
{
end:	timeout ->
	d_step {
	/* Nobody runs: then a living side says so, and what it needs. */
	HOLDS(somebody_says, OWNED || (source_host && SOURCE_SAYS) ||
	      (destination_host && DESTINATION_SAYS) ||
	      /* or the guest died with its host; the other side knows how it ended */
	      (!source_host && FINAL(destination_state)) ||
	      (!source_host && destination_state == at_setup) ||
	      (!destination_host && source_state == at_completed));
	/* With a person there is an owner, or the guest died with its host. */
	HOLDS(an_owner, !PERSON || OWNED || (!source_host && FINAL(destination_state)) ||
	      (!source_host && POSTCOPY && !placed) ||
	      (!destination_host && source_state == at_completed) ||
	      (!destination_host && source_state == at_postcopy_paused));
	/* With a person, and while both hosts live, it ends on both sides: no traps. */
	HOLDS(it_ends, !PERSON || !source_host || !destination_host ||
	      (FINAL(source_state) &&
	       (FINAL(destination_state) || destination_state == at_setup)));
	/* What is published is true. */
	HOLDS(true_states, source_state != at_completed || destination_ran);
	HOLDS(true_states, destination_state != at_completed || destination_ran);
	HOLDS(true_states, !source_host || source_runs ||
	      (source_state != at_failed && source_state != at_cancelled));
	/* No fault: both sides have ended, and only a cancel makes it end otherwise. */
	HOLDS(no_fault, faults || source_cancels || destination_cancels ||
	      (source_state == at_completed && destination_state == at_completed &&
	       source_done && destination_done && !source_vmm && went_on));
	HOLDS(no_fault, faults || (OWNED && FINAL(source_state) &&
	      (FINAL(destination_state) || destination_state == at_setup)))
	}
}

init {
	byte c;

	d_step {
		/* The first record is written before anything can be undone. */
		MOVE(source, none, setup);
		MOVE(destination, none, setup)
	}
	atomic {
		run source_main();
		run source_guard();
		run destination_main();
		run destination_guard();
		run nature();
		run judge();
		c = 1;
		do
		:: c <= CONNS ->
			run destination_socket(c);
			run link(c);
			c++
		:: else -> break
		od
	}
}
