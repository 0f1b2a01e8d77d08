"""Owns the shape of the tables of topics: events, subscriptions, cursors, and what was gone past.

It must not be used but by `schema`, whose MetaData they belong to.
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
    Index,
    Integer,
    Interval,
    PrimaryKeyConstraint,
    SmallInteger,
    Table,
    Text,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.types import UserDefinedType

if TYPE_CHECKING:
    from sqlalchemy import MetaData

_AT = DateTime(timezone=True)
_NOW = text("now()")


class _TransactionId(UserDefinedType[int]):
    """The number of a transaction, which never comes again."""

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        """Its name in PostgreSQL."""
        return "xid8"


def _policy() -> list[Column[Any]]:
    """What becomes of a subscription a column of its jobs."""
    return [
        Column("queue", Text, nullable=False, server_default=text("'default'")),
        Column("priority", SmallInteger, nullable=False, server_default=text("0")),
        Column("tags", ARRAY(Text), nullable=False, server_default=text("'{}'::text[]")),
        Column("max_attempts", SmallInteger, nullable=False, server_default=text("5")),
        Column("backoff", Text, nullable=False, server_default=text("'exponential'")),
        Column("backoff_base", Interval, nullable=False, server_default=text("'5 seconds'::interval")),
        Column("backoff_cap", Interval, nullable=False, server_default=text("'1 hour'::interval")),
        Column("backoff_jitter", REAL, nullable=False, server_default=text("1")),
        Column("max_crashes", SmallInteger, nullable=False, server_default=text("3")),
        Column("time_limit", Interval),
        Column("soft_time_limit", Interval),
        Column("cpu_limit", Interval),
        Column("memory_limit", BigInteger),
        Column("memory_limit_on_retry", REAL),
        Column("output_limit", BigInteger),
        Column("max_processes", Integer),
    ]


def add_tables(metadata: MetaData) -> None:
    """Make the tables part of a schema."""
    Table(
        "events",
        metadata,
        Column("position", BigInteger, nullable=False, autoincrement=False),
        Column("topic", Text, nullable=False),
        Column("name", Text, nullable=False),
        Column("key", Text),
        Column("payload", JSONB, nullable=False),
        Column("headers", JSONB, nullable=False, server_default=text("'{}'::jsonb")),
        Column("xid", _TransactionId(), nullable=False, server_default=text("pg_current_xact_id()")),
        Column("published_at", _AT, nullable=False, server_default=text("clock_timestamp()")),
        PrimaryKeyConstraint("topic", "position", "published_at", name="events_pkey"),
        CheckConstraint("topic <> '' and name <> ''", name="events_names"),
        CheckConstraint("jsonb_typeof(headers) = 'object'", name="events_headers"),
        postgresql_partition_by="range (published_at)",
    )
    Table(
        "subscriptions",
        metadata,
        Column("topic", Text, nullable=False),
        Column("group_name", Text, nullable=False),
        Column("mode", Text, nullable=False),
        Column("task", Text, nullable=False),
        Column("patterns", ARRAY(Text), nullable=False),
        Column("matcher", Text),
        Column("app", Text, nullable=False, server_default=text("''")),
        *_policy(),
        Column("batch_size", Integer, nullable=False, server_default=text("100")),
        Column("on_failure", Text, nullable=False, server_default=text("'stop'")),
        Column("declared_at", _AT, nullable=False, server_default=_NOW),
        Column("changed_at", _AT, nullable=False, server_default=_NOW),
        Column("undeclared_at", _AT),
        PrimaryKeyConstraint("topic", "group_name", name="subscriptions_pkey"),
        CheckConstraint("mode in ('queue', 'log')", name="subscriptions_mode"),
        CheckConstraint("topic <> '' and group_name <> '' and task <> '' and cardinality(patterns) > 0", name="subscriptions_names"),
        CheckConstraint("batch_size > 0 and on_failure in ('stop', 'skip')", name="subscriptions_log"),
    )
    Table(
        "cursors",
        metadata,
        Column("topic", Text, nullable=False),
        Column("group_name", Text, nullable=False),
        Column("position", BigInteger, nullable=False),
        Column("safe_position", BigInteger, nullable=False, server_default=text("0")),
        Column("fence_position", BigInteger),
        Column("fence_xid", _TransactionId()),
        Column("not_before", _AT),
        Column("not_before_until", BigInteger),
        Column("rewind_count", BigInteger, nullable=False, server_default=text("0")),
        Column("delivered_count", BigInteger, nullable=False, server_default=text("0")),
        Column("job_id", BigInteger),
        Column("job_at", _AT),
        Column("stopped_at", _AT),
        Column("problem", Text),
        Column("moved_at", _AT, nullable=False, server_default=_NOW),
        PrimaryKeyConstraint("topic", "group_name", name="cursors_pkey"),
        CheckConstraint("position >= 0 and safe_position >= 0", name="cursors_positions"),
    )
    skips = Table(
        "event_skips",
        metadata,
        Column("job_id", BigInteger, nullable=False, autoincrement=False),
        Column("topic", Text, nullable=False),
        Column("group_name", Text, nullable=False),
        Column("after_position", BigInteger, nullable=False),
        Column("to_position", BigInteger, nullable=False),
        Column("skipped_at", _AT, nullable=False, server_default=_NOW),
        Column("redelivered_at", _AT),
        PrimaryKeyConstraint("job_id", name="event_skips_pkey"),
    )
    Index("event_skips_group", skips.c.topic, skips.c.group_name, postgresql_where=text("redelivered_at is null"))
