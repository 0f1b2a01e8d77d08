"""Owns the shape of the tables as SQLAlchemy metadata: what enqueue, inspection and the schema check compile against.

It must not create or change anything: `migrations/` does, and a test compares the two. Its MetaData is Jobrunner's own,
so a user's `--autogenerate` never sees it (`jobrunner.migrate.include_name` keeps the database's side out as well).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    ARRAY,
    REAL,
    BigInteger,
    CheckConstraint,
    Column,
    DateTime,
    Identity,
    Index,
    Integer,
    Interval,
    MetaData,
    PrimaryKeyConstraint,
    SmallInteger,
    Table,
    Text,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB, OID

from jobrunner import topicschema
from jobrunner.brokertables import add_broker_tables
from jobrunner.histograms import BUCKETS
from jobrunner.referenceschema import add_reference_table
from jobrunner.settings import SCHEMA

if TYPE_CHECKING:
    from sqlalchemy.types import TypeEngine

metadata = MetaData(schema=SCHEMA)

_AT = DateTime(timezone=True)
_NOW = text("now()")

_LATER: tuple[tuple[str, type[TypeEngine[Any]] | TypeEngine[Any]], ...] = (
    ("soft_time_limit", Interval),
    ("cpu_limit", Interval),
    ("memory_limit", BigInteger),
    ("memory_limit_on_retry", REAL),
    ("output_limit", BigInteger),
    ("max_processes", Integer),
    ("progress", REAL),
    ("progress_text", Text),
    ("checkpoint", JSONB),
    ("ordering_key", Text),
    ("expires_at", _AT),
)


def _identity_columns(*, live: bool) -> list[Column[object]]:
    """The columns that a live and a finished job share. Only live rows have defaults and an identity."""

    def default(value: str) -> dict[str, object]:
        return {"server_default": text(value)} if live else {}

    columns: list[Column[object]] = [
        Column("id", BigInteger, *([Identity()] if live else []), nullable=False),
        Column("task", Text, nullable=False),
        Column("args", JSONB, nullable=False, **default("'{}'::jsonb")),  # type: ignore[arg-type]
        Column("queue", Text, nullable=False, **default("'default'")),  # type: ignore[arg-type]
        Column("priority", SmallInteger, nullable=False, **default("0")),  # type: ignore[arg-type]
        Column("tags", ARRAY(Text), nullable=False, **default("'{}'::text[]")),  # type: ignore[arg-type]
        Column("meta", JSONB),
        Column("parent_id", BigInteger),
        Column("unique_key", Text),
        Column("created_at", _AT, nullable=False, **default("now()")),  # type: ignore[arg-type]
        Column("run_at", _AT, nullable=False, **default("now()")),  # type: ignore[arg-type]
        Column("state", Text, nullable=False, **default("'queued'")),  # type: ignore[arg-type]
        Column("lease", BigInteger, nullable=False, **default("0")),  # type: ignore[arg-type]
        Column("attempt", SmallInteger, nullable=False, **default("0")),  # type: ignore[arg-type]
        Column("max_attempts", SmallInteger, nullable=False, **default("5")),  # type: ignore[arg-type]
        Column("backoff", Text, nullable=False, **default("'exponential'")),  # type: ignore[arg-type]
        Column("backoff_base", Interval, nullable=False, **default("'5 seconds'::interval")),  # type: ignore[arg-type]
        Column("backoff_cap", Interval, nullable=False, **default("'1 hour'::interval")),  # type: ignore[arg-type]
        Column("backoff_jitter", REAL, nullable=False, **default("1")),  # type: ignore[arg-type]
        Column("crash_count", SmallInteger, nullable=False, **default("0")),  # type: ignore[arg-type]
        Column("max_crashes", SmallInteger, nullable=False, **default("3")),  # type: ignore[arg-type]
        Column("time_limit", Interval),
        Column("last_error_type", Text),
        Column("last_error", Text),
        Column("last_error_at", _AT),
        Column("worker_id", BigInteger),
        Column("started_at", _AT),
        *(Column(name, kind) for name, kind in _LATER),
    ]
    return columns


# The columns a caller may set when inserting a job; everything else belongs to the engine.
INSERTABLE = (
    "task", "args", "queue", "priority", "tags", "meta", "parent_id", "unique_key", "run_at",
    "max_attempts", "backoff", "backoff_base", "backoff_cap", "backoff_jitter", "max_crashes", "time_limit",
    "soft_time_limit", "cpu_limit", "memory_limit", "memory_limit_on_retry", "output_limit", "max_processes", "ordering_key", "expires_at",
)  # fmt: skip

jobs = Table(
    "jobs",
    metadata,
    *_identity_columns(live=True),
    Column("claimed_at", _AT),
    Column("cancel_requested_at", _AT),
    PrimaryKeyConstraint("id", name="jobs_pkey"),
    CheckConstraint("state in ('queued', 'running')", name="jobs_state"),
    CheckConstraint("state <> 'running' or (worker_id is not null and claimed_at is not null and lease > 0)", name="jobs_running_shape"),
    CheckConstraint(
        "state <> 'queued' or (worker_id is null and claimed_at is null and started_at is null and cancel_requested_at is null)",
        name="jobs_queued_shape",
    ),
    CheckConstraint("jsonb_typeof(args) = 'object'", name="jobs_args_object"),
    CheckConstraint("task <> '' and queue <> ''", name="jobs_names"),
    CheckConstraint(
        "attempt >= 0 and max_attempts >= 1 and crash_count >= 0 and max_crashes >= 1 and lease >= 0 and lease < 4611686018427387904",
        name="jobs_counts",
    ),
    CheckConstraint("backoff in ('exponential', 'linear', 'constant')", name="jobs_backoff"),
    CheckConstraint(
        "backoff_base >= interval '0' and backoff_cap >= interval '0' and backoff_jitter >= 0 and backoff_jitter <= 1",
        name="jobs_backoff_range",
    ),
    CheckConstraint("time_limit > interval '0'", name="jobs_time_limit"),
    CheckConstraint(
        "soft_time_limit > interval '0' and cpu_limit > interval '0' and memory_limit > 0 and output_limit >= 0 and max_processes > 0",
        name="jobs_limits",
    ),
    CheckConstraint("soft_time_limit <= time_limit", name="jobs_soft_below_hard"),
    CheckConstraint("memory_limit_on_retry >= 1 and memory_limit_on_retry <= 1000", name="jobs_memory_on_retry"),
    CheckConstraint("progress >= 0 and progress <= 1", name="jobs_progress"),
    CheckConstraint("char_length(ordering_key) >= 1 and char_length(ordering_key) <= 500", name="jobs_ordering_key"),
    CheckConstraint("expires_at >= '1970-01-01 00:00+00' and expires_at < '9999-01-01 00:00+00'", name="jobs_expires_at"),
    CheckConstraint("run_at >= '1970-01-01 00:00+00' and run_at < '9999-01-01 00:00+00'", name="jobs_run_at"),
)
Index("jobs_claim", jobs.c.queue, jobs.c.priority, jobs.c.run_at, jobs.c.id, postgresql_where=text("state = 'queued'"))
Index("jobs_running", jobs.c.worker_id, postgresql_where=text("state = 'running'"))
Index("jobs_ordered", jobs.c.queue, jobs.c.ordering_key, jobs.c.id, postgresql_where=text("ordering_key is not null"))
Index(
    "jobs_ordered_running",
    jobs.c.queue,
    jobs.c.ordering_key,
    unique=True,
    postgresql_where=text("state = 'running' and ordering_key is not null"),
)
Index("jobs_expiring", jobs.c.expires_at, postgresql_where=text("state = 'queued' and expires_at is not null"))
Index("jobs_unique", jobs.c.task, jobs.c.unique_key, unique=True, postgresql_where=text("unique_key is not null"))

job_history = Table(
    "job_history",
    metadata,
    *_identity_columns(live=False),
    Column("finished_at", _AT, nullable=False, server_default=_NOW),
    Column("result", JSONB),
    Column("wait_ms", BigInteger),
    Column("run_ms", BigInteger),
    Column("cpu_ms", BigInteger),
    Column("peak_memory", BigInteger),
    PrimaryKeyConstraint("id", "finished_at", name="job_history_pkey"),
    CheckConstraint("state in ('succeeded', 'failed', 'cancelled', 'quarantined')", name="job_history_state"),
    postgresql_partition_by="range (finished_at)",
)
Index("job_history_recent", job_history.c.finished_at.desc(), job_history.c.id.desc())
Index("job_history_task", job_history.c.task, job_history.c.finished_at.desc(), job_history.c.id.desc())
Index(
    "job_history_unsuccessful",
    job_history.c.state,
    job_history.c.finished_at.desc(),
    job_history.c.id.desc(),
    postgresql_where=text("state <> 'succeeded'"),
)
Index(
    "job_history_task_unsuccessful",
    job_history.c.task,
    job_history.c.finished_at.desc(),
    job_history.c.id.desc(),
    postgresql_include=["state"],  # counted without a look at the rows
    postgresql_where=text("state <> 'succeeded'"),
)
Index(
    "job_history_queue",
    job_history.c.queue,
    job_history.c.finished_at.desc(),
    job_history.c.id.desc(),
    postgresql_where=text("queue <> 'default'"),
)

job_attempts = Table(
    "job_attempts",
    metadata,
    Column("job_id", BigInteger, nullable=False),
    Column("attempt", SmallInteger, nullable=False),
    Column("lease", BigInteger, nullable=False),
    Column("worker_id", BigInteger),
    Column("task", Text, nullable=False),
    Column("queue", Text, nullable=False),
    Column("started_at", _AT),
    Column("finished_at", _AT, nullable=False, server_default=_NOW),
    Column("outcome", Text, nullable=False),
    Column("error_type", Text),
    Column("message", Text),
    Column("traceback", Text),
    Column("fingerprint", Text),
    Column("exit_cause", Text),
    Column("run_ms", BigInteger),
    Column("cpu_ms", BigInteger),
    Column("peak_memory", BigInteger),
    PrimaryKeyConstraint("job_id", "lease", "finished_at", name="job_attempts_pkey"),
    CheckConstraint(
        "outcome in ('retried', 'failed', 'snoozed', 'released', 'cancelled', 'crashed', 'quarantined')", name="job_attempts_outcome"
    ),
    postgresql_partition_by="range (finished_at)",
)
Index("job_attempts_recent", job_attempts.c.finished_at.desc(), job_attempts.c.job_id.desc())

workers = Table(
    "workers",
    metadata,
    Column("id", BigInteger, Identity(), nullable=False),
    Column("name", Text, nullable=False),
    Column("host", Text, nullable=False),
    Column("pid", Integer, nullable=False),
    Column("kind", Text, nullable=False),
    Column("version", Text, nullable=False),
    Column("queues", ARRAY(Text), nullable=False),
    Column("tasks", ARRAY(Text), nullable=False),
    Column("slots", Integer, nullable=False),
    Column("started_at", _AT, nullable=False, server_default=_NOW),
    Column("heartbeat_at", _AT, nullable=False, server_default=_NOW),
    Column("lease_expires_at", _AT, nullable=False),
    Column("stopped_at", _AT),
    Column("rescued_at", _AT),
    Column("last_exit", Text),
    Column("rss_bytes", BigInteger),
    Column("succeeded_count", BigInteger, nullable=False, server_default=text("0")),
    Column("failed_count", BigInteger, nullable=False, server_default=text("0")),
    Column("crashed_count", BigInteger, nullable=False, server_default=text("0")),
    Column("pool", Text),
    Column("pool_slot", Integer),
    Column("claimed_count", BigInteger),
    Column("memory_bytes", BigInteger),
    Column("running", JSONB),
    PrimaryKeyConstraint("id", name="workers_pkey"),
    CheckConstraint("(pool is null) = (pool_slot is null) and pool_slot >= 1", name="workers_pool"),
    CheckConstraint("kind in ('daemon', 'cron', 'drain', 'embedded', 'test', 'consumer')", name="workers_kind"),
)
Index("workers_alive", workers.c.lease_expires_at, postgresql_where=text("stopped_at is null"))
Index("workers_stopped", workers.c.stopped_at, postgresql_where=text("stopped_at is not null"))
_POOLED = text("pool is not null and stopped_at is null")
Index("workers_pool_slot", workers.c.pool, workers.c.pool_slot, unique=True, postgresql_where=_POOLED)

job_logs = Table(
    "job_logs",
    metadata,
    Column("job_id", BigInteger, nullable=False),
    Column("lease", BigInteger, nullable=False),
    Column("line", Integer, nullable=False),
    Column("attempt", SmallInteger, nullable=False),
    Column("logged_at", _AT, nullable=False, server_default=_NOW),
    Column("level", SmallInteger, nullable=False),
    Column("logger", Text, nullable=False),
    Column("message", Text, nullable=False),
    PrimaryKeyConstraint("job_id", "lease", "line", "logged_at", name="job_logs_pkey"),
    postgresql_partition_by="range (logged_at)",
)

worker_runs = Table(
    "worker_runs",
    metadata,
    Column("id", BigInteger, Identity(), nullable=False),
    Column("worker_id", BigInteger, nullable=False),
    Column("name", Text, nullable=False),
    Column("host", Text, nullable=False),
    Column("pid", Integer, nullable=False),
    Column("kind", Text, nullable=False),
    Column("pool", Text),
    Column("pool_slot", Integer),
    Column("version", Text, nullable=False),
    Column("started_at", _AT, nullable=False),
    Column("finished_at", _AT, nullable=False, server_default=_NOW),
    Column("reason", Text, nullable=False),
    Column("exit_code", SmallInteger),
    Column("error", Text),
    Column("claimed_count", BigInteger),
    Column("succeeded_count", BigInteger, nullable=False),
    Column("failed_count", BigInteger, nullable=False),
    Column("crashed_count", BigInteger, nullable=False),
    Column("left_count", BigInteger),
    Column("next_due_at", _AT),
    PrimaryKeyConstraint("id", name="worker_runs_pkey"),
)
Index("worker_runs_recent", worker_runs.c.finished_at.desc(), worker_runs.c.id.desc())
Index("worker_runs_pool", worker_runs.c.pool, worker_runs.c.finished_at.desc(), postgresql_where=text("pool is not null"))

# What the roll-ups tell apart, and what they count of it: endings, sums of milliseconds, and how many were in which bucket.
ROLLUP_KEY = ("queue", "task", "outcome")
_ROLLUP_SUMS = ("run_ms", "wait_ms", "cpu_ms")
_ROLLUP_BUCKETS = tuple(f"{name}_{bucket}" for bucket in reversed(range(BUCKETS)) for name in ("run", "wait"))


def _rollup_columns() -> list[Column[Any]]:
    return [
        *(Column(name, Text, nullable=False) for name in ROLLUP_KEY),
        *(Column(name, Integer, nullable=False) for name in (*_ROLLUP_BUCKETS, "ended_count")),
        *(Column(name, BigInteger, nullable=False) for name in _ROLLUP_SUMS),
    ]


rollup_pending = Table(
    "rollup_pending",
    metadata,
    Column("slice", _AT, nullable=False),
    Column("backend", Integer, nullable=False),
    *_rollup_columns(),
    PrimaryKeyConstraint("slice", "backend", *ROLLUP_KEY, name="rollup_pending_pkey"),
)
rollup_minute = Table(
    "rollup_minute",
    metadata,
    Column("minute", _AT, nullable=False),
    *_rollup_columns(),
    PrimaryKeyConstraint("minute", *ROLLUP_KEY, name="rollup_minute_pkey"),
    postgresql_partition_by="range (minute)",
)
rollup_hour = Table(
    "rollup_hour",
    metadata,
    Column("hour", _AT, nullable=False),
    *_rollup_columns(),
    PrimaryKeyConstraint("hour", *ROLLUP_KEY, name="rollup_hour_pkey"),
)

retention = Table(
    "retention",
    metadata,
    Column("task", Text, nullable=False, server_default=text("'*'")),
    Column("state", Text, nullable=False, server_default=text("'*'")),
    Column("origin", Text, nullable=False, server_default=text("'operator'")),
    Column("app", Text, nullable=False, server_default=text("''")),
    Column("keep", Interval),
    Column("changed_at", _AT, nullable=False, server_default=_NOW),
    Column("changed_by", Text, nullable=False, server_default=text("CURRENT_USER")),
    PrimaryKeyConstraint("task", "state", "origin", "app", name="retention_pkey"),
    CheckConstraint("task <> ''", name="retention_task"),
    CheckConstraint("state in ('*', 'succeeded', 'failed', 'cancelled', 'quarantined')", name="retention_state"),
    CheckConstraint("origin = 'code' or (origin = 'operator' and app = '')", name="retention_origin"),
    CheckConstraint("keep >= interval '1 day' and keep <= interval '36500 days'", name="retention_keep"),
)

retention_days = Table(
    "retention_days",
    metadata,
    Column("part", Text, nullable=False),
    Column("rules", Text, nullable=False),
    Column("phase", Text, nullable=False),
    Column("file", OID),
    Column("next_block", BigInteger, nullable=False, server_default=text("0")),
    Column("due_count", BigInteger, nullable=False, server_default=text("0")),
    Column("kept_count", BigInteger, nullable=False, server_default=text("0")),
    Column("problem", Text),
    Column("problem_at", _AT),
    Column("changed_at", _AT, nullable=False, server_default=_NOW),
    PrimaryKeyConstraint("part", name="retention_days_pkey"),
    CheckConstraint("phase in ('counting', 'deleting', 'copying', 'settled')", name="retention_days_phase"),
)

retention_changes = Table(
    "retention_changes",
    metadata,
    Column("part", Text, nullable=False),
    Column("id", BigInteger, nullable=False),
    Column("lease", BigInteger, nullable=False),
    Column("finished_at", _AT, nullable=False),
)
Index("retention_changes_part", retention_changes.c.part)

upkeep_turn = Table(
    "upkeep_turn",
    metadata,
    Column("id", Integer, nullable=False, server_default=text("1")),
    Column("worker_id", BigInteger, nullable=False),
    Column("until", _AT, nullable=False),
    PrimaryKeyConstraint("id", name="upkeep_turn_pkey"),
    CheckConstraint("id = 1", name="upkeep_turn_one"),
)

add_reference_table(metadata)
topicschema.add_tables(metadata)
add_broker_tables(metadata)

PARTITIONED = ("job_history", "job_attempts", "job_logs", "rollup_minute", "events")
