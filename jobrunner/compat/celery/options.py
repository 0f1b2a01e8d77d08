"""Owns what becomes of the options of tasks and calls and of the names that code imports, as data beside `conf.SETTINGS`.

It must not act on any of them: `app.task` and `app.base` do.
"""

from __future__ import annotations

from types import MappingProxyType

from jobrunner.compat.celery.conf import Feature, Rating

_U, _I, _X = Rating.UNDERSTOOD, Rating.IGNORED, Rating.UNSUPPORTED
_LATER = "set it on the task and deploy: workers take no such orders"
_FLOW = "workflows are not there yet: send the next task at the end of this one, or with link="
_SIGNED = "stamps are not kept: pass headers= instead"


def _features(*rows: tuple[str, Rating, str]) -> MappingProxyType[str, Feature]:
    return MappingProxyType({name: Feature(name, rating, note) for name, rating, note in rows})


TASK_OPTIONS = _features(
    ("name", _U, "the name in the job's row"),
    ("bind", _U, "the function gets the task as its first argument"),
    ("base", _U, "the class of the task"),
    ("max_retries", _U, "3; None is for ever"),
    ("default_retry_delay", _U, "180 seconds"),
    ("autoretry_for", _U, "exceptions after which the task is retried; nothing is retried without it"),
    ("dont_autoretry_for", _U, "exceptions after which it is not"),
    ("retry_backoff", _U, "min(retry_backoff_max, factor * 2 ** retries)"),
    ("retry_backoff_max", _U, "600 seconds"),
    ("retry_jitter", _U, "a random pause between 0 and that"),
    ("retry_kwargs", _U, "further arguments of retry"),
    ("throws", _U, "exceptions that are logged as expected"),
    ("typing", _U, "the arguments are checked against the signature at the call"),
    ("ignore_result", _U, "neither state nor result can be read by AsyncResult"),
    ("store_errors_even_if_ignored", _U, "errors can be read all the same"),
    ("track_started", _U, "a running task reads STARTED"),
    ("time_limit", _U, "seconds; the process of the task is killed"),
    ("soft_time_limit", _U, "seconds; SoftTimeLimitExceeded is raised in the task"),
    ("acks_late", _U, "True: a task whose process died runs again; False: it fails with WorkerLostError"),
    ("retry_on_worker_lost", _U, "True: a task whose process died runs again"),
    ("reject_on_worker_lost", _I, "acks_late alone decides what follows a crash"),
    ("acks_on_failure_or_timeout", _I, "a task that failed is never redelivered"),
    ("acks_on_failure", _I, "a task that failed is never redelivered"),
    ("acks_on_timeout", _I, "a task that failed is never redelivered"),
    ("queue", _U, "where it goes"),
    ("priority", _U, "0 to 9; higher runs first, or lower when broker_url is of Redis"),
    ("expires", _U, "seconds or a moment after which it is not run any more"),
    ("shadow_name", _U, "the name in logs and in `shadow` of the request"),
    ("rate_limit", _U, "10/s, 10/m, 10/h or a number a second: starts in each worker, as in Celery"),
    ("serializer", _U, "must be json"),
    ("compression", _I, "PostgreSQL compresses by itself"),
    ("resultrepr_maxsize", _I, "what a task returned is not in the log"),
    ("pydantic", _X, "annotate the parameters of a native task: models travel by their type"),
    ("send_events", _I, "there are no event messages"),
    ("trail", _I, "children have parent_id in their rows"),
    ("backend", _I, "results are in the job's row"),
    ("exchange", _I, "there is no broker"),
    ("routing_key", _U, "chooses the queue of task_queues that has it"),
    ("delivery_mode", _I, "every job is durable"),
)

CALL_OPTIONS = _features(
    ("args", _U, "list or tuple; typed JSON"),
    ("kwargs", _U, "mapping; typed JSON"),
    ("countdown", _U, "seconds, added to the database's clock"),
    ("eta", _U, "when it is due; a time without a zone is UTC"),
    ("expires", _U, "seconds or a moment after which it is not run any more"),
    ("queue", _U, "a name, or a Queue of kombu's"),
    ("priority", _U, "0 to 9; higher runs first, or lower when broker_url is of Redis"),
    ("task_id", _U, "any text; that of a task which has not finished is refused"),
    ("headers", _U, "attributes of self.request in the worker"),
    ("link", _U, "sent with the result when it has succeeded"),
    ("link_error", _U, "when it has failed: called with (request, exc, traceback) if unbound and of several parameters, else sent the id"),
    ("ignore_result", _U, "for this call"),
    ("time_limit", _U, "seconds, for this call"),
    ("soft_time_limit", _U, "seconds, for this call"),
    ("shadow", _U, "the name in logs"),
    ("root_id", _U, "of the task that runs, unless it is given"),
    ("parent_id", _U, "of the task that runs, unless it is given"),
    ("retries", _U, "how often it was tried before"),
    ("routing_key", _U, "chooses the queue of task_queues that has it"),
    ("reply_to", _U, "kept in the request"),
    ("add_to_parent", _U, "whether the result is among the children of the request that runs"),
    ("session", _U, "a SQLAlchemy session whose transaction the job joins; Jobrunner's own"),
    ("sql_connection", _U, "a SQLAlchemy Connection whose transaction the job joins; Jobrunner's own"),
    ("serializer", _U, "must be json"),
    *((name, _I, "there is no broker") for name in (
        "connection", "producer", "publisher", "exchange", "exchange_type", "delivery_mode", "mandatory", "immediate", "retry",
        "retry_policy", "compression", "router", "correlation_id", "expiration", "timestamp", "content_type", "content_encoding",
    )),
    *((name, _X, _FLOW) for name in ("chain", "chord", "group_id", "group_index")),
    *((name, _X, _SIGNED) for name in ("stamped_headers", "stamps")),
)  # fmt: skip

NAMES = _features(
    *((name, _X, _FLOW) for name in ("chain", "group", "chord", "chunks", "xmap", "xstarmap", "Task.map", "Task.starmap", "Task.chunks")),
    ("Task.replace", _X, _FLOW),
    ("Task.add_to_chord", _X, _FLOW),
    ("schedules.crontab", _X, "schedules are not there yet: keep `celery beat`, or cron, for them until they are"),
    ("schedules.solar", _X, "there will be no schedules by the sun"),
    ("add_periodic_task", _X, "schedules are not there yet: keep `celery beat`, or cron, for them until they are"),
    ("control.rate_limit", _X, _LATER),
    ("control.shutdown", _U, "ends workers of this host; elsewhere the service manager has to"),
)  # fmt: skip
"""Names of Celery's whose use is not what it was."""
