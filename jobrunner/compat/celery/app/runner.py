"""Owns the JobRunner of a Celery app: which database it finds, and the functions that workers run for the app's tasks.

It must not run a task itself (`app.trace` does) nor import Flask before somebody else has.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from jobrunner.app import JobRunner
from jobrunner.policies import Policy, Running
from jobrunner.settings import Dsn, find_dsn, parse_dsn
from jobrunner.tasks import Task as NativeTask

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from jobrunner.compat.celery.app.base import Celery
    from jobrunner.compat.celery.app.task import Task

logger = logging.getLogger(__name__)

ON_CRASH = "JOBRUNNER_CELERY_ON_CRASH"
CRASHES_IF_RETRIED = 3  # deaths of its process after which a task that may run again is quarantined: Jobrunner's default
_POSTGRES = ("postgresql", "postgres", "jobrunner")
_ALONE = ("sqla+", "db+", "")  # how kombu and Celery write the addresses of databases


class CeleryRunner(JobRunner):
    """The JobRunner that belongs to a Celery app: its database may be the app's `broker_url`."""

    def __init__(self, app: Celery, **options: Any) -> None:
        super().__init__(**options)
        self._celery = app

    def configured_dsn(self) -> Dsn | None:
        """The database: `JOBRUNNER_DSN`, then a `broker_url` of PostgreSQL, then as for any JobRunner; the settings count as config."""
        if self._found is None:
            self._found = self._dsn or self._from_celery() or super().configured_dsn()
        return self._found

    def _from_celery(self) -> Dsn | None:
        if os.environ.get("JOBRUNNER_DSN"):
            return None
        conf = self._celery.conf
        if url := database_url(conf.broker_url):
            return parse_dsn(url, "broker_url of the Celery config")
        if self.app is not None:
            return None  # the Flask app's config is looked at by the JobRunner itself
        config: Mapping[str, Any] = conf.without_defaults()
        if "flask" in sys.modules:
            from jobrunner.flask import active_config

            config = {**active_config(), **config}
        return find_dsn(config=config)


def database_url(value: Any) -> str | None:
    """A broker's URL as the address of a PostgreSQL database; None when it is of something else."""
    text = str(value or "")
    scheme, colon, rest = text.partition("://")
    for prefix in _ALONE:
        if colon and scheme.removeprefix(prefix).partition("+")[0] in _POSTGRES:
            return f"postgresql://{rest}"
    return None


def warn_of_addresses(app: Celery, *, silently: bool = False) -> None:
    """Say in the log, once for each app, that its broker or result backend is not used; never the address, which may hold a password.

    Args:
        silently: only take it as said: a worker says it in its table.
    """
    said = object()
    if vars(app).setdefault("_said_of_addresses", said) is not said:  # in one step: two first requests may come at once
        return
    unused = [name for name in ("broker_url", "result_backend") if app.conf[name] and database_url(app.conf[name]) is None]
    if unused and not silently:
        verb = "is" if len(unused) == 1 else "are"
        logger.warning("%s of the Celery settings %s not used: tasks and results are rows of PostgreSQL", " and ".join(unused), verb)


def hostname_of(app: Celery) -> str:
    """The name of the worker of this process, as `-n` or `--name` says it; `celery@host` without one."""
    return app.jobs.lifecycle.worker_name or f"celery@{socket.gethostname()}"


def lower_runs_first(conf: Mapping[str, Any]) -> bool:
    """Whether a smaller priority number means sooner: so it is with Redis, and the other way round with AMQP and here."""
    scheme = str(conf["broker_url"] or "").partition("://")[0].removeprefix("sentinel+")
    return scheme.partition("+")[0] in {"redis", "rediss", "sentinel", "valkey", "valkeys"}


def runs_again(task: Task | None, conf: Mapping[str, Any]) -> bool:
    """Whether a task whose process died is run again; else it has failed with WorkerLostError.

    Raises:
        ImproperlyConfigured: `JOBRUNNER_CELERY_ON_CRASH` is neither `celery` nor `retry`.
    """
    from jobrunner.compat.celery.exceptions import ImproperlyConfigured

    chosen = str(os.environ.get(ON_CRASH) or conf.get(ON_CRASH) or "celery").strip().lower()
    if chosen not in {"celery", "retry"}:
        raise ImproperlyConfigured(f"{ON_CRASH}={chosen!r}: expected celery (a started task is not run twice unless acks_late) or retry")
    if chosen == "retry":
        return True
    late = conf["task_acks_late"] if task is None else task.acks_late
    again = conf["task_retry_on_worker_lost"] if task is None else task.retry_on_worker_lost
    return bool(late or again)


def register(jobs: JobRunner, task: Task, run: Callable[[str, dict[str, Any]], Any]) -> None:
    """Let workers run a Celery task.

    Args:
        run: called with the task's name and the stored arguments.

    Raises:
        ConfigurationError: the name cannot be one, or another task of the JobRunner has it.
    """
    name = task.name

    def body(**_stored_arguments: Any) -> Any:
        return run(name, _stored_arguments)

    run_of = type(task).run
    body.__module__ = getattr(task, "__module__", run_of.__module__)
    body.__name__ = body.__qualname__ = name
    body.__doc__ = task.__doc__
    jobs.registry.register(body, name, policy_of(task), jobs, Running(keep=keep_of(task.app.conf)))


def policy_of(task: Task) -> Policy:
    """What holds for jobs of the task that SQL or Jobrunner's own enqueue writes; `send` says it all for each call."""
    conf = task.app.conf
    chosen = task.app.router.route(task._execution_options(), task.name, (), {}, task)  # noqa: SLF001
    hard, soft = task.time_limit or None, task.soft_time_limit or None
    if hard and soft and soft > hard:
        soft = None  # a call of it is refused, and none before: a worker with such a task among others has to start
    given: dict[str, Any] = {
        "queue": chosen["queue"], "priority": native_priority(chosen.get("priority"), conf), "max_attempts": 1,
        "max_crashes": CRASHES_IF_RETRIED if runs_again(task, conf) else 1, "time_limit": hard,
        "soft_time_limit": soft,
    }  # fmt: skip
    return Policy().with_values(given, f"task {task.name!r}")


def keep_of(conf: Any) -> tuple[tuple[str, timedelta | None], ...]:
    """How long finished jobs are kept, where `result_expires` or `result_failure_expires` say so; by whole days, one at least."""
    found: list[tuple[str, timedelta | None]] = []
    for name, state in (("result_expires", "succeeded"), ("result_failure_expires", "failed")):
        if not conf.is_set(name):
            continue
        value = conf[name]
        if not value:
            found.append((state, None))
            continue
        seconds = value.total_seconds() if isinstance(value, timedelta) else float(value)
        found.append((state, timedelta(days=max(1, -(-int(seconds) // 86_400)))))
    return tuple(found)


def native_priority(value: Any, conf: Mapping[str, Any]) -> int:
    """A priority of Celery's as ours, in which lower runs first."""
    if value is None:
        return 0
    return int(value) if lower_runs_first(conf) else -int(value)


def remote(jobs: JobRunner, name: str) -> NativeTask[..., Any]:
    """A task by name: the registered one, else one of another code base, of which nothing but the name is known."""
    known = jobs.registry.find(name)
    if known is not None:
        return known

    def elsewhere(**_stored_arguments: Any) -> Any:
        raise NotImplementedError(name)

    return NativeTask(elsewhere, name, Policy(), jobs)
