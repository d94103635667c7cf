# SPDX-License-Identifier: GPL-2.0-or-later
"""A tiny TAP runner: tests are functions marked @test that take a Lab.

A test passes by returning. Skip ends it as a loud SKIP that names what is
missing; every other exception fails it, with what everything it started said.
"""
import os
import signal
import sys
import time
import traceback

KSFT_SKIP = 4
# How many times longer than usual everything may take, for machines that are emulated.
SLOW = float(os.environ.get("FERRY_TEST_SLOW", "1"))


class Skip(Exception):
    """A prerequisite is missing; the text names it."""


class Failed(AssertionError):
    """A check did not hold."""


class TestTimeout(Failed):
    pass


def check(condition, text, *values):
    """assert that is never compiled away and says what it saw."""
    if not condition:
        raise Failed(text % values if values else text)


def check_equal(seen, wanted, what):
    check(seen == wanted, "%s is %r, wanted %r" % (what, seen, wanted))


class Case:
    def __init__(self, function, name, args, timeout):
        self.function, self.name, self.args, self.timeout = function, name, args, timeout


_cases = []


def test(timeout=90, cases=None):
    """Mark a test, which hangs if it takes longer than @timeout seconds. @cases, a dict of name suffix to argument tuple, makes it a table."""
    def mark(function):
        name = function.__name__
        if cases is None:
            _cases.append(Case(function, name, (), timeout))
        else:
            for suffix, args in cases.items():
                _cases.append(Case(function, "%s/%s" % (name, suffix), args, timeout))
        return function
    return mark


def forget():
    """Drop all tests marked so far: those of a file that was imported for its functions."""
    _cases.clear()


def _on_alarm(_signum, _frame):
    raise TestTimeout("the test took longer than it may")


def _on_sigterm(_signum, _frame):
    """An end by signal must clean up too, and a second signal must not disturb that."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(143)


def _comment(text, out):
    for line in text.rstrip().splitlines():
        print("# " + line, file=out)


def _run(case, number, lab_class, out):
    lab = lab_class(case.name)
    start = time.monotonic()
    failure = skip = None
    signal.signal(signal.SIGALRM, _on_alarm)
    signal.alarm(int(case.timeout * SLOW))
    try:
        try:
            case.function(lab, *case.args)
            lab.settle()
        finally:
            signal.alarm(0)
    except Skip as reason:
        skip = str(reason)
    except Exception:
        failure = traceback.format_exc() + lab.diagnostics()
    lab.close(failed=failure is not None)
    took = time.monotonic() - start
    if failure:
        print("not ok %d - %s # %.1f s" % (number, case.name, took), file=out)
        _comment(failure, out)
    elif skip:
        print("ok %d - %s # SKIP %s" % (number, case.name, skip), file=out)
    else:
        print("ok %d - %s # %.1f s" % (number, case.name, took), file=out)
    out.flush()
    return "failed" if failure else "skipped" if skip else "passed"


def _select(words):
    """Cases whose name is, or starts at a slash boundary with, or contains a given word."""
    if not words:
        return _cases
    return [c for c in _cases if any(w in c.name for w in words)]


def main(lab_class, prerequisites=lambda: None):
    """Run what the command line names: [--list] [PART-OF-A-NAME...]"""
    words = [a for a in sys.argv[1:] if a != "--list"]
    chosen = _select(words)
    if "--list" in sys.argv:
        print("\n".join(c.name for c in chosen))
        return 0
    if not chosen:
        print("Bail out! no test is named like %s; --list shows them" % " ".join(words))
        return 2
    out = sys.stdout
    print("TAP version 13")
    try:
        prerequisites()
    except Skip as reason:
        print("1..0 # SKIP %s" % reason)
        return KSFT_SKIP
    print("1..%d" % len(chosen))
    out.flush()
    start = time.monotonic()
    count = {"passed": 0, "failed": 0, "skipped": 0}
    signal.signal(signal.SIGTERM, _on_sigterm)
    try:
        for number, case in enumerate(chosen, 1):
            count[_run(case, number, lab_class, out)] += 1
    finally:
        lab_class.close_all()
    print("# %(passed)d passed, %(failed)d failed, %(skipped)d skipped" % count
          + " in %.1f s" % (time.monotonic() - start))
    return 1 if count["failed"] else 0
