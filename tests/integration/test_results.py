"""From `enqueue` to `result()` through a real worker: values, failures with where they happened, values that cannot be kept."""

from __future__ import annotations

import importlib
import sys
import traceback
from typing import Any

import pytest

from jobrunner import JobCancelled, JobFailed
from jobrunner.waiters import watcher_of
from tests.support.waiting import wait_until
from tests.support.workers import Ledger, rows, workers

APP = """
from __future__ import annotations
import ctypes
import time
from dataclasses import dataclass
from datetime import date
from jobrunner import Cancel, Fail, Job, JobRunner

jobs = JobRunner(wakeups=True)


@dataclass
class Receipt:
    number: int
    day: date


@jobs.task
def receipt(number: int) -> Receipt:
    return Receipt(number, date(2026, 1, number))


@jobs.task(max_attempts=1)
def fail(word: str) -> None:
    raise LookupError(f"no {word} in the shop")


@jobs.task(max_attempts=2, backoff="constant", backoff_base=0)
def fail_differently() -> None:
    from jobrunner import current_job
    raise LookupError(f"attempt {current_job().attempt}")


@jobs.task
def give_up() -> None:
    raise Fail("not today")


@jobs.task
def call_off() -> None:
    raise Cancel("gone")


@jobs.task(max_crashes=1)
def segfault() -> None:
    ctypes.string_at(0)


@jobs.task
def long_text(size: int) -> str:
    return "x" * size


@jobs.task
def raw_bytes() -> bytes:
    return b"x"


@jobs.task(max_attempts=1)
def sum_of(ids: list[int]) -> int:
    return sum(jobs.job(job_id).result(timeout=20).number for job_id in ids)
"""
WAIT = 30  # seconds; each of them takes milliseconds
LIMIT = 2000  # bytes of a result


@pytest.fixture(scope="module")
def shop(server, tmp_path_factory):
    """The module of an application whose worker runs, with `JOBRUNNER_MAX_RESULT_BYTES` in the worker's environment."""
    folder = tmp_path_factory.mktemp("shop")
    app = folder / "shop_with_results.py"
    app.write_text(APP)
    with server.temporary() as dsn, pytest.MonkeyPatch.context() as patch:
        patch.setenv("JOBRUNNER_MAX_RESULT_BYTES", "2kB")
        patch.setenv("JOBRUNNER_DSN", dsn)
        patch.syspath_prepend(folder)
        module = importlib.import_module(app.stem)
        with workers(dsn, Ledger(folder / "ledger").path, "-c", "2", app=str(app)):
            yield module
            watcher_of(module.jobs.dsn).close()
            module.jobs.close()
        del sys.modules[app.stem]


def failure_of(job) -> Any:
    with pytest.raises(JobFailed) as caught:
        job.result(WAIT)
    return caught.value


def test_results_come_back_as_what_they_were(shop):
    """What the function returned is what `result()` gives, rebuilt by the return annotation."""
    handles = [shop.receipt.enqueue(number) for number in range(1, 29)]
    values = [job.result(WAIT) for job in handles]
    assert [(value.number, value.day.isoformat()) for value in values] == [(number, f"2026-01-{number:02}") for number in range(1, 29)]
    assert {type(value) for value in values} == {shop.Receipt}


def test_a_failure_shows_where_it_happened(shop):
    """The traceback that is printed here names the file, the line and the words of the exception in the worker."""
    error = failure_of(shop.fail.enqueue("tea"))
    assert (error.state, error.error_type, error.message, error.exit_cause) == ("failed", "LookupError", "no tea in the shop", "exception")
    printed = "".join(traceback.format_exception(error))
    assert 'raise LookupError(f"no {word} in the shop")' in error.traceback
    assert error.traceback.strip() in printed
    assert "shop_with_results.py" in printed


def test_the_last_attempt_is_what_is_told(shop):
    """Of a job that failed twice, the second error and its own traceback are raised."""
    error = failure_of(shop.fail_differently.enqueue())
    assert error.message == "attempt 2"
    assert "attempt 2" in error.traceback
    assert "attempt 1" not in error.traceback


def test_a_quarantined_job_says_what_killed_it(shop):
    """The signal is in `exit_cause`; there is no traceback of a process that died in C."""
    error = failure_of(shop.segfault.enqueue())
    assert (error.state, error.exit_cause, error.traceback) == ("quarantined", "signal 11", None)
    assert "was quarantined" in str(error)


def test_given_up_and_called_off(shop):
    """`Fail` is a failure with its own words and no traceback; `Cancel` is a cancellation."""
    error = failure_of(shop.give_up.enqueue())
    assert (error.error_type, error.message) == ("jobrunner.Fail", "not today")
    with pytest.raises(JobCancelled):
        shop.call_off.enqueue().result(WAIT)


def test_a_result_that_is_too_large_fails_its_job(shop):
    """At the limit a result is kept; above, the job fails with attempts left, for its work is done, and the message names value, size, limit and what to do instead."""
    quotes = 2
    assert len(shop.long_text.enqueue(LIMIT - quotes).result(WAIT)) == LIMIT - quotes
    error = failure_of(shop.long_text.enqueue(LIMIT - quotes + 1))
    assert error.error_type == "jobrunner.errors.UnstorableResult"
    assert error.message.startswith("the return value is 2,001 bytes of JSON; the limit is 2,000: store the data")
    assert "JOBRUNNER_MAX_RESULT_BYTES" in error.message


def test_a_result_that_is_no_json_fails_its_job(shop):
    """Bytes are refused with what to return instead."""
    error = failure_of(shop.raw_bytes.enqueue())
    assert error.error_type == "jobrunner.errors.UnstorableResult"
    assert error.message == (
        "the return value is of type bytes, which JSON cannot hold: return base64 text, or store the bytes and return their id or path"
    )


def test_a_task_may_wait_for_others(shop):
    """In a worker's child, which was forked, waiting works as anywhere."""
    ids = [shop.receipt.enqueue(number).id for number in (1, 2, 3)]
    job = shop.sum_of.enqueue(ids)
    wait_until(lambda: job.refresh().state in ("succeeded", "failed"), timeout=WAIT, what="the job to end")
    assert job.result(WAIT) == 6, rows(shop.jobs.dsn.url, "SELECT error FROM jobrunner.v_jobs")
