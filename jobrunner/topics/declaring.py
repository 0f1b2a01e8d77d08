"""Owns `@jobs.subscribe`: how a function becomes a task that gets events, and what the application declares by that.

It must not tell the database (`jobrunner.subscriptions` does) nor deliver anything (`delivering` does).
"""

from __future__ import annotations

import functools
import inspect
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

from jobrunner.checks import RUN_CHECKS
from jobrunner.errors import ConfigurationError
from jobrunner.patterns import check_patterns, check_topic
from jobrunner.policies import Policy, Running, TaskOptions
from jobrunner.subscriptions import BATCH, EARLIEST, LATEST, LOG, QUEUE, Subscription, policy_document
from jobrunner.tasks import SESSION, Task
from jobrunner.topics.events import Event  # noqa: TC001  the annotation is read when the argument of a job is decoded

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from jobrunner.app import JobRunner
    from jobrunner.subscriptions import Mode, OnFailure

WHERE = "@jobs.subscribe"
MAX_BATCH = 10_000  # events; all of them are in the memory of one process
_EVENT, _BATCH = "the event", "the list of events"


class LogHandler:
    """A function that gets batches of events in the order of the log. Calling it runs the function here and now.

    Attributes:
        fn: what was decorated.
        task: whose jobs hand the batches over; there is one at a time for the group.
        subscription: what was declared.
        transactional: the function gets a session whose transaction also moves the group on.
    """

    def __init__(self, function: Callable[..., Any], subscription: Subscription, *, transactional: bool) -> None:
        functools.update_wrapper(self, function)
        self.fn = function
        self.subscription = subscription
        self.transactional = transactional
        self.is_async = inspect.iscoroutinefunction(function)
        self.task: Task[..., Any]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the function here and now: the group stays where it is."""
        return self.fn(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<LogHandler {self.subscription.task!r} topic={self.subscription.topic!r} group={self.subscription.group!r}>"


class SubscribeOptions(TaskOptions, total=False):
    """The keywords of `@jobs.subscribe(…)`."""

    group: str | None
    mode: Mode
    name: str | None
    start: Literal["earliest", "latest"] | datetime
    batch: int
    on_failure: OnFailure
    transactional: bool


def subscribe(
    jobs: JobRunner,
    topic: str,
    pattern: str | Sequence[str],
    *,
    group: str | None = None,
    mode: str = QUEUE,
    name: str | None = None,
    start: Any = EARLIEST,
    batch: int = BATCH,
    on_failure: str = "stop",
    **options: Any,
) -> Callable[[Callable[..., Any]], Any]:
    """Have a function get the events of a topic; what `JobRunner.subscribe` does.

    Workers bring this to the database when they start, and publishers of the same application before they first publish.

    Args:
        jobs: the application.
        topic, pattern: `*` stands for one word of an event's name, `#` for any number of words; of several patterns one has to fit.
        group: each group gets every event; named like the task when left out.
        mode: `queue`: the function becomes a task, each event a job of it. `log`: it gets lists of events in the order of the log, one
            list at a time, and its return moves the group on.
        name: of the task; `function.__name__` by default.
        start: where a new group begins that reads the log: `earliest` is what is kept of it, `latest` what is published from now on.
        batch: events in a list, at most; 1 to 10,000.
        on_failure: after the last attempt: `stop` the group until somebody says `jobrunner topics resume`, or `skip` those events.
        **options: as of `JobRunner.task`, but `unique`; with `transactional=True` the function gets a `session`, and what it writes
            commits together with the end of the job, or with the group's step in the log.

    Returns:
        A decorator; it gives the task, or in mode `log` a `LogHandler`.

    Raises:
        ConfigurationError: a value makes no sense, or the group has another function already.
    """
    topic, patterns = check_topic(topic), check_patterns(pattern)
    if group is not None:
        check_topic(group, "a group")
    _check_mode(mode, start, batch, on_failure)
    if "unique" in options:
        raise ConfigurationError(f"{WHERE}(unique=…): each event is a job of its own", hint="leave it out")
    running = Running.of({key: value for key, value in options.items() if key in RUN_CHECKS}, WHERE)
    policy = Policy().with_values({key: value for key, value in options.items() if key not in RUN_CHECKS}, WHERE)

    def decorate(function: Any) -> Any:
        task = _known(jobs, function, mode)
        fn = function if task is None else task.fn
        chosen = task.name if task is not None else name or getattr(function, "__name__", None)
        if not isinstance(chosen, str) or chosen == "<lambda>":
            raise ConfigurationError(f"{WHERE}: a lambda or partial has no name of its own", hint=f"{WHERE}(…, name='on_paid')")
        subscription = Subscription(
            topic, check_topic(group or chosen, "a group"), mode, chosen, patterns, policy_document(policy),
            _start_text(start), batch, on_failure,
        )  # fmt: skip
        _check_free(jobs, subscription, fn)
        if mode == LOG:
            made: Any = _log_handler(jobs, function, subscription, policy, running)
        elif task is None:
            _check_takes(function, _EVENT, session=running.transactional)
            made = jobs.registry.register(_receiver(function, transactional=running.transactional), chosen, policy, jobs, running)
        else:
            made = task
        jobs.subscriptions[subscription.topic, subscription.group] = subscription
        return made

    return decorate


def _log_handler(
    jobs: JobRunner, function: Callable[..., Any], subscription: Subscription, policy: Policy, running: Running
) -> LogHandler:
    _check_takes(function, _BATCH, session=running.transactional)
    handler = LogHandler(function, subscription, transactional=running.transactional)

    def deliver(topic: str, group: str) -> dict[str, Any] | None:
        from jobrunner.topics.delivering import deliver_to  # SQLAlchemy's ORM: for those who deliver only

        return deliver_to(jobs, handler, topic, group)

    _look_like(deliver, function)
    # The job is no transactional one: it delivers several batches, each in a transaction of its own.
    plain = Running(False, running.capture_output, running.log_level, running.keep)  # noqa: FBT003
    handler.task = jobs.registry.register(deliver, subscription.task, policy, jobs, plain)
    return handler


def _receiver(function: Callable[..., Any], *, transactional: bool) -> Callable[..., Any]:
    """The task's function: its argument has one name whatever the parameter is called, since publishers write it."""
    if inspect.iscoroutinefunction(function):

        async def receive(event: Event) -> Any:
            return await function(event)
    elif transactional:

        def receive(event: Event, *, session: Any) -> Any:  # type: ignore[misc]
            return function(event, session=session)
    else:

        def receive(event: Event) -> Any:  # type: ignore[misc]
            return function(event)

    _look_like(receive, function)
    return receive


def _look_like(made: Any, function: Any) -> None:
    """By name and place only: `__wrapped__` would have the parameters read off the function that is called inside."""
    for name in ("__module__", "__name__", "__qualname__", "__doc__"):
        setattr(made, name, getattr(function, name, None))
    made.subscribed = function


def _known(jobs: JobRunner, function: Any, mode: str) -> Task[..., Any] | None:
    """The task of a function that is subscribed already, for one more subscription of it."""
    if not isinstance(function, (Task, LogHandler)):
        return None
    if isinstance(function, LogHandler) or mode == LOG or not hasattr(function.fn, "subscribed") or function.name not in jobs.registry:
        raise ConfigurationError(
            f"{WHERE}: {function!r} cannot be subscribed: only a function, or one that has a subscription in queue mode already",
            hint="decorate the plain function: the subscription makes it a task",
        )
    return function


def _check_free(jobs: JobRunner, subscription: Subscription, fn: Any) -> None:
    """One group, one function: the same once more is an app factory called twice, or a reloaded module."""
    known = jobs.subscriptions.get((subscription.topic, subscription.group))
    task = None if known is None else jobs.registry.find(known.task)
    if task is not None and _identity(task.fn) != _identity(fn):
        raise ConfigurationError(
            f"{WHERE}: group {subscription.group!r} of topic {subscription.topic!r} has {_named(task.fn)} already",
            hint="give this one another group: each group gets every event; several patterns of one function go into a list",
        )


def _check_mode(mode: str, start: Any, batch: Any, on_failure: str) -> None:
    if mode not in {QUEUE, LOG}:
        raise ConfigurationError(f"{WHERE}(mode={mode!r}): expected 'queue' (a job for each event) or 'log' (batches, in order)")
    if on_failure not in {"stop", "skip"}:
        raise ConfigurationError(f"{WHERE}(on_failure={on_failure!r}): expected 'stop' or 'skip'")
    if not isinstance(batch, int) or isinstance(batch, bool) or not 1 <= batch <= MAX_BATCH:
        raise ConfigurationError(f"{WHERE}(batch={batch!r}): expected a whole number from 1 to {MAX_BATCH:,}")
    _start_text(start)
    given = {"start": start != EARLIEST, "batch": batch != BATCH, "on_failure": on_failure != "stop"}
    if mode == QUEUE and any(given.values()):
        name = next(name for name, is_given in given.items() if is_given)
        raise ConfigurationError(
            f"{WHERE}({name}=…): only groups that read the log know it", hint="mode='log', or leave it out: else each event is a job"
        )


def _start_text(start: Any) -> str:
    if isinstance(start, datetime) and start.utcoffset() is not None:
        return start.isoformat()
    if not isinstance(start, str) or start not in {EARLIEST, LATEST}:
        raise ConfigurationError(f"{WHERE}(start={start!r}): expected 'earliest', 'latest' or a datetime with a time zone")
    return start


def _check_takes(function: Any, what: str, *, session: bool) -> None:
    if not callable(function) or isinstance(function, (type, staticmethod, classmethod)):
        raise ConfigurationError(f"{WHERE} is for functions, not for {function!r}")
    given = {SESSION: None} if session else {}
    try:
        inspect.signature(function).bind(None, **given)
    except TypeError as error:
        extra = f", and {SESSION}= by keyword" if session else ""
        raise ConfigurationError(f"{WHERE}: {_named(function)} cannot be called with {what} alone{extra}: {error}") from None
    if session and inspect.iscoroutinefunction(function):
        raise ConfigurationError(
            f"{WHERE}(transactional=True): {_named(function)} is an async def, and the session that it would get is not",
            hint="make it a plain def; its database work blocks anyway until it commits",
        )


def _identity(fn: Any) -> tuple[str, str]:
    return getattr(fn, "__module__", ""), getattr(fn, "__qualname__", repr(fn))


def _named(function: Any) -> str:
    return ".".join(_identity(function))
