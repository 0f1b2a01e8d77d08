"""What a worker says its slots run is read whatever it says: another version's words, somebody's SQL, anything that is JSON or not."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobrunner.inspection import RunningJob
from jobrunner.inspection.running import running_jobs

KEYS = ("slot", "job", "task", "attempt", "seconds", "memory")
NUMBERS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
ANYTHING = st.recursive(NUMBERS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3))


def test_everything_that_is_said_is_shown() -> None:
    """Each part is read, and slots come in their order."""
    said = [
        {"slot": 2, "job": 18, "task": "resize"},
        {"slot": 1, "job": 17, "task": "resize", "attempt": 1, "seconds": 12.3, "memory": 81_000_000, "host": "new"},
        {},
    ]
    assert running_jobs(json.dumps(said)) == (
        RunningJob(1, 17, "resize", 1, timedelta(seconds=12.3), 81_000_000),
        RunningJob(2, 18, "resize", None, None, None),
        RunningJob(None, None, None, None, None, None),
    )


@pytest.mark.parametrize("text", [None, "", "[]", "null", "{}", "7", '"x"', "[", "[" * 100_000, "[1, null, [], true]", "9" * 5_000])
def test_what_is_no_list_of_jobs_is_none(text) -> None:
    """A worker that says nothing, or nothing that can be read, runs nothing that could be shown."""
    assert running_jobs(text) == ()


@given(st.lists(st.dictionaries(st.sampled_from(KEYS), ANYTHING) | ANYTHING))
def test_nothing_that_is_said_is_an_error(said) -> None:
    """Any JSON gives values of the right kinds, one for each object."""
    found = running_jobs(json.dumps(said))
    assert len(found) == sum(isinstance(item, dict) for item in said)
    for job in found:
        assert all(number is None or (type(number) is int and number >= 0) for number in (job.slot, job.job_id, job.attempt, job.memory))
        assert job.run is None or job.run >= timedelta(0)
        assert job.task is None or isinstance(job.task, str)
