"""Owns what a worker of a Celery app does before its first child: logging, the table of what becomes of the configuration, signals.

It must not open connections nor start threads: children are forked from this process.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

from jobrunner.compat.celery import signals
from jobrunner.compat.celery.app import rates, runner
from jobrunner.compat.celery.conf import Rating
from jobrunner.compat.celery.options import NAMES, TASK_OPTIONS
from jobrunner.compat.celery.utils.log import LoggingProxy, TaskFormatter, get_logger, task_logger

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jobrunner.compat.celery.app.base import Celery

LOGLEVEL = "JOBRUNNER_CELERY_LOGLEVEL"  # what `-l` says; Celery's own default is WARNING
_DEFAULT_LEVEL = "WARNING"
_MOST_NAMES = 5  # tasks that a line of the table names; more are counted

DEVIATIONS = (
    "crash: a task whose process died {crash}; nothing disappears, `jobrunner jobs retry` brings it back ({variable}=celery|retry)",
    "data: arguments and results are typed JSON, never pickle",
    "commit: .delay() commits on its own connection; .delay_on_commit() and apply_async(session=…) join a transaction",
)


class Line(NamedTuple):
    """One line of the table."""

    rating: Rating
    what: str
    note: str


class Instance(NamedTuple):
    """The worker as its signals give it: what receivers read of Celery's object, which has more.

    Attributes:
        app: whose worker it is.
        hostname: the name that the worker was given, else `celery@host`.
    """

    app: Celery
    hostname: str


def instance_of(app: Celery) -> Instance:
    """The worker of this process."""
    return Instance(app, runner.hostname_of(app))


def began(app: Celery) -> None:
    """Everything that comes before the first child."""
    for module in ("jobrunner.compat.celery.rows", "jobrunner.references", "jobrunner.enqueue", "jobrunner.store"):
        importlib.import_module(module)  # the driver and SQLAlchemy take half a second: here once, not in every child, on a task's time
    runner.warn_of_addresses(app, silently=True)
    for task in app.tasks.values():
        rates.interval_of(task.rate_limit)  # what makes no sense ends the start, as in Celery, and not one task after the other
    rates.rates_of(app)  # made here, so that the children share it
    instance = instance_of(app)
    signals.celeryd_init.send(sender=instance.hostname, instance=instance, conf=app.conf, options={})
    set_up_logging(app)
    print(report(app), file=sys.stderr, flush=True)  # noqa: T201  it is for whoever starts the worker, whatever logging says
    signals.celeryd_after_setup.send(sender=instance.hostname, instance=instance, conf=app.conf)
    signals.worker_init.send(sender=instance)
    signals.worker_ready.send(sender=instance)
    app.jobs.close()  # receivers may have sent a task: a connection of this process would lie idle for as long as the worker lives
    sys.stdout.flush()  # else every child prints once more what receivers have printed


def set_up_logging(app: Celery) -> None:
    """As Celery does: a receiver of `setup_logging` does it all; else the root logger and that of tasks get a handler each.

    The handlers of the root logger that an application has set up are left as they are.
    """
    conf = app.conf
    level = os.environ.get(LOGLEVEL, _DEFAULT_LEVEL).upper()
    chosen = logging.getLevelNamesMapping().get(level, logging.WARNING)
    facts: dict[str, Any] = {"loglevel": chosen, "logfile": None, "format": conf.worker_log_format, "colorize": False}
    if signals.setup_logging.send(sender=None, **facts):
        return
    root = logging.getLogger()
    if conf.worker_hijack_root_logger and not root.handlers:
        _add_handler(root, logging.Formatter(conf.worker_log_format, conf.worker_log_datefmt), chosen)
    signals.after_setup_logger.send(sender=None, logger=root, **facts)
    if not task_logger.handlers and conf.worker_hijack_root_logger:
        _add_handler(task_logger, TaskFormatter(conf.worker_task_log_format, datefmt=conf.worker_task_log_datefmt), chosen)
        _print_once()
    signals.after_setup_task_logger.send(sender=None, logger=task_logger, **{**facts, "format": conf.worker_task_log_format})


def redirect_streams(app: Celery) -> None:
    """In a child: what tasks print is logged, as in Celery, unless a receiver of `setup_logging` has set up logging by itself."""
    conf = app.conf
    if not conf.worker_redirect_stdouts or signals.setup_logging.receivers:
        return
    given = conf.worker_redirect_stdouts_level or "WARNING"
    level = given if isinstance(given, int) else logging.getLevelNamesMapping().get(str(given).upper(), logging.WARNING)
    logger = get_logger("celery.redirected")
    sys.stdout = LoggingProxy(logger, level, sys.stdout)  # all of a stream that is written to
    sys.stderr = LoggingProxy(logger, level, sys.stderr)


def _add_handler(logger: logging.Logger, formatter: logging.Formatter, level: int) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(formatter)
    handler.setLevel(level)
    logger.addHandler(handler)
    logger.setLevel(min(level, logging.INFO))  # what is not printed goes into the job's log all the same


class _OnlyOthers(logging.Filter):
    """Keeps records of task loggers, which have a line of their own, from being printed twice."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the root's handler prints it."""
        step: logging.Logger | None = logging.getLogger(record.name)
        while step is not None:
            if step is task_logger:
                return False
            step = step.parent
        return True


def _print_once() -> None:
    # Not propagate=False: the handler that fills the job's log will stand at the root.
    for handler in logging.getLogger().handlers:
        if type(handler) is logging.StreamHandler and isinstance(handler.formatter, logging.Formatter):
            handler.addFilter(_OnlyOthers())


# -- the table


def report(app: Celery) -> str:
    """What becomes of the app's configuration, as the worker prints it. Names only: among the values are passwords."""
    lines = sorted(lines_of(app), key=lambda line: (list(Rating).index(line.rating), line.what))
    width = max((len(line.what) for line in lines), default=0)
    crash = "runs again" if runner.runs_again(None, app.conf) else "has failed with WorkerLostError, unless it has acks_late"
    table = [f"  {line.rating.value:<11}  {line.what:<{width}}  {line.note}".rstrip() for line in lines]
    notes = [f"  deviation    {text.format(crash=crash, variable=runner.ON_CRASH)}" for text in DEVIATIONS]
    return "\n".join([f"celery: {app.main or 'app'}: {len(app.tasks)} tasks run by Jobrunner", *notes, *table])


def lines_of(app: Celery) -> Iterator[Line]:
    """One line for each setting that is set, the tasks with a rate, schedules that are refused, and each signal that is never sent."""
    for name, feature in app.conf.ones_set().items():
        if feature.rating is Rating.UNSUPPORTED and app.conf[name] == feature.default:
            continue  # it asks for nothing
        note = feature.note
        if name == "beat_schedule":
            note = f"{len(app.conf[name])} entries ({_some(app.conf[name])}): {note}"
        yield Line(feature.rating, name, note)
    limited = [task.name for task in app.tasks.values() if task.rate_limit]
    if limited and not app.conf.worker_disable_rate_limits:
        yield Line(Rating.UNDERSTOOD, "rate_limit", f"of {_some(limited)}: {TASK_OPTIONS['rate_limit'].note}")
    if app.refused_periodic:
        yield Line(Rating.UNSUPPORTED, "add_periodic_task", f"{app.refused_periodic} calls: {NAMES['add_periodic_task'].note}")
    for signal in signals.NEVER_SENT:
        if signal.receivers:
            yield Line(Rating.UNSUPPORTED, f"signal {signal.name}", "is never sent")


def _some(names: Any) -> str:
    names = sorted(map(str, names))
    more = len(names) - _MOST_NAMES
    return ", ".join(names[:_MOST_NAMES]) + (f" and {more} more" if more > 0 else "")
