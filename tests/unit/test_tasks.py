"""Decorating a function makes a task: its policy is checked at once, its name is unique, and it can still be called."""

from __future__ import annotations

import asyncio
import functools
import inspect
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from jobrunner import ConfigurationError, InvalidPayload, JobRunner, UnknownTask
from tests.support.commands import run


@pytest.fixture
def jobs() -> JobRunner:
    return JobRunner(dsn="postgresql://nobody@127.0.0.1:1/nowhere")


def test_a_task_is_still_its_function(jobs):
    """A plain call runs here and now; name, docstring and signature are the function's."""

    @jobs.task
    def add(left: int, right: int = 2) -> int:
        """Add."""
        return left + right

    assert add(1) == 3
    assert (add.name, add.__name__, add.__doc__) == ("add", "add", "Add.")
    assert list(inspect.signature(add).parameters) == ["left", "right"]
    assert jobs.registry.get("add") is add


def test_both_forms_of_the_decorator_work(jobs):
    """With and without parentheses, with and without a name, sync and async."""

    @jobs.task()
    def one(): ...

    @jobs.task(name="mail.two", queue="mail")
    async def two(value: int) -> int:
        return value

    assert jobs.registry.names() == ["mail.two", "one"]
    assert not one.is_async
    assert two.is_async
    assert asyncio.run(two(3)) == 3
    assert two.policy.queue == "mail"


def test_policy_values_are_read_in_any_form(jobs):
    """Durations are seconds, a timedelta or text; tags are any words."""

    @jobs.task(time_limit="1h30m", backoff_base=1.5, backoff_cap=timedelta(minutes=2), tags=["a", "b"], backoff_jitter=0, priority=-5)
    def task(): ...

    policy = task.policy
    assert policy.time_limit == timedelta(hours=1, minutes=30)
    assert (policy.backoff_base, policy.backoff_cap) == (timedelta(seconds=1.5), timedelta(seconds=120))
    assert (policy.tags, policy.backoff_jitter, policy.priority) == (("a", "b"), 0.0, -5)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_attempts", 0), ("max_attempts", True), ("max_attempts", 2.5), ("max_attempts", 40_000), ("max_crashes", 0),
        ("priority", "high"), ("priority", 40_000), ("queue", ""), ("queue", "a\0"), ("queue", " a"), ("queue", None), ("queue", "x" * 201),
        ("backoff", "fibonacci"), ("backoff_base", -1), ("backoff_base", "soon"), ("backoff_base", None), ("backoff_base", float("nan")),
        ("backoff_cap", True), ("backoff_cap", "1e9d"), ("backoff_jitter", 1.5), ("backoff_jitter", "x"), ("time_limit", 0),
        ("time_limit", -3),
        ("tags", "word"), ("tags", [1]), ("unique", ""), ("unique", 3), ("unique", "x" * 501), ("unique", None), ("retries", 3),
    ],
)  # fmt: skip
def test_a_wrong_value_is_refused_at_decoration(jobs, name, value):
    """The error names the decorator, the parameter and the value, before any job exists."""
    with pytest.raises(ConfigurationError) as caught:
        jobs.task(**{name: value})(lambda: None)
    assert f"@jobs.task({name}=" in str(caught.value)
    assert not jobs.registry.names()


def test_options_are_checked_like_the_policy(jobs):
    """`options()` names its own parameters; contradictions are refused."""

    @jobs.task
    def task(): ...

    cases: list[tuple[dict[str, Any], str]] = [
        ({"max_attempts": 0}, "options(max_attempts=0)"),
        ({"delay": -1}, "options(delay=-1)"),
        ({"run_at": datetime(2026, 1, 1)}, "time zone"),  # noqa: DTZ001  that is the point
        ({"delay": 1, "run_at": datetime.now(UTC)}, "one of the two"),
        ({"session": object(), "connection": object()}, "one of the two"),
        ({"meta": [1]}, "options(meta="),
        ({"parent_id": "3"}, "options(parent_id="),
        ({"dely": 3}, "options(dely="),
    ]
    for given, words in cases:
        with pytest.raises(ConfigurationError) as caught:
            task.options(**given)
        assert words in str(caught.value)
    with pytest.raises(InvalidPayload, match=r"meta\.x"):
        task.options(meta={"x": float("nan")})


def test_a_name_close_to_a_parameter_is_guessed(jobs):
    """A misspelt parameter is answered with the right one."""
    with pytest.raises(ConfigurationError) as caught:
        jobs.task(max_atempts=3)
    with_hint = caught.value
    assert "max_attempts" in with_hint.hint


def test_two_tasks_of_one_name_are_refused(jobs):
    """The message names both functions; the first one stays."""

    @jobs.task
    def first(): ...

    with pytest.raises(ConfigurationError) as caught:
        jobs.task(name="first")(test_two_tasks_of_one_name_are_refused)
    assert "test_two_tasks_of_one_name_are_refused.<locals>.first" in str(caught.value)
    assert "test_tasks.test_two_tasks_of_one_name_are_refused" in str(caught.value)
    assert jobs.registry.get("first") is first


def test_the_same_function_may_be_registered_again(jobs):
    """An app factory that runs twice, or a module that is reloaded, replaces its tasks."""

    def create():
        @jobs.task
        def inner(): ...

        return inner

    create()
    newest = create()
    assert jobs.registry.get("inner") is newest


@pytest.mark.parametrize("thing", [lambda: None, functools.partial(print, 1)], ids=["lambda", "partial"])
def test_what_has_no_name_needs_one(jobs, thing):
    """A lambda or partial is a task only under a given name."""
    with pytest.raises(ConfigurationError, match="no name of its own"):
        jobs.task(thing)
    assert jobs.task(name="given")(thing).name == "given"


def generator():
    yield 1


async def async_generator():
    yield 1


@pytest.mark.parametrize("thing", [generator, async_generator, int, "text", staticmethod(print)])
def test_what_would_run_nothing_is_refused(jobs, thing):
    """Generators, classes and other objects are no tasks."""
    with pytest.raises(ConfigurationError):
        jobs.task(thing)


def test_a_task_is_not_decorated_twice(jobs):
    """Stacking the decorator is a mistake that is said."""
    with pytest.raises(ConfigurationError, match="is a task already"):
        jobs.task(jobs.task(name="x")(generator_free))


def generator_free(): ...


def test_an_unknown_task_has_close_matches(jobs):
    """The registry answers a misspelt name with the closest ones."""

    @jobs.task
    def send_welcome(): ...

    with pytest.raises(UnknownTask) as caught:
        jobs.registry.get("send_welcom")
    assert caught.value.matches == ["send_welcome"]
    with pytest.raises(UnknownTask):
        jobs.enqueue("nope", {})


def test_arguments_are_checked_before_the_database_is_asked(jobs):
    """A call that cannot be stored is refused although there is no server at that address."""

    @jobs.task
    def task(number: int): ...

    with pytest.raises(InvalidPayload):
        task.enqueue("x")
    with pytest.raises(InvalidPayload):
        task.enqueue_many(["x"])
    with pytest.raises(TypeError, match="a list of calls"):
        task.enqueue_many({"number": 1})


def test_registries_are_apart():
    """Several JobRunners in one process know only their own tasks."""
    one, two = JobRunner(), JobRunner()
    one.task(name="x")(generator_free)
    assert "x" in one.registry
    assert "x" not in two.registry


def test_importing_jobrunner_is_light():
    """Whoever imports the package pays for neither Flask, SQLAlchemy, psycopg, Alembic nor pydantic."""
    heavy = "{'flask', 'sqlalchemy', 'psycopg', 'alembic', 'pydantic', 'click'}"
    found = run(sys.executable, "-c", f"import sys, jobrunner; print(sorted({heavy} & set(sys.modules)))", cwd=Path(__file__).parents[2])
    assert found.stdout.strip() == "[]"
