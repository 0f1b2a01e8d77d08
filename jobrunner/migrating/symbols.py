"""Owns what names stand for: Celery's own dotted names, what their calls give, and what is found on a thing of a kind.

It must not look at code. A kind is written with an @ before it: `@app` is an instance of Celery, `@task` a task, `@app.conf` its member.
"""

from __future__ import annotations

# The outermost packages that are looked at, and the way to which each belongs.
ROOTS = {
    "celery": "celery", "flask_executor": "executor", "concurrent": "executor", "threading": "threads", "_thread": "threads",
    "multiprocessing": "threads", "queue": "threads", "pika": "queue", "kombu": "queue", "amqp": "queue", "aio_pika": "queue",
    "kafka": "queue", "confluent_kafka": "queue", "aiokafka": "queue", "amqpstorm": "queue",
}  # fmt: skip

# Packages that go with Celery; `sentry_sdk.integrations.celery` and its like only as a whole.
PACKAGES = frozenset({
    "flower", "celery_once", "celery_singleton", "redbeat", "celery_redbeat", "celerybeatmongo", "sqlalchemy_celery_beat",
    "celery_sqlalchemy_scheduler", "django_celery_beat", "django_celery_results", "celery_progress", "flask_celeryext", "flask_celery",
    "flask_celery_helper", "flask_celery_context", "celery_batches", "celery_dyrygent", "celery_director", "sentry_sdk.integrations.celery",
    "opentelemetry.instrumentation.celery", "ddtrace.contrib.celery",
})  # fmt: skip

# Where a public name of Celery also stands.
_MODULES = {
    "celery.app.base": ("Celery",), "celery.app": ("shared_task", "current_app", "Celery"), "celery.app.task": ("Task", "Context"),
    "celery.canvas": ("chain", "group", "chord", "chunks", "xmap", "xstarmap", "signature", "subtask", "maybe_signature", "Signature",
                      "StampingVisitor", "GroupStampingVisitor"),
    "celery._state": ("current_app", "current_task", "get_current_app", "get_current_task"),
    "celery.utils": ("uuid",), "kombu.utils.uuid": ("uuid",), "celery.app.control": ("Control", "Inspect"),
    "celery.worker.control": ("Panel",),
    "billiard.exceptions": ("SoftTimeLimitExceeded", "TimeLimitExceeded", "WorkerLostError"),
}  # fmt: skip
_ALIASES = {f"{module}.{name}": f"celery.{name}" for module, names in _MODULES.items() for name in names}

_CANVAS = "chain group chord chunks xmap xstarmap signature subtask maybe_signature Signature StampingVisitor GroupStampingVisitor"
_RESULTS = "AsyncResult GroupResult ResultSet EagerResult allow_join_result result_from_tuple"
_SCHEDULES = "crontab schedule solar BaseSchedule"

# What Celery's public names are: (kind, name) of a rule.
_PUBLIC = {
    **{f"celery.{name}": ("canvas", name) for name in _CANVAS.split()},
    **{f"celery.result.{name}": ("result", name) for name in _RESULTS.split()},
    **{f"celery.schedules.{name}": ("schedule", name) for name in _SCHEDULES.split()},
    **{f"celery.beat.{name}": ("schedule", name) for name in ("ScheduleEntry", "Scheduler", "PersistentScheduler", "Service")},
    **{f"celery.{name}": ("app", name) for name in ("Celery", "shared_task", "current_app", "current_task", "Task", "uuid")},
    **{f"celery.{name}": ("control", name) for name in ("Control", "Inspect", "Panel")},
    "celery.get_current_app": ("app", "current_app"),
    "celery.get_current_task": ("app", "current_task"),
    "celery.Context": ("request", "get"),
    "celery.task.periodic_task": ("schedule", "periodic_task"),
    **{f"celery.{name}": ("exception", name) for name in ("SoftTimeLimitExceeded", "TimeLimitExceeded", "WorkerLostError")},
}
_WHOLE = {"celery.signals": "signal", "celery.exceptions": "exception", "celery.states": "state"}

MEMBERS = {
    "@app": {
        "conf": "@conf", "control": "@control", "Task": "celery.Task", "AsyncResult": "celery.result.AsyncResult",
        "GroupResult": "celery.result.GroupResult", "signature": "celery.signature", "tasks": "@tasks", "current_task": "@task",
        "current_worker_task": "@task",
    },
    "@task": {"request": "@request", "app": "@app", "AsyncResult": "celery.result.AsyncResult"},
    "@result": {"parent": "@result", "children": "@results"},
    "@executor": {"futures": "@futures"},
    "@cls:app": {}, "@cls:task": {},
    "flask_celeryext": {"celery": "@app"},
}  # fmt: skip

# Names that stand for an instance without a call.
PROXIES = {"celery.current_app": "@app", "celery.current_task": "@task"}

# What a call gives.
RETURNS = {
    "celery.Celery": "@app", "@cls:app": "@app", "celery.current_app": "@app", "celery.get_current_app": "@app",
    "celery.current_task": "@task", "celery.get_current_task": "@task", "celery.Task": "@task", "@cls:task": "@task",
    "@app.task": "@task", "celery.shared_task": "@task", "celery.task.task": "@task", "celery.task.periodic_task": "@task",
    "celery.decorators.task": "@task", "@app.periodic_task": "@task", "@app.register_task": "@task",
    "@task.delay": "@result", "@task.apply_async": "@result", "@task.apply": "@result", "@app.send_task": "@result",
    "@task.delay_on_commit": "@result", "@task.apply_async_on_commit": "@result", "@signature.delay": "@result",
    "@signature.apply_async": "@result", "@signature.apply": "@result", "@signature": "@result", "celery.result.AsyncResult": "@result",
    "celery.result.GroupResult": "@result", "celery.result.ResultSet": "@result", "celery.result.EagerResult": "@result",
    "@task.s": "@signature", "@task.si": "@signature", "@task.signature": "@signature", "@task.subtask": "@signature",
    "@task.chunks": "@signature", "@task.map": "@signature", "@task.starmap": "@signature", "@signature.set": "@signature",
    "@signature.clone": "@signature", "@signature.link": "@signature", **{f"celery.{name}": "@signature" for name in _CANVAS.split()},
    "@control.inspect": "@inspect", "celery.Inspect": "@inspect", "celery.Control": "@control", "@tasks.get": "@task",
    "flask_executor.Executor": "@executor", "@executor.job": "@job", "@executor.submit": "@future", "@job.submit": "@future",
    "@executor.submit_stored": "@future", "@job.submit_stored": "@future", "concurrent.futures.ThreadPoolExecutor": "@pool",
    "concurrent.futures.ProcessPoolExecutor": "@pool", "concurrent.futures.InterpreterPoolExecutor": "@pool", "@pool.submit": "@future",
    "concurrent.futures.thread.ThreadPoolExecutor": "@pool", "concurrent.futures.process.ProcessPoolExecutor": "@pool",
    "threading.Thread": "@thread", "threading.Timer": "@thread", "@cls:thread": "@thread", "multiprocessing.Process": "@thread",
    "multiprocessing.Pool": "@processes", "multiprocessing.pool.Pool": "@processes", "multiprocessing.pool.ThreadPool": "@processes",
    "pika.BlockingConnection": "@broker", "pika.SelectConnection": "@broker", "@broker.channel": "@broker", "kombu.Connection": "@broker",
    "kombu.Producer": "@broker", "@broker.Producer": "@broker", "@broker.SimpleQueue": "@broker", "kombu.Consumer": "@broker",
    "@broker.Consumer": "@broker", "aio_pika.connect": "@broker", "aio_pika.connect_robust": "@broker", "kafka.KafkaProducer": "@broker",
    "kafka.KafkaConsumer": "@broker", "confluent_kafka.Producer": "@broker", "confluent_kafka.Consumer": "@broker",
    "amqp.Connection": "@broker", "@broker.default_exchange": "@broker", "@broker.get_exchange": "@broker",
}  # fmt: skip

# A class that derives from one of these is one of these.
CLASSES = {
    "celery.Celery": "@cls:app", "@cls:app": "@cls:app", "celery.Task": "@cls:task", "celery.contrib.abortable.AbortableTask": "@cls:task",
    "celery.task.Task": "@cls:task", "celery.task.base.Task": "@cls:task", "@cls:task": "@cls:task", "threading.Thread": "@cls:thread",
    "celery.task.PeriodicTask": "@cls:task", "multiprocessing.Process": "@cls:thread", "@cls:thread": "@cls:thread",
}  # fmt: skip

# A function with one of these as its decorator is a task.
TASK_DECORATORS = frozenset({
    "@app.task", "celery.shared_task", "celery.task.task", "celery.decorators.task", "celery.task.periodic_task", "@app.periodic_task",
    "@task",
})  # fmt: skip

# Handlers that are called with the app.
APP_EVENTS = frozenset({"@app.on_after_configure.connect", "@app.on_after_finalize.connect", "@app.on_configure.connect"})

# The kinds of what is found on a thing, and the way to which it belongs.
KINDS = {
    "@app": "app", "@task": "call", "@signature": "call", "@result": "result", "@conf": "config", "@control": "control",
    "@inspect": "control", "@request": "request", "@executor": "executor", "@job": "executor", "@pool": "futures", "@future": "futures",
    "@thread": "thread", "@broker": "message queue",
}  # fmt: skip

# Whose keywords are which kind of option.
OPTIONS = {
    "celery.Celery": "app option", "@cls:app": "app option", "@app.config_from_object": "app option", "@app.task": "task option",
    "celery.shared_task": "task option", "celery.task.task": "task option", "celery.decorators.task": "task option",
    "celery.task.periodic_task": "task option", "@app.periodic_task": "task option", "@task.apply_async": "call option",
    "@app.send_task": "call option", "@task.retry": "call option", "@signature.set": "call option", "@signature.apply_async": "call option",
    "@task.apply": "call option", "@task.update_state": "call option", "@task.signature": None, "celery.signature": None,
    "@control.revoke": "control option", "@control.broadcast": "control option", "@control.inspect": "control option",
    "@conf.update": "config",
    "@task.apply_async_on_commit": "call option", "@app.add_defaults": "config",
}  # fmt: skip

# Methods so named that a receiver that nobody can place is taken for a task, in code that uses Celery.
TELLING = frozenset({"delay", "apply_async", "apply_async_on_commit", "delay_on_commit"})
CALLED_IN_CANVAS = frozenset({"s", "si"})
TELLING_OF_APP = {"send_task": ("call", "send_task"), "add_periodic_task": ("schedule", "add_periodic_task")}


# What stands in for a package has its names, and what is true of a use stays true when its import has been changed.
_STAND_INS = {"jobrunner.compat.celery": "celery", "jobrunner.compat.flask_executor": "flask_executor"}


def original(dotted: str) -> str:
    """The name that a dotted name of ours stands in for; any other as it is."""
    for ours, theirs in _STAND_INS.items():
        if dotted == ours or dotted.startswith(f"{ours}."):
            return theirs + dotted.removeprefix(ours)
    return dotted


def canonical(dotted: str) -> str:
    """The shortest public name of what stands there: `celery.app.base.Celery` is `celery.Celery`."""
    return _ALIASES.get(dotted, dotted)


def rule_key(dotted: str) -> tuple[str, str] | None:
    """Kind and name of the rule for a dotted name of Celery's; None when only the table of imports knows it."""
    if dotted in _PUBLIC:
        return _PUBLIC[dotted]
    module, _, name = dotted.rpartition(".")
    return (_WHOLE[module], name) if module in _WHOLE else None


def package_of(dotted: str) -> str | None:
    """The package beside Celery that a dotted name belongs to."""
    parts = dotted.split(".")
    return next((name for length in (1, 3) if (name := ".".join(parts[:length])) in PACKAGES), None)
