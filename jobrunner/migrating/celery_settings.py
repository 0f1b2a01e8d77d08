"""Owns the ratings of Celery's settings, under their names since 4.0, and the older upper-case names of each.

It must not read anybody's configuration. Source of the names: `celery/app/defaults.py` of Celery 5.7.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobrunner.migrating.ratings import Rating, Row, Rule, rules

if TYPE_CHECKING:
    from collections.abc import Iterator

_OK, _CHANGED, _UNSUPPORTED = Rating.OK, Rating.CHANGED, Rating.UNSUPPORTED
_NOTHING = "Nothing to do."
_IGNORED = "Take it out when you are done: it is accepted and makes no difference here."
_LATER_BEAT = "Let Celery's beat or crontab go on with it: schedules are not there yet, and the worker says so at its start."

SETTINGS: tuple[Row, ...] = (
    (
        "broker_url broker_read_url broker_write_url result_backend",
        _CHANGED,
        "Set JOBRUNNER_DSN: an address that is not PostgreSQL's is ignored, as the worker says.",
    ),
    (
        "broker_transport broker_host broker_port broker_user broker_password broker_vhost",
        _CHANGED,
        "Set JOBRUNNER_DSN: there is no broker.",
    ),
    ("timezone enable_utc imports include", _OK, _NOTHING),
    ("task_default_queue task_routes task_queues task_create_missing_queues", _OK, _NOTHING),
    ("task_ignore_result task_track_started task_store_errors_even_if_ignored result_expires result_extended", _OK, _NOTHING),
    ("task_time_limit task_soft_time_limit", _OK, "Nothing to do: the hard limit ends the job's whole process tree."),
    ("task_always_eager task_eager_propagates task_store_eager_result", _OK, _NOTHING),
    ("task_annotations", _OK, _NOTHING),
    (
        "task_default_priority task_inherit_parent_priority",
        _CHANGED,
        "Check the direction: 0 to 9, higher first as on RabbitMQ; on Redis Celery takes lower first.",
    ),
    ("worker_concurrency worker_max_tasks_per_child", _OK, _NOTHING),
    ("worker_max_memory_per_child", _OK, "Nothing to do: in KiB, as in Celery."),
    ("worker_soft_shutdown_timeout", _OK, "Nothing to do: what `jobrunner celery-worker` waits after SIGQUIT."),
    (
        (
            "worker_hijack_root_logger worker_redirect_stdouts worker_redirect_stdouts_level worker_log_format worker_task_log_format"
            " worker_log_color worker_log_datefmt worker_task_log_datefmt"
        ),
        _OK,
        _NOTHING,
    ),
    ("worker_pool worker_pool=prefork worker_pool=threads worker_pool=solo", _OK, "Nothing to do: `jobrunner celery-worker -P` says it."),
    ("worker_pool=eventlet worker_pool=gevent", _UNSUPPORTED, "Use threads, or `async def` tasks with --async-slots."),
    (
        (
            "task_serializer task_serializer=json accept_content result_serializer result_serializer=json result_accept_content"
            " event_serializer"
        ),
        _OK,
        "Nothing to do where it is json.",
    ),
    (
        (
            "task_serializer=pickle task_serializer=yaml task_serializer=msgpack result_serializer=pickle result_serializer=yaml"
            " result_serializer=msgpack accept_content=pickle"
        ),
        _UNSUPPORTED,
        "Write json, and pass what JSON holds: ids instead of objects.",
    ),
    ("beat_scheduler", _UNSUPPORTED, "Keep the entries in your configuration: a scheduler class of your own is not loaded."),
    ("update", _OK, "Nothing to do: a whole Flask config may be passed, keys that are no settings are passed over."),
    ("unknown", _OK, "Nothing to do if it is a name of your own: Celery has no such setting."),
    (
        (
            "task_acks_on_failure task_acks_on_timeout task_acks_on_failure_or_timeout task_reject_on_worker_lost worker_* task_*"
            " broker_* result_* event_* control_* redis_* mongodb_* cassandra_* s3_* azureblockblob_* gcs_* couchbase_* arangodb_*"
            " cosmosdbsql_* elasticsearch_* cache_* database_* worker_prefetch_multiplier worker_disable_prefetch"
            " worker_eta_task_limit worker_enable_prefetch_count_reduction task_default_exchange task_default_exchange_type"
            " task_default_routing_key task_default_delivery_mode task_default_queue_type worker_timer worker_state_db"
            " beat_max_loop_interval beat_sync_every beat_schedule_filename beat_*"
        ),
        _OK,
        _IGNORED,
    ),
    (
        "task_default_rate_limit",
        _UNSUPPORTED,
        "Keep such tasks on Celery, or give them a queue of their own with few slots: there is no rate limit yet.",
    ),
    (
        "task_acks_late task_retry_on_worker_lost",
        _CHANGED,
        (
            "Read about crashes: nothing is lost; with acks_late the task runs again, without it it ends as FAILURE with"
            " WorkerLostError."
        ),
    ),
    (
        "worker_agent worker_autoscaler worker_consumer worker_direct",
        _UNSUPPORTED,
        "Take it out: workers have a fixed number of slots, and no bootsteps.",
    ),
    (
        "result_chord_join_timeout result_chord_retry_interval result_chord_expires task_allow_error_cb_on_chord_header",
        _UNSUPPORTED,
        "Goes with chords: workflows are not there yet.",
    ),
    ("beat_schedule beat_cron_starting_deadline", _UNSUPPORTED, _LATER_BEAT),
    ("security_*", _CHANGED, "Check who may write into the database: messages are not signed."),
    ("*", _CHANGED, "Check the name: it is no setting of Celery 5.7."),
)

# Where the older name is not the prefix of its group and the rest of the name.
_OLDER = {
    "task_serializer": "CELERY_TASK_SERIALIZER", "task_compression": "CELERY_MESSAGE_COMPRESSION", "task_protocol": "CELERY_TASK_PROTOCOL",
    "task_eager_propagates": "CELERY_EAGER_PROPAGATES_EXCEPTIONS", "task_publish_retry": "CELERY_TASK_PUBLISH_RETRY",
    "task_publish_retry_policy": "CELERY_TASK_PUBLISH_RETRY_POLICY", "task_send_sent_event": "CELERY_SEND_TASK_SENT_EVENT",
    "task_soft_time_limit": "CELERYD_TASK_SOFT_TIME_LIMIT", "task_time_limit": "CELERYD_TASK_TIME_LIMIT",
    "result_cache_max": "CELERY_MAX_CACHED_RESULTS", "result_expires": "CELERY_TASK_RESULT_EXPIRES",
    "database_url": "CELERY_RESULT_DBURI", "database_engine_options": "CELERY_RESULT_ENGINE_OPTIONS",
    "database_short_lived_sessions": "CELERY_RESULT_DB_SHORT_LIVED_SESSIONS", "database_table_names": "CELERY_RESULT_DB_TABLENAMES",
    "worker_direct": "CELERY_WORKER_DIRECT", "worker_disable_rate_limits": "CELERY_DISABLE_RATE_LIMITS",
    "worker_enable_remote_control": "CELERY_ENABLE_REMOTE_CONTROL", "worker_lost_wait": "CELERYD_WORKER_LOST_WAIT",
    "worker_redirect_stdouts": "CELERY_REDIRECT_STDOUTS", "worker_redirect_stdouts_level": "CELERY_REDIRECT_STDOUTS_LEVEL",
    "worker_send_task_events": "CELERY_SEND_EVENTS",
}  # fmt: skip
_PREFIXES = (
    ("accept_content", "CELERY_ACCEPT_CONTENT"), ("enable_utc", "CELERY_ENABLE_UTC"), ("imports", "CELERY_IMPORTS"),
    ("include", "CELERY_INCLUDE"), ("timezone", "CELERY_TIMEZONE"), ("task_", "CELERY_"), ("worker_", "CELERYD_"), ("beat_", "CELERYBEAT_"),
    ("broker_", "BROKER_"), ("", "CELERY_"),
)  # fmt: skip
# Settings with no row of their own above, whose older names are to be known as well.
_MORE = """
    broker_transport_options broker_connection_timeout broker_connection_retry broker_connection_retry_on_startup
    broker_connection_max_retries broker_failover_strategy broker_heartbeat broker_login_method broker_pool_limit broker_use_ssl
    task_compression task_protocol task_publish_retry task_publish_retry_policy task_send_sent_event task_queue_max_priority
    task_remote_tracebacks task_default_exchange_type result_cache_max result_persistent result_compression
    result_backend_transport_options result_exchange result_exchange_type result_chord_retry_interval result_chord_join_timeout
    worker_direct worker_disable_rate_limits worker_enable_remote_control worker_lost_wait worker_send_task_events worker_pool_restarts
    worker_cancel_long_running_tasks_on_connection_loss worker_proc_alive_timeout worker_pool_putlocks worker_timer_precision
    worker_enable_soft_shutdown_on_idle worker_deduplicate_successful_tasks worker_detect_quorum_queues worker_pool_start_method
    redis_backend_use_ssl redis_host redis_port redis_db redis_password redis_max_connections redis_socket_timeout
    mongodb_backend_settings cache_backend cache_backend_options database_url database_engine_options database_short_lived_sessions
    database_table_names database_table_schemas event_queue_expires event_queue_ttl event_queue_prefix event_serializer
    security_key security_certificate security_cert_store beat_max_loop_interval
"""


def _names() -> Iterator[str]:
    for names, _, _ in SETTINGS:
        yield from (name for name in names.split() if "=" not in name and "*" not in name and name not in {"update", "unknown"})
    yield from _MORE.split()


def _old_name(name: str) -> str:
    if name in _OLDER:
        return _OLDER[name]
    prefix, old = next((prefix, old) for prefix, old in _PREFIXES if name.startswith(prefix))
    return old + name.removeprefix(prefix).upper() if prefix in {"", "task_", "worker_", "beat_", "broker_"} else old


NAMES = frozenset(_names())
OLD_NAMES = {_old_name(name): name for name in NAMES}
_NAMESPACE = "CELERY_"  # most give config_from_object(…, namespace="CELERY"), or write the names so by habit


def setting_of(name: str) -> str | None:
    """The setting that an upper-case name stands for: an older name, or today's behind `CELERY_`; None when it is neither."""
    if name in OLD_NAMES:
        return OLD_NAMES[name]
    if name.startswith(_NAMESPACE) and name.isupper():
        inner = name.removeprefix(_NAMESPACE).lower()
        return inner if inner in NAMES else "unknown"
    return "unknown" if name.startswith(("CELERYD_", "CELERYBEAT_")) and name.isupper() else None


def all_rules() -> Iterator[Rule]:
    """Every rule about settings."""
    return rules("celery", "config", SETTINGS)
