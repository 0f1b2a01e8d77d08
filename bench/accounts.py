"""Owns what a measurement costs: CPU of process trees, WAL, queries, connections and memory, read between two instants.

It must not start or stop anything. CPU includes what ended processes used, once their parents have waited for them (PostgreSQL's
backends, forked children).
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobrunner.worker import procfs

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import psycopg

MILLISECONDS = 1000
LSN = "SELECT pg_current_wal_lsn() - '0/0'::pg_lsn"
TRANSACTIONS = "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = %s"
STATEMENTS = "SELECT coalesce(sum(calls), 0) FROM pg_stat_statements WHERE dbid = (SELECT oid FROM pg_database WHERE datname = %s)"
CONNECTIONS = "SELECT count(*) FROM pg_stat_activity WHERE datname = %s AND usename = %s"
WORKER_ROLE = "bench_worker"  # so that their sessions are told from those of the producers


def cpu_seconds(roots: Iterable[int]) -> float:
    """Used by these process trees since their processes began."""
    return sum(used.cpu_ms for root in roots if (used := procfs.usage(root)) is not None) / MILLISECONDS


def memory_bytes(roots: Iterable[int]) -> int:
    """Proportional set size of these trees."""
    return sum(size for root in roots if (size := procfs.proportional_bytes(root)) is not None)


def busy_seconds() -> float:
    """CPU time that the whole machine has used since boot, what its host took away included."""
    fields = [int(value) for value in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    user, nice, system, _idle, _iowait, irq, softirq, steal = fields
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def others_share(seconds: float, ours: Sequence[int]) -> float:
    """Which part of the machine other processes use in the next `seconds`, while the bench and its servers rest."""
    began, before, mine = time.monotonic(), busy_seconds(), cpu_seconds(ours)
    time.sleep(seconds)
    used = busy_seconds() - before - (cpu_seconds(ours) - mine)
    return max(0.0, used / ((time.monotonic() - began) * (os.cpu_count() or 1)))


@dataclass
class Ledger:
    """What one database and its server have done so far; on a connection of its own to another database."""

    admin: psycopg.Connection[Any]
    database: str
    statements: bool = False

    def wal_bytes(self) -> float:
        """Written since the cluster was made."""
        return float(self._one(LSN))

    def queries(self) -> float:
        """Statements sent, or transactions where pg_stat_statements is missing."""
        return float(self._one(STATEMENTS if self.statements else TRANSACTIONS, self.database))

    def connections(self) -> int:
        """Sessions of workers."""
        return int(self._one(CONNECTIONS, self.database, WORKER_ROLE))

    def _one(self, sql: str, *values: Any) -> Any:
        return self.admin.execute(sql, values or None).fetchall()[0][0]
