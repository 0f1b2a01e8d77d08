"""Owns what a test asks of the jobs that wait: the criteria, checked and translated into the data of rows, and which jobs meet them.

It must not read anything (`waiting` does) nor say in words what does not fit (`differences` does).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, TypedDict

from jobrunner import jsonvalues
from jobrunner.errors import ConfigurationError, InvalidPayload
from jobrunner.jsonvalues import Refusal
from jobrunner.settings import parse_duration
from jobrunner.tasks import BoundTask, Task

if TYPE_CHECKING:
    from jobrunner.app import JobRunner
    from jobrunner.testing.clock import Clock
    from jobrunner.testing.waiting import Waiting

TOLERANCE = timedelta(seconds=2)  # between two looks at a clock that has not been moved, on a busy machine
WORDS = ("queued", "scheduled", "retrying")


class Criteria(TypedDict, total=False):
    """What may be asked beside task and arguments; see `testing.Jobs.enqueued`."""

    queue: str
    priority: int
    tags: Iterable[str]
    meta: Mapping[str, Any]
    state: str
    at: datetime
    delay: float | str | timedelta
    within: float | str | timedelta


@dataclass(frozen=True, slots=True)
class Wanted:
    """The criteria of one question, checked and in the data of rows; None is anything.

    Attributes:
        whole_call: `args` are all arguments there may be, not some of them.
        at: when it should be due; or
        delay: how long after its enqueue, or after `now`, it should be due.
        within: how far from that it may be.
    """

    task: str | None = None
    args: Mapping[str, Any] | None = None
    whole_call: bool = False
    queue: str | None = None
    priority: int | None = None
    tags: frozenset[str] | None = None
    meta: Mapping[str, Any] | None = None
    state: str | None = None
    at: datetime | None = None
    delay: timedelta | None = None
    now: datetime | None = None
    within: timedelta = TOLERANCE

    def fits(self, job: Waiting) -> bool:
        """Whether a job is what is wanted."""
        return not self.misses(job)

    def misses(self, job: Waiting) -> set[str]:
        """The criteria that a job does not meet."""
        checks = {
            "task": self.task is None or self.task == job.task,
            "args": self.args_fit(job.args),
            "queue": self.queue is None or self.queue == job.queue,
            "priority": self.priority is None or self.priority == job.priority,
            "tags": self.tags is None or self.tags <= set(job.tags),
            "meta": self.meta is None or _holds(self.meta, job.meta or {}),
            "state": self.state is None or self.state == job.state,
            "due": self._is_due(job),
        }
        return {name for name, fine in checks.items() if not fine}

    def args_fit(self, args: Mapping[str, Any]) -> bool:
        """Whether these arguments are what is wanted."""
        if self.args is None:
            return True
        return bool(self.args == args) if self.whole_call else _holds(self.args, args)

    def _is_due(self, job: Waiting) -> bool:
        if self.at is not None:
            return abs(job.run_at - self.at) <= self.within
        if self.delay is None:
            return True
        # From its enqueue, which no slow test can blur; from now for one that was retried or snoozed.
        begins = [job.created_at, *([self.now] if self.now is not None else [])]
        return any(abs(job.run_at - begin - self.delay) <= self.within for begin in begins)


def wanted(jobs: JobRunner, clock: Clock, task: Any, args: Any, criteria: Mapping[str, Any]) -> Wanted:
    """Check and translate what a test asks.

    Raises:
        ConfigurationError, UnknownTask, InvalidPayload: no job could ever be like that; the message names what.
    """
    for name in criteria:
        if name not in Criteria.__annotations__:
            guess = difflib.get_close_matches(name, Criteria.__annotations__, n=1)
            hint = f"did you mean {guess[0]}?" if guess else f"known: {', '.join(Criteria.__annotations__)}"
            raise ConfigurationError(f"enqueued({name}=…): there is no such criterion", hint=hint)
    given = dict(criteria)
    registered = task_of(jobs, task) if task is not None else None
    if given.get("state") is not None and given["state"] not in WORDS:
        raise ConfigurationError(f"enqueued(state={given['state']!r}): a job that waits is {', '.join(WORDS[:-1])} or {WORDS[-1]}")
    at, delay, within = given.pop("at", None), given.pop("delay", None), given.pop("within", None)
    if at is not None and delay is not None:
        raise ConfigurationError("enqueued(at=…, delay=…): give one of the two")
    if at is not None and (not isinstance(at, datetime) or at.utcoffset() is None):
        raise ConfigurationError(f"enqueued(at={at!r}): expected a datetime with a time zone")
    if within is not None:
        given["within"] = parse_duration(within, "enqueued(within)")
    if given.get("tags") is not None:
        given["tags"] = frozenset([given["tags"]] if isinstance(given["tags"], str) else given["tags"])
    data, whole = (None, False) if args is None else _args_data(registered, args)
    return Wanted(
        task=registered.name if registered is not None else None,
        args=data,
        whole_call=whole,
        at=at,
        delay=parse_duration(delay, "enqueued(delay)") if delay is not None else None,
        now=clock.now(),
        **given,
    )


def task_of(jobs: JobRunner, task: Any) -> Task[..., Any]:
    """The task that is meant by a Task, what its `options()` gave, or a name. Raises UnknownTask, ConfigurationError."""
    if isinstance(task, BoundTask):
        task = task.task
    if isinstance(task, Task):
        return jobs.registry.get(task.name)
    if isinstance(task, str):
        return jobs.registry.get(task)
    hint = "is the decorator @jobs.task there?" if callable(task) else ""
    raise ConfigurationError(f"expected a task or its name, not {task!r}", hint=hint)


def _args_data(task: Task[..., Any] | None, args: Any) -> tuple[Mapping[str, Any], bool]:
    if isinstance(args, Mapping):
        return {name: _one(task, name, value) for name, value in args.items()}, False
    if isinstance(args, (tuple, list)):
        if task is None:
            raise ConfigurationError("enqueued(args=(…)): positions are those of a task's parameters", hint="name the task, or pass a dict")
        bound = task.parameters.signature.bind
        try:
            named = bound(*args).arguments
        except TypeError:
            return task.parameters.bind(tuple(args), {}), True  # the error of an enqueue with these arguments
        if not any(_is_matcher(value) for value in named.values()):
            return task.parameters.bind(tuple(args), {}), True
        return {name: _one(task, name, value) for name, value in named.items()}, True
    raise ConfigurationError(
        f"enqueued(args={args!r}): expected a tuple of all positional arguments, or a dict of some",
        hint=f"such as args=({args!r},)" if not isinstance(args, (set, frozenset)) else "",
    )


def _one(task: Task[..., Any] | None, name: str, value: Any) -> Any:
    """One wanted argument in the data of rows; objects made for comparing (mock.ANY, pytest.approx, …) as they are."""
    if _is_matcher(value):
        return _with_matchers(value)
    if task is not None:
        return task.parameters.encode_one(name, value)
    try:
        return jsonvalues.plain(value, rich=True)
    except Refusal as refusal:
        raise InvalidPayload(refusal.path(name), refusal.problem, instead=refusal.instead) from None


def _is_matcher(value: Any) -> bool:
    """Whether a value is, or a list or dict of it holds, an object that JSON cannot hold and that defines what it equals."""
    if isinstance(value, Mapping):
        return any(map(_is_matcher, value.values()))
    if isinstance(value, (list, tuple)):
        return any(map(_is_matcher, value))
    kind = type(value)
    if kind.__module__ == "builtins" or not any("__eq__" in vars(base) for base in kind.__mro__[:-1]):
        return False
    try:
        jsonvalues.plain(value, rich=True)
    except Refusal:
        return True
    return False


def _with_matchers(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _with_matchers(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_with_matchers(item) for item in value]
    return value if _is_matcher(value) else jsonvalues.plain(value, rich=True)


def _holds(some: Mapping[str, Any], data: Mapping[str, Any]) -> bool:
    return all(name in data and some[name] == data[name] for name in some)
