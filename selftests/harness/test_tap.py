#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""What scripts/tap.py and scripts/suites.py count, they count right. Prints TAP."""
import contextlib
import io
import os
import re
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(ROOT, 'scripts'))
sys.dont_write_bytecode = True
import suites   # noqa: E402
import tap      # noqa: E402

# name: (output, exit status, timed out, outcomes as P, F, S in order, reasons)
JUDGED = {
    'passes': ('1..2\nok 1 - a\nok 2 - b\n', 0, None, 'PP', []),
    'plan_at_the_end': ('ok 1 - a\n1..1\n', 0, None, 'P', []),
    'failure': ('1..2\nok 1 - a\nnot ok 2 - b\n', 1, None, 'PF', []),
    'failure_is_one_whatever_the_status': ('1..1\nnot ok 1 - a\n', 0, None, 'F', []),
    'skip_is_no_pass': ('1..1\nok 1 - a # SKIP no kvm\n', 0, None, 'S', ['no kvm']),
    'skip_of_a_whole_program': ('1..0 # SKIP no qemu\n', 4, None, 'S', ['no qemu']),
    'skip_as_cmocka_prints_it': ('1..2\nok 1 - a\nSKIP: no /dev/kvm\nnot ok 2 # SKIP b\n', 0,
                                 None, 'PS', ['no /dev/kvm']),
    'failed_test_cannot_skip': ('1..1\nnot ok 1 - a # SKIP later\n', 1, None, 'F', []),
    'skip_in_a_name_is_a_name': ('1..1\nok 1 - skips_the_hole\n', 0, None, 'P', []),
    'remark_is_no_skip': ('1..1\nok 1 - a # 1.2 s\n', 0, None, 'P', []),
    'plans_add_up': ('1..1\nok 1 - a\n1..1\nok 1 - b\n', 0, None, 'PP', []),
    'subtests_are_not_counted': ('1..1\n    ok 1 - x\n    1..1\nok 1 - a\n', 0, None, 'P', []),
    'no_plan': ('ok 1 - a\n', 0, None, 'PF', ['no TAP plan was printed']),
    'nothing': ('', 0, None, 'F', ['no TAP plan was printed']),
    'zero_tests': ('1..0\n', 0, None, 'F', ['not one test']),
    'too_few': ('1..3\nok 1 - a\n', 0, None, 'PF', ['3 tests planned but 1 reported']),
    'too_many': ('1..1\nok 1 - a\nok 2 - b\n', 0, None, 'PPF',
                 ['1 tests planned but 2 reported']),
    'crash_after_all': ('1..1\nok 1 - a\n', -11, None, 'PF', ['killed by SIGSEGV']),
    'unexplained_status': ('1..1\nok 1 - a\n', 3, None, 'PF',
                           ['exit status 3 but no test failed']),
    'status_4_with_a_pass': ('1..2\nok 1 - a\nok 2 # SKIP x\n', 4, None, 'PSF',
                             ['x', 'exit status 4 but no test failed']),
    'timeout': ('1..2\nok 1 - a\n', -15, 7, 'PFF',
                ['killed after 7 seconds', '2 tests planned but 1 reported']),
    'bail_out': ('1..1\nok 1 - a\nBail out! no disk\n', 1, None, 'PFF',
                 ['Bail out! no disk', 'exit status 1 but no test failed']),
}


def judged(output, status, timed_out, outcomes, reasons):
    results = tap.judge('prog', output, status, timed_out)
    seen = ''.join(r[0][0].upper() for r in results), [r[2] for r in results if r[2]]
    assert seen == (outcomes, reasons), seen


def script(folder, text):
    path = os.path.join(folder, 'program')
    with open(path, 'w') as f:
        f.write('#!/bin/sh\n' + text)
    os.chmod(path, 0o755)
    return path


def suite_of(text, timeout=20, **options):
    """Run a shell text as a suite; return its outcomes and reasons."""
    with tempfile.TemporaryDirectory() as folder:
        suites.LOGS = folder
        suite = suites.Suite('s', [script(folder, text)], **options)
        results = suites.run_suite(suite, timeout, dict(os.environ))
    return ''.join(r[0][0].upper() for r in results), [r[2] for r in results if r[2]]


def suite_counts():
    assert suite_of('echo 1..1; echo ok 1 - a') == ('P', [])


def suite_plain_status():
    assert suite_of('exit 0', plain=True) == ('P', [])
    assert suite_of('exit 3', plain=True) == ('F', [])


def suite_missing():
    seen = suite_of('exit 0', needs='/nonexistent/run.sh')
    assert seen == ('F', ['there is no program /nonexistent/run.sh']), seen


def suite_timeout_ends_it():
    start = time.monotonic()
    outcomes, reasons = suite_of('echo 1..1; sleep 60', timeout=0.3)
    assert outcomes == 'FF' and reasons[0] == 'killed after 0.3 seconds', reasons
    assert time.monotonic() - start < 15, 'the timeout came late'


def suite_stray_is_a_failure():
    """In a session of its own, as the guardian is, it would escape a signal to the group."""
    outcomes, reasons = suite_of('echo 1..1; setsid sleep 61 >/dev/null 2>&1 & echo ok 1 - a')
    assert outcomes == 'PF' and reasons[0].endswith('sleep 61 '), (outcomes, reasons)
    assert not suites.children(), 'the stray lives on'


def run_together(*texts_and_options):
    """Run shell texts two at a time; return {suite: outcomes} and what was printed."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()) as out:
        suites.LOGS = folder
        todo = []
        for i, (text, options) in enumerate(texts_and_options):
            os.mkdir(os.path.join(folder, str(i)))
            todo.append(suites.Suite('s%d' % i, [script(os.path.join(folder, str(i)),
                                                        text.replace('DIR', folder))], **options))
        results = suites.run_all(todo, 2, time.monotonic() + 60, 1, dict(os.environ))
    return results, out.getvalue()


def suites_run_side_by_side():
    """Each of two waits for the other; the third may not meet anybody."""
    meet = ('echo 1..1; touch DIR/here.%s DIR/%s; until [ -e DIR/%s ]; do sleep 0.05; done; '
            'sleep 0.2; rm DIR/here.%s; echo ok 1 - %s')
    alone = ('echo 1..1; nobody() { ! ls DIR/here.* >/dev/null 2>&1; }; '
             'nobody && sleep 0.3 && nobody && echo ok 1 - alone')
    results, said = run_together((meet % tuple('aabaa'), {}), (meet % tuple('bbabb'), {}),
                                 (alone, {'alone': True}),
                                 ('touch DIR/here.c; echo 1..1; echo not ok 1 - c', {}))
    assert sorted(r[1] for r in results if r[0] == 'passed') == ['a', 'alone', 'b'], results
    assert [r[1] for r in results if r[0] == 'failed'] == ['c'], results
    assert re.search(r's3 +0 passed +1 failed', said), said


def suites_have_their_own_strays():
    results, said = run_together(
        ('echo 1..1; setsid sleep 63 >/dev/null 2>&1 & echo ok 1 - a', {}),
        ('echo 1..1; sleep 1; echo ok 1 - b', {}))
    assert re.search(r's0 +1 passed +1 failed', said), said
    assert re.search(r's1 +1 passed +0 failed', said), said


def programs_are_wrapped_into_one_stream():
    with tempfile.TemporaryDirectory() as folder:
        path = script(folder, 'echo 1..1; echo ok 1 - a; kill -ABRT $$')
        out, status, _ = tap.run(['python3', os.path.join(ROOT, 'scripts/tap.py'), 'run',
                                  '--timeout', '10', path, os.path.join(folder, 'gone')], 20,
                                 stdout=tap.subprocess.PIPE)
    lines = [l for l in out.decode().splitlines() if not l.startswith('#')]
    assert status == 1, status
    assert lines == ['ok 1 - program: a', 'not ok 2 - program: killed by SIGABRT',
                     'not ok 3 - gone: cannot run %s: No such file or directory'
                     % os.path.join(folder, 'gone'), '1..3'], lines


def programs_that_hang_are_named():
    with tempfile.TemporaryDirectory() as folder:
        path = script(folder, 'echo 1..2; echo ok 1 - a; exec sleep 62')
        out, status, _ = tap.run(['python3', os.path.join(ROOT, 'scripts/tap.py'), 'run',
                                  '--timeout', '0.3', path], 20, stdout=tap.subprocess.PIPE)
    lines = [l for l in out.decode().splitlines() if not l.startswith('#')]
    assert status == 1, status
    assert lines == ['ok 1 - program: a', 'not ok 2 - program: killed after 0.3 seconds',
                     'not ok 3 - program: 2 tests planned but 1 reported', '1..3'], lines


def parts_name_tests():
    """A test that is renamed must not silently leave the part that scripts/check runs."""
    for name, words in suites.E2E_PART.items():
        path = os.path.join(ROOT, 'selftests/e2e/test_%s.py' % name)
        for word in words:
            out, status, _ = tap.run([path, '--list', word], 20, stdout=tap.subprocess.PIPE)
            assert status == 0 and word in out.decode(), '%s: no test is named %s' % (name, word)


FUNCTIONS = [suite_counts, suite_plain_status, suite_missing, suite_timeout_ends_it,
             suite_stray_is_a_failure, suites_run_side_by_side,
             suites_have_their_own_strays, programs_are_wrapped_into_one_stream,
             programs_that_hang_are_named, parts_name_tests]


def main():
    suites.adopt_orphans()
    table = [('judge_' + name, judged, args) for name, args in JUDGED.items()]
    table += [(f.__name__, f, ()) for f in FUNCTIONS]
    failed = 0
    print('1..%d' % len(table))
    for number, (name, function, args) in enumerate(table, 1):
        try:
            function(*args)
            print('ok %d - %s' % (number, name))
        except AssertionError as e:
            failed += 1
            print('not ok %d - %s\n# %s' % (number, name, str(e).replace('\n', '\n# ')))
        sys.stdout.flush()
    return 1 if failed else 0


if __name__ == '__main__':
    sys.exit(main())
