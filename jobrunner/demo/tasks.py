"""Owns the tasks of the demonstration: what its worker runs, `--app jobrunner.demo.tasks`.

It must not know which of its inputs are bad: they fail by themselves.
"""

from __future__ import annotations

import contextlib
import os
import resource
import tokenize

from jobrunner.app import JobRunner
from jobrunner.demo.analysis import Report, analyse

DEPTH = 200_000  # iterators within iterators; the usual stack of 8 MB ends long before

jobs = JobRunner(name="demo")


@jobs.task(name="analyse", max_attempts=2, backoff="constant", backoff_base="1s", backoff_jitter=0, time_limit="30s")
def analyse_file(path: str) -> Report:
    """Count what is in a Python file, and find its most complex function."""
    with tokenize.open(path) as file:  # in the encoding that the file itself declares
        return analyse(file.read())


@jobs.task(name="analyse_in_c", max_attempts=2, max_crashes=3, backoff="constant", backoff_base="1s", backoff_jitter=0)
def overflow_stack(path: str) -> int:
    """Die as code in C dies that has a bug: by a signal, with no exception that anybody could catch.

    CPython runs an iterator over an iterator on the C stack and keeps no count of the depth: enough of them overflow it.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a demonstration leaves no core file
    with tokenize.open(path) as file:
        lines = iter(file.readlines())
    for _ in range(DEPTH):
        lines = filter(None, lines)
    with contextlib.suppress(RecursionError, MemoryError):
        next(lines)
    os.abort()  # this Python counts after all, or the stack has no limit: then by a signal of our own
