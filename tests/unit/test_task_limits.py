"""Limits, transactions and logs of a task: wrong values are refused where they are written, and what is right becomes columns."""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from jobrunner import ConfigurationError, InvalidPayload, JobRunner
from jobrunner.policies import COLUMNS, Running
from jobrunner.schema import INSERTABLE
from jobrunner.tasks import AsyncTask, TransactionalTask

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

MEGABYTE = 1_000_000
LIMITS = ("time_limit", "soft_time_limit", "cpu_limit", "memory_limit", "memory_limit_on_retry", "output_limit", "max_processes")


@pytest.fixture
def jobs() -> JobRunner:
    return JobRunner(dsn="postgresql://nobody@127.0.0.1:1/nowhere")


def work() -> None: ...


def refused(call: Any, **given: Any) -> str:
    """The message of the refusal and its hint, in one line."""
    with pytest.raises(ConfigurationError) as caught:
        call(**given)
    return f"{caught.value} {caught.value.hint or ''}"


def test_limits_are_read_in_any_form(jobs):
    """Durations and sizes are numbers or text with a unit; they land in the columns of that name."""
    task = jobs.task(
        time_limit="1m", soft_time_limit=55.5, cpu_limit=timedelta(seconds=40), memory_limit="256MB", memory_limit_on_retry="2x",
        output_limit="1MiB", max_processes=4,
    )(work)  # fmt: skip
    assert {name: task.policy.columns()[name] for name in LIMITS} == {
        "time_limit": timedelta(minutes=1), "soft_time_limit": timedelta(seconds=55.5), "cpu_limit": timedelta(seconds=40),
        "memory_limit": 256 * MEGABYTE, "memory_limit_on_retry": 2.0, "output_limit": 1_048_576, "max_processes": 4,
    }  # fmt: skip
    assert set(COLUMNS) < set(INSERTABLE)


def test_none_is_no_limit(jobs):
    """Each limit can be taken away again, by the task as by one enqueue."""
    task = jobs.task(**dict.fromkeys(LIMITS))(work)
    assert not set(task.policy.columns()) & set(LIMITS)
    limited = jobs.task(name="limited", time_limit=9, memory_limit=MEGABYTE, memory_limit_on_retry=2, max_processes=1)(work)
    assert not set(limited.options(**dict.fromkeys(LIMITS))._options.policy.columns()) & set(LIMITS)


@pytest.mark.parametrize(
    ("given", "times"), [("2x", 2.0), ("1.5", 1.5), (" 3 X ", 3.0), ("2×", 2.0), (4, 4.0), (1.25, 1.25), ("1000x", 1000.0)]
)
def test_growth_is_a_number_of_times(jobs, given, times):
    """'2x', 2 and '2' are the same."""
    task = jobs.task(memory_limit=MEGABYTE, memory_limit_on_retry=given)(work)
    assert task.policy.memory_limit_on_retry == times


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[(name, value) for name in ("soft_time_limit", "cpu_limit") for value in (0, -1, "-5s", "soon", "5 parsecs", True, float("nan"), "11y", "4000d")],
        *[(name, value) for name in ("memory_limit", "output_limit") for value in (0, -1, "-1MB", "1XB", "much", "256 bananas", True, "", "1024TB2", "2000TB", 2.5)],
        ("memory_limit", 999_999), ("memory_limit", "1kB"), ("memory_limit", 256),
        *[("memory_limit_on_retry", value) for value in ("0.5x", "abc", "1x", 1, 0, -2, "-2x", "x", "", True, float("nan"), float("inf"), 1001, "2xx", "2 MB")],
        *[("max_processes", value) for value in (0, -1, True, 1.5, "3", 1_000_001)],
    ],
    ids=str,
)  # fmt: skip
def test_a_limit_that_makes_no_sense_is_refused_at_decoration(jobs, name, value):
    """Negative, zero, a wrong unit, a wrong kind: the error names the decorator, the parameter and the value, before any job exists."""
    given = {name: value, **({"memory_limit": MEGABYTE} if name == "memory_limit_on_retry" else {})}
    assert f"@jobs.task({name}={value!r}): expected" in refused(jobs.task, **given)
    assert not jobs.registry.names()


def test_the_least_memory_is_a_megabyte(jobs):
    """A memory limit that no process fits into is a mistake in a unit, and said so."""
    assert "at least 1,000,000 bytes" in refused(jobs.task, memory_limit=256)
    assert jobs.task(memory_limit=MEGABYTE)(work).policy.memory_limit == MEGABYTE


def test_a_soft_limit_is_not_above_the_hard_one(jobs):
    """A warning that comes after the kill is refused, whichever of the two was given last; equal ones are allowed."""
    assert "soft_time_limit (0:01:01) is above time_limit (0:01:00)" in refused(jobs.task, soft_time_limit=61, time_limit=60)
    task = jobs.task(soft_time_limit=60, time_limit=60)(work)
    assert "options(time_limit=30): soft_time_limit" in refused(task.options, time_limit=30)
    assert "options(soft_time_limit=90): soft_time_limit" in refused(task.options, soft_time_limit=90)
    assert task.options(time_limit=None)._options.policy.time_limit is None
    assert task.options(time_limit=30, soft_time_limit=20)._options.policy.soft_time_limit == timedelta(seconds=20)


def test_growth_needs_a_limit_to_grow(jobs):
    """`memory_limit_on_retry` without `memory_limit` would do nothing, so it is refused, also when one enqueue takes the limit away."""
    assert "@jobs.task(memory_limit_on_retry=2): there is no memory_limit" in refused(jobs.task, memory_limit_on_retry="2x")
    task = jobs.task(memory_limit=MEGABYTE, memory_limit_on_retry=2)(work)
    assert "there is no memory_limit" in refused(task.options, memory_limit=None)


@pytest.mark.parametrize(("name", "value"), [("transactional", True), ("transactional", False), ("capture_output", True), ("log_level", "INFO")])
def test_how_a_task_is_run_is_no_option_of_one_enqueue(jobs, name, value):
    """A worker reads these from the code, not from the row: `options()` says where they belong."""
    task = jobs.task(work)
    said = refused(task.options, **{name: value})
    assert f"options({name}=…): this belongs to the task itself" in said
    assert f"@jobs.task({name}=…)" in said


NO_TRUTHS: tuple[Any, ...] = (1, 0, "yes", None, [])
NO_LEVELS: tuple[Any, ...] = ("LOUD", "", 0, -10, 51, True, 2.5, [])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[(name, value) for name in ("transactional", "capture_output") for value in NO_TRUTHS],
        *[("log_level", value) for value in NO_LEVELS],
    ],
    ids=str,
)
def test_how_a_task_is_run_is_checked_at_decoration(jobs, name, value):
    """True or False where that is asked, a level that logging knows where that is."""
    assert f"@jobs.task({name}={value!r}): expected" in refused(jobs.task, **{name: value})


def test_what_goes_into_the_log(jobs):
    """Records from INFO on, unless the task says otherwise; a level is a name of logging or its number; None is no log."""
    assert jobs.task(work).running == Running(transactional=False, capture_output=False, log_level=logging.INFO)
    quiet = jobs.task(name="quiet", log_level="warning", capture_output=True)(work)
    assert quiet.running == Running(capture_output=True, log_level=logging.WARNING)
    assert jobs.task(name="silent", log_level=None)(work).running.log_level is None
    assert jobs.task(name="all", log_level=1)(work).running.log_level == 1
    assert not set(quiet.policy.columns()) & {"log_level", "capture_output", "transactional"}


def only_keyword(order_id: int, *, session: Session) -> int:
    return order_id


def in_the_middle(order_id: int, session: Session, note: str = "") -> int:
    return order_id


def with_anything(order_id: int, *, session: Session, **more: int) -> int:
    return order_id


@pytest.mark.parametrize("function", [only_keyword, in_the_middle, with_anything])
def test_a_transactional_task_gets_its_session_from_the_worker(jobs, function):
    """`session` is no argument of its jobs: it is neither asked for nor taken, though its type is known to the type checker only."""
    task = jobs.task(transactional=True)(function)
    assert isinstance(task, TransactionalTask)
    assert task.running.transactional
    assert "session" not in task.parameters.signature.parameters
    assert task.parameters.bind((7,), {}) == {"order_id": 7}
    with pytest.raises(InvalidPayload, match="session"):
        task.parameters.bind((7,), {"session": object()})
    with pytest.raises(InvalidPayload, match="session"):
        task.parameters.bind((7,), {"session": 1})
    with pytest.raises(InvalidPayload, match="session"):
        task.parameters.call({"order_id": 7, "session": 1})  # a row of plain SQL


def test_the_parameters_around_a_session_keep_their_places(jobs):
    """Arguments by position skip the session, wherever the function has it."""
    task = jobs.task(transactional=True)(in_the_middle)
    assert task.parameters.bind((7, "paid"), {}) == {"order_id": 7, "note": "paid"}


def without_session(order_id: int) -> None: ...


def by_position(session: Session, /) -> None: ...


def before_the_rest(session: Session, *orders: int) -> None: ...


def only_anything(**session: int) -> None: ...


@pytest.mark.parametrize("function", [without_session, by_position, before_the_rest, only_anything])
def test_a_transactional_task_must_take_a_session_by_keyword(jobs, function):
    """A function that cannot be given the session is refused at decoration, with how to write it."""
    said = refused(lambda: jobs.task(transactional=True)(function))
    assert f"@jobs.task(transactional=True): test_task_limits.{function.__name__} cannot be given the session" in said.replace("tests.unit.", "")
    assert f"def {function.__name__}(…, *, session: Session)" in said
    assert not jobs.registry.names()


async def asynchronous(*, session: Session) -> None: ...


def test_a_transactional_task_is_no_async_def(jobs):
    """Its session is not an asynchronous one; without `transactional` the same function is a task."""
    said = refused(lambda: jobs.task(transactional=True)(asynchronous))
    assert "asynchronous is an async def" in said
    assert "make it a plain def" in said
    assert isinstance(jobs.task(asynchronous), AsyncTask)
