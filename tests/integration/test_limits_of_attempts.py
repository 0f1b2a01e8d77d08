"""Limits in the columns of a job: what a claim hands to the worker, and how a retry raises the memory limit."""

from __future__ import annotations

import json

import pytest

from jobrunner.jobs import Ending, Unsuccessful
from jobrunner.states import State
from tests.support.rows import LEASE, TASK, Scene

MEGABYTE = 1_000_000
BIGGEST = 2**63 - 1
ROOM_OF_A_FLOAT = 1024  # below the largest bigint, where floats are that far apart
NOTHING = {"soft_ms": None, "cpu_ms": None, "memory": None, "output": None, "processes": None}


def claimed(scene, **columns):
    """A claim of a job with these columns: its limits as the worker reads them, and its checkpoint."""
    job_id = scene.job(State.QUEUED, **columns)
    (job,) = scene.store.claim(scene.worker(), [TASK], "default", 0, 1)
    assert job.id == job_id
    return job.limits and json.loads(job.limits), job.checkpoint


def test_a_job_without_limits_has_none_to_hand_over(connection):
    """Most jobs have no limit but time: nothing is built for them, nothing is sent."""
    assert claimed(Scene(connection), time_limit="1 minute", memory_limit_on_retry=2) == (None, None)


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"soft_time_limit": "1.5 s"}, {"soft_ms": 1_500}),
        ({"cpu_limit": "1 minute"}, {"cpu_ms": 60_000}),
        ({"memory_limit": 256 * MEGABYTE}, {"memory": 256 * MEGABYTE}),
        ({"memory_limit": BIGGEST}, {"memory": BIGGEST}),
        ({"output_limit": 0}, {"output": 0}),
        ({"max_processes": 3}, {"processes": 3}),
        ({"soft_time_limit": "1 us", "cpu_limit": "1 us"}, {"soft_ms": 1, "cpu_ms": 1}),
        ({"soft_time_limit": "178000000 years"}, {"soft_ms": 178_000_000 * 31_557_600_000}),
        ({"soft_time_limit": "1 s", "cpu_limit": "2 s", "memory_limit": 3, "output_limit": 4, "max_processes": 5},
         {"soft_ms": 1_000, "cpu_ms": 2_000, "memory": 3, "output": 4, "processes": 5}),
    ],
)  # fmt: skip
def test_each_limit_reaches_the_worker(connection, columns, expected):
    """Limits come in milliseconds and bytes, to the last digit; one of a few microseconds is 1 ms, as 0 could be read as none."""
    assert claimed(Scene(connection), **columns)[0] == {**NOTHING, **expected}


@pytest.mark.parametrize("column", ["soft_time_limit", "cpu_limit"])
def test_an_endless_limit_is_none(connection, column):
    """An infinite interval, which PostgreSQL has since 17, is no limit, and does not break the claim of others."""
    if connection.info.server_version < 170000:
        with pytest.raises(Exception, match="invalid input syntax for type interval"):
            claimed(Scene(connection), **{column: "infinity"})
        return
    assert claimed(Scene(connection), **{column: "infinity"})[0] == NOTHING


def test_limits_that_were_changed_before_the_start_count(connection):
    """Limits are columns: an UPDATE by anybody before the claim is what the worker gets."""
    scene = Scene(connection)
    job_id = scene.job(memory_limit=MEGABYTE)
    scene.set(job_id, "memory_limit = 2000000, cpu_limit = '1 s'")
    (job,) = scene.store.claim(scene.worker(), [TASK], "default", 0, 1)
    assert job.limits is not None
    assert json.loads(job.limits) == {**NOTHING, "memory": 2 * MEGABYTE, "cpu_ms": 1_000}


def memory_after(scene, exit_cause, ending=Ending.RETRY, **columns):
    """The memory limit of a job after an attempt that ended so."""
    job_id = scene.job(State.RUNNING, **columns)
    outcome = Unsuccessful(ending, job_id, LEASE, exit_cause=exit_cause, run_ms=5, delay_ms=10, peak_memory=7)
    assert scene.store.finish([outcome]) == []
    assert scene.attempts(job_id)[-1]["peak_memory"] == 7
    return scene.row(job_id)["memory_limit"]


@pytest.mark.parametrize(
    ("limit", "times", "expected"),
    [
        (100 * MEGABYTE, 2, 200 * MEGABYTE),
        (100 * MEGABYTE, 1.5, 150 * MEGABYTE),
        (100 * MEGABYTE, None, 100 * MEGABYTE),
        (None, 2, None),
        (None, None, None),
        (1, 1, 1),
    ],
)
def test_a_retry_after_too_much_memory_gets_more(connection, limit, times, expected):
    """The next attempt gets `memory_limit_on_retry` times the limit, when there are both."""
    assert memory_after(Scene(connection), "memory", memory_limit=limit, memory_limit_on_retry=times) == expected


@pytest.mark.parametrize("limit", [2**62, BIGGEST // 1000 + 1, BIGGEST])
def test_no_limit_can_grow_past_a_bigint(connection, limit):
    """A limit that would overflow stops at the end of the column: the batch is finished, the job goes on."""
    found = memory_after(Scene(connection), "memory", memory_limit=limit, memory_limit_on_retry=1000)
    assert BIGGEST - ROOM_OF_A_FLOAT <= found <= BIGGEST


@pytest.mark.parametrize("exit_cause", ["exception", "timeout", "cpu", "output", "processes", "signal 9", None])
def test_other_causes_leave_the_limit(connection, exit_cause):
    """Only an attempt that exceeded its memory makes the next one larger."""
    assert memory_after(Scene(connection), exit_cause, memory_limit=MEGABYTE, memory_limit_on_retry=2) == MEGABYTE


@pytest.mark.parametrize("ending", [Ending.FAIL, Ending.SNOOZE, Ending.RELEASE, Ending.CRASH])
def test_other_endings_leave_the_limit(connection, ending):
    """A job that goes back for another reason, or fails for good, keeps the limit it had."""
    assert memory_after(Scene(connection), "memory", ending, memory_limit=MEGABYTE, memory_limit_on_retry=2) == MEGABYTE


def test_the_limit_grows_with_each_attempt(connection):
    """Two attempts that exceed the limit one after the other double it twice; the last one fails with it."""
    scene = Scene(connection)
    job_id = scene.job(max_attempts=3, memory_limit=MEGABYTE, memory_limit_on_retry=2)
    worker, seen = scene.worker(), []
    for _ in range(3):
        (job,) = scene.store.claim(worker, [TASK], "default", 0, 1)
        seen.append(json.loads(job.limits or "{}")["memory"])
        assert scene.store.finish([Unsuccessful(Ending.RETRY, job_id, job.lease, exit_cause="memory", run_ms=1, delay_ms=0)]) == []
    assert seen == [MEGABYTE, 2 * MEGABYTE, 4 * MEGABYTE]
    row = scene.row(job_id)
    assert (row["state"], row["memory_limit"]) == ("failed", 4 * MEGABYTE)
