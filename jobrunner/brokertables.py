"""Owns the shape of the broker's tables as SQLAlchemy metadata: queues, bindings, consumers, messages and results of Kombu.

It must not be used to read or write them: the statements `broker_….sql` do that.
"""

from __future__ import annotations

from sqlalchemy import (
    ARRAY,
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Identity,
    Index,
    Integer,
    Interval,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    SmallInteger,
    Table,
    Text,
    text,
)

_AT = DateTime(timezone=True)
_NOW = text("now()")


def add_broker_tables(metadata: MetaData) -> None:
    """Add them to the MetaData of the whole schema."""
    _add_queues(metadata)
    _add_consumers(metadata)
    _add_messages(metadata)
    results = Table(
        "broker_results",
        metadata,
        Column("key", Text, nullable=False),
        Column("value", LargeBinary, nullable=False),
        Column("changed_at", _AT, nullable=False, server_default=_NOW),
        Column("expires_at", _AT),
        PrimaryKeyConstraint("key", name="broker_results_pkey"),
    )
    Index("broker_results_expiring", results.c.expires_at, postgresql_where=text("expires_at is not null"))


def _add_queues(metadata: MetaData) -> None:
    queues = Table(
        "broker_queues",
        metadata,
        Column("name", Text, nullable=False),
        Column("created_at", _AT, nullable=False, server_default=_NOW),
        Column("auto_delete", Boolean, nullable=False, server_default=text("false")),
        Column("expires", Interval),
        Column("expires_at", _AT),
        Column("message_ttl", Interval),
        PrimaryKeyConstraint("name", name="broker_queues_pkey"),
        CheckConstraint("name <> ''", name="broker_queues_name"),
        CheckConstraint("expires > interval '0' and message_ttl >= interval '0'", name="broker_queues_times"),
    )
    Index("broker_queues_expiring", queues.c.expires_at, postgresql_where=text("expires_at is not null"))
    bindings = Table(
        "broker_bindings",
        metadata,
        Column("exchange", Text, nullable=False),
        Column("routing_key", Text, nullable=False, server_default=text("''")),
        Column("queue", Text, nullable=False),
        Column("kind", Text, nullable=False),
        Column("pattern", Text),
        PrimaryKeyConstraint("exchange", "routing_key", "queue", name="broker_bindings_pkey"),
        CheckConstraint("kind in ('direct', 'topic', 'fanout')", name="broker_bindings_kind"),
        CheckConstraint("(kind = 'topic') = (pattern is not null)", name="broker_bindings_pattern"),
    )
    Index("broker_bindings_of_queue", bindings.c.queue)


def _add_consumers(metadata: MetaData) -> None:
    consumers = Table(
        "broker_consumers",
        metadata,
        Column("id", BigInteger, Identity(), nullable=False),
        Column("host", Text, nullable=False),
        Column("pid", Integer, nullable=False),
        Column("queues", ARRAY(Text), nullable=False),
        Column("lease", Interval, nullable=False),
        Column("started_at", _AT, nullable=False, server_default=_NOW),
        Column("heartbeat_at", _AT, nullable=False, server_default=_NOW),
        Column("lease_expires_at", _AT, nullable=False),
        PrimaryKeyConstraint("id", name="broker_consumers_pkey"),
        CheckConstraint("lease > interval '0'", name="broker_consumers_lease"),
    )
    Index("broker_consumers_lease_ends", consumers.c.lease_expires_at)


def _add_messages(metadata: MetaData) -> None:
    messages = Table(
        "broker_messages",
        metadata,
        Column("id", BigInteger, Identity(), nullable=False),
        Column("queue", Text, nullable=False),
        Column("priority", SmallInteger, nullable=False, server_default=text("0")),
        Column("published_at", _AT, nullable=False, server_default=_NOW),
        Column("available_at", _AT, nullable=False, server_default=_NOW),
        Column("expires_at", _AT),
        Column("task", Text),
        Column("task_id", Text),
        Column("consumer_id", BigInteger),
        Column("claimed_at", _AT),
        Column("lease", BigInteger, nullable=False, server_default=text("0")),
        Column("message", JSON, nullable=False),
        PrimaryKeyConstraint("id", name="broker_messages_pkey"),
        CheckConstraint("queue <> ''", name="broker_messages_queue"),
        CheckConstraint("priority between 0 and 255", name="broker_messages_priority"),
        CheckConstraint("(consumer_id is null) = (claimed_at is null)", name="broker_messages_held"),
    )
    free, held = "consumer_id is null", "consumer_id is not null"
    columns = messages.c
    Index(
        "broker_messages_claim", columns.queue, columns.priority.desc(), columns.available_at, columns.id, postgresql_where=text(free)
    )
    Index("broker_messages_of_consumer", columns.consumer_id, postgresql_where=text(held))
    Index("broker_messages_expiring", columns.expires_at, postgresql_where=text(f"expires_at is not null and {free}"))
