"""Owns the shape of the table of references: names that something outside gives to jobs, such as the key of a stored future."""

from __future__ import annotations

from sqlalchemy import BigInteger, CheckConstraint, Column, DateTime, Index, MetaData, PrimaryKeyConstraint, Table, Text, text


def add_reference_table(metadata: MetaData) -> None:
    """Describe `job_references` in `metadata`."""
    references = Table(
        "job_references",
        metadata,
        Column("space", Text, nullable=False),
        Column("key", Text, nullable=False),
        Column("job_id", BigInteger, nullable=False),
        Column("created_at", DateTime(timezone=True), nullable=False, server_default=text("now()")),
        PrimaryKeyConstraint("space", "key", name="job_references_pkey"),
        CheckConstraint("space <> '' and key <> ''", name="job_references_names"),
    )
    Index("job_references_job", references.c.job_id)
