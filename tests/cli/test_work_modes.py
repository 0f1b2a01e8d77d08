"""`jobrunner work`: the ways in which jobs run, and values for them that make no sense."""

from __future__ import annotations

import pytest

from tests.support.waiting import wait_until


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--threads", "0"], ["--threads", "x>=1"]),
        (["--threads", "-1"], ["--threads", "x>=1"]),
        (["--threads", "many"], ["--threads", "many"]),
        (["-c", "0"], ["--concurrency", "x>=1"]),
        (["-c", "2", "--threads", "3"], ["--concurrency is for processes, --threads for threads", "give one of them"]),
        (["--async-slots", "0"], ["--async-slots", "x>=1"]),
        (["--max-jobs-per-child", "0"], ["--max-jobs-per-child", "x>=1"]),
        (["--max-memory-per-child", "0"], ["--max-memory-per-child", "must be above zero"]),
        (["--max-memory-per-child", "-5MB"], ["--max-memory-per-child", "is not a size", "256MB"]),
        (["--max-memory-per-child", "512XB"], ["--max-memory-per-child", "is not a size", "256MB"]),
        (["--max-memory-per-child", "512"], ["--max-memory-per-child: 512 makes no sense", "with its unit, such as 512MB"]),
    ],
)
def test_what_makes_no_sense_is_refused(program, options, words):
    """The message names the option, the value and what to write instead; nothing is started."""
    said = program("work", *options, "--drain", ok=None)
    assert said.code == 2
    assert all(word in said.err for word in words), said.err
    assert "worker started" not in said.err


def states(program):
    """The states that jobs are in."""
    return {job["state"] for job in program("jobs", "list", "--json").json["items"]}


def test_slots_of_both_kinds_count(program):
    """A worker with threads and slots for coroutines shows the sum as its slots."""
    with program.started("work", "--threads", "3", "--async-slots", "2") as worker:
        worker.wait_for("worker started")
        assert program("status", "--json").json["slots"] == 5
        assert worker.stop() == 0


def test_a_ceiling_below_the_application_itself_is_said(program):
    """A bound that a child is above from the start replaces it after every job; the worker says so once and does its work."""
    for _ in range(5):
        program("enqueue", "add", '{"a": 1, "b": 2}')
    with program.started("work", "-c", "1", "--max-memory-per-child", "17MB") as worker:
        worker.wait_for("each job costs a process")
        wait_until(lambda: states(program) == {"succeeded"}, timeout=60, what="the jobs to be done")
        assert worker.stop() == 0
    assert worker.err.count("each job costs a process") == 1
