#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Run test programs that print TAP and judge what they printed.

    scripts/tap.py run [--timeout SECONDS] PROGRAM...

runs each program and prints one TAP stream for all of them. What the words mean
is decided here once, for every suite:

  - a skip is never a pass, and keeps its reason;
  - an output without a plan, with fewer results than planned, with none at all,
    or of a program that was killed or failed without a `not ok`, has a failure;
  - several plans in one output add up (cmocka prints one a group of tests).

$TAP_WRAPPER is put in front of every program, $TAP_TIMEOUT is the default timeout.
"""
import argparse
import os
import re
import shlex
import signal
import subprocess
import sys

PLAN = re.compile(r'^1\.\.(\d+)\s*(?:#\s*(skip\S*)\s*(.*))?$', re.I)
# What follows a '#' is a directive or a remark; only there does skip mean skip.
RESULT = re.compile(r'^(not )?ok\b[ \t]*\d*[ \t]*(?:-[ \t]*)?(.*?)'
                    r'(?:(?:^|[ \t]*)#[ \t]*(?:skip\S*[ \t]*(.*)|.*))?$', re.I)
# cmocka's skip() prints `not ok 3 # SKIP name`, and the test its reason before that.
SKIP_REASON = re.compile(r'^#?[ \t]*skip(?:ped)?\b[:, \t]*(.+)', re.I)
KSFT_SKIP = 4       # kselftest's exit status of a program that skipped all
PASSED, FAILED, SKIPPED = 'passed', 'failed', 'skipped'


def judge(name, text, status, timed_out=None):
    """Return [(outcome, test, reason)] for the output of one program.

    status is that of subprocess: negative when a signal ended the program.
    timed_out is the number of seconds after which it was killed, or None.
    """
    results, planned, plans = [], 0, 0
    wrong, said = [], ''
    for line in text.splitlines():
        plan = PLAN.match(line)
        if plan:
            plans += 1
            planned += int(plan[1])
            if int(plan[1]) == 0 and plan[2]:
                planned += 1
                results.append((SKIPPED, name, plan[3] or 'no reason given'))
            continue
        result = RESULT.match(line)
        if result:
            failed, test, skip = result[1], result[2], result[3]
            if skip is not None and failed and not test:
                results.append((SKIPPED, skip or name, said or 'no reason given'))
            elif failed:
                results.append((FAILED, test or name, ''))
            elif skip is not None:
                results.append((SKIPPED, test or name, skip or said or 'no reason given'))
            else:
                results.append((PASSED, test or name, ''))
            said = ''
        elif SKIP_REASON.match(line):
            said = SKIP_REASON.match(line)[1]
        elif line.startswith('Bail out!'):
            wrong.append(line)
    if timed_out is not None:
        wrong.append('killed after %g seconds' % timed_out)
    elif status < 0:
        wrong.append('killed by %s' % signal.Signals(-status).name)
    elif status == KSFT_SKIP and {r[0] for r in results} == {SKIPPED}:
        pass
    elif status and not any(r[0] == FAILED for r in results):
        wrong.append('exit status %d but no test failed' % status)
    if not plans:
        wrong.append('no TAP plan was printed')
    elif planned != len(results):
        wrong.append('%d tests planned but %d reported' % (planned, len(results)))
    elif not results:
        wrong.append('not one test')
    return results + [(FAILED, name, reason) for reason in wrong]


def run(command, timeout, grace=5, **options):
    """Run a command in a session of its own; return (output, status, timed_out)."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True,
                               **options)
    try:
        output = process.communicate(timeout=timeout)[0]
        return output, process.returncode, None
    except subprocess.TimeoutExpired:
        kill_group(process, grace)
        return drain(process), process.returncode, timeout
    except BaseException:
        kill_group(process, grace)
        raise


def drain(process):
    """What was printed before the end; a stray grandchild may keep the pipe open."""
    try:
        return process.communicate(timeout=2)[0]
    except subprocess.TimeoutExpired as e:
        return e.output or b''


def kill_group(process, grace):
    """TERM first: a test with a VM should get the chance to take it down."""
    for sig in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, sig)
            process.wait(timeout=grace)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            pass


def die_tidily():
    """Make TERM an exception, so that nothing that was started stays behind."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


def run_programs(programs, timeout):
    wrapper = shlex.split(os.environ.get('TAP_WRAPPER', ''))
    env = dict(os.environ, CMOCKA_MESSAGE_OUTPUT='TAP')
    number, failed = 0, 0
    for program in programs:
        name = os.path.basename(program)
        path = program if os.sep in program else os.path.join('.', program)
        try:
            output, status, timed_out = run(wrapper + [path], timeout, env=env,
                                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            text = output.decode(errors='replace')
            results = judge(name, text, status, timed_out)
        except OSError as e:
            text, results = '', [(FAILED, name, 'cannot run %s: %s' % (path, e.strerror))]
        for outcome, test, reason in results:
            number += 1
            label = name if test == name else '%s: %s' % (name, test)
            if outcome == SKIPPED:
                print('ok %d - %s # SKIP %s' % (number, label, reason))
            elif outcome == PASSED:
                print('ok %d - %s' % (number, label))
            else:
                failed += 1
                print('not ok %d - %s%s' % (number, label, ': ' + reason if reason else ''))
        if any(r[0] == FAILED for r in results):
            print(''.join('# %s\n' % line for line in text.splitlines()), end='')
        sys.stdout.flush()
    print('1..%d' % number)
    return 1 if failed or not number else 0


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('command', choices=['run'])
    parser.add_argument('--timeout', type=float,
                        default=float(os.environ.get('TAP_TIMEOUT', 300)))
    parser.add_argument('programs', nargs='*')
    args = parser.parse_intermixed_args()
    die_tidily()
    return run_programs(args.programs, args.timeout)


if __name__ == '__main__':
    sys.exit(main())
