"""What a task may say of itself, and what reaches the worker of it."""

from __future__ import annotations

import math

import pytest

from jobrunner.control import JobStopped
from jobrunner.current import BURST, JobContext
from jobrunner.errors import InvalidPayload, SoftTimeLimitExceeded
from tests.support.attempts import Notes
from tests.support.waiting import wait_until


@pytest.fixture
def voice():
    return Notes()


@pytest.fixture
def job(voice):
    return JobContext(id=1, task="t", queue="q", attempt=1, max_attempts=1, lease=1, checkpoint='{"row": 7}', voice=voice)


@pytest.mark.parametrize(("given", "told"), [(-1, 0.0), (0, 0.0), (0.5, 0.5), (7, 1.0), (math.inf, 1.0), (-math.inf, 0.0), (True, 1.0)])
def test_fractions_are_brought_into_range(job, voice, given, told):
    """What lies outside of 0 to 1 is taken as the nearer end."""
    job.progress(given)
    assert voice.heard == [(told, None, None)]


def test_a_fraction_that_is_no_number_is_refused(job, voice):
    """NaN is refused with a word about where it comes from, and nothing is told."""
    with pytest.raises(ValueError, match="divided by a total of 0"):
        job.progress(math.nan)
    assert voice.heard == []


def test_calls_that_are_joined_lose_no_part(job, voice):
    """A fraction and a text that were held back in two calls both arrive, without another call and without an end."""
    for number in range(BURST):
        job.progress(number / BURST)
    told = len(voice.heard)
    assert told >= BURST
    job.progress(0.9)
    job.progress(text="row 9")
    job.progress(0.91)

    def latest():
        heard = [[note[part] for note in voice.heard if note[part] is not None] for part in (0, 1)]
        return tuple(values[-1] if values else None for values in heard)

    wait_until(lambda: latest() == (0.91, "row 9"), timeout=60, what="what was held back to be told")
    assert len(voice.heard) <= told + 3


def test_texts_are_storable_and_bounded(job, voice):
    """NUL and surrogates become escapes, and 500 characters are kept."""
    job.progress(text="a\0b\ud800" + "x" * 1000)
    [(_, text, _)] = voice.heard
    assert text.startswith("a\\x00b\\ud800x")
    assert len(text) == 500


def test_a_checkpoint_is_json_or_refused(job, voice):
    """A checkpoint that cannot be stored is refused, and the one before stays; a good one is told at once."""
    assert job.last_checkpoint == {"row": 7}
    for value in (math.nan, object(), "x" * 300_000, "a\0b"):
        with pytest.raises(InvalidPayload, match="checkpoint"):
            job.checkpoint(value)
    assert job.last_checkpoint == {"row": 7}
    job.checkpoint([1, 2])
    assert job.last_checkpoint == [1, 2]
    assert voice.heard == [(None, None, "[1,2]")]


def test_reasons_to_stop(job):
    """A wish of somebody's raises JobStopped with the reason; the soft time limit its own exception, and does not hide a wish."""
    job.raise_if_stopping()
    job.stop("timeout")
    job.soft_seconds = 2.0
    with pytest.raises(SoftTimeLimitExceeded, match="2 s"):
        job.raise_if_stopping()
    job.stop("deploy")
    job.stop("timeout")
    with pytest.raises(JobStopped) as stop:
        job.raise_if_stopping()
    assert stop.value.reason == "deploy"
