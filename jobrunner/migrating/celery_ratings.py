"""Owns the ratings of Celery's Python interface: tasks, calls, results, canvas, signals, schedules, control.

It must not say how they are found; imports, settings and command lines have tables of their own. Names: Celery 3.1 to 5.7.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobrunner.migrating.ratings import Rating, Row, Rule, rules

if TYPE_CHECKING:
    from collections.abc import Iterator

_OK, _CHANGED, _UNSUPPORTED = Rating.OK, Rating.CHANGED, Rating.UNSUPPORTED
_NOTHING = "Nothing to do."
_LATER_CANVAS = "Keep it on Celery, or let a task enqueue the next one: workflows are not there yet, and the call says so."
_LATER_BEAT = "Let Celery's beat or crontab go on with it: schedules are not there yet, and the call says so."
_IGNORED = "Take it out when you are done: it is accepted and makes no difference here."
_NO_BROKER = "Take it out: there is no broker connection behind a job, only rows."
_NO_INTERNALS = "Replace it: these are internals of Celery's own worker, and there is nothing behind them here."
_OWN_PAGE = "Use `jobrunner workers`, `jobrunner status` or the dashboard; they read tables and ask no worker."

TASK_OPTIONS: tuple[Row, ...] = (
    (
        (
            "name bind base ignore_result store_errors_even_if_ignored track_started throws typing queue shadow_name"
        ),
        _OK,
        _NOTHING,
    ),
    ("max_retries default_retry_delay autoretry_for dont_autoretry_for retry_kwargs", _OK, _NOTHING),
    ("retry_backoff retry_backoff_max retry_jitter", _OK, "Nothing to do: the delays are computed as Celery does."),
    ("time_limit soft_time_limit", _OK, "Nothing to do: the hard limit ends the job's whole process tree."),
    ("expires result_expires", _OK, "Nothing to do: an expired job is cancelled, which reads as REVOKED."),
    ("priority", _CHANGED, "Check the direction: 0 to 9, higher first as on RabbitMQ; on Redis Celery takes lower first."),
    ("serializer=json serializer", _OK, _NOTHING),
    (
        "serializer=pickle serializer=yaml serializer=msgpack",
        _UNSUPPORTED,
        "Write serializer='json' and pass what JSON holds: ids instead of objects.",
    ),
    ("abstract", _OK, _NOTHING),
    ("run_every relative", _UNSUPPORTED, _LATER_BEAT),
    ("rate_limit", _OK, "Nothing to do: the rate is that of each worker, as in Celery."),
    (
        "pydantic pydantic_strict pydantic_context pydantic_dump_kwargs",
        _UNSUPPORTED,
        "Make it a native task: models travel by the annotations of its parameters.",
    ),
    (
        (
            "reject_on_worker_lost acks_on_failure acks_on_timeout acks_on_failure_or_timeout compression send_events trail lazy"
            " shared filter accept_magic_kwargs exchange delivery_mode immediate mandatory backend resultrepr_maxsize"
        ),
        _OK,
        _IGNORED,
    ),
    (
        "acks_late retry_on_worker_lost",
        _CHANGED,
        (
            "Read about crashes: nothing is lost; with acks_late the task runs again, without it it ends as FAILURE with"
            " WorkerLostError."
        ),
    ),
    ("routing_key", _CHANGED, "Use `queue=`, or a queue of task_queues that has this routing key."),
    ("Strategy request_stack from_config", _UNSUPPORTED, _NO_INTERNALS),
    ("**", _CHANGED, "Compare the dict's keys with these options: what is in it cannot be seen here."),
    ("*", _OK, "Nothing to do: an attribute of your own, found on the task as before."),
)

TASK_CLASS: tuple[Row, ...] = (
    ("class", _OK, "Nothing to do but the import: a base class works with base=, task_cls= and app.Task."),
    ("__call__ run", _OK, "Nothing to do; a __call__ that pushes the app context may stay, or go where workers are given the Flask app."),
    ("on_success on_failure on_retry after_return before_start", _OK, "Nothing to do: called with Celery's arguments."),
    (
        "apply_async delay retry apply signature s si shadow_name on_bound annotate add_trail backend",
        _OK,
        "Nothing to do: an override is called, and super() works.",
    ),
    ("start_strategy add_to_chord replace", _UNSUPPORTED, _NO_INTERNALS),
    ("send_event", _OK, _IGNORED),
    ("*", _OK, _NOTHING),
)

CALLS: tuple[Row, ...] = (
    (
        "delay apply_async send_task",
        _OK,
        "Nothing to do: committed by itself, as with a broker; `delay_on_commit` joins your transaction.",
    ),
    ("delay_on_commit apply_async_on_commit", _OK, "Nothing to do: it joins the session's transaction, and returns the id."),
    ("apply run __call__", _OK, "Nothing to do: it runs here and now."),
    ("s si signature subtask set clone", _OK, "Nothing to do: a signature can be stored, called and sent."),
    ("add_around election skew", _UNSUPPORTED, "Rewrite it: there is nothing like it here."),
    ("retry update_state freeze flatten_links set_immutable reprcall signature_from_request", _OK, _NOTHING),
    ("AsyncResult app max_retries default_retry_delay name MaxRetriesExceededError OperationalError", _OK, _NOTHING),
    ("request", _OK, _NOTHING),
    ("start_strategy", _UNSUPPORTED, _NO_INTERNALS),
    ("link link_error on_error", _OK, "Nothing to do: the linked task is sent when this one has ended."),
    ("chunks map starmap replace add_to_chord", _UNSUPPORTED, _LATER_CANVAS),
    ("stamp stamp_links", _UNSUPPORTED, "Use `headers=` of the call: stamps are not kept."),
    ("send_event add_trail push_request pop_request backend", _OK, _IGNORED),
    ("*", _OK, "Nothing to do: an attribute of the task."),
)

CALL_OPTIONS: tuple[Row, ...] = (
    (
        (
            "args kwargs countdown eta task_id queue ignore_result time_limit soft_time_limit shadow headers link link_error root_id"
            " parent_id retries reply_to add_to_parent connection_of serializer serializer=json"
        ),
        _OK,
        _NOTHING,
    ),
    ("exc max_retries throw", _OK, _NOTHING),
    ("expires", _OK, "Nothing to do: an expired job is cancelled, which reads as REVOKED."),
    ("priority", _CHANGED, "Check the direction: 0 to 9, higher first as on RabbitMQ; on Redis Celery takes lower first."),
    ("session", _OK, _NOTHING),
    ("chain chord group_id group_index", _UNSUPPORTED, _LATER_CANVAS),
    (
        "serializer=pickle serializer=yaml serializer=msgpack",
        _UNSUPPORTED,
        "Write serializer='json' and pass what JSON holds: ids instead of objects.",
    ),
    ("state meta", _OK, _NOTHING),
    (
        (
            "retry retry_policy connection producer publisher compression router exchange exchange_type delivery_mode mandatory"
            " immediate result_cls declare correlation_id route_name expiration timestamp content_type content_encoding"
        ),
        _OK,
        _IGNORED,
    ),
    ("routing_key", _CHANGED, "Use `queue=`, or a queue of task_queues that has this routing key."),
    ("stamped_headers stamps", _UNSUPPORTED, "Use `headers=` of the call: stamps are not kept."),
    ("**", _CHANGED, "Compare the dict's keys with these options: what is in it cannot be seen here."),
    ("*", _CHANGED, "Check where it is read: what is no option of ours is not kept; `headers=` is."),
)

REQUEST: tuple[Row, ...] = (
    (
        (
            "id task retries args kwargs eta expires hostname delivery_info headers is_eager called_directly root_id parent_id"
            " correlation_id timelimit get task_id logfile loglevel utc origin ignore_result time_limit soft_time_limit shadow"
            " reply_to callbacks errbacks children"
        ),
        _OK,
        _NOTHING,
    ),
    ("chord group group_index chain", _CHANGED, "Check what asks for it: it is always None, as there are no workflows yet."),
    ("properties replaced_task_nesting", _CHANGED, "Check what asks for it: there is no message behind a job."),
    ("stamps stamped_headers", _UNSUPPORTED, "Use `headers=` of the call: stamps are not kept."),
    ("*", _OK, "Nothing to do: headers of your own are found on the request, as before."),
)

RESULTS: tuple[Row, ...] = (
    ("AsyncResult EagerResult allow_join_result children result_from_tuple as_list exists denied_join_result", _OK, _NOTHING),
    (
        (
            "id task_id state status result info traceback ready successful failed get wait forget date_done name args kwargs worker"
            " retries queue"
        ),
        _OK,
        _NOTHING,
    ),
    ("then as_tuple task_name maybe_throw maybe_reraise app", _OK, _NOTHING),
    ("revoke", _CHANGED, "Nothing to do: it is kept in the table, and outlives a restart of the workers."),
    ("parent", _OK, _NOTHING),
    ("collect graph get_leaf iterdeps build_graph root", _UNSUPPORTED, _LATER_CANVAS),
    ("GroupResult ResultSet results join join_native iter_native completed_count save restore waiting", _UNSUPPORTED, _LATER_CANVAS),
    ("backend", _CHANGED, "Read the result through AsyncResult: results are rows of Jobrunner's tables."),
    ("cache supports_native_join on_ready throw", _UNSUPPORTED, _NO_INTERNALS),
    ("*", _OK, _NOTHING),
)

CANVAS: tuple[Row, ...] = (
    ("signature subtask Signature maybe_signature", _OK, "Nothing to do: a signature can be stored, called and sent."),
    ("chain group chord | chunks xmap xstarmap subtask_type", _UNSUPPORTED, _LATER_CANVAS),
    ("StampingVisitor GroupStampingVisitor", _UNSUPPORTED, "Use `headers=` of the call: stamping is not there."),
    ("*", _UNSUPPORTED, _LATER_CANVAS),
)

SIGNALS: tuple[Row, ...] = (
    (
        (
            "task_prerun task_postrun task_success task_failure task_retry task_revoked before_task_publish after_task_publish"
            " worker_init worker_process_init worker_process_shutdown worker_ready worker_shutdown setup_logging after_setup_logger"
            " after_setup_task_logger task_internal_error celeryd_init celeryd_after_setup import_modules"
        ),
        _OK,
        "Nothing to do but the import: it is sent with Celery's arguments.",
    ),
    ("beat_init beat_embedded_init", _UNSUPPORTED, _LATER_BEAT),
    ("task_sent", _UNSUPPORTED, "Use after_task_publish: Celery has it no more either."),
    (
        "eventlet_pool_started eventlet_pool_preshutdown eventlet_pool_postshutdown eventlet_pool_apply",
        _UNSUPPORTED,
        "Use threads, or `async def` tasks with --async-slots.",
    ),
    (
        (
            "task_received task_unknown task_rejected worker_shutting_down worker_before_create_process heartbeat_sent"
            " user_preload_options"
        ),
        _CHANGED,
        "Check that you can do without it: it can be connected, and is never sent.",
    ),
    ("*", _UNSUPPORTED, _NO_INTERNALS),
)

BEAT: tuple[Row, ...] = (
    ("crontab schedule add_periodic_task periodic_task on_schedule entry", _UNSUPPORTED, _LATER_BEAT),
    ("solar", _UNSUPPORTED, "Compute the times yourself: there is no such schedule."),
    (
        "ScheduleEntry Scheduler PersistentScheduler Service Beat BaseSchedule",
        _UNSUPPORTED,
        "Keep the entries in your configuration: a scheduler class of your own is not loaded.",
    ),
    ("*", _UNSUPPORTED, _LATER_BEAT),
)

APP: tuple[Row, ...] = (
    ("Celery", _OK, "Change the import; `Celery(...)` takes what it took."),
    ("subclass", _OK, "Change the import; overridden hooks are called: send_task, gen_task_name, Task, on_init."),
    ("instance", _OK, _NOTHING),
    (
        (
            "task shared_task current_app current_task Task conf tasks set_default set_current main finalize register_task"
            " on_after_configure"
        ),
        _OK,
        _NOTHING,
    ),
    (
        (
            "on_after_finalize on_configure on_init AsyncResult send_task signature gen_task_name now timezone current_worker_task"
            " uuid"
        ),
        _OK,
        _NOTHING,
    ),
    ("autodiscover_tasks config_from_object config_from_envvar add_defaults close", _OK, _NOTHING),
    ("tasks.register tasks.unregister", _CHANGED, "Use `app.register_task`: only registered tasks run."),
    ("control", _OK, _NOTHING),
    ("GroupResult ResultSet", _UNSUPPORTED, _LATER_CANVAS),
    ("add_periodic_task Beat", _UNSUPPORTED, _LATER_BEAT),
    ("worker_main start Worker WorkController", _UNSUPPORTED, "Start workers with `jobrunner celery-worker` (same flags)."),
    (
        (
            "events bugreport user_options steps oid thread_oid clock autofinalize fixups loader loader_cls log log_cls amqp_cls"
            " backend_cls control_cls events_cls registry_cls builtin_fixups subclass_with_self annotations select_queues"
            " prepare_config setup_security either"
        ),
        _UNSUPPORTED,
        _NO_INTERNALS,
    ),
    (
        (
            "connection connection_for_read connection_for_write connection_or_acquire producer_or_acquire producer_pool pool amqp"
            " broker_connection default_connection default_producer"
        ),
        _UNSUPPORTED,
        _NO_BROKER,
    ),
    ("create_task_cls task_cls request_cls", _CHANGED, "Give `task_cls=` to the constructor."),
    ("backend", _CHANGED, "Read results through AsyncResult: they are rows of Jobrunner's tables."),
    ("*", _OK, "Nothing to do: an attribute of your own class."),
)

APP_OPTIONS: tuple[Row, ...] = (
    ("main include task_cls config_source namespace set_as_current autofinalize strict_typing changes", _OK, _NOTHING),
    (
        "broker backend broker_url result_backend",
        _CHANGED,
        "Set JOBRUNNER_DSN: an address that is not PostgreSQL's is ignored, as the worker says.",
    ),
    ("loader amqp events log control tasks", _UNSUPPORTED, _NO_INTERNALS),
    ("silent force", _OK, _NOTHING),
    ("fixups", _OK, _IGNORED),
    ("**", _CHANGED, "Compare the dict's keys with the table of settings: what is in it cannot be seen here."),
    ("*", _OK, "Nothing to do: taken as a setting."),
)

CONTROL: tuple[Row, ...] = (
    ("inspect", _OK, "Nothing to do: answers come from tables, so every worker answers at once."),
    ("ping active scheduled registered registered_tasks stats revoked reserved active_queues report", _OK, _NOTHING),
    ("terminate", _CHANGED, "Use revoke(id, terminate=True)."),
    ("query_task conf hello clock memsample memdump objgraph", _UNSUPPORTED, _OWN_PAGE),
    ("rate_limit time_limit", _UNSUPPORTED, "Set it on the task and deploy: workers take no such orders."),
    (
        "add_consumer cancel_consumer pool_grow pool_shrink pool_restart autoscale enable_events disable_events heartbeat election",
        _UNSUPPORTED,
        "Start the worker with other options: workers take no such orders.",
    ),
    ("broadcast Control Inspect Panel control_command inspect_command revoke_by_stamped_headers mailbox", _UNSUPPORTED, _NO_INTERNALS),
    ("revoke purge discard_all", _CHANGED, "Nothing to do: it is kept in the table, and outlives a restart of the workers."),
    ("shutdown", _CHANGED, "Let the service manager stop workers: only those of this host are reached."),
    ("*", _UNSUPPORTED, _OWN_PAGE),
)

CONTROL_OPTIONS: tuple[Row, ...] = (
    ("terminate signal", _OK, _NOTHING),
    (
        "destination timeout connection reply limit callback pattern",
        _CHANGED,
        "Take it out: it is accepted and ignored; no worker is asked.",
    ),
)

EXCEPTIONS: tuple[Row, ...] = (
    (
        (
            "Retry MaxRetriesExceededError Ignore Reject SoftTimeLimitExceeded TimeLimitExceeded TimeoutError WorkerLostError"
            " TaskRevokedError NotRegistered CeleryError TaskError ImproperlyConfigured OperationalError QueueNotFound CeleryWarning"
            " BackendError"
        ),
        _OK,
        "Nothing to do but the import.",
    ),
    ("RetryTaskError", _CHANGED, "Write Retry: Celery has it no more either."),
    ("ChordError", _UNSUPPORTED, _LATER_CANVAS),
    ("*", _CHANGED, "Check that you can do without it: nothing here raises it."),
)

STATES: tuple[Row, ...] = (
    (
        (
            "PENDING STARTED SUCCESS FAILURE RETRY REVOKED READY_STATES UNREADY_STATES EXCEPTION_STATES PROPAGATE_STATES ALL_STATES"
            " state precedence"
        ),
        _OK,
        _NOTHING,
    ),
    ("RECEIVED REJECTED IGNORED", _CHANGED, "Check what waits for it: a job is never in that state."),
    ("*", _OK, _NOTHING),
)

_KINDS = {
    "app": APP, "app option": APP_OPTIONS, "task option": TASK_OPTIONS, "task class": TASK_CLASS, "call": CALLS,
    "call option": CALL_OPTIONS, "request": REQUEST, "result": RESULTS, "canvas": CANVAS, "signal": SIGNALS, "schedule": BEAT,
    "control": CONTROL, "control option": CONTROL_OPTIONS, "exception": EXCEPTIONS, "state": STATES,
}  # fmt: skip


def all_rules() -> Iterator[Rule]:
    """Every rule about Celery's Python interface."""
    for kind, rows in _KINDS.items():
        yield from rules("celery", kind, rows)
