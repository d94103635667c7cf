#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Run the test suites and count; scripts/check is the way in.

    scripts/check [--long] [--list] [--jobs N] [SUITE...]

Most suites wait more than they compute, so one runs beside another for each processor;
`build` runs before all of them and `demo` after. A suite is a command that prints TAP. The first ones below are targets of the
Makefile; every selftests/NAME/run.sh is one more, found by being there. What a
suite prints goes to build/check/NAME.log; tap.py says what counts as what. A
suite that leaves a process behind has a failure, and the process is ended.

The last line is `N passed, N failed, N skipped`, and the exit status is 1 if
anything failed.
"""
import argparse
import ctypes
import glob
import json
import os
import re
import select
import signal
import subprocess
import sys
import time

import tap

LOGS = 'build/check'
TOTAL_SECONDS = 45 * 60
LONG_FACTOR = 6
DEFAULT_TIMEOUT = 420
SHOWN_LINES = 50     # of each failed test, and of the end of a log that shows none
SHOWN_TESTS = 5
E2E_TIMEOUTS = {'precopy': 720, 'faults': 600, 'postcopy': 600}
# What scripts/check runs of a file that takes too long: the tests whose names contain
# one of these words. --long runs the whole file.
E2E_PART = {
    'postcopy': ['moves', 'by_command', 'discard-fail', 'package-kill', 'cancelled_while',
                 'lacks-kill', 'start-kill', 'under_way/recv', 'link_cut', 'no_page_is_torn',
                 'it_starts/worker', 'mapped_beforehand/now'],
    'postcopy_recover': ['paused_by', 'another_address', 'answered-worker', 'told-worker',
                         'under_way/recv', 'run-accepted', 'commit-send', 'load-recv', 'destination-dead',
                         'spill_errors', 'released', 'options_survive/guardian',
                         'further_process_waits_too/lives'],
    'postcopy_balloon': ['during'],
    'postcopy_faults': ['kill_worker/commit', 'kill_guardian/run-accepted', 'answered-moment'],
    'postcopy_peers': ['out_of_order', 'channels', 'nobody_lacks', 'not-told'],
    'faults': ['kill_', 'the_table_has_every_stage', 'cut_link_for_a_moment',
               'cut_link/bulk', 'cut_link/commit', 'fail/package', 'fail/run'],
}
# Virtual machines inside a virtual machine, both emulated: minutes for each step.
LONG_ONLY = {'vm'}
MAKE = ['make', '--no-print-directory', '-j%d' % (os.cpu_count() or 1)]


class Suite:
    """plain: its exit status is its one result. needs: without this file it fails. alone: no
    other one runs at the same time. waits: it leaves most of a processor to others."""
    def __init__(self, name, command, timeout=DEFAULT_TIMEOUT, plain=False, needs=None,
                 alone=False, waits=False):
        self.name, self.command, self.timeout = name, command, timeout
        self.plain, self.needs, self.alone, self.waits = plain, needs, alone, waits


def from_script(name, timeout=DEFAULT_TIMEOUT):
    path = 'selftests/%s/run.sh' % name
    return Suite(name, [path], timeout, needs=path)


def end_to_end(long):
    """Each file of selftests/e2e is a suite; without --long of some only a part is run."""
    suites = []
    for path in sorted(glob.glob('selftests/e2e/test_*.py')):
        name = os.path.basename(path)[len('test_'):-len('.py')]
        part = [] if long else E2E_PART.get(name, [])
        timeout = E2E_TIMEOUTS.get(name, DEFAULT_TIMEOUT)
        suites.append(Suite('e2e-' + name, [path] + part, timeout, waits=True))
    return suites


def all_suites(long=False):
    """Cheap ones first; seconds are several times what an idle two-core machine needs."""
    suites = [
        # All that others would make in build/, so that they find it made.
        Suite('build', MAKE + ['all', 'test-programs'], 420, plain=True, alone=True),
        from_script('layers', 60),
        from_script('harness', 120),
        from_script('install', 60),
        from_script('model', 300),
        Suite('unit', MAKE + ['unit'], 300),
        Suite('asan', MAKE + ['asan'], 600),
        Suite('tsan', MAKE + ['tsan'], 420),
        Suite('fuzz', MAKE + ['fuzz'], 300),
        Suite('tidy', MAKE + ['tidy'], 720),
        from_script('kmod', 240),
        from_script('inject', 240),
        from_script('dirty', 300),
        from_script('hosted', 600),
        from_script('module', 720),
    ]
    known = {s.name for s in suites}
    for path in sorted(glob.glob('selftests/*/run.sh')):
        name = path.split('/')[1]
        if name not in known and (long or name not in LONG_ONLY):
            suites.append(from_script(name))
    if long:
        path = 'selftests/hosted/run.sh'
        suites += [Suite('hosted-' + kernel, [path, kernel], 480, needs=path)
                   for kernel in ('6.12', '7.2')]
    suites += end_to_end(long)
    suites.append(Suite('demo', ['scripts/demo'], 300, plain=True, needs='scripts/demo',
                        alone=True))
    return suites


def adopt_orphans():
    """Make processes whose parent ends our children, so that none gets away unseen."""
    PR_SET_CHILD_SUBREAPER = 36
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def children():
    """Our living children as {pid: command}; dead ones are reaped on the way."""
    found = {}
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return found
    with open('/proc/self/task/%d/children' % os.getpid()) as f:
        for pid in map(int, f.read().split()):
            try:
                with open('/proc/%d/cmdline' % pid, 'rb') as cmdline:
                    found[pid] = cmdline.read().replace(b'\0', b' ').decode(errors='replace')
            except OSError:
                pass
    return found


def end_strays(grace):
    """Wait a moment for what a suite left running, then kill it; return what it was."""
    deadline = time.monotonic() + grace
    while children() and time.monotonic() < deadline:
        time.sleep(0.05)
    strays = children()
    # The children of a killed stray come to us in their turn.
    while children():
        for pid in children():
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    return ['left running: %d %s' % (pid, cmd[:150]) for pid, cmd in strays.items()]


def run_suite(suite, timeout, env):
    """Return what tap.judge() does."""
    log_path = os.path.join(LOGS, suite.name + '.log')
    if suite.needs and not os.access(suite.needs, os.X_OK):
        return [(tap.FAILED, suite.name, 'there is no program ' + suite.needs)]
    with open(log_path, 'wb') as log:
        try:
            _, status, timed_out = tap.run(suite.command, timeout, grace=15, env=env,
                                           stdout=log, stderr=subprocess.STDOUT)
        except OSError as e:
            return [(tap.FAILED, suite.name, 'cannot run: %s' % e)]
        finally:
            strays = end_strays(5)
    with open(log_path, errors='replace') as log:
        text = log.read()
    if suite.plain:
        text = '1..1\n%s 1 - %s\n' % ('not ok' if status else 'ok', suite.name)
    results = tap.judge(suite.name, text, status, timed_out)
    return results + [(tap.FAILED, suite.name, stray) for stray in strays]


def report(suite, results, seconds):
    """One line a suite; then what was skipped, and what failed with the log's end."""
    count = count_of(results)
    print('%-14s %4d passed %4d failed %4d skipped %7.1f s'
          % (suite.name, count[tap.PASSED], count[tap.FAILED], count[tap.SKIPPED], seconds))
    for outcome, test, reason in results:
        if outcome == tap.SKIPPED:
            print('    SKIP %s: %s' % (test, reason))
        elif outcome == tap.FAILED:
            print('    FAIL %s%s' % (test, ': ' + reason if reason else ''))
    path = os.path.join(LOGS, suite.name + '.log')
    if count[tap.FAILED] and os.path.exists(path):
        with open(path, errors='replace') as log:
            lines = excerpt(log.read().splitlines())
        print('    from %s:' % path)
        print(''.join('    | %s\n' % line for line in lines), end='')
    sys.stdout.flush()


def excerpt(lines):
    """What a log says about its first failed tests, or its end if it names none."""
    shown, i, tests = [], 0, 0
    while i < len(lines) and tests < SHOWN_TESTS:
        if lines[i].startswith('not ok'):
            tests += 1
            end = i + 1
            while end < len(lines) and not re.match(r'(not )?ok\b|1\.\.\d', lines[end]):
                end += 1
            shown += lines[i:min(end, i + SHOWN_LINES)]
            if end - i > SHOWN_LINES:
                shown.append('... %d more lines' % (end - i - SHOWN_LINES))
            i = end
        else:
            i += 1
    return shown or lines[-SHOWN_LINES:]


def count_of(results):
    count = {tap.PASSED: 0, tap.FAILED: 0, tap.SKIPPED: 0}
    for outcome, _, _ in results:
        count[outcome] += 1
    return count


class Job:
    """A suite under way, in a process of its own, so that strays are known by their suite."""
    def __init__(self, suite, timeout, env):
        self.suite, self.started = suite, time.monotonic()
        self.read_fd, write_fd = os.pipe()
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid:
            os.close(write_fd)
            return
        status = 1
        try:
            adopt_orphans()
            results = run_suite(suite, timeout, env)
            with os.fdopen(write_fd, 'w') as out:
                json.dump(results, out)
            status = 0
        finally:
            os._exit(status)

    def end(self):
        """Its results, once it can be read."""
        with os.fdopen(self.read_fd) as said:
            text = said.read()
        os.waitpid(self.pid, 0)
        if not text:
            return [(tap.FAILED, self.suite.name, 'the process that ran it ended')]
        return [tuple(result) for result in json.loads(text)]


def next_suite(waiting, running):
    """Take out of waiting what may start now: if possible of another sort than what runs."""
    if not waiting or any(suite.alone for suite in running):
        return None
    if not running:
        return waiting.pop(0)
    fit = [suite for suite in waiting if not suite.alone]
    fit.sort(key=lambda suite: suite.waits == running[0].waits)
    if not fit or waiting[0].alone:
        return None
    waiting.remove(fit[0])
    return fit[0]


def run_all(suites, jobs, end, factor, env):
    """Run and report them; return all results."""
    waiting, running, everything = list(suites), [], []
    try:
        while waiting or running:
            suite = None
            if len(running) < jobs:
                suite = next_suite(waiting, [job.suite for job in running])
            if suite:
                left = end - time.monotonic()
                running.append(Job(suite, max(1, min(suite.timeout * factor, left)), env))
                continue
            ready = select.select([job.read_fd for job in running], [], [])[0]
            for job in [job for job in running if job.read_fd in ready]:
                running.remove(job)
                results = job.end()
                report(job.suite, results, time.monotonic() - job.started)
                everything += results
    finally:
        for job in running:
            os.kill(job.pid, signal.SIGTERM)
            os.waitpid(job.pid, 0)
    return everything


def choose(names, long):
    suites = all_suites(long)
    known = [s.name for s in suites]
    for name in names:
        if name not in known:
            sys.exit("check: there is no suite '%s'; know %s" % (name, ' '.join(known)))
    return [s for s in suites if not names or s.name in names]


def main():
    parser = argparse.ArgumentParser(prog='scripts/check')
    parser.add_argument('--long', action='store_true', help='more time for fuzzers and sweeps')
    parser.add_argument('--list', action='store_true', help='print the names of the suites')
    parser.add_argument('--jobs', type=int, default=min(2, os.cpu_count() or 1), metavar='N',
                        help='suites at the same time')
    parser.add_argument('suites', nargs='*', metavar='SUITE')
    args = parser.parse_args()
    suites = choose(args.suites, args.long)
    if args.list:
        print(*[s.name for s in suites], sep='\n')
        return 0
    env = dict(os.environ, WERROR='1') # what differs in that would be built anew
    if args.long:
        env.update(FERRY_TEST_LONG='1', FUZZ_SECONDS='120')
    os.makedirs(LOGS, exist_ok=True)
    tap.die_tidily()
    end = time.monotonic() + (TOTAL_SECONDS if not args.long else 1e9)
    factor = (LONG_FACTOR if args.long else 1) * max(1, args.jobs) # they share the processors
    everything = run_all(suites, max(1, args.jobs), end, factor, env)
    count = count_of(everything)
    print('%d passed, %d failed, %d skipped'
          % (count[tap.PASSED], count[tap.FAILED], count[tap.SKIPPED]))
    return 1 if count[tap.FAILED] or not count[tap.PASSED] else 0


if __name__ == '__main__':
    sys.exit(main())
