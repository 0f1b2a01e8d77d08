"""Owns what is known of Celery's interface as data: every setting of 5.4 to 5.7, task and call options, each with what becomes of it.

It must not read anybody's configuration: `settings` does. The worker's table, `migrate-check` and the reference are made of this.
"""

from __future__ import annotations

from datetime import timedelta
from enum import StrEnum
from types import MappingProxyType
from typing import Any, NamedTuple


class Rating(StrEnum):
    """What becomes of something that a Celery application says.

    `understood`: it has its effect. `ignored`: it makes no difference here, and nothing is missing for it. `unsupported`: it asks for
    something that is not done; whoever relies on it must know.
    """

    UNDERSTOOD = "understood"
    IGNORED = "ignored"
    UNSUPPORTED = "unsupported"


class Feature(NamedTuple):
    """One setting, option or name of Celery's.

    Attributes:
        name: as it is written today.
        rating: what becomes of it.
        note: how, or what to do instead; a part of a sentence.
        default: Celery's own; None for what has none.
        old: the upper-case names that it had, the newest first; for settings.
    """

    name: str
    rating: Rating
    note: str
    default: Any = None
    old: tuple[str, ...] = ()


_U, _I, _X = Rating.UNDERSTOOD, Rating.IGNORED, Rating.UNSUPPORTED

_BROKER = "there is no broker: jobs are rows of the database"
_BACKEND = "there is no other result store: results are in the job's row"
_EVENTS = "there are no event messages: the dashboard and the views read the rows"
_REMOTE = "there are no control messages: workers are seen through their rows"
_PREFETCH = "nothing is prefetched: a worker claims one job for each free slot"
_BEAT = "schedules are not there yet: keep `celery beat`, or cron, for them until they are"
_POOL = "children are forked from one process that has imported the app"
_FLAG = "an option of `jobrunner celery-worker`"

DEFAULT_PROCESS_LOG_FORMAT = "[%(asctime)s: %(levelname)s/%(processName)s] %(message)s"
DEFAULT_TASK_LOG_FORMAT = "[%(asctime)s: %(levelname)s/%(processName)s] %(task_name)s[%(task_id)s]: %(message)s"
_RETRY_POLICY = {"max_retries": 3, "interval_start": 0, "interval_max": 1, "interval_step": 0.2}

# Name, default, rating, note of each.
_SETTINGS: tuple[tuple[str, Any, Rating, str], ...] = (
    # -- the app
    ("accept_content", ("json",), _U, "must allow json; anything else is refused"),
    ("result_accept_content", None, _I, _BACKEND),
    ("enable_utc", True, _U, "a time without a zone is UTC, or local time when it is off"),
    ("imports", (), _U, "modules that every worker imports"),
    ("include", (), _U, "modules that every worker imports"),
    ("timezone", None, _U, "of `app.now()`; jobs are due by the database's clock"),
    # -- beat
    ("beat_schedule", {}, _X, _BEAT),
    ("beat_scheduler", "celery.beat:PersistentScheduler", _X, _BEAT),
    ("beat_cron_starting_deadline", None, _X, _BEAT),
    ("beat_max_loop_interval", 0, _I, _BEAT),
    ("beat_schedule_filename", "celerybeat-schedule", _I, _BEAT),
    ("beat_sync_every", 0, _I, _BEAT),
    ("beat_enable_remote_control", False, _I, _REMOTE),
    ("beat_remote_control_max_tick_age", None, _I, _REMOTE),
    # -- broker
    ("broker_url", None, _U, "a postgresql:// address is the database; any other is not used, but for the direction of priorities"),
    ("broker_read_url", None, _I, _BROKER),
    ("broker_write_url", None, _I, _BROKER),
    ("broker_transport", None, _I, _BROKER),
    ("broker_transport_options", {}, _I, _BROKER),
    ("broker_connection_timeout", 4, _I, _BROKER),
    ("broker_connection_retry", True, _I, "a worker waits for a database that is away"),
    ("broker_connection_retry_on_startup", None, _I, "a worker waits for a database that is away"),
    ("broker_connection_max_retries", 100, _I, "a worker waits for a database that is away"),
    ("broker_channel_error_retry", False, _I, _BROKER),
    ("broker_failover_strategy", None, _I, "name several hosts in the address of the database"),
    ("broker_heartbeat", 120, _I, "workers renew a lease: `--lease`"),
    ("broker_heartbeat_checkrate", 3.0, _I, "workers renew a lease: `--lease`"),
    ("broker_login_method", None, _I, _BROKER),
    ("broker_native_delayed_delivery_queue_type", "quorum", _I, "a job that is due later waits in its row"),
    ("broker_pool_limit", 10, _I, _BROKER),
    ("broker_pool_acquire_timeout", None, _I, _BROKER),
    ("broker_use_ssl", False, _I, "sslmode of the address of the database"),
    *((f"broker_{name}", None, _I, _BROKER) for name in ("host", "port", "user", "password", "vhost")),
    # -- results
    ("result_backend", None, _I, _BACKEND),
    ("result_expires", timedelta(days=1), _U, "when set: how long succeeded jobs are kept, by whole days"),
    ("result_failure_expires", None, _U, "when set: how long failed jobs are kept, by whole days"),
    ("result_extended", False, _I, "name, arguments, worker, queue and retries of a task are always there"),
    ("result_serializer", "json", _U, "must be json"),
    ("result_chord_join_timeout", 3.0, _X, "chords are not there yet"),
    ("result_chord_retry_interval", 1.0, _X, "chords are not there yet"),
    ("result_chord_expires", None, _X, "chords are not there yet"),
    ("result_cache_max", -1, _I, _BACKEND),
    ("result_compression", None, _I, "PostgreSQL compresses by itself"),
    ("result_exchange", "celeryresults", _I, _BACKEND),
    ("result_exchange_type", "direct", _I, _BACKEND),
    ("result_persistent", None, _I, "results are as durable as the database"),
    ("result_backend_transport_options", {}, _I, _BACKEND),
    ("result_backend_max_sleep_between_retries_ms", 10_000, _I, _BACKEND),
    ("result_backend_max_retries", float("inf"), _I, _BACKEND),
    ("result_backend_base_sleep_between_retries_ms", 10, _I, _BACKEND),
    ("result_backend_always_retry", False, _I, _BACKEND),
    # -- tasks
    ("task_acks_late", False, _U, "on: a task whose process died runs again; off: it fails with WorkerLostError"),
    ("task_acks_on_failure_or_timeout", True, _I, "a task that failed is never redelivered"),
    ("task_acks_on_failure", None, _I, "a task that failed is never redelivered"),
    ("task_acks_on_timeout", None, _I, "a task that failed is never redelivered"),
    ("task_always_eager", False, _U, "tasks run where they are called; no row is written"),
    ("task_eager_propagates", False, _U, "an eager task raises"),
    ("task_store_eager_result", False, _U, "results of eager tasks are kept in this process, for AsyncResult(id)"),
    ("task_annotations", None, _U, "attributes of tasks by name, dict or class; `@method` wraps one"),
    ("task_compression", None, _I, "PostgreSQL compresses by itself"),
    ("task_create_missing_queues", True, _U, "off: a queue that is not in task_queues is an error"),
    ("task_create_missing_queue_type", "classic", _I, _BROKER),
    ("task_create_missing_queue_exchange_type", None, _I, _BROKER),
    ("task_inherit_parent_priority", False, _U, "a task that is sent by a task has its priority"),
    ("task_default_delivery_mode", 2, _I, "every job is durable"),
    ("task_default_queue", "celery", _U, "where tasks go that no route sends elsewhere"),
    ("task_default_queue_type", "classic", _I, _BROKER),
    ("task_default_exchange", None, _I, _BROKER),
    ("task_default_exchange_type", "direct", _I, _BROKER),
    ("task_default_routing_key", None, _I, "queues are chosen by name"),
    ("task_default_rate_limit", None, _U, "rate_limit of tasks that have none"),
    ("task_default_priority", None, _U, "0 to 9; higher runs first, or lower when broker_url is of Redis"),
    ("task_ignore_result", False, _U, "neither state nor result can be read by AsyncResult; the job's row is kept"),
    ("task_protocol", 2, _I, _BROKER),
    ("task_publish_retry", True, _I, "sending is one statement: it is done or it raises"),
    ("task_publish_retry_policy", _RETRY_POLICY, _I, "sending is one statement: it is done or it raises"),
    ("task_queues", None, _U, "names, with routing keys to choose by"),
    ("task_queue_max_priority", None, _I, "every queue has priorities"),
    ("task_reject_on_worker_lost", None, _I, "task_acks_late alone decides what follows a crash"),
    ("task_retry_on_worker_lost", False, _U, "on: a task whose process died runs again, as with task_acks_late"),
    ("task_remote_tracebacks", False, _I, "an exception from a worker has its traceback as its cause"),
    ("task_repr_maxlevels", 3, _I, "arguments are in the row"),
    ("task_routes", None, _U, "dict, glob, regular expression, function or a list of them"),
    ("task_send_sent_event", False, _I, _EVENTS),
    ("task_serializer", "json", _U, "must be json"),
    ("task_soft_time_limit", None, _U, "seconds; SoftTimeLimitExceeded is raised in the task"),
    ("task_time_limit", None, _U, "seconds; the process of the task is killed"),
    ("task_store_errors_even_if_ignored", False, _U, "errors of tasks with ignore_result can be read"),
    ("task_track_started", False, _U, "a running task reads STARTED"),
    ("task_allow_error_cb_on_chord_header", False, _X, "chords are not there yet"),
    # -- workers
    ("worker_concurrency", None, _U, f"-c, {_FLAG}"),
    ("worker_max_tasks_per_child", None, _U, f"--max-tasks-per-child, {_FLAG}"),
    ("worker_max_memory_per_child", None, _U, f"KiB; --max-memory-per-child, {_FLAG}"),
    ("worker_soft_shutdown_timeout", 0.0, _U, f"--grace, {_FLAG}"),
    ("worker_enable_soft_shutdown_on_idle", False, _I, "a worker without running tasks leaves at once"),
    ("worker_hijack_root_logger", True, _U, "off, or a receiver of setup_logging: the root logger is left alone"),
    ("worker_log_format", DEFAULT_PROCESS_LOG_FORMAT, _U, "of the root logger of the processes that run tasks"),
    ("worker_log_datefmt", None, _U, "of the root logger of the processes that run tasks"),
    ("worker_task_log_format", DEFAULT_TASK_LOG_FORMAT, _U, "of get_task_logger"),
    ("worker_task_log_datefmt", None, _U, "of get_task_logger"),
    ("worker_log_color", None, _I, "logs have no colours"),
    ("worker_redirect_stdouts", True, _U, "what a task prints is logged by `celery.redirected`, and so in the job's log"),
    ("worker_redirect_stdouts_level", "WARNING", _U, "of these records"),
    ("worker_prefetch_multiplier", 4, _I, _PREFETCH),
    ("worker_disable_prefetch", False, _I, _PREFETCH),
    ("worker_enable_prefetch_count_reduction", True, _I, _PREFETCH),
    ("worker_eta_task_limit", None, _I, "a job that is due later waits in its row"),
    ("worker_cancel_long_running_tasks_on_connection_loss", False, _I, "tasks go on while the database is away"),
    ("worker_deduplicate_successful_tasks", False, _I, "a job that has succeeded is never claimed again"),
    ("worker_disable_rate_limits", False, _U, "on: tasks run as fast as there are slots"),
    ("worker_pool", "prefork", _U, f"prefork, threads or solo; -P, {_FLAG}"),
    ("worker_pool_putlocks", True, _I, _POOL),
    ("worker_pool_restarts", False, _I, _POOL),
    ("worker_pool_start_method", "fork", _I, _POOL),
    ("worker_proc_alive_timeout", 4.0, _I, _POOL),
    ("worker_lost_wait", 10.0, _I, _POOL),
    ("worker_agent", None, _X, "there are no bootsteps"),
    ("worker_autoscaler", "celery.worker.autoscale:Autoscaler", _X, "workers have a fixed number of slots"),
    ("worker_consumer", "celery.worker.consumer:Consumer", _X, "there are no bootsteps"),
    ("worker_direct", False, _X, "a queue for each worker does not exist: give a worker a queue of its own"),
    ("worker_enable_remote_control", True, _I, _REMOTE),
    ("worker_send_task_events", False, _I, _EVENTS),
    ("worker_state_db", None, _I, "revoked tasks are cancelled in their rows"),
    ("worker_timer", None, _I, _POOL),
    ("worker_timer_precision", 1.0, _I, _POOL),
    ("worker_detect_quorum_queues", True, _I, _BROKER),
    # -- what belongs to brokers and result stores that are not used
    *((f"control_{name}", default, _I, _REMOTE) for name, default in (
        ("queue_ttl", 300.0), ("queue_expires", 10.0), ("queue_exclusive", True), ("queue_durable", False), ("exchange", "celery"),
    )),
    *((f"event_{name}", default, _I, _EVENTS) for name, default in (
        ("queue_expires", 60.0), ("queue_ttl", 5.0), ("queue_prefix", "celeryev"), ("queue_exclusive", True), ("queue_durable", False),
        ("serializer", "json"), ("exchange", "celeryev"),
    )),
    *((f"security_{name}", default, _I, "messages are not signed: who may write into the database is its business") for name, default in (
        ("certificate", None), ("cert_store", None), ("key", None), ("key_password", None), ("digest", "sha256"),
    )),
    *((name, default, _I, _BACKEND) for name, default in (
        ("cache_backend", None), ("cache_backend_options", {}), ("cassandra_entry_ttl", None), ("cassandra_keyspace", None),
        ("cassandra_port", None), ("cassandra_read_consistency", None), ("cassandra_servers", None), ("cassandra_bundle_path", None),
        ("cassandra_table", None), ("cassandra_write_consistency", None), ("cassandra_auth_provider", None),
        ("cassandra_auth_kwargs", None), ("cassandra_options", {}), ("s3_access_key_id", None), ("s3_secret_access_key", None),
        ("s3_bucket", None), ("s3_base_path", None), ("s3_endpoint_url", None), ("s3_region", None),
        ("azureblockblob_container_name", "celery"), ("azureblockblob_retry_initial_backoff_sec", 2),
        ("azureblockblob_retry_increment_base", 2), ("azureblockblob_retry_max_attempts", 3), ("azureblockblob_base_path", ""),
        ("azureblockblob_connection_timeout", 20), ("azureblockblob_read_timeout", 120), ("gcs_bucket", None), ("gcs_project", None),
        ("gcs_base_path", ""), ("gcs_ttl", 0), ("couchbase_backend_settings", None), ("arangodb_backend_settings", None),
        ("mongodb_backend_settings", None), ("cosmosdbsql_database_name", "celerydb"), ("cosmosdbsql_collection_name", "celerycol"),
        ("cosmosdbsql_consistency_level", "Session"), ("cosmosdbsql_max_retry_attempts", 9), ("cosmosdbsql_max_retry_wait_time", 30),
        ("redis_backend_use_ssl", None), ("redis_db", None), ("redis_host", None), ("redis_max_connections", None),
        ("redis_username", None), ("redis_password", None), ("redis_port", None), ("redis_socket_timeout", 120.0),
        ("redis_socket_connect_timeout", None), ("redis_retry_on_timeout", False), ("redis_socket_keepalive", False),
        ("redis_backend_health_check_interval", None), ("redis_client_name", None), ("elasticsearch_retry_on_timeout", None),
        ("elasticsearch_max_retries", None), ("elasticsearch_timeout", None), ("elasticsearch_save_meta_as_text", True),
        ("database_url", None), ("database_engine_options", {"pool_pre_ping": True, "pool_recycle": 3600}),
        ("database_engine_callback", None), ("database_short_lived_sessions", False), ("database_table_schemas", None),
        ("database_table_names", None), ("database_create_tables_at_setup", True),
    )),
)  # fmt: skip

# How upper-case names were made of the parts of today's; what differs from that is below.
_OLD_PREFIXES = (
    ("beat_", "CELERYBEAT_"), ("task_", "CELERY_"), ("worker_", "CELERYD_"),
    *((f"{part}_", f"CELERY_{part.upper()}_") for part in (
        "cache", "couchbase", "arangodb", "mongodb", "event", "redis", "result", "elasticsearch", "security",
    )),
)  # fmt: skip
_OLD_NAMES = {
    "accept_content": ("CELERY_ACCEPT_CONTENT",),
    "enable_utc": ("CELERY_ENABLE_UTC", "ENABLE_UTC"),
    "result_accept_content": ("CELERY_RESULT_ACCEPT_CONTENT", "RESULT_ACCEPT_CONTENT"),
    "imports": ("CELERY_IMPORTS",),
    "include": ("CELERY_INCLUDE",),
    "timezone": ("CELERY_TIMEZONE",),
    "result_cache_max": ("CELERY_MAX_CACHED_RESULTS",),
    "result_expires": ("CELERY_TASK_RESULT_EXPIRES", "CELERY_RESULT_EXPIRES"),
    "database_url": ("CELERY_RESULT_DBURI",),
    "database_engine_options": ("CELERY_RESULT_ENGINE_OPTIONS",),
    "database_short_lived_sessions": ("CELERY_RESULT_DB_SHORT_LIVED_SESSIONS",),
    "database_table_names": ("CELERY_RESULT_DB_TABLENAMES",),
    "task_compression": ("CELERY_MESSAGE_COMPRESSION",),
    "task_eager_propagates": ("CELERY_EAGER_PROPAGATES_EXCEPTIONS", "CELERY_EAGER_PROPAGATES"),
    "task_protocol": ("CELERY_TASK_PROTOCOL",),
    "task_publish_retry": ("CELERY_TASK_PUBLISH_RETRY",),
    "task_publish_retry_policy": ("CELERY_TASK_PUBLISH_RETRY_POLICY",),
    "task_send_sent_event": ("CELERY_SEND_TASK_SENT_EVENT",),
    "task_serializer": ("CELERY_TASK_SERIALIZER",),
    "task_soft_time_limit": ("CELERYD_TASK_SOFT_TIME_LIMIT",),
    "task_time_limit": ("CELERYD_TASK_TIME_LIMIT",),
    "worker_direct": ("CELERY_WORKER_DIRECT",),
    "worker_disable_rate_limits": ("CELERY_DISABLE_RATE_LIMITS",),
    "worker_enable_remote_control": ("CELERY_ENABLE_REMOTE_CONTROL",),
    "worker_lost_wait": ("CELERYD_WORKER_LOST_WAIT",),
    "worker_redirect_stdouts": ("CELERY_REDIRECT_STDOUTS",),
    "worker_redirect_stdouts_level": ("CELERY_REDIRECT_STDOUTS_LEVEL",),
    "worker_send_task_events": ("CELERY_SEND_EVENTS",),
}


def _old(name: str) -> tuple[str, ...]:
    if name in _OLD_NAMES:
        return _OLD_NAMES[name]
    for prefix, before in _OLD_PREFIXES:
        if name.startswith(prefix):
            return (before + name.removeprefix(prefix).upper(),)
    return (name.upper(),)


SETTINGS: MappingProxyType[str, Feature] = MappingProxyType(
    {name: Feature(name, rating, note, default, _old(name)) for name, default, rating, note in _SETTINGS}
)
"""Every setting by its name of today."""

OLD_NAMES: MappingProxyType[str, str] = MappingProxyType({old: name for name, feature in SETTINGS.items() for old in feature.old})
"""The upper-case names of Celery 3, and what they are called today."""

DEFAULTS: MappingProxyType[str, Any] = MappingProxyType({name: feature.default for name, feature in SETTINGS.items()})


def setting(name: str) -> Feature | None:
    """What is known of a setting by any of its names; None when it is none of Celery's."""
    return SETTINGS.get(OLD_NAMES.get(name, name))
