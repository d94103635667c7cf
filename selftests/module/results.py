#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Judge what a virtual machine of run.sh printed.

    results.py judge FLAVOUR STATUS NUMBER KERNEL-LOG TESTS-LOG SKIPS BROKEN

prints one TAP result for each test that ran, numbered on from NUMBER, and of the machine:
that it ended by itself, that the kernel complained of nothing, and that its complaint that
was made on purpose was found. A skipped test is a failure unless SKIPS lists it.

    results.py broken FLAVOUR SAFETY < broken

prints those lines of the list `broken` that are for this kernel, or only that of SAFETY if
it is not empty.
"""
import os
import re
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), '../../scripts'))
import tap  # noqa: E402

ON_PURPOSE = 'said by inside.sh'
COMPLAINT = re.compile(
    r'WARNING:|\bBUG\b|\bOops\b|Call Trace|general protection|Kernel panic|rcu.*(stall|detected)|'
    r'soft lockup|hung task|blocked for more than|circular locking|possible recursive|'
    r'inconsistent lock|lock held|suspicious RCU|KASAN|KFENCE:|UBSAN|Bad page|Bad rss|'
    r'refcount_t|list_(add|del) corruption|Poison overwritten|Redzone|Right Redzone|'
    r'Object (padding|already free)|Objects remaining|double[- ]free|scheduling while atomic|'
    r'sleeping function called|page allocation failure|still has references|'
    r'unregister_netdevice|leaked|ferry.*(leak|corrupt)|Out of memory: Killed')
# Said by every boot of these kernels on this emulated machine, before any test.
USUAL = re.compile(r'Spectre|Mitigation|kfence: initialized|debug: no_warn|WARNING: said')


def table(path):
    """Lines of a list as words, without comments."""
    with open(path) as f:
        return [line.split() for line in f if line.strip() and not line.startswith('#')]


def for_flavour(flavours, flavour):
    return flavours == 'all' or flavour in flavours.split(',')


def sections(text):
    """[(head words, lines)] for each @PROGRAM and @BROKEN; and all @ lines."""
    found, marks = [], []
    for line in text.splitlines():
        line = line.rstrip('\r')
        if line.startswith('@'):
            marks.append(line)
        if line.startswith(('@PROGRAM ', '@BROKEN ')):
            found.append((line[1:].split(), []))
        elif found:
            found[-1][1].append(line)
    return found, marks


def status_of(lines):
    """What the program returned, or None if the machine died under it."""
    for line in lines:
        if line.startswith('@STATUS '):
            return int(line.split()[1])
    return None


def named(lines):
    """The harness leaves out the name of a skipped test, and says it before."""
    name = ''
    for line in lines:
        if line.startswith('@'):
            continue
        run = re.match(r'#\s+RUN\s+(?:global\.)?(\S+) \.\.\.', line)
        if run:
            name = run[1]
        skip = re.match(r'(ok \d+) # SKIP (.*)', line)
        yield '%s - %s # SKIP %s' % (skip[1], name, skip[2]) if skip else line


def judge_program(program, lines, skips):
    """[(passed, name, reason)]"""
    status = status_of(lines)
    text = '\n'.join(named(lines))
    results = []
    for outcome, test, reason in tap.judge(program, text, 0 if status is None else status):
        test = test.replace('global.', '')
        name = program if test == program else '%s: %s' % (program, test)
        if outcome == tap.SKIPPED and test in skips:
            results.append((None, name, skips[test]))
        elif outcome == tap.SKIPPED:
            results.append((False, name, 'skipped, and must not be here: ' + reason))
        else:
            results.append((outcome == tap.PASSED, name, reason))
    if status is None:
        results.append((False, program, 'the machine ended in the middle of it'))
    return results


def judge_broken(safety, program, test, lines):
    """The one test ran, and failed by what it expected, not by a hang or a crash."""
    name = 'without %s, %s: %s fails' % (safety, program, test)
    text = '\n'.join(lines)
    if not re.search(r'^not ok \d+ .*\b%s$' % re.escape(test), text, re.M):
        return (False, name, 'it passed' if re.search(r'^ok \d+', text, re.M) else 'it did not run')
    if not re.search(r'# .*:\d+:%s:' % re.escape(test), text):
        return (False, name, 'it failed, but by no expectation of its own')
    return (True, name, '')


def complaints(text):
    """Where the kernel complained; all lines. A memory cgroup at its limit is no complaint,
    but its report has a call trace in it."""
    lines, at, report = text.replace('\r', '').splitlines(), [], False
    for i, line in enumerate(lines):
        report = (report or 'invoked oom-killer' in line) and 'out of memory: Killed' not in line
        if COMPLAINT.search(line) and not USUAL.search(line):
            if not (report and 'Call Trace' in line):
                at.append(i)
    return at, lines


def judge(flavour, status, number, kernel_path, tests_path, skips_path, broken_path):
    with open(kernel_path, errors='replace') as f:
        kernel = f.read()
    with open(tests_path, errors='replace') as f:
        tests = f.read()
    skips = {words[1]: ' '.join(words[2:]) for words in table(skips_path)
             if for_flavour(words[0], flavour)}
    planned = {words[0]: words for words in table(broken_path)}
    found, marks = sections(tests)
    release = next((m.split()[1] for m in marks if m.startswith('@BOOTED')), None)
    print('# %s: %s' % (flavour, release or 'did not boot'))

    results = []
    for head, lines in found:
        if head[0] == 'PROGRAM':
            these = judge_program(head[1], lines, skips)
        else:
            words = planned.pop(head[1], [head[1], '?', '?'])
            these = [judge_broken(head[1], words[1], words[2], lines)]
        results += [(r, lines) for r in these]
    results += [((False, 'without %s' % safety, 'was not tried'), []) for safety in planned]
    for mark in marks:
        if mark.startswith('@FAILED'):
            results.append(((False, mark[len('@FAILED '):], ''), []))
    results.append(((int(status) == 0 and '@ENDED' in marks, 'the machine ended by itself',
                     '' if int(status) == 0 else 'exit status %s' % status),
                    kernel.splitlines()[-60:]))
    at, lines = complaints(kernel)
    shown = sorted({j for i in at[:5] for j in range(max(0, i - 2), min(len(lines), i + 30))})
    results.append(((not at, 'the kernel complained of nothing',
                     lines[at[0]] if at else ''), [lines[j] for j in shown]))
    results.append(((ON_PURPOSE in kernel, 'a complaint would have been found', ''), []))

    told = set()
    for (passed, name, reason), log in results:
        number += 1
        if passed is None:
            print('ok %d - %s: %s # SKIP %s' % (number, flavour, name, reason))
            continue
        print('%s %d - %s: %s%s' % ('ok' if passed else 'not ok', number, flavour, name,
                                    ' (%s)' % reason.replace('#', '') if reason else ''))
        if not passed and id(log) not in told:
            told.add(id(log))
            print(''.join('# %s\n' % line for line in log), end='')


def main():
    if sys.argv[1:2] == ['broken']:
        for line in sys.stdin:
            words = line.split()
            if (words and not line.startswith('#') and for_flavour(words[0], sys.argv[2])
                    and sys.argv[3] in ('', words[1])):
                print(*words[1:])
    elif sys.argv[1:2] == ['judge'] and len(sys.argv) == 9:
        judge(sys.argv[2], sys.argv[3], int(sys.argv[4]), *sys.argv[5:])
    else:
        sys.exit(__doc__)


if __name__ == '__main__':
    main()
