"""Owns the advice on Celery's settings where more is to be said than that they have their effect, or none.

It must not read anybody's configuration, nor list settings: names, older names and what becomes of each are in `compat.celery.conf`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobrunner.compat.celery.conf import OLD_NAMES as OLD
from jobrunner.compat.celery.conf import SETTINGS as KNOWN
from jobrunner.compat.celery.conf import Rating as Becomes
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
    ("task_time_limit task_soft_time_limit", _OK, "Nothing to do: the hard limit ends the job's whole process tree."),
    (
        "task_default_priority task_inherit_parent_priority",
        _CHANGED,
        "Check the direction: 0 to 9, higher first as on RabbitMQ; on Redis Celery takes lower first.",
    ),
    ("worker_max_memory_per_child", _OK, "Nothing to do: in KiB, as in Celery."),
    ("worker_soft_shutdown_timeout", _OK, "Nothing to do: what `jobrunner celery-worker` waits after SIGQUIT."),
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
            "worker_* task_* broker_* result_* event_* control_* redis_* mongodb_* cassandra_* s3_* azureblockblob_* gcs_* couchbase_*"
            " arangodb_* cosmosdbsql_* elasticsearch_* cache_* database_* beat_*"
        ),
        _OK,
        _IGNORED,
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
    (
        "security_certificate security_cert_store security_key security_key_password security_digest security_*",
        _CHANGED,
        "Check who may write into the database: messages are not signed.",
    ),
    ("*", _CHANGED, "Check the name: it is no setting of Celery 5.7."),
)

# What is said of a setting that has no row above.
_REST = {
    Becomes.UNDERSTOOD: (_OK, _NOTHING),
    Becomes.IGNORED: (_OK, _IGNORED),
    Becomes.UNSUPPORTED: (_UNSUPPORTED, "Take it out: nothing is in its place, as the worker says at its start."),
}

# What an application may well call something of its own: settings of result stores that are not used here.
_OF_ANYBODY = ("s3_", "gcs_")

NAMES = frozenset(name for name in KNOWN if not name.startswith(_OF_ANYBODY))
OLD_NAMES = {old: name for old, name in OLD.items() if old.startswith(("CELERY", "BROKER_"))}  # others may be anybody's
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
    """Every rule about settings: those above, and one for each other setting that is known."""
    said = {name for names, _, _ in SETTINGS for name in names.split()}
    yield from rules("celery", "config", SETTINGS)
    for name, feature in KNOWN.items():
        if name not in said:
            yield Rule("celery", "config", name, *_REST[feature.rating])
