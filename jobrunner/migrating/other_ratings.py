"""Owns the ratings of the other ways to run work beside a request: Flask-Executor and concurrent.futures, threads, message queues.

It must not say how they are found.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobrunner.migrating.ratings import Rating, Row, Rule, rules

if TYPE_CHECKING:
    from collections.abc import Iterator

_OK, _CHANGED, _UNSUPPORTED = Rating.OK, Rating.CHANGED, Rating.UNSUPPORTED
_NOTHING = "Nothing to do."
_TRAVELS = "Check what is passed: function by name, arguments as JSON; give ids instead of objects."
_BACKGROUND = "Write `jobs.background(function, *args)` or @jobs.task, and pass ids instead of objects."

EXECUTOR: tuple[Row, ...] = (
    ("Executor", _OK, "Import it from jobrunner.compat.flask_executor, and set EXECUTOR_TYPE to 'jobs' when ready."),
    ("submit submit_stored map", _CHANGED, _TRAVELS),
    ("job", _OK, "Nothing to do; the function can also be called now."),
    ("init_app futures add_default_done_callback shutdown name app", _OK, _NOTHING),
    ("futures.*", _OK, "Nothing to do: futures are found by key in every process."),
    ("FutureCollection FutureProxy ExecutorJob", _OK, "Nothing to do but the import."),
    ("EXECUTOR_TYPE EXECUTOR_MAX_WORKERS EXECUTOR_PROPAGATE_EXCEPTIONS", _OK, _NOTHING),
    ("EXECUTOR_FUTURES_MAX_LENGTH", _CHANGED, "Nothing to do: no future is dropped that has not ended."),
    ("EXECUTOR_PUSH_APP_CONTEXT", _CHANGED, "Check what is read from `g`: a job has an app context, and of `g` what JSON holds."),
    ("flask_executor.* *", _OK, "Import it from jobrunner.compat.flask_executor."),
)

FUTURES: tuple[Row, ...] = (
    (
        "ThreadPoolExecutor ProcessPoolExecutor InterpreterPoolExecutor",
        _CHANGED,
        "Use JobExecutor(jobs) of jobrunner.compat.futures for what must survive a restart.",
    ),
    ("submit map", _CHANGED, _TRAVELS),
    ("Executor", _CHANGED, "Derive from JobExecutor of jobrunner.compat.futures, or keep it."),
    (
        "Future wait as_completed shutdown FIRST_COMPLETED FIRST_EXCEPTION ALL_COMPLETED CancelledError TimeoutError",
        _OK,
        "Nothing to do: futures of JobExecutor are real ones.",
    ),
    ("run_in_executor", _CHANGED, _TRAVELS),
    ("concurrent.futures", _OK, "Keep it for Future, wait and as_completed; JobExecutor is in jobrunner.compat.futures."),
    ("*", _OK, _NOTHING),
)

THREADS: tuple[Row, ...] = (
    ("Thread", _CHANGED, _BACKGROUND),
    ("Thread(app)", _CHANGED, "Leave the app out, a job has its context: `jobs.background(function, *args)` with ids instead of objects."),
    ("Timer", _CHANGED, "Write `task.options(delay=seconds).enqueue(...)`."),
    ("subclass", _CHANGED, "Make its run() a task and its attributes the arguments."),
    ("start_new_thread", _CHANGED, _BACKGROUND),
    ("Process Pool ThreadPool", _CHANGED, "Write a task and `enqueue_many`: each job has a process of its own, with limits."),
    (
        "Pool.apply_async Pool.map Pool.starmap Pool.imap Pool.imap_unordered Pool.map_async Pool.starmap_async Pool.apply",
        _CHANGED,
        _TRAVELS,
    ),
    ("start join is_alive daemon cancel", _CHANGED, "Goes with the thread: a job has `wait()`, `state` and `cancel()`."),
    (
        "queue.Queue SimpleQueue LifoQueue PriorityQueue",
        _CHANGED,
        "Write a task in its place: what is in the queue of a process ends with the process.",
    ),
    ("start_background_task", _CHANGED, _BACKGROUND),
    ("copy_current_request_context", _CHANGED, "Pass what is needed of the request: a job has an app context, and no request."),
    ("import", _OK, "Nothing to do: locks and events stay."),
    ("*", _CHANGED, _BACKGROUND),
)

QUEUE: tuple[Row, ...] = (
    ("import", _CHANGED, "Use `jobs.queue(name)` and `jobs.topic(name)`: messages are rows, and publishing joins your transaction."),
    (
        "basic_publish publish send produce",
        _CHANGED,
        "Write `jobs.queue(name).put(...)` or `jobs.topic(name).publish(...)`, with `session=` for your own transaction.",
    ),
    (
        "basic_consume basic_get consume start_consuming Consumer ConsumerMixin ConsumerProducerMixin consumer poll",
        _CHANGED,
        "Write a task that subscribes, or `jobs.queue(name).get()`.",
    ),
    ("basic_ack ack", _CHANGED, "Write `message.ack()`; a subscription that is a task needs none."),
    (
        "basic_nack basic_reject reject requeue nack",
        _CHANGED,
        "Write `message.nack(delay=…)` or `message.dead(reason)`; a task that raises is tried again.",
    ),
    ("basic_qos qos", _CHANGED, "Take it out: a worker takes a message when it has room for it."),
    (
        "queue_declare queue_bind queue_unbind queue_delete exchange_declare exchange_bind exchange_delete Queue Exchange Binding",
        _CHANGED,
        "Take it out: queues need no declaration; topics have patterns with * and #.",
    ),
    ("queue_purge", _CHANGED, "Use the dashboard: messages are rows."),
    ("confirm_delivery tx_select tx_commit tx_rollback", _CHANGED, "Take it out: publishing joins the transaction of your session."),
    (
        (
            "BlockingConnection SelectConnection ConnectionParameters URLParameters PlainCredentials Connection connect connect_robust"
            " KafkaProducer KafkaConsumer AIOKafkaProducer AIOKafkaConsumer"
        ),
        _CHANGED,
        "Set JOBRUNNER_DSN: the connection is the database's.",
    ),
    (
        "Producer SimpleQueue SimpleBuffer BasicProperties",
        _CHANGED,
        "Use `jobs.queue(name)`: headers, delay, priority and time to live are arguments of `put`.",
    ),
    (
        "process_data_events add_callback_threadsafe add_timeout call_later ioloop",
        _CHANGED,
        "Take it out: nothing has to be kept alive between messages.",
    ),
    ("exchange_type=headers", _UNSUPPORTED, "Route by topic: there is no routing by headers."),
    ("stream basic_recover connection.blocked", _UNSUPPORTED, "Rewrite it with a subscription in log mode."),
    ("pools.* transport.* KafkaAdminClient AdminClient", _UNSUPPORTED, "Take it out: there is no broker to administer."),
    ("*", _CHANGED, "Use `jobs.queue(name)` and `jobs.topic(name)`."),
)

PACKAGES: dict[str, tuple[Row, ...]] = {
    "executor": (("flask-executor", _CHANGED, "Take it out when no import of it is left, and require jobrunner-pg."),),
    "queue": (
        ("pika kombu amqp aio-pika kafka-python confluent-kafka aiokafka amqpstorm", _CHANGED, "Take it out when no import of it is left."),
    ),
}


def all_rules() -> Iterator[Rule]:
    """Every rule about the three other ways."""
    yield from rules("executor", "executor", EXECUTOR)
    yield from rules("executor", "futures", FUTURES)
    yield from rules("threads", "thread", THREADS)
    yield from rules("queue", "message queue", QUEUE)
    for way, rows in PACKAGES.items():
        yield from rules(way, "requirement", rows)
