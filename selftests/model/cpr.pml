/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * ferry cpr as a spin model: one host, two VMMs that share the guest's RAM, one record.
 * Documentation/cpr.rst explains it to people.
 *
 * Data, as in switchover.pml: records survive everything, what a worker knows dies with it,
 * the world is what it is. Each d_step is one durable write or one act on a VMM, and a worker
 * can be killed between any two of them.
 *
 * RAM is two bits. "touched": the new VMM, loading, may have changed pages that the old one
 * relies on. "kept": the file with these pages is there; it is a record.
 *
 * Faults, at most FAULTS: a killed worker, a killed guardian, a VMM that dies, a step that
 * fails, a start that fails for certain, a start without an answer (which may have run).
 *
 * The person cancels once, runs `ferry resume` where both processes are dead or it was told
 * to, and forces the old VMM only when the guest never ran in the new one. -DNO_PERSON takes
 * it away.
 *
 * Invariants:
 *   one_owner     the guest never runs in both VMMs;
 *   no_early_run  it runs in the new one only after COMMIT is durable;
 *   no_way_back   it runs in the old one again only when it never ran in the new one, the
 *                 new one has ended, and RAM is what it was;
 *   kept_first    a page is touched only when it was kept;
 *   not_twice     kept pages are put back only while the guest stands still;
 *   resumed_once  the old VMM resumes once, and once more for each worker that found it undone;
 *   run_state     a guest that was paused runs nowhere;
 *   not_lost      the old VMM is quit only when the record says that the guest ran;
 * and when nothing can move any more:
 *   it_ends       all is settled, or a person is needed and is told so;
 *   an_owner      a guest that ran before runs, or died with its VMM;
 *   true_states   the published state is true.
 *
 * Sabotage: each -DNAME breaks one rule, and must break one of these.
 *   RUN_BEFORE_COMMIT      first the guest runs, then it is recorded
 *   RESUME_BEFORE_END      the old VMM resumes before the new one has ended
 *   RESUME_BEFORE_BACK     ... before the kept pages are back
 *   RESUME_IN_STAGE        a stage that fails resumes by itself, and cleanup does it again
 *   TOUCH_BEFORE_KEEP      a page is kept after it could be touched
 *   DROP_AFTER_RESUME      the file of kept pages is removed after the old VMM resumed
 *   NO_FENCE               --force-source leaves the new VMM alone
 *   SECOND_START_REFUSES   a start that fails counts as certain in a worker that did not make
 *                          the first attempt
 *   QUIT_BEFORE_RAN        the old VMM is quit before "ran" is recorded
 *   RUN_THE_PAUSED         the new VMM starts a guest that was paused
 */
#ifndef FAULTS
#define FAULTS 3
#endif

mtype:state = {
	at_none, at_setup, at_active, at_device, at_commit_unknown, at_completed, at_failed,
	at_cancelling, at_cancelled
};
mtype:phase = { open, commit, ran, aborted, fenced };
mtype:step = {
	start, checking, prepared, stopping, stopped, passed, loading, loaded, committed, released,
	started, ran_recorded, quitting, settling, giving_up, ending, putting, dropping, resuming,
	resumed, stuck, over
};

/* Records. */
mtype:state cpr_state = at_none;
mtype:phase phase = open;
bool taken;		/* the new VMM is ours to end */
bool noted;		/* the old VMM's run state, to be brought back */
bool kept;
bool settled;

/* Volatile. */
bool worker = true, guardian = true;
mtype:step at = checking;
bool first = true;	/* this worker wrote COMMIT itself */
bool cancel, told;	/* told: exit 3, with what to type */

/* World. */
bool old_runs, new_runs, was_running;
bool old_vmm = true, new_vmm = true;
bool touched, new_ran;
byte restarts, resumes;	/* history */
byte faults;
bool went_on;		/* the guest ran in the old VMM after it was resumed there */

#ifdef NO_PERSON
#define PERSON false
#else
#define PERSON true
#endif

/* As in switchover.pml. */
#define MOVE(role, from, to) \
	assert(role##_state == at_##from); \
	role##_state = at_##to; \
	c_code { { static char once; if (!once) { once = 1; \
		printf("move " #role " " #from " " #to "\n"); } } }

#define one_owner	1
#define no_early_run	2
#define no_way_back	3
#define kept_first	4
#define not_twice	5
#define resumed_once	6
#define run_state	7
#define not_lost	8
#define it_ends		9
#define an_owner	10
#define true_states	11
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

#define FINAL(s)	(s == at_completed || s == at_failed || s == at_cancelled)
#define FAULT		(faults < FAULTS)
#define AT(step)	(worker && at == step)
#define BEFORE_COMMIT	(at == checking || at == prepared || at == stopping || at == stopped || \
	at == passed || at == loading || at == loaded)

inline run_new()
{
	HOLDS(one_owner, !old_runs);
	HOLDS(no_early_run, phase == commit || phase == ran);
	HOLDS(run_state, was_running);
	new_runs = new_vmm;
	new_ran = new_ran || new_vmm
}

inline resume_old()
{
	if
	:: old_vmm && was_running && noted ->
		HOLDS(one_owner, !new_runs);
		HOLDS(no_way_back, !new_ran && (!taken || !new_vmm) && !touched);
		resumes++;
		HOLDS(resumed_once, resumes <= restarts + 1);
		old_runs = true;
		went_on = true
	:: else
	fi
}

/* From whatever it is to failed or cancelled; nothing if it is there already. */
inline fails()
{
	if
	:: cpr_state == at_setup -> MOVE(cpr, setup, failed)
	:: cpr_state == at_active -> MOVE(cpr, active, failed)
	:: cpr_state == at_device -> MOVE(cpr, device, failed)
	:: cpr_state == at_commit_unknown -> MOVE(cpr, commit_unknown, failed)
	:: cpr_state == at_cancelling && cancel -> MOVE(cpr, cancelling, cancelled)
	:: cpr_state == at_cancelling && !cancel -> MOVE(cpr, cancelling, failed)
	:: FINAL(cpr_state)
	fi
}

inline cancelling()
{
	if
	:: cpr_state == at_setup -> MOVE(cpr, setup, cancelling)
	:: cpr_state == at_active -> MOVE(cpr, active, cancelling)
	:: cpr_state == at_device -> MOVE(cpr, device, cancelling)
	:: else
	fi
}

inline give_up()
{
#ifdef RESUME_IN_STAGE
	resume_old();
#endif
	at = giving_up
}

proctype main_worker()
{
end:	do
	/* Another worker: the record says what was decided. */
	:: d_step { AT(start) && phase == commit ->
		if
		:: cpr_state == at_device -> MOVE(cpr, device, commit_unknown)
		:: else
		fi;
		at = committed }
	:: d_step { AT(start) && phase == ran ->
		if
		:: cpr_state == at_device -> MOVE(cpr, device, commit_unknown)
		:: else
		fi;
		at = quitting }
	:: d_step { AT(start) && (phase == open || phase == aborted) -> at = giving_up }
	:: d_step { AT(start) && phase == fenced -> at = ending }

	:: d_step { AT(checking) -> taken = true; noted = false; at = prepared }
	:: d_step { AT(prepared) && cpr_state == at_setup -> MOVE(cpr, setup, active) }
	:: d_step { AT(prepared) && cpr_state == at_active -> MOVE(cpr, active, device) }
	:: d_step { AT(prepared) && cpr_state == at_device -> noted = true; at = stopping }
	:: d_step { AT(stopping) && old_vmm -> old_runs = false; at = stopped }
	:: d_step { AT(stopped) -> at = passed }
#ifdef TOUCH_BEFORE_KEEP
	:: d_step { AT(passed) && new_vmm -> HOLDS(kept_first, kept); touched = true; at = loading }
	:: d_step { AT(loading) && new_vmm -> kept = true; at = loaded }
#else
	:: d_step { AT(passed) -> kept = true; at = loading }
	/* Reading the saved state is all that is wanted of the old VMM from here on. */
	:: d_step { AT(loading) && new_vmm -> HOLDS(kept_first, kept); touched = true; at = loaded }
#endif
#ifdef RUN_BEFORE_COMMIT
	:: d_step { AT(loaded) && new_vmm && was_running && !new_runs -> run_new() }
#endif
	:: d_step { AT(loaded) && !cancel -> phase = commit; first = true; at = committed }

	:: d_step { BEFORE_COMMIT && worker && cancel -> cancelling(); give_up() }
	:: d_step { BEFORE_COMMIT && worker && FAULT -> faults++; give_up() }
	:: d_step { AT(stopping) && !old_vmm -> give_up() }
	:: d_step { (AT(loading) || AT(passed)) && !new_vmm -> give_up() }

	/* What loads may go on touching: from here on it may. */
	:: d_step { AT(committed) -> at = released }
#ifdef RUN_THE_PAUSED
	:: d_step { AT(released) && new_vmm -> run_new(); at = started }
#else
	:: d_step { AT(released) && new_vmm ->
		if
		:: was_running -> run_new()
		:: else
		fi;
		at = started }
#endif
	/* It certainly did not run: only the first attempt can know that. */
	:: d_step { AT(released) && was_running && FAULT &&
#ifdef SECOND_START_REFUSES
		    true ->
#else
		    first ->
#endif
		faults++;
		at = giving_up }
	/* No answer, or no VMM: it may have run. */
	:: d_step { AT(released) && was_running && FAULT && new_vmm ->
		faults++;
		run_new();
		new_vmm = false;
		new_runs = false;
		at = stuck }
	:: d_step { AT(released) && was_running && FAULT ->
		faults++;
		new_vmm = false;
		at = stuck }
	:: d_step { AT(released) && !new_vmm ->
		at = stuck }
	:: d_step { AT(stuck) ->
		if
		:: cpr_state == at_device -> MOVE(cpr, device, commit_unknown)
		:: else
		fi;
		told = true;
		worker = false;
		guardian = false }
#ifdef QUIT_BEFORE_RAN
	:: d_step { AT(started) && old_vmm -> HOLDS(not_lost, phase == ran); old_vmm = false }
#endif
	:: d_step { AT(started) -> phase = ran; at = ran_recorded }
	:: d_step { AT(ran_recorded) -> kept = false; at = quitting }
	:: d_step { AT(quitting) ->
		HOLDS(not_lost, phase == ran);
		kept = false;
		old_vmm = false;
		at = settling }
	:: d_step { AT(settling) ->
		if
		:: cpr_state == at_device -> MOVE(cpr, device, completed)
		:: cpr_state == at_commit_unknown -> MOVE(cpr, commit_unknown, completed)
		:: cpr_state == at_completed
		fi;
		settled = true;
		at = over;
		worker = false;
		guardian = false }

	/* Back. */
	:: d_step { AT(giving_up) -> phase = aborted; at = ending }
#ifdef RESUME_BEFORE_END
	:: d_step { AT(ending) -> resume_old(); at = putting }
	:: d_step { AT(putting) -> touched = false; at = dropping }
	:: d_step { AT(dropping) -> new_vmm = new_vmm && !taken; new_runs = new_runs && new_vmm;
		kept = false; at = resumed }
#else
#ifdef RESUME_BEFORE_BACK
	:: d_step { AT(ending) -> new_vmm = new_vmm && !taken; new_runs = new_runs && new_vmm;
		at = resuming }
	:: d_step { AT(resuming) -> resume_old(); at = putting }
	:: d_step { AT(putting) -> touched = false; at = dropping }
	:: d_step { AT(dropping) -> kept = false; at = resumed }
#else
#ifdef DROP_AFTER_RESUME
	:: d_step { AT(ending) -> new_vmm = new_vmm && !taken; new_runs = new_runs && new_vmm;
		at = putting }
	:: d_step { AT(putting) ->
		HOLDS(not_twice, !kept || !went_on);
		touched = touched && !kept; at = resuming }
	:: d_step { AT(resuming) -> resume_old(); at = dropping }
	:: d_step { AT(dropping) -> kept = false; at = resumed }
#else
	:: d_step { AT(ending) ->
#ifdef NO_FENCE
		if
		:: phase != fenced ->
			new_vmm = new_vmm && !taken;
			new_runs = new_runs && new_vmm
		:: else
		fi;
#else
		new_vmm = new_vmm && !taken;
		new_runs = new_runs && new_vmm;
#endif
		at = putting }
	:: d_step { AT(putting) ->
		HOLDS(not_twice, !kept || !went_on);
		touched = touched && !kept;
		at = dropping }
	:: d_step { AT(dropping) -> kept = false; at = resuming }
	:: d_step { AT(resuming) -> resume_old(); at = resumed }
#endif
#endif
#endif
	/* The journal: there is nothing left to bring back. */
	:: d_step { AT(resumed) && noted -> noted = false }
	:: d_step { AT(resumed) && !noted ->
		fails();
		settled = true;
		at = over;
		worker = false;
		guardian = false }
	od
}

/* Everybody else. */
proctype others()
{
end:	do
	:: d_step { worker && FAULT -> faults++; worker = false; cancel = false }
	:: d_step { guardian && FAULT -> faults++; guardian = false }
	/* The worker notices. */
	:: d_step { worker && !guardian && !told -> guardian = true }
	:: d_step { !worker && guardian && !settled && !told && restarts < FAULTS + 2 ->
		restarts++;
		first = false;
		at = start;
		worker = true }
	:: d_step { old_vmm && FAULT -> faults++; old_vmm = false; old_runs = false }
	:: d_step { new_vmm && FAULT -> faults++; new_vmm = false; new_runs = false }
	:: d_step { PERSON && worker && !cancel && BEFORE_COMMIT -> cancel = true }
	/* ferry resume ID */
	:: d_step { PERSON && !worker && !guardian && !settled && (phase != commit || new_vmm) &&
		    restarts < FAULTS + 2 ->
		restarts++;
		told = false;
		first = false;
		cancel = false;
		at = start;
		worker = true;
		guardian = true }
	/* ferry resume ID --force-source */
	:: d_step { PERSON && !worker && !guardian && !settled && phase == commit && !new_ran &&
		    was_running && restarts < FAULTS + 2 ->
		restarts++;
		told = false;
		first = false;
		phase = fenced;
		at = start;
		worker = true;
		guardian = true }
	od
}

proctype judge()
{
	timeout;
	/* A person that may not force, or cannot know, has to start it from its disks. */
	HOLDS(it_ends, settled || !PERSON || (phase == commit && (new_ran || !was_running) && !new_vmm));
	HOLDS(it_ends, settled || told || !guardian);
	HOLDS(true_states, !settled || FINAL(cpr_state));
	HOLDS(true_states, !settled || (cpr_state == at_completed) == (phase == ran));
	if
	:: settled && was_running && phase == ran -> HOLDS(an_owner, new_runs || !new_vmm)
	:: settled && was_running && phase != ran -> HOLDS(an_owner, old_runs || !old_vmm)
	:: else
	fi
}

init {
	if
	:: was_running = true
	:: was_running = false
	fi;
	old_runs = was_running;
	MOVE(cpr, none, setup);
	atomic {
		run main_worker();
		run others();
		run judge()
	}
}
