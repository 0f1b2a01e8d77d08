"""Owns what a finding is, from which figures on there is one, and how names and values stand in the SQL that mends it.

It must not look at anything.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, NamedTuple
from urllib.parse import quote

from psycopg import sql

from jobrunner.settings import LEASE

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    import sqlalchemy as sa

    from jobrunner.database import Database

State = Literal["ok", "note", "bad"]

MOST = 5  # findings of one kind that are told one by one; whoever has more begins with these
_MB = 1_000_000


@dataclass(frozen=True, slots=True)
class Finding:
    """What was looked at, and what was found.

    Attributes:
        code: for programs.
        state: `ok`; `note` for what one should know; `bad` for what keeps jobs from running, slows them down or loses them.
        text: a sentence.
        fix: the command that mends it, or how to; empty when there is nothing to mend. One that ends with a semicolon is SQL.
        data: the measured figures, as JSON can hold them.
        group: which part of the installation it is about.
    """

    code: str
    state: State
    text: str
    fix: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)
    group: str = ""

    def document(self) -> dict[str, Any]:
        """As JSON shows it."""
        return {
            "code": self.code, "group": self.group, "state": self.state, "text": self.text, "fix": self.fix, "data": dict(self.data),
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Limits:
    """From which figures on something is worth a note, or bad.

    Attributes:
        snapshot_note, snapshot_bad: how long a snapshot may be held. A report takes minutes; after an hour at a hundred jobs a
            second a claim from the start of the index passes over 700,000 dead entries.
        back_least: transactions that a session must hold back. One that takes a new snapshot with each statement is old by its begin,
            and holds next to nothing.
        back_note, back_bad: the same in transactions, for what has no age: slots, standbys.
        dead_note, dead_bad: dead rows of one table. Autovacuum comes to `jobs` after 5,000; a busy queue makes 100,000 within its
            minute's nap only above 800 jobs a second. A million means that nothing was removed for long.
        dead_share: of all its rows, below which dead ones do not matter.
        index_wasted, index_factor: bytes that an index holds for nothing, and how many times its right size it must be. An index
            that was long keeps its pages for the next backlog: only a large one is worth a REINDEX.
        vacuum_lag, vacuum_factor: how long autovacuum may be away from a table that has so many times the dead rows it comes at.
            Ten naps of a minute.
        freeze_note, freeze_bad: transactions since the oldest unfrozen row. Autovacuum begins at 200 million; the server stops
            taking writes at about 2.1 billion.
        wal_bad: bytes of WAL that a slot without a reader may keep.
        skew: between this host's clock and the database's. Nothing is decided by it; people compare logs, and cron starts by it.
        rescue: how long a lost worker may wait for its rescue while others are alive; they look every few seconds.
        between_runs: how long the last run of cron may be over while nobody is alive. The longest usual interval, and a bit.
        group_note, group_bad: how old the first event may be that a group has yet to get. Delivery takes milliseconds, a retry minutes.
        days_note, days_bad: days for which partitions are there, tomorrow included. Workers keep seven.
        connections_note, connections_bad: share of the connections that are taken.
        oldest, newest: major versions of PostgreSQL that Jobrunner is tested on.
        patience_note, patience_bad: of a role's time-outs. Making partitions takes seconds under load, a batch of outcomes some
            milliseconds.
        idle_note, idle_bad: of a role's time-out of idle sessions; workers look every second, their LISTEN waits for minutes.
    """

    snapshot_note: timedelta = timedelta(minutes=5)
    snapshot_bad: timedelta = timedelta(hours=1)
    back_least: int = 100
    back_note: int = 10_000
    back_bad: int = 1_000_000
    dead_note: int = 100_000
    dead_bad: int = 1_000_000
    dead_share: float = 0.2
    index_wasted: int = 64 * _MB
    index_factor: float = 4.0
    vacuum_lag: timedelta = timedelta(minutes=10)
    vacuum_factor: float = 10.0
    freeze_note: int = 500_000_000
    freeze_bad: int = 1_000_000_000
    wal_bad: int = 1000 * _MB
    skew: timedelta = timedelta(seconds=5)
    rescue: timedelta = 2 * LEASE
    between_runs: timedelta = timedelta(minutes=16)
    group_note: timedelta = timedelta(minutes=5)
    group_bad: timedelta = timedelta(hours=1)
    days_note: int = 3
    days_bad: int = 1
    connections_note: float = 0.8
    connections_bad: float = 0.95
    oldest: int = 14
    newest: int = 18
    patience_note: timedelta = timedelta(seconds=10)
    patience_bad: timedelta = timedelta(seconds=1)
    idle_note: timedelta = timedelta(minutes=5)
    idle_bad: timedelta = timedelta(seconds=5)


class Look(NamedTuple):
    """What a check is given.

    Attributes:
        connection: in a read-only transaction that the server ends when a statement takes too long.
        at: the database's time at its begin.
    """

    database: Database
    connection: sa.Connection
    at: datetime
    limits: Limits


def name(*parts: str) -> str:
    """A name, or one with its schema, as it stands in SQL. Quoted only where it must be: people read it."""
    return ".".join(part if part.isidentifier() and part.isascii() and part.islower() else _quoted(part) for part in parts)


def role(user: str) -> str:
    """The name of a role as it stands in SQL; always quoted, since `user` and `public` mean something else."""
    return _quoted(user)


def value(text: str) -> str:
    """A text as it stands in SQL."""
    return sql.Literal(text).as_string(None).strip()


def address(user: str, host: str, port: str | int, database: str) -> str:
    """An address for a shell, without a password; `host` may be a socket's directory."""
    there = f"[{host}]" if ":" in host else host
    place, where = ("", f"?host={quote(host, safe='')}&port={port}") if host.startswith(("/", "@")) else (f"{there}:{port}", "")
    return shlex.quote(f"postgresql://{quote(user, safe='')}@{place}/{quote(database, safe='')}{where}")


def megabytes(size: float) -> str:
    """Bytes for a person."""
    return f"{size / _MB:,.1f} MB" if size < 100 * _MB else f"{size / _MB:,.0f} MB"


def several(number: int, one: str, more: str | None = None) -> str:
    """`1 job`, `1,200 jobs`."""
    return f"{number:,} {one if number == 1 else more or one + 's'}"


def _quoted(text: str) -> str:
    return sql.Identifier(text).as_string(None)
